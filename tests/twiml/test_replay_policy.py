"""Requests that came another way, or go on: what is believed of their headers, and what is not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.call.ending import EndReason
from app.call.evidence import Route
from app.call.plan import Plan
from app.regions.routing import Arrival, Here, Reason, Replay
from app.regions.zones import shipped_zones
from tests.twiml.grammar import parsed
from tests.twiml.test_gate import TARGET, gate, headers, sign
from tests.twiml.world import BASE, CALL, CALL_FIELDS, NOW_S, OTHER_CALL, World, post, signature
from twiml.gate import Admission, Refusal, ReplayAnswer
from twiml.replay_policy import ReplayPolicy

HOMES = ("nrt", "fra", "gru", "syd", "iad", "lax")
BOTH = frozenset({"global", "eu"})
SIGNED = "a" * 28
EU = "/twiml/voice/eu"


def replay_policy(region: str, secret: str = "a secret of the tests") -> ReplayPolicy:
    return ReplayPolicy(shipped_zones(), lambda: Here(region, HOMES, BOTH), secret)


def source(header: str, region: str) -> Callable[[str], str | None]:
    """The headers that Fly adds to a request that was sent on with this header (fly.md 5.3)."""
    fields = dict(part.partition("=")[::2] for part in header.split(";"))
    return {"Fly-Replay-Src": f"instance=i1;region={region};t=1700000000000000;state={fields['state']}"}.get


def sent_on(by: ReplayPolicy, arrival: Arrival, to: Replay = Replay(("fra",), Reason.ZONE)) -> str:  # noqa: B008  frozen
    return by.replay_headers(arrival, to, SIGNED)["fly-replay"]


# --- The seal ----------------------------------------------------------------------------------------


def test_region_that_sent_a_request_on_is_known_to_the_next() -> None:
    first, second, third = replay_policy("iad"), replay_policy("nrt"), replay_policy("lax")
    arrival = second.arrival("eu", source(sent_on(first, Arrival("eu")), "iad"), SIGNED)
    assert arrival.tried == ("iad",)
    assert third.arrival("eu", source(sent_on(second, arrival), "nrt"), SIGNED).tried == ("iad", "nrt")


@pytest.mark.parametrize(
    "state",
    [
        "",
        "fra",
        "fra.",
        ".fra",
        "fra.forged",
        "iad.fra.xxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "é.é",
        "=;=",
        "fra;state=fra",
    ],
)
def test_state_that_is_not_ours_says_nothing(state: str) -> None:
    header = {"Fly-Replay-Src": f"instance=i1;region=fra;t=1;state={state}"}.get
    assert replay_policy("iad").arrival("eu", header, SIGNED).tried == ()


def test_headers_that_are_no_text_say_nothing() -> None:
    """Bytes that are not UTF-8 arrive as lone surrogates, which neither a seal nor a record can be made of."""
    odd = {"Fly-Replay-Src": "region=iad;state=iad.\udce4\udcff.seal", "Fly-Region": "fr\udcff"}
    arrival = replay_policy("fra").arrival("eu", odd.get, SIGNED)
    assert (arrival.tried, arrival.edge) == ((), None)


def test_state_of_another_request_or_another_secret_says_nothing() -> None:
    stolen = source(sent_on(replay_policy("iad"), Arrival("eu")), "iad")
    assert replay_policy("nrt").arrival("eu", stolen, "b" * 28).tried == ()
    assert replay_policy("nrt", "another secret").arrival("eu", stolen, SIGNED).tried == ()


def test_state_that_was_added_to_says_nothing() -> None:
    forged = sent_on(replay_policy("iad"), Arrival("eu")).replace("state=iad.", "state=fra.iad.")
    assert replay_policy("nrt").arrival("eu", source(forged, "iad"), SIGNED).tried == ()


# --- The header --------------------------------------------------------------------------------------


def test_list_of_regions_is_quoted_and_one_is_not() -> None:
    one = sent_on(replay_policy("iad"), Arrival("eu"))
    many = sent_on(replay_policy("iad"), Arrival("eu"), Replay(("fra", "cdg"), Reason.ZONE))
    assert one.startswith("region=fra;state=iad.")
    assert many.startswith('region="fra,cdg";state=iad.')
    assert one.endswith(";timeout=2s;fallback=prefer_self")


def test_every_field_of_the_header_is_one() -> None:
    fields = sent_on(replay_policy("iad"), Arrival("eu", tried=("nrt", "lax"))).split(";")
    assert [field.partition("=")[0] for field in fields] == ["region", "state", "timeout", "fallback"]


# --- Webhooks ----------------------------------------------------------------------------------------


@pytest.fixture
def abroad(world: World) -> World:
    """In Virginia, with machines everywhere."""
    world.here = Here("iad", HOMES, frozenset({"global"}))
    return world


def test_call_of_the_eu_is_sent_on_before_its_body_is_read(abroad: World) -> None:
    answer = abroad.client().post(EU, content=b"whatever it is", headers={"X-Twilio-Signature": SIGNED})
    assert answer.status_code == 409
    assert answer.headers["fly-replay"].startswith("region=fra;state=iad.")
    assert (answer.content, abroad.dialled) == (b"", [])


def test_tenant_of_the_eu_is_sent_on_though_the_url_names_no_zone(abroad: World, client: TestClient) -> None:
    abroad.plan = Plan(zone="eu")
    answer = post(client, "/twiml/voice")
    assert answer.headers["fly-replay"].startswith("region=fra;")
    assert abroad.registry.expected == []


def test_nothing_of_a_call_that_is_sent_on_is_in_the_log(
    abroad: World, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "nearcall.twiml")
    post(client, EU)
    [line] = caplog.records
    assert line.getMessage() == "webhook_replayed"
    assert not [value for value in CALL_FIELDS.values() if len(value) > 8 and value in str(line.__dict__)]


def test_call_that_fly_could_not_deliver_hears_the_zones_sentence(abroad: World) -> None:
    answer = abroad.client().post(EU, content=b"", headers={"Fly-Replay-Failed": "reason=no_candidate"})
    assert [verb.tag for verb in parsed(answer.content)] == ["Say", "Hangup"]
    assert shipped_zones()["eu"].sorry in answer.text


@pytest.mark.parametrize(
    "forged",
    [
        {"Fly-Region": "fra"},
        {"Fly-Replay-Src": "instance=i1;region=fra;t=1;state=fra.iad"},
        {"Fly-Replay-Failed": "reason=timeout"},
        {"fly-prefer-region": "iad"},
        {"Fly-Force-Region": "iad"},
    ],
    ids=lambda one: next(iter(one)),
)
def test_forged_header_never_has_a_call_of_the_eu_taken_abroad(
    abroad: World, client: TestClient, forged: dict[str, str]
) -> None:
    abroad.plan = Plan(zone="eu")
    for path in ("/twiml/voice", EU):
        answer = post(client, path, headers=forged)
        assert "fly-replay" in answer.headers or [verb.tag for verb in parsed(answer.content)] == ["Say", "Hangup"]
    assert abroad.registry.expected == []


@pytest.mark.parametrize(("path", "to"), [("/twiml/voice", "region=fra;"), (EU, "region=fra;")])
def test_machine_that_starts_does_not_look_numbers_up(
    world: World, client: TestClient, path: str, to: str
) -> None:
    """It does not know yet: what it said would be wrong, and the sentence the wrong one."""
    world.here = Here("cdg", ("cdg", "fra"), BOTH, starting=True)
    world.plan = None
    assert post(client, path).headers["fly-replay"].startswith(to)
    world.here = Here("fra", ("fra", "iad") if path == EU else ("fra",), BOTH, starting=True)
    assert [verb.tag for verb in parsed(post(client, path).content)] == ["Say", "Hangup"]


def test_full_machine_sends_calls_to_the_nearest(world: World, client: TestClient) -> None:
    world.full("iad", "nrt")
    answer = post(client, "/twiml/voice")
    assert answer.headers["fly-replay"].startswith('region="iad,nrt";')
    assert world.parts.replay_policy.counts == {"sent_on full": 1}


@pytest.mark.parametrize("state", [{"full": True}, {"crowded": True}, {"lagging": True}])
def test_machine_without_room_answers_for_its_own_calls(
    world: World, client: TestClient, state: dict[str, Any]
) -> None:
    world.here = replace(Here("fra", HOMES, BOTH), **state)
    world.registry.endings[CALL] = EndReason.AGENT_HUNG_UP
    assert [verb.tag for verb in parsed(post(client, "/twiml/after/global/fra", AFTER).content)] == ["Hangup"]
    assert post(client, "/twiml/status/global").status_code == 204
    other = CALL_FIELDS | {"CallSid": OTHER_CALL}
    assert post(client, "/twiml/voice/global", other).headers["fly-replay"].startswith('region="iad,')


def test_machine_without_a_backend_and_nowhere_to_go_says_a_sentence(world: World, client: TestClient) -> None:
    world.here = Here("fra", ("fra",), frozenset())
    assert [verb.tag for verb in parsed(post(client, "/twiml/voice").content)] == ["Say", "Hangup"]
    assert world.parts.replay_policy.counts == {"refused backend": 1}


def test_tenant_with_as_many_calls_as_it_may_have_is_busy(world: World, client: TestClient) -> None:
    world.registry.shortages["default"] = Reason.TENANT_FULL
    world.here = Here("fra", ("fra",), BOTH)
    assert [verb.tag for verb in parsed(post(client, "/twiml/voice").content)] == ["Reject"]
    assert world.parts.replay_policy.counts == {"refused tenant_full": 1}


def test_tenant_full_on_one_machine_may_have_room_on_another(world: World, client: TestClient) -> None:
    world.registry.shortages["default"] = Reason.TENANT_FULL
    world.here = Here("fra", HOMES, BOTH)
    assert post(client, "/twiml/voice").headers["fly-replay"].startswith('region="iad,')
    assert world.parts.replay_policy.counts == {"sent_on tenant_full": 1}


def test_tenant_full_on_all_machines_is_busy_at_once(world: World, client: TestClient) -> None:
    world.registry.shortages["default"] = Reason.TENANT_FULL_EVERYWHERE
    world.here = Here("fra", HOMES, BOTH)
    assert [verb.tag for verb in parsed(post(client, "/twiml/voice").content)] == ["Reject"]
    assert world.parts.replay_policy.counts == {"refused tenant_full_everywhere": 1}


def test_every_webhook_of_a_call_is_counted_once_by_its_outcome(world: World, client: TestClient) -> None:
    post(client, "/twiml/voice")
    assert world.parts.replay_policy.counts == {"taken call": 1}
    post(client, "/twiml/voice")  # the same answer
    post(client, "/twiml/voice/eu")
    assert world.parts.replay_policy.counts == {"taken call": 1, "refused zone_not_the_tenants": 1}
    post(world.client(answers_max=0), "/twiml/voice")
    assert world.parts.replay_policy.counts["refused too_many_answers"] == 1
    assert world.parts.replay_policy.counts["taken call"] == 1


def test_unknown_number_hears_a_sentence_and_is_counted(world: World, client: TestClient) -> None:
    world.plan = None
    answer = post(client, "/twiml/voice")
    assert [verb.tag for verb in parsed(answer.content)] == ["Say", "Hangup"]
    assert world.parts.replay_policy.counts == {"refused unknown_number": 1}


def test_apology_goes_on_to_the_fallback_number(world: World, client: TestClient) -> None:
    world.plan = Plan(fallback_number="+4930999")
    world.registry.endings[CALL] = EndReason.BACKEND_LOST
    document = parsed(post(client, "/twiml/after", CALL_FIELDS | {"CallStatus": "in-progress"}).content)
    assert [(verb.tag, verb.text) for verb in document][1:] == [("Dial", "+4930999"), ("Hangup", None)]


# --- What is asked afterwards ------------------------------------------------------------------------

AFTER = CALL_FIELDS | {"CallStatus": "in-progress"}


def test_call_that_another_machine_had_is_asked_for_where_it_was_answered(
    world: World, client: TestClient
) -> None:
    world.here = Here("fra", HOMES, BOTH)
    answer = post(client, "/twiml/after/global/syd", AFTER)
    assert answer.headers["fly-replay"].startswith('region="syd,iad,lax,gru,nrt";')


def test_call_of_the_eu_is_asked_for_in_the_eu_alone(abroad: World, client: TestClient) -> None:
    answer = post(client, "/twiml/after/eu/fra", AFTER)
    assert answer.headers["fly-replay"].startswith("region=fra;")


def test_unknown_call_ends_in_a_sentence(world: World, client: TestClient) -> None:
    world.here = Here("fra", ("fra", "iad"), BOTH)
    by_iad = replay_policy("iad").replay_headers(
        Arrival("global"), Replay(("fra",), Reason.NOT_HERE), signed_after()
    )
    answer = post(client, "/twiml/after/global/iad", AFTER, headers={"Fly-Replay-Src": state_of(by_iad)})
    assert [verb.tag for verb in parsed(answer.content)] == ["Say", "Hangup"]


def signed_after() -> str:
    return signature(BASE + "/twiml/after/global/iad", AFTER)


def state_of(header: dict[str, str]) -> str:
    return next(field for field in header["fly-replay"].split(";") if field.startswith("state="))


def test_call_that_is_known_here_is_answered_here(world: World, client: TestClient) -> None:
    world.here = Here("fra", HOMES, BOTH, draining=True)
    world.registry.endings[CALL] = EndReason.AGENT_HUNG_UP
    assert [verb.tag for verb in parsed(post(client, "/twiml/after/global/iad", AFTER).content)] == ["Hangup"]


@pytest.mark.parametrize("path", ["/twiml/status/eu", "/twiml/stream/eu"])
def test_news_of_a_call_of_the_eu_is_sent_there_unread(abroad: World, path: str) -> None:
    answer = abroad.client().post(path, content=b"From=%2B4930123456")
    assert answer.headers["fly-replay"].startswith("region=fra;")


@pytest.mark.parametrize("path", ["/twiml/status", "/twiml/after"])
def test_callback_of_an_eu_tenant_goes_to_the_eu_without_a_zone_in_its_url(
    abroad: World, client: TestClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level("DEBUG", "nearcall.twiml")
    abroad.plan = Plan(tenant="acme", zone="eu")
    assert post(client, path, AFTER).headers["fly-replay"].startswith("region=fra;")
    came_back = post(client, path, AFTER, headers={"Fly-Replay-Failed": "reason=timeout"})
    assert [verb.tag for verb in parsed(came_back.content)] == ["Say", "Hangup"]
    logged = str([line.__dict__ for line in caplog.records])
    assert len(caplog.records) == 2
    assert CALL not in logged
    assert "acme" not in logged


def test_refusal_outside_its_zone_does_not_log_whose_call_it_is(
    abroad: World, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    abroad.plan = Plan(tenant="acme", zone="eu")
    post(client, "/twiml/voice/global")
    [line] = caplog.records
    assert (line.__dict__["reason"], line.__dict__["zone"]) == ("zone_not_the_tenants", "global")
    assert CALL not in str(line.__dict__)
    assert "acme" not in str(line.__dict__)


def test_news_of_a_call_stays_in_the_zone_it_was_answered_in(world: World, client: TestClient) -> None:
    """Its tenant may have moved meanwhile: what became of the call is known where it was."""
    world.here = Here("iad", HOMES, BOTH)
    world.plan = Plan(zone="eu")
    world.registry.endings[CALL] = EndReason.AGENT_HUNG_UP
    assert [verb.tag for verb in parsed(post(client, "/twiml/after/global/iad", AFTER).content)] == ["Hangup"]


# --- Upgrades ----------------------------------------------------------------------------------------


def test_stream_is_sent_on_by_a_machine_that_drains() -> None:
    at_gate = gate(deployed=HOMES, draining=True)
    replay_headers = at_gate.admit(TARGET, headers(sign(TARGET)), NOW_S)
    assert isinstance(replay_headers, ReplayAnswer)
    assert replay_headers.headers["fly-replay"].startswith('region="iad,')
    assert replay_headers.reason == "draining"


def test_stream_that_came_back_is_refused() -> None:
    at_gate = gate(deployed=HOMES, draining=True)
    came_back = headers(sign(TARGET), **{"Fly-Replay-Failed": "reason=timeout"})
    assert at_gate.admit(TARGET, came_back, NOW_S) == Refusal(503, "draining")


def test_trail_tells_edge_and_who_sent_it_on() -> None:
    state = state_of(
        replay_policy("iad").replay_headers(Arrival("global"), Replay(("fra",), Reason.FULL), sign(TARGET))
    )
    way = headers(sign(TARGET), **{"Fly-Region": "ewr", "Fly-Replay-Src": f"instance=i1;region=iad;t=1;{state}"})
    admission = gate().admit(TARGET, way, NOW_S)
    assert isinstance(admission, Admission)
    assert admission.trail == Route("ewr", "fra", "us1", ("iad",))


def test_stream_whose_backend_failed_here_is_replayed_if_it_can_be() -> None:
    elsewhere, nowhere = (
        gate(backend_failed=lambda _ticket: True, deployed=regions) for regions in (HOMES, ("fra",))
    )
    replay_headers = elsewhere.admit(TARGET, headers(sign(TARGET)), NOW_S)
    assert isinstance(replay_headers, ReplayAnswer)
    assert replay_headers.reason == "backend"
    assert isinstance(nowhere.admit(TARGET, headers(sign(TARGET)), NOW_S), Admission)
