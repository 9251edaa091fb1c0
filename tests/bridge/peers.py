"""The other ends of a link: an owner that writes down what it is told, a transport without a socket, and a
WebSocket peer that sends whatever bytes a test wants."""

import asyncio
import base64
import contextlib
import hashlib
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import pytest
from picows import WSCloseCode, WSMsgType

from app.backends.dial import dial
from app.bridge.link import Link
from app.call.events import Side
from app.wire.dialect import Address

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

MESSAGE_MAX = 1_000
"""Bytes; what the links of these tests take."""

FRAME_MAX = 10_000

LOOPS = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]
"""The server's loop is uvloop; asyncio's own is the one with warnings for what is left open."""

Told = tuple[object, ...]


class Owner:
    """Writes down what its links report."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._changed = asyncio.Condition()
        self._waking: set[asyncio.Task[None]] = set()

    def link_up(self, side: Side) -> None:
        self._note("up")

    def link_message(self, side: Side, message: memoryview | bytes) -> None:
        self._note("message", bytes(message))

    def link_bad_message(self, side: Side, why: str) -> None:
        self._note("bad", why)

    def link_pong(self, side: Side) -> None:
        self._note("pong")

    def link_slow(self, side: Side) -> None:
        self._note("slow")

    def link_lost(self, side: Side, code: int, why: str) -> None:
        self._note("lost", code, *([why] if why else []))

    def _note(self, *what: object) -> None:
        self.told.append(what)
        waking = asyncio.get_running_loop().create_task(self._wake())
        self._waking.add(waking)
        waking.add_done_callback(self._waking.discard)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, *what: object) -> None:
        """Wait until this was told."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: what in self.told)

    async def until_lost(self) -> None:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: any(told[0] == "lost" for told in self.told))

    def all(self, what: str) -> list[Told]:
        return [told for told in self.told if told[0] == what]


class UnderlyingTransport:
    """Takes the bound that a link sets."""

    def __init__(self) -> None:
        self.high: int | None = None

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high


class FakeFrame:
    """A whole frame, as picows hands it to a link."""

    fin = True

    def __init__(self, kind: WSMsgType, payload: bytes = b"") -> None:
        self.msg_type = kind
        self.payload_size = len(payload)
        self._payload = payload

    def get_payload_as_bytes(self) -> bytes:
        return self._payload

    def get_payload_as_memoryview(self) -> memoryview:
        return memoryview(self._payload)

    def get_close_code(self) -> WSCloseCode:
        return WSCloseCode(int.from_bytes(self._payload[:2], "big"))


class FakeTransport:
    """A picows transport that writes down what a link does with it, in order."""

    is_client_side = False
    close_handshake = None

    def __init__(self, on_send: Callable[[bytes], None] = lambda _message: None) -> None:
        self.done: list[Told] = []
        self.underlying_transport = UnderlyingTransport()
        self.on_send = on_send

    def send(self, kind: WSMsgType, message: bytes) -> None:
        self.done.append(("send", message))
        self.on_send(message)

    def send_ping(self) -> None:
        self.done.append(("ping",))

    def send_pong(self, message: bytes) -> None:
        self.done.append(("pong", message))

    def send_close(self, code: WSCloseCode) -> None:
        self.done.append(("close", code.value))

    def disconnect(self, graceful: bool = True) -> None:
        self.done.append(("disconnect", "politely" if graceful else "by force"))

    @property
    def sent(self) -> list[bytes]:
        return [bytes(step[1]) for step in self.done if step[0] == "send"]  # type: ignore[call-overload]


class RawPeer:
    """A WebSocket server for one connection, without rules: its owner decides every byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def accept(self) -> dict[str, str]:
        """Answer the upgrade with 101. Returns the request's headers, names in lower case."""
        request = await self.request()
        key = request["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        digest = hashlib.sha1(key.encode()).digest()
        self.writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        return request

    async def request(self) -> dict[str, str]:
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        lines = (line.partition(": ") for line in text.split("\r\n")[1:] if line)
        return {name.lower(): value for name, _, value in lines}

    def send(self, kind: int, payload: bytes = b"", *, fin: bool = True) -> None:
        self.writer.write(frame(kind, payload, fin=fin))

    async def receive(self) -> tuple[int, bytes]:
        """The next frame: its kind and its payload without the mask."""
        first, second = await self.reader.readexactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", await self.reader.readexactly(8))
        mask = await self.reader.readexactly(4) if second & 0x80 else b"\0\0\0\0"
        payload = await self.reader.readexactly(length)
        return first & 0xF, bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))

    async def gone(self) -> None:
        """Wait until the other end has closed its connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65_536):
                pass


def frame(kind: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A frame as a server sends it."""
    length = len(payload)
    size = bytes([length]) if length < 126 else struct.pack(">BH", 126, length)
    size = size if length < 65_536 else struct.pack(">BQ", 127, length)
    return bytes([kind | (0x80 if fin else 0)]) + size + payload


class RawServer:
    """Listens, and gives each connection as a RawPeer."""

    def __init__(self, ssl: Any = None) -> None:
        self._ssl = ssl
        self._peers: asyncio.Queue[RawPeer] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._ssl)
        self._all: list[RawPeer] = []
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for peer in self._all:
            peer.writer.transport.abort()
            with contextlib.suppress(OSError):
                await peer.writer.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = RawPeer(reader, writer)
        self._all.append(peer)
        self._peers.put_nowait(peer)

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    async def peer(self) -> RawPeer:
        """The next connection."""
        async with asyncio.timeout(10):
            return await self._peers.get()


@contextlib.asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, Owner, RawPeer]]:
    """A link that has dialled a raw peer, and is up."""
    owner = Owner()
    link = Link(Side.BACKEND, owner, MESSAGE_MAX)
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        dialling = tasks.create_task(dial(Address(f"ws://127.0.0.1:{server.port}/", {}), link, FRAME_MAX))
        peer = await server.peer()
        await peer.accept()
        await dialling
        yield link, owner, peer
