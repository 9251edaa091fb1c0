"""Drives a Call by a visible list of (instant, event), and stands in for what answers by itself.

Between two instants of a script every deadline of the call is met with a Tick, pings are answered after a round
trip, and the phone plays: see phone_model.py. No clock runs and nothing sleeps. Whatever a script does, two rules
of the core are checked after every event: nothing follows Ended, and no deadline is left in the past.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from app.call.call import Call
from app.call.ending import EndReason
from app.call.events import (
    AgentAudio,
    BackendConfigured,
    BackendFault,
    BackendFound,
    BackendOpened,
    BackendUnreachable,
    CallerAudio,
    Command,
    Ended,
    ErrorKind,
    Event,
    FindBackend,
    MarkReturned,
    NoBackendLeft,
    PhoneConnected,
    PhoneStarted,
    Ping,
    Pong,
    Remember,
    ReportFirstAudio,
    ReportOutcome,
    ReportReady,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SendAudio,
    SendClear,
    SendMark,
    Side,
    Tick,
)
from app.call.failure import BackendFailure, wrong_format
from app.call.journal import END, Facts
from app.call.plan import HANG_UP, NO_ABILITIES, Abilities, Plan, Tool
from app.call.records import CallEvent, Record, Turn
from app.call.wall import Wall
from tests.call.phone_model import Phone, mulaw

CALL_SID = "CA00000000000000000000000000000002"
STREAM_SID = "MZ00000000000000000000000000000003"
FACTS = Facts(CALL_SID, "leg-1", "fra", "openai", "+4930111", "+4930222")
UNIX_MS = 1_800_000_000_000
"""Unix time at instant 0.0 of every script."""

SILENT = Plan(greeting="", tools=(HANG_UP, Tool("find_slot", "Find a free appointment.")))
"""No greeting: the script begins with the caller."""

TICKS_MAX = 20_000
"""No script needs more; a call that wants a Tick again and again without moving on would never stop."""

START = (
    (0.0, BackendOpened()),
    (0.1, BackendConfigured(formats_match=True)),
    (0.2, PhoneConnected()),
    (0.3, PhoneStarted(STREAM_SID, CALL_SID)),
)
"""The usual beginning: the backend is ready before the stream arrives."""

C = TypeVar("C")


def agent(item_id: str, ms: int, response_id: str = "r1") -> AgentAudio:
    """Agent speech; the phone model tells items apart by the last letter of their id."""
    return AgentAudio(response_id, item_id, mulaw(item_id[-1], ms), ms * 8)


def failure(code: str, param: str = "") -> BackendFailure:
    """An error of the backend's with this code, about this field."""
    return BackendFailure(EndReason.BACKEND_REFUSED, code, text=f"{code} {param}".rstrip())


def fault(
    kind: ErrorKind, code: str, param: str = "", *, formats: bool = False, configuration: bool = False
) -> BackendFault:
    """The backend's `error`, classified. `formats`: it was about the audio formats."""
    meant = failure(code, param)
    meant = replace(meant, reason=wrong_format("").reason) if formats else meant
    return BackendFault(kind, meant, param, configuration=configuration)


def unreachable(text: str) -> BackendUnreachable:
    """Dialling failed by this."""
    return BackendUnreachable(BackendFailure(EndReason.BACKEND_UNREACHABLE, text=text))


def frame(timestamp_ms: int, ms: int = 20) -> CallerAudio:
    """Caller audio whose payload names its instant."""
    return CallerAudio(f"f{timestamp_ms}", ms * 8, timestamp_ms)


@dataclass(slots=True)
class Script:
    """One call, and everything it asked for."""

    plan: Plan = SILENT
    phone: Phone = field(default_factory=Phone)
    abilities: Abilities = NO_ABILITIES
    successors: list[BackendFound] = field(default_factory=list)
    """Backends that take the place of those that fail before the call talks."""
    pongs: bool = True
    """False: pings are not answered, as by a half-open connection."""
    ticks: bool = True
    now: float = 0.0
    heard_by: Callable[[Event, float, list[Command]], None] | None = None
    """Told of every event and what came of it."""
    log: list[tuple[float, Event, list[Command]]] = field(default_factory=list)
    call: Call = field(init=False)
    _pongs: list[tuple[float, Side]] = field(default_factory=list)
    _by_kind: dict[type, list[tuple[float, Command]]] = field(default_factory=dict)
    """The same commands as in `log`: a call of minutes is asked after each of its frames whether it has ended."""

    def __post_init__(self) -> None:
        self.call = Call(self.plan, FACTS, Wall(0.0, UNIX_MS), self.abilities)

    # --- Driving -----------------------------------------------------------------------------

    def begin(self) -> "Script":
        """The usual beginning, up to 0.3 s."""
        for instant, event in START:
            self.at(instant, event)
        return self

    def at(self, now: float, *events: Event) -> list[Command]:
        """Let time pass until `now`, then feed these events. Returns what they alone asked for."""
        self.until(now)
        commands: list[Command] = []
        for event in events:
            commands += self._feed(event, now)
        return commands

    def until(self, now: float) -> list[Command]:
        """Let time pass. Returns what was asked for meanwhile."""
        commands: list[Command] = []
        for _ in range(TICKS_MAX):
            due = self._next()
            if due is None or due[0] > now:
                self.now = max(self.now, now)
                return commands
            commands += self._feed(due[1], max(due[0], self.now))
        raise AssertionError(f"more than {TICKS_MAX} ticks and answers by {now} s: the call spins")

    def stand_still(self, until: float) -> list[Command]:
        """This process does nothing until then. Its timer comes first; what the peers sent is read after it."""
        return self._feed(Tick(), until)

    def next_at(self) -> float | None:
        """When something comes by itself next."""
        due = self._next()
        return None if due is None else max(due[0], self.now)

    def to_the_end(self) -> list[Command]:
        """Let time pass until the call has ended by itself."""
        return self.until(self.now + self.plan.max_call_s + 60.0)

    def _next(self) -> tuple[float, Event] | None:
        """What comes next by itself, and when; what has come is taken."""
        deadline = self.call.deadline() if self.ticks else None
        mark_at = self.phone.returns_at()
        pong_at = self._pongs[0][0] if self._pongs else None
        times = [time for time in (deadline, mark_at, pong_at) if time is not None]
        if not times:
            return None
        first = min(times)
        if first == mark_at:
            return first, MarkReturned("")
        if first == pong_at:
            return first, Pong(self._pongs[0][1])
        return first, Tick()

    def _feed(self, event: Event, now: float) -> list[Command]:
        match event:
            case MarkReturned(""):
                event = MarkReturned(self.phone.take_mark())
            case Pong() if self._pongs and self._pongs[0][0] <= now and self._pongs[0][1] is event.side:
                self._pongs.pop(0)
            case _:
                pass
        self.now = now
        ended = self.ended is not None
        commands = self.call.handle(event, now)
        self.log.append((now, event, commands))
        for command in commands:
            self._by_kind.setdefault(type(command), []).append((now, command))
        assert not (ended and commands), f"{commands} after Ended"
        deadline = self.call.deadline()
        assert deadline is None or deadline > now, f"deadline {deadline} is not after {now}: {event}"
        for command in commands:
            self._answer(command, now)
        if self.heard_by is not None:
            self.heard_by(event, now, commands)
        if any(isinstance(command, FindBackend) for command in commands):
            commands = commands + self._feed(self.successors.pop(0) if self.successors else NoBackendLeft(), now)
        return commands

    def _answer(self, command: Command, now: float) -> None:
        match command:
            case SendAudio():
                self.phone.audio(command.payload, now)
            case SendMark():
                self.phone.mark(command.name, now)
            case SendClear():
                self.phone.clear(now)
            case Ping() if self.pongs:
                rtt_s = 2 * self.phone.one_way_s if command.side is Side.PHONE else 0.05
                self._pongs = sorted([*self._pongs, (now + rtt_s, command.side)], key=lambda pong: pong[0])
            case _:
                pass

    # --- Looking back ------------------------------------------------------------------------

    def every(self, kind: type[C]) -> list[tuple[float, C]]:
        """Every command of a kind, with its instant."""
        found: Any = self._by_kind.get(kind, [])  # of this kind, which its key says
        return [*found]

    @property
    def records(self) -> list[Record]:
        """What was handed to the ledger."""
        return [command.record for _, command in self.every(Remember)]

    @property
    def turns(self) -> list[Turn]:
        """The turns among them."""
        return [record for record in self.records if isinstance(record, Turn)]

    @property
    def end_details(self) -> list[str]:
        """What the records say about the end beside its reason."""
        return [record.detail for record in self.records if isinstance(record, CallEvent) and record.kind == END]

    @property
    def outcomes(self) -> list[tuple[float, BackendFailure | None]]:
        """What was reported about backends, with its instant."""
        return [(now, command.failure) for now, command in self.every(ReportOutcome)]

    @property
    def ended(self) -> Ended | None:
        """How the call ended, if it has."""
        ends = self.every(Ended)
        return ends[0][1] if ends else None


def talking(plan: Plan = SILENT, *, one_way_s: float = 0.0, **changes: object) -> Script:
    """A call that is through its beginning, at 0.3 s; `changes` to its plan."""
    return Script(replace(plan, **changes), Phone(one_way_s)).begin()  # type: ignore[arg-type]  # kept short


def answered(plan: Plan = SILENT, *, one_way_s: float = 0.0, **changes: object) -> Script:
    """As `talking`, after the caller has heard the agent: a moment of speech in item Z, at 0.3 s."""
    script = talking(plan, one_way_s=one_way_s, **changes)
    script.at(0.3, ResponseStarted("r0"), agent("item_Z", 20, "r0"))
    script.at(0.3, ResponseEnded("r0", ResponseStatus.COMPLETED))
    return script


def only(kind: type[C], commands: list[Command]) -> list[C]:
    """The commands of one kind."""
    return [command for command in commands if isinstance(command, kind)]


def without_records(commands: list[Command]) -> list[Command]:
    """The commands that go over a wire, pings left out."""
    aside = Remember | Ping | ReportReady | ReportFirstAudio | ReportOutcome
    return [command for command in commands if not isinstance(command, aside)]
