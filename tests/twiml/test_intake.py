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
from twiml.strangers import REFUSALS_MAX, SENDERS_MAX, WINDOW_S, Strangers

FORGED = FORM_HEADERS | {"X-Twilio-Signature": "A" * 27 + "="}
BODY = f"CallSid={CALL}&AccountSid={ACCOUNT}".encode()
SIGNED = signed(BASE + "/twiml/voice", {"CallSid": CALL, "AccountSid": ACCOUNT})
SOMEWHERE, ELSEWHERE = "93.184.216.34", "2606:2800:220:1::1"

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
    assert world.registry.expected == []


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
@pytest.mark.parametrize("body", [b"To=\xe9\xff", b"To=%E9", b"\x00" * 99, b"&&&=&=", b"%", b"a" * 16_384])
def test_garbage_is_refused_like_anything_unsigned(client: TestClient, path: str, body: bytes) -> None:
    headers = signed(BASE + path, CALL_FIELDS)
    assert client.post(path, content=body, headers=headers).status_code == 403


@every_webhook
def test_a_huge_body_is_refused_before_anything_is_checked(client: TestClient, path: str) -> None:
    fields = CALL_FIELDS | {"SipHeader_X-Long": "x" * 16_384}
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
def test_a_signed_webhook_needs_one_good_call_sid_and_account_sid(
    world: World, client: TestClient, path: str, fields: dict[str, str | Sequence[str]]
) -> None:
    assert post(client, path, fields).status_code == 400
    assert world.registry.expected == []


@every_webhook
def test_another_account_is_refused_although_signed(client: TestClient, path: str) -> None:
    answer = post(client, path, CALL_FIELDS | {"AccountSid": "AC" + "f" * 32})
    assert (answer.status_code, answer.content) == (403, b"")


def test_without_a_configured_account_every_signed_one_is_ours(world: World) -> None:
    client = world.client(account_sid=None)
    assert post(client, "/twiml/voice", CALL_FIELDS | {"AccountSid": "AC" + "f" * 32}).is_success


def test_a_repeated_number_is_signed_and_taken_for_withheld(world: World, client: TestClient) -> None:
    post(client, "/twiml/voice", CALL_FIELDS | {"From": ["+1", "+2"]})
    assert [caller for _, _, caller, _ in world.registry.expected] == [""]


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
    assert await ask(world.app(), "/twiml/voice", FORGED, pieces) == 413


@pytest.mark.anyio
async def test_a_body_cut_off_by_the_peer_is_no_server_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await ask(world.app(), "/twiml/voice", FORGED, replay(b"x", cut=True))
    assert caplog.records[0].__dict__["reason"] == "body_cut"


@pytest.mark.anyio
async def test_a_body_that_never_ends_is_given_up(world: World) -> None:
    async with asyncio.timeout(10):
        assert await ask(world.app(body_wait_s=0.0), "/twiml/voice", FORGED, never) == 408


@pytest.mark.anyio
async def test_a_body_is_not_read_when_nothing_could_have_signed_it(world: World) -> None:
    async with asyncio.timeout(10):
        assert await ask(world.app(), "/twiml/voice", FORM_HEADERS, never) == 403


@pytest.mark.anyio
async def test_a_body_that_says_it_is_too_long_is_not_read(world: World) -> None:
    async with asyncio.timeout(10):
        assert await ask(world.app(), "/twiml/voice", FORGED | {"Content-Length": "16385"}, never) == 413


@pytest.mark.anyio
async def test_of_many_slow_bodies_the_one_awaited_longest_makes_room(world: World) -> None:
    app = world.app()
    async with asyncio.timeout(10):
        slow = [asyncio.create_task(ask(app, "/twiml/voice", FORGED, never)) for _ in range(intake.BODIES_MAX + 9)]
        first, _ = await asyncio.wait(slow[:9])
        assert {each.result() for each in first} == {503}
        assert await ask(app, "/twiml/voice", SIGNED, replay(BODY)) == 200
        assert await slow[9] == 503
        assert not any(each.done() for each in slow[10:])
        for each in slow:
            each.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


# --- Unknown senders -------------------------------------------------------------------------------


async def sent(app: Starlette, headers: dict[str, str], client: str = SOMEWHERE, body: bytes = BODY) -> int:
    return await ask(app, "/twiml/voice", headers, replay(body), client=client)


@pytest.mark.anyio
async def test_sender_that_was_refused_too_often_is_refused_unread(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    app = world.app()
    for _ in range(REFUSALS_MAX):
        assert await sent(app, FORGED) == 403
    lines = len(caplog.records)
    async with asyncio.timeout(10):
        assert await ask(app, "/twiml/voice", FORGED, never, client=SOMEWHERE) == 429
    assert len(caplog.records) == lines  # one line said so when it began
    assert await sent(app, FORGED, "198.18.0.1") == 403
    assert await sent(app, FORGED, ELSEWHERE) == 403
    world.now_s += WINDOW_S
    assert await sent(app, FORGED) == 403


@pytest.mark.anyio
async def test_sender_of_a_signed_request_is_never_limited(world: World) -> None:
    app = world.app()
    assert await sent(app, SIGNED) == 200
    for _ in range(3 * REFUSALS_MAX):
        assert await sent(app, FORGED) == 403
    assert await sent(app, SIGNED) == 200


@pytest.mark.anyio
async def test_signed_requests_are_no_refusals_whatever_is_wrong_with_them(world: World) -> None:
    app = world.app()
    wrong = {"CallSid": "", "AccountSid": ACCOUNT}
    for _ in range(3 * REFUSALS_MAX):
        assert (
            await sent(app, signed(BASE + "/twiml/voice", wrong), body=f"CallSid=&AccountSid={ACCOUNT}".encode())
            == 400
        )


@pytest.mark.anyio
async def test_proxy_of_the_operators_is_not_limited(world: World) -> None:
    app = world.app()
    for address in ("127.0.0.1", "10.0.0.1", "172.17.0.1", "fd00::1"):
        assert {await sent(app, FORGED, address) for _ in range(2 * REFUSALS_MAX)} == {403}


@pytest.mark.anyio
async def test_on_fly_the_sender_is_whom_flys_proxy_names(world: World) -> None:
    app = world.app(on_fly=True)
    here, there = {"Fly-Client-IP": SOMEWHERE}, {"Fly-Client-IP": ELSEWHERE}
    for _ in range(REFUSALS_MAX):
        assert await sent(app, FORGED | here, "172.16.0.1") == 403
    assert await sent(app, FORGED | here, "172.16.0.2") == 429
    assert await sent(app, FORGED | there, "172.16.0.1") == 403


@pytest.mark.anyio
async def test_off_fly_a_stranger_cannot_name_another_sender(world: World) -> None:
    app = world.app()
    for count in range(REFUSALS_MAX):
        assert await sent(app, FORGED | {"Fly-Client-IP": f"198.51.101.{count}"}) == 403
    assert await sent(app, FORGED | {"Fly-Client-IP": ELSEWHERE}) == 429


def test_strangers_are_remembered_in_bounded_memory() -> None:
    strangers = Strangers()
    for count in range(3 * SENDERS_MAX):
        strangers.refused(f"bad-{count}", 0.0)
        strangers.signed(f"good-{count}", 0.0)
    assert (strangers.refused_senders, strangers.trusted_senders) == (SENDERS_MAX, SENDERS_MAX)


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
    raise AssertionError("never set")


async def ask(
    app: Starlette, target: str, headers: dict[str, str], receive: Receive, *, client: str = "127.0.0.1"
) -> int:
    """The status of a POST to this exact target: a client library would tidy it."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "method": "POST",
        "path": path.replace("%67", "g"),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "client": (client, 40_000),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    status: int = sent[0]["status"]
    return status
