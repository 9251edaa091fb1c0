"""Hands a WebSocket upgrade from uvicorn to picows.

uvicorn speaks HTTP and takes any protocol factory for upgrades (`uvicorn.Config(ws=...)`); picows carries the
media at C speed, with callbacks instead of a task for each message. Between them is this one object: it owns a
picows protocol, passes it the upgrade's bytes, and makes it the transport's protocol. From then on nothing of
uvicorn sees the connection, so closing calls is ours alone (uvicorn would send them 1012).
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from picows import WSListener, WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from app.bridge.sockets import Upgrade, is_upgrade, server_protocol

HANDSHAKE_LIMIT_S = 5.0
"""The request is complete when uvicorn hands it over; this only bounds a fault."""

MAX_FRAME_BYTES = 1024 * 1024
"""Beyond this the connection is closed at once. What is merely too long for Twilio is counted: wire/twilio.py."""

log = logging.getLogger("nearcall.bridge")


def refusal(status: int, headers: dict[str, str] | None = None) -> WSUpgradeResponseWithListener:
    """Refuse the upgrade with this status and an empty body: the peer learns nothing else."""
    response = WSUpgradeResponse.create_error_response(status, b"", {"Content-Length": "0", **(headers or {})})
    return WSUpgradeResponseWithListener(response, None)


class HandOver(asyncio.BufferedProtocol):
    """The protocol that uvicorn makes for an upgrade. Lives until the next turn of the event loop."""

    def __init__(self, upgrade: Upgrade) -> None:
        self._inner = server_protocol(_guarded(upgrade), HANDSHAKE_LIMIT_S, MAX_FRAME_BYTES)

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


def _guarded(upgrade: Upgrade) -> Upgrade:
    def guarded(request: WSUpgradeRequest) -> WSListener | WSUpgradeResponseWithListener:
        if not is_upgrade(request):
            return refusal(400)
        try:
            return upgrade(request)
        except Exception:  # picows would send the exception's text to the stranger, and log nothing
            log.exception("upgrade broke")
            return refusal(500)

    return guarded


def ws_protocol(upgrade: Upgrade) -> Callable[..., HandOver]:
    """What `uvicorn.Config(ws=...)` takes."""

    def make(config: Any, server_state: Any, app_state: Any) -> HandOver:  # noqa: ARG001  uvicorn's signature
        return HandOver(upgrade)

    return make
