"""Who speaks first, and whether the caller may cut in."""

from app.call import limits
from app.call.events import (
    CreateResponse,
    ErrorKind,
    PassOn,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SendAudio,
    SendClear,
    SpeechStarted,
    Truncate,
)
from app.call.plan import Plan, Purpose
from tests.call.script import Script, agent, failure, fault, frame, only, talking

GUARDED = Plan(greeting="Hello.", greeting_interruptible=False)
FREE = Plan(greeting="Hello.", greeting_interruptible=True)


def greeting(plan: Plan) -> Script:
    """A call in which a greeting of two seconds has begun at 1.0."""
    script = talking(plan)
    script.at(1.0, ResponseStarted("r1"), agent("item_A", 2_000), ResponseEnded("r1", ResponseStatus.COMPLETED))
    return script


def test_agent_greets_first_with_the_tenants_words() -> None:
    (_, create), *others = talking(FREE).every(CreateResponse)
    assert create.purpose is Purpose.GREETING
    assert '"Hello."' in create.instructions
    assert not others


def test_greeting_goes_out_as_exact_words_to_a_backend_that_takes_them() -> None:
    ((_, create),) = talking(FREE).every(CreateResponse)
    assert create.words == "Hello."


def test_greeting_that_failed_as_exact_words_is_asked_for_by_instructions() -> None:
    script = talking(FREE)
    script.at(
        1.0, ResponseStarted("r1"), ResponseEnded("r1", ResponseStatus.FAILED, ErrorKind.HARMLESS, failure("x"))
    )
    script.until(1.0 + limits.RETRY_AFTER_S)
    _, (_, again) = script.every(CreateResponse)
    assert (again.purpose, again.words) == (Purpose.GREETING, "")
    assert '"Hello."' in again.instructions


def test_greeting_refused_as_exact_words_is_asked_for_by_instructions() -> None:
    """No response begins: the service does not take the field, or not with this model."""
    script = talking(FREE)
    script.at(1.0, fault(ErrorKind.HARMLESS, "invalid_value", "response.pre_generated_assistant_message"))
    script.until(1.0 + limits.RETRY_AFTER_S)
    _, (_, again) = script.every(CreateResponse)
    assert (again.purpose, again.words) == (Purpose.GREETING, "")


def test_refusal_of_something_else_leaves_the_greeting_to_come() -> None:
    script = talking(FREE)
    script.at(1.0, fault(ErrorKind.HARMLESS, "response_cancel_not_active", "response_id"))
    script.until(5.0)
    assert len(script.every(CreateResponse)) == 1


def test_nothing_but_a_greeting_is_given_as_exact_words() -> None:
    script = talking(FREE)
    script.at(1.0, ResponseStarted("r1"), agent("item_A", 500), ResponseEnded("r1", ResponseStatus.COMPLETED))
    script.until(1.0 + 2 * FREE.idle_prompt_s)
    assert [create.words for _, create in script.every(CreateResponse)][1:] == [""]


def test_tenant_without_a_greeting_lets_the_caller_speak_first() -> None:
    script = talking(greeting="")
    script.until(5.0)
    assert not script.every(CreateResponse)


def test_caller_cuts_into_an_interruptible_greeting() -> None:
    script = greeting(FREE)
    script.at(1.5, frame(100))
    commands = script.at(2.0005, SpeechStarted("u1"))
    assert commands[:2] == [SendClear(), Truncate("item_A", 1_000)]


def test_caller_talks_into_a_guarded_greeting_and_is_not_heard_yet() -> None:
    script = greeting(GUARDED)
    assert not only(PassOn, script.at(1.5, frame(100), frame(120)))
    assert not script.call.passes(frame(140), 1.54)


def test_tail_of_the_callers_words_is_passed_on_after_a_guarded_greeting() -> None:
    script = greeting(GUARDED)
    script.at(1.5, *(frame(100 + 20 * n) for n in range(50)))
    passed = only(PassOn, script.until(3.1))
    assert len(passed) == limits.GREETING_TAIL_MS // 20
    assert passed[-1] == PassOn("f1080")


def test_guarded_greeting_is_not_over_before_its_last_mark_has_come_back() -> None:
    script = greeting(GUARDED)
    script.at(1.5, frame(100))
    assert not only(PassOn, script.until(2.999))


def test_guarded_greeting_is_over_and_audio_passes_straight_through() -> None:
    script = greeting(GUARDED)
    script.at(2.9, frame(100))
    script.until(3.1)
    assert script.call.passes(frame(120), 3.12)


def test_caller_is_heard_when_marks_of_a_guarded_greeting_are_lost() -> None:
    script = Script(GUARDED)
    script.phone.loses_marks = True
    script.begin()
    script.at(1.0, ResponseStarted("r1"), agent("item_A", 2_000), ResponseEnded("r1", ResponseStatus.COMPLETED))
    script.at(2.9, frame(100))
    assert only(PassOn, script.until(3.0 + limits.MARK_LOST_S + 0.1)) == [PassOn("f100")]


def test_early_audio_is_cut_to_its_tail_when_a_guarded_greeting_begins() -> None:
    script = talking(GUARDED)
    script.at(0.4, *(frame(100 + 20 * n) for n in range(100)))
    script.at(1.0, ResponseStarted("r1"), agent("item_A", 300), ResponseEnded("r1", ResponseStatus.COMPLETED))
    assert len(only(PassOn, script.until(2.0))) == limits.GREETING_TAIL_MS // 20


def test_the_greeting_is_heard_whole_when_nobody_speaks() -> None:
    script = greeting(FREE)
    script.until(4.0)
    assert script.phone.played_ms("A") == 2_000
    assert len(script.every(SendAudio)) >= 1
    assert not script.every(SendClear)
