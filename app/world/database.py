"""Runs a real sqld as a zone's primary. It needs no tokens, since it listens on 127.0.0.1 only."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.world.process import answers, free_port, last_words

START_LIMIT_S = 10.0


class DatabaseError(Exception):
    """sqld did not start."""


@asynccontextmanager
async def sqld(program: Path, directory: Path) -> AsyncIterator[str]:
    """Starts an empty sqld and gives its URL. Raises DatabaseError."""
    await asyncio.to_thread(directory.mkdir, parents=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (directory / "log").open("wb") as log:
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *("--db-path", str(directory / "data"), "--http-listen-addr", f"127.0.0.1:{port}", "--no-welcome"),
                env={"RUST_LOG": "warn", "NO_COLOR": "1"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise DatabaseError(f"cannot run {program}: {error.strerror}") from error
    try:
        if not await answers(f"{url}/health", process, START_LIMIT_S):
            said = await asyncio.to_thread((directory / "log").read_bytes)
            raise DatabaseError(f"sqld did not start: {last_words(said)}")
        yield url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
