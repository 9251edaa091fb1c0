"""One libSQL file on this machine: open it, run a statement, run a transaction. Knows no tables.

libSQL kept SQLite's file format, so the standard library's sqlite3 serves the file and any libSQL program may
open it too (tests/storage/test_database.py does). libsql_experimental stays out of the process that carries calls:

- It holds the interpreter lock while it waits for a disk. With a disk that takes 100 ms to sync, every call
  stood still for 208 ms, although the ledger had a thread of its own. sqlite3 lets the other threads run.
- POSIX locks belong to a process, and two copies of SQLite in one process drop each other's: the next process
  that closes the file deletes the log that is still written to (sqlite.org/howtocorrupt.html 2.2). For the same
  reason nothing here may open() the file, not even to copy it. Other processes may do as they like.
"""

import errno
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from app.storage.errors import StorageError
from app.storage.statement import Row

LOCK_WAIT_S = 5.0
"""How long to wait for another process that is writing; sqld waits as long (libsql.md 6)."""


class DatabaseError(StorageError):
    """A statement failed: the disk, the file, or another process that keeps it locked."""


class RefusedError(DatabaseError):
    """The database does not take these values. Disk and file are well, and the transaction is still open."""


def damage(error: StorageError) -> str | None:
    """SQLite's own words when an error says that the file is broken; None for any other error."""
    match error.__cause__:
        case sqlite3.DatabaseError(sqlite_errorcode=int(code)) if code & 0xFF in _BROKEN:
            return str(error)
    return None


_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def disk_full(error: Exception) -> bool:
    """True when an error says that the disk has no room left."""
    match error.__cause__:
        case sqlite3.DatabaseError(sqlite_errorcode=int(code)):
            return code & 0xFF == sqlite3.SQLITE_FULL
        case OSError(errno=number):
            return number in {errno.ENOSPC, errno.EDQUOT}
    return False


def disk_fails(error: StorageError) -> bool:
    """True when an error says that the disk does not read or write this file."""
    match error.__cause__:
        case sqlite3.DatabaseError(sqlite_errorcode=int(code)):
            return code & 0xFF in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
        case OSError(errno=number):
            return number in {errno.EIO, errno.EROFS}
    return False


def no_room(error: StorageError) -> bool:
    """True when an error says that the disk is full, or fails: what somebody mends while the server runs."""
    match error.__cause__:
        case sqlite3.DatabaseError(sqlite_errorcode=int(code)):
            # A full disk is an I/O error when it is the log's index that does not fit.
            return code & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
        case OSError(errno=number):
            return number in {errno.ENOSPC, errno.EDQUOT, errno.EIO}
    return False


def out_of_descriptors() -> str | None:
    """What the system says when this process, or the machine, can open no more files; None when it can.

    Neither SQLite's "unable to open database file" nor httpx's "All connection attempts failed" says why, and this
    is a reason that an operator can remove. Asks without any disk: for the event loop too.
    """
    try:
        socket.socket().close()
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            return f"{error.strerror} ({errno.errorcode[error.errno]}): raise the limit (ulimit -n)"
    return None


class Database:
    """An open file. Belongs to the thread that opened it; sqlite3 sees to that."""

    def __init__(self, path: Path, mode: Literal["rw", "ro"] = "rw", *, immutable: bool = False) -> None:
        """Open `path`, which must exist. `immutable`: nobody can change it. Raises DatabaseError."""
        self._path = path
        with self._plain_errors():
            # isolation_level None: no BEGIN behind our back before an INSERT.
            self._raw = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}{'&immutable=1' if immutable else ''}",
                timeout=LOCK_WAIT_S,
                isolation_level=None,
                uri=True,
            )

    def execute(self, sql: str, values: Row = ()) -> None:
        """Run one statement that returns nothing. Raises DatabaseError."""
        with self._plain_errors():
            self._raw.execute(sql, values)

    def query(self, sql: str, values: Row = ()) -> list[Row]:
        """Run one statement and return all its rows. Raises DatabaseError."""
        with self._plain_errors():
            return self._raw.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block or nothing of it. Raises DatabaseError when another process keeps the file locked.

        When COMMIT itself raises, the outcome is unknown: do the same again.
        """
        self.execute("BEGIN IMMEDIATE")
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
        except BaseException:  # whatever broke the block off, the lock may not stay held
            # A full disk may have made SQLite roll back already; else, if this fails, closing does it.
            with suppress(DatabaseError):
                self.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Give the file back. The last one to do so moves the write-ahead log into the file."""
        self._raw.close()

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Sort what sqlite3 raises by what the caller can do about it."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, OverflowError) as error:
            # A constraint or a column's type, too long, no SQL type at all, an integer beyond 64 bits.
            raise RefusedError(f"{self._path}: {error}") from error
        except sqlite3.Error as error:
            why = str(error)
            code = getattr(error, "sqlite_errorcode", 0)
            if code & 0xFF == sqlite3.SQLITE_CANTOPEN:
                why = out_of_descriptors() or why
            raise DatabaseError(f"{self._path}: {why}") from error


def open_for_writing(path: Path) -> Database:
    """Open the file, make it when it is missing, and set it up for one writer and many readers.

    Raises StorageError naming the path when its directory is missing or not writable, when the file is not a
    database or may not be written, or when it stays locked.
    """
    _create(path)
    database = Database(path)
    with closed_on_error(database):
        _into_wal(database, path)
        # FULL: a commit waits until it is on the disk, so a power cut takes nothing that was committed. The
        # waiting is done by the ledger's own thread, for a whole batch at a time.
        database.execute("PRAGMA synchronous = FULL")
    return database


@contextmanager
def closed_on_error(database: Database) -> Iterator[None]:
    """For setting up a file that was just opened: it stays open unless that fails."""
    try:
        yield
    except BaseException:  # whatever it was, nobody else knows of the file to close it
        database.close()
        raise


def open_for_reading(path: Path) -> Database:
    """Open an existing file for SELECT only. Raises StorageError when it is missing or cannot be opened."""
    if not path.is_file():
        raise StorageError(f"there is no ledger at {path}: nothing has been recorded there yet")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise StorageError(f"{path} may not be read: ask as the user who runs the server")
    database = Database(path, "ro")
    try:
        database.query("SELECT 1 FROM sqlite_schema LIMIT 1")
    except DatabaseError as error:
        database.close()
        if not _cannot_share(error, path):
            raise
        # A reader of a write-ahead log shares an index with the writer, a file that it cannot make here. Nobody
        # writes to such a disk, so the file may be read as it is, provided that the log is empty: it is not read.
        if path.with_name(path.name + "-wal").exists() and path.with_name(path.name + "-wal").stat().st_size:
            raise StorageError(
                f"{path} cannot be read where nothing can be written, because its newest records are still in"
                f" {path.name}-wal: copy both to a directory that can be written, or make {path.parent} writable"
            ) from error
        database = Database(path, "ro", immutable=True)
    return database


def _cannot_share(error: DatabaseError, path: Path) -> bool:
    match error.__cause__:
        case sqlite3.OperationalError(sqlite_errorcode=int(code)):
            cannot_open = code & 0xFF in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
            return cannot_open and not _writable(path.parent)
    return False


def _writable(directory: Path) -> bool:
    """By this user, on this disk."""
    return os.access(directory, os.W_OK, effective_ids=True)


def _create(path: Path) -> None:
    """Make an empty private file. An existing one is not touched: opening and closing it would drop locks."""
    directory = path.parent
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        raise StorageError(
            f"the data directory {directory} {what}: create it, or point NEARCALL_DATA_DIR elsewhere"
        )
    if path.is_dir():
        raise StorageError(f"{path} is a directory, and should be the ledger's file: move it away")
    try:
        # 0600: what callers said is nobody else's business. SQLite gives -wal and -shm the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        # SQLite would open such a file without complaint, and fail at the first record.
        if not os.access(path, os.W_OK, effective_ids=True):
            raise StorageError(f"{path} may not be written: give it to the user who runs the server") from None
    except OSError as error:
        raise StorageError(
            f"cannot create the ledger {path}: {error.strerror}. Its directory must be writable"
        ) from error


def _into_wal(database: Database, path: Path) -> None:
    """Switch to a write-ahead log: readers never wait for the writer, and a commit is one append."""
    switch = "PRAGMA journal_mode = WAL"
    # Fails at once when another process is just making the switch, in a new file: SQLite does not wait there.
    with suppress(DatabaseError):
        database.execute(switch)
    # Here it waits until the other one is done.
    with database.transaction():
        pass
    [(mode,)] = database.query(switch)
    if mode != "wal":
        raise StorageError(f"{path} cannot use a write-ahead log (it stays in {mode!r}): use a local disk")
