"""A thread that owns one file and writes what others hand to it, so that no other thread waits for the disk.

    put() -> memory -> thread: all that waits, in one transaction -> file

Calls go on while the file cannot be written: records wait in memory, and the thread tries again. A record leaves
memory when the COMMIT that holds it has returned, which means that the disk has it, or when somebody has brought
it elsewhere meanwhile (`waiting`, `settle`). Only this thread waits for the disk, and sqlite3 releases the
interpreter lock meanwhile. Between two batches the thread runs the jobs that others have for the file (`ask`),
also while the disk is full, because a deletion may make room. The event loop notices a disk that does not answer
(`_watch`). This module does not know what is written, and how.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterable
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from app.storage.ballast import Ballast
from app.storage.database import Database, damage, disk_full, no_room
from app.storage.errors import StorageError
from app.storage.thread import Job

DEPTH_MAX = 100_000
"""Records held in memory while neither the file nor anything else takes them: about 100 MB, and at 100 records a
second (200 busy calls) a quarter of an hour for somebody to act. Beyond it the newest are turned away and counted.
"""
GATHER_S = 0.05
"""How long a record waits for company before it is committed, and so how much of the newest a kill -9 can take."""
BATCH_MAX = 1_000
"""Records in one transaction: what waits while the disk syncs goes into the next one, and a backlog is worked off
at 6,000 records a second even when a sync takes 100 ms."""
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 5.0
SLOW_S = 1.0
"""After so long without an answer of the disk, a record takes another way if there is one."""
STALL_S = 3.0
"""After so long without an answer, the disk is reported to hang. A sync under load takes tenths of a second."""
LOOK_S = 0.25
"""How often the event loop looks whether the disk has answered."""
OPEN_S = 5.0
"""Longest wait at the start for a disk that does not answer."""
CLOSE_S = 10.0
"""Longest wait for a disk that takes the last records, but slowly. Must stay well below Fly's kill_timeout."""
CLOSE_REFUSED_S = 2.0
"""Longest wait for a disk that refuses them."""
THREAD_END_S = 1.0
"""After that the thread is left to itself; a disk that hangs must not hang the end of the program."""
LOSS_LOG_S = 1.0
"""A loss is logged at once and then at most so often, or the log would be the next thing to overflow."""

_T = TypeVar("_T")
_Answer = TypeVar("_Answer")

_log = logging.getLogger("nearcall.storage")


class _FileJob(Job):
    """Work for the thread to do with the file, before the next batch."""

    def __init__(self, work: Callable[[Database], Any], *, frees: bool, stall_s: float) -> None:
        super().__init__(work)
        self.frees = frees
        """The work makes room on the disk, and may use the ballast's room for that."""
        self.stall_s = stall_s
        """If the work takes longer than this, the disk is reported to hang."""


async def _nothing_to_rescue() -> None:
    """The default of `rescue`: there is no other place for records that the file does not take."""


class Writer(Generic[_T]):
    """One file's queue and thread. `connect` opens the file; `store` writes a batch and says what it set aside.

    `store` writes all or nothing, and may be called again with the same batch after it raised. `mend` is called in
    the thread after an error, with the file closed unless the disk is full, and with how many attempts to store
    have failed in a row; it returns True when it has put another file in place. `close` awaits `rescue` while
    things wait that the file does not take: the last chance to `settle` them.
    """

    def __init__(
        self,
        path: Path,
        connect: Callable[[Path], Database],
        store: Callable[[Database, list[_T]], list[str]],
        depth_max: int,
        mend: Callable[[StorageError, int], bool] = lambda _error, _failures: False,
        *,
        rescue: Callable[[], Awaitable[None]] = _nothing_to_rescue,
        may_be_damaged: bool = False,
    ) -> None:
        self._path = path
        self._connect = connect
        self._store = store
        self._mend = mend
        self._rescue = rescue
        self._may_be_damaged = may_be_damaged
        self._depth_max = depth_max
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching: asyncio.Task[None] | None = None
        self._flushing: list[tuple[int, asyncio.Future[None]]] = []
        self.changed: Callable[[], None] = lambda: None
        """Called in the event loop when the disk begins or ceases to refuse."""
        self._condition = (
            threading.Condition()
        )  # guards this and what follows; never held while a disk is waited for
        self._waiting: dict[int, _T] = {}
        """What is not stored yet, by its number, oldest first."""
        self._jobs: deque[_FileJob] = deque()
        self._due = 0.0
        """When to store next, while something waits."""
        self._closing = False
        self._give_up = False
        self._number = 0  # this and what follows is written by the event loop's thread only
        self._lost = 0
        self._lost_why = ""
        self._lost_logged_at = float("-inf")
        self._closed = False
        self._stalled = False
        self._loss_unmended = False
        self._error: str | None = None  # this and what follows is written by the writer thread only
        self._busy_since: float | None = None
        self._stall_s = STALL_S
        self._ended: Future[None] = Future()
        self._database: Database | None = None
        self._ballast = Ballast(path.with_suffix(".ballast"))
        self._did_job = False
        self._failures = 0
        self._probing = False
        self._retry_s = RETRY_FIRST_S

    async def start(self) -> None:
        """Open the file and start the thread. Raises StorageError when the file cannot be had.

        It does not raise for a disk that is full, fails or does not answer, nor for a damaged file that
        `may_be_damaged`: records wait in memory then, as they do when such a fault comes later.
        """
        self._loop = asyncio.get_running_loop()
        opened: Future[None] = Future()
        # A daemon: a disk that hangs for ever must not keep the process alive.
        threading.Thread(target=self._run, args=(opened,), name="ledger", daemon=True).start()
        waiting = asyncio.wrap_future(opened)
        await asyncio.wait({waiting}, timeout=OPEN_S)
        if waiting.done():
            waiting.result()
        else:
            waiting.cancel()
        self._watching = asyncio.create_task(self._watch(), name="ledger-watch")

    @property
    def depth(self) -> int:
        """Put and not stored yet."""
        return len(self._waiting)

    @property
    def lost(self) -> int:
        """Turned away since the start because too many were waiting, and after `close` what was not stored."""
        return self._lost

    @property
    def busy_s(self) -> float:
        """How long the disk has not answered."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def refusing(self) -> bool:
        """True while the disk does not take records, or takes its time: what waits should go elsewhere."""
        return self._error is not None or self.busy_s > SLOW_S

    @property
    def healthy(self) -> bool:
        """True when the last attempt to store something worked and nothing was lost since."""
        return self.last_error is None

    @property
    def last_error(self) -> str | None:
        """Why this writer is not healthy; None while it is."""
        if self._loss_unmended:
            return f"{self._lost} records lost: {self._error or self._lost_why}"
        if self._stalled:
            return f"{self._path}: the disk has not answered for {self.busy_s:.0f} s"
        return self._error

    # --- The event loop's side ----------------------------------------------------------------

    def put(self, item: _T) -> None:
        """Queue something to be stored. Returns at once; when too many wait it is counted and logged as lost."""
        if self._closed or len(self._waiting) >= self._depth_max:
            self._lose(1, "ledger is closed" if self._closed else "too many records are waiting")
            return
        self._number += 1
        with self._condition:
            first = not self._waiting
            self._waiting[self._number] = item
            if first:
                # A busy machine makes a hundred records a second: one commit for what comes together.
                self._due = max(self._due, time.monotonic() + GATHER_S)
                self._condition.notify()

    def _lose(self, count: int, why: str) -> None:
        self._lost += count
        self._lost_why = why
        self._loss_unmended = True
        now = time.monotonic()
        if now - self._lost_logged_at >= LOSS_LOG_S:
            self._lost_logged_at = now
            _log.error("record_lost", extra={"lost": self._lost, "depth": self.depth, "why": why})

    def waiting(self, count: int, without: Container[int] = ()) -> list[tuple[int, _T]]:
        """The oldest of what is not stored yet, each with its number, at most `count`; not those `without`."""
        with self._condition:
            return list(islice((each for each in self._waiting.items() if each[0] not in without), count))

    def unstored(self, number: int) -> _T | None:
        """What has this number; None when it is stored or settled. For either thread."""
        with self._condition:
            return self._waiting.get(number)

    def settle(self, numbers: list[int]) -> list[_T]:
        """Forget these: somebody has brought them elsewhere. They are stored as well if that is under way.

        Returns what was not stored yet.
        """
        forgotten = self._forget(numbers)
        self._progress()
        return forgotten

    def _forget(self, numbers: Iterable[int]) -> list[_T]:
        with self._condition:
            return [self._waiting.pop(number) for number in numbers if number in self._waiting]

    async def ask(
        self, work: Callable[[Database], _Answer], *, frees: bool = False, stall_s: float = STALL_S
    ) -> _Answer:
        """Have the thread do something with the file. Raises what that raises, and StorageError after `close`.

        `work` is called a second time after an error that could be repaired. `frees` says that it makes room on
        the disk. If it takes longer than `stall_s`, the disk is reported to hang.
        """
        job = _FileJob(work, frees=frees, stall_s=stall_s)
        with self._condition:
            self._jobs.append(job)
            self._condition.notify()
        answer: asyncio.Future[_Answer] = asyncio.wrap_future(job.answer)
        ended = asyncio.wrap_future(self._ended)
        either: set[asyncio.Future[Any]] = {answer, ended}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # An error in an answer that is not awaited would be logged as never retrieved.
            answer.cancel()
            job.drop()
            raise
        if not answer.done():
            answer.cancel()
            job.drop()
            raise StorageError(f"{self._path} is closed")
        return answer.result()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything put so far is stored or settled; False when that took longer than the timeout."""
        reached = asyncio.get_running_loop().create_future()
        self._flushing.append((self._number, reached))
        self._progress()
        try:
            async with asyncio.timeout(0 if self._ended.done() and not reached.done() else timeout_s):
                await reached
        except TimeoutError:
            return False
        return True

    def _progress(self) -> None:
        """Release each flush whose records are stored."""
        with self._condition:
            oldest = next(iter(self._waiting), self._number + 1)
        for target, reached in self._flushing:
            if target < oldest and not reached.done():
                reached.set_result(None)
        self._flushing = [each for each in self._flushing if not each[1].done()]

    async def close(self) -> None:
        """Store what is left, within CLOSE_S, and stop the thread. What is not stored then is lost, and logged."""
        if self._closed:
            return
        self._closed = True
        with self._condition:
            self._closing = True
            self._due = 0.0
            self._condition.notify()
        ended = asyncio.wrap_future(self._ended)
        began = time.monotonic()
        while not ended.done() and time.monotonic() - began < self._patience_s():
            await asyncio.wait({ended}, timeout=min(LOOK_S, self._patience_s()))
        if not ended.done():
            await self._rescue()
            with self._condition:
                self._give_up = True
                self._condition.notify()
            await asyncio.wait({ended}, timeout=THREAD_END_S)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        if unwritten := len(self._waiting):
            self._lose(unwritten, self.last_error or "the disk did not answer in time")
        if self._lost:
            fields = {"path": str(self._path), "unwritten": unwritten, "lost": self._lost, "error": self._error}
            _log.error("file_closed_incomplete", extra=fields)

    def _patience_s(self) -> float:
        """How long `close` waits. A disk that has not answered for a while will not answer better now."""
        if self._stalled:
            return THREAD_END_S
        return CLOSE_S if self._error is None else min(CLOSE_S, CLOSE_REFUSED_S)

    async def _watch(self) -> None:
        """Log a disk that does not answer, and one that answers again."""
        refusing = False
        while True:
            await asyncio.sleep(LOOK_S)
            busy_s = self.busy_s
            if self._stalled != (busy_s > self._stall_s):
                self._stalled = not self._stalled
                if self._stalled:
                    _log.error(
                        "disk_hangs",
                        extra={"path": str(self._path), "for_s": round(busy_s, 1), "depth": self.depth},
                    )
                else:
                    _log.warning("disk_answers_again", extra={"path": str(self._path), "depth": self.depth})
            if refusing != self.refusing:
                refusing = not refusing
                self.changed()

    # --- The writer thread --------------------------------------------------------------------

    def _run(self, opened: "Future[None]") -> None:
        try:
            if self._begin(opened):
                self._work()
        finally:
            self._ended.set_result(None)

    def _begin(self, opened: "Future[None]") -> bool:
        """Open the file, and tell `start` through `opened`. False when that fails in a way that `start` raises."""
        self._busy_since = time.monotonic()
        try:
            self._open()
        except StorageError as error:
            may_start = no_room(error) or (self._may_be_damaged and damage(error) is not None)
            if not may_start and opened.set_running_or_notify_cancel():
                opened.set_exception(error)
                return False
            self._error, self._probing = str(error), True
            _log.error("file_not_opened", extra={"error": self._error})
        except BaseException as bug:  # handed to `start`, which raises it
            if not opened.set_running_or_notify_cancel():
                raise  # `start` did not wait for it
            opened.set_exception(bug)
        self._busy_since = None
        if not opened.done() and opened.set_running_or_notify_cancel():
            opened.set_result(None)
        return opened.cancelled() or opened.exception() is None

    def _work(self) -> None:
        try:
            while (todo := self._next()) is not None:
                self._stall_s = todo.stall_s if isinstance(todo, _FileJob) else STALL_S
                self._busy_since = time.monotonic()
                if isinstance(todo, _FileJob):
                    self._do(todo)
                else:
                    self._persist(todo)
                self._busy_since = None
                del todo  # what it holds is not kept until the next one comes
        finally:
            self._busy_since = time.monotonic()
            self._disconnect()
            self._busy_since = None

    def _open(self) -> None:
        self._ballast.find()
        try:
            self._database = self._connect(self._path)
        except StorageError as error:
            room = no_room(error) and self._ballast.release()
            if not (room or self._mend(error, 0)):
                raise
            self._database = self._connect(self._path)
        try:
            self._ballast.make()
        except StorageError as error:
            _log.warning("ballast_missing", extra={"error": str(error)})

    def _next(self) -> _FileJob | list[tuple[int, _T]] | None:
        """Wait for something to do: a job, or what is due to be stored. None at the end.

        Nothing to store is for a file that has failed: a look whether it works again.
        """
        with self._condition:
            while not self._give_up:
                probes = self._probing and not self._closing
                wait_s = self._due - time.monotonic() if self._waiting or probes else None
                due = wait_s is not None and wait_s <= 0
                # In turns: a backlog holds up no job. A file that fails is tried again at its time.
                if self._jobs and not (due and self._error is None and self._did_job):
                    self._did_job = True
                    return self._jobs.popleft()
                if due:
                    self._did_job = False
                    return list(islice(self._waiting.items(), BATCH_MAX))
                if wait_s is None and self._closing:
                    return None
                self._condition.wait(wait_s)
        return None

    def _persist(self, batch: list[tuple[int, _T]]) -> None:
        """Store a batch, or set the time to try again."""
        try:
            refused = self._attempt(lambda database: self._stored(database, [item for _, item in batch]))
        except Exception as error:  # noqa: BLE001 - top of the thread: whatever it is, records wait and are retried
            self._failed(error)
            return
        for text in refused:
            _log.error("record_refused", extra={"error": text})
        self._forget(number for number, _ in batch)
        with self._condition:
            self._due = 0.0 if self._closing or len(self._waiting) >= BATCH_MAX else time.monotonic() + GATHER_S
        if self._error is not None:
            _log.warning("write_recovered", extra={"depth": self.depth, "lost": self._lost})
        self._error, self._failures, self._retry_s, self._probing = None, 0, RETRY_FIRST_S, False
        self._loss_unmended = False
        self.tell(self._progress)

    def _stored(self, database: Database, items: list[_T]) -> list[str]:
        if self._ballast.spent and not self._closing:
            # What room there is belongs to deliveries until there is enough for both again.
            self._ballast.make()
        if items:
            return self._store(database, items)
        [(number,)] = database.query("PRAGMA user_version")
        database.execute(f"PRAGMA user_version = {number}")  # a write that changes nothing
        return []

    def _failed(self, error: Exception) -> None:
        first = self._error is None
        self._error = str(error)
        self._failures += 1
        # A damaged file that is still in its place is not written to without need.
        self._probing = not (isinstance(error, StorageError) and damage(error))
        # The text of a full or locked disk says all; anything else is a bug and shows where.
        _log.error(
            "write_failed",
            exc_info=None if isinstance(error, StorageError) else error,
            extra={"error": self._error, "depth": self.depth},
        )
        with self._condition:
            self._due = time.monotonic() + (RETRY_FIRST_S if self._closing else self._retry_s)
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
        if first:
            self.tell(self.changed)

    def _do(self, job: _FileJob) -> None:
        job.do(lambda work: self._attempt(work, frees=job.frees))

    def _attempt(self, work: Callable[[Database], _Answer], *, frees: bool = False) -> _Answer:
        try:
            return work(self._connected())
        except StorageError as error:
            if not self._mended(error, frees=frees or self._closing):
                raise
        except BaseException:  # a bug: its connection is not trusted again, as after an error of the file
            self._disconnect()
            raise
        return work(self._connected())

    def _mended(self, error: StorageError, *, frees: bool) -> bool:
        """Do what an error asks for. True when another attempt may go better at once."""
        if disk_full(error):
            # The file stays open: to open it again needs room for the log's index.
            return frees and self._ballast.release()
        # A connection that failed is not trusted again: closing it also ends whatever it had open.
        self._disconnect()
        mended = self._mend(error, self._failures)
        if mended:
            self._due = 0.0
        return mended

    def make_room(self) -> bool:
        """In the thread: True while what is deleted has to make room for the ballast."""
        return self._ballast.spent

    def stored_otherwise(self, number: int) -> None:
        """In the thread: a job has written this into the file by itself."""
        self._forget([number])
        self.tell(self._progress)

    def tell(self, what: Callable[[], None]) -> None:
        """In the thread: have the event loop do something."""
        assert self._loop is not None
        with suppress(RuntimeError):  # a disk that hung until after the loop's end
            self._loop.call_soon_threadsafe(what)

    def _connected(self) -> Database:
        if self._database is None:
            self._database = self._connect(self._path)
        return self._database

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()
