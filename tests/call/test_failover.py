"""A backend that fails, or takes long, before the call talks: the next one takes the call, and nobody notices."""

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    BackendConfigured,
    BackendFault,
    BackendFound,
    BackendOpened,
    BackendUnreachable,
    BadMessage,
    CloseBackend,
    ClosePhone,
    Configure,
    CreateResponse,
    Ended,
    ErrorKind,
    Event,
    FindBackend,
    PassOn,
    PeerLost,
    PeerSlow,
    PhoneConnected,
    PhoneStarted,
    PhoneStopped,
    ResponseStarted,
    Side,
    SpeechStarted,
    Truncate,
)
from app.call.evidence import BackendChoice, Route
from app.call.journal import Facts
from app.call.phases import Phase
from app.call.plan import Abilities, Plan
from app.call.records import CallEnded, CallEvent, CallStarted, Record
from tests.call.phone_model import Phone
from tests.call.script import CALL_SID, STREAM_SID, UNIX_MS, Script, agent, frame, only

ROUTE = Route("fra", "fra", "us1")
CONNECTED = PhoneConnected(ROUTE)
STARTED = PhoneStarted(STREAM_SID, CALL_SID)
OPENED = BackendOpened()
CONFIGURED = BackendConfigured(formats_match=True)
GREETS = Plan(greeting="Hello.")


def successor(name: str, plan: Plan = GREETS, *, truncates: bool = False) -> BackendFound:
    """Another backend, with a plan that only it has."""
    plan_there = Plan(greeting=plan.greeting, model=f"{name}-model", voice=f"{name}-voice")
    choice = BackendChoice(name, f"{name}-voice", ("eu",), "near")
    facts = Facts(CALL_SID, "leg-1", "fra", name, "+4930111", "+4930222", choice)
    return BackendFound(plan_there, facts, Abilities(truncates=truncates))


def script_with(*names: str) -> Script:
    return Script(GREETS, successors=[successor(name) for name in names])


FAILURES: list[tuple[Event, str]] = [
    (BackendUnreachable("connection refused"), "backend_unreachable connection refused"),
    (BackendConfigured(formats_match=False, echoed="audio/pcm"), "backend_format audio/pcm"),
    (BackendFault(ErrorKind.FATAL, "invalid_api_key"), "backend_refused invalid_api_key"),
    (BackendFault(ErrorKind.FATAL, "insufficient_quota"), "backend_refused insufficient_quota"),
    (PeerLost(Side.BACKEND, 1006), "backend_lost 1006"),
    (PeerSlow(Side.BACKEND), "backend_slow"),
]
BEFORE: dict[str, tuple[Event, ...]] = {
    "dialling, no stream": (),
    "configuring, no stream": (OPENED,),
    "ready, no stream": (OPENED, CONFIGURED),
    "dialling, a stream": (CONNECTED,),
    "ready, a stream": (OPENED, CONFIGURED, CONNECTED),
    "dialling, a start": (CONNECTED, STARTED),
    "configuring, a start": (OPENED, CONNECTED, STARTED),
}


@pytest.mark.parametrize(("failure", "told"), FAILURES, ids=[told.partition(" ")[0] for _, told in FAILURES])
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_next_one_takes_the_call_and_is_the_one_in_its_records(
    before: tuple[Event, ...], failure: Event, told: str
) -> None:
    script = script_with("azure")
    script.at(0.0, *before)
    asked = script.at(0.1, failure)
    assert not only(ClosePhone, asked)
    assert not only(Ended, asked)
    script.at(0.3, *(event for event in (CONNECTED, STARTED) if event not in before))
    assert script.records == []
    assert only(Configure, script.at(0.4, OPENED)) == [Configure(successor("azure").plan)]
    talk = script.at(0.5, CONFIGURED)
    assert script.call.phase is Phase.TALKING
    assert [each.words for each in only(CreateResponse, talk)] == ["Hello."]
    begun = next(record for record in script.records if isinstance(record, CallStarted))
    assert (begun.backend, begun.model) == ("azure", "azure-model")
    assert begun.started_ms == UNIX_MS + (0 if STARTED in before else 300)
    assert call_events(script.records) == [
        ("handled", ""),
        ("backend", ""),
        ("failover", f"openai {told}"),
    ]
    evidence = [each.evidence for each in script.records if isinstance(each, CallEvent)]
    assert evidence == [ROUTE, BackendChoice("azure", "azure-voice", ("eu",), "near"), None]
    assert [each.at_ms for each in script.records if isinstance(each, CallEvent)][-1] == UNIX_MS + 100


def call_events(records: list[Record]) -> list[tuple[str, str]]:
    return [(each.kind, each.detail) for each in records if isinstance(each, CallEvent)]


def test_caller_who_spoke_meanwhile_is_heard_by_the_next_one_from_the_first_frame() -> None:
    script = Script(Plan(greeting=""), successors=[successor("azure", Plan(greeting=""))])
    script.at(0.0, CONNECTED, STARTED, OPENED)
    script.at(0.1, frame(0), frame(20))
    script.at(0.2, PeerLost(Side.BACKEND, 1011))
    script.at(0.3, frame(40), OPENED)
    assert [each.payload for each in only(PassOn, script.at(0.4, CONFIGURED))] == ["f0", "f20", "f40"]


def test_every_one_is_asked_and_the_call_ends_by_what_the_last_one_failed_by() -> None:
    script = script_with("azure", "third")
    script.at(0.0, CONNECTED, STARTED, BackendUnreachable("connection refused"))
    script.at(0.1, OPENED, BackendFault(ErrorKind.FATAL, "insufficient_quota"))
    last = script.at(0.2, OPENED, PeerLost(Side.BACKEND, 1006))
    assert only(Ended, last) == [Ended(EndReason.BACKEND_LOST)]
    begun = script.records[0]
    assert isinstance(begun, CallStarted)
    assert begun.backend == "third"
    assert call_events(script.records)[2:] == [
        ("failover", "openai backend_unreachable connection refused"),
        ("failover", "azure backend_refused insufficient_quota"),
        ("end", "1006"),
    ]
    assert script.records[-1] == CallEnded(CALL_SID, "leg-1", UNIX_MS + 200, "backend_lost", 0)


def test_caller_hangs_up_while_the_next_one_is_dialled_and_the_call_ends_as_ever() -> None:
    script = script_with("azure")
    script.at(0.0, CONNECTED, STARTED, BackendUnreachable("connection refused"))
    assert only(Ended, script.at(0.1, PhoneStopped())) == [Ended(EndReason.CALLER_HUNG_UP)]
    assert script.at(0.2, OPENED, CONFIGURED) == []


def test_error_and_its_close_have_one_successor_dialled_and_not_two() -> None:
    """They come in one segment, before the bridge has let go of the connection."""
    script = script_with("azure", "third")
    script.at(0.0, OPENED)
    asked = script.call.handle(BackendFault(ErrorKind.FATAL, "invalid_api_key"), 0.1)
    asked += script.call.handle(PeerLost(Side.BACKEND, 1008), 0.1)
    assert asked == [FindBackend(EndReason.BACKEND_REFUSED)]


def test_once_the_caller_has_heard_the_agent_a_failure_ends_the_call() -> None:
    script = script_with("azure").begin()
    script.at(0.35, ResponseStarted("r1"), agent("item_A", 20))
    assert only(Ended, script.at(0.4, PeerLost(Side.BACKEND, 1006))) == [Ended(EndReason.BACKEND_LOST)]


@pytest.mark.parametrize("come", [(), (OPENED,)], ids=["its handshake", "its configuration"])
@pytest.mark.parametrize("stream", [(), (CONNECTED, STARTED)], ids=["no stream", "a start"])
def test_one_that_hangs_is_followed_by_the_next_after_two_seconds(
    come: tuple[Event, ...], stream: tuple[Event, ...]
) -> None:
    script = script_with("azure")
    script.at(0.0, *stream, *come)
    script.until(limits.BACKEND_LATE_S - 0.001)
    assert not script.every(FindBackend)
    assert script.call.facts.backend == "openai"
    script.until(limits.BACKEND_LATE_S)
    [(_, asked)] = script.every(FindBackend)
    assert asked.reason is EndReason.BACKEND_NOT_READY
    assert script.call.facts.backend == "azure"
    script.at(2.2, *(event for event in (CONNECTED, STARTED) if event not in stream), OPENED, CONFIGURED)
    assert script.call.phase is Phase.TALKING


def test_late_one_that_has_no_successor_is_waited_for() -> None:
    script = script_with()
    script.at(0.0, CONNECTED, STARTED)
    script.until(4.0)
    assert len(script.every(FindBackend)) == 1
    assert not script.every(CloseBackend)
    script.at(4.5, OPENED, CONFIGURED)
    assert script.call.phase is Phase.TALKING


def test_one_that_opens_in_time_has_as_long_to_be_configured() -> None:
    script = script_with("azure")
    script.at(0.0, CONNECTED, STARTED)
    script.at(1.9, OPENED)
    script.at(3.8, CONFIGURED)
    assert script.call.phase is Phase.TALKING
    assert script.call.facts.backend == "openai"


def test_what_makes_every_one_slow_costs_no_call() -> None:
    """A name look-up that takes 2.5 s: the second one has the time that the first one would have needed."""
    script = script_with("azure", "third")
    script.at(0.0, CONNECTED, STARTED)
    script.at(4.5, OPENED, CONFIGURED)
    assert script.call.phase is Phase.TALKING
    assert script.call.facts.backend == "azure"


@pytest.mark.parametrize("failure", [failure for failure, _ in FAILURES])
def test_failure_after_the_time_is_up_ends_the_call_and_seeks_nobody(failure: Event) -> None:
    """Before the timer told that it is."""
    script = script_with("azure", "third")
    script.at(0.0, CONNECTED, STARTED, OPENED)
    script.until(limits.OPEN_LIMIT_S - 0.1)
    script.ticks = False
    asked = script.at(limits.OPEN_LIMIT_S + 0.01, failure)
    assert not only(FindBackend, asked)
    assert len(only(Ended, asked)) == 1


def test_warnings_of_the_next_one_do_not_push_out_that_there_was_another() -> None:
    script = script_with("azure")
    script.at(0.0, BackendUnreachable("refused"), OPENED)
    for _ in range(30):
        script.at(0.1, BackendFault(ErrorKind.WARNING, "parameter_ignored"))
    script.at(0.2, CONFIGURED, CONNECTED, STARTED)
    told = [kind for kind, _ in call_events(script.records)]
    assert told.count("failover") == 1
    assert told.count("backend_warning") == limits.EARLY_CALL_EVENTS_MAX - 1


def test_bad_messages_of_the_one_before_are_not_held_against_the_next() -> None:
    script = script_with("azure")
    script.at(0.0, CONNECTED, STARTED, OPENED)
    for _ in range(limits.BAD_MESSAGES_MAX + 1):
        script.at(0.1, BadMessage(Side.BACKEND, "not JSON"))
    assert script.call.facts.backend == "azure"
    script.at(0.2, OPENED, BadMessage(Side.BACKEND, "not JSON"), CONFIGURED)
    assert script.call.phase is Phase.TALKING


def test_round_trip_to_the_phone_is_known_to_the_next_conversation() -> None:
    script = Script(GREETS, Phone(0.1), successors=[successor("azure")])
    script.at(0.0, CONNECTED, STARTED)
    script.at(1.0, BackendUnreachable("refused"))
    script.at(1.1, OPENED, CONFIGURED)
    assert script.call._conversation.playout.rtt_ms == pytest.approx(200)


def test_caller_waits_no_longer_however_many_backends_hang() -> None:
    script = script_with("azure", "third", "fourth", "fifth")
    script.at(0.0, CONNECTED, STARTED)
    script.to_the_end()
    [(at, ended)] = script.every(Ended)
    assert (at, ended.reason) == (limits.OPEN_LIMIT_S, EndReason.BACKEND_NOT_READY)


def test_silent_one_is_followed_by_the_next() -> None:
    """Ready before the stream, and half-open since: no more pongs."""
    script = script_with("azure")
    script.at(0.0, OPENED, CONFIGURED)
    script.until(1.0)
    script.pongs = False
    script.until(14.0)
    assert [asked.reason for _, asked in script.every(FindBackend)] == [EndReason.BACKEND_SILENT]
    script.at(14.1, OPENED, CONFIGURED, CONNECTED, STARTED)
    assert script.call.phase is Phase.TALKING


def test_next_one_is_spoken_to_by_its_own_abilities() -> None:
    script = Script(GREETS, successors=[successor("azure", truncates=True)])
    script.at(0.0, CONNECTED, STARTED, BackendUnreachable("refused"), OPENED, CONFIGURED)
    script.at(0.1, agent("a", 3000))
    assert not only(Truncate, script.at(1.1, SpeechStarted("u1")))
