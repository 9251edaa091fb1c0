"""A TCP link with faults, between the code under test and a real server. Runs on a thread and a loop of its own.

`Mode.PASS` forwards, each way `delay_s` late. `HANG` accepts and forwards nothing, also what is under way.
`RESET` accepts and resets at the first byte. `REFUSE` does not listen. A change of mode ends, but for HANG and
PASS, the connections that are open. `drop_next_answer` lets a request through and cuts the line instead of the
answer: the server has done what was asked, and nobody knows.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from enum import Enum
from types import TracebackType
from typing import Self

from app.world.process import free_port

THREAD_S = 10.0


class Mode(Enum):
    """What the link does."""

    PASS = "pass"
    HANG = "hang"
    RESET = "reset"
    REFUSE = "refuse"


class Wire:
    """One link to 127.0.0.1:`upstream`. Use as a context manager; all methods are for the test's thread."""

    def __init__(self, upstream: int, *, delay_s: float = 0.0) -> None:
        self.port = free_port()
        self.delay_s = delay_s
        self.upstream = upstream
        self.mode = Mode.PASS
        self.asked = threading.Event()
        """Set whenever somebody connects or sends something; clear it to wait for the next one."""
        self.drops_next_answer = False
        self.ends: set[_End] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._shut)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(THREAD_S)
        self._loop.close()

    def become(self, mode: Mode) -> None:
        """Change the mode. Returns when it holds."""

        async def change() -> None:
            was, self.mode = self.mode, mode
            if mode in {Mode.RESET, Mode.REFUSE} or was is Mode.HANG:
                await self._shut()
            if mode is not Mode.REFUSE and self._server is None:
                await self._listen()

        self._do(change)
        self.asked.clear()

    def drop_next_answer(self) -> None:
        """Of any connection."""
        self.drops_next_answer = True

    def _do(self, what: Callable[[], Coroutine[None, None, None]]) -> None:
        asyncio.run_coroutine_threadsafe(what(), self._loop).result(THREAD_S)

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(
            lambda: _Near(self), "127.0.0.1", self.port, reuse_address=True
        )

    async def _shut(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for end in tuple(self.ends):
            end.cut()
        await asyncio.sleep(0)


class _End(asyncio.Protocol):
    """One end of a connection; what it hears goes to its peer."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self.peer: _End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._wire.ends.add(self)
        for data in self._early:
            transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.later(lambda: self.peer.send(data) if self.peer else None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.ends.discard(self)
        self.later(lambda: self.peer.close() if self.peer else None)

    def later(self, act: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if self._wire.mode is not Mode.HANG:
            loop.call_later(self._wire.delay_s, act)

    def send(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def cut(self) -> None:
        """With a reset rather than a goodbye."""
        if self._transport is not None:
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


class _Near(_End):
    """The end that the code under test holds."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wire.asked.set()
        if self._wire.mode is Mode.PASS:
            self._dial()

    def data_received(self, data: bytes) -> None:
        self._wire.asked.set()
        if self._wire.mode is Mode.RESET:
            self.cut()
        super().data_received(data)

    def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        far = self.peer = _Far(self._wire)
        far.peer = self
        task = loop.create_task(loop.create_connection(lambda: far, "127.0.0.1", self._wire.upstream))
        task.add_done_callback(self._dialled)

    def _dialled(self, task: "asyncio.Task[object]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self.cut()


class _Far(_End):
    """The end that the server holds."""

    def data_received(self, data: bytes) -> None:
        if self._wire.drops_next_answer:
            self._wire.drops_next_answer = False
            if self.peer is not None:
                self.peer.cut()
            self.cut()
            return
        super().data_received(data)
