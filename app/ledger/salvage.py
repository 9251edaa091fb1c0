"""Reads what can still be read of a spool's file that was put aside, a few records at a time.

    forward   from the oldest record to the first page that cannot be read
    backward  from the newest to the last such page
    gap       between the two, id by id: a broken page does not say what is on the next

Runs in the spool's thread, which writes what it finds into the spool's new file. The old file is not changed, but
for its name: a person may look at it, and delete it.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from app.ledger.file import Database, DatabaseError, disk_fails
from app.ledger.sql import Row

FORWARD = (
    "SELECT id, kind, call_sid, caller, at_ms, content FROM spool WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
)
_BACKWARD = FORWARD.replace("ORDER BY id", "ORDER BY id DESC")
_LAST_ID = "SELECT seq FROM sqlite_sequence WHERE name = 'spool'"

AT_ONCE = 200
"""Records in one go: they are written in one transaction."""
GAP_AT_ONCE = 2_000
"""Ids in one go that may have no record any more."""
GAP_MAX = 1_000_000
"""Ids that are looked for one by one; of a gap that is wider, the newest."""
_ID_MAX = 2**63 - 1

_UNREAD = re.compile(r".*\.damaged-\d+")
_READ = "-read"


def unread_files(path: Path) -> list[Path]:
    """Files of the spool at `path` that were put aside and not read to their end yet, oldest first."""
    return sorted(each for each in path.parent.glob(f"{path.name}.damaged-*") if _UNREAD.fullmatch(each.name))


def move(path: Path, target: Path) -> None:
    """Rename a database with its log, which may hold what the file does not. Raises OSError."""
    for suffix in ("-shm", "-wal", ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))


class Salvage:
    """One file that was put aside. Belongs to the thread that makes it."""

    def __init__(self, path: Path, after: int = 0, last_id: int = 0, expected: int | None = None) -> None:
        """Ids up to `after` were delivered, `last_id` is the highest known, and `expected` records are in it."""
        self.path = path
        self.unreadable: list[int] = []
        """Ids of records that cannot be read."""
        self.failed_reads = 0
        """How many of them the disk did not read: another time it may."""
        self.found = 0
        """Records that were moved from it, as whoever moves them counts."""
        self.ended = False
        self.blind = False
        """True when not even the number of records can be told."""
        self._after = after
        self._last_id = last_id
        self._expected = expected
        self._rows = self._all()

    @property
    def left(self) -> int:
        """Records that are expected to be found yet; 1 while nobody knows whether there are any."""
        if self.ended:
            return 0
        return 1 if self._expected is None else max(0, self._expected - self.found)

    @property
    def lost(self) -> int:
        """Records that were in the file and cannot be read, as far as that is known."""
        missing = len(self.unreadable)
        return missing if self._expected is None else min(missing, max(0, self._expected - self.found))

    def next(self) -> list[Row]:
        """Some more records; `ended` is True after the last. Never raises for what is wrong with the file."""
        rows = next(self._rows, None)
        self.ended = rows is None
        return rows or []

    def finish(self) -> None:
        """Have later starts not read the file again, unless the disk may yet read more of it. Raises OSError.

        One that holds nothing which was not moved is deleted: callers' words are in no file without need.
        """
        if self._expected is not None and self.found >= self._expected and not self.unreadable:
            for suffix in ("-shm", "-wal", ""):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        elif not self.failed_reads:
            move(self.path, self.path.with_name(self.path.name + _READ))

    def _all(self) -> Iterator[list[Row]]:
        try:
            database = Database(self.path, "ro")
        except DatabaseError as error:
            self.failed_reads += disk_fails(error)
            self.blind = self._expected is None
            return
        try:
            yield from self._of(database)
        finally:
            database.close()

    def _of(self, database: Database) -> Iterator[list[Row]]:
        low, high = self._after, _ID_MAX
        for rows in self._run(database, FORWARD, low, high):
            if rows is None:
                break
            low = int(rows[-1][0] or 0)
            yield rows
        else:
            return
        try:
            self._last_id = max([self._last_id, *(int(row[0] or 0) for row in database.query(_LAST_ID))])
        except DatabaseError:
            self.blind = self._expected is None
        high = self._last_id + 1
        for rows in self._run(database, _BACKWARD, low, high):
            if rows is None:
                break
            high = int(rows[-1][0] or 0)
            yield rows
        else:
            return
        low = max(low, high - 1 - GAP_MAX)
        for begin in range(low + 1, high, GAP_AT_ONCE):
            yield self._one_by_one(database, range(begin, min(begin + GAP_AT_ONCE, high)))

    def _run(self, database: Database, sql: str, low: int, high: int) -> Iterator[list[Row] | None]:
        """Batches from one end; None when something cannot be read, nothing more at the other end."""
        count = AT_ONCE
        while True:
            try:
                rows = database.query(sql, (low, high, count))
            except DatabaseError:
                if count == 1:
                    yield None
                    return
                # All of a batch fails for its last row.
                count = 1
                continue
            if not rows:
                return
            yield rows
            if sql is FORWARD:
                low = int(rows[-1][0] or 0)
            else:
                high = int(rows[-1][0] or 0)

    def _one_by_one(self, database: Database, ids: range) -> list[Row]:
        rows: list[Row] = []
        for each in ids:
            try:
                rows += database.query(FORWARD, (each - 1, each + 1, 1))
            except DatabaseError as error:
                self.unreadable.append(each)
                self.failed_reads += disk_fails(error)
        return rows
