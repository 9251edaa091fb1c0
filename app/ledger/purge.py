"""Erases everything about calls that are too old, about one call, or about all calls of one caller.

Only whole calls are erased: a conversation without half its turns is of no use. A call or a caller that is erased
on request stays erased: the call's id is kept in `erased`, and records of it that another machine still holds, or
that are on their way at this moment, are not stored when they arrive (triggers of migration 0002). A store may be
a file or a primary; this module treats both alike.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from app.ledger.spool import open_spool
from app.ledger.zones import Zone
from app.storage.database import Database
from app.storage.migrations import known_migrations, require_migrated
from app.storage.statement import Statement
from app.storage.store import FileStore, Store

PAGE = 200
"""Calls in one transaction. Others do not wait long for the write lock then."""

ERASED_KEPT_MS = 400 * 86_400_000
"""How long the id of a call that was erased on request is kept, whatever the age limit for calls is: a spool has
no age limit, and a machine may have been off, or without a token, for long."""

TABLES = ("legs", "turns", "events", "endings", "refused", "claims")
"""Every table that has something of a call. A test compares this with the schema."""


@dataclass(frozen=True, slots=True)
class OlderThan:
    """Calls without a record that is newer than this."""

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


async def purge(
    store: Store, target: Target, now_ms: int, *, dry_run: bool, spared: frozenset[str] = frozenset()
) -> Erased:
    """Erase, and return what there was. A dry run only counts. The calls of `spared` stay.

    Raises StorageError; what was erased until then stays erased, and the rest is erased by doing it again.
    """
    erased = Erased(rows=dict.fromkeys(TABLES, 0))
    after = ""
    while page := [str(sid) for (sid,) in await store.ask(_find(target, after))]:
        meant = [sid for sid in page if sid not in spared]
        [found] = await store.ask(_count(meant))
        erased += Erased(frozenset(meant), {table: int(n or 0) for table, n in zip(TABLES, found, strict=True)})
        if not dry_run:
            await store.change([*_remember_erased(target, meant, now_ms), *_delete(meant)])
        after = page[-1]
    if not dry_run:
        await _finish(store, target, now_ms)
    return erased


async def _finish(store: Store, target: Target, now_ms: int) -> None:
    match target:
        case OlderThan():
            await store.change([Statement("DELETE FROM erased WHERE erased_ms < ?", (now_ms - ERASED_KEPT_MS,))])
        case OneCall(call_sid):
            # Even if there is no record of the call yet: some may still arrive.
            await store.change(_remember_erased(target, [call_sid], now_ms))
        case OneCaller():
            pass


_OLD = """
SELECT call_sid FROM (
  SELECT call_sid FROM legs WHERE started_ms < ?
  UNION SELECT call_sid FROM turns WHERE started_ms < ?
  UNION SELECT call_sid FROM events WHERE at_ms < ?
  UNION SELECT call_sid FROM endings WHERE ended_ms < ?
  UNION SELECT call_sid FROM refused WHERE refused_ms < ?
  UNION SELECT call_sid FROM claims WHERE claimed_ms < ?
) AS old
WHERE call_sid > ?
  AND NOT EXISTS (SELECT 1 FROM legs WHERE call_sid = old.call_sid AND started_ms >= ?)
  AND NOT EXISTS (SELECT 1 FROM turns WHERE call_sid = old.call_sid AND ended_ms >= ?)
  AND NOT EXISTS (SELECT 1 FROM events WHERE call_sid = old.call_sid AND at_ms >= ?)
  AND NOT EXISTS (SELECT 1 FROM endings WHERE call_sid = old.call_sid AND ended_ms >= ?)
  AND NOT EXISTS (SELECT 1 FROM refused WHERE call_sid = old.call_sid AND refused_ms >= ?)
  AND NOT EXISTS (SELECT 1 FROM claims WHERE call_sid = old.call_sid AND claimed_ms >= ?)
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


async def purge_zone(zone: Zone, primary: Store | None, target: Target, now_ms: int, *, dry_run: bool) -> Erased:
    """`purge` wherever something of a zone is: on its primary, in this machine's spool, in the local file.

    Spool and local file also when the settings use neither of them any more. Raises StorageError.
    """
    erased = Erased()
    spared = _not_yet_old(zone.spool, target)
    if primary is not None:
        # The primary first: from then on it takes nothing more of these calls, whoever sends it.
        erased += await purge(primary, target, now_ms, dry_run=dry_run, spared=spared)
    if zone.spool.is_file():
        erased = await _purge_spool(zone.spool, primary, target, now_ms, erased, dry_run=dry_run)
    if zone.local.is_file():
        erased += await purge_file(zone.local, target, now_ms, dry_run=dry_run, spared=spared)
    return erased


async def purge_file(
    path: Path, target: Target, now_ms: int, *, dry_run: bool, spared: frozenset[str] = frozenset()
) -> Erased:
    """`purge` for the ledger file at `path`. Raises StorageError, also when the file's schema is too old."""
    with closing(Database(path)) as database:
        require_migrated(database, known_migrations())
        store = FileStore(database)
        erased = await purge(store, target, now_ms, dry_run=dry_run, spared=spared)
        if not dry_run:
            store.scrub()
    return erased


_HELD = "(SELECT call_sid, caller, at_ms FROM spool UNION ALL SELECT call_sid, caller, at_ms FROM aside)"
"""What the spool's file has of calls: on its way, and set aside."""


async def _purge_spool(
    spool: Path, primary: Store | None, target: Target, now_ms: int, erased: Erased, *, dry_run: bool
) -> Erased:
    """Erase here what was erased on the primary, and what only the spool knows to be meant; both together."""
    with closing(open_spool(spool)) as database:
        waiting = FileStore(database)
        if isinstance(target, OneCaller):
            theirs = Statement(f"SELECT DISTINCT call_sid FROM {_HELD} WHERE caller = ?", (target.number,))  # noqa: S608
            rows = await waiting.ask(theirs)
            for call_sid in {str(sid) for (sid,) in rows} - erased.call_sids:
                erased += Erased(frozenset({call_sid}))
                if primary is not None:
                    erased += await purge(primary, OneCall(call_sid), now_ms, dry_run=dry_run)
        where = _waiting(target, erased.call_sids)
        found = f"SELECT call_sid, count(*) FROM {_HELD} WHERE {where.sql} GROUP BY call_sid"  # noqa: S608 - conditions of our own
        counts = {str(sid): int(n or 0) for sid, n in await waiting.ask(Statement(found, where.values))}
        if not dry_run:
            meant = _waiting(OneCaller(""), frozenset(counts))
            await waiting.change(
                [Statement(f"DELETE FROM {table} WHERE {meant.sql}", meant.values) for table in ("spool", "aside")]  # noqa: S608
            )
            waiting.scrub()
    return erased + Erased(frozenset(counts), {"spool": sum(counts.values())})


def _not_yet_old(spool: Path, target: Target) -> frozenset[str]:
    """Calls that are old by what was delivered of them, and have something newer in the spool."""
    if not isinstance(target, OlderThan) or not spool.is_file():
        return frozenset()
    with closing(open_spool(spool)) as database:
        rows = database.query(f"SELECT DISTINCT call_sid FROM {_HELD} WHERE at_ms >= ?", (target.before_ms,))  # noqa: S608
    return frozenset(str(sid) for (sid,) in rows)


def _waiting(target: Target, call_sids: frozenset[str]) -> Statement:
    """The condition for rows of the spool."""
    match target:
        case OlderThan(before_ms):
            old = f"SELECT call_sid FROM {_HELD} GROUP BY call_sid HAVING max(at_ms) < ?"  # noqa: S608
            return Statement(f"call_sid IN ({old})", (before_ms,))
        case OneCall(call_sid):
            return Statement("call_sid = ?", (call_sid,))
        case OneCaller():
            return Statement(_AMONG, (json.dumps(sorted(call_sids)),))
