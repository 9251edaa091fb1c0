"""The limits of a connection until it is a call's stream: bytes, time, requests at once, connections, descriptors.

The peer is not authenticated yet, so everything that it can make us hold or compute is bounded here. uvicorn
bounds none of it: it keeps a header for as long as it grows (its parser copies all of it with every piece that
arrives, so 60 MB of one header stop the event loop for two seconds), it keeps every pipelined request, and it
waits for the first byte for ever. A connection leaves this file when it is upgraded, and costs nothing here
afterwards.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.regions.addresses import sender

HEAD_MAX_BYTES = 32 * 1024
"""Request line and headers. Twilio's, with those that Fly adds, have 2 kB."""

HEADERS_MAX = 100
"""Each header costs time before the signature is checked. Twilio and Fly together send about 30."""

BODY_MAX_BYTES = 24 * 1024
"""The bytes of a body on the wire: what a webhook may have (twiml/intake.py), and the framing of chunks."""

BODY_PIECES_MAX = 256
"""A body in chunks of one byte costs as much time as one of a megabyte."""

REQUEST_LIMIT_S = 5.0
"""From the connection, or from the first byte of a later request, to the end of the request."""

ANSWER_LIMIT_S = 15.0
"""From the end of the request to the end of the answer. Twilio has given up by then (twilio.md 2.6)."""

IDLE_LIMIT_S = 5.0
"""Between two requests of one connection."""

CLOSE_LIMIT_S = 2.0
"""For the peer to take the last answer before the connection is cut."""

CONNECTIONS_MAX = 512
"""Connections that are not streams. Webhooks are answered in milliseconds: 20 calls a second need a handful."""

PER_SENDER_MAX = 32
"""The same for one public address."""

DESCRIPTORS_KEPT = 64
"""Descriptors kept from strangers: for the ledger's files, the tenants' file and the sockets of calls."""

LOG_EVERY_S = 10.0
"""A flood of connections must not become a flood of log lines."""

log = logging.getLogger("nearcall.bridge")


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be, and how long each may take."""

    connections: int = CONNECTIONS_MAX
    per_sender: int | None = PER_SENDER_MAX
    """None: everybody's connections come from a few addresses, as on Fly."""
    descriptor: int = 1 << 30
    """A connection whose descriptor is this or higher is refused: the kernel gives the lowest free one, so
    this many are in use."""
    request_s: float = REQUEST_LIMIT_S
    answer_s: float = ANSWER_LIMIT_S
    idle_s: float = IDLE_LIMIT_S

    @classmethod
    def of(cls, descriptors: int, *, on_fly: bool) -> "Limits":
        """The limits for a process that may open this many descriptors."""
        return cls(
            connections=max(16, min(CONNECTIONS_MAX, descriptors // 4)),
            per_sender=None if on_fly else PER_SENDER_MAX,
            descriptor=max(descriptors - DESCRIPTORS_KEPT, descriptors // 2),
        )


class _Connection(Protocol):
    def drop(self, why: str) -> None: ...


class Front:
    """All connections that are not streams."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: dict[_Connection, str | None] = {}
        """Connection to its sender."""
        self._senders: Counter[str] = Counter()
        self._waiting: dict[_Connection, None] = {}
        """Connections without a complete request, or without one since the last answer; the oldest first."""
        self.closed: Counter[str] = Counter()
        """How many connections were closed for breaking a limit, by the reason."""
        self._unlogged: Counter[str] = Counter()
        self._log_next_at = 0.0

    @property
    def open(self) -> int:
        """How many connections there are that are not streams."""
        return len(self._open)

    def admit(self, connection: _Connection, peer: str | None, descriptor: int) -> str | None:
        """Count a new connection. Return why it is refused; None when it may stay.

        When there are too many, the connection that has waited longest for its peer is closed: connections of a
        flood wait, and Twilio's do not.
        """
        name = None if self.limits.per_sender is None else sender(peer)
        if descriptor >= self.limits.descriptor:
            return "descriptors"
        if name is not None and self._senders[name] >= (self.limits.per_sender or 0):
            return "per_address"
        if len(self._open) >= self.limits.connections:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return "connections"
            oldest.drop("connections")
        self._open[connection] = name
        if name is not None:
            self._senders[name] += 1
        return None

    def waits(self, connection: _Connection) -> None:
        """Note that the connection waits for its peer."""
        self._waiting.pop(connection, None)
        if connection in self._open:
            self._waiting[connection] = None

    def works(self, connection: _Connection) -> None:
        """Note that the connection waits for us: it is not closed to make room for another."""
        self._waiting.pop(connection, None)

    def release(self, connection: _Connection) -> None:
        """Forget a connection that is closed or became a stream. A second time is harmless."""
        self._waiting.pop(connection, None)
        name = self._open.pop(connection, None)
        if name is not None:
            self._senders[name] -= 1
            if not self._senders[name]:
                del self._senders[name]

    def note(self, why: str, now_s: float) -> None:
        """Count a connection that was closed for this reason, and log the counts now and then."""
        self.closed[why] += 1
        self._unlogged[why] += 1
        if now_s >= self._log_next_at:
            log.warning("connections_closed", extra={"reasons": dict(self._unlogged), "open": len(self._open)})
            self._unlogged.clear()
            self._log_next_at = now_s + LOG_EVERY_S


class _Stopped(Exception):  # noqa: N818  it only ends the parser's work, nothing failed
    """The connection is being closed: the parser must stop."""


class FrontProtocol(HttpToolsProtocol):
    """One connection: uvicorn's own protocol for HTTP, within limits."""

    def __init__(self, front: Front, **given: Any) -> None:
        super().__init__(**given)
        self._front = front
        self._left = HEAD_MAX_BYTES
        """Bytes that the rest of the present part of the request may have."""
        self._in_head = True
        self._received = False
        """True when the request is complete. The next request may come only after the answer."""
        self._pieces = 0
        self._limit: asyncio.TimerHandle | None = None

    # --- The connection ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        descriptor = transport.get_extra_info("socket").fileno()
        refused = self._front.admit(self, peer[0] if isinstance(peer, tuple) else None, descriptor)
        if refused is not None:
            self.drop(refused)
            return
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._release()
        super().connection_lost(exc)

    def drop(self, why: str, status: int | None = None) -> None:
        """Close the connection for a reason that is counted, after an answer with `status` if one can be sent."""
        if self.transport.is_closing():
            return
        self._front.note(why, self.loop.time())
        self._front.release(self)
        if status is None or (self.cycle is not None and not self.cycle.response_complete):
            self._release()
            self.transport.abort()
            return
        lines = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            lines += [name, b": ", value, b"\r\n"]
        lines.append(b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.write(b"".join(lines))
        self.transport.close()
        self._arm(CLOSE_LIMIT_S, self.transport.abort)

    def _release(self) -> None:
        self._front.release(self)
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _arm(self, limit_s: float, then: Callable[[], object]) -> None:
        """Set the one timer of this connection, in place of what it was set to before."""
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self.loop.call_later(limit_s, then)

    def _await_request(self) -> None:
        self._left, self._in_head, self._received = HEAD_MAX_BYTES, True, False
        self._arm(self._front.limits.request_s, lambda: self.drop("request_late", 408))
        self._front.waits(self)

    # --- A request -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse in pieces that end where the byte limit does, so that nothing beyond a limit is parsed."""
        if self._received and self.cycle is not None and self.cycle.response_complete:
            self._await_request()
        while data and not self.transport.is_closing():
            piece, data = data[: self._left], data[self._left :]
            if not piece:
                self.drop(*(("head", 431) if self._in_head else ("body", 413)))
                return
            self._left -= len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                return
            except httptools.HttpParserError:
                self.drop("malformed", 400)  # unless the parser was stopped because the connection is closing
                return

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to the stream: no limit of this file holds for it any more."""
        self._release()
        super().handle_websocket_upgrade()

    def _stop(self, why: str, status: int | None = None) -> NoReturn:
        self.drop(why, status)
        raise _Stopped

    # --- Callbacks of the parser ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop("pipelining")
        self._received, self._pieces = False, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEADERS_MAX:
            self._stop("head", 431)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._left, self._in_head = BODY_MAX_BYTES, False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pieces += 1
        if self._pieces > BODY_PIECES_MAX:
            self._stop("body", 413)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._left, self._in_head, self._received = HEAD_MAX_BYTES, True, True
        if self.cycle is None or self.cycle.response_complete:
            self._rest()
        else:
            self._front.works(self)
            self._arm(self._front.limits.answer_s, lambda: self.drop("answer_late"))
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # uvicorn does not know that a body is still coming
        if self.transport.is_closing():
            self._arm(CLOSE_LIMIT_S, self.transport.abort)
        elif self._received:
            self._rest()

    def _rest(self) -> None:
        """Wait for another request. Closing an idle connection breaks no limit, so it is not counted."""
        self._arm(self._front.limits.idle_s, self.transport.close)
        self._front.waits(self)


def http_protocol(front: Front) -> Callable[..., FrontProtocol]:
    """What `uvicorn.Config(http=...)` takes."""

    def make(**given: Any) -> FrontProtocol:
        return FrontProtocol(front, **given)

    return make
