"""Local TCP connections that behave like long ones: every byte, end and reset arrives late and in order.

A `Link` is read and written like a stream. It can be held (nothing moves and nothing is lost, as when the other
end hangs) and reset in either direction. It does not look at the bytes. Not simulated: the round trips of the
handshakes of TCP and TLS, loss, and a limit of the path's speed.
"""

import asyncio
import contextlib
import enum
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar, cast

from app.sim.notifier import Notifier

Item = TypeVar("Item")

_UNREAD_MAX_BYTES: Final = 256 * 1024
"""Beyond this the socket is not read from, so that a reader's slowness reaches the sender."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class _DelayQueue(Generic[Item]):
    """Hands on each item in order, `delay_s` after it came, and none while it is held."""

    def __init__(self, delay_s: float, hand_on: Callable[[Item], None]) -> None:
        self.held = False
        self._delay_s = delay_s
        self._hand_on = hand_on
        self._items: deque[tuple[float, Item]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def push(self, item: Item, *, at_once: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        self._items.append((now if at_once else now + self._delay_s, item))
        if self._timer is None:
            self.go_on()

    def go_on(self) -> None:
        """Hands on what is due and sets a timer for the rest."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._items and not self.held:
            due, item = self._items[0]
            if due > loop.time():
                self._timer = loop.call_at(due, self.go_on)
                return
            self._items.popleft()
            self._hand_on(item)

    def clear(self) -> None:
        self._items.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Sent(enum.Enum):
    """What can be sent besides bytes."""

    END = enum.auto()
    CLOSE = enum.auto()
    RESET = enum.auto()


class Link(asyncio.Protocol):
    """One connection. Its owner must call `close` or `reset`, or `destroy` when nothing has to arrive any more."""

    def __init__(self, name: str, delay_s: float, connected: Callable[["Link"], None]) -> None:
        """`name` is the other end's, for errors; `delay_s` is one way; `connected` is called when it is."""
        self._name = name
        self.gone = asyncio.get_running_loop().create_future()
        """Done when the socket is closed."""
        self._connected = connected
        self._inbound = _DelayQueue[bytes | ConnectionError | None](delay_s, self._arrive)
        self._outbound = _DelayQueue[bytes | _Sent](delay_s, self._depart)
        self._transport: asyncio.Transport | None = None
        self._notifier = Notifier()
        self._unread: deque[bytes] = deque()
        self.unread_bytes = 0
        """What has arrived and was not read yet."""
        self._ended = False
        self._error: ConnectionError | None = None
        self.full = False
        """True while the other end does not read what is written."""

    @property
    def peer_address(self) -> str:
        """The IP address of the other end."""
        return cast("tuple[str, int]", self._open.get_extra_info("peername") or ("unknown", 0))[0]

    @property
    def _open(self) -> asyncio.Transport:
        assert self._transport is not None, "not connected"
        return self._transport

    # Reading and writing

    async def read(self) -> bytes:
        """What has arrived, b"" at the end. Raises ConnectionError when the connection broke."""
        await self._notifier.until(lambda: bool(self._unread) or self._ended)
        if self._unread:
            data = b"".join(self._unread)
            self._unread.clear()
            self.unread_bytes = 0
            self._flow()
            return data
        if self._error is not None:
            raise self._error
        return b""

    async def ended(self) -> None:
        """Returns when the other end has sent its end or broken the connection."""
        await self._notifier.until(lambda: self._ended)

    def write(self, data: bytes, *, travelled: bool = False) -> None:
        """Send these bytes; they arrive later. When they have travelled with the request to connect: now."""
        self._outbound.push(data, at_once=travelled)

    async def drain(self) -> None:
        """Waits until more may be written. Raises ConnectionError when the connection is broken."""
        await self._notifier.until(lambda: self._error is not None or not (self.full or self._outbound.held))
        if self._error is not None:
            raise self._error

    def write_eof(self) -> None:
        """Nothing more will be written."""
        self._outbound.push(_Sent.END)

    def close(self) -> None:
        """Close when everything written has arrived."""
        self._outbound.push(_Sent.CLOSE)

    # Faults

    @property
    def broken(self) -> bool:
        """True when the connection did not end in order, as far as is known at this end."""
        return self._error is not None

    def reset(self) -> None:
        """Break the connection from this end; the other end notices later."""
        self._outbound.push(_Sent.RESET)

    def fail(self, why: str) -> None:
        """Let this end find the connection broken now; `reset` is then its user's to call."""
        self._arrive(ConnectionResetError(why))

    def break_far_end(self) -> None:
        """The other end breaks the connection; this end notices later, a hang notwithstanding."""
        self._outbound.clear()
        self._lost(ConnectionResetError(f"{self._name} was killed"))
        self._abort()

    def hold(self, held: bool) -> None:
        """Let nothing through in either direction, or let it go on."""
        self._inbound.held = self._outbound.held = held
        self._flow()
        if not held:
            self._inbound.go_on()
            self._outbound.go_on()
            self._notifier.changed()

    def destroy(self) -> None:
        """Close at once and forget what is on its way."""
        self._inbound.clear()
        self._outbound.clear()
        self._abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connected(self)

    def data_received(self, data: bytes) -> None:
        self._inbound.push(data)

    def eof_received(self) -> bool:
        self._inbound.push(None)
        return True  # the other direction stays open

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(ConnectionResetError(f"{self._name} is gone: {exc or 'closed'}"))
        if not self.gone.done():
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._notifier.changed()

    # What arrives, at this end and at the other

    def _arrive(self, item: bytes | ConnectionError | None) -> None:
        if isinstance(item, bytes):
            self._unread.append(item)
            self.unread_bytes += len(item)
            self._flow()
        else:
            self._ended = True
            self._error = self._error or item
        self._notifier.changed()

    def _depart(self, item: bytes | _Sent) -> None:
        if self._open.is_closing():
            return
        match item:
            case bytes():
                self._open.write(item)
            case _Sent.END:
                with contextlib.suppress(OSError):  # the peer has reset it, and connection_lost is on its way
                    self._open.write_eof()
            case _Sent.CLOSE:
                self._open.close()
            case _Sent.RESET:
                self._abort()

    def _lost(self, error: ConnectionError) -> None:
        self._inbound.held = self._outbound.held = False  # who is dead does not hang
        self._inbound.push(error)
        self._inbound.go_on()

    def _flow(self) -> None:
        if self._open.is_closing():
            return
        if self._inbound.held or self.unread_bytes > _UNREAD_MAX_BYTES:
            self._open.pause_reading()
        else:
            self._open.resume_reading()

    def _abort(self) -> None:
        """Close with a TCP reset and not with an ordinary end."""
        if not self._open.is_closing():
            raw = cast("socket.socket", self._open.get_extra_info("socket"))
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._open.abort()
