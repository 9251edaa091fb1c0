"""The stored tenants for the commands: read, written, and formatted for a terminal and for a machine."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict
from typing import Any

from app.cli.ledger_view import json_text, table
from app.cli.migrate import migrate_zone
from app.ledger.zones import Zone
from app.logs import printable
from app.storage.database import Database, open_for_reading
from app.storage.migrations import known_migrations, require_migrated
from app.storage.primary import Primary
from app.storage.store import FileStore, PrimaryStore, Store
from app.tenants.fields import Known
from app.tenants.store import Change, Kind, TenantRow, TenantRows, replace_all, stored
from app.tenants.tenant import Tenant, tenant_of
from app.validation import Mistake


async def read_tenants(zone: Zone) -> TenantRows:
    """What is stored; nothing if nothing was ever recorded. Raises StorageError."""
    if zone.url is None and not zone.local.is_file():
        return TenantRows()
    async with _store_of(zone) as store:
        return await stored(store)


async def write_tenants(zone: Zone, seen: TenantRows, wanted: Mapping[str, TenantRow], now_ms: int) -> None:
    """Do `replace_all`, and first create the local file if there is none. Raises StorageError."""
    if zone.url is None:
        await migrate_zone(zone)
    async with _store_of(zone, write=True) as store:
        await replace_all(store, seen, wanted, now_ms)


@asynccontextmanager
async def _store_of(zone: Zone, *, write: bool = False) -> AsyncIterator[Store]:
    if zone.url is not None:
        async with Primary(zone.url, zone.token) as primary:
            yield PrimaryStore(primary)
        return
    with closing(Database(zone.local) if write else open_for_reading(zone.local)) as database:
        require_migrated(database, known_migrations())
        yield FileStore(database)


def usable(rows: TenantRows, known: Known) -> tuple[dict[str, Tenant], dict[str, str]]:
    """The stored tenants that a server can use; and by name, why it cannot use the others."""
    tenants: dict[str, Tenant] = {}
    broken: dict[str, str] = {}
    for name, row in rows.tenants.items():
        try:
            tenants[name] = tenant_of(name, row.numbers, row.content or "", known)
        except ValueError as error:
            broken[name] = str(error)
    return tenants, broken


def rows_of(tenants: Mapping[str, Tenant]) -> dict[str, TenantRow]:
    """Tenants as they are stored."""
    return {name: TenantRow(tenant.content, tenant.numbers) for name, tenant in sorted(tenants.items())}


# --- For a terminal -----------------------------------------------------------------------------


def tenant_table(rows: TenantRows, tenants: Mapping[str, Tenant], broken: Mapping[str, str]) -> list[str]:
    """A table with one line for each tenant, including those that cannot be used."""
    header = ("tenant", "zone", "language", "model", "numbers", "state")
    lines = []
    for name, row in rows.tenants.items():
        plan = tenants[name].plan if name in tenants else None
        how = ("", "", "") if plan is None else (plan.zone, plan.language, plan.model)
        state = f"cannot be used: {broken[name]}" if name in broken else "good"
        lines.append((name, *how, ",".join(row.numbers), state))
    return table(header, lines)


def change_lines(changes: Iterable[Change]) -> list[str]:
    """The changes of an import: a line for each tenant, and below it one for each field."""
    signs = {Kind.ADDED: "+", Kind.CHANGED: "~", Kind.REMOVED: "-"}
    lines = []
    for change in changes:
        lines.append(f"{signs[change.kind]} {change.tenant}")
        for name, (before, after) in change.fields.items():
            lines.append(f"    {name}: {_became(change.kind, before, after)}")
    return [printable(line) for line in lines]


def _became(kind: Kind, before: Any, after: Any) -> str:
    match kind:
        case Kind.ADDED:
            return json_text(after)
        case Kind.REMOVED:
            return json_text(before)
        case Kind.CHANGED:
            return f"{_or_default(before)} -> {_or_default(after)}"


def _or_default(value: Any) -> str:
    return "default" if value is None else json_text(value)


def summary(changes: Sequence[Change], there: int) -> str:
    """How many of each kind, and of those that stay as they are."""
    kinds = [change.kind for change in changes]
    same = there - kinds.count(Kind.ADDED) - kinds.count(Kind.CHANGED)
    return ", ".join([*(f"{kinds.count(kind)} {kind.value}" for kind in Kind), f"{same} as before"])


# --- For a machine ------------------------------------------------------------------------------


def tenant_object(tenant: Tenant) -> dict[str, Any]:
    """A tenant with all of its fields; `set` names those that are not defaults."""
    plan = asdict(tenant.plan)
    del plan["tenant"], plan["tools"]
    return {"tenant": tenant.name, "numbers": tenant.numbers, **plan, "set": list(tenant.fields)}


def tenant_objects(
    rows: TenantRows, tenants: Mapping[str, Tenant], broken: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """One object for each tenant; one that cannot be used has only the reason."""
    for name, row in rows.tenants.items():
        if name in tenants:
            yield tenant_object(tenants[name])
        else:
            yield {"tenant": name, "numbers": row.numbers, "error": broken[name]}


def change_object(change: Change) -> dict[str, Any]:
    """One change: for each field its value before and after; null means not set."""
    return {"tenant": change.tenant, "change": change.kind.value, "fields": change.fields}


def mistake_object(mistake: Mistake) -> dict[str, Any]:
    """One mistake; in the environment `file` is null and `field` is the variable."""
    where = {"file": mistake.file or None, "line": mistake.line, "field": mistake.field}
    return {**where, "problem": mistake.sentence}
