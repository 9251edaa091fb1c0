"""Records of one zone on this machine's disk, on their way to the primary.

    put() -> writer thread -> spool.db -> take() -> primary -> done()

Normally a record is delivered only from the disk, and deleted there only when the primary has it. It may be taken
any number of times in between, so a kill -9 at any instant can cause a second delivery, but loses no record. When
the disk does not take records:

    full        records are taken from memory; deletions use the ballast's room (ballast.py)
    hangs       records are taken from memory, nothing waits for the disk
    fails       the same; when a new file can be written beside the old one, it takes the old one's place
    damaged     a new file takes the damaged one's place at once

The readable records of a file that was replaced are moved into the new one (salvage.py). This module does not know
where records go (shipper.py), and what is in them.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from app.call.records import Record
from app.ledger import aside, open_legs
from app.ledger.records import Packed, packed
from app.ledger.salvage import Found, Salvage, move, unread_files
from app.storage.database import (
    LOCK_WAIT_S,
    Database,
    closed_on_error,
    damage,
    disk_fails,
    no_room,
    open_for_writing,
)
from app.storage.errors import StorageError
from app.storage.statement import Row
from app.storage.writer import DEPTH_MAX, LOOK_S, OPEN_S, SLOW_S, Writer

REPLACE_AFTER = 3
"""After so many failed writes in a row (0.35 s) a new file is tried. A disk may fail for a moment."""
DELETE_MAX = 200
"""Records that are deleted in one transaction: on a full disk there is room for a short one."""
LOOK_AGAIN_S = 2.0
"""How often to look for something to do while the disk refuses: deletions are tried again."""
GIVE_UP_S = 10.0
"""Longest wait for an answer of the disk while nothing waits in memory."""
IDS_MAX = 100
"""Ids of lost records in one line of the log."""
EXAMINE_S = 0.5
"""Longest wait of a start for a look at the whole file; it goes on meanwhile."""
EXAMINE_MAX_S = 60.0
"""After that, the look at the whole file counts as a disk that hangs."""
SHRINK_BYTES = 16 * 2**20
"""An empty spool gives room back to the disk when its file is larger than this."""

_Answer = TypeVar("_Answer")

_log = logging.getLogger("nearcall.ledger")

_SCHEMA = """
-- call_sid, caller and at_ms are there for erasure, which deletes rows while the server runs.
CREATE TABLE IF NOT EXISTS spool (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: the order of delivery
    kind     TEXT NOT NULL,
    call_sid TEXT NOT NULL,
    caller   TEXT,                               -- E.164 or NULL
    at_ms    INTEGER NOT NULL,                   -- Unix ms
    content  TEXT NOT NULL
) STRICT
"""
_BY_CALL = "CREATE INDEX IF NOT EXISTS spool_by_call ON spool (call_sid)"
"""For the history of a call that is to be resumed: after an outage of hours the spool has millions of rows."""
_PUT = "INSERT INTO spool (kind, call_sid, caller, at_ms, content) VALUES (?, ?, ?, ?, ?)"
_TAKE = "SELECT id, kind, call_sid, caller, at_ms, content FROM spool WHERE id > ? ORDER BY id LIMIT ?"
_ONE = "SELECT id, kind, call_sid, caller, at_ms, content FROM spool WHERE id = ?"
_DONE = "DELETE FROM spool WHERE id IN (SELECT value FROM json_each(?))"
_COUNT = "SELECT count(*) FROM spool"
_LAST_ID = "SELECT seq FROM sqlite_sequence WHERE name = 'spool'"
_GO_ON_AFTER = "INSERT INTO sqlite_sequence (name, seq) VALUES ('spool', ?)"


@dataclass(frozen=True, slots=True)
class Spooled:
    """A record that was taken. It stays in the spool until `done` is called with its id."""

    id: int
    """The id of its row; negative if the record was taken from memory."""
    record: Packed


class _DamagedError(StorageError):
    """The file opens, and not all of it can be read."""


def open_spool(path: Path) -> Database:
    """Open the file, made when it is missing. Raises StorageError."""
    database = open_for_writing(path)
    with closed_on_error(database):
        # Vacuuming makes a temporary file, and the disk may be full.
        database.execute("PRAGMA temp_store = MEMORY")
        # What a caller said is in no file once it is delivered: overwritten in this one when the write-ahead log
        # is moved into it, which then is cut to nothing (`Spool._empty_log`).
        database.execute("PRAGMA secure_delete = ON")
        database.execute(_SCHEMA)
        database.execute(_BY_CALL)
        database.execute(aside.SCHEMA)
        database.execute(open_legs.SCHEMA)
    return database


class Spool:
    """The records of one zone on this machine. Make it with `open`, in the event loop that uses it."""

    def __init__(self, path: Path, connect: Callable[[Path], Database], depth_max: int) -> None:
        self._path = path
        self._connect = connect
        self._arrived = asyncio.Event()
        self._writer = Writer[Record](path, connect, self._store, depth_max, self._mend, may_be_damaged=True)
        self._writer.changed = self._arrived.set
        self._undeleted: set[int] = set()  # of either thread
        """Rows that were delivered, and are still in the file."""
        self._legs = open_legs.OpenLegs()
        self._out: set[int] = set()  # this and what follows is written by the event loop's thread only
        """Rows that were taken and are not delivered yet: those that the primary refuses stay behind."""
        self._delivered_to = 0
        """The highest id of a row that was delivered."""
        self._delete_error: str | None = None
        self._legs_error: str | None = None
        self._examined = False  # this and what follows is written by the writer's thread only
        self._counted = False
        self._dead_legs_ended = False
        self._on_disk = 0
        self._aside = 0
        self._last_id = 0
        self._log_used = True
        self._salvages: list[Salvage] = []
        self._found: Found | None = None
        """What a salvage has found, and is not in the new file yet."""
        self._unreadable = 0

    @classmethod
    async def open(
        cls, path: Path, *, connect: Callable[[Path], Database] = open_spool, depth_max: int = DEPTH_MAX
    ) -> Self:
        """Open the file and find what is left in it. Raises StorageError.

        A damaged file is put aside for a human, and what can be read of it is delivered.
        """
        spool = cls(path, connect, depth_max)
        await spool._writer.start()
        try:
            # A disk that hangs is not waited for. What is in the file comes to light when it can be read.
            async with asyncio.timeout(OPEN_S):
                await spool._writer.ask(spool._count)
            # Nor is the whole of a large backlog: it takes a second for 100,000 records.
            async with asyncio.timeout(EXAMINE_S):
                await spool._writer.ask(spool._examine, stall_s=EXAMINE_MAX_S)
                await spool._end_dead_legs()
        except TimeoutError:
            pass
        except StorageError as error:
            if not (no_room(error) or _broken(error)):
                await spool.close()
                raise
        return spool

    @property
    def depth(self) -> int:
        """Records here that were not delivered, those in memory included."""
        kept = sum(each.left for each in tuple(self._salvages))
        return self._writer.depth + max(0, self._on_disk + kept - len(self._undeleted))

    @property
    def aside(self) -> int:
        """Records of this machine that the primary refused and that wait for an operator."""
        return self._aside + sum(each.left_aside for each in tuple(self._salvages))

    @property
    def lost(self) -> int:
        """Records that were turned away, could not be read again, or after `close` were on no disk."""
        return self._writer.lost + self._unreadable

    @property
    def refusing(self) -> bool:
        """True while records wait in memory because the disk does not take them."""
        return self._writer.refusing

    @property
    def last_error(self) -> str | None:
        """Why records do not get onto the disk, or not off it; None when they do."""
        return self._writer.last_error or self._delete_error

    def put(self, record: Record) -> None:
        """Keep a record. Returns at once and never raises."""
        self._writer.put(record)
        if self._writer.refusing:
            self._arrived.set()

    async def take(self, count: int, after: int = 0, without: Iterable[int] = ()) -> list[Spooled]:
        """At most `count` records: those in memory while the disk refuses, then the oldest with ids above `after`.

        `without` leaves out records in memory by their ids; records on the disk are left out by `after`. Raises
        StorageError when the disk cannot be read and no record is in memory.
        """
        unwritten = self._unwritten(count, without) if self._writer.refusing else []
        rows: list[Row] = []
        if len(unwritten) < count and not (unwritten and self._writer.busy_s > SLOW_S):
            try:
                rows = await self._ask(lambda database: self._take(database, count - len(unwritten), after))
            except StorageError:
                # Some may have come to wait in memory meanwhile.
                unwritten = unwritten or self._unwritten(count, without)
                if not unwritten:
                    raise
        taken = [_spooled(row) for row in rows]
        self._out.update(each.id for each in taken)
        if unwritten:
            # In a thread: to pack a full batch takes 4 ms.
            memory = await asyncio.to_thread(
                lambda: [Spooled(-number, packed(record)) for number, record in unwritten]
            )
            return memory + taken
        return taken

    async def find(self, record_id: int) -> Spooled | None:
        """A record that was taken before; None when it is not there under this id any more.

        Raises StorageError when the disk does not say.
        """
        if record_id < 0:
            record = self._writer.unstored(-record_id)
            return None if record is None else Spooled(record_id, await asyncio.to_thread(packed, record))
        rows = await self._ask(lambda database: database.query(_ONE, (record_id,)))
        if not rows:
            self._out.discard(record_id)
            return None
        return _spooled(rows[0])

    def may_have(self, record_id: int) -> bool:
        """False when it is certain, without asking the disk, that there is no record under this id any more."""
        return record_id > 0 or self._writer.unstored(-record_id) is not None

    async def done(self, ids: Sequence[int]) -> None:
        """Remove records that were delivered. Rows that the disk does not delete now are deleted later."""
        self._legs.delivered(self._writer.settle([-each for each in ids if each < 0]))
        self._out.difference_update(ids)
        self._undeleted.update(each for each in ids if each > 0)
        self._delivered_to = max([self._delivered_to, *ids])
        if self._writer.busy_s > SLOW_S:
            return
        if not self._writer.refusing:
            await self._end_dead_legs()
        if not self._undeleted:
            return
        rows = sorted(self._undeleted)
        try:
            await self._ask(lambda database: self._let_go(database, rows), frees=True)
        except StorageError as error:
            if self._delete_error is None:
                _log.error("spool_deletion_failed", extra={"error": str(error), "rows": len(rows)})
            self._delete_error = str(error)
            return
        self._delete_error = None

    async def set_aside(self, record_id: int, error: str) -> bool:
        """Take a record out of the way of the others and keep it in the file for an operator.

        False when it is not there under this id any more. Raises StorageError when the disk does not take it.
        """
        if record_id < 0:
            return await self._ask(lambda database: self._set_aside_unwritten(database, -record_id, error))
        # On a full disk too: records that are delivered make room for it.
        there = await self._ask(lambda database: self._set_aside(database, record_id, error), frees=True)
        self._out.discard(record_id)
        return there

    async def _end_dead_legs(self) -> None:
        """Write what the file does not know of open legs yet. After an error it is tried again later."""
        if self._dead_legs_ended and not self._legs.waiting:
            return
        try:
            await self._ask(self._write_legs)
        except StorageError as error:
            if self._legs_error is None:
                _log.warning("dead_legs_not_ended", extra={"error": str(error)})
            self._legs_error = str(error)
            return
        self._legs_error = None

    async def arrival(self, timeout_s: float) -> None:
        """Wait until records may have come since the last time, but not longer than that."""
        unwritten = self._undeleted or self._legs.waiting or not self._dead_legs_ended
        if unwritten or self._salvages or self._writer.refusing:
            timeout_s = min(timeout_s, LOOK_AGAIN_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        self._arrived.clear()

    def wake(self) -> None:
        """End the wait of `arrival`."""
        self._arrived.set()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all that was put is on the disk, or delivered; False when that took longer."""
        return await self._writer.flush(timeout_s)

    async def close(self) -> None:
        """Put on the disk what is left, within a bounded time, and stop."""
        await self._writer.close()

    async def _ask(self, work: Callable[[Database], _Answer], *, frees: bool = False) -> _Answer:
        """As `Writer.ask`, but also raises StorageError when the disk hangs while records wait in memory."""
        asking = asyncio.ensure_future(self._writer.ask(work, frees=frees))
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=LOOK_S)
                if not asking.done() and self._writer.busy_s > SLOW_S and self._may_leave():
                    raise StorageError(f"{self._path}: the disk has not answered for {self._writer.busy_s:.1f} s")
            return asking.result()
        finally:
            asking.cancel()

    def _may_leave(self) -> bool:
        return bool(self._writer.depth) or self._writer.busy_s > GIVE_UP_S

    def _unwritten(self, count: int, without: Iterable[int]) -> list[tuple[int, Record]]:
        numbers = {-each for each in without if each < 0}
        return self._writer.waiting(count, numbers)

    # --- In the writer's thread ---------------------------------------------------------------

    def _examine(self, database: Database) -> None:
        """Check the whole file. A damaged page that is found only in its turn would delay what is behind it."""
        [(verdict,)] = database.query("PRAGMA quick_check(1)")
        if verdict != "ok":
            raise _DamagedError(" ".join(str(verdict).split()))
        self._count(database)
        self._examined = True
        known = {each.path for each in self._salvages}
        self._salvages += [Salvage(each) for each in unread_files(self._path) if each not in known]

    def _store(self, database: Database, records: list[Record]) -> list[str]:
        with self._legs.transaction(database, records):
            for record in records:
                database.execute(_PUT, _row(packed(record)))
            [(last,)] = database.query("SELECT last_insert_rowid()")
        self._on_disk += len(records)
        self._last_id = max(self._last_id, int(last or 0))
        self._log_used = True
        self._writer.tell(self._arrived.set)
        return []

    def _write_legs(self, database: Database) -> None:
        with self._legs.transaction(database):
            if not self._dead_legs_ended:
                self._legs.end_others(database)
        if not self._dead_legs_ended:
            self._dead_legs_ended = True
            self._log_used = True
            self._count(database)

    def _take(self, database: Database, count: int, after: int) -> list[Row]:
        if not self._examined:
            self._examine(database)
        rows = database.query(_TAKE, (after, count))
        while not rows and self._salvages:
            self._move_some(database)
            rows = database.query(_TAKE, (after, count))
        if rows:
            # Of rows that `ledger resend`, which is another process, has put back.
            self._last_id = max(self._last_id, int(rows[-1][0] or 0))
        else:
            # Somebody may have erased records: count again, now that there are few.
            self._count(database)
            self._empty_log(database)
        return rows

    def _move_some(self, database: Database) -> None:
        """Move some records of a file that was put aside into the spool. What it cannot write stays there."""
        salvage = self._salvages[0]
        found = self._found = self._found or salvage.next()
        if found.records or found.aside or found.legs:
            with self._legs.transaction(database):
                for row in found.records:
                    database.execute(_PUT, row[1:])
                for row in found.aside:
                    aside.add(database, row[1:6], str(row[6]), int(row[7] or 0))
                self._legs.end(database, found.legs)
            self._log_used = True
            self._count(database)
        # In the new file first, and as lost before the old one is forgotten: a depth of 0 says that all is done.
        self._found = None
        salvage.moved(found)
        if not salvage.ended:
            return
        self._unreadable += salvage.lost
        self._salvages.pop(0)
        with suppress(OSError):  # it is read again after the next start, then
            salvage.finish()
        lost = "unknown" if salvage.blind else salvage.lost
        fields = {
            "kept": str(salvage.path),
            "delivered": salvage.found,
            "set_aside": salvage.found_aside,
            "lost": lost,
        }
        if salvage.legs_unreadable:
            _log.warning("dead_legs_unknown", extra={"kept": str(salvage.path)})
        if lost:
            _log.error("spool_records_lost", extra={**fields, "ids": salvage.unreadable[:IDS_MAX]})
        else:
            _log.warning("spool_recovered", extra=fields)

    def _let_go(self, database: Database, ids: Sequence[int]) -> None:
        for first in range(0, len(ids), DELETE_MAX):
            some = ids[first : first + DELETE_MAX]
            with database.transaction():
                database.execute(_DONE, (json.dumps(some),))
                [(gone,)] = database.query("SELECT changes()")
            self._undeleted.difference_update(some)
            self._on_disk = max(0, self._on_disk - int(gone or 0))
            if self._writer.make_room():
                self._checkpoint(database)

    def _set_aside(self, database: Database, record_id: int, error: str) -> bool:
        with database.transaction():
            there = aside.set_aside(database, record_id, error)
        self._log_used = True
        self._count(database)
        return there

    def _set_aside_unwritten(self, database: Database, number: int, error: str) -> bool:
        record = self._writer.unstored(number)
        if record is None:
            return False  # delivered, or in the file under an id of its own
        with self._legs.transaction(database, [record]):
            aside.add(database, _row(packed(record)), error)
        self._writer.stored_otherwise(number)
        self._log_used = True
        self._count(database)
        return True

    def _count(self, database: Database) -> None:
        [(count,)] = database.query(_COUNT)
        self._on_disk = int(count or 0)
        self._last_id = max([self._last_id, *(int(row[0] or 0) for row in database.query(_LAST_ID))])
        self._aside = aside.count(database)
        self._counted = True

    def _empty_log(self, database: Database) -> None:
        """Remove delivered records from the write-ahead log, too: it has their pages from before the deletion."""
        if self._on_disk == 0 and self._log_used:
            [(pages,)] = database.query("PRAGMA page_count")
            [(page_bytes,)] = database.query("PRAGMA page_size")
            if int(pages or 0) * int(page_bytes or 0) > SHRINK_BYTES:
                database.execute("VACUUM")
            self._log_used = not self._checkpoint(database)

    def _checkpoint(self, database: Database) -> bool:
        """Move the log into the file and cut it to nothing; False when another process reads it."""
        # Without waiting for that process: records may come. The next time, then.
        database.query("PRAGMA busy_timeout = 0")
        try:
            [(busy, *_)] = database.query("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            database.query(f"PRAGMA busy_timeout = {1_000 * LOCK_WAIT_S:.0f}")
        return not busy

    def _mend(self, error: StorageError, failures: int) -> bool:
        """Put a new file in the place of one that is damaged, or that cannot be written while a new one can."""
        why = str(error) if isinstance(error, _DamagedError) else _broken(error)
        if why is None and not (failures >= REPLACE_AFTER and disk_fails(error)):
            return False
        try:
            kept = self._replace()
        except (StorageError, OSError) as refused:
            if why is not None:
                _log.error("spool_damaged", extra={"error": why, "not_replaced": str(refused)})
            return False
        fields = {"error": str(error), "kept": str(kept), "remedy": "none needed: a new file is in use"}
        if why is not None:
            _log.error("spool_damaged", extra=fields)
        else:
            _log.error("spool_not_writable", extra=fields)
        return True

    def _replace(self) -> Path:
        """Raises StorageError or OSError when a new file cannot be had; the old one is then still in its place."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        for suffix in ("-shm", "-wal", ""):
            fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
        database = self._connect(fresh)
        with closing(database):
            # Ids go on: whoever took records of the old file asks for those above them.
            database.execute(_GO_ON_AFTER, (self._last_id,))
            self._legs.copy_to(database)
        kept = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns() // 1_000_000}")
        move(self._path, kept)
        move(fresh, self._path)
        # What the primary refused stayed behind when later records were delivered.
        needed_from = min([self._delivered_to + 1, *tuple(self._out)])
        undeleted = frozenset(self._undeleted)
        self._salvages.append(
            Salvage(
                kept,
                after=needed_from - 1,
                delivered=undeleted,
                last_id=self._last_id,
                expected=self._on_disk - len(undeleted) if self._counted else None,
                expected_aside=self._aside if self._counted else None,
                dead_legs=not self._dead_legs_ended,
            )
        )
        self._undeleted.clear()
        self._on_disk = self._aside = 0
        self._counted = self._dead_legs_ended = True
        self._log_used = True
        return kept


class SpooledLedger:
    """What ledgers that keep their records in a spool have in common."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def remember(self, record: Record) -> None:
        self._spool.put(record)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything remembered so far is on this disk or the primary: no kill -9 takes it away."""
        return await self._spool.flush(timeout_s)

    @property
    def depth(self) -> int:
        return self._spool.depth

    @property
    def lost(self) -> int:
        return self._spool.lost

    @property
    def set_aside(self) -> int:
        return self._spool.aside

    @property
    def last_error(self) -> str | None:
        return self._spool.last_error

    @property
    def healthy(self) -> bool:
        return self.last_error is None


def _broken(error: StorageError) -> str | None:
    """As `damage`, also for a text that SQLite hands out and Python cannot read."""
    return str(error) if "Could not decode to UTF-8" in str(error) else damage(error)


def _row(record: Packed) -> Row:
    return record.kind, record.call_sid, record.caller, record.at_ms, record.content


def _spooled(row: Row) -> Spooled:
    number, kind, call_sid, caller, at_ms, content = row
    record = Packed(
        str(kind), str(call_sid), None if caller is None else str(caller), int(at_ms or 0), str(content)
    )
    return Spooled(int(number or 0), record)
