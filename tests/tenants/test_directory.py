"""What a server knows of its tenants: all that can be used, whatever else is broken, and no stranger's plan."""

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from app.call.plan import Plan
from app.ledger.local import open_migrated
from app.storage.database import Database
from app.storage.store import FileStore
from app.tenants.directory import BEHIND_LOOKS, QUIET_LOOKS, TenantDirectory
from app.tenants.fields import Known
from app.tenants.store import TenantRow, replace_all, stored
from tests.tenants.directories import WatchedDirectory
from tests.tenants.samples import BETA, KNOWN, acme, rows

pytestmark = pytest.mark.anyio

INSTANTS_MS = itertools.count(1_763_632_800_123)
ACME, BETA_1, BETA_2, NOBODY = "+4930123456", "+4930123457", "+4930123458", "+4930000000"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Database]:
    """The local file, held open by a server that records in it."""
    database = open_migrated(tmp_path / "ledger.db")
    yield database
    database.close()


@pytest.fixture
def damage() -> list[str]:
    """What the directory said of a broken file."""
    return []


@pytest.fixture
async def directory(tmp_path: Path, damage: list[str]) -> AsyncIterator[TenantDirectory]:
    directory = TenantDirectory(tmp_path / "ledger.db", KNOWN, damaged=damage.append)
    yield directory
    await directory.stop()


async def put(ledger: Database, text: str, **others: TenantRow) -> None:
    """Import a file's text, and rows that no file of this program could have."""
    store = FileStore(ledger)
    await replace_all(store, await stored(store), {**rows(text), **others}, next(INSTANTS_MS))


def errors(caplog: pytest.LogCaptureFixture, message: str) -> list[tuple[object, object]]:
    return [
        (record.__dict__.get("tenant"), record.__dict__.get("error"))
        for record in caplog.records
        if record.message == message
    ]


async def test_before_there_is_a_file_there_are_no_tenants(directory: TenantDirectory) -> None:
    await directory.look()
    assert (directory.plan_for(ACME), directory.plan_of("acme")) == (None, None)
    assert (directory.known, directory.read, directory.trouble) == (False, False, None)


async def test_file_without_tenants_was_read_and_has_none(directory: TenantDirectory, ledger: Database) -> None:
    await directory.look()
    assert (directory.known, directory.read) == (False, True)


async def test_number_finds_its_tenant_and_no_other(directory: TenantDirectory, ledger: Database) -> None:
    await put(ledger, acme() + BETA)
    await directory.look()
    assert directory.plan_for(ACME) == directory.plan_of("acme") == Plan(tenant="acme", greeting="Hello.")
    assert directory.plan_for(BETA_1) == directory.plan_for(BETA_2) == Plan(tenant="beta", zone="eu")
    assert (directory.plan_for(NOBODY), directory.is_broken(NOBODY)) == (None, False)
    assert (directory.known, directory.broken) == (True, {})


async def test_import_replaces_what_was_known(directory: TenantDirectory, ledger: Database) -> None:
    await put(ledger, acme() + BETA)
    await directory.look()
    beta = directory.plan_of("beta")
    await put(ledger, acme("Hallo.", NOBODY) + BETA)
    await directory.look()
    assert directory.plan_for(NOBODY) == Plan(tenant="acme", greeting="Hallo.")
    assert directory.plan_for(ACME) is None
    assert directory.plan_of("beta") is beta
    await put(ledger, "")
    await directory.look()
    assert (directory.plan_for(NOBODY), directory.known) == (None, False)


async def test_look_without_an_import_reads_nothing_again(
    directory: TenantDirectory, ledger: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await put(ledger, acme())
    await directory.look()
    # Nobody does this; it shows that the rows are not looked at.
    ledger.execute("DELETE FROM tenants")
    await directory.look()
    assert directory.plan_for(ACME) is not None


BROKEN = [
    TenantRow("{", (NOBODY,)),
    TenantRow('{"mood":"good"}', (NOBODY,)),
    TenantRow('{"zone":"mars"}', (NOBODY,)),
    TenantRow('{"backends":["hal"]}', (NOBODY,)),
    TenantRow('{"max_call_s":1}', (NOBODY,)),
    TenantRow("[" * 100_000, (NOBODY,)),
]


@pytest.mark.parametrize("row", BROKEN, ids=lambda row: row.content[:20])
async def test_broken_tenant_breaks_no_other_and_its_callers_are_no_strangers(
    directory: TenantDirectory, ledger: Database, caplog: pytest.LogCaptureFixture, row: TenantRow
) -> None:
    await put(ledger, acme() + BETA, bad=row)
    await directory.look()
    assert directory.plan_for(ACME) is not None
    assert directory.plan_for(BETA_2) is not None
    assert (directory.plan_for(NOBODY), directory.plan_of("bad")) == (None, None)
    assert directory.is_broken(NOBODY)
    assert not directory.is_broken(ACME)
    [(tenant, why)] = errors(caplog, "tenant_unusable")
    assert (tenant, {"bad": why}) == ("bad", directory.broken)


async def test_text_that_is_not_utf8_breaks_no_other(directory: TenantDirectory, ledger: Database) -> None:
    await put(ledger, acme() + BETA)
    ledger.execute("UPDATE tenants SET content = CAST(x'7bff7d' AS TEXT) WHERE name = 'beta'")
    await directory.look()
    assert directory.plan_for(ACME) is not None
    assert directory.is_broken(BETA_1)


async def test_numbers_of_a_tenant_without_a_row_are_broken(directory: TenantDirectory, ledger: Database) -> None:
    await put(ledger, acme())
    ledger.execute("INSERT INTO tenant_numbers VALUES (?, 'ghost')", (NOBODY,))
    await directory.look()
    assert directory.is_broken(NOBODY)
    assert directory.plan_for(ACME) is not None


async def test_only_broken_tenants_are_tenants_all_the_same(directory: TenantDirectory, ledger: Database) -> None:
    await put(ledger, "", bad=BROKEN[0])
    await directory.look()
    assert directory.known


async def test_broken_tenant_is_told_once_and_again_when_it_breaks_otherwise(
    directory: TenantDirectory, ledger: Database, caplog: pytest.LogCaptureFixture
) -> None:
    for text, row in [(acme(), BROKEN[1]), (acme("Hi."), BROKEN[1]), (acme("Hi."), BROKEN[2])]:
        await put(ledger, text, bad=row)
        await directory.look()
        await directory.look()
    assert len(errors(caplog, "tenant_unusable")) == 2


async def test_mended_tenant_is_answered_again(directory: TenantDirectory, ledger: Database) -> None:
    await put(ledger, acme(), beta=TenantRow("{", (BETA_1, BETA_2)))
    await directory.look()
    await put(ledger, acme() + BETA)
    await directory.look()
    assert directory.plan_for(BETA_1) == Plan(tenant="beta", zone="eu")
    assert (directory.is_broken(BETA_1), directory.broken) == (False, {})


# --- The file -----------------------------------------------------------------------------------


async def test_file_that_goes_away_leaves_what_was_known(
    directory: TenantDirectory, ledger: Database, tmp_path: Path
) -> None:
    await put(ledger, acme())
    await directory.look()
    ledger.close()
    (tmp_path / "ledger.db").rename(tmp_path / "elsewhere.db")
    await directory.look()
    assert directory.plan_for(ACME) is not None


async def test_file_without_our_tables_leaves_what_was_known_and_is_told_once(
    directory: TenantDirectory, ledger: Database, caplog: pytest.LogCaptureFixture, damage: list[str]
) -> None:
    await put(ledger, acme())
    await directory.look()
    ledger.execute("ALTER TABLE tenant_changes RENAME TO gone")
    for _ in range(QUIET_LOOKS - 1):
        await directory.look()
    assert "no such table" in (directory.trouble or "")
    assert errors(caplog, "tenants_unreadable") == []
    for _ in range(QUIET_LOOKS):
        await directory.look()
    assert directory.plan_for(ACME) is not None
    assert len(errors(caplog, "tenants_unreadable")) == 1
    assert damage == []
    ledger.execute("ALTER TABLE gone RENAME TO tenant_changes")
    with caplog.at_level(logging.INFO):
        await directory.look()
    assert directory.trouble is None
    assert "tenants_readable_again" in caplog.text


async def test_damaged_file_is_reported_and_leaves_what_was_known(
    directory: TenantDirectory, ledger: Database, tmp_path: Path, damage: list[str]
) -> None:
    await put(ledger, acme())
    await directory.look()
    ledger.close()
    (tmp_path / "ledger.db").write_bytes(b"no database" * 1_000)
    await directory.look()
    assert directory.plan_for(ACME) is not None
    assert [("not a database" in words) for words in damage] == [True]


@pytest.fixture
def past(ledger: Database, tmp_path: Path) -> Callable[[], None]:
    """Makes the file one that has the first import and not the second."""

    def restore() -> None:
        ledger.execute("DELETE FROM tenant_changes WHERE change = 2")
        ledger.execute("UPDATE tenants SET name = 'beta'")
        ledger.execute("DELETE FROM tenant_numbers")

    return restore


async def test_replica_that_is_made_anew_shows_the_past_without_an_effect(
    directory: TenantDirectory, ledger: Database, past: Callable[[], None]
) -> None:
    await put(ledger, BETA)
    await put(ledger, acme())
    await directory.look()
    past()
    for _ in range(BEHIND_LOOKS):
        await directory.look()
    assert directory.plan_for(ACME) is not None
    await put(ledger, acme("Again."))
    await directory.look()
    assert directory.plan_for(ACME) == Plan(tenant="acme", greeting="Again.")


async def test_database_that_stays_in_the_past_was_restored_and_is_right(
    directory: TenantDirectory, ledger: Database, past: Callable[[], None]
) -> None:
    await put(ledger, BETA)
    await put(ledger, acme())
    await directory.look()
    past()
    for _ in range(BEHIND_LOOKS + 1):
        await directory.look()
    assert directory.plan_for(ACME) is None


# --- By itself ----------------------------------------------------------------------------------


async def test_looks_by_itself_from_start_to_stop(tmp_path: Path) -> None:
    directory = WatchedDirectory(tmp_path / "ledger.db", look_s=0.001)
    directory.start()
    ledger = open_migrated(tmp_path / "ledger.db")
    await put(ledger, acme())
    await directory.until(lambda: directory.plan_for(ACME) is not None)
    await directory.stop()
    ledger.close()


class Zones(frozenset[str]):
    """Names of zones whose look-up does something else first, in the thread that reads the tenants."""

    meet: Callable[[], None]

    def __contains__(self, name: object) -> bool:
        self.meet()
        return super().__contains__(name)


def meeting(path: Path, meet: Callable[[], None]) -> TenantDirectory:
    """A directory that calls `meet` whenever it reads a tenant's zone."""
    zones = Zones(KNOWN.zones)
    zones.meet = meet
    return TenantDirectory(path, Known(zones, KNOWN.backends), damaged=lambda _why: None, look_s=0.001)


async def test_bug_of_ours_does_not_end_the_looking(ledger: Database, tmp_path: Path) -> None:
    await put(ledger, BETA)
    loop, twice = asyncio.get_running_loop(), asyncio.Event()
    bugs = itertools.count(1)

    def bug() -> None:
        if next(bugs) == 2:
            loop.call_soon_threadsafe(twice.set)
        raise ZeroDivisionError

    directory = meeting(tmp_path / "ledger.db", bug)
    directory.start()
    async with asyncio.timeout(10):
        await twice.wait()
    await directory.stop()


async def test_stop_does_not_wait_for_a_disk_that_hangs(ledger: Database, tmp_path: Path) -> None:
    await put(ledger, BETA)
    loop, reached, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def hang() -> None:
        loop.call_soon_threadsafe(reached.set)
        release.wait()

    directory = meeting(tmp_path / "ledger.db", hang)
    directory.start()
    async with asyncio.timeout(10):
        await reached.wait()
        await directory.stop()
    release.set()


# --- Tenants that vanish ----------------------------------------------------------------------------


async def test_tenants_that_vanish_without_an_import_stay_in_use_and_alarm(
    directory: TenantDirectory, ledger: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await put(ledger, acme() + BETA)
    await directory.look()
    ledger.execute("DELETE FROM tenants")
    ledger.execute("DELETE FROM tenant_numbers")
    for _ in range(3):
        await directory.look()
    assert directory.plan_for(ACME) is not None
    assert "there were tenants" in str(directory.trouble)
    assert len(errors(caplog, "tenants_vanished")) == 1


async def test_database_that_lost_everything_changes_no_tenant(
    directory: TenantDirectory, ledger: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await put(ledger, acme() + BETA)
    await directory.look()
    for table in ("tenants", "tenant_numbers", "tenant_changes"):
        ledger.execute(f"DELETE FROM {table}")
    for _ in range(2 * BEHIND_LOOKS):
        await directory.look()
    assert directory.plan_for(ACME) is not None
    assert len(errors(caplog, "tenants_vanished")) == 1
    await put(ledger, acme())
    for _ in range(2):
        await directory.look()
    assert (directory.plan_for(BETA_1), directory.trouble) == (None, None)


async def test_import_that_removes_everybody_is_no_alarm(
    directory: TenantDirectory, ledger: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await put(ledger, acme())
    await directory.look()
    await put(ledger, "")
    await directory.look()
    assert (directory.known, directory.trouble) == (False, None)
    assert errors(caplog, "tenants_vanished") == []
