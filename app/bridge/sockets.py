"""The one place that touches what picows does not export: its protocol object, for both ends of a call.

`WSProtocol` and the check of an upgrade are not among picows' public names: pyproject.toml pins the version, and
tests/bridge/test_handover.py fails when their shape changes.
"""

import logging
from collections.abc import Callable
from typing import Any

from picows import WSAutoPingStrategy, WSListener, WSUpgradeRequest, WSUpgradeResponseWithListener
from picows.picows import WSProtocol, _validate_upgrade_request  # type: ignore[attr-defined]  # see above
from picows.url import WSParsedURL

READ_BUFFER_BYTES = 16 * 1024

Upgrade = Callable[[WSUpgradeRequest], WSListener | WSUpgradeResponseWithListener]
"""Answers an upgrade before its 101: a listener accepts it, a response refuses it."""


def server_protocol(upgrade: Upgrade, handshake_limit_s: float, max_frame_bytes: int) -> Any:
    """The accepting end."""
    return _protocol(None, None, False, upgrade, "picows.server", handshake_limit_s, max_frame_bytes, None)


def client_protocol(url: WSParsedURL, listener: WSListener, max_frame_bytes: int, headers: dict[str, str]) -> Any:
    """The dialling end. It has no time limit of its own: dial.py has one for all of it."""
    return _protocol(
        url.netloc, url.resource_name, True, lambda: listener, "picows.client", None, max_frame_bytes, headers
    )


def _protocol(
    host: str | None,
    path: str | None,
    is_client: bool,
    listener_factory: Callable[..., Any],
    logger: str,
    handshake_limit_s: float | None,
    max_frame_bytes: int,
    headers: dict[str, str] | None,
) -> Any:
    return WSProtocol(
        host,
        path,
        is_client,
        listener_factory,
        logging.getLogger(logger),
        True,  # disconnect on an exception of a listener; ours raise none
        handshake_limit_s,
        False,  # no automatic pings: the call core pings, and learns the round trip
        0.0,
        0.0,
        WSAutoPingStrategy.PING_WHEN_IDLE,
        False,  # the link answers the peer's pings, within its pace
        max_frame_bytes,
        headers,
        READ_BUFFER_BYTES,
    )


def is_upgrade(request: WSUpgradeRequest) -> bool:
    """True for a proper WebSocket upgrade. Asked first, so that nothing is decided for one that cannot come about.

    RFC 9110 lets `Connection` have several values, and proxies send `keep-alive, Upgrade`; picows wants the one.
    """
    values = {value.strip().lower() for value in request.headers.get("Connection", "").split(",")}
    if "upgrade" in values:
        request.headers["Connection"] = "upgrade"
    try:
        _validate_upgrade_request(request)
    except RuntimeError:
        return False
    return True
