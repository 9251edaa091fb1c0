"""This process stands still, and its peers do not: it reads what they sent before it judges them.

The timer comes first after a standstill, and what waits in the sockets later: so does it here.
"""

from collections.abc import Callable

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AddToolOutput,
    AgentAudioEnded,
    AgentText,
    BackendConfigured,
    BackendFound,
    BackendOpened,
    CallerTranscribed,
    CallerTurnCommitted,
    CancelResponse,
    CreateResponse,
    Ended,
    Event,
    FindBackend,
    HangUp,
    PassOn,
    PassSilence,
    PhoneConnected,
    PhoneStarted,
    PhoneStopped,
    Ping,
    Pong,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    Side,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
    ToolFinished,
)
from app.call.phases import Phase
from app.call.plan import NO_ABILITIES, Plan, Purpose
from tests.call.phone_model import Phone
from tests.call.script import CALL_SID, FACTS, STREAM_SID, Script, agent, frame, only, talking

PAUSES_S = [10.0, 30.0, 120.0]
pauses = pytest.mark.parametrize("pause_s", PAUSES_S)

STOPS_AT = 4.0
GREETS = Plan(greeting="Hello.")
R1 = ResponseStarted("r1")
R1_DONE = ResponseEnded("r1", ResponseStatus.COMPLETED)


def heard(script: Script, since: float, until: float) -> None:
    """The caller's frames of this time arrive, each at its instant."""
    for number in range(round(since * 50), round(until * 50)):
        script.at(max(script.now, number / 50), frame(20 * number))


def running(plan: Plan = GREETS) -> Script:
    """A call that talks, with the caller's frames up to 4 s."""
    script = Script(plan, Phone(0.02)).begin()
    heard(script, 0.3, STOPS_AT)
    return script


def waited(script: Script, pause_s: float) -> list[float]:
    """Instants of the media clock at which frames waited in the socket."""
    return [STOPS_AT + number / 50 for number in range(round(pause_s * 50))]


# --- A call that goes on ---------------------------------------------------------------------


@pauses
def test_frames_that_waited_are_all_passed_on_and_no_silence_is_made_up(pause_s: float) -> None:
    script = running(Plan(greeting="", idle_prompt_s=600.0))
    resumes_at = STOPS_AT + pause_s
    commands = script.stand_still(resumes_at)
    frames = [frame(round(at * 1000)) for at in waited(script, pause_s)]
    for late in frames:
        commands += script.at(script.now + 0.0001, late)
    heard(script, resumes_at + 1.0, resumes_at + 40.0)
    assert [each.payload for each in only(PassOn, commands)] == [each.payload for each in frames]
    assert not only(PassSilence, commands)
    assert script.ended is None


@pauses
def test_greeting_that_waited_is_played_and_asked_for_no_second_time(pause_s: float) -> None:
    script = running()
    resumes_at = STOPS_AT + pause_s
    script.stand_still(resumes_at)
    script.at(resumes_at + 0.1, R1, agent("item_A", 2_000), AgentAudioEnded("r1", "item_A"))
    script.at(resumes_at + 0.2, AgentText("r1", "item_A", "Hello.", final=True), R1_DONE)
    heard(script, resumes_at + 0.3, resumes_at + 8.0)
    assert [asked.purpose for _, asked in script.every(CreateResponse)] == [Purpose.GREETING]
    assert [(turn.said, turn.interrupted) for turn in script.turns] == [("Hello.", False)]
    assert script.ended is None


@pauses
def test_response_that_was_in_the_middle_is_not_called_stalled(pause_s: float) -> None:
    script = running()
    script.at(STOPS_AT, R1, agent("item_A", 500))
    resumes_at = STOPS_AT + pause_s
    script.stand_still(resumes_at)
    script.at(resumes_at + 0.1, frame(5_000), agent("item_A", 500), AgentAudioEnded("r1", "item_A"), R1_DONE)
    heard(script, resumes_at + 0.2, resumes_at + 8.0)
    assert not script.every(CancelResponse)
    assert [turn.said_ms for turn in script.turns] == [1_000]


@pauses
def test_tool_that_answered_meanwhile_is_heard(pause_s: float) -> None:
    script = running(Plan(greeting="", tools=talking().plan.tools))
    script.at(STOPS_AT, R1, ToolCalled("r1", "call_1", "find_slot", "{}"), R1_DONE)
    resumes_at = STOPS_AT + pause_s
    told = script.stand_still(resumes_at)
    told += script.at(resumes_at + 0.5, ToolFinished("call_1", "10:30"))
    assert only(AddToolOutput, told) == [AddToolOutput("call_1", "10:30")]


@pauses
def test_transcript_that_waited_is_in_the_record(pause_s: float) -> None:
    script = running(Plan(greeting=""))
    script.at(STOPS_AT, SpeechStarted("u1"), SpeechStopped("u1"), CallerTurnCommitted("u1"))
    resumes_at = STOPS_AT + pause_s
    script.stand_still(resumes_at)
    script.at(resumes_at + 0.2, frame(5_000), R1, CallerTranscribed("u1", "Good morning."))
    assert [turn.said for turn in script.turns] == ["Good morning."]
    assert not script.every(CreateResponse)


@pauses
def test_caller_who_answered_meanwhile_is_not_asked_again(pause_s: float) -> None:
    script = running(Plan(greeting="", idle_prompt_s=6.0, idle_prompts_max=0))
    resumes_at = STOPS_AT + pause_s
    script.stand_still(resumes_at)
    script.at(resumes_at + 0.2, frame(5_000), SpeechStarted("u1"), SpeechStopped("u1"))
    script.at(resumes_at + 0.3, CallerTurnCommitted("u1"), R1)
    script.until(resumes_at + 3.0)
    assert not script.every(CreateResponse)
    assert script.call.phase is Phase.TALKING


@pauses
def test_phone_without_pongs_and_without_frames_in_silence_is_still_there(pause_s: float) -> None:
    script = Script(Plan(greeting="", idle_prompt_s=600.0), Phone(0.02), pongs=False).begin()
    heard(script, 0.3, STOPS_AT)
    script.stand_still(STOPS_AT + pause_s)
    script.until(STOPS_AT + pause_s + 40.0)
    assert script.ended is None


# --- In every phase --------------------------------------------------------------------------


def expected() -> tuple[Script, list[Event]]:
    script = Script(GREETS)
    script.at(0.0, BackendOpened(), BackendConfigured(formats_match=True))
    return script, [PhoneConnected(), PhoneStarted(STREAM_SID, CALL_SID)]


def arrived() -> tuple[Script, list[Event]]:
    script = Script(GREETS)
    script.at(0.0, BackendOpened(), BackendConfigured(formats_match=True), PhoneConnected())
    return script, [PhoneStarted(STREAM_SID, CALL_SID)]


def dialling() -> tuple[Script, list[Event]]:
    script = Script(GREETS, successors=[BackendFound(GREETS, FACTS, NO_ABILITIES)])
    script.at(0.0, PhoneConnected(), PhoneStarted(STREAM_SID, CALL_SID))
    return script, [BackendOpened(), BackendConfigured(formats_match=True)]


def configuring() -> tuple[Script, list[Event]]:
    script, _ = dialling()
    script.at(0.0, BackendOpened())
    return script, [BackendConfigured(formats_match=True)]


@pauses
@pytest.mark.parametrize("opening", [expected, arrived, dialling, configuring])
def test_call_that_was_being_opened_is_opened(
    opening: Callable[[], tuple[Script, list[Event]]], pause_s: float
) -> None:
    script, events = opening()
    told = script.stand_still(pause_s)
    told += script.at(pause_s + 1.0, *events)
    assert script.call.phase is Phase.TALKING
    assert not only(FindBackend, told)


@pauses
def test_goodbye_is_heard_to_its_end_and_the_hang_up_waited_for(pause_s: float) -> None:
    script = running(Plan(greeting=""))
    script.at(STOPS_AT, R1, agent("item_A", 3_000), ToolCalled("r1", "call_1", "hang_up", "{}"), R1_DONE)
    assert script.call.phase is Phase.SAYING_GOODBYE
    script.stand_still(STOPS_AT + pause_s)
    script.at(STOPS_AT + pause_s + 0.1, frame(5_000), AgentAudioEnded("r1", "item_A"))
    script.until(STOPS_AT + pause_s + 4.0)
    assert len(script.every(HangUp)) == 1
    leaves_at = script.now
    script.stand_still(leaves_at + pause_s)
    assert script.at(leaves_at + pause_s + 0.1, PhoneStopped())[-1] == Ended(EndReason.AGENT_HUNG_UP)


# --- What is really gone ---------------------------------------------------------------------


@pauses
def test_phone_that_is_really_gone_is_found_out_later(pause_s: float) -> None:
    script = running(Plan(greeting="", idle_prompt_s=600.0))
    script.pongs = False
    resumes_at = STOPS_AT + pause_s
    assert not only(Ended, script.stand_still(resumes_at))
    assert not only(Ended, script.until(resumes_at + limits.CATCH_UP_S - 0.01))
    script.until(resumes_at + limits.CATCH_UP_S + limits.PEER_SILENT_S)
    assert script.ended is not None
    assert script.ended.reason in {EndReason.PHONE_SILENT, EndReason.BACKEND_SILENT}


def test_response_that_never_comes_is_found_out_later() -> None:
    script = running()
    script.stand_still(14.0)
    script.at(14.1, frame(5_000))
    script.until(14.0 + limits.CATCH_UP_S + 0.1)
    assert script.ended == Ended(EndReason.BACKEND_SILENT)


def test_both_peers_are_pinged_as_soon_as_what_waited_is_read() -> None:
    script = running(Plan(greeting=""))
    script.stand_still(34.0)
    told = script.until(34.0 + limits.CATCH_UP_S)
    assert {ping.side for ping in only(Ping, told)} == {Side.PHONE, Side.BACKEND}


def test_pong_that_waited_for_us_is_no_round_trip() -> None:
    script = Script(GREETS, Phone(0.02), pongs=False).begin()
    script.until(0.4)
    script.stand_still(30.0)
    script.pongs = True
    script.call.handle(Pong(Side.PHONE), 30.1)
    assert script.call.phone_rtt_ms == 0.0


@pauses
def test_longest_allowed_time_of_a_call_goes_on(pause_s: float) -> None:
    script = running(Plan(greeting="", max_call_s=8.0, max_call_warning_s=0.0))
    script.stand_still(STOPS_AT + pause_s)
    script.until(STOPS_AT + pause_s + limits.CATCH_UP_S)
    assert script.call.phase in {Phase.SAYING_GOODBYE, Phase.LEAVING}


def test_process_that_is_always_late_judges_all_the_same() -> None:
    script = running(Plan(greeting="", idle_prompt_s=600.0))
    script.pongs = False
    for _ in range(400):
        if script.ended is not None:
            break
        due_at = script.call.deadline()
        assert due_at is not None
        script.stand_still(due_at + limits.STANDSTILL_S + 0.1)
    assert script.ended is not None
    assert script.now < 120.0


def test_timer_that_is_a_little_late_is_no_standstill() -> None:
    script = running(Plan(greeting="", idle_prompt_s=600.0))
    script.pongs = False
    for _ in range(400):
        if script.ended is not None:
            break
        due_at = script.call.deadline()
        assert due_at is not None
        script.stand_still(due_at + limits.STANDSTILL_S - 0.01)
    assert script.ended is not None
    assert script.now < STOPS_AT + limits.PEER_SILENT_S + 2 * limits.STANDSTILL_S
