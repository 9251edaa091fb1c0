"""The ledger in one local libSQL file: a queue, and one thread that owns the file and writes (writer.py).

Because a record may be written twice without harm, every doubtful outcome is simply tried again; one that the
schema does not take is set aside, so that it blocks no other. Refuses to know how records are spelt (records.py)
and how a file is opened (file.py).
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from app.call.ending import EndReason
from app.call.records import Record
from app.ledger.file import Database, DatabaseError, RefusedError, closed_on_error, open_for_writing
from app.ledger.migrate import known_migrations, migrate
from app.ledger.open_legs import END_UNFINISHED
from app.ledger.records import Packed, insertion, packed, packed_insertion, packed_refusal
from app.ledger.spool import Spool
from app.ledger.sql import Statement
from app.ledger.writer import BATCH_MAX, DEPTH_MAX, Writer

UNFINISHED_MS = 30 * 86_400_000
"""How far a start looks back for legs without an ending: a machine may have been off for some weeks."""

_R = TypeVar("_R")

_log = logging.getLogger(__name__)


def open_migrated(path: Path) -> Database:
    """Open the file for writing, with the schema this program knows. Raises LedgerError."""
    database = open_for_writing(path)
    with closed_on_error(database):
        for migration in migrate(database, known_migrations()):
            _log.info("ledger migrated", extra={"path": str(path), "migration": migration.name})
    return database


class LocalLedger(Writer[Record]):
    """The `Ledger` of a single machine. Make one with `open`."""

    def __init__(self, path: Path, connect: Callable[[Path], Database], depth_max: int) -> None:
        super().__init__(path, connect, self._write, depth_max)
        self._set_aside = 0  # written by the writer's thread only

    @classmethod
    async def open(
        cls, path: Path, *, connect: Callable[[Path], Database] = open_migrated, depth_max: int = DEPTH_MAX
    ) -> Self:
        """Open the file (made when missing, its directory is not), migrate it, and start writing.

        Raises LedgerError when that does not work (WaitingLedger is for then). A full disk is waited for.
        """
        ledger = cls(path, connect, depth_max)
        await ledger.start()
        # On a full disk it is counted with the first record that finds room.
        with suppress(DatabaseError):
            await ledger.ask(ledger._count_set_aside)
        return ledger

    @property
    def set_aside(self) -> int:
        return self._set_aside

    def _write(self, database: Database, records: list[Record]) -> list[str]:
        refused = write(database, records)
        self._count_set_aside(database)
        return refused

    def _count_set_aside(self, database: Database) -> None:
        """Each time: `ledger resend`, which is another process, takes them out."""
        [(count,)] = database.query("SELECT count(*) FROM refused")
        self._set_aside = int(count or 0)

    async def take_over(self, spool: Spool) -> None:
        """Store what waits in a spool since this file could not be used.

        Raises DatabaseError; what was not stored until then stays there.
        """
        while batch := await spool.take(BATCH_MAX):
            records = [each.record for each in batch]
            for text in await self.ask(partial(write_packed, records=records)):
                _log.error("ledger record refused", extra={"error": text})
            await spool.done([each.id for each in batch])

    async def end_unfinished(self, now_ms: int) -> None:
        """Write the endings of legs that were cut short when this machine died. Before any call is taken.

        Raises DatabaseError; the next start tries again.
        """
        values = (EndReason.MACHINE_DIED.value, now_ms - UNFINISHED_MS)
        await self.ask(lambda database: database.execute(END_UNFINISHED, values))

    def remember(self, record: Record) -> None:
        self.put(record)


def write(database: Database, records: list[Record]) -> list[str]:
    """Store all records in one transaction, or none. Returns why some were set aside instead.

    Raises DatabaseError when nothing was stored, or nobody knows whether it was: do the same again.
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
