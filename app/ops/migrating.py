"""Migrates a zone, wherever its ledger is."""

import asyncio
from contextlib import closing
from pathlib import Path

from app.ledger.file import open_for_writing
from app.ledger.ledger import LedgerError
from app.ledger.migrate import Migration, known_migrations, migrate
from app.ledger.migrate_primary import migrate_primary
from app.ledger.primary import Primary
from app.ledger.shelf import PrimaryShelf
from app.ledger.zones import Zone


async def migrate_zone(zone: Zone) -> tuple[Migration, ...]:
    """Apply what is missing, and return it. Raises LedgerError."""
    if zone.url is None:
        return await asyncio.to_thread(_migrate_file, zone.local)
    async with Primary(zone.url, zone.token) as primary:
        return await migrate_primary(PrimaryShelf(primary), known_migrations())


def _migrate_file(path: Path) -> tuple[Migration, ...]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"cannot create {path.parent}: {error.strerror}") from error
    with closing(open_for_writing(path)) as database:
        return migrate(database, known_migrations())
