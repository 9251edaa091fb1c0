"""Runs the processes that are measured: the real server, and a minimal relay for comparison."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from app.world.process import free_port
from scripts.benchlib.phone import ACCOUNT_SID, AUTH_TOKEN, CallEndpoint
from scripts.benchlib.process import Child, child

READY_LIMIT_S = 20.0
LOOK_EVERY_S = 0.002

BACKEND_KEY = "sk-of-the-load"

ADMIN_TOKEN = "a" * 32
OPERATOR = MappingProxyType({"Authorization": f"Bearer {ADMIN_TOKEN}"})
"""Headers that have /healthz tell all it knows."""

SERVE = (Path(sys.executable).with_name("nearcall"), "serve", "--env-file", os.devnull)


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def settings(base: str, directory: Path, backend_url: str, backend_key: str) -> Mapping[str, str]:
    """The environment of a server at `base` (http://127.0.0.1:port) that keeps its data in `directory`.

    Without a key the practice backend answers there.
    """
    return {
        "NEARCALL_PUBLIC_URL": base,
        "NEARCALL_SECRET": "s" * 32,
        "NEARCALL_ADMIN_TOKEN": ADMIN_TOKEN,
        "NEARCALL_DATA_DIR": str(directory / "data"),
        "NEARCALL_CONFIG": "",
        # What a core carries is measured, not what is let in.
        "NEARCALL_CALLS_MAX": "10000",
        "NEARCALL_SETUPS_MAX": "10000",
        "NEARCALL_LAG_MAX_MS": "10000",
        "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
        "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
        "OPENAI_API_KEY": backend_key,
        "NEARCALL_PRACTICE": "" if backend_key else "1",
        "OPENAI_BASE_URL": backend_url,
        "PORT": base.rpartition(":")[2],
    }


@dataclass(frozen=True, slots=True)
class Target:
    """A process under load."""

    name: str
    child: Child
    endpoint: CallEndpoint
    ready_s: float
    """From the start of the process to its first useful answer."""


@asynccontextmanager
async def nearcall(
    directory: Path,
    backend_url: str,
    *,
    core: int,
    name: str = "nearcall",
    primary_url: str = "",
    trusted: Path | None = None,
) -> AsyncIterator[Target]:
    """The real server with its ledger on, as `nearcall serve` runs it: in a local file, or on a primary.

    `trusted`: the backend's certificate; None: it is spoken to without TLS.
    """
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    env = {**settings(base, directory, backend_url, BACKEND_KEY), "TURSO_URL": primary_url}
    if trusted is not None:
        env["SSL_CERT_FILE"] = str(trusted)
    started = time.monotonic()
    async with child(name, SERVE, directory, core=core, env=env) as process:
        await until_answered(process, port, HEALTH)
        ready_s = time.monotonic() - started
        yield Target(name, process, CallEndpoint(base, webhooks=True), ready_s)
        process.check()


@contextmanager
def hung_primary() -> Iterator[str]:
    """The URL of a database whose connections are accepted, by the kernel, and never answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def relay(directory: Path, backend_url: str, *, core: int) -> AsyncIterator[Target]:
    """The least relay."""
    port = free_port()
    backend = backend_url.replace("http", "ws", 1) + "/realtime"
    started = time.monotonic()
    command = (sys.executable, "-m", "scripts.benchlib.relay", str(port), backend)
    async with child("relay", command, directory, core=core) as process:
        await until_answered(process, port, b"")
        endpoint = CallEndpoint(f"http://127.0.0.1:{port}", webhooks=False)
        yield Target("least relay", process, endpoint, time.monotonic() - started)
        process.check()


async def until_answered(process: Child, port: int, request: bytes) -> None:
    """Until the process accepts a connection, and answers `request` with 200 when there is one."""
    async with asyncio.timeout(READY_LIMIT_S):
        while not await _answers(port, request):
            process.check()
            await asyncio.sleep(LOOK_EVERY_S)


async def _answers(port: int, request: bytes) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    try:
        if not request:
            return True
        writer.write(request)
        return (await reader.read()).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()
