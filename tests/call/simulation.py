"""A caller, a backend and a phone that obey the references, each with a will of its own, against one Call.

The backend model follows realtime.md 1.5 to 1.10: one response at a time, its own answer to every turn of the
caller, cancelled by speech, deltas in bursts and late ones after a cut, an error for a second response.create,
and for a truncation beyond what it has made. The caller speaks, interrupts, is silent, presses keys, hangs up.
Everything comes from one seed; no clock runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from random import Random
from string import ascii_letters

from app.call.events import (
    AddToolCall,
    AddToolOutput,
    AgentAudio,
    AgentAudioEnded,
    AgentText,
    BackendConfigured,
    BackendFound,
    BackendOpened,
    CallerAudio,
    CallerTranscribed,
    CallerTurnCommitted,
    CancelResponse,
    Command,
    Configure,
    CreateResponse,
    ErrorKind,
    Event,
    HangUp,
    HangUpFailed,
    KeyPressed,
    PeerLost,
    PhoneConnected,
    PhoneStarted,
    PhoneStopped,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    RunTool,
    ShutdownRequested,
    Side,
    SpeechStarted,
    SpeechStopped,
    SwitchBackend,
    ToolCalled,
    ToolFinished,
    Truncate,
    Usage,
)
from app.call.plan import HANG_UP, NO_ABILITIES, Plan, Tool
from tests.call.invariants import Watcher, longest_s
from tests.call.phone_model import Phone, mulaw
from tests.call.script import CALL_SID, FACTS, STREAM_SID, Script, failure, fault


def successor(name: str, plan: Plan) -> BackendFound:
    """Another backend that may have the call."""
    return BackendFound(replace(plan, model=f"{name} model"), replace(FACTS, backend=name), NO_ABILITIES)


TOOLS = (HANG_UP, Tool("find_slot", "Find a free appointment."))
PLANS = (
    Plan(max_call_s=70.0, max_call_warning_s=15.0, idle_prompt_s=6.0, tools=TOOLS),
    Plan(max_call_s=70.0, greeting="", idle_prompt_s=4.0, idle_prompts_max=1, tools=TOOLS),
    Plan(max_call_s=40.0, greeting_interruptible=False, idle_prompt_s=9.0, tools=TOOLS),
)


@dataclass(slots=True)
class Response:
    """What the backend is saying."""

    response_id: str
    letter: str
    items: int = 0


@dataclass(slots=True)
class World:
    """One simulated call."""

    seed: int
    clean: bool = True
    """The phone plays without stalls and returns every mark in time."""
    rng: Random = field(init=False)
    script: Script = field(init=False)
    watcher: Watcher = field(init=False)
    backend_way_s: float = 0.0
    active: Response | None = None
    made_ms: dict[str, float] = field(default_factory=dict)
    """Audio made of each item."""
    tool_calls: set[str] = field(default_factory=set)
    """Calls that wait for an output."""
    complaints: list[str] = field(default_factory=list)
    """What the backend would have answered with an error that is our fault."""
    caller_speaks: bool = False
    session: int = 0
    """Which backend session is the present one: what an earlier one had still to say never arrives."""
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _planned: int = 0
    _responses: int = 0
    _turns: int = 0
    _arrives_at: float = 0.0

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        one_way_s = self.rng.choice([0.0, 0.02, 0.06, 0.15])
        self.backend_way_s = self.rng.choice([0.005, 0.04, 0.12])
        phone = Phone(one_way_s)
        if not self.clean:
            phone.stalls = tuple(
                (self.rng.uniform(5 * n, 5 * n + 4), self.rng.uniform(0.05, 0.9)) for n in range(12)
            )
            phone.late_s = tuple(self.rng.choice([0.0, 0.0, 0.01, 0.2]) for _ in range(20))
            phone.loses_marks = self.rng.random() < 0.2
        plan = self.rng.choice(PLANS)
        successors = [successor(f"backend {number}", plan) for number in range(self.rng.choice([1, 5]))]
        self.script = Script(plan, phone, successors=successors)
        self.watcher = Watcher(self.script.call)
        self.script.heard_by = self._hear

    # --- Running -----------------------------------------------------------------------------

    def run(self) -> "World":
        """From the webhook to the end of the call."""
        self._open()
        self._caller_lives()
        until = longest_s(self.script.plan)
        while self.script.ended is None:
            own_at = self.script.next_at()
            if own_at is None and not self._agenda:
                raise AssertionError("nothing will ever happen again, and the call has not ended")
            if self._agenda and (own_at is None or self._agenda[0][0] < own_at):
                heappop(self._agenda)[2]()
            elif own_at is not None:
                self.script.until(own_at)
            assert self.script.now <= until, "the call lasts too long"
        self.watcher.check_end()
        return self

    def _plan(self, at: float, act: Callable[[], None]) -> None:
        self._planned += 1
        heappush(self._agenda, (max(at, self.script.now), self._planned, act))

    def _tell(self, at: float, event: Event) -> None:
        """An event reaches the call at this instant; not before its time, and nothing overtakes it."""
        self._plan(at, partial(self._feed, event, at))

    def _feed(self, event: Event, at: float) -> None:
        self.script.at(max(at, self.script.now), event)

    def _hear(self, event: Event, now: float, commands: list[Command]) -> None:
        self.watcher.saw(event, now, commands)
        for command in commands:
            match command:
                case HangUp():
                    self._hang_up(now)
                case SwitchBackend():
                    self._next_session(now)
                case AddToolCall():
                    self.tool_calls.add(command.tool_call_id)
                case RunTool():
                    if self.rng.random() < 0.95:
                        self._tell(now + self.rng.uniform(0.05, 3.0), ToolFinished(command.tool_call_id, "10:30"))
                case Configure() | CreateResponse() | CancelResponse() | Truncate() | AddToolOutput():
                    self._plan(now + self.backend_way_s, partial(self._asked, command))
                case _:
                    pass

    def _hang_up(self, now: float) -> None:
        chance = self.rng.random()
        if chance < 0.8:
            self._tell(now + self.rng.uniform(0.2, 1.0), PhoneStopped())
        elif chance < 0.9:
            self._tell(now + 0.5, HangUpFailed())

    # --- The backend -------------------------------------------------------------------------

    def _say(self, event: Event, at: float) -> None:
        """The backend sends a message; messages do not overtake each other."""
        self._arrives_at = max(self._arrives_at, at + self.backend_way_s)
        self._plan(self._arrives_at, partial(self._arrive, self.session, event, self._arrives_at))

    def _arrive(self, session: int, event: Event, at: float) -> None:
        if session == self.session:
            self._feed(event, at)

    def _next_session(self, now: float) -> None:
        """Another session takes the place of the one that was lost, and knows nothing of it."""
        self.session += 1
        self.active = None
        self.tool_calls.clear()
        self._say(BackendOpened(), now + self.rng.choice([0.1, 0.4, 1.0]))
        if self.caller_speaks:
            # It hears the caller from the first word on.
            self._say(SpeechStarted(f"u{self._turns}"), now + 1.5)

    def _asked(self, command: Command) -> None:
        now = self.script.now
        match command:
            case Configure():
                self._say(BackendConfigured(formats_match=True), now)
            case CreateResponse() if self.active is not None:
                self._say(fault(ErrorKind.BUSY, "conversation_already_has_active_response"), now)
            case CreateResponse():
                self._respond(now)
            case CancelResponse():
                if self.active is not None and self.active.response_id == command.response_id:
                    self._finish(ResponseStatus.CANCELLED, now)
                else:
                    self._say(fault(ErrorKind.HARMLESS, "response_cancel_not_active"), now)
            case Truncate():
                if command.audio_end_ms > self.made_ms.get(command.item_id, 0.0):
                    self.complaints.append(
                        f"{command}: only {self.made_ms.get(command.item_id, 0.0)} ms were made"
                    )
            case AddToolOutput():
                if command.tool_call_id not in self.tool_calls:
                    self.complaints.append(f"{command}: nobody called this tool, or it was answered")
                self.tool_calls.discard(command.tool_call_id)

    def _respond(self, now: float) -> None:
        letter = ascii_letters[self._responses % len(ascii_letters)]
        response = self.active = Response(f"r{self._responses}_{letter}", letter)
        self._responses += 1
        self._say(ResponseStarted(response.response_id), now)
        chance, at = self.rng.random(), now
        if chance < 0.03:
            self._later(at + 0.2, response, partial(self._fail, now + 0.2))
            return
        if chance < 0.9:
            for _ in range(1 if self.clean else self.rng.choice([1, 1, 2])):
                at = self._speak(response, at)
        if chance > 0.75:
            self._later(at, response, partial(self._call_tool, response, at))
        if chance > 0.01:
            self._later(at + 0.01, response, partial(self._finish, ResponseStatus.COMPLETED, at + 0.01))

    def _speak(self, response: Response, at: float) -> float:
        response.items += 1
        item_id = f"item{response.items}_{response.response_id[:-2]}_{response.letter}"
        pace = self.rng.choice([0.02, 0.1, 0.35])
        for _ in range(self.rng.randrange(1, 12)):
            at += self.rng.uniform(0.0, pace)
            ms = self.rng.choice([20, 55, 200, 420, 1_000])
            self._later(at, response, partial(self._piece, response, item_id, ms, at))
        ended = AgentAudioEnded(response.response_id, item_id)
        self._later(at, response, partial(self._say, ended, at))
        words = AgentText(response.response_id, item_id, "one two three four five six", final=True)
        self._later(at, response, partial(self._say, words, at))
        return at

    def _piece(self, response: Response, item_id: str, ms: int, at: float) -> None:
        self.made_ms[item_id] = self.made_ms.get(item_id, 0.0) + ms
        self._say(AgentText(response.response_id, item_id, "word "), at)
        self._say(AgentAudio(response.response_id, item_id, mulaw(response.letter, ms), ms * 8), at)

    def _later(self, at: float, response: Response, act: Callable[[], None]) -> None:
        """What a response does later, if it has not been cut off until then; sometimes a moment longer."""
        late_s = 0.05 if self.rng.random() < 0.2 else 0.0

        def if_it_lives() -> None:
            if self.active is response:
                act()

        self._plan(at + late_s, if_it_lives)

    def _call_tool(self, response: Response, at: float) -> None:
        for number in range(self.rng.choice([1, 1, 2])):
            call_id = f"call{number}_{response.response_id}"
            self.tool_calls.add(call_id)
            name = self.rng.choice(["find_slot", "find_slot", "find_slot", "hang_up", "nothing"])
            self._say(ToolCalled(response.response_id, call_id, name, "{}"), at)

    def _finish(self, status: ResponseStatus, at: float) -> None:
        if self.active is not None:
            self._say(ResponseEnded(self.active.response_id, status, usage=Usage(3, 2, 1, 1, 2, 9)), at)
            self.active = None

    def _fail(self, at: float) -> None:
        if self.active is not None:
            failed = ResponseEnded(
                self.active.response_id, ResponseStatus.FAILED, ErrorKind.RETRY, failure("rate_limit_exceeded")
            )
            self._say(failed, at)
            self.active = None

    # --- The caller --------------------------------------------------------------------------

    def _open(self) -> None:
        first = self.rng.uniform(0.0, 0.4)
        self._tell(first, BackendOpened())
        self._tell(self.rng.uniform(0.1, 0.4), PhoneConnected())
        begins = 0.5
        self._tell(begins, PhoneStarted(STREAM_SID, CALL_SID))
        for number in range(int(self.script.plan.max_call_s * 50) + 1_000):
            if not 300 < number % 1_000 < 340:
                self._plan(begins + 0.02 * number, partial(self._frame, 100 + 20 * number))

    def _frame(self, timestamp_ms: int) -> None:
        frame = CallerAudio("AAAA", 160, timestamp_ms)
        if not self.script.call.passes(frame, self.script.now):
            self._feed(frame, self.script.now)

    def _caller_lives(self) -> None:
        at = self.rng.uniform(2.0, 6.0)
        while at < self.script.plan.max_call_s + 10:
            length_s = self.rng.uniform(0.3, 3.0)
            self._plan(at, partial(self._caller_begins, at))
            self._plan(at + length_s, partial(self._caller_ends, at + length_s))
            at += length_s + self.rng.choice([0.6, 1.5, 4.0, 9.0, 30.0])
        if self.rng.random() < 0.3:
            self._tell(self.rng.uniform(5.0, 30.0), KeyPressed("1"))
        if self.rng.random() < 0.4:
            self._tell(self.rng.uniform(10.0, 60.0), PhoneStopped())
        for _ in range(self.rng.choice([0, 0, 1, 1, 2, 4])):
            self._tell(self.rng.uniform(2.0, 60.0), PeerLost(Side.BACKEND, self.rng.choice([1006, 1011])))
        if self.rng.random() < 0.2:
            faults: list[Event] = [PeerLost(Side.PHONE, 1006), ShutdownRequested()]
            self._tell(self.rng.uniform(5.0, 60.0), self.rng.choice(faults))

    def _caller_begins(self, at: float) -> None:
        self._turns += 1
        self.caller_speaks = True
        self._say(SpeechStarted(f"u{self._turns}"), at)
        if self.active is not None and self.rng.random() < 0.5 and self.active.items:
            item_id = f"item{self.active.items}_{self.active.response_id[:-2]}_{self.active.letter}"
            self._piece(self.active, item_id, 100, at)
        self._finish(ResponseStatus.CANCELLED, at)

    def _caller_ends(self, at: float) -> None:
        item_id = f"u{self._turns}"
        self.caller_speaks = False
        self._say(SpeechStopped(item_id), at)
        self._say(CallerTurnCommitted(item_id), at)
        if self.rng.random() < 0.9:
            text = self.rng.choice(["Good morning.", "", None])
            written_at = at + self.backend_way_s + self.rng.uniform(0.1, 3.0)
            written = CallerTranscribed(item_id, text)
            self._plan(written_at, partial(self._arrive, self.session, written, written_at))
        thinks_until = at + self.rng.uniform(0.02, 0.4)
        self._plan(thinks_until, partial(self._answer, thinks_until))

    def _answer(self, now: float) -> None:
        if self.active is None and not self.caller_speaks:
            self._respond(now)


def worst_truncation_ms(world: World) -> float:
    """How far any truncation was from what the phone played of that item."""
    errors = [
        abs(told.audio_end_ms - world.script.phone.played_ms(told.item_id[-1]))
        for _, told in world.script.every(Truncate)
    ]
    return max(errors, default=0.0)


def simulated(seed: int, *, clean: bool) -> World:
    """A call of this seed, at its end."""
    return World(seed, clean).run()
