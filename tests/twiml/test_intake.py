"""What no webhook lets in, whichever it is."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.types import Message, Receive

from tests.twiml.world import (
    ACCOUNT,
    BASE,
    CALL,
    CALL_FIELDS,
    CALLED,
    CALLER,
    FORM_HEADERS,
    IE1,
    OTHER_BASE,
    STRANGER,
    World,
    post,
    signature,
    signed,
)
from twiml import intake

WEBHOOKS = ["/twiml/voice", "/twiml/voice/global", "/twiml/after", "/twiml/status", "/twiml/stream"]
every_webhook = pytest.mark.parametrize("path", WEBHOOKS)


def without(name: str) -> dict[str, str]:
    return {field: value for field, value in CALL_FIELDS.items() if field != name}


@every_webhook
@pytest.mark.parametrize(("token", "base"), [(IE1, BASE), (IE1, OTHER_BASE)])
def test_twilio_is_let_in_by_any_token_and_name_of_ours(
    client: TestClient, path: str, token: str, base: str
) -> None:
    assert post(client, path, token=token, base=base).is_success


@every_webhook
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed(client: TestClient, path: str, method: str) -> None:
    answer = client.request(method, path, headers={"X-Twilio-Signature": signature(BASE + path, {})})
    assert answer.status_code == 405


@every_webhook
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(FORM_HEADERS, id="no signature"),
        pytest.param(FORM_HEADERS | {"X-Twilio-Signature": ""}, id="empty signature"),
        pytest.param(signed(BASE + "/twiml/other", CALL_FIELDS), id="another path"),
        pytest.param(signed("https://evil.example.com/twiml/voice", CALL_FIELDS), id="another host"),
        pytest.param(signed(BASE + "/twiml/voice?zone=eu", CALL_FIELDS), id="another query"),
        pytest.param(signed(BASE + "/twiml/voice", without("FromCity")), id="a blank left out"),
        pytest.param(signed(BASE + "/twiml/voice", CALL_FIELDS | {"To": "+1"}), id="another number"),
    ],
)
def test_an_unsigned_webhook_is_refused_without_a_word(
    world: World, client: TestClient, path: str, headers: dict[str, str]
) -> None:
    answer = client.post(path, data=CALL_FIELDS, headers=headers)
    assert (answer.status_code, answer.content) == (403, b"")
    assert world.desk.expected == []


@every_webhook
def test_the_token_of_a_stranger_is_refused(client: TestClient, path: str) -> None:
    assert post(client, path, token=STRANGER).status_code == 403


@every_webhook
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example.com"},
        {"X-Forwarded-Host": "evil.example.com", "X-Forwarded-Proto": "http", "X-Forwarded-Port": "80"},
        {"Forwarded": "host=evil.example.com;proto=http"},
        {"X-Original-URL": "/twiml/other", "X-Rewrite-URL": "/twiml/other"},
    ],
)
def test_forged_headers_change_neither_the_check_nor_the_answer(
    client: TestClient, path: str, headers: dict[str, str]
) -> None:
    answer = post(client, path, headers=headers)
    assert answer.is_success
    assert b"evil" not in answer.content


def test_a_forged_host_does_not_make_a_foreign_signature_fit(client: TestClient) -> None:
    answer = post(client, "/twiml/voice", base="https://evil.example.com", headers={"Host": "evil.example.com"})
    assert answer.status_code == 403


@every_webhook
@pytest.mark.parametrize("body", [b"To=\xe9\xff", b"To=%E9", b"\x00" * 99, b"&&&=&=", b"%", b"a" * 65_536])
def test_garbage_is_refused_like_anything_unsigned(client: TestClient, path: str, body: bytes) -> None:
    headers = signed(BASE + path, CALL_FIELDS)
    assert client.post(path, content=body, headers=headers).status_code == 403


@every_webhook
def test_a_huge_body_is_refused_before_anything_is_checked(client: TestClient, path: str) -> None:
    fields = CALL_FIELDS | {"SipHeader_X-Long": "x" * 65_536}
    assert post(client, path, fields).status_code == 413


@every_webhook
def test_a_signed_body_that_is_not_a_form_is_an_unsupported_type(client: TestClient, path: str) -> None:
    target = path + "?bodySHA256=44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    headers = {"X-Twilio-Signature": signature(BASE + target, {}), "Content-Type": "application/json"}
    assert client.post(target, content=b"{}", headers=headers).status_code == 415


@every_webhook
def test_a_signed_request_without_a_body_lacks_its_call(client: TestClient, path: str) -> None:
    headers = {"X-Twilio-Signature": signature(BASE + path, {})}
    assert client.post(path, headers=headers).status_code == 400


@every_webhook
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(without("CallSid"), id="no call"),
        pytest.param(without("AccountSid"), id="no account"),
        CALL_FIELDS | {"CallSid": ""},
        CALL_FIELDS | {"CallSid": "CA" + "0" * 31},
        CALL_FIELDS | {"CallSid": CALL + "\n"},
        CALL_FIELDS | {"CallSid": "AC" + "0" * 32},
        CALL_FIELDS | {"CallSid": "CA" + "٣" * 32},
        CALL_FIELDS | {"CallSid": "../../etc/passwd"},
        CALL_FIELDS | {"CallSid": [CALL, CALL]},
        CALL_FIELDS | {"CallSid": [CALL, "CA" + "f" * 32]},
        CALL_FIELDS | {"AccountSid": "AC"},
        CALL_FIELDS | {"AccountSid": [ACCOUNT, "AC" + "f" * 32]},
    ],
)
def test_a_signed_webhook_without_one_good_call_and_account_is_a_bad_request(
    world: World, client: TestClient, path: str, fields: dict[str, str | Sequence[str]]
) -> None:
    assert post(client, path, fields).status_code == 400
    assert world.desk.expected == []


@every_webhook
def test_another_account_is_refused_although_signed(client: TestClient, path: str) -> None:
    answer = post(client, path, CALL_FIELDS | {"AccountSid": "AC" + "f" * 32})
    assert (answer.status_code, answer.content) == (403, b"")


def test_without_a_configured_account_every_signed_one_is_ours(world: World) -> None:
    client = world.client(account_sid=None)
    assert post(client, "/twiml/voice", CALL_FIELDS | {"AccountSid": "AC" + "f" * 32}).is_success


def test_a_repeated_number_is_signed_and_taken_for_withheld(world: World, client: TestClient) -> None:
    post(client, "/twiml/voice", CALL_FIELDS | {"From": ["+1", "+2"]})
    assert [caller for _, _, caller, _ in world.desk.expected] == [""]


@pytest.mark.parametrize("path", ["/twiml/voice/", "/twiml/after/", "/twiml", "/twiml/voice/global/x"])
def test_a_path_nearly_ours_is_not_found_and_not_redirected(client: TestClient, path: str) -> None:
    assert post(client, path).status_code == 404


@pytest.mark.parametrize("path", WEBHOOKS)
def test_refusals_are_logged_without_numbers_tickets_or_tokens(
    client: TestClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    post(client, path, token=STRANGER)
    record = caplog.records[0]
    assert (record.name, record.__dict__["status"], record.__dict__["reason"]) == (
        "nearcall.twiml",
        403,
        "signature",
    )
    said = str(record.__dict__)
    assert CALLER not in said
    assert CALLED not in said


@pytest.mark.anyio
async def test_the_path_is_checked_as_it_came_not_as_it_reads(world: World) -> None:
    """Escaped, `%67lobal` routes like `global`, but Twilio signed what it sent."""
    path = "/twiml/voice/%67lobal"
    right = signed(BASE + path, {"CallSid": CALL, "AccountSid": ACCOUNT})
    wrong = signed(BASE + "/twiml/voice/global", {"CallSid": CALL, "AccountSid": ACCOUNT})
    body = f"CallSid={CALL}&AccountSid={ACCOUNT}".encode()
    assert await ask(world.app(), path, right, replay(body)) == 200
    assert await ask(world.app(), path, wrong, replay(body)) == 403


@pytest.mark.anyio
async def test_the_query_is_checked_as_it_came(world: World) -> None:
    target = "/twiml/voice?b=%7E&a=~+%20&&"
    fields = {"CallSid": CALL, "AccountSid": ACCOUNT}
    body = f"CallSid={CALL}&AccountSid={ACCOUNT}".encode()
    assert await ask(world.app(), target, signed(BASE + target, fields), replay(body)) == 200


@pytest.mark.anyio
async def test_a_body_in_many_pieces_is_bounded_too(world: World) -> None:
    pieces = replay(*[b"x" * 1_000] * 100)
    assert await ask(world.app(), "/twiml/voice", FORM_HEADERS, pieces) == 413


@pytest.mark.anyio
async def test_a_body_cut_off_by_the_peer_is_no_server_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await ask(world.app(), "/twiml/voice", FORM_HEADERS, replay(b"x", cut=True))
    assert caplog.records[0].__dict__["reason"] == "body_cut"


@pytest.mark.anyio
async def test_a_body_that_never_ends_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BODY_WAIT_S", 0.0)
    async with asyncio.timeout(10):
        assert await ask(world.app(), "/twiml/voice", FORM_HEADERS, never) == 408


def replay(*pieces: bytes, cut: bool = False) -> Receive:
    """An ASGI peer that sends these pieces, and then ends its body or goes away."""

    async def messages() -> AsyncIterator[Message]:
        for piece in pieces:
            yield {"type": "http.request", "body": piece, "more_body": True}
        yield {"type": "http.disconnect"} if cut else {"type": "http.request", "body": b""}

    waiting = messages()
    return lambda: anext(waiting)


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def ask(app: Starlette, target: str, headers: dict[str, str], receive: Receive) -> int:
    """The status of a POST to this exact target: a client library would tidy it."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "method": "POST",
        "path": path.replace("%67", "g"),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    status: int = sent[0]["status"]
    return status
