"""Records of one zone on this machine's disk, on their way to the primary.

    put() -> writer thread -> spool.db -> take() -> primary -> done()

Nothing happens to a record before it is on the disk, and it leaves the disk when the primary has it. In between it
may be taken any number of times; a kill -9 at any instant costs a second delivery and no record. Refuses to know
where records go (shipper.py), and what is in them.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from app.call.records import Record
from app.ledger import aside, open_legs
from app.ledger.file import (
    LOCK_WAIT_S,
    Database,
    DatabaseError,
    closed_on_error,
    damage,
    no_room,
    open_for_writing,
)
from app.ledger.ledger import LedgerError
from app.ledger.records import Packed, packed
from app.ledger.sql import Row
from app.ledger.writer import DEPTH_MAX, Writer

SPOOL_TABLE = "spool"
"""Its columns call_sid, caller (E.164 or NULL) and at_ms (Unix ms) are there for erasure: rows may vanish."""

_log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: the order of delivery
    kind     TEXT NOT NULL,
    call_sid TEXT NOT NULL,
    caller   TEXT,
    at_ms    INTEGER NOT NULL,
    content  TEXT NOT NULL
) STRICT
"""
_PUT = "INSERT INTO spool (kind, call_sid, caller, at_ms, content) VALUES (?, ?, ?, ?, ?)"
_TAKE = "SELECT id, kind, call_sid, caller, at_ms, content FROM spool WHERE id > ? ORDER BY id LIMIT ?"
_DONE = "DELETE FROM spool WHERE id IN (SELECT value FROM json_each(?))"
_COUNT = "SELECT count(*), min(id) FROM spool"
_ONE = "SELECT id, kind, call_sid, caller, at_ms, content FROM spool WHERE id = ?"
_LAST_ID = "SELECT seq FROM sqlite_sequence WHERE name = 'spool'"


@dataclass(frozen=True, slots=True)
class Spooled:
    """A record that was taken, and stays until it is `done`."""

    id: int
    record: Packed


class _DamagedError(LedgerError):
    """The file opens, and not all of it can be read."""


def open_spool(path: Path) -> Database:
    """Open the file, made when it is missing. Raises LedgerError."""
    database = open_for_writing(path)
    with closed_on_error(database):
        # What a caller said is in no file once it is delivered: overwritten in this one when the write-ahead log
        # is moved into it, which then is cut to nothing (`Spool._empty_log`).
        database.execute("PRAGMA secure_delete = ON")
        database.execute(_SCHEMA)
        database.execute(aside.SCHEMA)
        database.execute(open_legs.SCHEMA)
    return database


class Spool:
    """Make one with `open`, in the event loop that uses it."""

    def __init__(self, path: Path, connect: Callable[[Path], Database], depth_max: int) -> None:
        self._writer = Writer[Record](path, connect, self._store, depth_max)
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._on_disk = 0  # this and what follows is written by the writer's thread only
        self._aside = 0
        self._first_id = 1
        """No id below it is in the file."""
        self._log_used = True
        self._damaged = False
        self._unreadable: set[int] = set()

    @classmethod
    async def open(
        cls, path: Path, *, connect: Callable[[Path], Database] = open_spool, depth_max: int = DEPTH_MAX
    ) -> Self:
        """Open the file and find what is left in it. Raises LedgerError.

        A damaged file is put aside for a human: calls that are recorded from now on are worth more than a start
        that fails.
        """
        try:
            return await cls._opened(path, connect, depth_max)
        except LedgerError as error:
            why = str(error) if isinstance(error, _DamagedError) else _broken(error)
            if why is None:
                raise
        aside = await asyncio.to_thread(_put_aside, path)
        _log.error("ledger spool damaged", extra={"error": why, "kept": str(aside)})
        return await cls._opened(path, connect, depth_max)

    @classmethod
    async def _opened(cls, path: Path, connect: Callable[[Path], Database], depth_max: int) -> Self:
        spool = cls(path, connect, depth_max)
        await spool._writer.start()
        try:
            await spool._writer.ask(spool._examine)
        except LedgerError as error:
            # On a full disk records wait in memory, and what is in the file comes to light when it has room.
            if not no_room(error):
                await spool.close()
                raise
        return spool

    @property
    def depth(self) -> int:
        """Records here, those in memory included."""
        return self._writer.depth + self._on_disk

    @property
    def aside(self) -> int:
        """Records of this machine that the primary refused and that wait for an operator."""
        return self._aside

    @property
    def lost(self) -> int:
        """Records turned away because too many were waiting for the disk."""
        return self._writer.lost

    @property
    def last_error(self) -> str | None:
        """Why records do not get onto the disk; None when they do."""
        return self._writer.last_error

    def put(self, record: Record) -> None:
        """Keep a record. Returns at once and never raises."""
        self._writer.put(record)

    async def take(self, count: int, after: int = 0) -> list[Spooled]:
        """The oldest records with ids above `after`, at most `count`. Raises DatabaseError."""
        return await self._writer.ask(lambda database: self._take(database, count, after))

    async def done(self, ids: Sequence[int]) -> None:
        """Let go of records. Raises DatabaseError when the disk does not: they may then be taken again."""
        await self._writer.ask(lambda database: self._let_go(database, ids))

    async def set_aside(self, record_id: int, error: str) -> None:
        """Take a record out of the way of the others and keep it for an operator. Raises DatabaseError."""
        await self._writer.ask(lambda database: self._set_aside(database, record_id, error))

    async def arrival(self, timeout_s: float) -> None:
        """Wait until records may have come since the last time, but not longer than that."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        self._arrived.clear()

    def wake(self) -> None:
        """End the wait of `arrival`."""
        self._arrived.set()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all that was put is on the disk; False when that took longer."""
        return await self._writer.flush(timeout_s)

    async def close(self) -> None:
        """Put on the disk what is left, within a bounded time, and stop."""
        await self._writer.close()

    # --- In the writer's thread ---------------------------------------------------------------

    def _examine(self, database: Database) -> None:
        """All of the file: a page that is met only when its turn comes would hold up what is behind it."""
        [(verdict,)] = database.query("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise _DamagedError(" ".join(str(verdict).split()))
        open_legs.end_all(database)
        self._count(database)

    def _store(self, database: Database, records: list[Record]) -> list[str]:
        with database.transaction():
            for record in records:
                database.execute(_PUT, _row(packed(record)))
                open_legs.note(database, record)
        self._on_disk += len(records)
        self._log_used = True
        self._loop.call_soon_threadsafe(self._arrived.set)
        return []

    def _take(self, database: Database, count: int, after: int) -> list[Spooled]:
        try:
            rows = database.query(_TAKE, (after, count))
        except DatabaseError as error:
            self._bear(error)
            rows = self._readable(database, count, after)
        if not rows and self._damaged:
            # Whatever is still in there has been delivered, or never will be.
            self._on_disk = 0
        elif not rows:
            # Somebody may have erased records: count again, now that there are few.
            self._count(database)
            self._empty_log(database)
        return [_spooled(row) for row in rows]

    def _readable(self, database: Database, count: int, after: int) -> list[Row]:
        """As _TAKE, without what is damaged. Asks id by id: a broken page does not say what is next."""
        [(last,)] = database.query(_LAST_ID)
        rows: list[Row] = []
        lost: list[int] = []
        for each in range(max(after + 1, self._first_id), int(last or 0) + 1):
            try:
                rows += database.query(_ONE, (each,))
            except DatabaseError as error:
                self._bear(error)
                lost.append(each)
            if len(rows) == count:
                break
        if new := sorted(set(lost) - self._unreadable):
            _log.error("ledger records lost in a damaged spool", extra={"ids": new})
            self._unreadable.update(new)
        return rows

    def _bear(self, error: DatabaseError) -> None:
        """Go on in spite of damage: the next start puts the file aside. Raises any other error again."""
        why = _broken(error)
        if why is None:
            raise error
        if not self._damaged:
            self._damaged = True
            _log.error("ledger spool damaged", extra={"error": why, "remedy": "restart the server"})

    def _let_go(self, database: Database, ids: Sequence[int]) -> None:
        try:
            with database.transaction():
                database.execute(_DONE, (json.dumps(ids),))
                [(gone,)] = database.query("SELECT changes()")
        except DatabaseError as error:
            # They stay in a file that nobody reads again.
            self._bear(error)
            gone = len(ids)
        self._on_disk = max(0, self._on_disk - int(gone or 0))

    def _set_aside(self, database: Database, record_id: int, error: str) -> None:
        aside.set_aside(database, record_id, error)
        self._count(database)

    def _count(self, database: Database) -> None:
        [(count, first)] = database.query(_COUNT)
        self._on_disk, self._first_id = int(count or 0), int(first or 1)
        self._aside = aside.count(database)

    def _empty_log(self, database: Database) -> None:
        """What was delivered is in no file any more: its pages in the log were written before it was deleted."""
        if self._on_disk == 0 and self._log_used:
            # Without waiting for another process that reads: records may come. The next time, then.
            database.query("PRAGMA busy_timeout = 0")
            [(busy, *_)] = database.query("PRAGMA wal_checkpoint(TRUNCATE)")
            database.query(f"PRAGMA busy_timeout = {1_000 * LOCK_WAIT_S:.0f}")
            self._log_used = bool(busy)


def _broken(error: LedgerError) -> str | None:
    """As `damage`, also for a text that SQLite hands out and Python cannot read."""
    return str(error) if "Could not decode to UTF-8" in str(error) else damage(error)


def _put_aside(path: Path) -> Path:
    """Move the file with its log, which may hold what the file does not. Raises LedgerError."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns() // 1_000_000}")
    try:
        for suffix in ("-shm", "-wal", ""):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    except OSError as error:
        raise LedgerError(f"{path} is damaged and cannot be moved away: {error.strerror}") from error
    return aside


def _row(record: Packed) -> Row:
    return record.kind, record.call_sid, record.caller, record.at_ms, record.content


def _spooled(row: Row) -> Spooled:
    number, kind, call_sid, caller, at_ms, content = row
    record = Packed(
        str(kind), str(call_sid), None if caller is None else str(caller), int(at_ms or 0), str(content)
    )
    return Spooled(int(number or 0), record)
