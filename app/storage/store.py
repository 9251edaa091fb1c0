"""A ledger as the commands see it: questions and transactions, in a file or on a primary. Knows no table.

Commands have time: a primary that is busy, or cannot be reached for a moment, is asked again for a while.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from app.storage.database import Database
from app.storage.errors import StorageError
from app.storage.primary import Failure, Primary, PrimaryError, Retry, Stored
from app.storage.statement import Row, Statement

PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Between attempts. A primary that refuses is given up after 8 s, one that hangs after a minute."""
PAUSE_MAX_S = 30.0
"""However long a primary asks us to wait: a person waits for the command."""


class Store(Protocol):
    """Where a ledger is."""

    async def ask(self, statement: Statement) -> Sequence[Row]:
        """The rows of a question. Raises StorageError."""

    async def change(self, statements: Sequence[Statement]) -> None:
        """All of it in one transaction. Raises StorageError when it did not happen, or may not have: try again."""


class FileStore:
    """A file of this machine. Beside a running server: each waits for the other's transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # SQLite only forgets where erased text was, unless it is told to overwrite it.
        database.query("PRAGMA secure_delete = ON")

    async def ask(self, statement: Statement) -> Sequence[Row]:
        return self._database.query(statement.sql, statement.values)

    async def change(self, statements: Sequence[Statement]) -> None:
        with self._database.transaction():
            for statement in statements:
                self._database.execute(statement.sql, statement.values)

    def scrub(self) -> None:
        """Empty the write-ahead log, which still has what was erased. StorageError when somebody reads it."""
        [(busy, *_)] = self._database.query("PRAGMA wal_checkpoint(TRUNCATE)")
        if busy:
            raise StorageError(
                "everything was erased, but is still in the file's log, which somebody reads: run it again"
            )


class PrimaryStore:
    """A primary. Raises PrimaryError when it refuses, or when patience is at its end."""

    def __init__(self, primary: Primary, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._primary = primary
        self._pauses_s = pauses_s

    async def ask(self, statement: Statement) -> Sequence[Row]:
        for pause_s in self._pauses_s:
            try:
                return await self._primary.query(statement)
            except PrimaryError as error:
                await self._pause(error.failure, pause_s)
        return await self._primary.query(statement)

    async def change(self, statements: Sequence[Statement]) -> None:
        for pause_s in self._pauses_s:
            outcome = await self._primary.batch(statements)
            if isinstance(outcome, Stored):
                return
            await self._pause(outcome, pause_s)
        outcome = await self._primary.batch(statements)
        if not isinstance(outcome, Stored):
            raise PrimaryError(outcome)

    async def _pause(self, failure: Failure, pause_s: float) -> None:
        if not isinstance(failure, Retry):
            raise PrimaryError(failure)
        await asyncio.sleep(max(pause_s, min(failure.after_s or 0.0, PAUSE_MAX_S)))
