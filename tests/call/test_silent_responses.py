"""A response that the caller cannot hear is a failure: text alone, a filter, no output, tools without end."""

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AddTurn,
    AgentText,
    BackendConfigured,
    BackendFound,
    BackendOpened,
    CallerTranscribed,
    CallerTurnCommitted,
    CancelResponse,
    CreateResponse,
    Ended,
    FindBackend,
    PassOn,
    PhoneStopped,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
    Usage,
)
from app.call.evidence import BackendChoice
from app.call.journal import Facts
from app.call.phases import Phase
from app.call.plan import NO_ABILITIES, Plan, Purpose
from app.call.records import CallEnded, CallEvent, CallStarted, Speaker
from tests.call.script import CALL_SID, Script, agent, answered, frame, only, talking

GREETS = Plan(greeting="Hello.")
COMPLETED, INCOMPLETE = ResponseStatus.COMPLETED, ResponseStatus.INCOMPLETE
OPENED, CONFIGURED = BackendOpened(), BackendConfigured(formats_match=True)
CALLER_TURN = (SpeechStarted("u1"), SpeechStopped("u1"), CallerTurnCommitted("u1"))
WRITTEN = AgentText("r1", "item_A", "I can only write.", final=True)


def next_one(name: str = "azure", greeting: str = "") -> BackendFound:
    choice = BackendChoice(name, "marin", ("eu",), "next")
    facts = Facts(CALL_SID, "leg-1", "fra", name, "+4930111", "+4930222", choice)
    return BackendFound(Plan(greeting=greeting), facts, NO_ABILITIES)


def asked(script: Script) -> list[tuple[float, Purpose]]:
    return [(round(instant, 3), create.purpose) for instant, create in script.every(CreateResponse)]


def events_of(script: Script) -> list[tuple[str, str]]:
    return [(each.kind, each.detail) for each in script.records if isinstance(each, CallEvent)]


# --- Neither audio nor a tool call -----------------------------------------------------------

SILENT_ENDS = [
    pytest.param((), COMPLETED, id="empty output"),
    pytest.param((WRITTEN,), COMPLETED, id="text alone"),
    pytest.param((), INCOMPLETE, id="content filter"),
    pytest.param((ToolCalled("r1", "c1", "find_slot", "{"),), INCOMPLETE, id="half a tool call"),
]


@pytest.mark.parametrize(("output", "status"), SILENT_ENDS)
def test_silent_response_is_requested_once_more(output: tuple[AgentText, ...], status: ResponseStatus) -> None:
    script = answered()
    script.at(1.0, *CALLER_TURN, ResponseStarted("r1"), *output, ResponseEnded("r1", status))
    script.until(5.0)
    assert asked(script) == [(1.0 + limits.RETRY_AFTER_S, Purpose.RETRY)]
    assert ("response_failed", "no_audio") in events_of(script)
    assert script.ended is None


@pytest.mark.parametrize(("output", "status"), SILENT_ENDS)
def test_second_silent_response_in_a_row_ends_the_call_with_the_apology(
    output: tuple[AgentText, ...], status: ResponseStatus
) -> None:
    script = answered()
    script.at(1.0, *CALLER_TURN, ResponseStarted("r1"), *output, ResponseEnded("r1", status))
    script.at(3.0, ResponseStarted("r2"), ResponseEnded("r2", status))
    assert [(at, ended.reason) for at, ended in script.every(Ended)] == [(3.0, EndReason.BACKEND_FAILING)]
    assert script.end_details == ["no_audio"]


def test_silent_response_followed_by_speech_is_forgiven() -> None:
    script = answered()
    for number in range(4):
        at = 2.0 + 4 * number
        silent, speaking = f"s{number}", f"t{number}"
        script.at(at, ResponseStarted(silent), ResponseEnded(silent, COMPLETED))
        script.at(at + 2, ResponseStarted(speaking), agent("item_A", 200, speaking))
        script.at(at + 2, ResponseEnded(speaking, COMPLETED))
    assert script.ended is None


def test_written_words_are_recorded_as_said_and_not_heard() -> None:
    script = answered()
    script.at(1.0, ResponseStarted("r1"), WRITTEN, ResponseEnded("r1", COMPLETED, usage=Usage(output_text=7)))
    turn = script.turns[-1]
    assert (turn.said, turn.heard, turn.heard_ms, turn.interrupted) == ("I can only write.", "", 0, False)
    assert turn.output_text_tokens == 7


def test_response_interrupted_before_its_first_sound_has_not_failed() -> None:
    script = answered()
    script.at(1.0, ResponseStarted("r1"))
    script.at(1.1, SpeechStarted("u1"), ResponseEnded("r1", COMPLETED))
    script.until(3.0)
    assert asked(script) == []


def test_end_of_a_response_that_nobody_announced_is_no_failure() -> None:
    script = answered()
    script.at(1.0, ResponseEnded("r9", COMPLETED), ResponseEnded("r8", INCOMPLETE))
    script.until(3.0)
    assert (asked(script), script.ended) == ([], None)


def test_goodbye_that_is_never_spoken_ends_the_call_without_an_apology() -> None:
    script = answered()
    script.at(1.0, ResponseStarted("r1"), ToolCalled("r1", "c1", "hang_up", "{}"), ResponseEnded("r1", COMPLETED))
    for number in (2, 3):
        script.until(script.now + 2.0)
        script.at(script.now, ResponseStarted(f"r{number}"), ResponseEnded(f"r{number}", COMPLETED))
    assert script.call.phase is Phase.LEAVING
    script.at(script.now, PhoneStopped())
    assert script.ended == Ended(EndReason.AGENT_HUNG_UP)


# --- Before the caller has heard anything ----------------------------------------------------


def test_backend_that_cannot_say_its_greeting_is_replaced() -> None:
    script = Script(GREETS, successors=[next_one(greeting="Hello.")]).begin()
    script.at(0.4, ResponseStarted("r1"), ResponseEnded("r1", COMPLETED))
    script.at(1.5, ResponseStarted("r2"), ResponseEnded("r2", COMPLETED))
    script.at(1.6, OPENED, CONFIGURED)
    assert script.call.phase is Phase.TALKING
    assert [create.words for _, create in script.every(CreateResponse)] == ["Hello.", "", "Hello."]
    assert [asked.failure.reason for _, asked in script.every(FindBackend)] == [EndReason.BACKEND_FAILING]
    assert events_of(script) == [
        ("response_failed", "no_audio"),
        ("response_failed", "no_audio"),
        ("failover", "openai backend_failing no_audio"),
        ("backend", ""),
    ]
    evidence = [each.evidence for each in script.records if isinstance(each, CallEvent)]
    assert evidence[-1] == BackendChoice("azure", "marin", ("eu",), "next")


def test_call_taken_over_has_one_beginning_and_turns_without_holes() -> None:
    script = Script(GREETS, successors=[next_one(greeting="Hello.")]).begin()
    script.at(0.4, ResponseStarted("r1"), WRITTEN, ResponseEnded("r1", COMPLETED))
    script.at(1.5, ResponseStarted("r2"), ResponseEnded("r2", COMPLETED))
    script.at(1.6, OPENED, CONFIGURED)
    script.at(1.7, ResponseStarted("r1"), agent("item_B", 200), ResponseEnded("r1", COMPLETED))
    script.at(3.0, PhoneStopped())
    assert len([each for each in script.records if isinstance(each, CallStarted)]) == 1
    assert [(turn.seq, turn.backend) for turn in script.turns] == [(0, "openai"), (1, "azure")]
    ending = script.records[-1]
    assert isinstance(ending, CallEnded)
    assert ending.turns == 2


@pytest.mark.parametrize("begun", [(), (ResponseStarted("r1"),)], ids=["no response", "response.created"])
def test_backend_that_hangs_at_its_greeting_is_replaced_after_its_limit(
    begun: tuple[ResponseStarted, ...],
) -> None:
    script = Script(GREETS, successors=[next_one(greeting="Hello.")]).begin()
    script.at(0.4, *begun)
    script.until(0.3 + limits.GREETING_LATE_S)
    assert [(round(at, 3), each.failure.reason) for at, each in script.every(FindBackend)] == [
        (0.3 + limits.GREETING_LATE_S, EndReason.BACKEND_NOT_READY)
    ]
    script.at(3.0, OPENED, CONFIGURED)
    assert script.call.facts.backend == "azure"
    assert script.call.phase is Phase.TALKING


def test_greeting_that_hangs_is_requested_again_without_another_backend() -> None:
    script = Script(GREETS).begin()
    script.at(0.4, ResponseStarted("r1"))
    script.to_the_end()
    cancelled_at = 0.4 + limits.GREETING_WAIT_S
    assert script.every(CancelResponse) == [(cancelled_at, CancelResponse("r1"))]
    [(ended_at, ended)] = script.every(Ended)
    assert ended.reason is EndReason.BACKEND_SILENT
    assert ended_at <= 10.0


def test_greeting_in_time_leaves_no_deadline_behind() -> None:
    script = Script(GREETS, successors=[next_one()]).begin()
    script.at(2.0, ResponseStarted("r1"), agent("item_A", 200))
    script.at(2.1, ResponseEnded("r1", COMPLETED))
    script.until(8.0)
    assert not script.every(FindBackend)


def test_caller_who_speaks_first_gives_the_backend_that_time() -> None:
    script = Script(GREETS, successors=[next_one()]).begin()
    script.at(0.5, ResponseStarted("r1"), SpeechStarted("u1"))
    script.at(0.6, ResponseEnded("r1", ResponseStatus.CANCELLED))
    script.until(6.0)
    assert not script.every(FindBackend)


def test_question_the_first_backend_never_answered_is_heard_by_the_next() -> None:
    script = Script(Plan(greeting=""), successors=[next_one()]).begin()
    script.at(1.0, frame(100), frame(120), SpeechStarted("u1"))
    script.at(2.0, SpeechStopped("u1"), CallerTurnCommitted("u1"))
    script.at(2.1, ResponseStarted("r1"), ResponseEnded("r1", INCOMPLETE))
    script.at(3.2, ResponseStarted("r2"), ResponseEnded("r2", INCOMPLETE))
    script.at(3.3, frame(2_400), OPENED)
    heard = only(PassOn, script.at(3.4, CONFIGURED))
    assert [each.payload for each in heard] == ["f100", "f120", "f2400"]
    assert script.turns == [], "the next backend hears this turn, and writes it down"


def test_question_that_was_written_down_is_passed_on_in_words_and_answered() -> None:
    script = Script(GREETS, successors=[next_one(greeting="Hello.")]).begin()
    script.at(1.0, frame(100), SpeechStarted("u1"))
    script.at(2.0, SpeechStopped("u1"), CallerTurnCommitted("u1"), CallerTranscribed("u1", "Are you open?"))
    script.at(2.05, frame(2_200))
    script.at(2.1, ResponseStarted("r1"), ResponseEnded("r1", INCOMPLETE))
    script.at(3.2, ResponseStarted("r2"), ResponseEnded("r2", INCOMPLETE))
    script.at(3.3, OPENED)
    taken = script.at(3.4, CONFIGURED)
    assert only(AddTurn, taken) == [AddTurn(Speaker.CALLER, "Are you open?")]
    assert [each.payload for each in only(PassOn, taken)] == ["f2200"]
    assert [each.purpose for each in only(CreateResponse, taken)] == [Purpose.RETRY]
    assert [turn.said for turn in script.turns] == ["Are you open?"]


# --- Tools without end -----------------------------------------------------------------------


def tool_round(script: Script, number: int, name: str = "make_coffee") -> None:
    """The model answers with a call of a tool and nothing else, as soon as it is asked."""
    called = ToolCalled(f"r{number}", f"c{number}", name, "{}")
    script.at(script.now, ResponseStarted(f"r{number}"), called)
    usage = Usage(input_text=100, output_text=10)
    script.at(script.now, ResponseEnded(f"r{number}", COMPLETED, usage=usage))
    script.until(script.now + limits.TOOL_PAUSE_MAX_S)


def test_model_that_only_calls_tools_is_made_to_speak_without_them() -> None:
    script = answered()
    script.until(1.0)
    for number in range(1, limits.TOOL_ROUNDS_MAX + 1):
        tool_round(script, number)
    creates = [create for _, create in script.every(CreateResponse)]
    assert [create.may_call_tools for create in creates] == [True] * (limits.TOOL_ROUNDS_MAX - 1) + [False]
    assert creates[-1].purpose is Purpose.WITHOUT_TOOLS
    assert "tools do not work" in creates[-1].instructions
    assert ("tool_loop", f"{limits.TOOL_ROUNDS_MAX} responses") in events_of(script)
    script.at(script.now, ResponseStarted("last"), agent("item_A", 500, "last"), ResponseEnded("last", COMPLETED))
    assert script.ended is None


def test_model_that_calls_tools_whatever_it_is_told_loses_the_call() -> None:
    script = answered()
    script.until(1.0)
    for number in range(1, limits.TOOL_ROUNDS_MAX + 3):
        tool_round(script, number)
    assert script.ended == Ended(EndReason.BACKEND_MISBEHAVED)
    assert len(script.every(CreateResponse)) <= limits.TOOL_ROUNDS_MAX + 1


def test_first_tool_calls_cost_no_time_and_further_ones_more_and_more() -> None:
    script = answered()
    script.until(1.0)
    waits: list[float] = []
    for number in range(1, limits.TOOL_ROUNDS_MAX):
        began_at = script.now
        tool_round(script, number)
        waits.append(round(script.every(CreateResponse)[-1][0] - began_at, 3))
    assert waits == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0, 1.0]


def test_speech_between_tool_calls_starts_the_count_anew() -> None:
    script = answered()
    script.until(1.0)
    for number in range(1, 40):
        tool_round(script, number)
        if number % 5 == 0:
            words = f"w{number}"
            script.at(script.now, ResponseStarted(words), agent("item_A", 200, words))
            script.at(script.now, ResponseEnded(words, COMPLETED))
    assert script.ended is None
    assert all(create.may_call_tools for _, create in script.every(CreateResponse))


def test_tokens_of_responses_without_a_turn_are_part_of_the_calls_cost() -> None:
    script = talking()
    script.until(1.0)
    for number in (1, 2):
        tool_round(script, number)
    script.at(script.now, PhoneStopped())
    [turn] = script.turns
    assert (turn.speaker, turn.said, turn.heard, turn.said_ms) == (Speaker.AGENT, None, None, 0)
    assert (turn.input_text_tokens, turn.output_text_tokens) == (200, 20)
