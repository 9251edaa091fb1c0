"""A backend's circuit breaker: calls go there while it works, and only probes while it does not.

    closed --3 failures in a row, or a fatal one--> open --2 good probes in a row--> closed, on probation

Probes are connections without a caller, so no call has to find out whether a backend is back. On probation a
single failure opens the circuit again, so that a backend which works now and then does not get calls now and then.
The module is pure: time is an argument.
"""

FAILURES_MAX = 3
"""So many failures in a row, and calls go elsewhere. A single one may be bad luck."""
FORGET_S = 60.0
"""A failure that is older does not count for the row."""
GOOD_PROBES = 2
PROBE_S = 4.0
"""Between probes: two good ones, Fly's own health check and its spreading stay below half a minute together."""
PROBE_FATAL_S = 15.0
"""Between probes after a refused key or an empty account, which somebody has to mend."""
PROBATION_S = 30.0


class Circuit:
    """The circuit of one backend. `now` is in seconds, of any clock that does not go back."""

    def __init__(self) -> None:
        self._failures = 0
        self._failed_at = float("-inf")
        self._open = False
        self._good_probes = 0
        self._probe_at = float("-inf")
        self._probation_until = float("-inf")

    @property
    def usable(self) -> bool:
        """True when calls may go there."""
        return not self._open

    @property
    def probe_at(self) -> float | None:
        """When the next probe is due; None while calls go there."""
        return self._probe_at if self._open else None

    def failed(self, now: float, *, fatal: bool) -> bool:
        """A call met a fault of the backend. True when that has opened the circuit."""
        if self._open:
            return False
        self._failures = 1 if now - self._failed_at > FORGET_S else self._failures + 1
        self._failed_at = now
        if not fatal and self._failures < FAILURES_MAX and now >= self._probation_until:
            return False
        self._open = True
        self._good_probes = 0
        self._probe_at = now + (PROBE_FATAL_S if fatal else PROBE_S)
        return True

    def worked(self) -> None:
        """A call was served well."""
        self._failures = 0

    def probe_failed(self, now: float, *, fatal: bool) -> None:
        """A probe met a fault of the backend."""
        self._good_probes = 0
        self._probe_at = now + (PROBE_FATAL_S if fatal else PROBE_S)

    def probe_worked(self, now: float) -> bool:
        """A probe found the backend well. True when that has closed the circuit."""
        self._good_probes += 1
        self._probe_at = now + PROBE_S
        if self._good_probes < GOOD_PROBES:
            return False
        self._open = False
        self._failures = 0
        self._probation_until = now + PROBATION_S
        return True
