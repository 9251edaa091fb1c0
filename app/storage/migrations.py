"""Brings a database to the schema this program knows: numbered SQL files, each applied once.

A file and the row that says it was applied share one transaction, so a failure leaves no trace and two
processes that start together do not get in each other's way. Applied files are facts: to change the schema,
add a file, and only add to the schema (old and new programs run together during a deploy).
"""

import hashlib
import re
import sqlite3  # its tokenizer only (complete_statement)
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from app.storage.database import Database, DatabaseError
from app.storage.errors import StorageError
from app.storage.statement import Row, Statement


class MigrationError(StorageError):
    """A migration is unusable or failed. The database is as it was before."""


class SchemaTooNewError(StorageError):
    """The database was made by a newer program."""


class SchemaTooOldError(StorageError):
    """The database has not been migrated."""


class SchemaChangedError(StorageError):
    """A migration file is not the one that was applied."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `0001_calls.sql` is version 1."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text; line ends do not count, a checkout on another system may differ in them."""
        return hashlib.sha256("\n".join(self.sql.splitlines()).encode()).hexdigest()


def known_migrations() -> tuple[Migration, ...]:
    """The migrations packed with this program, in order. Raises MigrationError for a misnamed file."""
    files = sorted(
        (entry.name, entry.read_text("utf-8"))
        for entry in resources.files("migrations").iterdir()
        if entry.name.endswith(".sql")
    )
    return in_order(files)


def in_order(files: list[tuple[str, str]]) -> tuple[Migration, ...]:
    """Turn (file name, text) into migrations 1, 2, 3 ... Raises MigrationError for a gap or a double."""
    migrations: list[Migration] = []
    for version, (name, sql) in enumerate(sorted(files), start=1):
        if re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", name) is None or int(name[:4]) != version:
            raise MigrationError(f"migration {name} should be called {version:04d}_<what_it_adds>.sql")
        migrations.append(Migration(version, name, sql))
    return tuple(migrations)


def migrate(database: Database, migrations: tuple[Migration, ...]) -> tuple[Migration, ...]:
    """Apply what is missing and return it.

    Raises SchemaTooNewError, SchemaChangedError, MigrationError when a statement fails, and DatabaseError when
    the file stays locked.
    """
    applied: list[Migration] = []
    for migration in missing(database, migrations):
        statements = tuple(statements_of(migration))
        with database.transaction():
            # Another process may have been faster; under the write lock the answer is final.
            if migration in missing(database, migrations):
                _apply(database, migration, statements)
                applied.append(migration)
    return tuple(applied)


def require_migrated(database: Database, migrations: tuple[Migration, ...]) -> None:
    """For those who read or add rows. A newer schema is none of their business, because a schema only grows.

    Raises SchemaTooOldError, SchemaChangedError.
    """
    refuse_older(lacking(known_to(markers(database), migrations), migrations))


def refuse_older(absent: tuple[Migration, ...]) -> None:
    """Raises SchemaTooOldError when something is missing."""
    if absent:
        raise SchemaTooOldError(f"the ledger lacks {absent[0].name}: run 'nearcall migrate'")


MARKERS_THERE = "SELECT 1 FROM sqlite_schema WHERE name = 'schema_migrations'"
MARKERS = "SELECT version, name, checksum FROM schema_migrations ORDER BY version DESC"
MARKER_TABLE = (
    "CREATE TABLE IF NOT EXISTS schema_migrations"
    " (version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied_ms INTEGER NOT NULL)"
)


def markers(database: Database) -> list[Row]:
    """What was applied: version, name, checksum; newest first."""
    return database.query(MARKERS) if database.query(MARKERS_THERE) else []


def missing(database: Database, migrations: tuple[Migration, ...]) -> tuple[Migration, ...]:
    """What was not applied yet. Raises as `lacking`."""
    return lacking(markers(database), migrations)


def lacking(applied: Sequence[Row], migrations: tuple[Migration, ...]) -> tuple[Migration, ...]:
    """The migrations that are not among those applied (rows of MARKERS).

    Raises SchemaTooNewError or SchemaChangedError when the database is not one of this program's.
    """
    known = {migration.version: migration for migration in migrations}
    for version, name, checksum in applied:
        migration = known.get(int(version or 0))
        if migration is None:
            newest = migrations[-1].name if migrations else "nothing"
            raise SchemaTooNewError(
                f"the ledger has {name}, this program knows only up to {newest}: run a newer program"
            )
        if migration.checksum != checksum:
            raise SchemaChangedError(
                f"{migration.name} is not what was applied to this ledger: put it back and add a new file"
            )
    done = {version for version, _, _ in applied}
    return tuple(migration for migration in migrations if migration.version not in done)


def known_to(applied: Sequence[Row], migrations: tuple[Migration, ...]) -> list[Row]:
    """Those rows of MARKERS that are about these migrations."""
    known = {migration.version for migration in migrations}
    return [marker for marker in applied if marker[0] in known]


def _apply(database: Database, migration: Migration, statements: tuple[str, ...]) -> None:
    database.execute(MARKER_TABLE)
    for statement in statements:
        try:
            database.execute(statement)
        except DatabaseError as error:
            raise MigrationError(f"{migration.name} failed at '{first_line(statement)}': {error}") from error
    marker = marker_of(migration)
    database.execute(marker.sql, marker.values)


def marker_of(migration: Migration) -> Statement:
    """The row that says it was applied; a second one is refused by the primary key."""
    return Statement(
        "INSERT INTO schema_migrations (version, name, checksum, applied_ms) VALUES (?, ?, ?, ?)",
        (migration.version, migration.name, migration.checksum, time.time_ns() // 1_000_000),
    )


def first_line(statement: str) -> str:
    """Where a statement begins, for an error's text."""
    return _LEADING_COMMENTS.sub("", statement).partition("\n")[0]


_LEADING_COMMENTS = re.compile(r"\A(?:\s+|--[^\n]*|/\*.*?\*/)+", re.DOTALL)
_OWN_TRANSACTION = re.compile(r"(?i)(BEGIN|COMMIT|END|ROLLBACK|SAVEPOINT|RELEASE)\b")


def statements_of(migration: Migration) -> Iterator[str]:
    """Split a file into statements: executescript would commit the transaction that they belong in.

    SQLite's own tokenizer says where a statement ends; a semicolon in a string, a comment or a trigger is none.
    """
    statement = ""
    for piece in re.split(r"(?<=;)", migration.sql):
        statement += piece
        if sqlite3.complete_statement(statement):
            bare = _LEADING_COMMENTS.sub("", statement)
            if _OWN_TRANSACTION.match(bare):
                raise MigrationError(f"{migration.name} handles transactions itself: leave that to the program")
            if bare.strip("; \n"):
                yield statement
            statement = ""
    if _LEADING_COMMENTS.sub("", statement):
        raise MigrationError(f"{migration.name} ends in the middle of a statement: is a semicolon missing?")
