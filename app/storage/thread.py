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


class Job:
    """Something for a thread to do, and its answer."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work: Callable[..., Any] | None = work
        self.answer: Future[Any] = Future()

    def do(self, run: Callable[[Callable[..., Any]], Any]) -> None:
        """In the thread: have `run` call the work, and hand what it returns or raises to the one who asked."""
        work = self._work
        if work is None or not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(run(work))
        except BaseException as error:  # noqa: BLE001 - handed to who asked
            self.answer.set_exception(error)

    def drop(self) -> None:
        """The answer is not wanted any more. The job may stand behind one that hangs: let go of what it holds."""
        self._work = None
        self.answer.cancel()

    def refuse(self, error: StorageError) -> None:
        """It will not be done."""
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(error)


class OwnThread:
    """Does one thing after another. Use it from one event loop; the thread begins with the first job."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._started = False
        self._closed = False

    async def run(self, work: Callable[[], _Answer]) -> _Answer:
        """What `work` returns or raises. Raises StorageError when it was not begun before `close`."""
        if self._closed:
            raise self._ended()
        if not self._started:
            self._started = True
            threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True).start()
        job = Job(work)
        self._jobs.put(job)
        answer: asyncio.Future[_Answer] = asyncio.wrap_future(job.answer)
        try:
            return await answer
        except asyncio.CancelledError:
            job.drop()
            raise

    def close(self) -> None:
        """Returns at once: a job under way goes on by itself, those behind it fail."""
        self._closed = True
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is not None:
                job.refuse(self._ended())
        self._jobs.put(None)

    def _ended(self) -> StorageError:
        return StorageError(f"{self._name} is closed")


def _work(jobs: "SimpleQueue[Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job.do(lambda work: work())
        del job  # what it holds is not kept until the next one comes
