"""A peer dies, falls silent, does not read, or makes no sense: in every phase the call ends, and says why."""

from collections.abc import Callable

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    BackendConfigured,
    BackendOpened,
    BadMessage,
    Broken,
    CloseBackend,
    ClosePhone,
    Ended,
    ErrorKind,
    Event,
    PeerLost,
    PeerSlow,
    PhoneConnected,
    PhoneStarted,
    PhoneStopped,
    Ping,
    Pong,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    ShutdownRequested,
    Side,
    SpeechStarted,
    Tick,
    ToolCalled,
)
from app.call.records import CallEnded, CallStarted
from tests.call.script import CALL_SID, STREAM_SID, Script, agent, fault, frame, talking, unreachable


def expected() -> Script:
    """The webhook was answered."""
    return Script()


def arrived() -> Script:
    """The socket is up."""
    script = Script()
    script.at(0.0, BackendOpened(), PhoneConnected())
    return script


def ready() -> Script:
    """The socket is up, and the backend waits for it."""
    script = arrived()
    script.at(0.0, BackendConfigured(formats_match=True))
    return script


def opening() -> Script:
    """The stream has begun, the backend is not configured."""
    script = arrived()
    script.at(0.0, PhoneStarted(STREAM_SID, CALL_SID))
    return script


def speaking() -> Script:
    """The agent is in the middle of a reply."""
    script = talking()
    script.at(0.5, ResponseStarted("r1"), agent("item_A", 4_000))
    return script


def listening() -> Script:
    """The caller is in the middle of a turn."""
    script = talking()
    script.at(0.5, frame(100), SpeechStarted("u1"))
    return script


def saying_goodbye() -> Script:
    """The agent says goodbye."""
    script = talking()
    script.at(0.5, ResponseStarted("r1"), agent("item_A", 4_000), ToolCalled("r1", "call_1", "hang_up", "{}"))
    script.at(0.6, ResponseEnded("r1", ResponseStatus.COMPLETED))
    return script


BEFORE_START = [expected, arrived, ready]
IN_THE_CALL = [opening, speaking, listening]
EVERY_PHASE = [*BEFORE_START, *IN_THE_CALL, saying_goodbye]

ALWAYS_FATAL: list[tuple[Event, EndReason]] = [
    (PhoneStopped(), EndReason.CALLER_HUNG_UP),
    (PeerLost(Side.PHONE, 1006), EndReason.PHONE_LOST),
    (PeerSlow(Side.PHONE), EndReason.PHONE_SLOW),
    (ShutdownRequested(), EndReason.SHUTDOWN),
    (Broken(), EndReason.BUG),
]
FATAL_UNTIL_GOODBYE: list[tuple[Event, EndReason]] = [
    (PeerLost(Side.BACKEND, 1006), EndReason.BACKEND_LOST),
    (PeerSlow(Side.BACKEND), EndReason.BACKEND_SLOW),
    (unreachable("timed out"), EndReason.BACKEND_UNREACHABLE),
    (fault(ErrorKind.FATAL, "insufficient_quota"), EndReason.BACKEND_REFUSED),
    (BackendConfigured(formats_match=False), EndReason.BACKEND_FORMAT),
]


def name(value: object) -> str:
    """A readable test id."""
    return str(getattr(value, "__name__", type(value).__name__))


@pytest.mark.parametrize("phase", EVERY_PHASE, ids=name)
@pytest.mark.parametrize(("event", "reason"), ALWAYS_FATAL, ids=name)
def test_call_cannot_go_on_and_both_sides_are_closed_at_once(
    phase: Callable[[], Script], event: Event, reason: EndReason
) -> None:
    commands = phase().at(1.0, event)
    assert commands[:2] == [ClosePhone(), CloseBackend()]
    assert commands[-1] == Ended(reason)


@pytest.mark.parametrize("phase", [*BEFORE_START, *IN_THE_CALL], ids=name)
@pytest.mark.parametrize(("event", "reason"), FATAL_UNTIL_GOODBYE, ids=name)
def test_backend_cannot_go_on_and_the_call_ends_with_its_reason(
    phase: Callable[[], Script], event: Event, reason: EndReason
) -> None:
    script = phase()
    script.at(1.0, event)
    assert script.ended == Ended(reason)


@pytest.mark.parametrize("phase", IN_THE_CALL, ids=name)
@pytest.mark.parametrize(("event", "reason"), [*ALWAYS_FATAL, *FATAL_UNTIL_GOODBYE], ids=name)
def test_call_that_began_leaves_exactly_one_ending(
    phase: Callable[[], Script], event: Event, reason: EndReason
) -> None:
    script = phase()
    script.at(1.0, event)
    assert isinstance(script.records[0], CallStarted)
    (ending,) = [record for record in script.records if isinstance(record, CallEnded)]
    assert ending == script.records[-1]
    assert (ending.reason, ending.turns) == (reason.value, len(script.turns))


@pytest.mark.parametrize("phase", BEFORE_START, ids=name)
@pytest.mark.parametrize(("event", "reason"), [*ALWAYS_FATAL, *FATAL_UNTIL_GOODBYE], ids=name)
def test_call_that_never_began_leaves_a_leg_without_a_stream_and_its_end(
    phase: Callable[[], Script], event: Event, reason: EndReason
) -> None:
    script = phase()
    script.at(1.0, event)
    began, *_, ending = script.records
    assert isinstance(began, CallStarted)
    assert isinstance(ending, CallEnded)
    assert (began.stream_sid, began.leg, ending.leg) == ("", f"{script.call.facts.leg}.0", began.leg)
    assert (ending.reason, ending.turns) == (reason.value, 0)


@pytest.mark.parametrize("phase", EVERY_PHASE, ids=name)
@pytest.mark.parametrize(("event", "reason"), [*ALWAYS_FATAL, *FATAL_UNTIL_GOODBYE], ids=name)
def test_nothing_follows_the_end(phase: Callable[[], Script], event: Event, reason: EndReason) -> None:
    script = phase()
    script.at(1.0, PhoneStopped())
    assert script.call.deadline() is None
    assert script.at(1.1, event, Tick(), frame(200)) == []
    assert not script.call.passes(frame(220), 1.2)


@pytest.mark.parametrize("phase", EVERY_PHASE, ids=name)
def test_left_alone_every_call_ends(phase: Callable[[], Script]) -> None:
    script = phase()
    script.to_the_end()
    assert len(script.every(Ended)) == 1


# --- Speaking out of turn --------------------------------------------------------------------


@pytest.mark.parametrize("phase", [expected, arrived, ready, opening], ids=name)
def test_backend_that_speaks_before_the_call_began_does_not_hang_it(phase: Callable[[], Script]) -> None:
    script = phase()
    script.at(0.1, ResponseStarted("r1"), agent("item_A", 5_000), SpeechStarted("u1"))
    script.to_the_end()
    assert script.ended is not None


# --- Silence and half-open connections -------------------------------------------------------


@pytest.mark.parametrize(
    ("silent", "reason"), [("phone", EndReason.PHONE_SILENT), ("backend", EndReason.BACKEND_SILENT)]
)
def test_peer_answers_no_ping_and_sends_nothing_and_counts_as_gone(silent: str, reason: EndReason) -> None:
    script = talking(idle_prompt_s=1_000.0)
    script.pongs = False
    alive = Side.BACKEND if silent == "phone" else Side.PHONE
    for second in range(1, 30):
        script.at(float(second), Pong(alive))
    assert [ended.reason for _, ended in script.every(Ended)] == [reason]
    assert script.every(Ended)[0][0] <= 0.3 + limits.PEER_SILENT_S + limits.PING_EVERY_S


def test_caller_audio_alone_keeps_the_phone_alive() -> None:
    script = talking(idle_prompt_s=1_000.0)
    script.pongs = False
    for tick in range(50, 2_000):
        instant = tick / 50
        script.at(instant, Pong(Side.BACKEND))
        if not script.call.passes(frame(20 * tick), instant):
            script.at(instant, frame(20 * tick))
    assert script.ended is None


def test_both_sides_are_pinged_at_once_and_then_regularly() -> None:
    script = talking(idle_prompt_s=1_000.0)
    script.until(21.0)
    pinged = [round(instant, 3) for instant, ping in script.every(Ping) if ping.side is Side.PHONE]
    assert pinged == [0.2, 5.2, 10.2, 15.2, 20.2]


def test_pong_without_a_ping_changes_nothing() -> None:
    assert Script().at(0.0, Pong(Side.PHONE), Pong(Side.BACKEND)) == []


# --- Messages that make no sense -------------------------------------------------------------

MISBEHAVED = [(Side.PHONE, EndReason.PHONE_MISBEHAVED), (Side.BACKEND, EndReason.BACKEND_MISBEHAVED)]


@pytest.mark.parametrize(("side", "reason"), MISBEHAVED)
def test_peer_makes_no_sense_a_few_times_and_is_borne_with(side: Side, reason: EndReason) -> None:
    script = talking()
    script.at(1.0, *[BadMessage(side, "not JSON")] * limits.BAD_MESSAGES_MAX)
    assert script.ended is None


@pytest.mark.parametrize(("side", "reason"), MISBEHAVED)
def test_peer_makes_no_sense_once_too_often_and_the_call_ends(side: Side, reason: EndReason) -> None:
    script = talking()
    script.at(1.0, *[BadMessage(side, "not JSON")] * (limits.BAD_MESSAGES_MAX + 1))
    assert script.ended == Ended(reason)


def test_bad_messages_of_one_side_are_not_held_against_the_other() -> None:
    script = talking()
    script.at(1.0, *[BadMessage(Side.PHONE, "x"), BadMessage(Side.BACKEND, "x")] * limits.BAD_MESSAGES_MAX)
    assert script.ended is None


def test_backend_talks_without_end_and_the_call_ends_before_memory_does() -> None:
    script = talking()
    script.at(1.0, ResponseStarted("r1"))
    for _ in range(12):
        script.at(1.0, agent("item_A", 60_000))
    assert script.ended == Ended(EndReason.BACKEND_MISBEHAVED)
