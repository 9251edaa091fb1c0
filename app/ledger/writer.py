"""A thread that owns one file and writes what it is handed: nobody else waits for the disk.

    put() -> queue -> thread: everything queued, in one transaction -> file

What goes wrong stays here: while the file cannot be written, things wait in memory and are tried again; calls go
on. A thing leaves memory only when the COMMIT that holds it has returned, which means that the disk has it. That
thread alone waits for the disk: sqlite3 gives up the interpreter lock meanwhile. In between it does what others
ask of the file, also while it is full: taking something out may be what makes room. Refuses to know what is
written, and how.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from app.ledger.file import Database, no_room
from app.ledger.ledger import LedgerError

DEPTH_MAX = 100_000
"""Records held in memory while the file cannot be written: about 100 MB, and at 100 records a second (200 busy
calls) a quarter of an hour for somebody to free the disk."""
GATHER_S = 0.05
"""How long a record waits for company before it is committed, and so how much of the newest a kill -9 can take."""
BATCH_MAX = 1_000
"""Records in one transaction: what waits while the disk syncs goes into the next one, and a backlog is worked off
at 6,000 records a second even when a sync takes 100 ms."""
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 5.0
CLOSE_S = 10.0
"""Longest wait for the last records. Must stay well below Fly's kill_timeout."""
THREAD_END_S = 1.0
"""After that the thread gives up what it is doing; a disk that hangs must not hang the end of the program."""
LOSS_LOG_S = 1.0
"""A loss is logged at once and then at most so often, or the log would be the next thing to overflow."""

_T = TypeVar("_T")
_Answer = TypeVar("_Answer")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Marker:
    """Stands in the queue behind what it is about."""

    reached: "Future[None]"
    last: bool = False


@dataclass(frozen=True, slots=True)
class _Job:
    """Something to do with the file as soon as possible; it waits for nothing that is queued."""

    work: Callable[[Database], Any]
    answer: "Future[Any]"


class Writer(Generic[_T]):
    """One file's queue and thread. `connect` opens the file; `store` writes a batch and says what it set aside.

    `store` writes all or nothing, and may be called again with the same batch after it raised.
    """

    def __init__(
        self,
        path: Path,
        connect: Callable[[Path], Database],
        store: Callable[[Database, list[_T]], list[str]],
        depth_max: int,
    ) -> None:
        self._path = path
        self._connect = connect
        self._store = store
        self._depth_max = depth_max
        self._queue: SimpleQueue[_T | _Marker | _Job] = SimpleQueue()
        self._accepted = 0  # written by the event loop's thread only
        self._settled = 0  # written by the writer thread only: stored or set aside
        self._lost = 0
        self._lost_logged_at = float("-inf")
        self._loss_unmended = False
        self._error: str | None = None
        self._closed = False
        self._give_up = threading.Event()
        self._ended: Future[None] = Future()
        self._database: Database | None = None  # this and what follows is the writer thread's own
        self._waiting: deque[_T | _Marker] = deque()
        self._retry_s = RETRY_FIRST_S
        self._retry_at: float | None = None

    async def start(self) -> None:
        """Open the file and start the thread. Raises LedgerError when the file cannot be had.

        A full disk is no reason: things wait in memory until it has room, as they do when it fills up later.
        """
        opened: Future[None] = Future()
        # A daemon: a disk that hangs for ever must not keep the process alive.
        threading.Thread(target=self._run, args=(opened,), name="ledger", daemon=True).start()
        await asyncio.wrap_future(opened)

    @property
    def depth(self) -> int:
        """Put and not stored yet."""
        return self._accepted - self._settled

    @property
    def lost(self) -> int:
        """Turned away since the start because too many were waiting."""
        return self._lost

    @property
    def healthy(self) -> bool:
        """True when the last attempt to store something worked and nothing was lost since."""
        return self.last_error is None

    @property
    def last_error(self) -> str | None:
        """Why it is not healthy."""
        if self._loss_unmended:
            return f"{self._lost} records lost: {self._error or 'too many were waiting'}"
        return self._error

    # --- The event loop's side ----------------------------------------------------------------

    def put(self, item: _T) -> None:
        """Queue something to be stored. Returns at once; when too many wait it is counted and logged as lost."""
        if self._closed or self.depth >= self._depth_max:
            self._lose()
            return
        self._accepted += 1
        self._queue.put(item)

    def _lose(self) -> None:
        self._lost += 1
        self._loss_unmended = True
        now = time.monotonic()
        if now - self._lost_logged_at >= LOSS_LOG_S:
            self._lost_logged_at = now
            why = "ledger is closed" if self._closed else "too many records are waiting"
            _log.error("ledger record lost", extra={"lost": self._lost, "depth": self.depth, "why": why})

    async def ask(self, work: Callable[[Database], _Answer]) -> _Answer:
        """Have the thread do something with the file. Raises what that raises, and LedgerError after `close`."""
        job = _Job(work, Future())
        self._queue.put(job)
        answer: asyncio.Future[_Answer] = asyncio.wrap_future(job.answer)
        ended = asyncio.wrap_future(self._ended)
        either: set[asyncio.Future[Any]] = {answer, ended}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Nobody hears the answer: an error in it would be logged as never retrieved.
            answer.cancel()
            raise
        if not answer.done():
            answer.cancel()
            raise LedgerError(f"{self._path} is closed")
        return answer.result()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything put so far is stored; False when that took longer than the timeout."""
        if self._ended.done():
            return self.depth == 0
        return await self._reach(_Marker(Future()), timeout_s)

    async def close(self) -> None:
        """Store what is left, within CLOSE_S, and stop the thread. What is not stored by then is logged."""
        if not self._closed:
            self._closed = True
            if not await self._reach(_Marker(Future(), last=True), CLOSE_S):
                self._give_up.set()
                self._queue.put(_Marker(Future()))  # for it to wake up
        with suppress(TimeoutError):
            async with asyncio.timeout(THREAD_END_S):
                await asyncio.shield(asyncio.wrap_future(self._ended))
        if self.depth or self._lost:
            _log.error("ledger closed incomplete", extra={"unwritten": self.depth, "lost": self._lost})

    async def _reach(self, marker: _Marker, timeout_s: float) -> bool:
        self._queue.put(marker)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wrap_future(marker.reached)
        except TimeoutError:
            return False
        return True

    # --- The writer thread --------------------------------------------------------------------

    def _run(self, opened: "Future[None]") -> None:
        try:
            self._database = self._connect(self._path)
        except BaseException as error:  # noqa: BLE001 - handed to `start`, which raises it
            if not (isinstance(error, LedgerError) and no_room(error)):
                self._ended.set_result(None)
                opened.set_exception(error)
                return
            self._error = str(error)
            _log.error("ledger cannot be opened", extra={"error": self._error})
        opened.set_result(None)
        try:
            while self._goes_on():
                self._listen()
        finally:
            self._disconnect()
            self._ended.set_result(None)

    def _goes_on(self) -> bool:
        """Store a batch if it is time to, and let go who waits for that. False at the end."""
        now = time.monotonic()
        while self._waiting and (self._retry_at is None or now >= self._retry_at):
            if not isinstance(self._waiting[0], _Marker):
                self._persist()
                break
            marker = self._waiting.popleft()
            assert isinstance(marker, _Marker)
            if marker.reached.set_running_or_notify_cancel():
                marker.reached.set_result(None)
            if marker.last:
                return False
        return not self._give_up.is_set()

    def _listen(self) -> None:
        """Wait for something new, but not longer than until the next thing to do; do jobs, queue the rest."""
        try:
            heard = self._queue.get(timeout=self._pause_s())
            if not self._waiting and not isinstance(heard, _Marker | _Job):
                # A busy machine makes a hundred records a second: one commit for what comes together.
                self._give_up.wait(GATHER_S)
            while True:
                if isinstance(heard, _Job):
                    self._do(heard)
                else:
                    self._waiting.append(heard)
                heard = self._queue.get_nowait()
        except Empty:
            return

    def _pause_s(self) -> float | None:
        if not self._waiting:
            return None
        return 0.0 if self._retry_at is None else max(0.0, self._retry_at - time.monotonic())

    def _persist(self) -> None:
        """Store what comes first, up to a marker or a full batch; or set the time to try again."""
        batch = [
            item
            for item in takewhile(lambda item: not isinstance(item, _Marker), islice(self._waiting, BATCH_MAX))
            if not isinstance(item, _Marker)
        ]
        if not self._try(batch):
            self._retry_at = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
            return
        self._retry_at, self._retry_s = None, RETRY_FIRST_S
        for _ in batch:
            self._waiting.popleft()
        self._settled += len(batch)

    def _try(self, batch: list[_T]) -> bool:
        try:
            refused = self._store(self._connected(), batch)
        except Exception as error:  # noqa: BLE001 - top of the thread: whatever it is, records wait and are retried
            self._error = str(error)
            # The text of a full or locked disk says all; anything else is a bug and shows where.
            _log.error(
                "ledger write failed",
                exc_info=None if isinstance(error, LedgerError) else error,
                extra={"error": self._error, "depth": self.depth},
            )
            # A connection that failed is not trusted again: closing it also ends whatever it had open.
            self._disconnect()
            return False
        for text in refused:
            _log.error("ledger record refused", extra={"error": text})
        if self._error is not None:
            _log.warning("ledger write recovered", extra={"depth": self.depth, "lost": self._lost})
        self._error = None
        self._loss_unmended = False
        return True

    def _do(self, job: _Job) -> None:
        if not job.answer.set_running_or_notify_cancel():
            return
        try:
            job.answer.set_result(job.work(self._connected()))
        except Exception as error:  # noqa: BLE001 - handed to who asked
            self._disconnect()
            job.answer.set_exception(error)

    def _connected(self) -> Database:
        if self._database is None:
            self._database = self._connect(self._path)
        return self._database

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()
