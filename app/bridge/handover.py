"""Hands a WebSocket upgrade from uvicorn to picows.

uvicorn speaks HTTP and takes any protocol factory for upgrades (`uvicorn.Config(ws=...)`); picows carries the
media at C speed, with callbacks instead of a task for each message. Between them is this one object: it owns a
`picows.picows.WSProtocol`, passes it the upgrade's bytes, and makes it the transport's protocol. From then on
nothing of uvicorn sees the connection, so closing calls is ours alone (uvicorn would send them 1012).

`WSProtocol` is not among picows' public names: pyproject.toml pins the version, and tests/bridge has the shape.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from picows import (
    WSAutoPingStrategy,
    WSListener,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
)
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # see above

HANDSHAKE_LIMIT_S = 5.0
"""The request is complete when uvicorn hands it over; this only bounds a fault."""

MAX_FRAME_BYTES = 1024 * 1024
"""Beyond this the connection is closed at once. What is merely too long for Twilio is counted: wire/twilio.py."""

Upgrade = Callable[[WSUpgradeRequest], WSListener | WSUpgradeResponseWithListener]
"""Answers an upgrade before its 101: a listener accepts it, a response refuses it."""


def refusal(status: int, headers: dict[str, str] | None = None) -> WSUpgradeResponseWithListener:
    """Refuse the upgrade with this status and an empty body: the peer learns nothing else."""
    response = WSUpgradeResponse.create_error_response(status, b"", {"Content-Length": "0", **(headers or {})})
    return WSUpgradeResponseWithListener(response, None)


class HandOver(asyncio.BufferedProtocol):
    """The protocol that uvicorn makes for an upgrade. Lives until the next turn of the event loop."""

    def __init__(self, upgrade: Upgrade) -> None:
        self._inner = WSProtocol(
            None,  # host and path: a client's
            None,
            False,  # not a client
            upgrade,
            logging.getLogger("picows.server"),
            True,  # disconnect on an exception of a listener; ours raise none
            HANDSHAKE_LIMIT_S,
            False,  # no automatic pings: the call core pings, and learns the round trip
            0.0,
            0.0,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            True,  # answer the peer's pings
            MAX_FRAME_BYTES,
            None,
            16 * 1024,
        )

    def connection_made(self, transport: Any) -> None:
        # First in line, so that the transport is picows' before it can be told of anything else.
        asyncio.get_running_loop().call_soon(transport.set_protocol, self._inner)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """What uvicorn calls, once, with the request as it was received."""
        while data:
            buffer = self._inner.get_buffer(len(data))
            taken = min(len(buffer), len(data))
            buffer[:taken] = data[:taken]
            self._inner.buffer_updated(taken)
            data = data[taken:]

    def get_buffer(self, sizehint: int) -> Any:
        return self._inner.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._inner.buffer_updated(nbytes)

    def eof_received(self) -> bool:
        return bool(self._inner.eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)


def ws_protocol(upgrade: Upgrade) -> Callable[..., HandOver]:
    """What `uvicorn.Config(ws=...)` takes."""

    def make(config: Any, server_state: Any, app_state: Any) -> HandOver:  # noqa: ARG001  uvicorn's signature
        return HandOver(upgrade)

    return make
