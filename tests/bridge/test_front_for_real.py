"""A real `nearcall serve` that may open few files, and strangers who want them all."""

import asyncio
import contextlib
import socket
from pathlib import Path

import httpx
import pytest

from app.world.process import free_port
from scripts.benchlib import targets
from scripts.benchlib.process import child

pytestmark = pytest.mark.anyio

DESCRIPTORS = 256


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def test_half_open_connections_leave_descriptors_and_answers_for_others(tmp_path: Path) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *targets.SERVE)
    async with (
        asyncio.timeout(40),
        child("nearcall", command, tmp_path, env=targets.settings(base, tmp_path, "", "")) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        await targets.until_answered(server, port, targets.HEALTH)
        for _ in range(2 * DESCRIPTORS):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            stranger.sendall(b"GET /livez HTTP/1.1\r\n")
        async with httpx.AsyncClient(base_url=base, trust_env=False, headers=targets.OPERATOR) as client:
            connections = (await client.get("/healthz")).json()["connections"]
        assert connections["open"] <= DESCRIPTORS // 4
        assert set(connections["closed"]) == {"connections"}
        used = list(Path(f"/proc/{server.pid}/fd").iterdir())  # noqa: ASYNC240  no disk
        assert len(used) < DESCRIPTORS // 2


async def test_soft_limit_of_descriptors_is_raised(tmp_path: Path) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = ("prlimit", "--nofile=128:2048", *targets.SERVE)
    async with (
        asyncio.timeout(40),
        child("nearcall", command, tmp_path, env=targets.settings(base, tmp_path, "", "")) as server,
    ):
        await targets.until_answered(server, port, targets.HEALTH)
        limits = Path(f"/proc/{server.pid}/limits").read_text()  # noqa: ASYNC240  no disk
        [line] = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert line.split()[3:5] == ["2048", "2048"]
