"""Importing tenants into a file and into a primary: all or nothing, and of two at once one."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import anyio
import orjson
import pytest

from app.call.plan import Plan
from app.ledger.local import open_migrated
from app.storage.database import DatabaseError
from app.storage.errors import StorageError
from app.storage.migrations import known_migrations
from app.storage.primary import Primary
from app.storage.primary_migrations import migrate_primary
from app.storage.statement import Row, Statement
from app.storage.store import FileStore, PrimaryStore, Store
from app.tenants.fields import KINDS, TEXT_MAX_CHARS
from app.tenants.store import (
    Change,
    ImportedMeanwhileError,
    Kind,
    TenantRow,
    TenantRows,
    changes,
    replace_all,
    stored,
)
from tests.ledger.samples import FaultyDatabase, NthStatement
from tests.ledger.sqld import Sqld, token
from tests.tenants.samples import BETA, acme, rows

pytestmark = pytest.mark.anyio

NOW_MS = 1_763_632_800_123


@pytest.fixture
async def primary(sqld: Sqld) -> AsyncIterator[PrimaryStore]:
    async with Primary(sqld.url, token) as one:
        store = PrimaryStore(one, pauses_s=(0.0, 0.0))
        await migrate_primary(store, known_migrations())
        yield store


@pytest.fixture(params=["file", "primary"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Both, so that they cannot differ."""
    if request.param == "file":
        with closing(open_migrated(tmp_path / "ledger.db")) as database:
            yield FileStore(database)
    else:
        with Sqld(tmp_path / "sqld") as sqld:
            async with Primary(sqld.url, token) as one:
                store = PrimaryStore(one, pauses_s=(0.0, 0.0))
                await migrate_primary(store, known_migrations())
                yield store


async def replaced(store: Store, wanted: Mapping[str, TenantRow], now_ms: int = NOW_MS) -> TenantRows:
    """Import, and return what is there then."""
    await replace_all(store, await stored(store), wanted, now_ms)
    return await stored(store)


async def test_nothing_is_stored_at_first(store: Store) -> None:
    assert await stored(store) == TenantRows()


async def test_import_makes_what_is_stored_the_same_as_the_file(store: Store) -> None:
    both = rows(acme('Grüß Gott\\u0000 \\"☎\\".') + BETA)
    assert await replaced(store, both) == TenantRows((1, NOW_MS), both)
    changed = rows(acme("Hallo.", "+4930123458") + BETA.replace(', "+4930123458"', ""))
    assert await replaced(store, changed, NOW_MS + 1) == TenantRows((2, NOW_MS + 1), changed)
    assert await replaced(store, {}) == TenantRows((3, NOW_MS), {})


async def test_same_import_again_changes_nothing(store: Store) -> None:
    first = await replaced(store, rows(acme()))
    assert await replaced(store, rows(acme()), NOW_MS + 1) == first


async def test_only_what_differs_is_written(store: Store) -> None:
    await replaced(store, rows(acme() + BETA))
    await replaced(store, rows(acme("Hallo.") + BETA), NOW_MS + 1)
    asked = Statement("SELECT name, changed_ms FROM tenants ORDER BY name", ())
    assert await store.ask(asked) == [("acme", NOW_MS + 1), ("beta", NOW_MS)]


async def test_second_of_two_imports_at_once_is_refused_and_changes_nothing(store: Store) -> None:
    seen = await stored(store)
    await replace_all(store, seen, rows(acme()), NOW_MS)
    with pytest.raises(ImportedMeanwhileError, match="nothing was changed"):
        await replace_all(store, seen, rows(BETA), NOW_MS + 1)
    assert (await stored(store)).tenants == rows(acme())


async def test_two_imports_of_one_file_at_once_are_both_good(store: Store) -> None:
    seen = await stored(store)
    await replace_all(store, seen, rows(acme()), NOW_MS)
    await replace_all(store, seen, rows(acme()), NOW_MS + 1)
    assert await stored(store) == TenantRows((1, NOW_MS), rows(acme()))


async def test_of_many_imports_at_the_same_instant_exactly_one_is_stored(primary: PrimaryStore) -> None:
    seen = await stored(primary)
    files = [rows(acme(f"Hello {number}.")) for number in range(8)]
    refused = []

    async def one(wanted: Mapping[str, TenantRow]) -> None:
        try:
            await replace_all(primary, seen, wanted, NOW_MS)
        except ImportedMeanwhileError:
            refused.append(wanted)

    async with anyio.create_task_group() as group:
        for wanted in files:
            group.start_soon(one, wanted)
    there = await stored(primary)
    assert there.mark == (1, NOW_MS)
    assert [wanted for wanted in files if wanted not in refused] == [there.tenants]


class LostAnswer:
    """Does what it is told, and says that it did not: the answer was lost, and the same was sent again."""

    def __init__(self, store: Store) -> None:
        self._store_of = store

    async def ask(self, statement: Statement) -> Sequence[Row]:
        return await self._store_of.ask(statement)

    async def change(self, statements: Sequence[Statement]) -> None:
        await self._store_of.change(statements)
        await self._store_of.change(statements)


async def test_import_whose_first_answer_was_lost_is_good(store: Store) -> None:
    assert (await replaced(LostAnswer(store), rows(acme()))).mark == (1, NOW_MS)


@pytest.mark.parametrize("nth", range(1, 8))
async def test_import_that_fails_anywhere_leaves_what_was_there(tmp_path: Path, nth: int) -> None:
    path = tmp_path / "ledger.db"
    with closing(open_migrated(path)) as database:
        before = await replaced(FileStore(database), rows(acme() + BETA))
    with closing(FaultyDatabase(path, NthStatement(nth))) as faulty:
        with pytest.raises(DatabaseError, match="full"):
            await replace_all(FileStore(faulty), before, rows(acme("Hallo.", "+4930999999")), NOW_MS + 1)
        assert await stored(FileStore(faulty)) == before


async def test_primary_that_refuses_the_token_says_so(sqld: Sqld, primary: PrimaryStore) -> None:
    seen = await stored(primary)
    async with Primary(sqld.url, lambda: token("ro")) as readonly:
        store = PrimaryStore(readonly)
        with pytest.raises(StorageError, match=r"(?i)refuses|blocked|unauthorized|fails"):
            await replace_all(store, seen, rows(acme()), NOW_MS)
    assert await stored(primary) == seen


async def test_primary_that_was_not_migrated_is_reported_what_to_do(sqld: Sqld) -> None:
    async with Primary(sqld.url, token) as one:
        with pytest.raises(StorageError, match="Run 'nearcall migrate'"):
            await stored(PrimaryStore(one))


async def test_row_that_refuses_for_another_reason_is_reported_as_it_is(sqld: Sqld, primary: PrimaryStore) -> None:
    sqld.execute("CREATE TRIGGER no BEFORE INSERT ON tenants BEGIN SELECT RAISE(ABORT, 'not today'); END")
    with pytest.raises(StorageError, match="not today"):
        await replace_all(primary, TenantRows(), rows(acme()), NOW_MS)
    assert await stored(primary) == TenantRows()


async def test_more_tenants_than_fit_an_answer_are_one_import(primary: PrimaryStore) -> None:
    content = '{"instructions":"' + "Be kind. " * 2_000 + '"}'
    many = {f"t{number:04}": TenantRow(content, (f"+4930{number:06}",)) for number in range(1_000)}
    assert sum(len(row.content or "") for row in many.values()) > 15_000_000
    assert await replaced(primary, many) == TenantRows((1, NOW_MS), many)
    assert await replaced(primary, {}) == TenantRows((2, NOW_MS), {})


async def test_largest_tenants_that_can_be_are_imported_and_read(primary: PrimaryStore) -> None:
    texts = {name for name in KINDS if isinstance(getattr(Plan(), name), str)}
    content = orjson.dumps(dict.fromkeys(texts, "\0" * TEXT_MAX_CHARS)).decode()
    many = {f"t{number}": TenantRow(content, (f"+49{number:06}",)) for number in range(5)}
    assert (await replaced(primary, many)).tenants == many


class Busy:
    """Somebody imports something whenever numbers are read, so many times."""

    def __init__(self, store: Store, times: int) -> None:
        self._store_of = store
        self._times = times

    async def ask(self, statement: Statement) -> Sequence[Row]:
        if "tenant_numbers" in statement.sql and self._times:
            self._times -= 1
            await replaced(self._store_of, rows(acme(f"{self._times} to come.")))
        return await self._store_of.ask(statement)

    async def change(self, statements: Sequence[Statement]) -> None:
        await self._store_of.change(statements)


async def test_what_is_read_is_of_one_instant(store: Store) -> None:
    await replaced(store, rows(BETA))
    assert await stored(Busy(store, 2)) == TenantRows((3, NOW_MS), rows(acme("0 to come.")))


async def test_who_never_meets_an_instant_without_an_import_gives_up(store: Store) -> None:
    with pytest.raises(StorageError, match="several times while they were read"):
        await stored(Busy(store, 100))


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_pages_of_any_size_are_put_together(
    store: Store, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("app.tenants.store.PIECE_CHARS", 30 * size)
    monkeypatch.setattr("app.tenants.store.PIECE_NUMBERS", size)
    both = rows(acme() + BETA + BETA.replace("beta", "gamma").replace("+49", "+43"))
    assert await replaced(store, both) == TenantRows((1, NOW_MS), both)


# --- The difference -----------------------------------------------------------------------------


def test_difference_names_tenants_and_fields() -> None:
    seen = TenantRows((1, 1), rows(acme() + BETA))
    wanted = rows(acme("Hi.", "+4930999999") + acme("New.").replace("acme", "gamma"))
    assert changes(seen, wanted) == [
        Change(
            "acme",
            Kind.CHANGED,
            {"numbers": (["+4930123456"], ["+4930999999"]), "greeting": ("Hello.", "Hi.")},
        ),
        Change("beta", Kind.REMOVED, {"numbers": (["+4930123457", "+4930123458"], None), "zone": ("eu", None)}),
        Change("gamma", Kind.ADDED, {"numbers": (None, ["+4930123456"]), "greeting": (None, "New.")}),
    ]


def test_same_tenants_do_not_differ() -> None:
    assert changes(TenantRows((1, 1), rows(acme())), rows(acme())) == []


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_what_cannot_be_read_is_replaced(content: str | None) -> None:
    seen = TenantRows((1, 1), {"acme": TenantRow(content, ("+4930123456",))})
    assert changes(seen, rows(acme())) == [
        Change("acme", Kind.CHANGED, {"greeting": (None, "Hello."), "content": ("cannot be read", None)})
    ]
