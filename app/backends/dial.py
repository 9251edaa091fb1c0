"""Dialling a backend: one connection, TLS verified, a time limit, and no policy."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from functools import lru_cache
from http import HTTPStatus

import aiofastnet
from picows import WSError
from picows.url import parse_url

from app.bridge.link import Link
from app.bridge.sockets import client_protocol
from app.call.limits import STANDSTILL_S
from app.wire.dialect import Address, Dialect, NoKey

DIAL_LIMIT_S = 4.0
"""Name look-up, TCP, TLS and upgrade together; below OPEN_LIMIT_S, so that the failure has a name. Where there are
other backends a call does not wait for it: BACKEND_LATE_S."""

_STATUS_MEANING = {401: "the key was refused", 403: "access was refused", 429: "over its quota"}
_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)? ([1-5]\d\d)\b")

NO_KEY = "no_key"
"""The code of a backend that there is nothing to show to."""


class DialError(Exception):
    """A backend could not be reached. `str()` says why in words for an operator and holds no secret."""

    def __init__(self, why: str, status: int | None = None, code: str = "") -> None:
        super().__init__(why)
        self.status = status
        """Of HTTP, when it answered."""
        self.code = code
        """Of an error that it sent when the connection was open, or NO_KEY."""


@lru_cache(maxsize=1)
def system_trust() -> ssl.SSLContext:
    """The system's certificates, read from disk once (20 ms) and not for every call."""
    return ssl.create_default_context()


def address_of(dialect: Dialect, model: str) -> Address:
    """Where to dial, with what to show there. Raises DialError when there is nothing to show."""
    try:
        return dialect.address(model)
    except NoKey as error:
        raise DialError(str(error), code=NO_KEY) from None


async def dial(address: Address, link: Link, max_message_bytes: int) -> None:
    """Connect `link` to the backend. Raises DialError. Cancelled or failed, it leaves nothing open."""
    try:
        async with _limited(DIAL_LIMIT_S):
            await _connect(address, link, max_message_bytes)
    except TimeoutError:
        raise DialError(f"no answer within {DIAL_LIMIT_S:g} s") from None
    except WSError as error:
        status = _status_of(error)
        if status is None or status == HTTPStatus.SWITCHING_PROTOCOLS:
            raise DialError("it is no WebSocket server") from error
        raise DialError(f"{_meaning(status)} (HTTP {status})", status) from error
    except ssl.SSLCertVerificationError as error:
        raise DialError(f"its certificate is not trusted: {error.verify_message}") from error
    except OSError as error:
        raise DialError(error.strerror or type(error).__name__) from error
    except ValueError as error:
        raise DialError("its address is not one that can be dialled") from error


def _status_of(error: WSError) -> int | None:
    """The HTTP status of the answer; None when it was no HTTP.

    From its first line: picows reads HTTP/1.1 alone, and proxies in front of a backend send errors in HTTP/1.0.
    """
    line = _STATUS_LINE.match(getattr(error, "raw_header", None) or b"")
    return int(line[1]) if line else None


def _meaning(status: int) -> str:
    """What an answer other than 101 says about the backend."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _STATUS_MEANING.get(status, "it is out of order, or what is in front of it")
    return _STATUS_MEANING.get(status, "the upgrade was refused")


@contextlib.asynccontextmanager
async def _limited(limit_s: float) -> AsyncIterator[None]:
    """Raises TimeoutError after so long. The time begins anew, once, when this process did nothing at its end."""
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
    except BaseException:  # whoever gave up waiting cancels this: no socket may stay open
        transport.abort()
        raise
    if protocol.listener is None:
        raise DialError("it closed the connection instead of answering")
