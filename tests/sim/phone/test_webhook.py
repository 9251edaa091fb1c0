"""Twilio's HTTP side: what is requested, how it is signed, when it is given up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest

from app.sim.phone.errors import (
    PhoneError,
    WebhookBrokenError,
    WebhookStatusError,
    WebhookTimeoutError,
    WebhookUnreachableError,
)
from app.sim.phone.options import PhoneOptions, Signing
from app.sim.phone.phone import Phone
from app.sim.phone.webhook import Addresses, Retries, Signer, Webhooks
from tests.sim.echo_server import Application, Reply, Seen, hang_for_ever, running

pytestmark = pytest.mark.anyio

FORM = {"CallSid": "CA1", "FromCity": "", "From": "+49 30", "Zuruf": "äß&=+"}


@pytest.fixture
async def application() -> AsyncIterator[Application]:
    async with running(Application({"/voice": Reply("<Response/>")})) as serving:
        yield serving


def webhooks(url: str, public_url: str | None = None, **changes: Any) -> Webhooks:
    options = PhoneOptions(url, "12345", public_url=public_url, **changes)
    return Webhooks(options, Addresses(url, public_url), Signer("12345"))


async def ask(application: Application, method: str = "POST", path: str = "/voice", **changes: Any) -> Seen:
    """One request; returns what the application saw."""
    client = webhooks(application.http_url, **changes)
    try:
        await client.request(method, application.http_url + path, FORM)
    finally:
        await client.aclose()
    return application.seen[-1]


@pytest.mark.parametrize(("region", "sent"), [(None, None), ("fra", "fra")])
async def test_request_asks_for_a_region_when_one_is_wanted(
    application: Application, region: str | None, sent: str | None
) -> None:
    seen = await ask(application, prefer_region=region)
    assert seen.headers.get("fly-prefer-region") == sent


@pytest.mark.parametrize(
    ("url", "form", "signature"),
    # twilio.md 3.2, Auth Token 12345
    [
        (
            "https://voice.example.com/twilio/voice",
            {
                "AccountSid": "AC" + "0" * 32,
                "CallSid": "CA" + "1" * 32,
                "From": "+4930123456",
                "FromCity": "",
                "To": "+4930654321",
            },
            "UERsNNhyPRbVbr6e8nzdYDezUds=",
        ),
        ("https://voice.example.com/twilio/voice", {}, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ="),
        ("https://user:pw@voice.example.com:8443/twilio/voice", {}, "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ="),
        ("wss://voice.example.com/media", {}, "jFDHVhI8XO69C49uXR3xmdZPylY="),
        ("wss://voice.example.com/media/", {}, "BXF4dPv/qKwfALEQ/o2fVPPvK/c="),
        ("wss://voice.example.com:443/media", {}, "zT3E7J41/O0MIJ8mFRuffODYWF4="),
    ],
)
def test_signature_is_the_reference_one(url: str, form: dict[str, str], signature: str) -> None:
    assert Signer("12345").headers("right", url, form) == {"X-Twilio-Signature": signature}


@pytest.mark.parametrize(("signing", "count"), [("wrong", 1), ("none", 0)])
def test_signature_can_be_wrong_or_missing(signing: Signing, count: int) -> None:
    headers = Signer("12345").headers(signing, "https://voice.example.com/twilio/voice", {})
    assert len(headers) == count
    assert headers.get("X-Twilio-Signature") != "bzRjwRX9HXMr3YLXbRw0Tn4DXSQ="


@pytest.mark.parametrize(
    ("url", "dialled"),
    [
        ("https://voice.example.com/a/b?c=d", "http://127.0.0.1:8080/a/b?c=d"),
        ("https://voice.example.com:443/a", "http://127.0.0.1:8080/a"),
        ("https://VOICE.example.com/a", "http://127.0.0.1:8080/a"),
        ("wss://voice.example.com/media/t", "ws://127.0.0.1:8080/media/t"),
        ("wss://voice.example.com:8443/media/t", "wss://voice.example.com:8443/media/t"),
        ("https://other.example.com/a", "https://other.example.com/a"),
    ],
)
def test_public_host_is_dialled_at_the_local_address(url: str, dialled: str) -> None:
    assert Addresses("http://127.0.0.1:8080/voice", "https://voice.example.com").dial(url) == dialled


def test_webhook_is_known_by_its_public_url_and_keeps_its_overrides() -> None:
    addresses = Addresses("http://127.0.0.1:8080/voice?a=b#rc=2", "https://voice.example.com")
    assert addresses.webhook_url == "https://voice.example.com/voice?a=b#rc=2"


@pytest.mark.parametrize("url", ["", "voice.example.com", "ftp://a.example", "http://", "http://a.example:port/"])
def test_url_that_is_none_is_refused_before_the_call(url: str) -> None:
    with pytest.raises(PhoneError, match="is not a"):
        Addresses(url, None)


async def test_headers_are_those_twilio_sends(application: Application) -> None:
    seen = await ask(application, home_region="ie1")
    token = seen.headers.pop("I-Twilio-Idempotency-Token")
    assert len(token) == 36
    assert seen.headers.pop("X-Twilio-Signature").endswith("=")
    assert seen.headers == {
        "Host": application.http_url.removeprefix("http://"),
        "User-Agent": "TwilioProxy/1.1",
        "Accept": "*/*",
        "Connection": "close",
        "X-Home-Region": "ie1",
        "Content-Type": "application/x-www-form-urlencoded; charset=UTF-8",
        "Content-Length": "63",
    }


async def test_form_arrives_with_its_empty_fields(application: Application) -> None:
    assert (await ask(application)).form == FORM


async def test_get_puts_the_fields_into_the_query_and_signs_it(application: Application) -> None:
    seen = await ask(application, "GET", "/voice?a=b")
    assert seen.form == {"a": "b", **FORM}
    signed = Signer("12345").headers("right", application.http_url + seen.target, {})
    assert seen.headers["X-Twilio-Signature"] == signed["X-Twilio-Signature"]


async def test_fragment_is_neither_sent_nor_signed(application: Application) -> None:
    seen = await ask(application, path="/voice#rc=2&rp=all")
    assert seen.target == "/voice"
    signed = Signer("12345").headers("right", f"{application.http_url}/voice", FORM)
    assert seen.headers["X-Twilio-Signature"] == signed["X-Twilio-Signature"]


@pytest.mark.parametrize("path", ["//voice", "/a/../voice", "/v%6fice", "/voice;a?b=%20%2f"])
async def test_path_is_sent_byte_for_byte(application: Application, path: str) -> None:
    with contextlib.suppress(WebhookStatusError):
        await ask(application, path=path)
    assert application.seen[0].target == path


async def test_public_host_is_named_and_signed_while_another_address_is_dialled(application: Application) -> None:
    client = webhooks(application.http_url, "https://voice.example.com")
    await client.request("POST", "https://voice.example.com/voice", FORM)
    await client.aclose()
    (seen,) = application.seen
    signed = Signer("12345").headers("right", "https://voice.example.com/voice", FORM)
    assert seen.headers["Host"] == "voice.example.com"
    assert seen.headers["X-Twilio-Signature"] == signed["X-Twilio-Signature"]


async def test_cookies_are_kept_within_a_call(application: Application) -> None:
    application.webhooks["/first"] = Reply(headers={"Set-Cookie": "session=1; Path=/"})
    client = webhooks(application.http_url)
    await client.request("POST", f"{application.http_url}/first", {})
    await client.request("POST", f"{application.http_url}/voice", {})
    await client.aclose()
    assert application.seen[1].headers["Cookie"] == "session=1"


@pytest.mark.parametrize(("status", "method"), [(307, "POST"), (302, "GET")])
async def test_http_redirect_is_followed_and_signed_anew(
    application: Application, status: int, method: str
) -> None:
    application.webhooks["/old"] = Reply(status=status, headers={"Location": "/voice"})
    seen = await ask(application, path="/old")
    assert (seen.method, seen.path) == (method, "/voice")
    signed_form = FORM if method == "POST" else {}
    signed = Signer("12345").headers("right", application.http_url + seen.target, signed_form)
    assert seen.headers["X-Twilio-Signature"] == signed["X-Twilio-Signature"]


async def test_circle_of_http_redirects_is_given_up(application: Application) -> None:
    application.webhooks["/round"] = Reply(status=307, headers={"Location": "/round"})
    with pytest.raises(WebhookStatusError, match="answered 307"):
        await ask(application, path="/round")
    assert len(application.seen) == 10


@pytest.mark.parametrize("status", [403, 404, 500, 503])
async def test_error_status_is_raised_with_the_start_of_its_body_without_a_retry(
    application: Application, status: int
) -> None:
    application.webhooks["/voice"] = Reply("signature does\nnot match " + "x" * 1000, status)
    with pytest.raises(WebhookStatusError, match=f"answered {status}: signature does not match x+$") as caught:
        await ask(application)
    assert caught.value.status == status
    assert len(str(caught.value)) < 300
    assert len(application.seen) == 1


async def test_silent_application_is_given_up_after_the_limit(application: Application) -> None:
    application.webhooks["/voice"] = hang_for_ever
    with pytest.raises(WebhookTimeoutError, match=r"no answer within 0\.05 s"):
        await ask(application, webhook_limit_s=0.05)


async def test_body_without_end_is_cut_off(application: Application) -> None:
    application.webhooks["/voice"] = Reply("x" * 1_000_000)
    client = webhooks(application.http_url)
    answer = await client.request("POST", f"{application.http_url}/voice", {})
    await client.aclose()
    assert 64 * 1024 < len(answer.body) < 200_000


async def test_closed_port_is_named() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    client = webhooks(f"http://127.0.0.1:{port}/voice")
    with pytest.raises(WebhookUnreachableError, match=f"no connection to http://127.0.0.1:{port}/voice"):
        await client.request("POST", f"http://127.0.0.1:{port}/voice", {})
    await client.aclose()


async def test_second_attempt_carries_the_token_of_the_first(application: Application) -> None:
    tokens: list[str] = []

    class FirstConnectionFails(Webhooks):
        async def _once(self, method: str, url: str, form: Mapping[str, str], token: str) -> httpx.Response:
            tokens.append(token)
            if len(tokens) == 1:
                raise WebhookUnreachableError(url, "no connection")
            return await super()._once(method, url, form, token)

    settings = PhoneOptions(application.http_url, "12345")
    client = FirstConnectionFails(settings, Addresses(application.http_url, None), Signer("12345"))
    await client.request("POST", f"{application.http_url}/voice", {})
    await client.aclose()
    assert tokens == [application.seen[0].headers["I-Twilio-Idempotency-Token"]] * 2


async def test_connection_that_breaks_after_the_request_is_not_tried_again() -> None:
    accepted: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(await reader.readline())
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/voice"
        client = webhooks(url)
        with pytest.raises(WebhookBrokenError, match="broke off its answer"):
            await client.request("POST", url, {})
        await client.aclose()
    assert accepted == [b"POST /voice HTTP/1.1\r\n"]


async def test_https_to_a_server_without_tls_is_unreachable() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/voice"
        client = webhooks(url)
        with pytest.raises(WebhookUnreachableError, match="SSL"):
            await client.request("POST", url, {})
        await client.aclose()


@pytest.mark.parametrize(
    ("fragment", "retries"),
    [
        ("", Retries(1, frozenset({"ct"}))),
        ("rc=2&rp=ct,rt,5xx", Retries(2, frozenset({"ct", "rt", "5xx"}))),
        ("ct=2000&rc=0", Retries(0, frozenset({"ct"}))),
        ("rp=all", Retries(1, frozenset({"ct", "rt", "4xx", "5xx"}))),
    ],
)
def test_fragment_says_how_often_a_webhook_is_tried_again(fragment: str, retries: Retries) -> None:
    assert Retries.of(fragment) == retries


async def test_webhook_is_asked_again_after_a_503_when_its_fragment_says_so() -> None:
    replies = iter([Reply(status=503), Reply(status=502), Reply("<Response><Hangup/></Response>")])

    async def voice(_seen: Seen) -> Reply:
        return next(replies)

    async with running(Application({"/voice": voice})) as application:
        async with Phone(PhoneOptions(f"{application.http_url}/voice#rc=2&rp=ct,5xx", "t" * 32)) as phone:
            await phone.dial()
            await phone.over()
        assert len(application.requests("/voice")) == 3
        assert len({seen.headers["I-Twilio-Idempotency-Token"] for seen in application.requests("/voice")}) == 1
