"""The agent ends the call: what is said is heard first, then the hang-up, and something always ends it.

The stories: twilio.md 6.3.
"""

from dataclasses import replace

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AddToolOutput,
    AgentAudio,
    BadMessage,
    CallerAudio,
    CallerTranscribed,
    CallerTurnCommitted,
    CancelResponse,
    CloseBackend,
    ClosePhone,
    Command,
    CreateResponse,
    Ended,
    ErrorKind,
    Event,
    HangUp,
    HangUpFailed,
    KeyPressed,
    MarkReturned,
    PeerLost,
    PeerSlow,
    PhoneStopped,
    Ping,
    Remember,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    RunTool,
    SendAudio,
    SendClear,
    ShutdownRequested,
    Side,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
    ToolFinished,
    Truncate,
)
from app.call.plan import Purpose
from app.call.records import CallEnded
from tests.call.phone_model import Phone
from tests.call.script import SILENT, Script, agent, failure, fault, frame, only, talking, without_records

R1 = ResponseStarted("r1")
R1_DONE = ResponseEnded("r1", ResponseStatus.COMPLETED)
HANG_UP = ToolCalled("r1", "call_bye", "hang_up", "{}")
CALLER = SpeechStarted("u1")


def saying_goodbye(phone: Phone | None = None) -> Script:
    """From 1.0 to 3.0 the agent says its goodbye, and calls hang_up in the same response."""
    script = Script(SILENT, phone or Phone()).begin()
    script.at(1.0, R1, agent("item_A", 2_000), HANG_UP, R1_DONE)
    return script


def leaving() -> Script:
    """The goodbye was heard at 3.0, and the hang-up is asked for."""
    script = saying_goodbye()
    script.until(3.1)
    return script


def hung_up(script: Script) -> list[float]:
    """When the hang-up was asked for."""
    return [round(instant, 3) for instant, _ in script.every(HangUp)]


def reason(script: Script) -> EndReason | None:
    """Why the call ended, if it has."""
    return None if script.ended is None else script.ended.reason


# --- Heard first -----------------------------------------------------------------------------


def test_agent_says_goodbye_and_the_hang_up_waits_until_it_was_heard() -> None:
    script = saying_goodbye()
    script.until(2.999)
    assert hung_up(script) == []
    script.until(3.1)
    assert hung_up(script) == [3.0]
    assert script.phone.played_ms("A") == pytest.approx(2_000)


def test_marks_take_a_while_to_come_back_and_the_hang_up_waits_for_them() -> None:
    script = saying_goodbye(Phone(one_way_s=0.2))
    script.until(5.0)
    assert hung_up(script) == [pytest.approx(3.4)]


def test_model_hangs_up_without_a_word_and_is_asked_for_a_goodbye_first() -> None:
    script = talking()
    script.at(1.0, R1, HANG_UP, R1_DONE)
    assert [create.purpose for _, create in script.every(CreateResponse)] == [Purpose.GOODBYE]
    script.at(1.5, ResponseStarted("r2"), agent("item_B", 1_000, "r2"))
    script.at(1.6, ResponseEnded("r2", ResponseStatus.COMPLETED))
    script.until(3.0)
    assert hung_up(script) == [2.5]


def test_goodbye_is_asked_for_though_an_earlier_response_had_one() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r0"), agent("item_Z", 500, "r0"))
    script.at(1.1, ResponseEnded("r0", ResponseStatus.COMPLETED))
    script.at(2.0, R1, HANG_UP, R1_DONE)
    assert [create.purpose for _, create in script.every(CreateResponse)] == [Purpose.GOODBYE]


def test_hang_up_is_called_twice_and_asked_for_once() -> None:
    script = saying_goodbye()
    script.at(1.5, ResponseStarted("r2"), replace(HANG_UP, response_id="r2"))
    script.at(1.6, ResponseEnded("r2", ResponseStatus.COMPLETED))
    script.until(4.0)
    assert len(script.every(HangUp)) == 1


def test_hang_up_of_a_response_that_the_caller_cut_into_does_not_hang_up() -> None:
    """A backend that does not cancel by itself finishes what the caller does not hear any more."""
    script = talking()
    script.at(1.0, R1, agent("item_A", 2_000))
    script.at(2.0, CALLER)
    told = only(AddToolOutput, script.at(2.1, HANG_UP, R1_DONE))
    assert told == [AddToolOutput("call_bye", '{"result":"the caller went on talking; not hung up"}')]
    script.at(3.0, SpeechStopped("u1"), CallerTurnCommitted("u1"), ResponseStarted("r2"))
    script.at(3.1, agent("item_B", 1_000, "r2"), ResponseEnded("r2", ResponseStatus.COMPLETED))
    script.until(6.0)
    assert not script.every(HangUp)


def test_hang_up_of_a_cancelled_response_does_not_hang_up() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 2_000), HANG_UP)
    script.at(1.5, CALLER, ResponseEnded("r1", ResponseStatus.CANCELLED))
    script.until(4.0)
    assert hung_up(script) == []


def test_goodbyes_marks_are_lost_and_the_clock_hangs_up() -> None:
    script = saying_goodbye(Phone(loses_marks=True))
    script.until(3.0 + limits.MARK_LOST_S + 0.5)
    assert len(hung_up(script)) == 1


def test_goodbye_never_comes_and_the_call_is_hung_up() -> None:
    script = talking()
    script.at(1.0, R1, HANG_UP, R1_DONE)
    script.at(2.0, ResponseStarted("r2"))
    script.until(1.0 + limits.GOODBYE_LIMIT_S)
    assert hung_up(script) == [1.0 + limits.DEAD_AIR_MAX_S]


def test_goodbye_does_not_end_and_the_call_is_hung_up_at_its_limit() -> None:
    script = talking()
    script.at(1.0, R1, HANG_UP, R1_DONE)
    script.at(2.0, ResponseStarted("r2"), agent("item_B", 60_000, "r2"))
    script.until(1.0 + limits.GOODBYE_LIMIT_S + 0.1)
    assert hung_up(script) == [1.0 + limits.GOODBYE_LIMIT_S]


def test_another_tool_does_not_make_the_agent_speak_after_its_goodbye() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 2_000), HANG_UP, ToolCalled("r1", "call_1", "find_slot", "{}"), R1_DONE)
    script.at(1.5, ToolFinished("call_1", "10:30"))
    script.until(3.1)
    assert not script.every(CreateResponse)
    assert hung_up(script) == [3.0]


def test_tool_that_does_not_answer_does_not_keep_the_caller_on_the_line() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 2_000), ToolCalled("r1", "call_1", "find_slot", "{}"), HANG_UP, R1_DONE)
    script.until(3.1)
    assert hung_up(script) == [3.0]


# --- The caller has more to say --------------------------------------------------------------


def test_caller_interrupts_the_goodbye_and_is_not_hung_up_on() -> None:
    script = saying_goodbye()
    commands = without_records(script.at(2.0005, CALLER))
    assert commands[:2] == [SendClear(), Truncate("item_A", 1_000)]
    script.until(4.0)
    assert hung_up(script) == []


def test_model_is_told_that_the_caller_stayed() -> None:
    script = saying_goodbye()
    (output,) = only(AddToolOutput, script.at(2.0, CALLER))
    assert output.tool_call_id == "call_bye"
    assert "not hung up" in output.output


def test_caller_stayed_and_the_model_hangs_up_later() -> None:
    script = saying_goodbye()
    script.at(2.0, CALLER)
    script.at(3.0, SpeechStopped("u1"), CallerTurnCommitted("u1"), ResponseStarted("r2"))
    script.at(3.1, agent("item_B", 1_000, "r2"), ToolCalled("r2", "call_2", "hang_up", "{}"))
    script.at(3.2, ResponseEnded("r2", ResponseStatus.COMPLETED))
    script.until(5.0)
    assert hung_up(script) == [4.1]


def test_caller_stops_an_asked_for_goodbye_before_it_begins() -> None:
    script = talking()
    script.at(1.0, R1, HANG_UP, R1_DONE)
    script.at(1.2, CALLER)
    assert only(CancelResponse, script.at(1.3, ResponseStarted("r2"))) == [CancelResponse("r2")]
    script.at(2.0, SpeechStopped("u1"), CallerTurnCommitted("u1"), ResponseStarted("r3"))
    script.until(4.0)
    assert hung_up(script) == []


# --- Something always ends it ----------------------------------------------------------------


def test_stop_follows_the_hang_up_and_the_reason_is_that_the_agent_hung_up() -> None:
    script = leaving()
    commands = script.at(3.5, PhoneStopped())
    assert commands[-1] == Ended(EndReason.AGENT_HUNG_UP)
    assert isinstance(script.records[-1], CallEnded)


def test_rest_fails_and_closing_the_stream_ends_the_call() -> None:
    script = leaving()
    commands = script.at(3.5, HangUpFailed())
    assert commands[:2] == [ClosePhone(), CloseBackend()]
    assert commands[-1] == Ended(EndReason.AGENT_HUNG_UP)


def test_stop_never_comes_and_the_call_ends_after_the_grace() -> None:
    script = leaving()
    script.to_the_end()
    assert [(round(instant, 3), ended.reason) for instant, ended in script.every(Ended)] == [
        (3.0 + limits.HANG_UP_GRACE_S, EndReason.AGENT_HUNG_UP)
    ]


def test_phone_socket_closes_without_a_stop_and_that_is_the_hang_up() -> None:
    script = leaving()
    script.at(3.5, PeerLost(Side.PHONE, 1000))
    assert reason(script) is EndReason.AGENT_HUNG_UP


def test_caller_hangs_up_during_the_goodbye() -> None:
    script = saying_goodbye()
    script.at(2.0, PhoneStopped())
    assert reason(script) is EndReason.CALLER_HUNG_UP


def test_hang_up_failed_without_a_hang_up_changes_nothing() -> None:
    script = talking()
    assert script.at(1.0, HangUpFailed()) == []


def test_goodbye_at_the_phone_is_heard_after_its_backend_died() -> None:
    script = saying_goodbye()
    script.at(1.5, PeerLost(Side.BACKEND, 1006))
    script.until(3.1)
    assert hung_up(script) == [3.0]
    script.at(3.2, PhoneStopped())
    assert reason(script) is EndReason.AGENT_HUNG_UP


def test_call_is_hung_up_when_its_backend_dies_before_the_goodbye() -> None:
    script = talking()
    script.at(1.0, R1, HANG_UP, R1_DONE)
    script.at(1.2, PeerLost(Side.BACKEND, 1006))
    script.until(2.0)
    assert len(hung_up(script)) == 1


# --- After the hang-up -----------------------------------------------------------------------

LATE: list[Event] = [
    CALLER,
    SpeechStopped("u1"),
    CallerTurnCommitted("u1"),
    CallerTranscribed("u1", "wait"),
    frame(100),
    ResponseStarted("r9"),
    AgentAudio("r9", "item_Z", "AAAA", 3),
    ToolCalled("r9", "call_9", "find_slot", "{}"),
    ResponseEnded("r9", ResponseStatus.COMPLETED),
    ResponseEnded("r9", ResponseStatus.FAILED, ErrorKind.FATAL, failure("insufficient_quota")),
    KeyPressed("1"),
    MarkReturned("x"),
    ToolFinished("call_9", "x"),
    fault(ErrorKind.FATAL, "session_expired"),
    PeerSlow(Side.BACKEND),
    PeerLost(Side.BACKEND, 1000),
    BadMessage(Side.BACKEND, "not JSON"),
]


@pytest.mark.parametrize("event", LATE, ids=lambda event: type(event).__name__)
def test_after_the_hang_up_nothing_is_said_sent_or_run(event: Event) -> None:
    script = leaving()
    commands: list[Command] = script.at(3.2, event)
    commands += script.until(7.9)
    assert [command for command in commands if not isinstance(command, Remember | Ping)] == []


@pytest.mark.parametrize("event", LATE, ids=lambda event: type(event).__name__)
def test_call_ends_for_the_goodbyes_reason_whatever_follows_the_hang_up(event: Event) -> None:
    script = leaving()
    script.at(3.2, *[event] * (limits.BAD_MESSAGES_MAX + 5))
    script.to_the_end()
    assert reason(script) is EndReason.AGENT_HUNG_UP


def test_process_stops_after_the_hang_up_and_the_caller_is_owed_no_apology() -> None:
    script = leaving()
    script.at(3.2, ShutdownRequested())
    assert reason(script) is EndReason.AGENT_HUNG_UP


def test_caller_audio_no_longer_passes_after_the_hang_up() -> None:
    script = talking()
    script.at(0.9, frame(100))
    script.at(1.0, R1, agent("item_A", 200), HANG_UP, R1_DONE)
    script.until(1.5)
    assert not script.call.passes(frame(120), 1.5)
    assert script.at(1.52, CallerAudio("x", 160, 140)) == []


def test_what_waits_at_the_goodbyes_limit_is_not_sent_after_the_hang_up() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 30_000), HANG_UP, R1_DONE)
    script.until(1.0 + limits.GOODBYE_LIMIT_S)
    after = script.until(40.0)
    assert not only(SendAudio, after)
    assert not only(RunTool, after)
