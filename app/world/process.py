"""Waiting for a process that was just started to answer, and a port for it."""

import asyncio
import socket
from contextlib import suppress

import httpx

LOOK_EVERY_S = 0.02


async def answers(url: str, process: asyncio.subprocess.Process, limit_s: float) -> bool:
    """True once a GET of `url` succeeds; False when the process has ended, or has not answered in time."""
    async with httpx.AsyncClient(trust_env=False) as client:
        for _ in range(round(limit_s / LOOK_EVERY_S)):
            if process.returncode is not None:
                return False
            with suppress(httpx.TransportError):
                if (await client.get(url)).is_success:
                    return True
            await asyncio.sleep(LOOK_EVERY_S)
    return False


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def last_words(log: bytes) -> str:
    """The end of what it said."""
    return log[-1_000:].decode(errors="replace")
