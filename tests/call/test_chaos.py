"""Any event, in any order, at any instant: the invariants hold, and the call ends.

The lists are far worse than any peer: most make no sense. What is drawn is small, so that a failure shrinks to
a list of a few events that can be read. Drawn alike in every run; a deeper search is a larger `max_examples`.
"""

from dataclasses import dataclass, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.call.call import Call
from app.call.events import (
    AgentAudio,
    AgentAudioEnded,
    AgentText,
    BackendConfigured,
    BackendFound,
    BadMessage,
    Broken,
    CallerAudio,
    CallerTranscribed,
    CallerTurnCommitted,
    Command,
    ErrorKind,
    Event,
    FindBackend,
    HangUpFailed,
    KeyPressed,
    MarkReturned,
    MoveRequested,
    NoBackendLeft,
    PassOn,
    PassSilence,
    PeerLost,
    PeerSlow,
    PhoneStarted,
    PhoneStopped,
    Ping,
    Pong,
    RedirectAnswered,
    RedirectOutcome,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SendMark,
    ShutdownRequested,
    Side,
    SpeechStarted,
    SpeechStopped,
    Tick,
    ToolCalled,
    ToolFinished,
    Usage,
)
from app.call.plan import NO_ABILITIES, Plan
from app.call.wall import Wall
from tests.call.invariants import Watcher, longest_s
from tests.call.phone_model import mulaw
from tests.call.script import FACTS, SILENT, START, STREAM_SID, fault, frame, unreachable


@dataclass(frozen=True, slots=True)
class Speech:
    """Agent audio in short, so that a failing list can be read."""

    response_id: str
    number: str
    ms: int

    def event(self) -> AgentAudio:
        """The event it stands for."""
        payload = mulaw(self.response_id[-1], self.ms)
        return AgentAudio(self.response_id, f"item_{self.response_id}{self.number}", payload, self.ms * 8)


@dataclass(frozen=True, slots=True)
class Standstill:
    """This process does nothing for a while."""

    for_s: float


Drawn = Event | Speech | Standstill
Instants = list[tuple[float, Drawn]]

PLANS = (
    replace(SILENT, max_call_s=40.0, max_call_warning_s=10.0, idle_prompt_s=8.0),
    Plan(max_call_s=30.0, idle_prompt_s=5.0, idle_prompts_max=1, greeting_interruptible=False),
    Plan(max_call_s=1.0, max_call_warning_s=60.0, idle_prompt_s=0.5, idle_prompts_max=0),
)

sides = st.sampled_from(Side)
responses = st.sampled_from(["r_A", "r_B", "r_C"])
numbers = st.sampled_from(["1", "2"])
turns = st.sampled_from(["u1", "u2"])
tools = st.sampled_from(["call_1", "call_2"])


def _text(response_id: str, number: str, text: str, final: bool) -> AgentText:
    return AgentText(response_id, f"item_{response_id}{number}", text, final)


conversation: st.SearchStrategy[Drawn] = st.one_of(
    st.builds(Speech, responses, numbers, st.sampled_from([1, 20, 300, 2_000, 9_000])),
    st.builds(lambda r, n: AgentAudioEnded(r, f"item_{r}{n}"), responses, numbers),
    st.builds(_text, responses, numbers, st.sampled_from(["", "one two three"]), st.booleans()),
    st.builds(ResponseStarted, responses),
    st.builds(
        ResponseEnded,
        responses,
        st.sampled_from(ResponseStatus),
        st.sampled_from([None, ErrorKind.RETRY, ErrorKind.HARMLESS]),
        usage=st.just(Usage(1, 2, 0, 0, 3, 4)),
    ),
    st.builds(SpeechStarted, turns),
    st.builds(SpeechStopped, turns),
    st.builds(CallerTurnCommitted, turns),
    st.builds(CallerTranscribed, turns, st.sampled_from([None, "", "words"])),
    st.builds(ToolCalled, responses, tools, st.sampled_from(["hang_up", "find_slot", "nothing"]), st.just("{}")),
    st.builds(ToolFinished, tools, st.just("x")),
    st.builds(fault, st.sampled_from([ErrorKind.HARMLESS, ErrorKind.BUSY, ErrorKind.RETRY]), st.just("x")),
    st.builds(MarkReturned, st.sampled_from(["", "*"])),
    st.builds(KeyPressed, st.just("1")),
    st.builds(frame, st.integers(0, 30_000)),
    st.builds(Pong, sides),
)
rarer: st.SearchStrategy[Drawn] = st.one_of(
    st.sampled_from([event for _, event in START]),
    st.sampled_from([PhoneStopped(), ShutdownRequested(), HangUpFailed(), Broken(), Tick()]),
    st.builds(MoveRequested, by=st.floats(0.0, 60.0)),
    st.builds(RedirectAnswered, outcome=st.sampled_from(RedirectOutcome)),
    st.just(BackendConfigured(formats_match=False)),
    st.just(unreachable("refused")),
    st.just(fault(ErrorKind.FATAL, "insufficient_quota")),
    st.just(PhoneStarted(STREAM_SID, "CA-other")),
    st.builds(BadMessage, sides, st.just("not JSON")),
    st.builds(PeerLost, sides, st.just(1006)),
    st.builds(PeerSlow, sides),
    st.builds(Standstill, st.sampled_from([0.6, 3.0, 10.0, 120.0])),
)
pauses_s = st.sampled_from([0.0, 0.001, 0.02, 0.3, 1.0, 3.0, 9.0])
often = st.tuples(pauses_s, conversation)
seldom = st.tuples(pauses_s, st.one_of(conversation, conversation, conversation, rarer))


def run(plan: Plan, events: Instants) -> list[tuple[float, list[Command]]]:
    """Feed a call, tick it in between and to its end, and watch it. Pings are answered; "*" is the oldest mark.

    There are three backends.
    """
    call = Call(plan, FACTS, Wall(0.0, 0))
    watcher = Watcher(call)
    done: list[tuple[float, list[Command]]] = []
    marks: list[str] = []

    def feed(event: Event, now: float) -> None:
        commands = call.handle(event, now)
        watcher.saw(event, now, commands)
        done.append((now, commands))
        marks.extend(command.name for command in commands if isinstance(command, SendMark))
        for ping in [command for command in commands if isinstance(command, Ping)]:
            feed(Pong(ping.side), now)
        if any(isinstance(command, FindBackend) for command in commands):
            facts = replace(FACTS, backend=f"backend {watcher.backends}")
            found = BackendFound(replace(plan, model="another"), facts, NO_ABILITIES)
            feed(found if watcher.backends < 3 else NoBackendLeft(), now)

    def tick_until(now: float) -> None:
        while (deadline := call.deadline()) is not None and deadline <= now:
            feed(Tick(), deadline)

    now = 0.0
    for pause_s, drawn in events:
        now += pause_s
        tick_until(now)
        if isinstance(drawn, Standstill):
            now += drawn.for_s
            feed(Tick(), now)
            continue
        event = drawn.event() if isinstance(drawn, Speech) else drawn
        feed(MarkReturned(marks.pop(0)) if event == MarkReturned("*") and marks else event, now)
    tick_until(now + longest_s(plan))
    watcher.check_end()
    return done


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(plan=st.sampled_from(PLANS), events=st.lists(often, max_size=40))
def test_any_conversation_in_any_order_keeps_the_invariants(plan: Plan, events: Instants) -> None:
    run(plan, [*((0.05, event) for _, event in START), *events])


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(plan=st.sampled_from(PLANS), events=st.lists(seldom, max_size=30))
def test_anything_at_any_time_keeps_the_invariants(plan: Plan, events: Instants) -> None:
    run(plan, events)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(plan=st.sampled_from(PLANS), events=st.lists(seldom, max_size=30))
def test_the_same_list_gives_the_same_commands(plan: Plan, events: Instants) -> None:
    begun = [*((0.05, event) for _, event in START), *events]
    assert run(plan, begun) == run(plan, begun)


frames = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.02, 0.02, 0.02, 0.02, 0.5, 1.5, 4.0]),
        st.sampled_from([20, 20, 20, 20, 21, 18, 79, 81, 500, 1_000, 30_000, -40, -100, -1_000]),
        st.sampled_from([160, 160, 160, 80, 480]),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(steps=frames)
def test_frames_that_pass_straight_and_as_events_reach_the_backend_alike(
    steps: list[tuple[float, int, int]],
) -> None:
    straight, by_event = _heard_by_backend(steps, straight=True), _heard_by_backend(steps, straight=False)
    assert straight == by_event


def _heard_by_backend(steps: list[tuple[float, int, int]], *, straight: bool) -> list[tuple[float, object]]:
    call = Call(SILENT, FACTS, Wall(0.0, 0))
    heard: list[tuple[float, object]] = []

    def feed(event: Event, now: float) -> None:
        commands = call.handle(event, now)
        heard.extend((now, command) for command in commands if isinstance(command, PassOn | PassSilence))
        for ping in [command for command in commands if isinstance(command, Ping)]:
            feed(Pong(ping.side), now)

    for instant, event in START:
        feed(event, instant)
    now, timestamp_ms = 0.4, 100
    for pause_s, step_ms, audio_bytes in steps:
        now, timestamp_ms = now + pause_s, max(0, timestamp_ms + step_ms)
        while (deadline := call.deadline()) is not None and deadline <= now:
            feed(Tick(), deadline)
        frame = CallerAudio(f"f{timestamp_ms}", audio_bytes, timestamp_ms)
        if straight and call.passes(frame, now):
            heard.append((now, PassOn(frame.payload)))
        else:
            feed(frame, now)
    return heard
