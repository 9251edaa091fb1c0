"""The ledger in one local libSQL file: a queue, and one thread that owns the file and writes (writer.py).

Because a record may be written twice without harm, every doubtful outcome is simply tried again; one that the
schema does not take is set aside, so that it blocks no other. Refuses to know how records are spelt (records.py)
and how a file is opened (file.py).
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from app.call.records import Record
from app.ledger.file import Database, RefusedError, closed_on_error, open_for_writing
from app.ledger.migrate import known_migrations, migrate
from app.ledger.records import insertion, refusal
from app.ledger.writer import DEPTH_MAX, Writer

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

    @classmethod
    async def open(
        cls, path: Path, *, connect: Callable[[Path], Database] = open_migrated, depth_max: int = DEPTH_MAX
    ) -> Self:
        """Open the file (made when missing, its directory is not), migrate it, and start writing.

        Raises LedgerError when that does not work: better no start than a call that leaves nothing behind.
        """
        ledger = cls(path, connect, write, depth_max)
        await ledger.start()
        return ledger

    def remember(self, record: Record) -> None:
        self.put(record)


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
