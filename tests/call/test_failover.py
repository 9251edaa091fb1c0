"""A backend that fails, or takes long, before the call talks: the next one takes the call, and nobody notices."""

import pytest

from app.call import limits
from app.call.ending import EndReason
from app.call.events import (
    BackendConfigured,
    BackendFound,
    BackendOpened,
    BadMessage,
    CloseBackend,
    ClosePhone,
    Configure,
    CreateResponse,
    Ended,
    ErrorKind,
    Event,
    FindBackend,
    NoBackendLeft,
    PassOn,
    PeerLost,
    PeerSlow,
    PhoneConnected,
    PhoneStarted,
    PhoneStopped,
    ReportOutcome,
    ReportReady,
    ResponseStarted,
    Side,
    SpeechStarted,
    SwitchBackend,
    Truncate,
)
from app.call.evidence import BackendChoice, Route
from app.call.journal import Facts
from app.call.phases import Phase
from app.call.plan import Abilities, Plan
from app.call.records import CallEnded, CallEvent, CallStarted, Record
from tests.call.phone_model import Phone
from tests.call.script import (
    CALL_SID,
    STREAM_SID,
    UNIX_MS,
    Script,
    agent,
    failure,
    fault,
    frame,
    only,
    unreachable,
)

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
    (unreachable("connection refused"), "backend_unreachable connection refused"),
    (BackendConfigured(formats_match=False, echoed="audio/pcm"), "backend_format audio/pcm"),
    (fault(ErrorKind.FATAL, "invalid_api_key"), "backend_refused invalid_api_key"),
    (fault(ErrorKind.FATAL, "insufficient_quota"), "backend_refused insufficient_quota"),
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


def test_caller_who_spoke_meanwhile_is_heard_from_the_first_frame() -> None:
    script = Script(Plan(greeting=""), successors=[successor("azure", Plan(greeting=""))])
    script.at(0.0, CONNECTED, STARTED, OPENED)
    script.at(0.1, frame(0), frame(20))
    script.at(0.2, PeerLost(Side.BACKEND, 1011))
    script.at(0.3, frame(40), OPENED)
    assert [each.payload for each in only(PassOn, script.at(0.4, CONFIGURED))] == ["f0", "f20", "f40"]


def test_call_ends_by_what_the_last_of_all_backends_failed_by() -> None:
    script = script_with("azure", "third")
    script.at(0.0, CONNECTED, STARTED, unreachable("connection refused"))
    script.at(0.1, OPENED, fault(ErrorKind.FATAL, "insufficient_quota"))
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


def test_caller_who_hangs_up_while_the_next_one_is_dialled_ends_the_call() -> None:
    script = script_with("azure")
    script.at(0.0, CONNECTED, STARTED, unreachable("connection refused"))
    assert only(Ended, script.at(0.1, PhoneStopped())) == [Ended(EndReason.CALLER_HUNG_UP)]
    assert script.at(0.2, OPENED, CONFIGURED) == []


def test_error_and_its_close_have_one_successor_dialled_and_not_two() -> None:
    """They come in one segment, before the bridge has let go of the connection."""
    script = script_with("azure", "third")
    script.at(0.0, OPENED)
    asked = script.call.handle(fault(ErrorKind.FATAL, "invalid_api_key"), 0.1)
    asked += script.call.handle(PeerLost(Side.BACKEND, 1008), 0.1)
    assert asked == [FindBackend(failure("invalid_api_key"), ("openai",), only_working=False)]


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
    assert asked.failure.reason is EndReason.BACKEND_NOT_READY
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
    script.at(0.0, unreachable("refused"), OPENED)
    for _ in range(30):
        script.at(0.1, fault(ErrorKind.WARNING, "parameter_ignored"))
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
    """It is where the caller's words cut: without it the marks, which come back late, would look like a stall."""
    script = Script(GREETS, Phone(0.1), successors=[successor("azure")])
    script.at(0.0, CONNECTED, STARTED)
    script.at(1.0, unreachable("refused"))
    script.at(1.1, OPENED, CONFIGURED)
    script.pongs = False
    script.at(1.2, ResponseStarted("r1"), agent("item_A", 3_000))
    assert only(Truncate, script.at(2.2, SpeechStarted("u1"))) == [Truncate("item_A", 1_000)]


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
    assert [asked.failure.reason for _, asked in script.every(FindBackend)] == [EndReason.BACKEND_SILENT]
    script.at(14.1, OPENED, CONFIGURED, CONNECTED, STARTED)
    assert script.call.phase is Phase.TALKING


def test_next_one_is_spoken_to_by_its_own_abilities() -> None:
    script = Script(GREETS, successors=[successor("azure", truncates=True)])
    script.at(0.0, CONNECTED, STARTED, unreachable("refused"), OPENED, CONFIGURED)
    script.at(0.1, agent("a", 3000))
    assert not only(Truncate, script.at(1.1, SpeechStarted("u1")))


# --- Who follows -------------------------------------------------------------------------------------


def asked_for(script: Script) -> list[tuple[tuple[str, ...], bool]]:
    """Every search for another backend: who was left out, and whether it had to be one that works."""
    return [(search.excluded, search.only_working) for _, search in script.every(FindBackend)]


def test_late_backend_is_left_only_for_one_that_works() -> None:
    script = script_with("azure")
    script.at(0.0, CONNECTED, STARTED)
    script.until(limits.BACKEND_LATE_S)
    assert asked_for(script) == [(("openai",), True)]


def test_late_backend_has_another_turn_when_all_others_have_failed() -> None:
    script = script_with("azure")
    script.at(0.0, CONNECTED, STARTED)
    script.until(limits.BACKEND_LATE_S)
    script.successors = []
    script.at(2.5, PeerLost(Side.BACKEND, 1006))
    assert asked_for(script) == [(("openai",), True), (("azure", "openai"), False), (("azure",), False)]
    assert script.ended == Ended(EndReason.BACKEND_LOST)


def test_backend_found_on_the_second_search_takes_the_call() -> None:
    script = script_with("azure")
    script.at(0.0, CONNECTED, STARTED)
    script.until(limits.BACKEND_LATE_S)
    [first] = script.call.handle(PeerLost(Side.BACKEND, 1006), 2.5)
    assert isinstance(first, FindBackend)
    [second] = script.call.handle(NoBackendLeft(), 2.5)
    assert second == FindBackend(first.failure, ("azure",), only_working=False)
    script.at(2.5, successor("openai"), OPENED, CONFIGURED)
    assert script.call.phase is Phase.TALKING


def test_backend_that_was_not_tried_yet_comes_before_one_that_was_late() -> None:
    script = script_with("azure", "third")
    script.at(0.0, CONNECTED, STARTED)
    script.until(limits.BACKEND_LATE_S)
    script.at(2.5, PeerLost(Side.BACKEND, 1006))
    assert asked_for(script) == [(("openai",), True), (("azure", "openai"), False)]
    assert script.call.facts.backend == "third"


def test_late_backend_that_then_fails_is_not_tried_again() -> None:
    script = script_with()
    script.at(0.0, CONNECTED, STARTED)
    script.until(limits.BACKEND_LATE_S)
    script.at(2.5, PeerLost(Side.BACKEND, 1006))
    assert asked_for(script) == [(("openai",), True), (("openai", "openai"), False)]


# --- Who is to blame ---------------------------------------------------------------------------------


def test_backend_that_failed_is_reported_when_the_next_one_takes_over() -> None:
    script = script_with("azure")
    script.at(0.0, CONNECTED, STARTED, OPENED)
    script.at(0.1, fault(ErrorKind.FATAL, "invalid_api_key"))
    assert script.outcomes == [(0.1, failure("invalid_api_key"))]
    switched = script.log[-1][2]
    assert [type(each) for each in switched[:2]] == [ReportOutcome, SwitchBackend]


def test_backend_without_a_successor_is_reported_once_at_the_end() -> None:
    script = script_with()
    script.at(0.0, CONNECTED, STARTED, unreachable("refused"))
    [(_, reported)] = script.outcomes
    assert reported is not None
    assert (reported.reason, reported.text) == (EndReason.BACKEND_UNREACHABLE, "refused")


@pytest.mark.parametrize(("begins_at", "reported"), [(3.0, 1), (4.1, 0)])
def test_backend_is_blamed_for_being_late_only_when_it_had_some_time(begins_at: float, reported: int) -> None:
    script = script_with("azure", "third")
    script.at(0.0, CONNECTED, STARTED)
    script.at(begins_at, PeerLost(Side.BACKEND, 1006))
    script.until(limits.OPEN_LIMIT_S)
    assert script.call.facts.backend == "third"
    assert script.ended == Ended(EndReason.BACKEND_NOT_READY)
    assert len([at for at, _ in script.outcomes if at == limits.OPEN_LIMIT_S]) == reported


def test_backend_that_the_caller_heard_is_reported_as_one_that_served_well() -> None:
    script = script_with().begin()
    script.at(0.35, ResponseStarted("r1"), agent("item_A", 20))
    script.at(0.5, PhoneStopped())
    assert script.outcomes == [(0.5, None)]


def test_caller_who_hangs_up_on_a_silent_backend_reports_nothing() -> None:
    script = script_with().begin()
    script.at(0.5, PhoneStopped())
    assert script.outcomes == []


def test_time_to_the_session_counts_from_the_dialling_of_its_backend() -> None:
    script = script_with("azure")
    script.at(0.0, CONNECTED, STARTED, OPENED)
    script.at(0.5, unreachable("refused"))
    script.at(0.75, OPENED, CONFIGURED, CONFIGURED)
    assert [ready.after_ms for _, ready in script.every(ReportReady)] == [pytest.approx(250.0)]


def test_session_with_other_formats_is_not_reported_as_ready() -> None:
    script = script_with()
    script.at(0.0, OPENED, BackendConfigured(formats_match=False))
    assert script.every(ReportReady) == []
