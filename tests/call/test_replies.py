"""One writer of response.create: who wants the agent to speak, and when it may be asked (realtime.md 1.6)."""

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AddTurn,
    CallerTurnCommitted,
    CancelResponse,
    CreateResponse,
    Ended,
    ErrorKind,
    KeyPressed,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SpeechStarted,
    SpeechStopped,
    Usage,
)
from app.call.plan import Plan, Purpose
from app.call.records import CallEvent
from tests.call.script import Script, agent, failure, fault, only, talking

KEY = KeyPressed("1")
BUSY = fault(ErrorKind.BUSY, "conversation_already_has_active_response")
RETRY = fault(ErrorKind.RETRY, "server_error")
SPEAKS = SpeechStarted("u1")
STOPS = SpeechStopped("u1")
COMMITTED = CallerTurnCommitted("u1")
SPEECH = agent("item_A", 200)


def done(response_id: str, status: ResponseStatus = ResponseStatus.COMPLETED) -> ResponseEnded:
    """A response is over."""
    return ResponseEnded(response_id, status)


def failed(
    response_id: str, kind: ErrorKind = ErrorKind.RETRY, code: str = "rate_limit_exceeded"
) -> ResponseEnded:
    """A response failed, without any error event."""
    return ResponseEnded(response_id, ResponseStatus.FAILED, kind, failure(code))


def asked(script: Script) -> list[tuple[float, Purpose]]:
    """When a response was asked for, and why."""
    return [(round(instant, 3), create.purpose) for instant, create in script.every(CreateResponse)]


# --- When it may be asked --------------------------------------------------------------------


def test_key_is_told_to_the_model_before_a_response_is_asked_for() -> None:
    script = talking()
    script.at(1.0, KEY)
    script.until(3.0)
    told = [type(c) for _, _, commands in script.log for c in commands if isinstance(c, AddTurn | CreateResponse)]
    assert told == [AddTurn, CreateResponse]


def test_several_keys_are_answered_once_after_the_last() -> None:
    script = talking()
    for instant in (1.0, 1.5, 2.0):
        script.at(instant, KEY)
    script.until(8.0)
    assert asked(script) == [(2.0 + limits.KEYS_WAIT_S, Purpose.KEYS)]
    assert len(script.every(AddTurn)) == 3


def test_no_response_is_asked_for_while_one_is_active() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"), KEY)
    script.until(5.0)
    assert asked(script) == []


def test_response_is_over_and_what_waited_is_asked_for() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"), KEY)
    script.at(5.0, SPEECH, done("r1"))
    script.until(5.1)
    assert asked(script) == [(5.0, Purpose.KEYS)]


def test_no_second_response_is_asked_for_before_the_first_has_begun() -> None:
    script = talking()
    script.at(1.0, KEY)
    script.at(4.0, KEY)
    script.until(6.0)
    assert len(asked(script)) == 1


def test_no_response_is_asked_for_while_the_caller_speaks() -> None:
    script = talking()
    script.at(1.0, SPEAKS, KEY)
    script.until(6.0)
    assert asked(script) == []


def test_nothing_is_asked_for_between_the_end_of_speech_and_its_commit() -> None:
    script = talking()
    script.at(1.0, SPEAKS, KEY)
    script.at(2.0, STOPS)
    script.at(2.0, COMMITTED)
    assert asked(script) == []


def test_cancelled_response_that_ends_after_the_commit_causes_no_request() -> None:
    script = talking()
    script.at(0.9, ResponseStarted("r1"), agent("item_A", 5_000))
    script.at(1.0, SPEAKS, KEY)
    script.at(2.0, STOPS, COMMITTED)
    script.at(2.01, done("r1", ResponseStatus.CANCELLED))
    script.until(2.2)
    assert asked(script) == []


def test_what_waits_is_asked_for_when_the_backend_does_not_answer() -> None:
    script = talking()
    script.at(1.0, SPEAKS, KEY)
    script.at(2.0, STOPS, COMMITTED)
    script.until(5.0)
    assert asked(script) == [(2.0 + limits.TURN_WAIT_S, Purpose.KEYS)]


def test_keys_before_the_backends_answer_are_not_answered_again() -> None:
    script = talking()
    script.at(1.0, SPEAKS, KEY)
    script.at(2.0, STOPS, COMMITTED, ResponseStarted("r1"))
    script.at(3.0, SPEECH, done("r1"))
    script.until(6.0)
    assert asked(script) == []


# --- What goes wrong -------------------------------------------------------------------------


def test_request_meets_an_active_response_and_is_made_again_after_a_while() -> None:
    script = talking(Plan(greeting="Hello."))
    script.at(0.4, BUSY)
    script.until(4.0)
    assert asked(script) == [(0.3, Purpose.GREETING), (0.4 + limits.TURN_WAIT_S, Purpose.GREETING)]


def test_request_that_met_an_active_response_is_made_again_after_it() -> None:
    script = talking(Plan(greeting="Hello."))
    script.at(0.4, BUSY, ResponseStarted("r1"))
    script.at(1.0, SPEECH, done("r1"))
    assert asked(script) == [(0.3, Purpose.GREETING), (1.0, Purpose.GREETING)]


def test_refused_request_is_not_lost_when_the_backend_answers_by_itself() -> None:
    script = talking(Plan(greeting="Hello."))
    script.at(1.0, ResponseStarted("auto"), BUSY)
    script.at(2.0, agent("item_A", 200, "auto"), done("auto"))
    script.until(4.0)
    assert [purpose for _, purpose in asked(script)] == [Purpose.GREETING, Purpose.GREETING]


def test_backend_is_busy_for_ever_and_is_not_asked_for_ever() -> None:
    script = talking(Plan(greeting="Hello."))
    for second in range(1, 120):
        if script.ended is None:
            script.at(float(second), BUSY)
    assert len(asked(script)) <= 10
    assert script.ended is not None


def test_backend_that_refuses_every_request_is_not_asked_for_ever() -> None:
    script = talking(Plan(greeting="Hello."))
    for second in range(1, 120):
        if script.ended is None:
            script.at(float(second), RETRY)
    assert len(asked(script)) <= 10
    assert script.ended is not None


def test_server_error_is_not_about_us_and_changes_nothing() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"), agent("item_A", 1_000), RETRY)
    script.at(2.5, done("r1"))
    script.until(4.0)
    assert asked(script) == []
    assert script.ended is None


def test_harmless_error_is_noted_by_its_code_and_the_call_goes_on() -> None:
    script = talking()
    script.at(1.0, fault(ErrorKind.HARMLESS, "response_cancel_not_active"))
    (note,) = [record for record in script.records if isinstance(record, CallEvent)]
    assert (note.kind, note.detail) == ("backend_fault", "response_cancel_not_active")
    assert script.ended is None


def test_harmless_errors_without_end_do_not_flood_the_ledger() -> None:
    script = talking()
    script.at(1.0, *[fault(ErrorKind.HARMLESS, "invalid_value")] * 5_000)
    assert len(script.records) < 1_000


def test_response_fails_once_and_is_asked_for_again_after_a_moment() -> None:
    script = talking(Plan(greeting="Hello."))
    script.at(1.0, ResponseStarted("r1"), failed("r1"))
    script.until(1.0 + limits.RETRY_AFTER_S + 0.1)
    assert asked(script) == [(0.3, Purpose.GREETING), (1.0 + limits.RETRY_AFTER_S, Purpose.GREETING)]


def test_backends_own_answer_fails_and_is_asked_for_again() -> None:
    script = talking()
    script.at(1.0, SPEAKS)
    script.at(2.0, STOPS, COMMITTED, ResponseStarted("r1"), failed("r1"))
    script.until(2.0 + limits.RETRY_AFTER_S + 0.1)
    assert asked(script) == [(2.0 + limits.RETRY_AFTER_S, Purpose.RETRY)]


def test_caller_who_speaks_after_a_failed_answer_is_answered_once() -> None:
    script = talking()
    script.at(1.0, SPEAKS)
    script.at(2.0, STOPS, COMMITTED, ResponseStarted("r1"), failed("r1"))
    script.at(2.5, SpeechStarted("u2"))
    script.at(4.0, SpeechStopped("u2"), CallerTurnCommitted("u2"), ResponseStarted("r2"))
    script.at(5.0, done("r2"))
    script.until(8.0)
    assert asked(script) == []


def test_responses_fail_one_after_the_other_and_the_call_is_given_up() -> None:
    script = talking(Plan(greeting="Hello."))
    script.at(1.0, ResponseStarted("r1"), failed("r1"))
    script.at(3.0, ResponseStarted("r2"))
    assert script.at(3.1, failed("r2"))[-1] == Ended(EndReason.BACKEND_FAILING)


def test_response_that_succeeds_makes_up_for_one_that_failed() -> None:
    script = talking(Plan(greeting="Hello."))
    script.at(1.0, ResponseStarted("r1"), failed("r1"))
    script.at(3.0, ResponseStarted("r2"), agent("item_A", 200, "r2"), done("r2"))
    script.at(4.0, ResponseStarted("r3"), failed("r3"))
    assert script.ended is None


def test_response_fails_for_the_account_and_the_call_ends_at_once() -> None:
    script = talking(Plan(greeting="Hello."))
    commands = script.at(1.0, ResponseStarted("r1"), failed("r1", ErrorKind.FATAL, "insufficient_quota"))
    assert commands[-1] == Ended(EndReason.BACKEND_REFUSED)


@pytest.mark.parametrize("status", [ResponseStatus.INCOMPLETE, ResponseStatus.CANCELLED])
def test_response_that_was_cut_short_is_no_failure(status: ResponseStatus) -> None:
    script = talking()
    for number in range(5):
        cut = agent("item_A", 20, f"r{number}")
        script.at(1.0 + number, ResponseStarted(f"r{number}"), cut, done(f"r{number}", status))
    assert script.ended is None
    assert asked(script) == []


def test_response_asked_for_never_begins_and_the_call_ends_with_a_reason() -> None:
    script = talking(Plan(greeting="Hello."))
    script.until(60.0)
    assert [(round(instant, 3), ended.reason) for instant, ended in script.every(Ended)] == [
        (0.3 + limits.OPEN_LIMIT_S, EndReason.BACKEND_SILENT)
    ]


def test_callers_turn_is_never_answered_and_the_call_ends_with_a_reason() -> None:
    script = talking()
    script.at(1.0, SPEAKS)
    script.at(2.0, STOPS, COMMITTED)
    script.until(60.0)
    asked_again_at = 2.0 + limits.RESPONSE_WAIT_S + limits.RETRY_AFTER_S
    assert asked(script) == [(asked_again_at, Purpose.RETRY)]
    assert [(instant, ended.reason) for instant, ended in script.every(Ended)] == [
        (2.0 + limits.DEAD_AIR_MAX_S, EndReason.BACKEND_SILENT)
    ]


def test_response_that_never_goes_on_does_not_keep_the_caller_waiting() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"))
    script.until(60.0)
    assert script.ended is not None or len(asked(script)) > 0


def test_response_that_goes_on_for_long_is_left_alone() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"))
    for second in range(7, 70, 6):
        script.at(float(second), agent("item_A", 200))
    assert script.ended is None


def test_response_stops_in_the_middle_and_is_asked_for_once_more() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"), agent("item_A", 200))
    stalls_at = 1.0 + limits.RESPONSE_STALL_S
    script.until(stalls_at + 0.1)
    assert script.every(CancelResponse) == [(stalls_at, CancelResponse("r1"))]
    script.at(stalls_at + 0.2, done("r1", ResponseStatus.CANCELLED))
    script.until(stalls_at + 2.0)
    assert asked(script) == [(stalls_at + limits.RETRY_AFTER_S, Purpose.RETRY)]


def test_call_ends_when_a_response_stops_in_the_middle_twice() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"))
    script.until(60.0)
    assert [(instant, ended.reason) for instant, ended in script.every(Ended)] == [
        (1.0 + limits.DEAD_AIR_MAX_S, EndReason.BACKEND_SILENT)
    ]


def test_response_ends_that_never_began_and_nothing_breaks() -> None:
    script = talking()
    script.at(1.0, ResponseEnded("r9", ResponseStatus.COMPLETED, usage=Usage(1, 2, 3, 4, 5, 6)))
    script.at(2.0, KEY)
    script.until(4.0)
    assert len(asked(script)) == 1


def test_end_of_another_response_does_not_end_the_active_one() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"), KEY)
    script.at(2.0, done("r9"))
    script.until(6.0)
    assert asked(script) == []


def test_no_two_requests_are_ever_under_way_at_once() -> None:
    script = talking(Plan(greeting="Hello."))
    script.at(0.4, KEY)
    script.at(1.0, ResponseStarted("r1"), KEY)
    script.at(2.0, done("r1"))
    assert [purpose for _, purpose in asked(script)] in (
        [Purpose.GREETING],
        [Purpose.GREETING, Purpose.KEYS],
    )
    assert only(CreateResponse, script.at(2.1, KEY)) == []
