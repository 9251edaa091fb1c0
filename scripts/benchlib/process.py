"""Starts processes pinned to a core, measures them from outside, and ends them with this process."""

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""

STOP_LIMIT_S = 12.0
"""A server ends its calls within ten seconds of SIGTERM; then it is killed."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_CPUCLOCK_SCHED = 2


class ChildError(Exception):
    """A measured process did not start, or ended by itself. The text has the end of its output."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running process."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises ChildError when the process has ended."""
        if self.process.returncode is not None:
            raise ChildError(f"{self.name} ended with {self.process.returncode}:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-2_000:]


def cores() -> tuple[int, int]:
    """The core for what is measured, and the one for the load; the same when there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@asynccontextmanager
async def child(
    name: str,
    command: Sequence[str | Path],
    directory: Path,
    *,
    core: int | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Child]:
    """Runs a command from the repository without a terminal, on one core or on any, and stops it at the end."""
    log = directory / f"{name}.log"

    def prepare() -> None:
        # Dies with us even when we are killed; Ctrl-C reaches us only, and we stop it in order.
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if core is not None:
            os.sched_setaffinity(0, {core})

    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=prepare,
        )
    try:
        yield Child(name, process, log)
    finally:
        await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def cpu_s(pid: int) -> float:
    """Processor time of a whole process so far, in nanosecond steps.

    The clock id of another process is made as clock_getcpuclockid(3) makes it; /proc/PID/stat has the same
    figure in steps of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def rss_kb(pid: int) -> int:
    """Resident memory of a process in kB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ChildError(f"process {pid} is gone")
