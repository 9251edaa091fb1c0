import base64
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from app.bridge.ticket import TICKET_VALID_S, Continuation, Nonces, Ticket
from app.call.plan import Plan
from app.regions.routing import Reason
from tests.twiml.grammar import parsed
from tests.twiml.world import (
    BASE,
    CALL,
    CALL_FIELDS,
    CALLED,
    CALLER,
    IE1,
    NOW_S,
    OTHER_BASE,
    OTHER_CALL,
    World,
    post,
    signature,
)
from twiml import documents
from twiml.gate import Admission, UpgradeGate

IDEMPOTENCY = "I-Twilio-Idempotency-Token"


def ticket_text(answer: httpx2.Response) -> str:
    url = parsed(answer.content)[0][0].attrib["url"]
    return urlsplit(url).path.removeprefix("/media/")


def ticket_of(world: World, answer: httpx2.Response) -> Ticket:
    return world.tickets.read(ticket_text(answer), world.now_s)


def verbs(answer: httpx2.Response) -> list[str]:
    assert answer.status_code == 200
    return [verb.tag for verb in parsed(answer.content)]


@pytest.mark.parametrize("path", ["/twiml/voice", "/twiml/voice/global"])
@pytest.mark.parametrize("base", [BASE, OTHER_BASE])
def test_a_call_is_connected_under_the_name_it_came_to(
    world: World, client: TestClient, path: str, base: str
) -> None:
    answer = post(client, path, base=base)
    connect = parsed(answer.content)[0]
    after, _, continuation = connect.attrib["action"].rpartition("/")
    assert after == base + "/twiml/after/global/fra"
    began = Continuation(CALL, "default", "global", 0, int(NOW_S) * 1_000, "en")
    assert world.continuations.read(continuation, NOW_S) == began
    assert connect[0].attrib["url"].startswith(base.replace("https", "wss") + "/media/")
    assert answer.headers["cache-control"] == "no-store"


def test_a_call_is_announced_with_its_ticket(world: World, client: TestClient) -> None:
    answer = post(client, "/twiml/voice")
    ticket = ticket_of(world, answer)
    assert ticket == Ticket(CALL, "default", "global", int(NOW_S), "nonce-1", caller=CALLER, called=CALLED)
    assert world.registry.expected == [(ticket, world.plan, CALLER, CALLED)]
    assert set(world.dialled) == {CALLED}


@pytest.mark.parametrize(
    ("query", "backend"),
    [
        ("?backend=voicelive", "voicelive"),
        ("?backend=", ""),
        ("?backend=telepathy", ""),
        ("?Backend=voicelive", ""),
    ],
)
def test_a_numbers_url_may_ask_for_a_backend_and_an_unknown_one_is_ignored(
    world: World, client: TestClient, query: str, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = post(client, f"/twiml/voice{query}")
    assert ticket_of(world, answer).backend == backend
    warned = "unknown_backend_ignored" in caplog.messages
    assert warned is ("telepathy" in query)
    assert [vars(record).get("asked") for record in caplog.records if warned] == ["telepathy"] * warned


def test_the_ticket_of_the_answer_opens_the_gate(world: World, client: TestClient) -> None:
    url = parsed(post(client, "/twiml/voice").content)[0][0].attrib["url"]
    gate = UpgradeGate(
        world.tickets,
        Nonces(),
        world.signatures,
        world.parts.replay_policy,
        full=lambda: False,
        expected=lambda _: False,
        backend_failed=lambda _: False,
    )
    headers = {"X-Twilio-Signature": signature(url, {}, IE1)}
    admission = gate.admit(urlsplit(url).path, headers.get, world.now_s + 1)
    assert isinstance(admission, Admission)
    assert (admission.ticket.call_sid, admission.twilio_region) == (CALL, "ie1")


def test_the_answer_has_no_number_in_it_not_even_encoded(client: TestClient) -> None:
    answer = post(client, "/twiml/voice")
    assert "4930" not in answer.text
    payload = ticket_text(answer).rpartition(".")[0]
    assert b"4930" not in base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))


@pytest.mark.parametrize("number", ["anonymous", "+266696687", "sip:alice@example.com", "client:bob", ""])
def test_a_caller_without_a_phone_number_is_answered_too(world: World, client: TestClient, number: str) -> None:
    assert verbs(post(client, "/twiml/voice", CALL_FIELDS | {"From": number})) == ["Connect"]
    assert world.registry.expected[0][2] == number


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([{IDEMPOTENCY: "a"}, {IDEMPOTENCY: "a"}], id="retried by Twilio"),
        pytest.param([{IDEMPOTENCY: "a"}, {IDEMPOTENCY: "b"}], id="sent anew"),
        pytest.param([{}, {}], id="no token"),
    ],
)
def test_the_same_webhook_again_gets_the_same_bytes_and_one_announcement(
    world: World, client: TestClient, headers: list[dict[str, str]]
) -> None:
    first = post(client, "/twiml/voice", headers=headers[0])
    world.now_s += 10
    world.full()
    again = post(client, "/twiml/voice", headers=headers[1])
    assert again.content == first.content
    assert len(world.registry.expected) == 1


@pytest.mark.parametrize("path", ["/twiml/voice", "/twiml/voice/global"])
def test_a_repeated_webhook_is_answered_here_although_there_is_no_room(
    world: World, client: TestClient, path: str
) -> None:
    """Sent on, it would be announced twice: two sessions with a backend for one call."""
    first = post(client, path)
    world.full("iad", "nrt")
    assert post(client, path).content == first.content
    assert post(client, path, CALL_FIELDS | {"CallSid": OTHER_CALL}).headers["fly-replay"].startswith("region=")


def test_an_answer_is_not_given_again_once_the_tenant_is_in_another_zone(world: World, client: TestClient) -> None:
    post(client, "/twiml/voice")
    world.here = replace(world.here, usable=frozenset({"global", "eu"}))
    world.plan = Plan(zone="eu")
    assert ticket_of(world, post(client, "/twiml/voice")).zone == "eu"


def test_once_its_stream_was_taken_a_call_gets_a_new_ticket(world: World, client: TestClient) -> None:
    first = ticket_of(world, post(client, "/twiml/voice"))
    world.registry.taken.add(CALL)
    second = ticket_of(world, post(client, "/twiml/voice"))
    assert (first.nonce, second.nonce) == ("nonce-1", "nonce-2")
    assert len(world.registry.expected) == 2


def test_an_answer_is_not_given_again_after_its_ticket_is_over(world: World, client: TestClient) -> None:
    post(client, "/twiml/voice")
    world.now_s += TICKET_VALID_S
    assert ticket_of(world, post(client, "/twiml/voice")).nonce == "nonce-2"


def test_two_calls_get_two_tickets(world: World, client: TestClient) -> None:
    first = ticket_of(world, post(client, "/twiml/voice"))
    second = ticket_of(world, post(client, "/twiml/voice", CALL_FIELDS | {"CallSid": OTHER_CALL}))
    assert (first.call_sid, second.call_sid) == (CALL, OTHER_CALL)
    assert first.nonce != second.nonce


def test_without_room_a_call_is_busy_and_nothing_is_opened(world: World, client: TestClient) -> None:
    world.full()
    assert verbs(post(client, "/twiml/voice")) == ["Reject"]
    assert world.registry.expected == []


@pytest.mark.parametrize("state", [{"full": True}, {"crowded": True}, {"lagging": True}])
def test_tenant_may_prefer_its_sentence_to_a_busy_tone(
    world: World, client: TestClient, state: dict[str, Any]
) -> None:
    world.here = replace(world.here, deployed=("fra",), **state)
    assert verbs(post(client, "/twiml/voice")) == ["Reject"]
    world.plan = Plan(when_full="sorry", sorry="All our lines are busy.", fallback_number="+4930999")
    answer = post(client, "/twiml/voice")
    assert verbs(answer) == ["Say", "Dial", "Hangup"]
    assert "All our lines are busy." in answer.text
    assert world.registry.expected == []


def test_when_no_more_answers_can_be_remembered_calls_are_busy(world: World) -> None:
    client = world.client(answers_max=1)
    post(client, "/twiml/voice")
    assert verbs(post(client, "/twiml/voice", CALL_FIELDS | {"CallSid": OTHER_CALL})) == ["Reject"]
    assert len(world.registry.expected) == 1


@pytest.mark.parametrize(
    ("path", "plan", "reason"),
    [
        ("/twiml/voice/mars", Plan(), "zone_not_the_tenants"),
        ("/twiml/voice/mars", Plan(zone="mars"), "unknown_zone"),
        ("/twiml/voice/eu", Plan(zone="eu"), "backend"),
        ("/twiml/voice", Plan(zone="eu"), "backend"),
        ("/twiml/voice/global", Plan(zone="eu"), "zone_not_the_tenants"),
    ],
)
def test_a_zone_that_cannot_be_kept_ends_in_a_sentence(
    world: World, client: TestClient, caplog: pytest.LogCaptureFixture, *, path: str, plan: Plan, reason: str
) -> None:
    world.plan = replace(plan, language="de", sorry="Es tut uns leid.")
    answer = post(client, path)
    assert verbs(answer) == ["Say", "Hangup"]
    assert "Es tut uns leid." in answer.text
    assert world.registry.expected == []
    assert [record.__dict__["reason"] for record in caplog.records] == [reason]


def test_a_call_answered_for_one_zone_is_not_answered_again_for_another(world: World, client: TestClient) -> None:
    """A number's fallback URL may name another zone than its first one; the kept answer would leave it."""
    post(client, "/twiml/voice")
    assert verbs(post(client, "/twiml/voice/mars")) == ["Say", "Hangup"]


def test_a_call_is_logged_without_numbers_and_tickets(
    world: World, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nearcall.twiml")
    answer = post(client, "/twiml/voice", token=IE1)
    (record,) = [record for record in caplog.records if record.name == "nearcall.twiml"]
    assert (record.__dict__["call_sid"], record.__dict__["twilio_region"]) == (CALL, "ie1")
    ticket = urlsplit(parsed(answer.content)[0][0].attrib["url"]).path.removeprefix("/media/")
    assert not {CALLER[1:], CALLED[1:], ticket, IE1} & set(str(record.__dict__).replace("'", " ").split())


@pytest.mark.parametrize(
    ("language", "sentence", "voice"),
    [
        ("en", "This number is not in service.", "Polly.Joanna-Neural"),
        ("de-AT", "Diese Nummer ist nicht vergeben.", "Polly.Vicki-Neural"),
        ("ja", "この番号は現在使われておりません。", "Polly.Kazuha-Neural"),
        ("tlh", "This number is not in service.", "Polly.Joanna-Neural"),
    ],
)
def test_an_unknown_number_is_not_in_service_and_nothing_else_is_dialled(
    world: World, language: str, sentence: str, voice: str
) -> None:
    world.plan = None
    builtin = Plan(language=language, sorry="Please call again.", fallback_number="+4930999")
    answer = post(world.client(fallback_plan=builtin), "/twiml/voice").text
    assert sentence in answer
    assert f'voice="{voice}"' in answer
    assert "call again" not in answer
    assert "<Dial" not in answer


def test_a_number_of_a_tenant_that_cannot_be_used_hears_the_apology(world: World) -> None:
    world.plan = None
    answer = post(world.client(is_broken=lambda number: number == CALLED), "/twiml/voice").text
    assert Plan().sorry in answer
    assert world.parts.replay_policy.counts == {"refused tenant_unusable": 1}


def test_every_language_with_a_voice_has_the_not_in_service_sentence() -> None:
    for language in documents.VOICES:
        assert f'language="{language}"' in documents.not_in_service(language)


# --- What is recorded of a call that is not taken ------------------------------------------------------


def test_call_to_an_unknown_number_is_recorded_without_its_caller(world: World, client: TestClient) -> None:
    world.plan = None
    post(client, "/twiml/voice")
    assert world.registry.refusals == [("global", "", "unknown_number", "webhook unknown_number", "", CALLED)]


def test_call_beyond_its_tenants_limit_is_recorded(world: World, client: TestClient) -> None:
    world.here = replace(world.here, deployed=("fra",))
    for why in (Reason.TENANT_FULL, Reason.TENANT_FULL_EVERYWHERE):
        world.registry.shortages["default"] = why
        post(client, "/twiml/voice")
    assert world.registry.refusals == [
        ("global", "default", "tenant_full", "webhook tenant_full", CALLER, CALLED),
        ("global", "default", "tenant_full", "webhook tenant_full_everywhere", CALLER, CALLED),
    ]


def test_call_that_no_machine_has_room_for_is_recorded(world: World, client: TestClient) -> None:
    world.full()
    post(client, "/twiml/voice")
    assert world.registry.refusals == [("global", "default", "not_taken", "webhook full", CALLER, CALLED)]


def test_nothing_is_recorded_abroad_of_a_call_of_a_zone(world: World, client: TestClient) -> None:
    world.plan = Plan(tenant="acme", zone="eu")
    world.here = replace(world.here, region="iad", deployed=("iad",))
    post(client, "/twiml/voice")
    assert world.registry.refusals == []


def test_call_to_an_unusable_tenant_is_recorded_without_any_number(world: World) -> None:
    world.plan = None
    post(world.client(is_broken=lambda number: number == CALLED), "/twiml/voice")
    assert world.registry.refusals == [("global", "", "not_taken", "webhook tenant_unusable", "", "")]
