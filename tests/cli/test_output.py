"""A command whose reader closes the pipe ends silently, with the status that a shell reports for SIGPIPE."""

import asyncio
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.cli.demo import VOICES
from tests.cli.servers import IN_TIME_S, KEYS, NEARCALL, Served, environ, serving

pytestmark = pytest.mark.anyio


async def begin(*arguments: str, env: dict[str, str], cwd: Path) -> tuple[Process, int]:
    """Start a command. Returns its process, and the end of the pipe that its output comes from."""
    reader, writer = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            NEARCALL, *arguments, stdout=writer, stderr=PIPE, env=env, cwd=cwd
        )
    finally:
        os.close(writer)
    return process, reader


async def ended(process: Process) -> tuple[int | None, bytes]:
    async with asyncio.timeout(IN_TIME_S):
        _, err = await process.communicate()
    return process.returncode, err


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as served:
        yield served


async def test_short_output_that_nobody_reads_is_status_141(tmp_path: Path) -> None:
    """All of it is still in the buffer when the command is done."""
    process, reader = await begin("--version", env=environ(), cwd=tmp_path)
    os.close(reader)
    assert await ended(process) == (141, b"")


async def test_call_whose_report_nobody_reads_ends_with_141(served: Served, tmp_path: Path) -> None:
    """As `nearcall call URL --json | head -1`."""
    long = ["--say", str(VOICES / "caller_asks.wav")] * 20  # not over before the pipe is closed
    process, reader = await begin("call", served.url, "--json", *long, env=environ(**KEYS), cwd=tmp_path)
    with os.fdopen(reader, "rb") as out:
        async with asyncio.timeout(IN_TIME_S):
            assert b"WebhookAnswered" in await asyncio.to_thread(out.readline)
    assert await ended(process) == (141, b"")
