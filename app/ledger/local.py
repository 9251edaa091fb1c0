"""The ledger in one local libSQL file: a queue, and one thread that owns the file and writes.

    remember() -> queue -> thread: everything queued, in one transaction -> file

What goes wrong stays here: while the file cannot be written, records wait in memory and are tried again; calls go
on. A record leaves memory only when the COMMIT that holds it has returned, which means that the disk has it; and
because it may be written twice without harm, every doubtful outcome is simply tried again. That thread alone waits
for the disk: sqlite3 gives up the interpreter lock meanwhile. Refuses to know how records are spelt (records.py)
and how a file is opened (file.py).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Self

from app.call.records import Record
from app.ledger.file import Database, RefusedError, open_for_writing
from app.ledger.ledger import LedgerError
from app.ledger.migrate import known_migrations, migrate
from app.ledger.records import insertion, refusal

DEPTH_MAX = 100_000
"""Records held in memory while the file cannot be written: about 100 MB, and at 100 records a second (200 busy
calls) a quarter of an hour for somebody to free the disk."""
GATHER_S = 0.02
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

_log = logging.getLogger(__name__)


def open_migrated(path: Path) -> Database:
    """Open the file for writing, with the schema this program knows. Raises LedgerError."""
    database = open_for_writing(path)
    try:
        for migration in migrate(database, known_migrations()):
            _log.info("ledger migrated", extra={"path": str(path), "migration": migration.name})
    except BaseException:
        database.close()
        raise
    return database


@dataclass(frozen=True, slots=True)
class _Marker:
    """Stands in the queue behind the records it is about."""

    reached: "Future[None]"
    last: bool = False


class LocalLedger:
    """The `Ledger` of a single machine. Make one with `open`."""

    def __init__(self, path: Path, connect: Callable[[Path], Database], depth_max: int) -> None:
        self._path = path
        self._connect = connect
        self._depth_max = depth_max
        self._queue: SimpleQueue[Record | _Marker] = SimpleQueue()
        self._accepted = 0  # written by the event loop's thread only
        self._settled = 0  # written by the writer thread only: stored or set aside
        self._lost = 0
        self._lost_logged_at = float("-inf")
        self._loss_unmended = False
        self._error: str | None = None
        self._closed = False
        self._give_up = threading.Event()
        self._ended: Future[None] = Future()
        self._database: Database | None = None  # the writer thread's own

    @classmethod
    async def open(
        cls, path: Path, *, connect: Callable[[Path], Database] = open_migrated, depth_max: int = DEPTH_MAX
    ) -> Self:
        """Open the file (made when missing, its directory is not), migrate it, and start writing.

        Raises LedgerError when that does not work: better no start than a call that leaves nothing behind.
        """
        ledger = cls(path, connect, depth_max)
        opened: Future[None] = Future()
        # A daemon: a disk that hangs for ever must not keep the process alive.
        threading.Thread(target=ledger._run, args=(opened,), name="ledger", daemon=True).start()
        await asyncio.wrap_future(opened)
        return ledger

    @property
    def depth(self) -> int:
        return self._accepted - self._settled

    @property
    def lost(self) -> int:
        return self._lost

    @property
    def healthy(self) -> bool:
        return self.last_error is None

    @property
    def last_error(self) -> str | None:
        if self._loss_unmended:
            return f"{self._lost} records lost: {self._error or 'too many were waiting'}"
        return self._error

    # --- The event loop's side ----------------------------------------------------------------

    def remember(self, record: Record) -> None:
        if self._closed or self.depth >= self._depth_max:
            self._lose()
            return
        self._accepted += 1
        self._queue.put(record)

    def _lose(self) -> None:
        self._lost += 1
        self._loss_unmended = True
        now = time.monotonic()
        if now - self._lost_logged_at >= LOSS_LOG_S:
            self._lost_logged_at = now
            why = "ledger is closed" if self._closed else "too many records are waiting"
            _log.error("ledger record lost", extra={"lost": self._lost, "depth": self.depth, "why": why})

    async def flush(self, timeout_s: float) -> bool:
        if self._ended.done():
            return self.depth == 0
        return await self._reach(_Marker(Future()), timeout_s)

    async def close(self) -> None:
        """Store what is left, within CLOSE_S, and stop the thread. What is not stored by then is logged."""
        if not self._closed:
            self._closed = True
            await self._reach(_Marker(Future(), last=True), CLOSE_S)
            self._give_up.set()
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
        except BaseException as error:  # noqa: BLE001 - handed to `open`, which raises it
            opened.set_exception(error)
            return
        opened.set_result(None)
        try:
            self._work()
        finally:
            self._disconnect()
            self._ended.set_result(None)

    def _work(self) -> None:
        while True:
            records, marker = self._gather()
            if records and not self._persist(records):
                return
            if marker is not None:
                if marker.reached.set_running_or_notify_cancel():
                    marker.reached.set_result(None)
                if marker.last:
                    return

    def _gather(self) -> tuple[list[Record], _Marker | None]:
        """Wait for something, then take what else is there: up to a marker, or a full batch."""
        records: list[Record] = []
        item = self._queue.get()
        if not isinstance(item, _Marker):
            # A busy machine makes a hundred records a second: one commit for what comes together.
            self._give_up.wait(GATHER_S)
        while not isinstance(item, _Marker):
            records.append(item)
            if len(records) == BATCH_MAX:
                return records, None
            try:
                item = self._queue.get_nowait()
            except Empty:
                return records, None
        return records, item

    def _persist(self, records: list[Record]) -> bool:
        """Store the records, however long it takes. False: the ledger is being closed and it still fails."""
        retry_s = RETRY_FIRST_S
        while not self._try(records):
            if self._give_up.wait(retry_s):
                return False
            retry_s = min(2 * retry_s, RETRY_MAX_S)
        self._settled += len(records)
        return True

    def _try(self, records: list[Record]) -> bool:
        try:
            if self._database is None:
                self._database = self._connect(self._path)
            refused = write(self._database, records)
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

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()


def write(database: Database, records: list[Record]) -> list[str]:
    """Store all records in one transaction, or none. Returns why some were set aside instead.

    Raises DatabaseError when nothing was stored, or nobody knows whether it was: do the same again.
    """
    refused: list[str] = []
    with database.transaction():
        for record in records:
            statement = insertion(record)
            try:
                database.execute(statement.sql, statement.values)
            except RefusedError as error:
                aside = refusal(record, str(error), time.time_ns() // 1_000_000)
                database.execute(aside.sql, aside.values)
                refused.append(f"{type(record).__name__} of {record.call_sid}: {error}")
    return refused
