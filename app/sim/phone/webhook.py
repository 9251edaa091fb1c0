"""Twilio's HTTP side: signed requests to the application, with Twilio's headers, limits and retry.

Form fields go in; an answer or a WebhookError comes out. Sources: twilio.md 2.4, 2.6, 3.
Signatures are made by Twilio's own library, so a mistake in our checking cannot be repeated here.
"""

import asyncio
import contextlib
import functools
import ssl
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import SplitResult, parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import httpx
from twilio.request_validator import RequestValidator

from app.sim.phone.errors import (
    PhoneError,
    WebhookBrokenError,
    WebhookStatusError,
    WebhookTimeoutError,
    WebhookUnreachableError,
)
from app.sim.phone.options import PhoneOptions, Signing
from app.sim.phone.twiml_document import MAX_DOCUMENT_BYTES

_CONNECT_LIMIT_S: Final = 5.0
_MAX_HTTP_REDIRECTS: Final = 10
_BODY_QUOTE_CHARS: Final = 200

PREFER_HEADER: Final = "fly-prefer-region"
"""Fly's edge takes the nearest Machine when there is none in the region (fly.md 6)."""

REGION_HEADER: Final = "Nearcall-Region"
"""The header in which an application may name its region."""

_WS_SCHEME: Final = {"http": "ws", "https": "wss"}
_DEFAULT_PORT: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer. `url` is where it finally came from: relative URLs in it start there."""

    url: str
    status: int
    content_type: str | None
    body: bytes
    took_ms: float
    region: str | None


class Addresses:
    """The public URLs of the application and their real addresses, as behind a TLS proxy."""

    def __init__(self, webhook_url: str, public_url: str | None) -> None:
        """Raises PhoneError when one is not an http(s) URL."""
        dialled = _checked(webhook_url)
        self._dialled = dialled
        self._public = None if public_url is None else _checked(public_url)
        base = self._public or dialled
        self.webhook_url = urlunsplit(
            (base.scheme, base.netloc, dialled.path or "/", dialled.query, dialled.fragment)
        )

    def dial(self, url: str) -> str:
        """The URL to connect to for a public URL (http, https, ws, wss)."""
        parts = urlsplit(url)
        if self._public is None or _endpoint(parts.scheme, parts.netloc) != _endpoint(*self._public[:2]):
            return url
        scheme = self._dialled.scheme
        if parts.scheme in ("ws", "wss"):
            scheme = _WS_SCHEME[scheme]
        return urlunsplit((scheme, self._dialled.netloc, parts.path, parts.query, ""))


class Signer:
    """Makes X-Twilio-Signature headers."""

    def __init__(self, auth_token: str) -> None:
        self._right = RequestValidator(auth_token)
        self._wrong = RequestValidator(f"not {auth_token}")

    def headers(self, signing: Signing, url: str, form: Mapping[str, str]) -> dict[str, str]:
        """Over https the port and user are left out of the signed URL; any other URL is signed as it is."""
        if signing == "none":
            return {}
        parts = urlsplit(url)
        if parts.scheme == "https":
            host = parts.netloc.rpartition("@")[2]
            url = urlunsplit((parts.scheme, host.removesuffix(f":{parts.port}"), parts.path, parts.query, ""))
        validator = self._right if signing == "right" else self._wrong
        return {"X-Twilio-Signature": validator.compute_signature(url, form)}


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a webhook is tried again, and on what: `#rc=2&rp=ct,5xx` (twilio.md 2.6). Times are not read."""

    count: int = 1
    on: frozenset[str] = frozenset({"ct"})

    @classmethod
    def of(cls, fragment: str) -> "Retries":
        """Returns the retries in a URL's fragment, with Twilio's defaults for what it leaves out."""
        given = dict(parse_qsl(fragment))
        on = frozenset(given.get("rp", "ct").split(","))
        if "all" in on:
            on = frozenset({"4xx", "5xx", "ct", "rt"})
        return cls(int(given.get("rc", "1")), on)


class Webhooks:
    """Requests of one call; cookies are kept for it, as Twilio does."""

    def __init__(self, options: PhoneOptions, addresses: Addresses, signer: Signer) -> None:
        self._options = options
        self._addresses = addresses
        self._signer = signer
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    async def request(self, method: str, url: str, form: Mapping[str, str]) -> Answer:
        """Requests a public URL and follows HTTP redirects. Raises a WebhookError."""
        started = time.monotonic()
        token = str(uuid.uuid4())
        try:
            async with asyncio.timeout(self._options.webhook_limit_s):
                for _ in range(_MAX_HTTP_REDIRECTS):
                    response = await self._attempts(method, url, form, token)
                    location = response.headers.get("location")
                    if not response.is_redirect or location is None:
                        break
                    url = urljoin(url, location)
                    method = method if response.status_code in (307, 308) else "GET"
        except TimeoutError:
            limit = self._options.webhook_limit_s
            raise WebhookTimeoutError(url, f"{url} gave no answer within {limit:g} s") from None
        if not response.is_success:
            raise WebhookStatusError(url, response.status_code, _status_text(url, response))
        took_ms = (time.monotonic() - started) * 1000
        kind = response.headers.get("content-type")
        region = response.headers.get(REGION_HEADER)
        return Answer(url, response.status_code, kind, response.content, took_ms, region)

    async def _attempts(self, method: str, url: str, form: Mapping[str, str], token: str) -> httpx.Response:
        """Requests a URL and repeats it with the same idempotency token as its fragment says (twilio.md 2.6)."""
        retries = Retries.of(urlsplit(url).fragment)
        for left in range(retries.count, -1, -1):
            try:
                response = await self._once(method, url, form, token)
            except WebhookUnreachableError:
                if not left or "ct" not in retries.on:
                    raise
            else:
                if not left or f"{response.status_code // 100}xx" not in retries.on:
                    return response
        raise AssertionError("the loop returns or raises")

    async def _once(self, method: str, url: str, form: Mapping[str, str], token: str) -> httpx.Response:
        url = urlsplit(url)._replace(fragment="").geturl()
        if method == "GET" and form:
            url += ("&" if urlsplit(url).query else "?") + urlencode(form)
        client = self._client(urlsplit(self._addresses.dial(url)).scheme)
        request = self._build(client, method, url, form, token)
        try:
            response = await client.send(request, stream=True)
            return await _read_bounded(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise WebhookUnreachableError(url, f"no connection to {request.url}: {_reason(error)}") from error
        except httpx.TransportError as error:
            raise WebhookBrokenError(url, f"{url} broke off its answer: {_reason(error)}") from error

    def _build(
        self, client: httpx.AsyncClient, method: str, url: str, form: Mapping[str, str], token: str
    ) -> httpx.Request:
        signed_form = form if method == "POST" else {}
        headers = {
            "Host": urlsplit(url).netloc.rpartition("@")[2],
            "User-Agent": "TwilioProxy/1.1",
            "Accept": "*/*",
            "Connection": "close",
            "I-Twilio-Idempotency-Token": token,
            "X-Home-Region": self._options.home_region,
            **self._signer.headers(self._options.signing, url, signed_form),
            **preferring(self._options),
        }
        body: str | None = None
        if method == "POST":
            headers["Content-Type"] = "application/x-www-form-urlencoded; charset=UTF-8"
            body = urlencode(form)
        request = client.build_request(
            method,
            self._addresses.dial(url),
            headers=headers,
            content=body,
            extensions={
                "target": _target(url),
                "sni_hostname": urlsplit(url).hostname,
                "timeout": httpx.Timeout(None, connect=_CONNECT_LIMIT_S).as_dict(),
            },
        )
        del request.headers["Accept-Encoding"]  # httpx's own; Twilio sends none
        return request

    def _client(self, scheme: str) -> httpx.AsyncClient:
        if scheme not in self._clients:
            if scheme == "https":
                tls = self._options.tls or system_tls()
            else:
                tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and saves loading certificates
            self._clients[scheme] = httpx.AsyncClient(verify=tls, trust_env=False)
        return self._clients[scheme]


def preferring(options: PhoneOptions) -> dict[str, str]:
    """The header that asks for a region, when one is wanted."""
    return {} if options.prefer_region is None else {PREFER_HEADER: options.prefer_region}


@functools.cache
def system_tls() -> ssl.SSLContext:
    """Verification with the system's certificates; loaded once, it costs tens of milliseconds."""
    return ssl.create_default_context()


async def _read_bounded(response: httpx.Response) -> httpx.Response:
    """Reads the body, up to the size of the largest document."""
    try:
        body = bytearray()
        pieces = cast("AsyncGenerator[bytes]", response.aiter_bytes())
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                body += piece
                if len(body) > MAX_DOCUMENT_BYTES:
                    break
    finally:
        await response.aclose()
    return httpx.Response(response.status_code, headers=_plain(response.headers), content=bytes(body))


def _target(url: str) -> bytes:
    """Returns path and query byte for byte as they were signed; httpx would normalise them."""
    parts = urlsplit(url)
    return ((parts.path or "/") + (f"?{parts.query}" if parts.query else "")).encode()


def _plain(headers: httpx.Headers) -> httpx.Headers:
    """Returns the headers without those that describe the encoded body: the body is decoded now."""
    described = ("content-encoding", "content-length", "transfer-encoding")
    return httpx.Headers([(k, v) for k, v in headers.items() if k.lower() not in described])


def _status_text(url: str, response: httpx.Response) -> str:
    text = " ".join(response.text.split())[:_BODY_QUOTE_CHARS]
    return f"{url} answered {response.status_code}" + (f": {text}" if text else "")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise PhoneError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise PhoneError(f"{url!r} is not an http or https URL")
    return parts


def _endpoint(scheme: str, netloc: str) -> tuple[str | None, int | None]:
    parts = urlsplit(f"//{netloc}")
    return parts.hostname, parts.port or _DEFAULT_PORT.get(scheme)
