"""Dials a backend: one connection, TLS verified, a time limit, and no policy.

What goes wrong becomes a BackendFailure here: no key, no connection, no trust in the certificate, an HTTP status.
"""

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType

import aiofastnet
from picows import WSError
from picows.url import parse_url

from app.bridge.link import Link
from app.bridge.sockets import client_protocol
from app.call.ending import EndReason
from app.call.failure import BackendFailure, Remedy, Scope
from app.call.limits import STANDSTILL_S
from app.wire.dialect import Address, Dialect, NoKey
from app.wire.realtime import MAX_MESSAGE_BYTES

DIAL_LIMIT_S = 4.0
"""Name look-up, TCP, TLS and upgrade together; below OPEN_LIMIT_S, so that the failure has a name. Where there are
other backends a call does not wait for it: BACKEND_LATE_S."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What an HTTP status instead of 101 says about the backend."""

    words: str = "the upgrade was refused"
    scope: Scope = Scope.BACKEND
    fatal: bool = False
    remedy: Remedy = Remedy.NOTHING


_NOT_THERE = _Refusal(scope=Scope.MODEL, fatal=True, remedy=Remedy.ADDRESS_OR_MODEL)
_REFUSALS: Mapping[int, _Refusal] = MappingProxyType(
    {
        400: _NOT_THERE,
        401: _Refusal("the key was refused", fatal=True, remedy=Remedy.KEY),
        403: _Refusal("access was refused", fatal=True, remedy=Remedy.KEY),
        404: _NOT_THERE,
        429: _Refusal("over its quota", remedy=Remedy.RATE_LIMIT),
    }
)
_OUT_OF_ORDER = _Refusal("it is out of order, or what is in front of it", remedy=Remedy.SERVER)
_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)? ([1-5]\d\d)\b")
_RETRY_AFTER = re.compile(rb"\r?\nretry-after:([^\r\n]*)", re.IGNORECASE)


class DialError(Exception):
    """A backend could not be reached, or does not work. `str()` is the text of its failure."""

    def __init__(self, failure: BackendFailure) -> None:
        super().__init__(failure.text)
        self.failure = failure


def unreachable(text: str) -> DialError:
    """No connection came about."""
    return DialError(BackendFailure(EndReason.BACKEND_UNREACHABLE, text=text, remedy=Remedy.ADDRESS))


@lru_cache(maxsize=1)
def system_trust() -> ssl.SSLContext:
    """The system's certificates, read from disk once (20 ms) and not for every call."""
    return ssl.create_default_context()


def address_of(dialect: Dialect, model: str) -> Address:
    """Where to dial, with what to show there. Raises DialError when there is nothing to show."""
    try:
        return dialect.address(model)
    except NoKey as error:
        failure = BackendFailure(
            EndReason.BACKEND_UNREACHABLE, "no_key", text=str(error), remedy=Remedy.MISSING_KEY
        )
        raise DialError(failure) from None


async def dial_for_call(dialect: Dialect, model: str, link: Link) -> BackendFailure | None:
    """Connect `link` to the backend of this dialect. Returns why that did not work, and None when it did."""
    try:
        await dial(address_of(dialect, model), link, MAX_MESSAGE_BYTES)
    except DialError as error:
        return error.failure
    return None


async def dial(address: Address, link: Link, max_message_bytes: int) -> None:
    """Connect `link` to the backend. Raises DialError. Cancelled or failed, it leaves nothing open."""
    try:
        async with _limited(DIAL_LIMIT_S):
            await _connect(address, link, max_message_bytes)
    except TimeoutError:
        raise unreachable(f"no answer within {DIAL_LIMIT_S:g} s") from None
    except WSError as error:
        status = _status_of(error)
        if status is None or status == HTTPStatus.SWITCHING_PROTOCOLS:
            raise unreachable("it is no WebSocket server") from error
        raise DialError(_refused(status, _retry_after_s(error))) from error
    except ssl.SSLCertVerificationError as error:
        raise unreachable(f"its certificate is not trusted: {error.verify_message}") from error
    except OSError as error:
        raise unreachable(error.strerror or type(error).__name__) from error
    except ValueError as error:
        raise unreachable("its address is not one that can be dialled") from error


def _status_of(error: WSError) -> int | None:
    """The HTTP status of the answer; None when it was no HTTP.

    From its first line: picows reads HTTP/1.1 alone, and proxies in front of a backend send errors in HTTP/1.0.
    """
    line = _STATUS_LINE.match(getattr(error, "raw_header", None) or b"")
    return int(line[1]) if line else None


def _retry_after_s(error: WSError) -> float | None:
    """How long the answer asks us to wait (RFC 9110 10.2.3); None when it does not say so in a known form."""
    found = _RETRY_AFTER.search(getattr(error, "raw_header", None) or b"")
    if found is None:
        return None
    value = found[1].decode("ascii", "replace").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, at.timestamp() - time.time())


def _refused(status: int, retry_after_s: float | None) -> BackendFailure:
    """What an answer other than 101 says about the backend."""
    other = _OUT_OF_ORDER if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _Refusal()
    refusal = _REFUSALS.get(status, other)
    return BackendFailure(
        EndReason.BACKEND_UNREACHABLE,
        f"http_{status}",
        refusal.scope,
        refusal.fatal,
        f"{refusal.words} (HTTP {status})",
        refusal.remedy,
        retry_after_s,
    )


@contextlib.asynccontextmanager
async def _limited(limit_s: float) -> AsyncIterator[None]:
    """Raises TimeoutError after so long. The time begins again, once, when this process stood still at its end."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer: asyncio.TimerHandle

        def expire() -> None:
            limit.reschedule(loop.time())

        def look() -> None:
            nonlocal timer
            if loop.time() - timer.when() >= STANDSTILL_S:
                timer = loop.call_later(limit_s, expire)
            else:
                expire()

        timer = loop.call_later(limit_s, look)
        try:
            yield
        finally:
            timer.cancel()


async def _connect(address: Address, link: Link, max_message_bytes: int) -> None:
    # Not picows.ws_connect: cancelled between TCP and the 101 it leaves the socket open until its own timer.
    url = parse_url(address.url)
    protocol = client_protocol(url, link, max_message_bytes, address.headers)
    transport, _ = await aiofastnet.create_connection(
        asyncio.get_running_loop(),
        lambda: protocol,
        url.host,
        url.port,
        ssl=system_trust() if url.is_secure else None,
    )
    try:
        await protocol.wait_until_handshake_complete()
    except BaseException:  # a caller that gave up waiting cancels this: no socket may stay open
        transport.abort()
        raise
    if protocol.listener is None:
        raise unreachable("it closed the connection instead of answering")
