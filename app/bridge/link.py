"""One WebSocket, as its owner sees it: whole text messages come up, bytes go down, and every end is reported once.

Both sides of a call use it: the phone's socket that picows accepted and the backend's that it dialled. Knows
nothing of what the messages say. Callbacks come straight from the socket's read, in order, without a task or
a queue in between; an exception of the owner is the owner's to catch.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from picows import WSCloseCode, WSError, WSFrame, WSListener, WSMsgType, WSTransport

from app.call.events import Side
from app.call.limits import STANDSTILL_S

log = logging.getLogger("nearcall.bridge")

WRITE_HIGH_BYTES = 64 * 1024
"""Over this much unsent the peer counts as slow: the phone gets at most two seconds of audio (22 kB) ahead of
playback, the backend 14 kB a second, or 67 of it in PCM."""


FRAME_BYTES = 500
"""What a frame costs a peer's allowance besides its payload, for the work that each one is: also an empty one, a
fragment, a ping."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a peer may send, and how much may wait for it."""

    burst_bytes: int
    bytes_per_s: int
    unsent_max_bytes: int
    """While it does not read, beyond WRITE_HIGH_BYTES. With more it counts as slow at once."""


PACES: Mapping[Side, Pace] = MappingProxyType(
    {
        # Twilio's frame of 20 ms has 370 bytes. At once: what waits after a standstill of two minutes. For long:
        # four times real time.
        Side.PHONE: Pace(6 * 1024 * 1024, 175_000, 1024 * 1024),
        # At once: four minutes of 24 kHz PCM, or 32,000 deltas. For long: 30 times real time, or 4,000 deltas each
        # second. What waits for it after such a standstill is the caller's audio, 8 MB in PCM.
        Side.BACKEND: Pace(16 * 1024 * 1024, 2 * 1024 * 1024, 16 * 1024 * 1024),
    }
)

SLOW_PEER_S = 3.0
"""How long a peer may stay slow before its call hears of it."""

CLOSE_WAIT_S = 2.0
"""From our close frame to the end of the connection by force."""

_TEXT = WSMsgType.TEXT
"""Looked up once: an attribute of an Enum costs as much as half a parse."""

ABNORMAL = 1006
NO_CODE = 1005
"""RFC 6455: how a connection ended without a close frame, and with one that had no code."""

TOO_LONG = "too long"
"""What a message is that has more bytes than its link takes."""


class Owner(Protocol):
    """Who a link reports to. Every method returns at once and raises nothing."""

    def link_up(self, side: Side) -> None:
        """The connection is open."""

    def link_message(self, side: Side, message: memoryview | bytes) -> None:
        """A whole text message. A memoryview is valid only during the call."""

    def link_bad_message(self, side: Side, why: str) -> None:
        """A message that is not text, or too long."""

    def link_pong(self, side: Side) -> None:
        """The peer answered our ping."""

    def link_slow(self, side: Side) -> None:
        """The peer has not read for SLOW_PEER_S."""

    def link_lost(self, side: Side, code: int, why: str) -> None:
        """The connection is over, by whomever. The last report of a link, and exactly one.

        `why`: what the peer did that made us end it; empty when it is not the peer's fault, or not known to be.
        """


class _Nobody:
    """Owns a link that its owner has left."""

    def link_up(self, side: Side) -> None:
        pass

    def link_message(self, side: Side, message: memoryview | bytes) -> None:
        pass

    def link_bad_message(self, side: Side, why: str) -> None:
        pass

    def link_pong(self, side: Side) -> None:
        pass

    def link_slow(self, side: Side) -> None:
        pass

    def link_lost(self, side: Side, code: int, why: str) -> None:
        pass


class Link(WSListener):
    """A connection and its bounds."""

    def __init__(
        self, side: Side, owner: Owner, max_message_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` measures how fast the peer sends."""
        self.side = side
        self._owner = owner
        self._max_message_bytes = max_message_bytes
        self._transport: WSTransport | None = None
        self.over = asyncio.Event()
        """Set when the connection is closed, or will never open."""
        self._parts: bytearray | None = None
        """The payload of a fragmented message so far; None when there is none."""
        self._too_long = False
        self._pace = PACES[side]
        self._allowance = self._pace.burst_bytes
        """What the peer may still send; filled up only when it is used up, which costs the others nothing."""
        self._clock = clock
        self._filled_at = 0.0
        self._unsent_bytes = 0
        """Sent since the peer stopped to read."""
        self._code = ABNORMAL
        self._closing = False
        self._slow_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None
        """picows' own account of the end; it is over at the loop's next turn."""

    @property
    def congested(self) -> bool:
        """True while the peer does not read what is sent to it."""
        return self._slow_timer is not None

    @property
    def gathered_bytes(self) -> int:
        """How much of a fragmented message has come so far."""
        return 0 if self._parts is None else len(self._parts)

    # --- Down --------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send a text message; after the end of the connection it goes nowhere."""
        transport = self._transport
        if transport is None or (self._slow_timer is not None and self._overflows(len(message))):
            return
        transport.send(_TEXT, message)

    def ping(self) -> None:
        """Send a ping; the answer comes as `link_pong`."""
        if self._transport is not None:
            self._transport.send_ping()

    def close(self, code: int = 1000) -> None:
        """Close politely; by force when the peer does not close within CLOSE_WAIT_S. Safe to call again.

        Before the connection is open: it is dropped as soon as it opens.
        """
        transport = self._transport
        if transport is None:
            self.over.set()
        if transport is None or self._closing:
            self._closing = True
            return
        self._closing = True
        transport.send_close(WSCloseCode(code))
        loop = asyncio.get_running_loop()
        self._close_timer = loop.call_later(CLOSE_WAIT_S, transport.disconnect, False)

    def hand_to(self, owner: Owner) -> None:
        """Report to this owner from now on."""
        self._owner = owner

    def leave(self) -> None:
        """Close, and report nothing of it: the owner has no more to do with this connection."""
        self._owner = _Nobody()
        self.close()

    # --- Up ----------------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        if self._closing:
            transport.disconnect(graceful=False)
            return
        self._transport = transport
        self._filled_at = self._clock()
        transport.underlying_transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._owner.link_up(self.side)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        size = frame.payload_size
        self._allowance = allowance = self._allowance - size - FRAME_BYTES
        if allowance < 0 and not self._fill_allowance():
            if not self._closing:
                self._owner.link_bad_message(self.side, "too fast")
            elif kind != WSMsgType.CLOSE:
                # The link is closing, and the peer floods on: every frame that is read costs all calls.
                transport.disconnect(graceful=False)
            if kind != WSMsgType.CLOSE:
                return
        if kind == _TEXT and frame.fin:
            self._parts = None
            if size > self._max_message_bytes:
                self._owner.link_bad_message(self.side, TOO_LONG)
            else:
                self._owner.link_message(self.side, frame.get_payload_as_memoryview())
        elif kind == WSMsgType.PONG:
            self._owner.link_pong(self.side)
        elif kind == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind == WSMsgType.CLOSE:
            self._code = int(frame.get_close_code().value) or NO_CODE
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif kind == WSMsgType.BINARY:
            self._parts = None
            self._owner.link_bad_message(self.side, "binary")
        elif kind == _TEXT:
            self._parts, self._too_long = bytearray(), False
            self._gather(frame, self._parts)
        elif kind == WSMsgType.CONTINUATION and self._parts is not None:
            self._gather(frame, self._parts)

    def _gather(self, frame: WSFrame, parts: bytearray) -> None:
        """A fragment. OpenAI may split what is long; Twilio does not."""
        if self._too_long or len(parts) + frame.payload_size > self._max_message_bytes:
            self._too_long = True
            parts.clear()
        else:
            parts += frame.get_payload_as_memoryview()
        if not frame.fin:
            return
        self._parts = None
        if self._too_long:
            self._owner.link_bad_message(self.side, TOO_LONG)
        else:
            self._owner.link_message(self.side, bytes(parts))

    def _fill_allowance(self) -> bool:
        """Add what time has allowed since it was last filled. False: the peer is too fast for this frame."""
        now = self._clock()
        earned = int((now - self._filled_at) * self._pace.bytes_per_s)
        self._filled_at = now
        self._allowance = min(self._allowance + earned, self._pace.burst_bytes)
        if self._allowance >= 0:
            return True
        # What is dropped costs nothing, or a peer that slows down would never be heard again.
        self._allowance = 0
        return False

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._transport = None
        if transport.is_client_side:
            self._ended = asyncio.ensure_future(transport.wait_disconnected())
            self._ended.add_done_callback(_take_exception)
        for timer in (self._slow_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        self.over.set()
        self._owner.link_lost(self.side, self._code, TOO_LONG if _refused_as_too_long(transport) else "")

    # --- Back-pressure -----------------------------------------------------------------------

    def _overflows(self, message_bytes: int) -> bool:
        """True when this is more than may wait for a peer that does not read."""
        before = self._unsent_bytes
        self._unsent_bytes += message_bytes
        if self._unsent_bytes <= self._pace.unsent_max_bytes:
            return False
        if before <= self._pace.unsent_max_bytes:
            self._owner.link_slow(self.side)
        return True

    def pause_writing(self) -> None:
        if self._slow_timer is None:
            loop = asyncio.get_running_loop()
            self._slow_timer = loop.call_later(SLOW_PEER_S, self._report_slow)

    def _report_slow(self) -> None:
        assert self._slow_timer is not None, "the timer that has come"
        late_s = asyncio.get_running_loop().time() - self._slow_timer.when()
        if late_s >= STANDSTILL_S:
            # It was us who did nothing: what the peer has read meanwhile is still to be noticed.
            self._slow_timer = None
            self.pause_writing()
            return
        self._owner.link_slow(self.side)

    def resume_writing(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
            self._unsent_bytes = 0


def _refused_as_too_long(transport: WSTransport) -> bool:
    """True when picows ended the connection at the header of a frame that is longer than it takes."""
    handshake = transport.close_handshake
    return (
        handshake is not None
        and not handshake.recv_then_sent
        and handshake.sent is not None
        and handshake.sent.code == WSCloseCode.MESSAGE_TOO_BIG
    )


def _take_exception(ended: asyncio.Future[None]) -> None:
    """Keep the exception of a frame that picows refused from being logged as one that was never retrieved.

    picows has logged it already; the garbage collector would do so again, as if it were a bug of ours. A real bug
    is logged with its traceback, which picows leaves out.
    """
    error = None if ended.cancelled() else ended.exception()
    if error is not None and not isinstance(error, WSError):
        log.error("link_broke", exc_info=error)
