"""A backend's circuit breaker: decides whether calls go to a backend first, last, one at a time or not at all.

    CLOSED          FAILED_OFTEN      -> OPEN
    CLOSED          FATAL             -> OPEN
    CLOSED          LATE              -> SUSPECT
    CLOSED          LIMITED           -> RATE_LIMITED
    CLOSED          PROBED_SLOW       -> SUSPECT
    SUSPECT         FAILED_OFTEN      -> OPEN
    SUSPECT         FATAL             -> OPEN
    SUSPECT         QUICK             -> CLOSED
    SUSPECT         PROBED_WELL       -> HALF_OPEN
    HALF_OPEN       FAILED            -> OPEN
    HALF_OPEN       FAILED_OFTEN      -> OPEN
    HALF_OPEN       FATAL             -> OPEN
    HALF_OPEN       LATE              -> SUSPECT
    HALF_OPEN       LIMITED           -> RATE_LIMITED
    HALF_OPEN       QUICK             -> CLOSED
    HALF_OPEN       PROBED_SLOW       -> SUSPECT
    RATE_LIMITED    FAILED_OFTEN      -> OPEN
    RATE_LIMITED    FATAL             -> OPEN
    RATE_LIMITED    LATE              -> SUSPECT
    RATE_LIMITED    PAUSE_OVER        -> HALF_OPEN
    OPEN            PROBED_WELL       -> HALF_OPEN
    OPEN            PROBED_SLOW       -> SUSPECT

Every other cause leaves the state as it is. `python -m app.backends.circuit` prints this from the table below,
and `Circuit._meet` alone leads from one state to the next.

Why a hung backend needs a state of its own: a refused connection costs a caller milliseconds, because the next
backend is dialled at once, so three in a row may happen before calls go elsewhere. A backend that accepts the
connection and then says nothing costs every caller the whole late limit (2 s of silence). So the first caller who
waits that long makes it SUSPECT: it is tried last, and probed at once. It is not OPEN, because where a zone allows
no other backend a slow one is better than an apology.

Why HALF_OPEN: a probe is not a caller. After good probes one call at a time goes to the backend, and the others go
to the next one, until a call had its session and its first audio in good time. A backend that fails again soon
after it came back needs twice as many good probes the next time: one that works now and then costs few callers.

The module is pure: time is an argument.
"""

from collections.abc import Mapping
from enum import Enum, IntEnum, auto
from types import MappingProxyType

from app.call import limits
from app.call.phases import diagram, following

FAILURES_MAX = 3
"""So many failures in a row, and calls go elsewhere. A single one may be bad luck."""
FORGET_S = 60.0
"""A failure that is older does not count for the row."""
GOOD_PROBES = 2
"""In a row, before a call tries an OPEN backend. For a SUSPECT one a single probe is enough the first time."""
GOOD_PROBES_MAX = 16
"""A minute of good probes, however often the backend has failed again."""
DOUBLINGS_MAX = 8
"""Enough to reach GOOD_PROBES_MAX and PAUSE_MAX_S."""
PROBE_S = 4.0
"""Between probes: two good ones, Fly's own health check and its spreading stay below half a minute together."""
PROBE_FATAL_S = 15.0
"""Between probes after a refused key or an empty account, which somebody has to mend."""
PROBE_SLOW_MAX_S = 120.0
"""Between probes of a backend that works slowly: the time doubles up to here. Such a probe may speak, which costs
tokens, and a model that thinks before its first word does so for months."""
PROBATION_S = 30.0
"""After a recovery, a single failure opens the circuit, and any fall counts as a relapse."""
TRIAL_S = limits.STREAM_WAIT_S + limits.START_WAIT_S
"""How long a HALF_OPEN backend waits for what its one call reports before another call may try it. A call that
never got a stream, or whose caller hung up at once, reports nothing."""
PAUSE_S = 10.0
"""Without a Retry-After. The limits of OpenAI's tokens and requests are counted by the minute and refill steadily,
so that some seconds help. The pause doubles while the backend goes on refusing."""
PAUSE_MIN_S = 1.0
PAUSE_MAX_S = 120.0
"""A Retry-After may be hours (a daily limit). One call every two minutes finds out whether it was lifted."""


class CircuitState(Enum):
    """Which calls go to a backend."""

    CLOSED = auto()
    """All."""
    SUSPECT = auto()
    """Those that find no better one: a caller waited too long for it, or it is much slower than others."""
    HALF_OPEN = auto()
    """One at a time: it just came back."""
    RATE_LIMITED = auto()
    """Those that find no better one, for some seconds: it has said that it gets too many."""
    OPEN = auto()
    """None while a better one exists: it was given up. Zones for which none is better take no calls here."""


class Cause(Enum):
    """What a call or a probe has found out about a backend."""

    FAILED = auto()
    FAILED_OFTEN = auto()
    """The last of FAILURES_MAX failures in a row, or a failure soon after a recovery."""
    FATAL = auto()
    """A failure that every call will meet until somebody mends it."""
    LATE = auto()
    """A caller waited too long for the session or for its first audio."""
    LIMITED = auto()
    """It refused something because it gets too many requests."""
    PAUSE_OVER = auto()
    QUICK = auto()
    """A call had its session and its first audio in good time."""
    PROBED_WELL = auto()
    """There were enough good probes in a row."""
    PROBED_SLOW = auto()
    """It works, and the last probe took much longer than another backend does."""


_C, _S, _H, _R, _O = CircuitState
TRANSITIONS: Mapping[CircuitState, Mapping[Cause, CircuitState]] = MappingProxyType(
    {
        _C: {
            Cause.FAILED: _C,
            Cause.FAILED_OFTEN: _O,
            Cause.FATAL: _O,
            Cause.LATE: _S,
            Cause.LIMITED: _R,
            Cause.QUICK: _C,
            Cause.PROBED_WELL: _C,
            Cause.PROBED_SLOW: _S,
        },
        _S: {
            Cause.FAILED: _S,
            Cause.FAILED_OFTEN: _O,
            Cause.FATAL: _O,
            Cause.LATE: _S,
            # Its probes go on, which is what ends the suspicion.
            Cause.LIMITED: _S,
            Cause.QUICK: _C,
            Cause.PROBED_WELL: _H,
            Cause.PROBED_SLOW: _S,
        },
        _H: {
            Cause.FAILED: _O,
            Cause.FAILED_OFTEN: _O,
            Cause.FATAL: _O,
            Cause.LATE: _S,
            Cause.LIMITED: _R,
            Cause.QUICK: _C,
            # Only a call closes the circuit.
            Cause.PROBED_WELL: _H,
            Cause.PROBED_SLOW: _S,
        },
        _R: {
            Cause.FAILED: _R,
            Cause.FAILED_OFTEN: _O,
            Cause.FATAL: _O,
            Cause.LATE: _S,
            Cause.LIMITED: _R,
            Cause.PAUSE_OVER: _H,
            # One call that was let through does not mean that all will be.
            Cause.QUICK: _R,
            Cause.PROBED_WELL: _R,
            Cause.PROBED_SLOW: _R,
        },
        _O: {
            # Calls that began before it was given up say nothing new about it.
            Cause.FAILED: _O,
            Cause.FAILED_OFTEN: _O,
            Cause.FATAL: _O,
            Cause.LATE: _O,
            Cause.LIMITED: _O,
            Cause.QUICK: _O,
            Cause.PROBED_WELL: _H,
            Cause.PROBED_SLOW: _S,
        },
    }
)


class Standing(IntEnum):
    """How early a call tries a backend. Within one standing, wishes, nearness and speed decide."""

    FIRST = auto()
    BACK = auto()
    """It just came back, and another call is trying it."""
    LAST = auto()
    GIVEN_UP = auto()


class Circuit:
    """The circuit of one backend. `now` is in seconds, of any clock that does not go back.

    The methods that take in what was found out return the state that this has led to, None when it stays.
    """

    def __init__(self) -> None:
        self._state = CircuitState.CLOSED
        self._failures = 0
        self._failed_at = float("-inf")
        self._good_probes = 0
        self._probe_at = float("-inf")
        self._probation_until = float("-inf")
        self._relapses = 0
        """How often in a row it has fallen again soon after it came back."""
        self._slow_probes = 0
        """How many probes in a row were slow while it was suspected."""
        self._trial_until = float("-inf")
        self._pause_until = float("-inf")
        self._pauses = 0
        """How many pauses in a row have not helped."""

    @property
    def usable(self) -> bool:
        """True unless it was given up."""
        return self._state is not CircuitState.OPEN

    @property
    def probe_at(self) -> float | None:
        """When the next probe is due; None while no probe would change anything."""
        return self._probe_at if self._state in {CircuitState.OPEN, CircuitState.SUSPECT} else None

    def state(self, now: float) -> CircuitState:
        """Which calls go there now."""
        if self._state is CircuitState.RATE_LIMITED and now >= self._pause_until:
            self._meet(Cause.PAUSE_OVER, now)
        return self._state

    def standing(self, now: float) -> Standing:
        """How early a call tries it now."""
        match self.state(now):
            case CircuitState.CLOSED:
                return Standing.FIRST
            case CircuitState.HALF_OPEN:
                return Standing.FIRST if now >= self._trial_until else Standing.BACK
            case CircuitState.SUSPECT | CircuitState.RATE_LIMITED:
                return Standing.LAST
            case CircuitState.OPEN:
                return Standing.GIVEN_UP

    def chosen(self, now: float) -> bool:
        """A call goes there. True when it is the one that tries a backend which just came back."""
        trial = self.state(now) is CircuitState.HALF_OPEN and now >= self._trial_until
        if trial:
            self._trial_until = now + TRIAL_S
        return trial

    # --- What calls find out -----------------------------------------------------------------

    def failed(self, now: float, *, fatal: bool) -> CircuitState | None:
        """A call met a fault of the backend."""
        often = self._count_failure(now)
        return self._meet(Cause.FATAL if fatal else Cause.FAILED_OFTEN if often else Cause.FAILED, now)

    def late(self, now: float) -> CircuitState | None:
        """A caller waited for it as long as a caller may wait."""
        # Where there is no other backend callers go on waiting for it: then the row decides.
        often = self._count_failure(now) and self._state is CircuitState.SUSPECT
        return self._meet(Cause.FAILED_OFTEN if often else Cause.LATE, now)

    def slow(self, now: float) -> CircuitState | None:
        """A call was served, after a much longer wait than elsewhere."""
        return self._meet(Cause.LATE, now)

    def limited(self, now: float, retry_after_s: float | None) -> CircuitState | None:
        """It refused a call because it gets too many requests, and may have said for how long."""
        state = self.state(now)
        if state is not CircuitState.RATE_LIMITED:
            again = state is CircuitState.HALF_OPEN
            self._pauses = min(self._pauses + 1, DOUBLINGS_MAX) if again else 0
        wanted_s = PAUSE_S * (1 << self._pauses) if retry_after_s is None else retry_after_s
        pause_until = now + min(PAUSE_MAX_S, max(PAUSE_MIN_S, wanted_s))
        self._pause_until = max(self._pause_until, pause_until)
        return self._meet(Cause.LIMITED, now)

    def quick(self, now: float) -> CircuitState | None:
        """A call had its session and its first audio in good time."""
        return self._meet(Cause.QUICK, now)

    def worked(self) -> None:
        """A call was served well. It may have begun long ago, so it ends a row of failures and no more."""
        self._failures = 0

    # --- What probes find out ----------------------------------------------------------------

    def probe_failed(self, now: float, *, fatal: bool, late: bool = False) -> CircuitState | None:
        """A probe met a fault of the backend. `late`: a caller would have waited as long as a caller may."""
        self._good_probes = 0
        self._probe_at = now + (PROBE_FATAL_S if fatal else PROBE_S)
        return self.late(now) if late else self.failed(now, fatal=fatal)

    def probe_limited(self, now: float, retry_after_s: float | None) -> CircuitState | None:
        """A probe was refused because the backend gets too many requests."""
        entered = self.limited(now, retry_after_s)
        # The next probe respects the pause, and the good ones before it still count.
        self._probe_at = max(now + PROBE_S, self._pause_until)
        return entered

    def probe_worked(self, now: float, *, slow: bool = False) -> CircuitState | None:
        """A probe found that the backend works. `slow`: much more slowly than another one."""
        self._probe_at = now + PROBE_S
        match self.state(now):
            case CircuitState.SUSPECT if slow:
                # What it is suspected of.
                self._good_probes = 0
                self._slow_probes = min(self._slow_probes + 1, DOUBLINGS_MAX)
                self._probe_at = now + min(PROBE_SLOW_MAX_S, PROBE_S * (1 << self._slow_probes))
                return None
            case CircuitState.SUSPECT | CircuitState.OPEN:
                self._good_probes += 1
                if self._good_probes < self._probes_needed:
                    return None
            case CircuitState.CLOSED:
                self._failures = 0
            case CircuitState.HALF_OPEN | CircuitState.RATE_LIMITED:
                pass
        return self._meet(Cause.PROBED_SLOW if slow else Cause.PROBED_WELL, now)

    # --- Inside ------------------------------------------------------------------------------

    @property
    def _probes_needed(self) -> int:
        at_first = 1 if self._state is CircuitState.SUSPECT else GOOD_PROBES
        return min(GOOD_PROBES_MAX, at_first << self._relapses)

    def _count_failure(self, now: float) -> bool:
        """Return True when this failure is enough to give the backend up."""
        if self._state is CircuitState.OPEN:
            return False
        self._failures = 1 if now - self._failed_at > FORGET_S else self._failures + 1
        self._failed_at = now
        return self._failures >= FAILURES_MAX or now < self._probation_until

    def _meet(self, cause: Cause, now: float) -> CircuitState | None:
        """Go to the state that follows. The only place that does."""
        before, after = self._state, following(TRANSITIONS, self._state, cause)
        if after is before:
            return None
        self._state = after
        match after:
            case CircuitState.SUSPECT | CircuitState.OPEN:
                self._good_probes = 0
                self._slow_probes = 0
                if before in {CircuitState.CLOSED, CircuitState.HALF_OPEN}:
                    relapse = before is CircuitState.HALF_OPEN or now < self._probation_until
                    self._relapses = min(self._relapses + 1, DOUBLINGS_MAX) if relapse else 0
                if after is CircuitState.OPEN:
                    self._probe_at = now + (PROBE_FATAL_S if cause is Cause.FATAL else PROBE_S)
                elif cause is Cause.LATE:
                    self._probe_at = now
            case CircuitState.HALF_OPEN:
                self._failures = 0
                self._trial_until = float("-inf")
            case CircuitState.CLOSED:
                self._failures = 0
                self._pauses = 0
                self._probation_until = now + PROBATION_S
            case CircuitState.RATE_LIMITED:
                pass
        return after


def moves() -> Mapping[CircuitState, Mapping[Cause, CircuitState]]:
    """The part of the table that leads to another state, for a reader."""
    return {
        state: {cause: after for cause, after in row.items() if after is not state}
        for state, row in TRANSITIONS.items()
    }


if __name__ == "__main__":
    print(diagram(moves()))  # noqa: T201  for a reader
