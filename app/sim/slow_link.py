"""A long network path to a port of this machine: every byte arrives late, in order, both ways.

It delays bytes and not messages, so that pings take as long as audio. It does not look at the bytes. The path
loses nothing and has no speed limit.
"""

import asyncio
import contextlib
import socket
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 64 * 1024


class SlowLink:
    """Listens on a port of its own and passes connections on, `delay_ms` late in each direction."""

    def __init__(self, port: int, *, delay_ms: float) -> None:
        self._target_port = port
        self._delay_s = delay_ms / 1000
        self._server: asyncio.Server | None = None
        self._port = 0
        self._held: socket.socket | None = None
        """Bound to the port while connections are refused, so that no other process gets it."""
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        assert self._server is not None, "not entered"
        return self._port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.break_off()
        self._let_go()

    async def break_off(self) -> None:
        """Ends every connection and refuses new ones until `mend`."""
        assert self._server is not None
        self._server.close()
        if self._held is None:
            self._held = socket.socket()
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held.bind(("127.0.0.1", self._port))
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def mend(self) -> None:
        """Listens again on the same port."""
        self._let_go()
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self._port)

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: the task that asyncio makes of one complains about its own cancellation (Python 3.11).
        task = asyncio.get_running_loop().create_task(self._connect(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            except OSError:
                return
            with contextlib.closing(far_writer):
                ways = [
                    asyncio.create_task(self._carry(reader, far_writer)),
                    asyncio.create_task(self._carry(far_reader, writer)),
                ]
                try:
                    await asyncio.gather(*ways)
                finally:
                    for way in ways:
                        way.cancel()

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Carries one direction until its end, which arrives late as well."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # a peer that is gone, at any of these steps
            while data := await source.read(_CHUNK_BYTES):
                loop.call_later(self._delay_s, _write, target, data)
            await asyncio.sleep(self._delay_s)
            if not target.is_closing() and target.can_write_eof():
                target.write_eof()


def _write(target: asyncio.StreamWriter, data: bytes) -> None:
    if not target.is_closing():
        target.write(data)
