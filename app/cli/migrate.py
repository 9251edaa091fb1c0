"""Migrates a zone, wherever its ledger is."""

import asyncio
import time
from contextlib import closing
from pathlib import Path

from app.ledger.replica_child import CONSENT, ORIGIN
from app.ledger.zones import Zone
from app.storage.database import open_for_reading, open_for_writing
from app.storage.errors import StorageError
from app.storage.migrations import MARKERS_THERE, Migration, known_migrations, migrate
from app.storage.primary import Primary
from app.storage.primary_migrations import Ask, migrate_primary
from app.storage.statement import Statement, Value
from app.storage.store import PrimaryStore


async def migrate_zone(zone: Zone, *, replace_lost: bool = False) -> tuple[Migration, ...]:
    """Apply what is missing, and return it. Raises StorageError.

    A database that lost everything looks like a new one. With a copy of another database on this machine it is
    refused, unless `replace_lost`: an operator says that it takes the place of the lost one, and the machines that
    keep copies of that are told so by a row in the new one.
    """
    if zone.url is None:
        return await asyncio.to_thread(_migrate_file, zone.local)
    async with Primary(zone.url, zone.token) as primary:
        store = PrimaryStore(primary)
        if not replace_lost:
            await refuse_replacement(zone, store.ask)
        applied = await migrate_primary(store, known_migrations())
        if replace_lost:
            await store.change([Statement(_CONSENT, (time.time_ns() // 1_000_000,))])
        return applied


_CONSENT = "INSERT INTO database_replacements (consented_ms) VALUES (?) ON CONFLICT DO NOTHING"


async def refuse_replacement(zone: Zone, ask: Ask) -> None:
    """Raises StorageError when this machine has a copy of another database than the primary is now."""
    copied = await asyncio.to_thread(_copied, zone.replica)
    if copied is None:
        return
    origin, there = copied
    found = await ask(Statement(ORIGIN, ())) if await ask(Statement(MARKERS_THERE, ())) else []
    if found and found[0][0] == origin:
        return
    if found and await _consented(ask):
        return
    what = "another database than before" if found else "empty"
    raise StorageError(
        f"the database is {what}, and the copy at {zone.replica} has {there}: nothing was changed. Restore the"
        f" database; or, to begin anew, run 'nearcall migrate --replace-lost-database {zone.name}'"
    )


async def _consented(ask: Ask) -> bool:
    there = await ask(Statement("SELECT 1 FROM sqlite_schema WHERE name = 'database_replacements'", ()))
    return bool(there) and (await ask(Statement(CONSENT, ())))[0][0] != 0


def _copied(path: Path) -> tuple[Value, str] | None:
    """Which database a copy is of, and what it has; None when there is none that can be read."""
    try:
        with closing(open_for_reading(path)) as database:
            [(origin,)] = database.query(ORIGIN)
            [(calls,)] = database.query("SELECT count(DISTINCT call_sid) FROM legs")
            [(tenants,)] = database.query("SELECT count(*) FROM tenants")
    except (StorageError, ValueError):  # no copy, or one that was never migrated
        return None
    return origin, f"{calls} calls and {tenants} tenants"


def _migrate_file(path: Path) -> tuple[Migration, ...]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create {path.parent}: {error.strerror}") from error
    with closing(open_for_writing(path)) as database:
        return migrate(database, known_migrations())
