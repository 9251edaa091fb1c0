"""Tenants in the global ledger: all of them are read as of one instant, and an import is one transaction.

An import makes what is stored the same as a file. It shows its changes before it makes them, so of two imports at
the same time the second is refused, by the key of `tenant_changes`: its changes would not be the ones it showed.
Refuses to know whether the store is a file or a primary, and what content means.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from app.storage.database import RefusedError
from app.storage.errors import StorageError
from app.storage.primary import Alarm, Poison, PrimaryError
from app.storage.statement import Row, Statement
from app.storage.store import Store

Mark = tuple[int, int]
"""Number and instant (Unix ms) of the newest import. Tenants change only together with it."""

NO_MARK: Mark = (0, 0)

LATEST = Statement("SELECT change, changed_ms FROM tenant_changes ORDER BY change DESC LIMIT 1", ())


EVERYTHING_IN_HEX = Statement(
    "SELECT 'tenant', name, hex(content) FROM tenants"
    " UNION ALL SELECT 'number', number, tenant FROM tenant_numbers",
    (),
)
"""For a file; `unhexed` reads the answer. sqlite3 reads no row at all when one content is not UTF-8."""

# As many tenants as have a number of characters together, and at least one.
_CONTENTS = (
    "SELECT 'tenant', name, content FROM ("
    " SELECT name, content, sum(length(content)) OVER (ORDER BY name) AS chars FROM tenants WHERE name > ?)"
    " WHERE chars - length(content) < ? ORDER BY name"
)
_NUMBERS = "SELECT 'number', number, tenant FROM tenant_numbers WHERE number > ? ORDER BY number LIMIT ?"
PIECE_CHARS = 1_000_000
"""Characters in one answer, and in one text of a statement. sqld takes and gives 10 MB at most (measured). A
tenant has up to half a million characters, each up to four bytes, and six if it is escaped."""
PIECE_NUMBERS = 20_000
READ_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant as it is stored, which may or may not be usable."""

    content: str | None
    """JSON. None: only the numbers of this tenant are stored."""
    numbers: tuple[str, ...] = ()
    """Sorted."""


@dataclass(frozen=True, slots=True)
class TenantRows:
    """All that is stored."""

    mark: Mark = NO_MARK
    tenants: Mapping[str, TenantRow] = field(default_factory=dict)
    """By name, in the order of names."""


class ImportedMeanwhileError(StorageError):
    """Another import came first. Nothing was changed."""


def mark_of(rows: Sequence[Row]) -> Mark:
    """Read the answer to LATEST."""
    return next(((int(change or 0), int(changed_ms or 0)) for change, changed_ms in rows), NO_MARK)


def rows_of(mark: Mark, rows: Iterable[Row]) -> TenantRows:
    """Build the tenants from rows of two kinds: (tenant, name, content) and (number, number, tenant)."""
    contents: dict[str, str] = {}
    numbers: dict[str, list[str]] = {}
    for kind, key, value in rows:
        if kind == "tenant":
            contents[str(key)] = str(value)
        else:
            numbers.setdefault(str(value), []).append(str(key))
    names = sorted(contents.keys() | numbers.keys())
    return TenantRows(
        mark, {name: TenantRow(contents.get(name), tuple(sorted(numbers.get(name, ())))) for name in names}
    )


def unhexed(rows: Iterable[Row]) -> Iterator[Row]:
    """Decode the answer to EVERYTHING_IN_HEX for `rows_of`."""
    for kind, key, value in rows:
        is_hex = kind == "tenant"
        yield (kind, key, bytes.fromhex(str(value)).decode(errors="replace") if is_hex else value)


async def stored(store: Store) -> TenantRows:
    """Read all tenants as they are at one instant. Raises StorageError."""
    with _Hints():
        for _ in range(READ_ATTEMPTS):
            mark = mark_of(await store.ask(LATEST))
            rows = [*await _pages(store, _CONTENTS, PIECE_CHARS), *await _pages(store, _NUMBERS, PIECE_NUMBERS)]
            if mark_of(await store.ask(LATEST)) == mark:
                return rows_of(mark, rows)
    raise StorageError("tenants were imported several times while they were read: try again later")


async def _pages(store: Store, sql: str, size: int) -> list[Row]:
    rows: list[Row] = []
    while page := await store.ask(Statement(sql, (rows[-1][1] if rows else "", size))):
        rows += page
    return rows


async def replace_all(store: Store, seen: TenantRows, wanted: Mapping[str, TenantRow], now_ms: int) -> None:
    """Replace what is stored by `wanted`, all of it or nothing. `seen` is what `stored` returned before.

    May be repeated after any error. Raises ImportedMeanwhileError, and StorageError.
    """
    if wanted == seen.tenants:
        return
    with _Hints():
        try:
            await store.change(list(_steps(seen, wanted, now_ms)))
        except (RefusedError, PrimaryError) as error:
            if isinstance(error, PrimaryError) and not isinstance(error.failure, Poison):
                raise
            # The import may have been this one, if the answer to its first attempt was lost.
            there = await stored(store)
            if there.tenants == wanted:
                return
            if there.mark == seen.mark:
                raise
            raise ImportedMeanwhileError(
                "another import came at the same moment: nothing was changed; run this one again"
            ) from error


class _Hints:
    """Adds to the error of a schema without tenants what to do about it."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PrimaryError) and isinstance(error.failure, Alarm) and error.failure.schema:
            raise StorageError(f"{error}. Run 'nearcall migrate'") from error


def _steps(seen: TenantRows, wanted: Mapping[str, TenantRow], now_ms: int) -> Iterator[Statement]:
    """The transaction. Lists are sent as JSON, so a thousand tenants take a few statements."""
    yield Statement("INSERT INTO tenant_changes (change, changed_ms) VALUES (?, ?)", (seen.mark[0] + 1, now_ms))
    old_owners, owners = _owners(seen.tenants), _owners(wanted)
    for numbers in _pieces(sorted(old_owners.keys() - owners.keys())):
        yield Statement("DELETE FROM tenant_numbers WHERE number IN (SELECT value FROM json_each(?))", (numbers,))
    for names in _pieces(sorted(seen.tenants.keys() - wanted.keys())):
        yield Statement("DELETE FROM tenants WHERE name IN (SELECT value FROM json_each(?))", (names,))
    old_contents = {name: row.content for name, row in seen.tenants.items()}
    changed = [(name, row.content) for name, row in wanted.items() if old_contents.get(name) != row.content]
    for contents in _pieces(changed):
        # Without WHERE true, SQLite reads ON as part of a join.
        yield Statement(
            "INSERT INTO tenants (name, content, changed_ms)"
            " SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), ? FROM json_each(?) WHERE true"
            " ON CONFLICT (name) DO UPDATE SET content = excluded.content, changed_ms = excluded.changed_ms",
            (now_ms, contents),
        )
    for theirs in _pieces(sorted(owners.items() - old_owners.items())):
        yield Statement(
            "INSERT INTO tenant_numbers (number, tenant)"
            " SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?) WHERE true"
            " ON CONFLICT (number) DO UPDATE SET tenant = excluded.tenant",
            (theirs,),
        )


def _pieces(items: Sequence[object]) -> Iterator[str]:
    """JSON lists of about PIECE_CHARS characters each."""
    piece: list[str] = []
    chars = 0
    for item in items:
        piece.append(orjson.dumps(item).decode())
        chars += len(piece[-1])
        if chars >= PIECE_CHARS:
            yield f"[{','.join(piece)}]"
            piece, chars = [], 0
    if piece:
        yield f"[{','.join(piece)}]"


def _owners(tenants: Mapping[str, TenantRow]) -> dict[str, str]:
    return {number: name for name, row in tenants.items() for number in row.numbers}


# --- What an import would change ----------------------------------------------------------------


class Kind(StrEnum):
    """What happens to a tenant."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Change:
    """What an import does to one tenant."""

    tenant: str
    kind: Kind
    fields: Mapping[str, tuple[Any, Any]]
    """Before and after of each field that differs, `numbers` among them; None: not set."""


def changes(seen: TenantRows, wanted: Mapping[str, TenantRow]) -> list[Change]:
    """What an import would change, tenant by tenant."""
    found = []
    for name in sorted(seen.tenants.keys() | wanted.keys()):
        old, new = seen.tenants.get(name), wanted.get(name)
        if old == new:
            continue
        kind = Kind.ADDED if old is None else Kind.REMOVED if new is None else Kind.CHANGED
        before, after = _fields(old), _fields(new)
        names = [*after, *(each for each in before if each not in after)]
        differ = {
            each: (before.get(each), after.get(each)) for each in names if before.get(each) != after.get(each)
        }
        found.append(Change(name, kind, differ))
    return found


def _fields(row: TenantRow | None) -> dict[str, Any]:
    if row is None:
        return {}
    numbers = {"numbers": list(row.numbers)} if row.numbers else {}
    try:
        content = orjson.loads(row.content or "")
    except orjson.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        return {**numbers, "content": "cannot be read"}
    return {**numbers, **content}
