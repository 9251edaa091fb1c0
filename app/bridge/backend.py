"""Dialling a backend: one connection, TLS verified, a time limit, and no policy."""

import asyncio
import ssl
from functools import lru_cache

from picows import WSError, ws_connect

from app.bridge.link import Link
from app.wire.dialect import Address

DIAL_LIMIT_S = 4.0
"""Name look-up, TCP, TLS and upgrade together; below OPEN_LIMIT_S, so that the failure has a name."""


class DialError(Exception):
    """A backend could not be reached. `str()` says why in words for an operator and holds no secret."""


@lru_cache(maxsize=1)
def system_trust() -> ssl.SSLContext:
    """The system's certificates, read from disk once (20 ms) and not for every call."""
    return ssl.create_default_context()


async def dial(address: Address, link: Link, max_message_bytes: int) -> None:
    """Connect `link` to the backend. Raises DialError; cancelling it leaves nothing open."""
    try:
        async with asyncio.timeout(DIAL_LIMIT_S):
            await ws_connect(
                lambda: link,
                address.url,
                ssl_context=system_trust() if address.url.startswith("wss:") else None,
                websocket_handshake_timeout=DIAL_LIMIT_S,
                logger_name="backend",
                max_frame_size=max_message_bytes,
                extra_headers=address.headers,
                max_redirects=0,
            )
    except TimeoutError:
        link.close()
        raise DialError(f"no answer within {DIAL_LIMIT_S:g} s") from None
    except WSError as error:
        response = getattr(error, "response", None)
        status = "" if response is None else f" (HTTP {int(response.status)})"
        raise DialError(f"{_STATUS_MEANING.get(status, 'the upgrade was refused')}{status}") from error
    except ssl.SSLCertVerificationError as error:
        raise DialError(f"its certificate is not trusted: {error.verify_message}") from error
    except OSError as error:
        raise DialError(error.strerror or type(error).__name__) from error


_STATUS_MEANING = {" (HTTP 401)": "the key was refused", " (HTTP 429)": "over its quota"}
