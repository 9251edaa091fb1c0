"""The limits of a connection until it is a call's stream: bytes, time, requests at once, connections, descriptors.

Nobody has proved anything yet, so everything that a stranger can make us hold or compute is bounded here. uvicorn
bounds none of it: it keeps a header for as long as it grows (its parser copies all of it with every piece that
arrives, so 60 MB of one header stop the event loop for two seconds), it keeps every pipelined request, and it
waits for the first byte for ever. A stream leaves this file with its upgrade and costs nothing here afterwards.
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
"""Each costs time before anybody knows who sends it. Twilio and Fly together send about 30."""

BODY_MAX_BYTES = 24 * 1024
"""Of a body as it is sent: what a webhook may have (twiml/intake.py), and the framing of chunks."""

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
"""The same, of one public address."""

DESCRIPTORS_KEPT = 64
"""Descriptors that no stranger gets: for the ledger's files, the tenants' file and the sockets of calls."""

SAY_EVERY_S = 10.0
"""A flood of connections must not become a flood of log lines."""

log = logging.getLogger("nearcall.front")


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be."""

    connections: int = CONNECTIONS_MAX
    per_sender: int | None = PER_SENDER_MAX
    """None: connections come from few addresses that carry everybody, as on Fly."""
    descriptor: int = 1 << 30
    """A connection whose descriptor is this or higher is refused: the lowest free one is always taken, so as many
    are in use."""

    @classmethod
    def of(cls, descriptors: int, *, on_fly: bool) -> "Limits":
        """For a process that may open so many descriptors."""
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
        self._limits = limits
        self._open: dict[_Connection, str | None] = {}
        """Each with its sender."""
        self._senders: Counter[str] = Counter()
        self._waiting: dict[_Connection, None] = {}
        """Those that have sent no complete request, or none since the last answer; the longest waiting first."""
        self.closed: Counter[str] = Counter()
        """Connections that were closed for breaking a limit, by the reason."""
        self._unsaid: Counter[str] = Counter()
        self._quiet_until = 0.0

    @property
    def open(self) -> int:
        """Connections that are not streams."""
        return len(self._open)

    def admit(self, connection: _Connection, peer: str | None, descriptor: int) -> str | None:
        """Count a new connection; why it is refused, None when it may stay.

        When there are too many, the one that has waited longest for its peer makes room: a flood waits, and Twilio
        does not.
        """
        name = None if self._limits.per_sender is None else sender(peer)
        if descriptor >= self._limits.descriptor:
            return "descriptors"
        if name is not None and self._senders[name] >= (self._limits.per_sender or 0):
            return "per_address"
        if len(self._open) >= self._limits.connections:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return "connections"
            oldest.drop("connections")
        self._open[connection] = name
        if name is not None:
            self._senders[name] += 1
        return None

    def waits(self, connection: _Connection) -> None:
        """It is the peer's turn."""
        self._waiting.pop(connection, None)
        if connection in self._open:
            self._waiting[connection] = None

    def works(self, connection: _Connection) -> None:
        """It is our turn: this connection makes room for no other."""
        self._waiting.pop(connection, None)

    def release(self, connection: _Connection) -> None:
        """It is gone, or a stream. May be told twice."""
        self._waiting.pop(connection, None)
        name = self._open.pop(connection, None)
        if name is not None:
            self._senders[name] -= 1
            if not self._senders[name]:
                del self._senders[name]

    def note(self, why: str, now_s: float) -> None:
        """A connection was closed for this reason: counted, and said in the log now and then."""
        self.closed[why] += 1
        self._unsaid[why] += 1
        if now_s >= self._quiet_until:
            log.warning("connections closed", extra={"reasons": dict(self._unsaid), "open": len(self._open)})
            self._unsaid.clear()
            self._quiet_until = now_s + SAY_EVERY_S


class _Stopped(Exception):  # noqa: N818  it only ends the parser's work, nothing failed
    """The connection is being closed: parse no further."""


class FrontProtocol(HttpToolsProtocol):
    """One connection: uvicorn's own protocol for HTTP, within limits."""

    def __init__(self, front: Front, **given: Any) -> None:
        super().__init__(**given)
        self._front = front
        self._left = HEAD_MAX_BYTES
        """Bytes that may come for the part of the request that is being received."""
        self._in_head = True
        self._received = False
        """The request is complete; another may only follow its answer."""
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
        self._await_request(REQUEST_LIMIT_S, "request_late")

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
        super().connection_lost(exc)

    def drop(self, why: str, status: int | None = None) -> None:
        """Close the connection for a reason that is counted, with a status if the peer can be told one."""
        if self.transport.is_closing():
            return
        self._front.note(why, self.loop.time())
        self._front.release(self)
        if status is None or (self.cycle is not None and not self.cycle.response_complete):
            self._let_go()
            self.transport.abort()
            return
        lines = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            lines += [name, b": ", value, b"\r\n"]
        lines.append(b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.write(b"".join(lines))
        self.transport.close()
        self._arm(CLOSE_LIMIT_S, self.transport.abort)

    def _let_go(self) -> None:
        self._front.release(self)
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _arm(self, limit_s: float, then: Callable[[], object]) -> None:
        """The one timer of this connection: what it waited for before has come."""
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self.loop.call_later(limit_s, then)

    def _await_request(self, limit_s: float, why: str) -> None:
        self._left, self._in_head, self._received = HEAD_MAX_BYTES, True, False
        self._arm(limit_s, lambda: self.drop(why, 408))
        self._front.waits(self)

    # --- A request -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """In pieces that end where the budget does, so that no limit is overshot by what arrived with it."""
        if self._received and self.cycle is not None and self.cycle.response_complete:
            self._await_request(REQUEST_LIMIT_S, "request_late")
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
        """From here on the connection is the stream's alone."""
        self._let_go()
        super().handle_websocket_upgrade()

    def _stop(self, why: str, status: int | None = None) -> NoReturn:
        self.drop(why, status)
        raise _Stopped

    # --- What the parser tells -----------------------------------------------------------------

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
            self._arm(ANSWER_LIMIT_S, lambda: self.drop("answer_late"))
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # it knows nothing of a body that still comes
        if self.transport.is_closing():
            self._arm(CLOSE_LIMIT_S, self.transport.abort)
        elif self._received:
            self._rest()

    def _rest(self) -> None:
        """Wait for another request; to give up on one is nobody's fault."""
        self._arm(IDLE_LIMIT_S, self.transport.close)
        self._front.waits(self)


def http_protocol(front: Front) -> Callable[..., FrontProtocol]:
    """What `uvicorn.Config(http=...)` takes."""

    def make(**given: Any) -> FrontProtocol:
        return FrontProtocol(front, **given)

    return make
