"""Runs commands and prints each one first; in a dry run it only prints them.

Knows nothing of what the commands are for.
"""

import asyncio
import contextlib
import json
import shlex
from asyncio.subprocess import PIPE
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""The repository; commands run here."""

READ_LIMIT_S = 60.0
"""The limit for a command that only reads. A deploy has Fly's own limits."""

STOP_LIMIT_S = 15.0
"""How long an interrupted command may take to release its leases before it is killed."""


class StepError(Exception):
    """A step of the rollout failed. The message says in one line what failed and why."""


def spelt(command: Sequence[str]) -> str:
    """Return a command as one would type it in the repository."""
    return shlex.join(command).replace(f"{ROOT}/", "")


@dataclass(frozen=True, slots=True)
class Ran:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The end of the output, which usually says why the command failed."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit status {self.code}"


@dataclass(frozen=True, slots=True)
class Shell:
    """`say` prints a line."""

    say: Callable[[str], None]
    dry_run: bool = False

    async def read(self, *command: str) -> str:
        """Run a command that changes nothing. Returns its output, or "" in a dry run. Raises StepError."""
        self.say(f"$ {spelt(command)}")
        if self.dry_run:
            return ""
        try:
            async with asyncio.timeout(READ_LIMIT_S):
                ran = await run(*command)
        except TimeoutError:
            raise StepError(f"`{spelt(command)}` gave no answer within {READ_LIMIT_S:g} s.") from None
        if ran.code != 0:
            raise StepError(f"`{spelt(command)}` failed: {ran.last_words}")
        return ran.out

    async def read_list(self, *command: str) -> list[dict[str, Any]]:
        """Run a command that prints a JSON list. Returns the list, empty in a dry run. Raises StepError."""
        text = await self.read(*command)
        if self.dry_run:
            return []
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = text
        if found is None:  # how Go writes an empty list
            return []
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise StepError(f"`{spelt(command)}` printed no list of objects.")
        return found

    async def change(self, *command: str) -> None:
        """Run a command that changes something, and show its output. Raises StepError."""
        self.say(f"$ {spelt(command)}")
        if self.dry_run:
            return
        code = (await run(*command, shown=True)).code
        if code != 0:
            raise StepError(f"`{spelt(command)}` failed with status {code}.")


async def run(*command: str, shown: bool = False) -> Ran:
    """Run a command, and stop it on cancellation. Raises StepError if it cannot be run."""
    stream = None if shown else PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=stream, stderr=stream
        )
    except OSError as error:
        raise StepError(f"{command[0]} cannot be run: {error.strerror}.") from error
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_LIMIT_S):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ran(
        process.returncode or 0, (out or b"").decode(errors="replace"), (err or b"").decode(errors="replace")
    )
