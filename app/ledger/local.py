"""The ledger in one local libSQL file: a queue, and one thread that owns the file and writes.

Because a record may be written twice without harm, every doubtful outcome is simply tried again. A record that the
schema does not take is set aside, so that it blocks no other. A file that turns out to be damaged is left as it
is, and records go to a spool beside it, which the next start takes over; so do, at the end, records that the file
does not take for another reason. Does not know how records are spelt (records.py), how the thread works
(app/storage/writer.py) and how a file is opened (app/storage/database.py).

Records go into the file at once and not by way of a spool. Measured at 200 records a second, a spool in front of
the file takes 1.5 to 1.8 times the CPU for each record; with a backlog 2.4 to 4.8 times, and the event loop then
waits twice as long.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from app.call.ending import EndReason
from app.call.records import Record
from app.ledger.machine_calls import CountCalls
from app.ledger.open_legs import END_UNFINISHED
from app.ledger.records import Packed, insertion, packed, packed_insertion, packed_refusal
from app.ledger.spool import Spool
from app.storage.database import Database, RefusedError, closed_on_error, damage, open_for_writing
from app.storage.errors import StorageError
from app.storage.migrations import SchemaTooNewError, known_migrations, migrate, require_migrated
from app.storage.statement import Row, Statement
from app.storage.writer import BATCH_MAX, CLOSE_S, DEPTH_MAX, OPEN_S, SLOW_S, Writer

UNFINISHED_MS = 30 * 86_400_000
"""How far a start looks back for legs without an ending: a machine may have been off for some weeks."""

_R = TypeVar("_R")

_log = logging.getLogger("nearcall.ledger")


def open_migrated(path: Path) -> Database:
    """Open the file for writing, with the schema that this program knows or a newer one. Raises StorageError."""
    database = open_for_writing(path)
    with closed_on_error(database):
        try:
            for migration in migrate(database, known_migrations()):
                _log.info("ledger_migrated", extra={"path": str(path), "migration": migration.name})
        except SchemaTooNewError:
            # After a rollback. A schema only grows, so what this program writes still fits.
            require_migrated(database, known_migrations())
    return database


class LocalLedger:
    """The `Ledger` of a single machine. Make one with `open`."""

    def __init__(
        self, path: Path, connect: Callable[[Path], Database], depth_max: int, spool_path: Path | None
    ) -> None:
        self.readable = path
        self._writer = Writer[Record](path, connect, self._write, depth_max, self._notice, rescue=self._rescue)
        self._set_aside = 0  # written by the writer's thread only
        self._lost_before = 0
        self._spool_path = spool_path
        self._spool: Spool | None = None
        self._damaged: str | None = None
        self._leaving: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        spool: Path | None = None,
        connect: Callable[[Path], Database] = open_migrated,
        depth_max: int = DEPTH_MAX,
    ) -> Self:
        """Open the file (made when missing, its directory is not), migrate it, and start writing.

        `spool` is where records go that the file does not take. Raises StorageError when opening does not work
        (WaitingLedger is for then). A full disk is waited for.
        """
        ledger = cls(path, connect, depth_max, spool)
        await ledger._writer.start()
        # On a disk that fails or hangs it is counted with the first record that is written.
        with suppress(StorageError):
            await ledger._ask_soon(ledger._count_set_aside)
        return ledger

    # --- Records ------------------------------------------------------------------------------

    def remember(self, record: Record) -> None:
        if self._spool is None:
            self._writer.put(record)
        else:
            self._spool.put(record)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything remembered so far is on the disk, in the file or in the spool beside it."""
        if not await self._writer.flush(timeout_s):
            return False
        return self._spool is None or await self._spool.flush(timeout_s)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until the file itself has everything; False when that took longer, or when the spool has some."""
        return await self.flush(timeout_s) and self.depth == 0

    async def ask(self, statement: Statement) -> Sequence[Row]:
        """Run it in the thread that writes the file. Raises StorageError."""
        return await self._writer.ask(lambda database: database.query(statement.sql, statement.values))

    async def close(self) -> None:
        if self._leaving is not None:
            await asyncio.wait({self._leaving}, timeout=CLOSE_S)
        await self._writer.close()
        if self._spool is not None:
            await self._spool.close()

    # --- How it is doing ----------------------------------------------------------------------

    @property
    def depth(self) -> int:
        return self._writer.depth + (0 if self._spool is None else self._spool.depth)

    @property
    def lost(self) -> int:
        return self._lost_before + self._writer.lost + (0 if self._spool is None else self._spool.lost)

    @property
    def set_aside(self) -> int:
        return self._set_aside

    @property
    def last_error(self) -> str | None:
        return self._damaged or self._writer.last_error

    @property
    def healthy(self) -> bool:
        return self.last_error is None

    # --- Readers ------------------------------------------------------------------------------

    @property
    def copied(self) -> bool:
        return False

    @property
    def current(self) -> bool:
        """True while records go into the file."""
        return self._spool is None and not self._writer.refusing

    def report_calls(self, count: CountCalls) -> None:
        """Do nothing: no other machine reads this file."""

    def calls_elsewhere(self, tenant: str) -> int:  # noqa: ARG002  there is no other machine
        """Return 0: this machine knows of no other one."""
        return 0

    def distrust(self, why: str) -> None:
        """Write no more into the file: records go to the spool. Call it from the event loop's thread."""
        if self._damaged is None:
            self._damaged = why
            self._leave_damaged()

    # --- At the start -------------------------------------------------------------------------

    async def take_over(self, spool: Spool) -> None:
        """Store what waits in a spool since this file could not be used.

        Raises StorageError; what was not stored until then stays there.
        """
        after = 0
        while batch := await spool.take(BATCH_MAX, after):
            records = [each.record for each in batch]
            for text in await self._writer.ask(partial(write_packed, records=records)):
                _log.error("record_refused", extra={"error": text})
            after = max(each.id for each in batch)
            await spool.done([each.id for each in batch])
        self._lost_before += spool.lost

    async def end_unfinished(self, now_ms: int) -> None:
        """Write the endings of legs that were cut short when this machine died. Before any call is taken.

        Raises StorageError, also when the disk does not answer; the next start tries again.
        """
        values = (EndReason.MACHINE_DIED.value, now_ms - UNFINISHED_MS)
        # What is given up is not done later, when it would end the legs of calls that have begun.
        await self._ask_soon(lambda database: database.execute(END_UNFINISHED, values))

    async def _ask_soon(self, work: Callable[[Database], None]) -> None:
        """Do it in the writer's thread. Raises StorageError too when the disk hangs: a start does not wait."""
        if self._writer.busy_s <= SLOW_S:
            with suppress(TimeoutError):
                async with asyncio.timeout(OPEN_S):
                    return await self._writer.ask(work)
        raise StorageError(f"{self.readable}: the disk has not answered for {self._writer.busy_s:.1f} s")

    # --- In the writer's thread ---------------------------------------------------------------

    def _write(self, database: Database, records: list[Record]) -> list[str]:
        refused = write(database, records)
        self._count_set_aside(database)
        return refused

    def _count_set_aside(self, database: Database) -> None:
        """Each time: `ledger resend`, which is another process, takes them out."""
        [(count,)] = database.query("SELECT count(*) FROM refused")
        self._set_aside = int(count or 0)

    def _notice(self, error: StorageError, _failures: int) -> bool:
        """Never mends: a damaged file is for a human to look at."""
        if (why := damage(error)) is not None and self._damaged is None:
            self._damaged = why
            self._writer.tell(self._leave_damaged)
        return False

    # --- When the file cannot be written ------------------------------------------------------

    async def _rescue(self) -> None:
        """Bring into the spool what the file does not take, unless the whole disk does not answer."""
        if self._leaving is None and self._writer.busy_s <= SLOW_S:
            await asyncio.wait({self._leave()}, timeout=CLOSE_S)

    def _leave_damaged(self) -> None:
        if self._leaving is None and self._spool_path is not None:
            extra = {"error": self._damaged, "spool": str(self._spool_path), "remedy": "mend the file, restart"}
            _log.error("ledger_file_damaged", extra=extra)
            self._leave()

    def _leave(self) -> "asyncio.Task[None]":
        self._leaving = asyncio.create_task(self._into_spool(), name="ledger-spool")
        return self._leaving

    async def _into_spool(self) -> None:
        """Hand over what waits. What the spool cannot write either is counted when it is closed."""
        if self._spool_path is None:
            return
        try:
            await asyncio.to_thread(self._spool_path.parent.mkdir, mode=0o700, exist_ok=True)
            spool = await Spool.open(self._spool_path)
        except (StorageError, OSError) as error:
            _log.error("ledger_spool_cannot_be_opened", extra={"error": str(error)})
            self._leaving = None
            return
        self._spool = spool
        while batch := self._writer.waiting(BATCH_MAX):
            for _, record in batch:
                spool.put(record)
            self._writer.settle([number for number, _ in batch])


def write(database: Database, records: list[Record]) -> list[str]:
    """Store all records in one transaction, or none. Returns why some were set aside instead.

    Raises DatabaseError when nothing was stored, or the outcome is unknown: do the same again.
    """
    return _store(database, records, insertion, packed)


def write_packed(database: Database, records: list[Packed]) -> list[str]:
    """As `write`, for records that were on their way."""
    return _store(database, records, packed_insertion, lambda record: record)


def _store(
    database: Database, records: list[_R], spelt: Callable[[_R], Statement], packed_up: Callable[[_R], Packed]
) -> list[str]:
    refused: list[str] = []
    with database.transaction():
        for record in records:
            try:
                statement = spelt(record)
                database.execute(statement.sql, statement.values)
            except (RefusedError, ValueError) as error:
                kept = packed_up(record)
                aside = packed_refusal(kept, str(error), time.time_ns() // 1_000_000)
                database.execute(aside.sql, aside.values)
                refused.append(f"{kept.kind} of {kept.call_sid}: {error}")
    return refused
