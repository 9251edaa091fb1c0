"""How long it may be quiet, and how long a call may last."""

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    CallerTurnCommitted,
    CreateResponse,
    Ended,
    ErrorKind,
    HangUp,
    KeyPressed,
    PhoneStopped,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SendClear,
    SpeechStarted,
    SpeechStopped,
    Truncate,
)
from app.call.plan import Purpose
from tests.call.script import Script, agent, fault, talking

CALLER = SpeechStarted("u1")
BUSY = fault(ErrorKind.BUSY, "conversation_already_has_active_response")


def asked(script: Script) -> list[tuple[float, Purpose]]:
    """When a response was asked for, and why."""
    return [(round(instant, 3), create.purpose) for instant, create in script.every(CreateResponse)]


def answer(script: Script, at: float, number: int, ms: int = 1_000) -> None:
    """The backend makes the response that was asked for."""
    response_id = f"r{number}"
    script.at(at, ResponseStarted(response_id), agent(f"item_{number}_A", ms, response_id))
    script.at(at, ResponseEnded(response_id, ResponseStatus.COMPLETED))


# --- Quiet -----------------------------------------------------------------------------------


def test_both_are_silent_and_the_caller_is_asked_whether_they_are_there() -> None:
    script = talking(idle_prompt_s=10.0)
    script.until(10.4)
    assert asked(script) == [(10.3, Purpose.IDLE)]


def test_silence_counts_from_the_end_of_what_the_caller_hears() -> None:
    script = talking(idle_prompt_s=10.0)
    answer(script, 1.0, 1, ms=6_000)
    script.until(16.5)
    assert asked(script) == []
    script.until(17.1)
    assert [purpose for _, purpose in asked(script)] == [Purpose.IDLE]


def test_agent_says_goodbye_when_nobody_answers_its_questions() -> None:
    script = talking(idle_prompt_s=10.0, idle_prompts_max=2)
    answer(script, 10.5, 1)
    answer(script, 22.0, 2)
    script.until(33.5)
    assert [purpose for _, purpose in asked(script)] == [Purpose.IDLE, Purpose.IDLE, Purpose.GOODBYE]
    answer(script, 33.6, 3)
    script.until(35.0)
    assert len(script.every(HangUp)) == 1
    script.at(35.1, PhoneStopped())
    assert script.ended == Ended(EndReason.IDLE)


def test_no_questions_are_wished_for_and_silence_ends_the_call() -> None:
    script = talking(idle_prompt_s=10.0, idle_prompts_max=0)
    script.until(10.4)
    assert asked(script) == [(10.3, Purpose.GOODBYE)]


def test_caller_speaks_and_the_questions_start_over() -> None:
    script = talking(idle_prompt_s=10.0, idle_prompts_max=1)
    answer(script, 10.5, 1)
    script.at(15.0, CALLER)
    script.at(16.0, SpeechStopped("u1"), CallerTurnCommitted("u1"))
    answer(script, 16.5, 2)
    script.until(28.0)
    assert [purpose for _, purpose in asked(script)] == [Purpose.IDLE, Purpose.IDLE]


def test_caller_presses_a_key_and_the_questions_start_over() -> None:
    script = talking(idle_prompt_s=10.0, idle_prompts_max=1)
    answer(script, 10.5, 1)
    script.at(15.0, KeyPressed("1"))
    answer(script, 16.5, 2)
    script.until(28.0)
    assert [purpose for _, purpose in asked(script)] == [Purpose.IDLE, Purpose.KEYS, Purpose.IDLE]


def test_caller_talks_for_long_and_is_not_asked_whether_they_are_there() -> None:
    script = talking(idle_prompt_s=10.0)
    script.at(5.0, CALLER)
    script.until(60.0)
    assert asked(script) == []


def test_caller_answers_the_goodbye_for_silence_and_the_call_goes_on() -> None:
    script = talking(idle_prompt_s=10.0, idle_prompts_max=0)
    script.at(10.5, ResponseStarted("r1"), agent("item_A", 2_000))
    script.at(11.0, CALLER)
    script.at(12.0, SpeechStopped("u1"), CallerTurnCommitted("u1"), ResponseStarted("r2"))
    script.until(14.0)
    assert not script.every(HangUp)


def test_caller_speaks_before_the_question_begins_and_is_not_asked() -> None:
    script = talking(idle_prompt_s=10.0)
    script.until(10.31)
    script.at(10.4, CALLER, ResponseStarted("r1"))
    script.at(11.0, ResponseEnded("r1", ResponseStatus.CANCELLED))
    script.at(11.5, SpeechStopped("u1"), CallerTurnCommitted("u1"), ResponseStarted("r2"))
    script.at(12.0, agent("item_A", 200, "r2"), ResponseEnded("r2", ResponseStatus.COMPLETED))
    script.until(20.0)
    assert asked(script) == [(10.3, Purpose.IDLE)]


def test_refused_question_is_dropped_when_the_caller_speaks() -> None:
    script = talking(idle_prompt_s=10.0)
    script.until(10.31)
    script.at(10.4, BUSY)
    script.at(10.5, CALLER)
    script.at(11.5, SpeechStopped("u1"), CallerTurnCommitted("u1"))
    answer(script, 12.0, 1)
    script.until(20.0)
    assert asked(script) == [(10.3, Purpose.IDLE)]


def test_refused_goodbye_is_dropped_when_the_caller_speaks() -> None:
    script = talking(idle_prompt_s=10.0, idle_prompts_max=0)
    script.until(10.31)
    script.at(10.4, BUSY)
    script.at(10.5, CALLER)
    script.at(11.5, SpeechStopped("u1"), CallerTurnCommitted("u1"))
    answer(script, 12.0, 1)
    script.until(20.0)
    assert asked(script) == [(10.3, Purpose.GOODBYE)]


# --- The longest allowed time ----------------------------------------------------------------


def test_caller_is_warned_before_the_longest_allowed_time_is_over() -> None:
    script = talking(max_call_s=120.0, max_call_warning_s=30.0, idle_prompt_s=1_000.0)
    script.until(91.0)
    assert asked(script) == [(90.3, Purpose.WARNING)]
    assert "30 seconds" in script.every(CreateResponse)[0][1].instructions


def test_warning_of_several_minutes_names_the_time_that_is_left() -> None:
    script = talking(max_call_s=1_000.0, max_call_warning_s=300.0, idle_prompt_s=1_000.0)
    script.until(701.0)
    instructions = script.every(CreateResponse)[0][1].instructions
    assert "300 seconds" in instructions or "5 minutes" in instructions


def test_agent_says_goodbye_when_the_longest_allowed_time_is_over() -> None:
    script = talking(max_call_s=60.0, max_call_warning_s=0.0, idle_prompt_s=1_000.0)
    script.until(60.4)
    assert asked(script)[-1] == (60.3, Purpose.GOODBYE)
    answer(script, 60.5, 1)
    script.until(62.0)
    assert len(script.every(HangUp)) == 1
    script.at(62.1, PhoneStopped())
    assert script.ended == Ended(EndReason.MAX_LENGTH)


def test_caller_cannot_talk_the_longest_allowed_time_away() -> None:
    script = talking(max_call_s=60.0, max_call_warning_s=0.0, idle_prompt_s=1_000.0)
    script.at(60.5, ResponseStarted("r1"), agent("item_A", 2_000))
    assert {SendClear, Truncate} <= {type(command) for command in script.at(61.0, CALLER)}
    script.until(60.3 + limits.GOODBYE_LIMIT_S + 0.1)
    assert len(script.every(HangUp)) == 1


def test_caller_talks_when_the_time_is_over_and_the_call_ends_all_the_same() -> None:
    script = talking(max_call_s=60.0, max_call_warning_s=0.0, idle_prompt_s=1_000.0)
    script.at(55.0, CALLER)
    script.to_the_end()
    assert script.ended == Ended(EndReason.MAX_LENGTH)


def test_warning_and_question_fall_due_at_once_and_the_deadline_moves_on() -> None:
    script = talking(max_call_s=60.0, max_call_warning_s=50.0, idle_prompt_s=10.0)
    script.until(10.4)
    assert {purpose for _, purpose in asked(script)} <= {Purpose.WARNING, Purpose.IDLE}
