"""Records and databases for the ledger's tests."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from threading import Event

from app.call.records import CallEnded, CallEvent, CallStarted, Record, Speaker, Turn
from app.ledger.local import open_migrated
from app.ledger.spool import open_spool
from app.storage.database import Database, DatabaseError
from app.storage.statement import Row

NOW_MS = 1_763_632_800_123


def started(
    call_sid: str = "CA1", leg: str = "0", started_ms: int = NOW_MS, caller: str = "+491701234567"
) -> CallStarted:
    return CallStarted(
        call_sid, leg, "acme", "eu", "fra", "openai-eu", "gpt-realtime", "MZ1", caller, "+4930555", started_ms
    )


def turn(seq: int, call_sid: str = "CA1", leg: str = "0", said: str | None = "Guten Tag") -> Turn:
    return Turn(call_sid, leg, seq, Speaker.AGENT, said, said, NOW_MS + seq, NOW_MS + seq + 900, "openai-eu")


def call_event(seq: int, call_sid: str = "CA1") -> CallEvent:
    return CallEvent(call_sid, "0", seq, NOW_MS + seq, "backend_lost", "code=1006")


def ended(call_sid: str = "CA1", leg: str = "0", ended_ms: int = NOW_MS + 60_000) -> CallEnded:
    return CallEnded(call_sid, leg, ended_ms, "caller_hung_up", 2)


def one_call() -> list[Record]:
    return [started(), turn(0), turn(1), call_event(0), ended()]


def rows(path: Path, sql: str, values: Row = ()) -> list[Row]:
    """Ask the file, on a connection that is closed again."""
    database = Database(path)
    try:
        return database.query(sql, values)
    finally:
        database.close()


class FaultyDatabase(Database):
    """Fails when told to, as a full disk or a damaged file would: before the statement does anything."""

    def __init__(
        self, path: Path, fails: Callable[[str], bool], damaged: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(path)
        self._fails = fails
        self._damaged = damaged

    def query(self, sql: str, values: Row = ()) -> list[Row]:
        if self._damaged():
            cause = sqlite3.DatabaseError("database disk image is malformed")
            cause.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise DatabaseError(str(cause)) from cause
        return super().query(sql, values)

    def execute(self, sql: str, values: Row = ()) -> None:
        if self._fails(sql):
            raise DatabaseError("database or disk is full")
        super().execute(sql, values)


class NthStatement:
    """True for the Nth statement it sees (from 1) and for no other."""

    def __init__(self, n: int) -> None:
        self._n = n
        self.seen = 0

    def __call__(self, sql: str) -> bool:
        self.seen += 1
        return self.seen == self._n


class Disk:
    """A disk that can be full: no database can commit meanwhile. Says when it is then asked for another one.

    It can also hand out one damaged page, which is good again for whoever reads the file next.
    """

    def __init__(self) -> None:
        self.full = False
        self.damaged = False
        self.asked_again = Event()

    def open(self, path: Path) -> Database:
        return self._open(path, open_migrated)

    def open_spool(self, path: Path) -> Database:
        return self._open(path, open_spool)

    def _open(self, path: Path, prepare: Callable[[Path], Database]) -> Database:
        if self.full:
            self.asked_again.set()
        prepare(path).close()
        return FaultyDatabase(path, lambda sql: self.full and sql == "COMMIT", self._is_damaged)

    def _is_damaged(self) -> bool:
        damaged, self.damaged = self.damaged, False
        return damaged
