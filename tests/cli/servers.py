"""Starts `nearcall` in processes of their own, for tests of the command line."""

import asyncio
import contextlib
import json
import os
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from app.sim.phone.options import PhoneOptions
from app.world.process import free_port

TOKEN = "0123456789abcdef0123456789abcdef"
ACCOUNT_SID = "AC00000000000000000000000000000001"
SECRET = "not-to-be-seen-in-any-line-of-output-ever"
KEYS = {"TWILIO_AUTH_TOKEN": TOKEN, "TWILIO_ACCOUNT_SID": ACCOUNT_SID}

NEARCALL = Path(sys.executable).with_name("nearcall")
IN_TIME_S = 60.0


def environ(**settings: str) -> dict[str, str]:
    """An environment with these settings of nearcall's and no others."""
    ours = re.compile("NEARCALL_|TWILIO_|OPENAI_|TURSO_|FLY_|PORT$|COLUMNS$|FORCE_COLOR$")
    return {name: value for name, value in os.environ.items() if not ours.match(name)} | settings


def server_environ(directory: Path, port: int, **more: str) -> dict[str, str]:
    return environ(
        NEARCALL_PUBLIC_URL=f"http://127.0.0.1:{port}",
        NEARCALL_SECRET=SECRET,
        NEARCALL_DATA_DIR=str(directory),
        PORT=str(port),
        **{"NEARCALL_PRACTICE": "1", "NEARCALL_LAG_MAX_MS": "10000", **KEYS, **more},
    )


class Ran:
    """What a command that has ended printed."""

    def __init__(self, code: int | None, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def complaints(self) -> list[str]:
        """Lines for a person on standard error; there must be nothing else but log lines."""
        return [line for line in self.err.splitlines() if not line.startswith("{")]


async def run(*arguments: str, env: dict[str, str], cwd: Path) -> Ran:
    process = await asyncio.create_subprocess_exec(
        NEARCALL, *arguments, stdout=PIPE, stderr=PIPE, env=env, cwd=cwd
    )
    async with asyncio.timeout(IN_TIME_S):
        out, err = await process.communicate()
    return Ran(process.returncode, out.decode(), err.decode())


class Served:
    """A `nearcall serve` in a process of its own."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[dict[str, Any]] = []
        self._changed = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(json.loads(line))  # every line is JSON: anything else ends the test here
            async with self._changed:
                self._changed.notify_all()

    async def logged(self, msg: str) -> dict[str, Any]:
        async with asyncio.timeout(IN_TIME_S), self._changed:
            await self._changed.wait_for(lambda: self._reading.done() or any(x["msg"] == msg for x in self.lines))
        if self._reading.done():
            self._reading.result()
        return next(line for line in self.lines if line["msg"] == msg)

    async def ended(self) -> int:
        async with asyncio.timeout(IN_TIME_S):
            code = await self.process.wait()
            await self._reading
        return code

    def phone(self) -> PhoneOptions:
        return PhoneOptions(f"{self.url}/twiml/voice", TOKEN, account_sid=ACCOUNT_SID, document_pace=0)


@contextlib.asynccontextmanager
async def serving(directory: Path, *arguments: str, **settings: str) -> AsyncIterator[Served]:
    """With these settings, and listening where they say, unless the arguments have another port."""
    env = server_environ(directory / "data", free_port(), **settings)
    port = arguments[arguments.index("--port") + 1] if "--port" in arguments else env["PORT"]
    process = await asyncio.create_subprocess_exec(
        NEARCALL, "serve", *arguments, stderr=PIPE, env=env, cwd=directory
    )
    served = Served(process, int(port))
    try:
        await served.logged("server_started")
        yield served
    finally:
        if process.returncode is None:
            process.terminate()
        await served.ended()
