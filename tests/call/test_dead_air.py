"""The caller never waits in silence for long, whatever the backend sends meanwhile."""

from collections.abc import Iterator

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AgentAudioEnded,
    AgentText,
    BackendConfigured,
    BackendFound,
    BackendOpened,
    CallerTurnCommitted,
    CreateResponse,
    Ended,
    ErrorKind,
    Event,
    FindBackend,
    PassOn,
    PhoneStopped,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
    ToolFinished,
)
from app.call.evidence import BackendChoice
from app.call.journal import Facts
from app.call.plan import NO_ABILITIES, Plan, Purpose
from tests.call.script import CALL_SID, Script, agent, answered, fault, frame, only, talking

COMPLETED, CANCELLED = ResponseStatus.COMPLETED, ResponseStatus.CANCELLED
BUSY = fault(ErrorKind.BUSY, "conversation_already_has_active_response")
CALLER_TURN = (SpeechStarted("u1"), SpeechStopped("u1"), CallerTurnCommitted("u1"))
ROUNDS = 40

Timed = Iterator[tuple[float, tuple[Event, ...]]]
"""What a backend sends, by seconds since the caller's turn."""


def nothing() -> Timed:
    return iter(())


def begins_and_stops() -> Timed:
    yield 0.2, (ResponseStarted("r1"),)


def words_and_no_sound() -> Timed:
    yield 0.2, (ResponseStarted("r1"),)
    for number in range(ROUNDS):
        yield 1.0 + 3 * number, (AgentText("r1", "item_A", "um ", final=False),)


def ends_of_sound_that_never_began() -> Timed:
    yield 0.2, (ResponseStarted("r1"),)
    for number in range(ROUNDS):
        yield 1.0 + 3 * number, (AgentAudioEnded("r1", "item_A"),)


def tool_calls_of_a_response_without_end() -> Timed:
    yield 0.2, (ResponseStarted("r1"),)
    for number in range(ROUNDS):
        yield 1.0 + 3 * number, (ToolCalled("r1", f"c{number}", "make_coffee", "{}"),)


def one_response_after_the_other() -> Timed:
    for number in range(ROUNDS):
        yield 1.0 + 5 * number, (ResponseStarted(f"s{number}"),)


def responses_that_it_cancels_itself() -> Timed:
    for number in range(ROUNDS):
        yield 1.0 + 5 * number, (ResponseStarted(f"s{number}"), ResponseEnded(f"s{number}", CANCELLED))


def silence_and_tools_in_turn() -> Timed:
    for number in range(ROUNDS):
        called = (ToolCalled(f"s{number}", f"c{number}", "make_coffee", "{}"),) if number % 2 else ()
        yield 1.0 + 3 * number, (ResponseStarted(f"s{number}"), *called, ResponseEnded(f"s{number}", COMPLETED))


def slow_tool_calls() -> Timed:
    for number in range(ROUNDS):
        called = ToolCalled(f"s{number}", f"c{number}", "make_coffee", "{}")
        yield 1.0 + 6 * number, (ResponseStarted(f"s{number}"),)
        yield 6.0 + 6 * number, (called, ResponseEnded(f"s{number}", COMPLETED))


def busy_for_ever() -> Timed:
    yield 0.1, (ResponseStarted("r1"), ResponseEnded("r1", COMPLETED))
    for number in range(10 * ROUNDS):
        yield 1.2 + number / 4, (BUSY,)


def turns_committed_again_and_again() -> Timed:
    for number in range(ROUNDS):
        yield 1.0 + 3 * number, (SpeechStopped(f"v{number}"), CallerTurnCommitted(f"v{number}"))


DEAD = [
    nothing,
    begins_and_stops,
    words_and_no_sound,
    ends_of_sound_that_never_began,
    tool_calls_of_a_response_without_end,
    one_response_after_the_other,
    responses_that_it_cancels_itself,
    silence_and_tools_in_turn,
    slow_tool_calls,
    busy_for_ever,
    turns_committed_again_and_again,
]


def run(script: Script, sent: Timed, since: float) -> None:
    for after_s, events in sent:
        script.at(since + after_s, *events)
    script.until(since + 200.0)


@pytest.mark.parametrize("sent", [each() for each in DEAD], ids=[each.__name__ for each in DEAD])
def test_caller_who_is_not_answered_hears_the_apology_in_time(sent: Timed) -> None:
    script = answered()
    script.at(1.0, *CALLER_TURN)
    run(script, sent, 1.0)
    [(ended_at, ended)] = script.every(Ended)
    assert ended_at <= 1.0 + limits.DEAD_AIR_MAX_S
    assert ended.reason in {EndReason.BACKEND_SILENT, EndReason.BACKEND_FAILING}


@pytest.mark.parametrize("sent", [each() for each in DEAD], ids=[each.__name__ for each in DEAD])
def test_greeting_that_is_not_heard_is_the_next_backends_in_time(sent: Timed) -> None:
    script = talking(Plan(greeting="Hello."))
    run(script, sent, 0.3)
    sought = script.every(FindBackend)
    assert sought[0][0] <= 0.3 + limits.GREETING_LATE_S, "one that is known to work"
    ended_at = script.every(Ended)[0][0]
    assert ended_at <= 0.3 + limits.DEAD_AIR_MAX_S, "there is no other one"


def test_sound_that_stops_is_judged_from_the_moment_at_which_it_was_played() -> None:
    script = answered()
    script.at(1.0, *CALLER_TURN, ResponseStarted("r1"), agent("item_A", 20_000))
    for number in range(20):
        script.at(2.0 + 5 * number, AgentText("r1", "item_A", "um ", final=False))
    [(ended_at, _)] = script.every(Ended)
    assert script.end_details == ["dead_air"]
    assert 21.0 + limits.DEAD_AIR_MAX_S <= ended_at <= 21.1 + limits.DEAD_AIR_MAX_S


def test_response_that_the_backend_cancels_itself_is_requested_once_more() -> None:
    script = answered()
    script.at(1.0, *CALLER_TURN, ResponseStarted("r1"), ResponseEnded("r1", CANCELLED))
    script.until(3.0)
    assert [create.purpose for _, create in script.every(CreateResponse)] == [Purpose.RETRY]


def test_caller_who_is_never_answered_however_often_hears_the_apology() -> None:
    script = answered()
    for number in range(10):
        script.at(1.0 + 5 * number, SpeechStarted(f"u{number}"))
        script.at(2.0 + 5 * number, SpeechStopped(f"u{number}"), CallerTurnCommitted(f"u{number}"))
    # Waits of 4 s, of which the third one makes them too long.
    assert [at for at, _ in script.every(Ended)] == [16.0]
    assert script.end_details == ["dead_air"]


def test_caller_who_pauses_between_sentences_is_not_cut_off() -> None:
    script = answered()
    for number in range(60):
        script.at(1.0 + 2 * number, SpeechStarted(f"u{number}"), ResponseEnded(f"s{number - 1}", CANCELLED))
        script.at(2.0 + 2 * number, SpeechStopped(f"u{number}"), CallerTurnCommitted(f"u{number}"))
        script.at(2.3 + 2 * number, ResponseStarted(f"s{number}"))
    assert script.ended is None


def test_time_that_a_tool_takes_is_not_the_backends() -> None:
    script = answered()
    called = ToolCalled("r1", "c1", "find_slot", "{}")
    script.at(1.0, *CALLER_TURN, ResponseStarted("r1"), called, ResponseEnded("r1", COMPLETED))
    script.at(26.0, ToolFinished("c1", "{}"))
    script.at(30.0, ResponseStarted("r2"), agent("item_B", 500, "r2"), ResponseEnded("r2", COMPLETED))
    script.at(32.0, PhoneStopped())
    assert script.ended == Ended(EndReason.CALLER_HUNG_UP)


def test_model_slow_over_its_tool_calls_must_speak_after_some_seconds() -> None:
    script = answered()
    script.at(1.0, *CALLER_TURN)
    for number in (1, 2):
        called = ToolCalled(f"s{number}", f"c{number}", "make_coffee", "{}")
        script.at(1.0 + 4 * number, ResponseStarted(f"s{number}"), called)
        script.at(1.0 + 4 * number, ResponseEnded(f"s{number}", COMPLETED))
    creates = [(at, create.purpose) for at, create in script.every(CreateResponse)]
    assert creates == [(5.0, Purpose.TOOL), (9.0, Purpose.WITHOUT_TOOLS)]


def test_standstill_of_this_process_is_no_dead_air() -> None:
    script = answered()
    script.at(1.0, *CALLER_TURN, ResponseStarted("r1"))
    script.stand_still(16.0)
    script.at(16.1, agent("item_A", 500), ResponseEnded("r1", COMPLETED))
    script.until(20.0)
    assert script.ended is None


def test_speech_without_end_is_not_believed() -> None:
    script = answered()
    script.at(1.0, SpeechStarted("u1"))
    script.until(1.0 + limits.CALLER_SPEAKS_MAX_S + script.plan.idle_prompt_s)
    [(asked_at, asked)] = script.every(CreateResponse)
    assert asked.purpose is Purpose.IDLE
    script.at(asked_at + 0.5, ResponseStarted("r1"), agent("item_A", 500), ResponseEnded("r1", COMPLETED))
    script.until(asked_at + 1.0)
    assert script.ended is None
    script.at(asked_at + 1.1, PhoneStopped())
    assert script.outcomes == [(asked_at + 1.1, None)], "the caller has heard the agent"


def test_failed_greeting_gives_way_to_what_the_caller_says() -> None:
    script = talking(Plan(greeting="Hello."))
    script.at(0.5, ResponseStarted("r1"), ResponseEnded("r1", COMPLETED))
    script.at(1.0, *CALLER_TURN, ResponseStarted("r2"), agent("item_B", 200, "r2"), ResponseEnded("r2", COMPLETED))
    script.until(5.0)
    assert [create.purpose for _, create in script.every(CreateResponse)] == [Purpose.GREETING]


def next_one(name: str, greeting: str = "") -> BackendFound:
    choice = BackendChoice(name, "marin", ("eu",), "next")
    facts = Facts(CALL_SID, "leg-1", "fra", name, "+4930111", "+4930222", choice)
    return BackendFound(Plan(greeting=greeting), facts, NO_ABILITIES)


def test_question_that_was_never_answered_is_heard_by_the_next_backend() -> None:
    script = Script(Plan(greeting=""), successors=[next_one("azure")]).begin()
    script.at(1.0, frame(0), SpeechStarted("u1"))
    for number in range(1, 700):
        script.at(1.0 + number / 50, frame(20 * number))
        if number == 100:
            script.at(script.now, SpeechStopped("u1"), CallerTurnCommitted("u1"))
    script.at(15.1, BackendOpened())
    passed = only(PassOn, script.at(15.2, BackendConfigured(formats_match=True)))
    assert [at for at, _ in script.every(FindBackend)] == [3.0 + limits.DEAD_AIR_MAX_S]
    assert passed[0].payload == "f0", "from its first sound"
    assert len(passed) == 700
    assert script.turns == [], "the next backend hears this turn, and writes it down"


def test_backends_that_hang_one_after_the_other_have_less_and_less_time() -> None:
    script = Script(Plan(greeting="Hello."), successors=[next_one(name, "Hello.") for name in "bcde"]).begin()
    for number in range(1, 5):
        while len(script.every(FindBackend)) < number:
            script.until(script.now + 0.1)
        script.at(script.now, BackendOpened(), BackendConfigured(formats_match=True))
        script.at(script.now, ResponseStarted(f"s{number}"))
    script.to_the_end()
    # The last one is followed by a second search at the same instant, for one that was late.
    tried_at = sorted({round(at, 1) for at, _ in script.every(FindBackend)})
    waits = [round(later - sooner, 1) for sooner, later in zip([0.3, *tried_at], tried_at, strict=False)]
    assert waits == [2.5, 6.0, 3.6, 2.6, 2.6]
