"""Fly's edge for tests, as far as a roll-out sees it: a request goes to the Machine of the region in its header.

Requests are not understood beyond their head: bytes go to and fro.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_REGION = re.compile(rb"^fly-(?:force|prefer)-region: *(\w+)", re.IGNORECASE | re.MULTILINE)
_AUTHORIZATION = re.compile(rb"^authorization: *([^\r]*)", re.IGNORECASE | re.MULTILINE)

Answer = tuple[int, str]
"""Status and body of a /healthz."""


@dataclass(slots=True)
class Edge:
    """What is behind it may be changed at any time."""

    machines: dict[str, int] = field(default_factory=dict)
    """Ports of real servers, by region."""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    """What is answered instead, by region, one after the other; the last one for ever."""
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """The regions that requests named, in their order."""
    tokens: set[str] = field(default_factory=set)
    """What requests carried as their authorization."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            named = _REGION.search(head)
            region = named[1].decode() if named else "none"
            self.asked.append(region)
            self.tokens |= {token.decode() for token in _AUTHORIZATION.findall(head)}
            if region in self.machines:
                await self._forward(self.machines[region], head, reader, writer)
            else:
                self._answer(region, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # who called has gone
        finally:
            writer.close()

    def _answer(self, region: str, writer: asyncio.StreamWriter) -> None:
        answers = self.answers.get(region, [(503, "no Machine")])
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write((head + body).encode())

    async def _forward(
        self, port: int, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        there_writer.write(head)
        to_it = asyncio.create_task(_pipe(reader, there_writer))
        try:
            await _pipe(there_reader, writer)
        finally:
            to_it.cancel()
            await asyncio.wait({to_it})
            there_writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


def healthy(region: str, status: str = "ok", **more: object) -> Answer:
    """What nearcall's /healthz says. fra takes calls of two zones."""
    numbers = ["test:eu", "test:global"] if region == "fra" else ["test:global"]
    body = {"status": status, "region": region, "test_numbers": numbers, **more}
    return (503 if status == "down" else 200, json.dumps(body))


@asynccontextmanager
async def edge(
    machines: Mapping[str, int] | None = None, answers: Mapping[str, list[Answer]] | None = None
) -> AsyncIterator[Edge]:
    """An edge that listens."""
    made = Edge(dict(machines or {}), dict(answers or {}))
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
