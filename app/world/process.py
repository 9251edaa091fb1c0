"""Finds a free port for a new process, and waits until the process answers."""

import asyncio
import os
import socket
import sys
from collections import deque
from contextlib import suppress

import httpx

LOOK_EVERY_S = 0.02
HELD_MAX = 200
"""How many ports are held at a time, so that restarts do not use up the file descriptors."""

held: deque[int] = deque()
"""File descriptors, until this process ends: a socket object would complain of not being closed then."""


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
    """Returns a free port of this machine, and holds it so that no other caller gets it meanwhile.

    A socket holds it that is bound to it and does not listen: who connects is refused, and a server may have the
    port that sets SO_REUSEADDR, as all of them do. Only Linux lets it; elsewhere the port is merely free just now.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port: int = holder.getsockname()[1]
    held.append(holder.detach())
    while len(held) > (HELD_MAX if sys.platform == "linux" else 0):
        os.close(held.popleft())
    return port


def last_words(log: bytes) -> str:
    """Returns the end of a process's output."""
    return log[-1_000:].decode(errors="replace")
