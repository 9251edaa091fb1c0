"""Recovers the readable records of a damaged spool file that was put aside, a few records at a time.

    forward   from the oldest record to the first page that cannot be read
    backward  from the newest to the last such page
    gap       between the two, id by id: a broken page does not say what is on the next

First the records on their way, then those that were set aside for an operator (aside.py), then the legs that an
earlier process left open (open_legs.py). This runs in the spool's thread, which writes what it finds into the
spool's new file. The old file keeps its content, and only its name changes: a person may look at it, and delete
it.
"""

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from app.ledger import open_legs
from app.storage.database import Database, DatabaseError, disk_fails
from app.storage.statement import Row

_SPOOL = "SELECT id, kind, call_sid, caller, at_ms, content FROM spool"
_ASIDE = "SELECT id, kind, call_sid, caller, at_ms, content, error, refused_ms FROM aside"
_FORWARD = " WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
_BACKWARD = " WHERE id > ? AND id < ? ORDER BY id DESC LIMIT ?"
_LAST_ID = "SELECT seq FROM sqlite_sequence WHERE name = 'spool'"
_TABLE = "SELECT 1 FROM sqlite_schema WHERE name = ?"

AT_ONCE = 200
"""Records that are read at a time, and written in one transaction."""
GAP_AT_ONCE = 2_000
"""Ids that are tried at a time where many have no record any more."""
GAP_MAX = 1_000_000
"""The most ids that are tried one by one; in a wider gap, the newest are."""
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


@dataclass(frozen=True, slots=True)
class Found:
    """Some of the records and legs that can be read."""

    records: Sequence[Row] = ()
    """Records on their way to the primary; each row begins with the id."""
    aside: Sequence[Row] = ()
    """Records that were set aside; each row begins with the id and ends with why and when."""
    legs: Sequence[Row] = ()
    """Legs that were left open."""


class Salvage:
    """One file that was put aside. Belongs to the thread that makes it."""

    def __init__(
        self,
        path: Path,
        *,
        after: int = 0,
        delivered: AbstractSet[int] = frozenset(),
        last_id: int = 0,
        expected: int | None = None,
        expected_aside: int | None = None,
        dead_legs: bool = True,
    ) -> None:
        """What the spool knows of the file.

        Records with ids up to `after`, and those `delivered`, are on the primary, `last_id` is the highest known.
        `expected` records are on their way in it, `expected_aside` are set aside. `dead_legs`: it may have open
        legs of an earlier process.
        """
        self.path = path
        self.unreadable: list[int] = []
        """Ids of records on their way that cannot be read."""
        self.failed_reads = 0
        """How often the disk failed to read. A later attempt may succeed."""
        self.found = 0
        """Records on their way that were moved from it."""
        self.found_aside = 0
        """Records that were set aside, and were moved from it."""
        self.ended = False
        self.blind = False
        """True when not even the number of records can be told."""
        self.legs_unreadable = False
        """True when it may have open legs that nobody can read."""
        self._after = after
        self._delivered = delivered
        self._last_id = last_id
        self._expected = expected
        self._expected_aside = expected_aside
        self._dead_legs = dead_legs
        self._aside_unreadable = False
        self._endless = False
        """True when nobody knows which ids to look for behind a page that cannot be read."""
        self._parts = self._all()

    @property
    def left(self) -> int:
        """Records that are expected and were not found; 1 when nobody knows whether there are any."""
        return 1 if self._expected is None else max(0, self._expected - self.found)

    @property
    def left_aside(self) -> int:
        """Records set aside that are expected and were not found, as far as that is known."""
        return max(0, (self._expected_aside or 0) - self.found_aside)

    @property
    def lost(self) -> int:
        """Records that were in the file and cannot be read, as far as that is known."""
        missing = len(self.unreadable)
        if self._expected is not None:
            missing = min(missing, max(0, self._expected - self.found))
        if not self._aside_unreadable:
            return missing
        # Ids of records that are set aside have gaps: those that cannot be read do not say how many there were.
        return missing + (1 if self._expected_aside is None else max(0, self._expected_aside - self.found_aside))

    def next(self) -> Found:
        """Read some more; `ended` is True after the last part. A fault of the file raises nothing."""
        part = next(self._parts, None)
        self.ended = part is None
        return part or Found()

    def moved(self, part: Found) -> None:
        """Count the records that the new file has now."""
        self.found += len(part.records)
        self.found_aside += len(part.aside)

    def finish(self) -> None:
        """Have later starts not read the file again, unless the disk may yet read more of it. Raises OSError.

        One that holds nothing which was not moved is deleted: callers' words are in no file without need.
        """
        whole = not (self.unreadable or self._aside_unreadable or self.legs_unreadable)
        if whole and self._expected is not None and self.found >= self._expected:
            for suffix in ("-shm", "-wal", ""):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        elif not self.failed_reads:
            move(self.path, self.path.with_name(self.path.name + _READ))

    def _all(self) -> Iterator[Found]:
        try:
            database = Database(self.path, "ro")
        except DatabaseError as error:
            self._failed(error)
            self._count_is_unknown()
            return
        with closing(database):
            yield from self._records(database)
            yield from self._set_aside(database)
            if self._dead_legs:
                yield from self._legs(database)

    def _records(self, database: Database) -> Iterator[Found]:
        for rows in self._table(database, _SPOOL, self._after, self.unreadable):
            yield Found(records=[row for row in rows if row[0] not in self._delivered])
        self.unreadable = [each for each in self.unreadable if each not in self._delivered]

    def _set_aside(self, database: Database) -> Iterator[Found]:
        if self._expected_aside == 0:
            return
        try:
            if not database.query(_TABLE, ("aside",)):
                return  # of the version before
        except DatabaseError as error:
            self._failed(error)
            # Whoever cannot tell of any record cannot tell of these.
            self._aside_unreadable = not self.blind
            return
        self._endless = False
        unreadable: list[int] = []
        for rows in self._table(database, _ASIDE, 0, unreadable):
            yield Found(aside=rows)
        self._aside_unreadable = bool(unreadable) or self._endless

    def _legs(self, database: Database) -> Iterator[Found]:
        try:
            if database.query(_TABLE, ("open_legs",)):
                yield Found(legs=database.query(open_legs.ALL))
        except DatabaseError as error:
            self._failed(error)
            self.legs_unreadable = True

    def _table(self, database: Database, select: str, low: int, unreadable: list[int]) -> Iterator[list[Row]]:
        """Rows with ids above `low`; adds the ids of those that cannot be read."""
        high = _ID_MAX
        for rows in self._run(database, select + _FORWARD, low, high):
            if rows is None:
                break
            low = int(rows[-1][0] or 0)
            yield rows
        else:
            return
        try:
            self._last_id = max([self._last_id, *(int(row[0] or 0) for row in database.query(_LAST_ID))])
        except DatabaseError:
            self._count_is_unknown()
        self._endless = self._last_id <= low
        high = self._last_id + 1
        for rows in self._run(database, select + _BACKWARD, low, high):
            if rows is None:
                break
            high = int(rows[-1][0] or 0)
            yield rows
        else:
            return
        low = max(low, high - 1 - GAP_MAX)
        for begin in range(low + 1, high, GAP_AT_ONCE):
            yield self._one_by_one(database, select, range(begin, min(begin + GAP_AT_ONCE, high)), unreadable)

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
            if sql.endswith(_FORWARD):
                low = int(rows[-1][0] or 0)
            else:
                high = int(rows[-1][0] or 0)

    def _one_by_one(self, database: Database, select: str, ids: range, unreadable: list[int]) -> list[Row]:
        rows: list[Row] = []
        for each in ids:
            try:
                rows += database.query(select + _FORWARD, (each - 1, each + 1, 1))
            except DatabaseError as error:
                unreadable.append(each)
                self._failed(error)
        return rows

    def _failed(self, error: DatabaseError) -> None:
        self.failed_reads += disk_fails(error)

    def _count_is_unknown(self) -> None:
        self.blind = self._expected is None
