"""From the webhook to the first word: the backend and the stream come in any order, or not at all."""

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    AgentAudio,
    BackendConfigured,
    BackendOpened,
    CallerAudio,
    CloseBackend,
    ClosePhone,
    Configure,
    CreateResponse,
    Ended,
    ErrorKind,
    Event,
    PassOn,
    PeerLost,
    PhoneConnected,
    PhoneStarted,
    PhoneStopped,
    Remember,
    SendAudio,
    ShutdownRequested,
    Side,
)
from app.call.phases import Phase
from app.call.plan import Plan, Purpose
from app.call.records import CallEnded, CallEvent, CallStarted
from tests.call.script import (
    CALL_SID,
    SILENT,
    START,
    STREAM_SID,
    UNIX_MS,
    Script,
    answered,
    fault,
    frame,
    only,
    talking,
    unreachable,
    without_records,
)

CONNECTED = PhoneConnected()
STARTED = PhoneStarted(STREAM_SID, CALL_SID)
OPENED = BackendOpened()
CONFIGURED = BackendConfigured(formats_match=True)


def frames(first_ms: int, count: int) -> list[CallerAudio]:
    """Twilio's cadence."""
    return [frame(first_ms + 20 * n) for n in range(count)]


# --- Configure, then talk --------------------------------------------------------------------


def test_backend_opens_and_is_configured_at_once() -> None:
    script = Script()
    assert without_records(script.at(0.0, OPENED)) == [Configure(SILENT)]


def test_speech_before_the_backend_is_configured_is_not_passed_on() -> None:
    script = Script()
    script.at(0.0, OPENED, CONNECTED)
    assert not only(PassOn, script.at(0.1, STARTED, *frames(100, 20)))


def test_early_speech_is_passed_on_in_order_to_a_configured_backend() -> None:
    script = Script()
    script.at(0.0, OPENED, CONNECTED, STARTED, *frames(100, 3))
    passed = only(PassOn, script.at(0.2, CONFIGURED))
    assert passed == [PassOn("f100"), PassOn("f120"), PassOn("f140")]


def test_caller_speaks_longer_than_is_kept_and_the_oldest_goes_first() -> None:
    script = Script()
    script.at(0.0, OPENED, CONNECTED, STARTED, *frames(100, 300))
    passed = only(PassOn, script.at(0.2, CONFIGURED))
    assert len(passed) == limits.EARLY_AUDIO_MAX_MS // 20
    assert passed[-1] == PassOn(f"f{100 + 299 * 20}")


def test_early_audio_does_not_pass_straight_through() -> None:
    script = Script()
    script.at(0.0, OPENED, CONNECTED, STARTED, frame(100))
    assert not script.call.passes(frame(120), 0.02)


def test_audio_passes_straight_through_once_the_call_talks() -> None:
    script = answered()
    assert script.at(0.4, frame(100)) == [PassOn("f100")]
    assert script.call.passes(frame(120), 0.42)


def test_call_whose_backend_echoes_other_formats_ends_and_names_them() -> None:
    script = Script()
    script.at(0.0, OPENED, CONNECTED, STARTED)
    commands = script.at(0.1, BackendConfigured(formats_match=False, echoed="audio/pcm/audio/pcm"))
    assert commands[-1] == Ended(EndReason.BACKEND_FORMAT)
    assert "audio/pcm/audio/pcm" in str(only(Remember, commands))


def test_call_ends_when_its_backend_changes_the_formats() -> None:
    script = talking()
    assert script.at(9.0, BackendConfigured(formats_match=False))[-1] == Ended(EndReason.BACKEND_FORMAT)


def test_configuration_echoed_before_the_backend_opened_counts_for_nothing() -> None:
    script = Script()
    script.at(0.0, CONNECTED, STARTED, frame(100), CONFIGURED)
    assert not only(PassOn, script.at(0.1, OPENED))


def test_backend_opens_a_second_time_and_the_talking_call_stays_talking() -> None:
    script = talking()
    script.at(1.0, frame(100))
    assert not only(Configure, script.at(2.0, OPENED))
    assert script.at(2.1, frame(120)) == [PassOn("f120")]


# --- Any order -------------------------------------------------------------------------------

ORDERS = [
    (OPENED, CONFIGURED, CONNECTED, STARTED),
    (OPENED, CONNECTED, CONFIGURED, STARTED),
    (OPENED, CONNECTED, STARTED, CONFIGURED),
    (CONNECTED, OPENED, STARTED, CONFIGURED),
    (CONNECTED, STARTED, OPENED, CONFIGURED),
]


@pytest.mark.parametrize("order", ORDERS)
def test_the_greeting_is_asked_for_once_whichever_side_is_ready_first(order: tuple[Event, ...]) -> None:
    script = Script(Plan())
    script.at(0.0, *order)
    assert [create.purpose for _, create in script.every(CreateResponse)] == [Purpose.GREETING]


def test_call_starts_and_the_record_names_what_handles_it() -> None:
    script = talking()
    assert script.records == [
        CallStarted(
            call_sid=CALL_SID,
            leg="leg-1",
            tenant="default",
            zone="global",
            region="fra",
            backend="openai",
            model=SILENT.model,
            stream_sid=STREAM_SID,
            caller="+4930111",
            called="+4930222",
            started_ms=UNIX_MS + 300,
        )
    ]


# --- Not at all ------------------------------------------------------------------------------

NEVER = [
    ((OPENED, CONFIGURED), limits.STREAM_WAIT_S, EndReason.STREAM_NEVER_CAME),
    ((), limits.STREAM_WAIT_S, EndReason.STREAM_NEVER_CAME),
    ((CONNECTED,), limits.START_WAIT_S, EndReason.START_NEVER_CAME),
    ((CONNECTED, STARTED), limits.OPEN_LIMIT_S, EndReason.BACKEND_NOT_READY),
    ((CONNECTED, STARTED, OPENED), limits.OPEN_LIMIT_S, EndReason.BACKEND_NOT_READY),
]


@pytest.mark.parametrize(("events", "limit_s", "reason"), NEVER)
def test_what_must_come_next_never_comes_and_the_call_ends_at_its_limit(
    events: tuple[Event, ...], limit_s: float, reason: EndReason
) -> None:
    script = Script()
    script.at(0.0, *events)
    script.to_the_end()
    assert [(instant, ended.reason) for instant, ended in script.every(Ended)] == [(limit_s, reason)]


@pytest.mark.parametrize(("events", "limit_s", "reason"), NEVER)
def test_nothing_ends_the_call_just_before_its_limit(
    events: tuple[Event, ...], limit_s: float, reason: EndReason
) -> None:
    script = Script()
    script.at(0.0, *events)
    script.until(limit_s - 0.001)
    assert script.ended is None


# --- The wrong thing -------------------------------------------------------------------------


def test_stream_of_another_call_is_refused_and_recorded_without_it() -> None:
    script = Script()
    script.at(0.0, OPENED, CONFIGURED, CONNECTED)
    *closing, _, _, ended = script.at(0.1, PhoneStarted(STREAM_SID, "CA-of-somebody-else"))
    assert [*closing, ended][:2] == [ClosePhone(), CloseBackend()]
    assert ended == Ended(EndReason.WRONG_CALL)
    assert "CA-of-somebody-else" not in str(script.records)


def test_stop_comes_before_start_and_the_call_is_recorded_without_a_stream() -> None:
    script = Script()
    script.at(0.0, OPENED, CONNECTED)
    assert script.at(0.1, PhoneStopped())[-1] == Ended(EndReason.CALLER_HUNG_UP)
    assert [type(record).__name__ for record in script.records] == ["CallStarted", "CallEnded"]


def test_audio_comes_before_start_and_is_not_kept() -> None:
    script = Script()
    script.at(0.0, OPENED, CONFIGURED, CONNECTED, frame(100))
    assert not only(PassOn, script.at(0.1, STARTED))


def test_audio_before_start_for_longer_than_a_mistake_ends_the_call() -> None:
    script = Script()
    script.at(0.0, OPENED, CONFIGURED, CONNECTED)
    commands = script.at(0.1, *frames(100, limits.BAD_MESSAGES_MAX + 1))
    assert commands[-1] == Ended(EndReason.PHONE_MISBEHAVED)


def test_start_comes_twice_and_the_call_is_not_recorded_twice() -> None:
    script = talking()
    script.at(1.0, PhoneStarted("MZ-other", CALL_SID))
    assert len([record for record in script.records if isinstance(record, CallStarted)]) == 1


def test_nothing_is_sent_when_the_agent_speaks_before_the_stream_starts() -> None:
    script = Script()
    script.at(0.0, OPENED, CONFIGURED)
    assert not only(SendAudio, script.at(0.1, AgentAudio("r0", "item_A", "AAAA", 3)))


def test_call_begins_though_its_backend_warns_of_the_configuration() -> None:
    """Voice Live warns of a setting that its model does not have (realtime.md 2.4)."""
    script = Script()
    script.at(0.0, CONNECTED, STARTED, OPENED)
    assert script.at(0.1, fault(ErrorKind.WARNING, "parameter_ignored"), CONFIGURED)
    assert script.call.phase is Phase.TALKING
    warned = [record for record in script.records if isinstance(record, CallEvent)]
    assert [(record.kind, record.detail) for record in warned] == [("backend_warning", "parameter_ignored")]


@pytest.mark.parametrize("kind", [ErrorKind.HARMLESS, ErrorKind.RETRY, ErrorKind.BUSY])
def test_call_begins_in_spite_of_an_error_about_something_else(
    kind: ErrorKind,
) -> None:
    """A compatible server complains of a deprecated field, and is configured all the same."""
    script = Script()
    script.at(0.0, CONNECTED, STARTED, OPENED, fault(kind, "deprecated", "model"))
    script.at(0.1, CONFIGURED)
    assert script.call.phase is Phase.TALKING
    told = [record for record in script.records if isinstance(record, CallEvent)]
    assert [(record.kind, record.detail) for record in told] == [("backend_fault", "deprecated model")]


BEFORE_START = [
    (unreachable("connection refused"), EndReason.BACKEND_UNREACHABLE),
    (fault(ErrorKind.FATAL, "invalid_api_key"), EndReason.BACKEND_REFUSED),
    (fault(ErrorKind.HARMLESS, "unknown_parameter", configuration=True), EndReason.BACKEND_REFUSED),
    (
        fault(ErrorKind.HARMLESS, "invalid_value", "x", formats=True, configuration=True),
        EndReason.BACKEND_FORMAT,
    ),
    (PeerLost(Side.BACKEND, 1006), EndReason.BACKEND_LOST),
    (ShutdownRequested(), EndReason.SHUTDOWN),
]


@pytest.mark.parametrize(("event", "reason"), BEFORE_START)
def test_backend_failure_before_the_stream_is_recorded_with_its_reason(event: Event, reason: EndReason) -> None:
    script = Script()
    script.at(0.0, OPENED)
    commands = script.at(0.1, event)
    assert {type(each) for each in commands} >= {ClosePhone, CloseBackend}
    assert isinstance(commands[-1], Ended)
    ending = script.records[-1]
    assert isinstance(ending, CallEnded)
    assert ending.reason == commands[-1].reason.value == reason.value


@pytest.mark.parametrize(("event", "reason"), BEFORE_START)
def test_backend_failure_after_the_start_is_recorded_with_its_reason(event: Event, reason: EndReason) -> None:
    script = Script()
    script.at(0.0, CONNECTED, STARTED, OPENED)
    script.at(0.25, event)
    assert script.records[-1] == CallEnded(CALL_SID, "leg-1", UNIX_MS + 250, reason.value, 0)


def test_start_list_is_the_usual_beginning() -> None:
    assert talking().call.phase.name == "TALKING"
    assert [instant for instant, _ in START] == [0.0, 0.1, 0.2, 0.3]
