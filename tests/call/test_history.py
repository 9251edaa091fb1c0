"""What a new backend session is told of a call: every turn in its order, as it was heard, and what is owed."""

import pytest

from app.call import limits
from app.call.call import Call
from app.call.ending import EndReason
from app.call.events import (
    AddToolCall,
    AddToolOutput,
    AddTurn,
    BackendConfigured,
    BackendOpened,
    CloseBackend,
    ClosePhone,
    Command,
    CreateResponse,
    Ended,
    HangUp,
    HistoryFound,
    PassOn,
    PhoneConnected,
    PhoneStarted,
    Superseded,
)
from app.call.history import History, Memory, Owed, Said, ToolUse
from app.call.plan import NO_ABILITIES, Plan, Purpose
from app.call.records import Speaker
from app.call.wall import Wall
from tests.call.script import CALL_SID, FACTS, STREAM_SID, UNIX_MS, frame, only

HELLO = Said(Speaker.AGENT, "Hello, how can I help you?")
QUESTION = Said(Speaker.CALLER, "Do you have an appointment on Tuesday?")
LOOKED_UP = ToolUse("call_1", "find_slot", '{"day":"tuesday"}', '{"slot":"10:30"}')
CUT_OFF = Said(Speaker.AGENT, "On Tuesday we have")


def begun(history: History, plan: Plan | None = None) -> tuple[Call, list[Command]]:
    """A call with this history that has begun to talk, and what that led to."""
    call = Call(plan or Plan(greeting="Hello."), FACTS, Wall(0.0, UNIX_MS), NO_ABILITIES, history)
    call.handle(BackendOpened(), 0.0)
    call.handle(PhoneConnected(), 0.0)
    call.handle(PhoneStarted(STREAM_SID, CALL_SID), 0.1)
    call.handle(frame(0), 0.1)
    return call, call.handle(BackendConfigured(formats_match=True), 0.2)


def test_session_is_told_everything_in_order_before_the_callers_audio() -> None:
    _, commands = begun(History((HELLO, QUESTION, LOOKED_UP, CUT_OFF)))
    told = [each for each in commands if isinstance(each, AddTurn | AddToolCall | AddToolOutput | PassOn)]
    assert told == [
        AddTurn(Speaker.AGENT, HELLO.text),
        AddTurn(Speaker.CALLER, QUESTION.text),
        AddToolCall("call_1", "find_slot", '{"day":"tuesday"}'),
        AddToolOutput("call_1", '{"slot":"10:30"}'),
        AddTurn(Speaker.AGENT, CUT_OFF.text),
        PassOn("f0"),
    ]


@pytest.mark.parametrize(
    ("history", "purposes"),
    [
        (History(), [Purpose.GREETING]),
        (History((HELLO,)), []),
        (History((HELLO, QUESTION)), [Purpose.RETRY]),
        (History((HELLO, QUESTION, LOOKED_UP), Owed.ANSWER), [Purpose.RETRY]),
        (History((HELLO, QUESTION, CUT_OFF), Owed.CONTINUATION), [Purpose.CONTINUE]),
    ],
    ids=["nothing was said", "nothing is owed", "a question", "a question and a tool", "cut off"],
)
def test_only_what_is_owed_is_asked_for(history: History, purposes: list[Purpose]) -> None:
    _, commands = begun(history)
    assert [each.purpose for each in only(CreateResponse, commands)] == purposes


def test_reply_that_was_cut_off_is_to_go_on_from_its_last_words() -> None:
    _, commands = begun(History((HELLO, QUESTION, CUT_OFF), Owed.CONTINUATION))
    [asked] = only(CreateResponse, commands)
    assert f'"{CUT_OFF.text}"' in asked.instructions
    assert Plan().instructions in asked.instructions
    assert asked.words == ""


def test_tool_that_nobody_runs_any_more_has_an_error_as_its_output() -> None:
    _, commands = begun(History((HELLO, QUESTION, ToolUse("call_1", "find_slot", "{}")), Owed.ANSWER))
    assert [type(each) for each in commands if isinstance(each, AddToolCall | AddToolOutput)] == [
        AddToolCall,
        AddToolOutput,
    ]


def test_longest_allowed_time_counts_from_the_first_leg() -> None:
    plan = Plan(max_call_s=60.0, max_call_warning_s=10.0)
    call, _ = begun(History((HELLO,), began_ms=UNIX_MS - 49_000), plan)
    due_at = call.deadline()
    assert due_at is not None
    assert due_at <= 1.0
    warned = [command for at in range(1, 5) for command in call.handle(frame(20 * at), float(at))]
    assert [each.purpose for each in only(CreateResponse, warned)] == [Purpose.WARNING]


# --- While a call goes on ----------------------------------------------------------------------------


def test_turns_that_finish_in_another_order_are_kept_in_theirs() -> None:
    memory = Memory()
    memory.turn(1, Speaker.AGENT, "At ten.")
    memory.turn(0, Speaker.CALLER, "When?")
    assert memory.entries == (Said(Speaker.CALLER, "When?"), Said(Speaker.AGENT, "At ten."))


def test_tool_stands_between_the_turns_that_it_was_called_between() -> None:
    memory = Memory()
    memory.turn(0, Speaker.CALLER, "When?")
    memory.tool_called(1, "call_1", "find_slot", "{}")
    memory.turn(1, Speaker.AGENT, "At ten.")
    memory.tool_finished("call_1", "10:00")
    assert memory.entries == (
        Said(Speaker.CALLER, "When?"),
        ToolUse("call_1", "find_slot", "{}", "10:00"),
        Said(Speaker.AGENT, "At ten."),
    )


@pytest.mark.parametrize("heard", [None, ""])
def test_turn_of_which_nothing_was_heard_is_left_out(heard: str | None) -> None:
    memory = Memory()
    memory.turn(0, Speaker.AGENT, heard)
    assert memory.entries == ()


def test_newest_turns_of_a_long_call_are_kept() -> None:
    memory = Memory()
    for seq in range(2_000):
        memory.turn(seq, Speaker.CALLER, f"{seq:05} " * 10)
    assert memory.chars <= limits.HISTORY_MAX_CHARS
    texts = [entry.text for entry in memory.entries if isinstance(entry, Said)]
    assert texts == [f"{seq:05} " * 10 for seq in range(2_000 - len(texts), 2_000)]
    assert len(texts) > 300


def test_single_long_turn_is_kept_whole() -> None:
    memory = Memory()
    memory.turn(0, Speaker.CALLER, "word " * limits.HISTORY_MAX_CHARS)
    assert len(memory.entries) == 1


# --- A leg that resumes a call -----------------------------------------------------------------


def test_leg_that_knows_nothing_asks_to_repeat_and_does_not_greet() -> None:
    _, commands = begun(History(owed=Owed.REPETITION))
    (asked,) = [each for each in commands if isinstance(each, CreateResponse)]
    assert asked.purpose is Purpose.REPEAT
    assert asked.instructions
    assert "say it again" in asked.instructions


def test_leg_waits_for_the_history_that_it_was_promised() -> None:
    wall, before = Wall(0.0, UNIX_MS), History(began_ms=UNIX_MS)
    call = Call(Plan(greeting="Hello."), FACTS, wall, NO_ABILITIES, before, awaits_history=True)
    call.handle(BackendOpened(), 0.0)
    call.handle(PhoneConnected(), 0.0)
    call.handle(PhoneStarted(STREAM_SID, CALL_SID), 0.1)
    assert not [each for each in call.handle(BackendConfigured(formats_match=True), 0.2) if told(each)]
    found = call.handle(HistoryFound(History((HELLO, QUESTION))), 0.4)
    assert [each for each in found if told(each)] == [
        AddTurn(Speaker.AGENT, HELLO.text),
        AddTurn(Speaker.CALLER, QUESTION.text),
    ]
    assert [each.purpose for each in found if isinstance(each, CreateResponse)] == [Purpose.RETRY]
    assert call.handle(HistoryFound(History((CUT_OFF,))), 0.5) == []


def told(command: Command) -> bool:
    return isinstance(command, AddTurn | AddToolCall | AddToolOutput)


def test_leg_that_is_superseded_ends_without_hanging_up() -> None:
    call, _ = begun(History((HELLO,)))
    commands = call.handle(Superseded(), 1.0)
    assert [each.reason for each in commands if isinstance(each, Ended)] == [EndReason.SUPERSEDED]
    assert {ClosePhone, CloseBackend} <= {type(each) for each in commands}
    assert HangUp not in {type(each) for each in commands}
