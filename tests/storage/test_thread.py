"""A thread of one's own: whatever hangs there, nobody else waits, and the program ends."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from app.storage.errors import StorageError
from app.storage.thread import OwnThread

pytestmark = pytest.mark.anyio

WAIT_S = 10.0


class Hang:
    """Work that goes on until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.over = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.over.wait(WAIT_S)
        return "done"


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.over.set()


@pytest.fixture
def thread() -> Iterator[OwnThread]:
    thread = OwnThread("test")
    yield thread
    thread.close()


async def test_answer_and_error_come_back(thread: OwnThread) -> None:
    assert await thread.run(lambda: threading.current_thread().name) == "test"
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)


async def begin(thread: OwnThread, hang: Hang) -> "asyncio.Task[str]":
    task = asyncio.create_task(thread.run(hang))
    assert await asyncio.to_thread(hang.begun.wait, WAIT_S)
    return task


async def test_job_that_was_given_up_is_not_done(thread: OwnThread, hang: Hang) -> None:
    done: list[str] = []
    first = await begin(thread, hang)
    second = asyncio.create_task(thread.run(lambda: done.append("second")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    hang.over.set()
    assert await first == "done"
    await thread.run(lambda: done.append("third"))
    assert done == ["third"]


async def test_end_does_not_wait_for_a_hanging_job_and_fails_what_is_behind_it(
    thread: OwnThread, hang: Hang
) -> None:
    first = await begin(thread, hang)
    second = asyncio.create_task(thread.run(str))
    await asyncio.sleep(0)
    thread.close()
    with pytest.raises(StorageError, match="is closed"):
        await second
    with pytest.raises(StorageError, match="is closed"):
        await thread.run(str)
    hang.over.set()
    assert await first == "done"


HANGING_PROGRAM = """
import asyncio, threading
from app.storage.thread import OwnThread

async def main():
    thread, begun = OwnThread("test"), threading.Event()
    task = asyncio.create_task(thread.run(lambda: (begun.set(), threading.Event().wait())))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    thread.close()

asyncio.run(main())
"""


def test_process_ends_while_a_job_hangs() -> None:
    assert subprocess.run([sys.executable, "-c", HANGING_PROGRAM], timeout=WAIT_S, check=False).returncode == 0
