"""uvicorn for simulators: a server that runs in the caller's event loop, for any application."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn


class InnerServer(uvicorn.Server):
    """uvicorn inside a running event loop: it leaves the signals alone and sets `up` when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()
