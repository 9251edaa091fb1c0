"""Runs one kind of attack for a number of seconds against a port of this machine.

    python -m scripts.benchlib.attacks KIND PORT SECONDS

It runs as a process of its own, with low priority, and prints one JSON object: how often it connected, how often
it was closed, and which answers it got. Two kinds need a ticket, and so Twilio's token: they are what a broken or
hostile peer could do with a stream.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from urllib.parse import urlencode, urlsplit

import orjson

from scripts.benchlib.phone import CallEndpoint

CONNECTIONS_PER_S = 200
"""New connections of one attack: what is measured is what each costs, not how many the kernel accepts."""

_FORGED = "A" * 27 + "="
_GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
_UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    "X-Twilio-Signature: {signature}\r\n\r\n"
)


class Attacker:
    """The attacker's connections to one port, and their results."""

    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self.until = time.monotonic() + seconds
        self.seen: Counter[str] = Counter()
        self._next = time.monotonic()
        self._calls = 0

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until

    async def many(self, workers: int, attack: Callable[["Connection"], Awaitable[None]]) -> None:
        """So many connections at a time, each new one attacks from the beginning."""
        await asyncio.gather(*(self._again(attack) for _ in range(workers)))

    async def call(self) -> tuple[str, str]:
        """A ticketed stream: its path, and the signature of its upgrade."""
        endpoint = CallEndpoint(f"http://127.0.0.1:{self.port}", webhooks=True)
        self._calls += 1
        url = await endpoint.stream_url(f"CA{os.getpid():016x}{self._calls:016x}")
        return urlsplit(url).path, endpoint.signature(url)["X-Twilio-Signature"]

    async def _again(self, attack: Callable[["Connection"], Awaitable[None]]) -> None:
        while not self.over:
            self._next = max(self._next + 1 / CONNECTIONS_PER_S, time.monotonic())
            await asyncio.sleep(self._next - time.monotonic())
            connection = Connection(self)
            try:
                await connection.open()
                await attack(connection)
            except (OSError, EOFError):
                self.seen["closed"] += 1
            finally:
                connection.close()


class Connection:
    """One of the attacker's connections."""

    def __init__(self, attacker: Attacker) -> None:
        self.attacker = attacker
        self.seen = attacker.seen
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.attacker.port)
        self.seen["connected"] += 1

    async def send(self, data: bytes) -> None:
        """Raises OSError when the server has closed."""
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> None:
        """Note the status of an answer, or that the server closed without one."""
        assert self._reader is not None
        line = await self._reader.readline()
        self.seen[line.split()[1].decode() if line else "closed"] += 1

    async def held(self) -> None:
        """Waits until the server closes or the attack is over."""
        assert self._reader is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, self.attacker.until - time.monotonic())):
                await self.answer()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


# --- The kinds -------------------------------------------------------------------------------------


async def endless_header(connection: Connection) -> None:
    """Sends a header without an end."""
    await connection.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Endless: ")
    while not connection.attacker.over:
        await connection.send(b"x" * 65_536)


async def pipelining(connection: Connection) -> None:
    """Sends a megabyte of requests at once."""
    while not connection.attacker.over:
        await connection.send(_GET * (1_000_000 // len(_GET)))


async def half_open(connection: Connection) -> None:
    """Sends a request that never ends."""
    await connection.send(_GET[:-2])
    await connection.held()


async def unsigned_webhooks(connection: Connection) -> None:
    """Sends forms of 256 fields with an invalid signature."""
    body = urlencode({f"Field{count}": "x" * 40 for count in range(256)}).encode()
    await connection.send(_webhook(len(body)) + body)
    await connection.answer()


async def slow_bodies(connection: Connection) -> None:
    """Sends a webhook byte by byte, slowly."""
    await connection.send(_webhook(3_000))
    holding = asyncio.create_task(connection.held())
    try:
        while not holding.done():
            await connection.send(b"x")
            await asyncio.wait({holding}, timeout=0.2)
    finally:
        holding.cancel()
        await asyncio.wait({holding})


async def huge_frames(connection: Connection) -> None:
    """Sends media messages of 64 kB on an accepted stream."""
    await _stream(connection)
    media = {"track": "inbound", "timestamp": "20", "payload": "/" * 64_000}
    message = orjson.dumps({"event": "media", "media": media})
    while not connection.attacker.over:
        await connection.send(_frame(0x81, message))
        await asyncio.sleep(0.005)


async def tiny_fragments(connection: Connection) -> None:
    """Sends one message in fragments of a byte, on an accepted stream."""
    await _stream(connection)
    await connection.send(_frame(0x01, b"{"))
    while not connection.attacker.over:
        await connection.send(_frame(0x00, b" ") * 2_000)
        await asyncio.sleep(0.01)


ATTACKS: Mapping[str, tuple[int, Callable[[Connection], Awaitable[None]]]] = MappingProxyType(
    {
        "endless header": (4, endless_header),
        "pipelining": (10, pipelining),
        "half-open": (700, half_open),
        "unsigned webhooks": (8, unsigned_webhooks),
        "slow bodies": (200, slow_bodies),
        "64 kB frames": (1, huge_frames),
        "tiny fragments": (1, tiny_fragments),
    }
)
"""Name to connections at a time, and what each does."""


def _webhook(length: int) -> bytes:
    return (
        "POST /twiml/voice HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        f"X-Twilio-Signature: {_FORGED}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def _stream(connection: Connection) -> None:
    path, signature = await connection.attacker.call()
    await connection.send(_UPGRADE.format(path=path, signature=signature).encode())
    await connection.answer()


def _frame(first: int, payload: bytes) -> bytes:
    """Masked with zeros, which is a mask."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return bytes([first]) + length + bytes(4) + payload


async def _attack(kind: str, port: int, seconds: float) -> Mapping[str, int]:
    workers, attack = ATTACKS[kind]
    attacker = Attacker(port, seconds)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds + 1):
            await attacker.many(workers, attack)
    return attacker.seen


if __name__ == "__main__":
    os.nice(5)
    print(json.dumps(asyncio.run(_attack(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
