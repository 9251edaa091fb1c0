"""Migrations of a real primary: all or nothing, once, in order, by six at once, and when answers are lost."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence

import pytest

from app.storage.migrations import (
    Migration,
    MigrationError,
    SchemaChangedError,
    SchemaTooNewError,
    SchemaTooOldError,
    in_order,
    known_migrations,
)
from app.storage.primary import Alarm, Outcome, Primary, PrimaryError, Retry
from app.storage.primary_migrations import check_primary, migrate_primary
from app.storage.statement import Statement
from app.storage.store import PrimaryStore
from app.world.process import free_port
from tests.ledger.sqld import Sqld, token

pytestmark = pytest.mark.anyio

FIRST = ("0001_words.sql", "CREATE TABLE words (word TEXT);; CREATE INDEX by_word ON words (word);")
SECOND = (
    "0002_more.sql",
    "-- why; not\nALTER TABLE words ADD COLUMN lang TEXT; INSERT INTO words VALUES ('moin;', 'de');",
)
BOTH = in_order([FIRST, SECOND])
AT_ONCE = (0.0, 0.0)


@pytest.fixture
async def primary(sqld: Sqld) -> AsyncIterator[Primary]:
    async with Primary(sqld.url, token) as primary:
        yield primary


@pytest.fixture
def store(primary: Primary) -> PrimaryStore:
    return PrimaryStore(primary, AT_ONCE)


class Forgetful(Primary):
    """Its answers to batches are lost on the way, so many times."""

    losses = 0

    async def batch(self, steps: Sequence[Statement]) -> Outcome:
        outcome = await super().batch(steps)
        if self.losses:
            self.losses -= 1
            return Retry("no answer")
        return outcome


def tables(sqld: Sqld) -> list[str]:
    return [name for (name,) in sqld.query("SELECT name FROM sqlite_schema ORDER BY name")]


async def test_empty_primary_gets_every_migration_in_order(sqld: Sqld, store: PrimaryStore) -> None:
    assert await migrate_primary(store, BOTH) == BOTH
    assert sqld.query("SELECT version, name FROM schema_migrations ORDER BY version") == [
        (1, "0001_words.sql"),
        (2, "0002_more.sql"),
    ]
    assert sqld.query("SELECT word, lang FROM words") == [("moin;", "de")]


async def test_second_run_changes_nothing(sqld: Sqld, store: PrimaryStore) -> None:
    await migrate_primary(store, BOTH)
    markers = sqld.query("SELECT * FROM schema_migrations")
    assert await migrate_primary(store, BOTH) == ()
    assert sqld.query("SELECT * FROM schema_migrations") == markers
    assert sqld.query("SELECT count(*) FROM words") == [(1,)]


async def test_older_primary_gets_only_what_it_lacks(store: PrimaryStore) -> None:
    await migrate_primary(store, BOTH[:1])
    assert await migrate_primary(store, BOTH) == BOTH[1:]


async def test_packed_migrations_make_the_tables_that_the_program_expects(
    sqld: Sqld, primary: Primary, store: PrimaryStore
) -> None:
    await migrate_primary(store, known_migrations())
    await check_primary(primary, known_migrations())
    assert {"legs", "turns", "events", "endings", "refused", "heartbeats", "erased"} <= set(tables(sqld))


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("CREATE TABLE a (b);\n-- why\nCREATE TABEL c (d);", r"0002_bad\.sql failed: .*TABEL"),
        (
            "CREATE TABLE a (b UNIQUE);\nINSERT INTO a VALUES (1), (1);",
            r"0002_bad\.sql failed at 'INSERT INTO a VALUES \(1\), \(1\);': .*UNIQUE",
        ),
        ("CREATE TABLE a (b);\nINSERT INTO nowhere VALUES (1);", r"0002_bad\.sql failed: .*no such table"),
    ],
    ids=["syntax", "constraint", "no such table"],
)
async def test_failing_migration_is_named_and_leaves_no_trace(
    sqld: Sqld, store: PrimaryStore, sql: str, why: str
) -> None:
    with pytest.raises(MigrationError) as raised:
        await migrate_primary(store, in_order([FIRST, ("0002_bad.sql", sql)]))
    assert re.search(why, str(raised.value))
    assert tables(sqld) == ["by_word", "schema_migrations", "words"]
    assert sqld.query("SELECT version FROM schema_migrations") == [(1,)]
    assert await migrate_primary(store, BOTH) == BOTH[1:]


async def test_six_machines_at_once_migrate_once(sqld: Sqld) -> None:
    async def one() -> tuple[Migration, ...]:
        async with Primary(sqld.url, token) as primary:
            return await migrate_primary(PrimaryStore(primary, AT_ONCE), BOTH)

    done = await asyncio.gather(*(one() for _ in range(6)))
    assert sorted(migration.version for each in done for migration in each) == [1, 2]
    assert sqld.query("SELECT word FROM words") == [("moin;",)]


async def test_machine_that_was_overtaken_leaves_it_at_that(sqld: Sqld, store: PrimaryStore) -> None:
    """Another one comes between our look and our transaction."""

    class Overtaken(PrimaryStore):
        async def change(self, statements: Sequence[Statement]) -> None:
            await migrate_primary(store, BOTH)
            await super().change(statements)

    async with Primary(sqld.url, token) as slower:
        assert await migrate_primary(Overtaken(slower, AT_ONCE), BOTH) == ()
    assert sqld.query("SELECT word FROM words") == [("moin;",)]


async def test_answer_that_is_lost_does_no_harm(sqld: Sqld) -> None:
    async with Forgetful(sqld.url, token) as primary:
        primary.losses = 1
        await migrate_primary(PrimaryStore(primary, AT_ONCE), BOTH)
    assert sqld.query("SELECT version FROM schema_migrations ORDER BY version") == [(1,), (2,)]
    assert sqld.query("SELECT word FROM words") == [("moin;",)]


async def test_migrating_a_newer_primary_is_refused_naming_both_sides(store: PrimaryStore) -> None:
    await migrate_primary(store, BOTH)
    why = r"has 0002_more\.sql, .* only up to 0001_words\.sql"
    with pytest.raises(SchemaTooNewError, match=why):
        await migrate_primary(store, BOTH[:1])


async def test_program_finds_what_it_knows_on_a_newer_primary(primary: Primary, store: PrimaryStore) -> None:
    await migrate_primary(store, BOTH)
    await check_primary(primary, BOTH[:1])
    changed = in_order([(FIRST[0], FIRST[1] + " -- harmless?")])
    with pytest.raises(SchemaChangedError):
        await check_primary(primary, changed)


async def test_changed_file_is_reported(store: PrimaryStore) -> None:
    await migrate_primary(store, BOTH)
    with pytest.raises(SchemaChangedError, match=r"0001_words\.sql is not what was applied"):
        await migrate_primary(store, in_order([(FIRST[0], FIRST[1] + " -- harmless?"), SECOND]))


async def test_primary_without_our_tables_is_told_from_a_good_one(primary: Primary, store: PrimaryStore) -> None:
    with pytest.raises(SchemaTooOldError, match=r"lacks 0001_words\.sql: run 'nearcall migrate'"):
        await check_primary(primary, BOTH)
    await migrate_primary(store, BOTH[:1])
    with pytest.raises(SchemaTooOldError, match=r"lacks 0002_more\.sql"):
        await check_primary(primary, BOTH)


async def test_token_that_may_only_read_is_told(sqld: Sqld) -> None:
    async with Primary(sqld.url, lambda: token("ro")) as primary:
        with pytest.raises(MigrationError, match="refuses the token"):
            await migrate_primary(PrimaryStore(primary, AT_ONCE), BOTH)
    assert tables(sqld) == []


async def test_primary_that_is_not_there_is_told_after_some_attempts() -> None:
    async with Primary(f"http://127.0.0.1:{free_port()}", token) as primary:
        with pytest.raises(PrimaryError) as raised:
            await migrate_primary(PrimaryStore(primary, AT_ONCE), BOTH)
    assert isinstance(raised.value.failure, Retry)


class Refusing(Primary):
    """Answers every batch and question in the same way, and counts them."""

    asked = 0
    answer: Retry | Alarm = Retry("busy")

    async def batch(self, steps: Sequence[Statement]) -> Outcome:
        self.asked += 1
        return self.answer

    async def query(self, statement: Statement) -> list[tuple[int | str | None, ...]]:
        self.asked += 1
        raise PrimaryError(self.answer)


@pytest.mark.parametrize(("answer", "asked"), [(Retry("busy"), 3), (Alarm("401"), 1)])
@pytest.mark.parametrize("act", ["ask", "change"])
async def test_what_may_pass_is_tried_again_and_what_will_not_is_not(
    answer: Retry | Alarm, asked: int, act: str
) -> None:
    async with Refusing("http://127.0.0.1:1", token) as primary:
        primary.answer = answer
        store = PrimaryStore(primary, AT_ONCE)
        with pytest.raises(PrimaryError):
            await (store.ask(Statement("SELECT 1", ())) if act == "ask" else store.change([]))
        assert primary.asked == asked
