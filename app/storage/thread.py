"""A thread of one's own, for what may hang: a look at a disk, a token in a file.

Not one of the event loop's: work that hangs there takes the threads that look names up. Not of an executor: those
are joined when the program ends, and a disk that hangs for ever must not keep the process alive. Does not know
what the work is.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from app.storage.errors import StorageError

_Answer = TypeVar("_Answer")


class _Job:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work: Callable[[], Any] | None = work
        self.answer: Future[Any] = Future()


class OwnThread:
    """Does one thing after another. Use it from one event loop; the thread begins with the first job."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._started = False
        self._closed = False

    async def run(self, work: Callable[[], _Answer]) -> _Answer:
        """What `work` returns or raises. Raises StorageError when it was not begun before `close`."""
        if self._closed:
            raise self._ended()
        if not self._started:
            self._started = True
            threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True).start()
        job = _Job(work)
        self._jobs.put(job)
        answer: asyncio.Future[_Answer] = asyncio.wrap_future(job.answer)
        try:
            return await answer
        except asyncio.CancelledError:
            # It may stand behind one that hangs, with others to come, and hold a batch of records each.
            job.work = None
            raise

    def close(self) -> None:
        """Returns at once: a job under way goes on by itself, those behind it fail."""
        self._closed = True
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is not None and job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(self._ended())
        self._jobs.put(None)

    def _ended(self) -> StorageError:
        return StorageError(f"{self._name} is closed")


def _work(jobs: "SimpleQueue[_Job | None]") -> None:
    while (job := jobs.get()) is not None:
        work = job.work
        if work is None or not job.answer.set_running_or_notify_cancel():
            continue
        try:
            job.answer.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to who asked
            job.answer.set_exception(error)
        del job, work  # what they hold is not kept until the next one comes
