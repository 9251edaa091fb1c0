"""Hands a WebSocket upgrade from uvicorn to picows.

uvicorn speaks HTTP and takes any protocol factory for upgrades (`uvicorn.Config(ws=...)`); picows carries the
media at C speed, with callbacks instead of a task for each message. Between them is this one object: it owns a
picows protocol, passes it the upgrade's bytes, and makes it the transport's protocol. From then on nothing of
uvicorn sees the connection, so closing calls is ours alone (uvicorn would send them 1012).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from picows import WSListener, WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from app.bridge.sockets import Upgrade, is_upgrade, server_protocol

HANDSHAKE_LIMIT_S = 5.0
"""The request is complete when uvicorn hands it over; this only bounds a fault."""

MAX_FRAME_BYTES = 1024 * 1024
"""Beyond this the connection is closed at once. What is merely too long for Twilio is counted: wire/twilio.py."""

log = logging.getLogger("nearcall.bridge")


@dataclass(frozen=True, slots=True)
class Denial:
    """Refuses an upgrade with this status and an empty body: the peer learns nothing else."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


AnswerUpgrade = Callable[[str, Callable[[str], str | None]], WSListener | Denial]
"""Answers an upgrade before its 101. Gets the request target as received, and a look-up of headers by name that
ignores case. A listener accepts the upgrade."""


class HandOver(asyncio.BufferedProtocol):
    """The protocol that uvicorn makes for an upgrade. Lives until the next turn of the event loop."""

    def __init__(self, answer: AnswerUpgrade, headers: Mapping[str, str]) -> None:
        """`headers` go with every answer, also with the 101."""
        upgrade = _picows_upgrade(answer, headers)
        self._inner = server_protocol(upgrade, HANDSHAKE_LIMIT_S, MAX_FRAME_BYTES)

    def connection_made(self, transport: Any) -> None:
        # Scheduled first, so that picows owns the transport before the transport reports anything else.
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


def _picows_upgrade(answer: AnswerUpgrade, headers: Mapping[str, str]) -> Upgrade:
    """Turn `answer` into what picows calls with an upgrade."""

    def denied(denial: Denial) -> WSUpgradeResponseWithListener:
        all_headers = {"Content-Length": "0", **headers, **denial.headers}
        return WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_error_response(denial.status, b"", all_headers), None
        )

    def upgrade(request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        if not is_upgrade(request):
            return denied(Denial(400))
        try:
            answered = answer(request.path.decode("latin-1"), request.headers.get)
        except Exception:  # a bug of ours: picows would send the exception's text to the peer, and log nothing
            log.exception("upgrade_failed")
            return denied(Denial(500))
        if isinstance(answered, Denial):
            return denied(answered)
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response({**headers}), answered)

    return upgrade


def ws_protocol(answer: AnswerUpgrade, headers: Mapping[str, str]) -> Callable[..., HandOver]:
    """What `uvicorn.Config(ws=...)` takes. `headers` go with every answer to an upgrade."""

    def make(config: Any, server_state: Any, app_state: Any) -> HandOver:  # noqa: ARG001  uvicorn's signature
        return HandOver(answer, headers)

    return make
