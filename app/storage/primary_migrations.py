"""Brings a primary to the schema this program knows, over HTTP: one transaction and one round trip for each file.

The row that says a file was applied is written before the file's statements, in the same transaction: whoever
comes second, of six machines or after an answer that was lost, is refused by the row's key, and does nothing.
"""

from collections.abc import Awaitable, Callable, Sequence

from app.storage.migrations import (
    MARKER_TABLE,
    MARKERS,
    MARKERS_THERE,
    Migration,
    MigrationError,
    first_line,
    known_to,
    lacking,
    marker_of,
    refuse_older,
    statements_of,
)
from app.storage.primary import Poison, Primary, PrimaryError
from app.storage.statement import Row, Statement
from app.storage.store import Store

Ask = Callable[[Statement], Awaitable[Sequence[Row]]]


async def migrate_primary(store: Store, migrations: tuple[Migration, ...]) -> tuple[Migration, ...]:
    """Apply what is missing and return what this run applied.

    Raises SchemaTooNewError, SchemaChangedError, MigrationError when a statement fails (nothing of its file was
    done), and PrimaryError when the primary cannot be used.
    """
    absent = await missing_at(store.ask, migrations)
    return tuple([migration for migration in absent if await _apply(store, migration, migrations)])


async def check_primary(primary: Primary, migrations: tuple[Migration, ...]) -> None:
    """Ask once whether the schema has all that this program knows of.

    A newer one is good too: a schema only grows, and after a rollback the records that wait must get through.
    Raises SchemaTooOldError or SchemaChangedError when it is not, PrimaryError when unanswered.
    """
    refuse_older(lacking(known_to(await _markers(primary.query), migrations), migrations))


async def missing_at(ask: Ask, migrations: tuple[Migration, ...]) -> tuple[Migration, ...]:
    """What was not applied yet. Raises as `lacking` does, and PrimaryError."""
    return lacking(await _markers(ask), migrations)


async def _markers(ask: Ask) -> Sequence[Row]:
    there = await ask(Statement(MARKERS_THERE, ()))
    return await ask(Statement(MARKERS, ())) if there else []


async def _apply(store: Store, migration: Migration, migrations: tuple[Migration, ...]) -> bool:
    """False when somebody else was faster."""
    statements = [Statement(text, ()) for text in statements_of(migration)]
    steps = [Statement(MARKER_TABLE, ()), marker_of(migration), *statements]
    try:
        await store.change(steps)
    except PrimaryError as error:
        refused = isinstance(error.failure, Poison)
        if refused and migration not in await missing_at(store.ask, migrations):
            return False
        raise MigrationError(f"{migration.name} failed{_where(error, steps)}: {error}") from error
    return True


def _where(error: PrimaryError, steps: Sequence[Statement]) -> str:
    match error.failure:
        case Poison(int(index)):
            return f" at '{first_line(steps[index].sql)}'"
        case _:
            return ""
