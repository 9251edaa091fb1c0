"""A call that moves to another machine: at a quiet moment, with everything recorded, and silent about it."""

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    BackendConfigured,
    BackendOpened,
    CallerTranscribed,
    CallerTurnCommitted,
    CloseBackend,
    ClosePhone,
    Ended,
    Event,
    HangUp,
    MoveRequested,
    PeerLost,
    PhoneConnected,
    PhoneStarted,
    PhoneStopped,
    Redirect,
    RedirectAnswered,
    RedirectOutcome,
    Remember,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    RunTool,
    SendClear,
    ShutdownRequested,
    Side,
    SpeechStarted,
    SpeechStopped,
    Superseded,
    ToolCalled,
    ToolFinished,
)
from app.call.phases import Phase
from app.call.records import CallEnded, Turn
from tests.call.script import CALL_SID, SILENT, STREAM_SID, Script, agent, answered, frame, only, talking
from tests.call.test_failover import successor

LATE = 60.0
ACCEPTED = RedirectAnswered(RedirectOutcome.ACCEPTED)
FAILED = RedirectAnswered(RedirectOutcome.FAILED, "HTTP 500, code None")
OVER = RedirectAnswered(RedirectOutcome.CALL_OVER)


def move(by: float = LATE) -> MoveRequested:
    return MoveRequested(by)


def moved_at(script: Script) -> list[float]:
    """When the redirect was asked for."""
    return [round(instant, 3) for instant, _ in script.every(Redirect)]


def reason(script: Script) -> EndReason | None:
    """Why the leg ended, if it has."""
    return None if script.ended is None else script.ended.reason


def moving(by: float = LATE) -> Script:
    """A quiet call whose redirect is asked for."""
    script = answered()
    script.at(5.0 - limits.MOVE_QUIET_S, move(by))
    script.until(5.0)
    return script


# --- When ----------------------------------------------------------------------------------------


def test_quiet_call_moves_a_moment_after_it_is_asked_to() -> None:
    assert moved_at(moving()) == [5.0]


def test_call_does_not_move_before_it_has_to() -> None:
    script = answered()
    script.until(30.0)
    assert moved_at(script) == []


def test_agent_is_heard_to_the_end_before_the_call_moves() -> None:
    script = answered()
    script.at(5.0, ResponseStarted("r1"), agent("item_A", 4_000))
    script.at(5.1, move(), ResponseEnded("r1", ResponseStatus.COMPLETED))
    script.until(20.0)
    assert moved_at(script) == [pytest.approx(9.0 + limits.MOVE_QUIET_S, abs=0.05)]
    assert script.phone.played_ms("A") == pytest.approx(4_000)
    assert script.every(SendClear) == []


def test_caller_who_speaks_gets_an_answer_before_the_call_moves() -> None:
    script = answered()
    script.at(5.0, SpeechStarted("u1"))
    script.at(5.1, move())
    script.at(7.0, SpeechStopped("u1"), CallerTurnCommitted("u1"))
    script.at(7.2, CallerTranscribed("u1", "How long is it?"))
    script.at(7.5, ResponseStarted("r1"), agent("item_A", 1_000), ResponseEnded("r1", ResponseStatus.COMPLETED))
    script.until(20.0)
    assert moved_at(script) == [pytest.approx(8.5 + limits.MOVE_QUIET_S, abs=0.05)]


def test_caller_who_speaks_right_after_the_agent_is_not_cut_off() -> None:
    script = answered()
    script.at(5.0, ResponseStarted("r1"), agent("item_A", 1_000), ResponseEnded("r1", ResponseStatus.COMPLETED))
    script.at(5.1, move())
    script.at(6.0 + limits.MOVE_QUIET_S / 2, SpeechStarted("u1"))
    script.until(9.0)
    assert moved_at(script) == []


def test_running_tool_is_waited_for_and_its_answer_is_spoken() -> None:
    script = answered()
    script.at(5.0, ResponseStarted("r1"), ToolCalled("r1", "call_1", "find_slot", "{}"))
    script.at(5.1, ResponseEnded("r1", ResponseStatus.COMPLETED))
    assert script.every(RunTool)
    script.at(5.2, move())
    script.at(8.0, ToolFinished("call_1", "{}"))
    assert moved_at(script) == []
    script.at(8.5, ResponseStarted("r2"), agent("item_B", 500, "r2"))
    script.at(8.6, ResponseEnded("r2", ResponseStatus.COMPLETED))
    script.until(20.0)
    assert moved_at(script) == [pytest.approx(9.0 + limits.MOVE_QUIET_S, abs=0.05)]


def test_words_of_the_caller_are_waited_for() -> None:
    """The next machine knows of the caller's turn only what is in the records."""
    script = answered()
    script.at(5.0, SpeechStarted("u1"))
    script.at(6.0, SpeechStopped("u1"), CallerTurnCommitted("u1"), move())
    script.at(6.5, ResponseStarted("r1"), agent("item_A", 500), ResponseEnded("r1", ResponseStatus.COMPLETED))
    script.until(8.0)
    assert moved_at(script) == []
    script.at(8.1, CallerTranscribed("u1", "How long is it?"))
    script.until(9.0)
    assert moved_at(script) == [round(8.1 + limits.MOVE_QUIET_S, 3)]
    turns = [turn.heard for turn in script.turns]
    assert "How long is it?" in turns


def test_constant_talk_moves_at_the_deadline_and_is_cleared_first() -> None:
    script = answered()
    script.at(5.0, ResponseStarted("r1"), agent("item_A", 9_000))
    script.at(5.1, move(by=7.0))
    commands = script.until(7.5)
    assert moved_at(script) == [7.0]
    order = [type(each) for each in commands if isinstance(each, SendClear | Remember | CloseBackend | Redirect)]
    assert order == [SendClear, Remember, Remember, CloseBackend, Redirect]
    (cut,) = [turn for turn in script.turns if turn.interrupted]
    assert cut.heard_ms == pytest.approx(2_000, abs=40)


def test_call_that_waits_for_its_backend_moves_at_the_deadline() -> None:
    script = Script(SILENT)
    script.at(0.0, PhoneConnected(), PhoneStarted(STREAM_SID, CALL_SID), move(by=2.0))
    script.until(2.5)
    assert moved_at(script) == [2.0]
    assert script.call.phase is Phase.MOVING


def test_call_that_loses_its_session_moves_after_the_next_ones_answer() -> None:
    script = answered()
    script.successors = [successor("azure")]
    script.at(5.0, SpeechStarted("u1"), move())
    script.at(5.5, PeerLost(Side.BACKEND, 1006))
    assert script.call.phase is Phase.TAKING_OVER
    script.until(7.0)
    assert moved_at(script) == []
    script.at(7.1, BackendOpened(), BackendConfigured(formats_match=True))
    script.at(9.0, ResponseStarted("r2"), agent("item_B", 1_000, "r2"))
    script.at(9.1, ResponseEnded("r2", ResponseStatus.COMPLETED))
    script.until(20.0)
    assert moved_at(script) == [pytest.approx(10.0 + limits.MOVE_QUIET_S, abs=0.2)]
    assert script.phone.played_ms("B") == pytest.approx(1_000)


def test_call_without_a_session_moves_at_the_deadline() -> None:
    """Another machine opens one as well, and may reach a backend that this one does not."""
    script = answered()
    script.successors = [successor("azure")]
    script.at(5.0, SpeechStarted("u1"), move(by=6.0))
    script.at(5.5, PeerLost(Side.BACKEND, 1006))
    script.until(6.5)
    assert moved_at(script) == [6.0]
    script.at(6.6, ACCEPTED)
    script.until(6.6 + limits.STOP_WAIT_S)
    assert reason(script) is EndReason.MOVED


def test_call_whose_stream_has_not_begun_is_left_alone() -> None:
    script = Script(SILENT)
    script.at(0.0, PhoneConnected(), move(by=0.5))
    script.until(2.0)
    assert moved_at(script) == []


def test_goodbye_is_said_and_the_call_does_not_move() -> None:
    script = answered()
    hang_up = ToolCalled("r1", "call_1", "hang_up", "{}")
    script.at(5.0, ResponseStarted("r1"), agent("item_A", 2_000), hang_up)
    script.at(5.1, ResponseEnded("r1", ResponseStatus.COMPLETED), move())
    script.until(8.0)
    assert moved_at(script) == []
    assert [round(instant, 3) for instant, _ in script.every(HangUp)] == [7.0]


def test_goodbye_is_cut_short_at_the_deadline() -> None:
    script = answered()
    hang_up = ToolCalled("r1", "call_1", "hang_up", "{}")
    script.at(5.0, ResponseStarted("r1"), agent("item_A", 5_000), hang_up)
    script.at(5.1, ResponseEnded("r1", ResponseStatus.COMPLETED), move(by=6.0))
    script.until(6.5)
    assert [instant for instant, _ in script.every(HangUp)] == [6.0]
    assert moved_at(script) == []


def test_second_request_changes_nothing() -> None:
    script = answered()
    script.at(5.0, ResponseStarted("r1"), agent("item_A", 9_000))
    script.at(5.1, move(by=20.0), move(by=6.0))
    script.until(7.0)
    assert moved_at(script) == []


# --- How it goes on --------------------------------------------------------------------------------


def test_every_turn_is_recorded_before_the_redirect() -> None:
    script = answered()
    script.at(5.0, ResponseStarted("r1"), agent("item_A", 1_000), move(by=5.5))
    commands = script.until(5.6)
    kinds = [type(each.record) if isinstance(each, Remember) else type(each) for each in commands]
    assert kinds[-2:] == [CloseBackend, Redirect]
    assert kinds.index(CallEnded) == len(kinds) - 3, "and the leg's ending, which is the last record"
    assert [turn.said_ms for turn in script.turns] == [20, 1_000]


def test_stream_is_closed_only_after_twilio_has_ended_it() -> None:
    script = moving()
    script.at(5.2, ACCEPTED)
    script.until(6.0)
    assert script.every(ClosePhone) == []
    script.at(6.1, PhoneStopped())
    assert len(script.every(ClosePhone)) == 1
    assert reason(script) is EndReason.MOVED


def test_stop_that_never_comes_is_waited_for_only_so_long() -> None:
    script = moving()
    script.at(5.2, ACCEPTED)
    script.until(5.2 + limits.STOP_WAIT_S - 0.01)
    assert reason(script) is None
    script.until(5.2 + limits.STOP_WAIT_S + 0.01)
    assert reason(script) is EndReason.MOVED


@pytest.mark.parametrize("gone", [PhoneStopped(), PeerLost(Side.PHONE, 1006)])
def test_stop_may_come_before_the_answer_to_the_redirect(gone: Event) -> None:
    script = moving()
    script.at(5.1, gone)
    assert reason(script) is None
    script.at(5.2, ACCEPTED)
    assert reason(script) is EndReason.MOVED


def test_redirect_that_fails_closes_the_stream() -> None:
    script = moving()
    commands = script.at(5.2, FAILED)
    assert only(ClosePhone, commands)
    assert reason(script) is EndReason.MOVED


def test_redirect_without_an_answer_closes_the_stream() -> None:
    script = moving()
    script.until(5.0 + limits.MOVE_FLUSH_S + limits.REST_LIMIT_S + limits.STOP_WAIT_S + 0.1)
    assert reason(script) is EndReason.MOVED


def test_caller_who_hung_up_before_the_redirect_has_hung_up() -> None:
    """The records were written before that was known, and say that the leg moved."""
    script = moving()
    script.at(5.1, PhoneStopped())
    script.at(5.2, OVER)
    assert reason(script) is EndReason.CALLER_HUNG_UP
    (ending,) = [record for record in script.records if isinstance(record, CallEnded)]
    assert ending.reason == "moved"


def test_ending_counts_the_turns_of_the_leg_once() -> None:
    script = moving()
    script.at(5.2, ACCEPTED, PhoneStopped())
    turns = [record for record in script.records if isinstance(record, Turn)]
    (ending,) = [record for record in script.records if isinstance(record, CallEnded)]
    assert (ending.reason, ending.turns) == ("moved", len(turns))
    assert len(turns) == 1


def test_caller_frames_and_late_words_do_nothing_while_the_call_moves() -> None:
    script = moving()
    late = (frame(5_020), SpeechStarted("u1"), CallerTranscribed("u1", "Hello?"), agent("item_A", 100))
    assert script.at(5.1, *late) == []


def test_shutdown_during_the_move_does_not_make_it_a_failure() -> None:
    script = moving()
    script.at(5.2, ShutdownRequested())
    assert script.every(Ended)[0][1].reason is EndReason.MOVED


def test_leg_that_has_been_superseded_meanwhile_ends_without_a_word() -> None:
    script = moving()
    script.at(5.1, Superseded())
    assert reason(script) is EndReason.SUPERSEDED
    script.at(5.2, ACCEPTED)
    assert len(script.every(Ended)) == 1


def test_caller_who_hangs_up_while_the_move_waits_has_hung_up() -> None:
    script = talking()
    script.at(5.0, SpeechStarted("u1"), move())
    script.at(6.0, PhoneStopped())
    assert reason(script) is EndReason.CALLER_HUNG_UP
