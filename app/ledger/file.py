"""One libSQL file on this machine: open it, run a statement, run a transaction.

The only module that imports libsql_experimental; what is odd about the package stops here. Knows no tables.

Two rules for whoever uses this file, both about one process having one lock per file (POSIX fcntl):

- Nothing else in the same process may open the file, not even to read it, not even the standard library's
  sqlite3. That is a second copy of SQLite, unaware of the first one's locks. Closing its connection drops the
  locks of ours; the next process that opens and closes the file then takes itself for the last one and
  deletes the write-ahead log that we still write to. Seen: rows committed after that were gone (test_file.py
  does it; sqlite.org/howtocorrupt.html 2.2). Other processes may open the file as they like.
- A statement holds the interpreter lock until it is done, disk waits included. So statements are short and
  nothing waits for a lock inside SQLite (busy_timeout is 0, see `wait_for_lock`). What is left: the commit that
  fills the write-ahead log (1,000 pages) moves it into the file and waits for the disk, and every thread of
  the process with it. Measured with a disk that takes 100 ms to sync: 200 ms, at each such checkpoint.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import libsql_experimental

from app.ledger.ledger import LedgerError
from app.ledger.sql import Row

LOCK_WAIT_S = 5.0
"""How long to wait for another process that is writing; sqld waits as long (libsql.md 6)."""
LOCK_RETRY_S = 0.005
"""A transaction of ours takes about a millisecond, so the lock is free again by then."""


class DatabaseError(LedgerError):
    """A statement failed. libsql has one exception type for everything, so the text is all there is."""


class Database:
    """An open libSQL file. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open `path`, which must exist.

        Raises DatabaseError when it cannot be opened or is not a database.
        """
        with _plain_errors(path):
            # None: no BEGIN behind our back before an INSERT (libsql.md 3).
            self._raw = libsql_experimental.connect(str(path.resolve()), isolation_level=None)
        self._path = path

    @property
    def in_transaction(self) -> bool:
        """False also when an error such as a full disk made SQLite roll back by itself."""
        return bool(self._raw.in_transaction)

    def execute(self, sql: str, values: Row = ()) -> None:
        """Run one statement that returns nothing. Raises DatabaseError."""
        with _plain_errors(self._path):
            self._raw.execute(sql, values)

    def query(self, sql: str, values: Row = ()) -> list[Row]:
        """Run one statement and return all its rows. Raises DatabaseError."""
        with _plain_errors(self._path):
            return list(self._raw.execute(sql, values).fetchall() or ())

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block or nothing of it. Raises DatabaseError when another process keeps the file locked.

        When COMMIT itself raises, the outcome is unknown: do the same again.
        """
        # The wait for other writers is here: SQLite's own would stop every thread of the process.
        wait_for_lock(lambda: self.execute("BEGIN IMMEDIATE"))
        with self._to_its_end():
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All queries of the block see the same state. Keep it short: the log cannot shrink meanwhile."""
        self.execute("BEGIN")
        with self._to_its_end():
            yield

    @contextmanager
    def _to_its_end(self) -> Iterator[None]:
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back already; if ROLLBACK fails, closing the connection does it.
            with suppress(DatabaseError):
                if self.in_transaction:
                    self.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Give the file back. The connection must not be used afterwards: the package panics."""
        with _plain_errors(self._path):
            self._raw.close()


def open_for_writing(path: Path) -> Database:
    """Open the file, make it when it is missing, and set it up for one writer and many readers.

    Raises LedgerError naming the path when its directory is missing or not writable, when the file is not a
    database, or when it stays locked.
    """
    _create(path)
    database = Database(path)
    try:
        # WAL: readers never wait for the writer, and a commit is one append.
        wait_for_lock(lambda: _into_wal(database, path))
        # NORMAL: a commit is in the operating system's hands, so it survives kill -9 of this process at any
        # instant; the disk is waited for only at a checkpoint. A power cut or a kernel crash may take the
        # commits since the last one, never the file's consistency. FULL would put an fsync, under the
        # interpreter lock, between the audio frames of every call at each turn: too dear for those.
        database.query("PRAGMA synchronous = NORMAL")
    except BaseException:
        database.close()
        raise
    return database


def open_for_reading(path: Path) -> Database:
    """Open an existing file for SELECT only. Raises LedgerError when it is missing or is not a database."""
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}: nothing has been recorded there yet")
    database = Database(path)
    try:
        database.query("PRAGMA query_only = ON")
    except BaseException:
        database.close()
        raise
    return database


def _create(path: Path) -> None:
    """Make an empty private file. An existing one is not touched: opening and closing it would drop locks."""
    directory = path.parent
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        raise LedgerError(
            f"the data directory {directory} {what}: create it, or point NEARCALL_DATA_DIR elsewhere"
        )
    if path.is_dir():
        raise LedgerError(f"{path} is a directory, and should be the ledger's file: move it away")
    try:
        # 0600: what callers said is nobody else's business. SQLite gives -wal and -shm the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise LedgerError(
            f"cannot create the ledger {path}: {error.strerror}. Its directory must be writable"
        ) from error


def _into_wal(database: Database, path: Path) -> None:
    [(mode,)] = database.query("PRAGMA journal_mode = WAL")
    if mode != "wal":
        raise LedgerError(f"{path} cannot use a write-ahead log (it stays in {mode!r}): use a local disk")


def wait_for_lock(attempt: Callable[[], None]) -> None:
    """Call `attempt` until it is not refused because another process writes, or LOCK_WAIT_S is over."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return attempt()
        except DatabaseError as error:
            if "database is locked" not in str(error) or time.monotonic() >= deadline:
                raise
        time.sleep(LOCK_RETRY_S)


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Turn the package's ValueError and its panics into DatabaseError."""
    try:
        yield
    except ValueError as error:
        raise DatabaseError(f"{path}: {error}") from error
    except BaseException as error:
        # pyo3's PanicException is no Exception and cannot be imported (libsql.md trap 10).
        if type(error).__name__ != "PanicException":
            raise
        raise DatabaseError(f"{path}: libsql panicked: {error}") from error
