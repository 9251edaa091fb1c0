"""Erasure: everything about calls that are too old, about one call, about one caller.

Whole calls only: a conversation without half its turns helps nobody. A call or a caller that is erased on request
stays erased: the call's id is kept in `erased`, and records of it that another machine still holds, or that are
on their way at this moment, are not stored when they arrive (triggers of migration 0002). Refuses to know whether
it is a file or a primary that is asked.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from app.ledger.file import Database
from app.ledger.ledger import LedgerError
from app.ledger.migrate import known_migrations, require_migrated
from app.ledger.shelf import FileShelf, Shelf
from app.ledger.sql import Statement

PAGE = 200
"""Calls in one transaction, so that nobody else waits long for the write lock."""

TABLES = ("legs", "turns", "events", "endings", "refused")
"""Every table that has something of a call. A test compares this with the schema."""


@dataclass(frozen=True, slots=True)
class OlderThan:
    """Calls of which nothing is newer."""

    before_ms: int
    """Unix ms."""


@dataclass(frozen=True, slots=True)
class OneCall:
    """A call by Twilio's id."""

    call_sid: str


@dataclass(frozen=True, slots=True)
class OneCaller:
    """All calls from a number, as Twilio gave it (E.164)."""

    number: str = field(repr=False)


Target = OlderThan | OneCall | OneCaller


def number_of(text: str) -> str:
    """A number as Twilio spells it, from one with spaces or dashes. Raises ValueError."""
    number = re.sub(r"[\s()./-]", "", text)
    if re.fullmatch(r"\+[1-9]\d{4,14}", number, re.ASCII) is None:
        raise ValueError(f"{text!r} should be a number with its country: +4930123456")
    return number


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased, or would have been."""

    call_sids: frozenset[str] = frozenset()
    rows: Mapping[str, int] = field(default_factory=dict)
    """By table; `spool` is this machine's."""

    def __add__(self, other: "Erased") -> "Erased":
        tables = {**self.rows, **other.rows}
        rows = {table: self.rows.get(table, 0) + other.rows.get(table, 0) for table in tables}
        return Erased(self.call_sids | other.call_sids, rows)


async def purge(shelf: Shelf, target: Target, now_ms: int, *, dry_run: bool) -> Erased:
    """Erase, and return what there was. A dry run only counts.

    Raises LedgerError; what was erased until then stays erased, and the rest is erased by doing it again.
    """
    erased = Erased(rows=dict.fromkeys(TABLES, 0))
    after = ""
    while page := [str(sid) for (sid,) in await shelf.ask(_find(target, after))]:
        [found] = await shelf.ask(_count(page))
        erased += Erased(frozenset(page), {table: int(n or 0) for table, n in zip(TABLES, found, strict=True)})
        if not dry_run:
            await shelf.change([*_remember_erased(target, page, now_ms), *_delete(page)])
        after = page[-1]
    if not dry_run:
        await _finish(shelf, target, now_ms)
    return erased


async def _finish(shelf: Shelf, target: Target, now_ms: int) -> None:
    match target:
        case OlderThan(before_ms):
            # Nobody sends records that old any more.
            await shelf.change([Statement("DELETE FROM erased WHERE erased_ms < ?", (before_ms,))])
        case OneCall(call_sid):
            # Also when nothing is here yet: it may still come.
            await shelf.change(_remember_erased(target, [call_sid], now_ms))
        case OneCaller():
            pass


_OLD = """
SELECT call_sid FROM (
  SELECT call_sid FROM legs WHERE started_ms < ?
  UNION SELECT call_sid FROM turns WHERE started_ms < ?
  UNION SELECT call_sid FROM events WHERE at_ms < ?
  UNION SELECT call_sid FROM endings WHERE ended_ms < ?
  UNION SELECT call_sid FROM refused WHERE refused_ms < ?
) AS old
WHERE call_sid > ?
  AND NOT EXISTS (SELECT 1 FROM legs WHERE call_sid = old.call_sid AND started_ms >= ?)
  AND NOT EXISTS (SELECT 1 FROM turns WHERE call_sid = old.call_sid AND ended_ms >= ?)
  AND NOT EXISTS (SELECT 1 FROM events WHERE call_sid = old.call_sid AND at_ms >= ?)
  AND NOT EXISTS (SELECT 1 FROM endings WHERE call_sid = old.call_sid AND ended_ms >= ?)
  AND NOT EXISTS (SELECT 1 FROM refused WHERE call_sid = old.call_sid AND refused_ms >= ?)
ORDER BY call_sid LIMIT ?
"""

_BY_CALLER = """
SELECT call_sid FROM (
  SELECT call_sid FROM legs WHERE caller = ?
  UNION SELECT call_sid FROM refused
  WHERE CASE WHEN json_valid(content) THEN json_extract(content, '$.caller') = ? ELSE instr(content, ?) END
)
WHERE call_sid > ?
ORDER BY call_sid LIMIT ?
"""

_BY_SID = " UNION ".join(f"SELECT call_sid FROM {table} WHERE call_sid = ?" for table in TABLES)  # noqa: S608 - our own names


def _find(target: Target, after: str) -> Statement:
    """The next page of calls that the target means, in the order of their ids."""
    match target:
        case OlderThan(before_ms):
            each = (before_ms,) * len(TABLES)
            return Statement(_OLD, (*each, after, *each, PAGE))
        case OneCaller(number):
            return Statement(_BY_CALLER, (number, number, number, after, PAGE))
        case OneCall(call_sid):
            sids = (call_sid,) * len(TABLES)
            return Statement(f"SELECT call_sid FROM ({_BY_SID}) WHERE call_sid > ?", (*sids, after))  # noqa: S608


_AMONG = "call_sid IN (SELECT value FROM json_each(?))"


def _count(call_sids: Sequence[str]) -> Statement:
    each = ", ".join(f"(SELECT count(*) FROM {table} WHERE {_AMONG})" for table in TABLES)  # noqa: S608
    return Statement(f"SELECT {each}", (json.dumps(call_sids),) * len(TABLES))


def _delete(call_sids: Sequence[str]) -> list[Statement]:
    return [Statement(f"DELETE FROM {table} WHERE {_AMONG}", (json.dumps(call_sids),)) for table in TABLES]  # noqa: S608


def _remember_erased(target: Target, call_sids: Sequence[str], now_ms: int) -> list[Statement]:
    if isinstance(target, OlderThan):
        return []
    # WHERE true: else SQLite takes ON for a join's.
    note = "INSERT INTO erased (call_sid, erased_ms) SELECT value, ? FROM json_each(?) WHERE true"
    return [Statement(f"{note} ON CONFLICT DO NOTHING", (now_ms, json.dumps(call_sids)))]


async def purge_file(path: Path, target: Target, now_ms: int, *, dry_run: bool) -> Erased:
    """`purge` for the ledger file at `path`. Raises LedgerError, also when the file's schema is too old."""
    with closing(_opened(path)) as database:
        require_migrated(database, known_migrations())
        shelf = FileShelf(database)
        erased = await purge(shelf, target, now_ms, dry_run=dry_run)
        shelf.scrub()
    return erased


async def purge_primary(shelf: Shelf, spool: Path, target: Target, now_ms: int, *, dry_run: bool) -> Erased:
    """`purge` for a primary and for what waits in this machine's spool. Raises LedgerError.

    The primary first: from then on it takes nothing more of these calls, whoever sends it.
    """
    erased = await purge(shelf, target, now_ms, dry_run=dry_run)
    if not spool.is_file():  # noqa: ASYNC240  a command, with nothing beside it to hold up
        return erased
    with closing(Database(spool)) as database:
        waiting = FileShelf(database)
        if isinstance(target, OneCaller):
            theirs = Statement("SELECT DISTINCT call_sid FROM spool WHERE caller = ?", (target.number,))
            rows = await waiting.ask(theirs)
            for call_sid in {str(sid) for (sid,) in rows} - erased.call_sids:
                erased += Erased(frozenset({call_sid}))
                erased += await purge(shelf, OneCall(call_sid), now_ms, dry_run=dry_run)
        where = _waiting(target, erased.call_sids)
        count_them = f"SELECT count(*) FROM spool WHERE {where.sql}"  # noqa: S608 - conditions of our own
        [(count,)] = await waiting.ask(Statement(count_them, where.values))
        if not dry_run:
            await waiting.change([Statement(f"DELETE FROM spool WHERE {where.sql}", where.values)])  # noqa: S608
            waiting.scrub()
    return erased + Erased(rows={"spool": int(count or 0)})


def _waiting(target: Target, call_sids: frozenset[str]) -> Statement:
    """The condition for rows of the spool."""
    match target:
        case OlderThan(before_ms):
            return Statement("at_ms < ?", (before_ms,))
        case OneCall(call_sid):
            return Statement("call_sid = ?", (call_sid,))
        case OneCaller():
            return Statement(_AMONG, (json.dumps(sorted(call_sids)),))


def _opened(path: Path) -> Database:
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}: nothing has been recorded there yet")
    return Database(path)
