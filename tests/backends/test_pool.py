"""Backends over real sockets: a sick one gets no calls until probes without a caller say that it is well."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.backends import circuit as circuit_module
from app.backends import pool as backends_module
from app.backends import speeds as speeds_module
from app.backends.check import advice
from app.backends.circuit import FAILURES_MAX
from app.backends.pool import Backends, PoolMember, State
from app.bridge.session import Service
from app.call.ending import EndReason
from app.call.evidence import BackendChoice, Route
from app.call.failure import BackendFailure, Remedy, Scope, lost, not_ready, silent, wrong_format
from app.call.journal import Facts
from app.call.plan import Plan
from app.call.records import CallEvent
from app.regions.zones import shipped_zones
from app.sim.phone.phone import Phone
from app.sim.realtime.faults import NO_FAULTS, Faults
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.slow_link import SlowLink
from app.wire.dialect import bearer
from app.wire.failures import classify
from app.wire.formats import AudioFormat
from app.wire.openai import OpenAIRealtime
from app.wire.tuning import OPENAI, Tuning
from app.world.process import free_port
from tests.bridge.spoken import Spoken
from tests.bridge.world import OPERATOR, openai_at, world
from tests.ledger.samples import rows
from tests.waiting import a_moment

pytestmark = pytest.mark.anyio

GLOBAL = shipped_zones()["global"]
PLAN = Plan()


def spoken(url: str, key: str) -> OpenAIRealtime:
    return OpenAIRealtime(url, bearer(lambda: key))


LOST = lost(1006)
KEY_REFUSED = BackendFailure(EndReason.BACKEND_UNREACHABLE, fatal=True, text="the key was refused")


def member(name: str, url: str, key: str = "test-key") -> PoolMember:
    return PoolMember(openai_at(url, key, name=name), spoken(url, key))


async def probed_until(backends: Backends, seen: Callable[[], object], plan: Plan = PLAN) -> None:
    """Has open circuits probed until this is seen; the test's own time-out ends the waiting."""
    watching = asyncio.create_task(backends.watch(plan))
    while not seen():
        await asyncio.wait({watching}, timeout=0.01)
    watching.cancel()
    await asyncio.wait({watching})


# --- What a failure says of other calls --------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "fatal", "model", "usable_after_one", "usable_after_several"),
    [
        (Scope.BACKEND, False, "", True, False),
        (Scope.BACKEND, True, "", False, False),
        (Scope.BACKEND, True, "m", False, False),
        (Scope.CALL, False, "m", True, True),
        (Scope.CALL, True, "m", True, True),
        (Scope.MODEL, True, "", True, True),
        (Scope.MODEL, True, "m", False, False),
    ],
)
def test_failure_that_other_calls_will_meet_sends_them_elsewhere(
    scope: Scope, fatal: bool, model: str, usable_after_one: bool, usable_after_several: bool
) -> None:
    """A model that a tenant chose is that tenant's mistake; one that the backend has for all is everybody's."""
    backend = openai_at("http://127.0.0.1:9/v1", "k", name="one")
    tuned = replace(backend, entry=replace(backend.entry, tuning=Tuning(model=model)))
    here = Backends([PoolMember(tuned, spoken("http://127.0.0.1:9/v1", "k"))], "fra")
    failure = BackendFailure(EndReason.BACKEND_REFUSED, "code", scope, fatal)
    here.report_outcome("one", failure)
    assert here.usable(GLOBAL) is usable_after_one
    for _ in range(FAILURES_MAX):
        here.report_outcome("one", failure)
    assert here.usable(GLOBAL) is usable_after_several


async def test_backend_without_a_token_gets_no_calls_until_it_has_one() -> None:
    why: list[str | None] = ["no token from Entra ID: HTTP 500"]
    one = member("one", "http://127.0.0.1:9/v1")
    here = Backends([replace(one, no_key=lambda: why[0])], "fra")
    assert (here.usable(GLOBAL), here.states) == (False, {"one": State.FAILING})
    why[0] = None
    assert (here.usable(GLOBAL), here.states) == (True, {"one": State.UNTRIED})


async def test_backend_gets_calls_with_its_token_whatever_calls_met_before() -> None:
    why: list[str | None] = ["no token from Entra ID: HTTP 500"]
    here = Backends([replace(member("one", "http://127.0.0.1:9/v1"), no_key=lambda: why[0])], "fra")
    for _ in range(FAILURES_MAX):
        here.report_outcome("one", BackendFailure(EndReason.BACKEND_UNREACHABLE, "no_key"))
    why[0] = None
    assert here.usable(GLOBAL)


# --- Probes ------------------------------------------------------------------------------------------


async def test_probe_finds_that_a_backend_still_does_not_speak_our_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends_module, "LOOK_S", 0.01)
    now_s = [0.0]
    async with asyncio.timeout(10), RealtimeSimulator(api_key="k", faults=Faults(echo_format="audio/pcm")) as one:
        at = member("one", one.url, "k")
        backends = Backends([at], "local", clock=lambda: now_s[0])
        backends.report_outcome("one", wrong_format("audio/pcm"))
        now_s[0] = due = circuit_module.PROBE_FATAL_S
        await probed_until(backends, lambda: at.circuit.probe_at != due)
        assert at.circuit.probe_at == due + circuit_module.PROBE_FATAL_S


@pytest.mark.parametrize("status", [400, 404])
async def test_backend_that_only_lacks_the_model_of_the_probe_gets_calls_again(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """For a call it is a fault of its tenant's model and not of the backend: a probe is no stricter."""
    monkeypatch.setattr(circuit_module, "PROBE_S", 0.0)
    monkeypatch.setattr(backends_module, "LOOK_S", 0.01)
    async with asyncio.timeout(10), RealtimeSimulator(api_key="k", faults=Faults(refuse_upgrade=status)) as one:
        backends = Backends([member("one", one.url, "k")], "local")
        for _ in range(FAILURES_MAX):
            backends.report_outcome("one", LOST)
        assert not backends.usable(GLOBAL)
        await probed_until(backends, lambda: backends.usable(GLOBAL))


async def test_backend_that_refuses_the_probes_voice_gets_calls_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(circuit_module, "PROBE_S", 0.0)
    monkeypatch.setattr(backends_module, "LOOK_S", 0.01)
    async with asyncio.timeout(10), RealtimeSimulator(api_key="k") as one:
        backends = Backends([member("one", one.url, "k")], "local")
        for _ in range(FAILURES_MAX):
            backends.report_outcome("one", LOST)
        await probed_until(backends, lambda: backends.usable(GLOBAL), Plan(voice="nova"))


async def test_tenant_whose_voice_is_refused_takes_no_backend_from_others() -> None:
    here = Backends([member("a", "http://127.0.0.1:9/v1")], "fra")
    for _ in range(FAILURES_MAX):
        here.report_outcome("a", classify("invalid_value")[1])
    assert here.usable(GLOBAL)


async def test_probe_whose_key_is_refused_waits_until_it_may_be_mended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends_module, "LOOK_S", 0.01)
    monkeypatch.setattr(circuit_module, "PROBE_S", 0.0)
    now_s = [0.0]
    async with asyncio.timeout(10), RealtimeSimulator(api_key="k") as one:
        at = member("one", one.url, "another")
        backends = Backends([at], "local", clock=lambda: now_s[0])
        backends.report_outcome("one", KEY_REFUSED)
        now_s[0] = due = circuit_module.PROBE_FATAL_S
        await probed_until(backends, lambda: at.circuit.probe_at != due)
        assert at.circuit.probe_at == due + circuit_module.PROBE_FATAL_S


# --- Before any caller -------------------------------------------------------------------------------


async def tried_until(backends: Backends, seen: Callable[[], object], plan: Plan = PLAN) -> None:
    """As `probed_until`, of a server that has just started."""
    watching = asyncio.create_task(backends.watch(plan, try_all=True))
    while not seen():
        await asyncio.wait({watching}, timeout=0.01)
    watching.cancel()
    await asyncio.wait({watching})


def logged(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.getMessage() == message]


async def test_backend_is_tried_before_any_caller_without_speaking(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with asyncio.timeout(10), RealtimeSimulator(api_key="k") as one:
        backends = Backends([member("one", one.url, "k")], "local")
        assert backends.states == {"one": State.UNTRIED}
        await tried_until(backends, lambda: backends.states == {"one": State.OK})
        session = await one.session(0)
        assert [each.type for each in session.received] == ["session.update"]
    [told] = logged(caplog, "backend_works")
    assert (told["backend"], told["configured_ms"] >= 0) == ("one", True)


async def test_refused_key_is_found_before_any_caller_and_its_variable_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with asyncio.timeout(10), RealtimeSimulator(api_key="k") as one:
        backends = Backends([member("one", one.url, "another")], "local", advise=advice)
        await tried_until(backends, lambda: not backends.usable(GLOBAL))
        assert backends.states == {"one": State.FAILING}
        assert [session.received for session in one.sessions] == []
    [told] = logged(caplog, "backend_given_up")
    assert (told["levelname"], told["backend"], told["error"]) == (
        "ERROR",
        "one",
        "the key was refused (HTTP 401)",
    )
    assert told["hint"] == "A_KEY does not have a key that 127.0.0.1 accepts."


async def test_backend_missing_at_the_start_is_tried_again_and_then_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends_module, "LOOK_S", 0.001)
    monkeypatch.setattr(backends_module, "PROBE_S", 0.0)
    url = f"http://127.0.0.1:{free_port()}/v1"
    backends = Backends([member("one", url)], "local", advise=advice)
    async with asyncio.timeout(10):
        await tried_until(backends, lambda: not backends.usable(GLOBAL))
    [first] = logged(caplog, "backend_unusable")
    [last] = logged(caplog, "backend_given_up")
    assert {first["levelname"], last["levelname"]} == {"ERROR"}
    assert first["hint"] == f"Is {url} right, and can it be reached from here?"


async def test_backend_without_the_built_in_tenants_model_keeps_other_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = Faults(error_code="model_not_found", error_after="session.created")
    async with asyncio.timeout(10), RealtimeSimulator(api_key="k", faults=faults) as one:
        backends = Backends([member("one", one.url, "k")], "local", advise=advice)
        await tried_until(backends, lambda: backends.states == {"one": State.FAILING})
        assert backends.usable(GLOBAL)
    [told] = logged(caplog, "backend_unusable")
    assert told["hint"].startswith("There has to be a model gpt-realtime-2.1 for this key")


async def test_backend_without_a_token_is_tried_once_it_has_one() -> None:
    why: list[str | None] = ["no token from Entra ID: it has not answered yet"]
    async with asyncio.timeout(10), RealtimeSimulator(api_key="k") as one:
        backends = Backends([replace(member("one", one.url, "k"), no_key=lambda: why[0])], "local")
        watching = asyncio.create_task(backends.watch(PLAN, try_all=True))
        await asyncio.sleep(0)
        assert (backends.states, one.sessions) == ({"one": State.FAILING}, [])
        why[0] = None
        while backends.states != {"one": State.OK}:
            await asyncio.wait({watching}, timeout=0.01)
        watching.cancel()
        await asyncio.wait({watching})


async def test_equally_near_backends_are_chosen_by_their_measured_times() -> None:
    facts = Facts("CA1", "leg-1", "fra", "", "+4930111", "+4930222")
    here = Backends(
        [member("openai", "http://127.0.0.1:9/v1"), member("voicelive", "http://127.0.0.1:9/v1")], "fra"
    )

    def next_call() -> Service:
        found = here.service(PLAN, GLOBAL, facts, (), working=True)
        assert found is not None
        return found

    def why(found: Service) -> str:
        assert found.facts.choice is not None
        return found.facts.choice.because

    first = next_call()
    assert (first.facts.backend, why(first)) == ("openai", "nearest")
    first.report_ready(900.0)
    assert next_call().facts.backend == "openai"
    other = here.service(PLAN, GLOBAL, facts, ("openai",), working=True)
    assert other is not None
    other.report_ready(200.0)
    assert (next_call().facts.backend, why(next_call())) == ("voicelive", "fastest")


async def test_probe_of_a_start_measures_every_backend() -> None:
    async with (
        asyncio.timeout(20),
        RealtimeSimulator(api_key="test-key") as one,
        SlowLink(int(one.url.split(":")[2].split("/")[0]), delay_ms=60) as far,
    ):
        here = Backends([member("a", f"http://127.0.0.1:{far.port}/v1"), member("b", one.url)], "local")
        await tried_until(here, lambda: set(here.states.values()) == {State.OK})
        chosen = here.choose(PLAN, GLOBAL)
        assert chosen is not None
        assert (chosen[0].backend.name, chosen[0].why) == ("b", "fastest")


# --- Choosing and watching ---------------------------------------------------------------------------


async def test_calls_go_to_the_other_while_one_is_down_and_back_when_it_is_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(circuit_module, "PROBE_S", 0.0)
    monkeypatch.setattr(backends_module, "LOOK_S", 0.001)
    async with RealtimeSimulator(api_key="test-key") as backend:
        here = Backends([member("a", backend.url), member("b", f"http://127.0.0.1:{free_port()}/v1")], "fra")
        plan = Plan(backends=("a",))

        def chosen() -> tuple[str, str]:
            found = here.choose(plan, GLOBAL)
            assert found is not None
            return found[0].backend.name, found[0].why

        assert chosen() == ("a", "preferred")
        for _ in range(FAILURES_MAX):
            here.report_outcome("a", LOST)
        assert chosen() == ("b", "nearest, not usable: a")
        assert here.states == {"a": State.FAILING, "b": State.UNTRIED}
        async with asyncio.timeout(10):
            await probed_until(here, lambda: here.states["a"] is State.HALF_OPEN)
        assert chosen() == ("a", "preferred")


async def test_zone_without_a_working_backend_is_unusable_but_has_a_best_one() -> None:
    here = Backends([member("a", "http://127.0.0.1:9/v1")], "fra")
    here.report_outcome("a", KEY_REFUSED)
    assert (here.usable(GLOBAL), here.serves(GLOBAL)) == (False, True)
    assert here.choose(Plan(), GLOBAL) is not None


async def test_search_for_a_working_backend_finds_none_that_is_given_up() -> None:
    here = Backends([member("a", "http://127.0.0.1:9/v1"), member("b", "http://127.0.0.1:9/v1")], "fra")
    facts = Facts("CA1", "leg-1", "fra", "", "+4930111", "+4930222")
    first, late = (here.service(Plan(), GLOBAL, facts, tried, working=True) for tried in ((), ("a",)))
    assert first is not None
    assert late is not None
    assert (late.facts.backend, late.facts.choice) == ("b", BackendChoice("b", "marin", ("eu",), "next"))
    here.report_outcome("b", KEY_REFUSED)
    assert here.service(Plan(), GLOBAL, facts, ("a",), working=True) is None
    failed = here.service(Plan(), GLOBAL, facts, ("a",), working=False)
    assert failed is not None
    assert failed.facts.backend == "b"
    assert here.service(Plan(), GLOBAL, facts, ("a", "b"), working=False) is None


# --- Slow, back, and limited -------------------------------------------------------------------------

FACTS = Facts("CA1", "leg-1", "fra", "", "+4930111", "+4930222")
RATE_LIMITED = BackendFailure(
    EndReason.BACKEND_UNREACHABLE, "http_429", remedy=Remedy.RATE_LIMIT, retry_after_s=7.0
)


class TwoMembers:
    """Two backends that nobody has tried; `a` is the one that calls prefer."""

    def __init__(self) -> None:
        self.now_s = 0.0
        members = [member("a", "http://127.0.0.1:9/v1"), member("b", "http://127.0.0.1:9/v1")]
        self.pool = Backends(members, "fra", clock=lambda: self.now_s)

    def call(self, *tried: str, greeting: str = "Hello.") -> Service:
        """The backend of the next call."""
        found = self.pool.service(Plan(backends=("a",), greeting=greeting), GLOBAL, FACTS, tried, working=False)
        assert found is not None
        return found


def test_second_caller_goes_elsewhere_after_one_has_waited(caplog: pytest.LogCaptureFixture) -> None:
    here = TwoMembers()
    first = here.call()
    first.report_outcome(not_ready("configuring"))
    second = here.call()
    assert (first.facts.backend, second.facts.backend) == ("a", "b")
    assert here.pool.states["a"] is State.SUSPECT
    assert here.call("b").facts.backend == "a"  # last, and not never
    [told] = logged(caplog, "backend_suspected")
    assert (told["backend"], told["error"]) == ("a", "configuring")


def test_only_backend_is_used_however_slow_it_is() -> None:
    here = Backends([member("a", "http://127.0.0.1:9/v1")], "fra")
    service = here.service(PLAN, GLOBAL, FACTS, (), working=False)
    assert service is not None
    service.report_outcome(not_ready("configuring"))
    assert here.usable(GLOBAL)
    assert here.choose(PLAN, GLOBAL) is not None


def test_suspect_never_takes_over_from_a_backend_that_is_only_late() -> None:
    here = TwoMembers()
    here.call().report_outcome(not_ready("configuring"))
    assert here.pool.service(PLAN, GLOBAL, FACTS, ("b",), working=True) is None


def test_call_that_fell_silent_once_heard_is_one_failure_of_several() -> None:
    here = TwoMembers()
    call = here.call()
    call.report_ready(300.0)
    call.report_first_audio(600.0)
    call.report_outcome(silent())
    assert here.call().facts.backend == "a"


def test_session_that_took_much_longer_than_elsewhere_counts_like_a_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = TwoMembers()
    here.call("a").report_ready(300.0)
    slow = here.call()
    slow.report_ready(3_000.0)
    slow.report_first_audio(200.0)
    assert (here.call().facts.backend, here.pool.states["a"]) == ("b", State.SUSPECT)
    [told] = logged(caplog, "backend_suspected")
    assert told["error"] == "its session took 3000 ms, much more than another backend's"


@pytest.mark.parametrize(("first_audio_ms", "next_one"), [(2_400.0, "a"), (2_600.0, "b")])
def test_late_first_audio_counts_like_a_wait(first_audio_ms: float, next_one: str) -> None:
    here = TwoMembers()
    call = here.call()
    call.report_ready(300.0)
    call.report_first_audio(first_audio_ms)
    assert here.call().facts.backend == next_one


@pytest.mark.parametrize("greeting", ["Hello.", ""])
def test_suspect_is_cleared_by_a_call_that_was_opened_quickly(
    greeting: str, caplog: pytest.LogCaptureFixture
) -> None:
    here = TwoMembers()
    here.call().report_outcome(not_ready("configuring"))
    last = here.call("b", greeting=greeting)
    last.report_ready(300.0)
    assert here.pool.states["a"] is (State.SUSPECT if greeting else State.OK)
    if greeting:
        last.report_first_audio(600.0)
    assert (here.call().facts.backend, here.pool.states["a"]) == ("a", State.OK)
    assert len(logged(caplog, "backend_recovered")) == 1


def test_rate_limit_sends_calls_elsewhere_for_as_long_as_it_says(caplog: pytest.LogCaptureFixture) -> None:
    here = TwoMembers()
    for _ in range(FAILURES_MAX + 1):
        here.call("b").report_outcome(RATE_LIMITED)
    assert (here.call().facts.backend, here.pool.states["a"]) == ("b", State.RATE_LIMITED)
    here.now_s = 6.9
    assert here.call().facts.backend == "b"
    here.now_s = 7.0
    trial, meanwhile = here.call(), here.call()
    assert (trial.facts.backend, meanwhile.facts.backend) == ("a", "b")
    trial.report_ready(300.0)
    trial.report_first_audio(600.0)
    assert here.call().facts.backend == "a"
    assert len(logged(caplog, "backend_rate_limited")) == 1
    assert logged(caplog, "backend_given_up") == []


async def test_backend_that_came_back_gets_one_call_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends_module, "LOOK_S", 0.001)
    async with asyncio.timeout(10), RealtimeSimulator(api_key="test-key") as one:
        here = Backends([member("a", one.url), member("b", "http://127.0.0.1:9/v1")], "fra")

        def call() -> Service:
            found = here.service(Plan(backends=("a",)), GLOBAL, FACTS, (), working=False)
            assert found is not None
            return found

        call().report_outcome(not_ready("configuring"))
        await probed_until(here, lambda: here.states["a"] is State.HALF_OPEN)
        trial, other = call(), call()
        assert (trial.facts.backend, other.facts.backend) == ("a", "b")
        trial.report_outcome(not_ready("configuring"))
        assert here.states["a"] is State.SUSPECT
        assert call().facts.backend == "b"


def test_trial_call_that_ends_well_is_enough_without_a_greeting() -> None:
    here = TwoMembers()
    long_before = here.call()
    here.call().report_outcome(RATE_LIMITED)
    here.now_s = 7.0
    trial = here.call()
    long_before.report_outcome(None)
    assert here.call().facts.backend == "b"
    trial.report_ready(300.0)
    trial.report_outcome(None)
    assert (here.call().facts.backend, here.pool.states["a"]) == ("a", State.OK)


def test_model_that_thinks_long_is_no_suspect_where_it_is_alone() -> None:
    here = Backends([member("a", "http://127.0.0.1:9/v1")], "fra")
    service = here.service(PLAN, GLOBAL, FACTS, (), working=False)
    assert service is not None
    service.report_ready(300.0)
    service.report_first_audio(4_000.0)
    assert here.states == {"a": State.OK}


async def test_probe_that_takes_much_longer_than_elsewhere_clears_no_suspect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends_module, "LOOK_S", 0.001)
    monkeypatch.setattr(circuit_module, "PROBE_S", 0.0)
    monkeypatch.setattr(speeds_module, "SLOWER_MS", 50.0)
    async with (
        asyncio.timeout(20),
        RealtimeSimulator(api_key="test-key") as one,
        SlowLink(int(one.url.split(":")[2].split("/")[0]), delay_ms=50) as far,
    ):
        here = Backends([member("a", f"http://127.0.0.1:{far.port}/v1"), member("b", one.url)], "local")
        fast = here.service(PLAN, GLOBAL, FACTS, ("a",), working=True)
        slow = here.service(PLAN, GLOBAL, FACTS, ("b",), working=True)
        assert fast is not None
        assert slow is not None
        fast.report_ready(1.0)
        slow.report_outcome(not_ready("configuring"))
        await probed_until(here, lambda: len(one.sessions) > 3)
        assert here.states["a"] is State.SUSPECT


# --- A whole server ----------------------------------------------------------------------------------


async def test_server_whose_backend_dies_says_the_sentence_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_module, "PROBE_FATAL_S", 0.0)
    monkeypatch.setattr(circuit_module, "PROBE_S", 0.0)
    monkeypatch.setattr(backends_module, "LOOK_S", 0.01)
    async with (
        world(tmp_path, faults=Faults(refuse_upgrade=401)) as nearcall,
        httpx.AsyncClient(base_url=nearcall.server.url, trust_env=False, headers=OPERATOR) as client,
    ):
        async with Phone(nearcall.phone()) as phone:
            await phone.dial()
            await phone.over()
        while (told := await client.get("/healthz")).json()["status"] != "degraded":
            await a_moment()
        assert (told.status_code, told.json()["why"], told.json()["backends"]) == (
            200,
            "no_backend",
            {"openai": "failing"},
        )
        async with Phone(nearcall.phone()) as phone:
            await phone.dial()
            await phone.over()
        assert phone.streams == []  # it was told a sentence, and no stream was opened for nothing
        nearcall.backend.faults = NO_FAULTS
        while (await client.get("/healthz")).json()["status"] != "ok":
            await a_moment()


class OnlyPcm(Spoken):
    """A server of OpenAI's protocol that refuses the phone network's own format."""

    @property
    def manners(self) -> dict[str, Any]:
        return {"g711": False}


async def test_backend_that_refuses_the_audio_format_is_given_up_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, spoken=OnlyPcm(OPENAI, AudioFormat.G711)) as nearcall:
        async with Phone(nearcall.phone()) as phone:
            await phone.dial()
            await phone.over()
        async with httpx.AsyncClient(base_url=nearcall.server.url, trust_env=False, headers=OPERATOR) as client:
            told = await client.get("/healthz")
    assert (told.json()["why"], told.json()["backends"]) == ("no_backend", {"openai": "failing"})
    [ended] = [
        vars(record)["fields"] for record in caplog.records if record.message == "backend_failed_before_stream"
    ]
    refused = "invalid_value session.audio.input.format.type"
    assert (ended["reason"], ended["backend"], ended["error"]) == ("backend_format", "openai", refused)


async def test_call_says_how_it_came_and_why_it_got_its_backend(tmp_path: Path) -> None:
    async with world(tmp_path, plan=Plan(greeting="Hello.")) as nearcall, Phone(nearcall.phone()) as phone:
        await phone.dial()
        await phone.heard_speech(200)
        await phone.hang_up()
    handled, chosen = [each for each in nearcall.records if isinstance(each, CallEvent)][:2]
    assert (handled.kind, handled.evidence) == ("handled", Route(None, "local", "us1"))
    assert (chosen.kind, chosen.evidence) == ("backend", BackendChoice("openai", "marin", ("eu",), "only"))
    assert rows(tmp_path / "ledger.db", "SELECT kind, detail, evidence FROM events ORDER BY seq LIMIT 2") == [
        ("handled", "", '{"edge": null, "machine": "local", "twilio": "us1", "sent_on_by": []}'),
        ("backend", "", '{"name": "openai", "voice": "marin", "residency": ["eu"], "because": "only"}'),
    ]


async def test_call_that_has_its_session_tells_so_long_before_it_ends(tmp_path: Path) -> None:
    async with (
        world(tmp_path, plan=Plan(greeting="Hello.")) as nearcall,
        httpx.AsyncClient(base_url=nearcall.server.url, trust_env=False, headers=OPERATOR) as client,
        Phone(nearcall.phone()) as phone,
    ):
        assert (await client.get("/healthz")).json()["backends"] == {"openai": "untried"}
        await phone.dial()
        await phone.heard_speech(200)
        assert (await client.get("/healthz")).json()["backends"] == {"openai": "ok"}
        await phone.hang_up()
