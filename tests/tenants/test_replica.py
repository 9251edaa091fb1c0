"""From an import on the primary, through a real replica, to what a call would be told."""

import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from app.call.plan import Plan
from app.storage.primary import Primary
from app.storage.store import PrimaryStore
from app.tenants.store import TenantRow, replace_all, stored
from tests.ledger.replicas import Beats, WatchedReplica, file_rows, migrated
from tests.ledger.sqld import Sqld, token
from tests.tenants.directories import WatchedDirectory
from tests.tenants.samples import BETA, acme, rows

pytestmark = pytest.mark.anyio

ACME, BETA_1 = "+4930123456", "+4930123457"
LIVE_S = 5.0
"""What is promised of a change."""


@pytest.fixture
async def primary(sqld: Sqld, tmp_path: Path) -> AsyncIterator[PrimaryStore]:
    migrated(sqld, tmp_path)
    async with Primary(sqld.url, token) as one:
        yield PrimaryStore(one)


@pytest.fixture
async def replica(primary: PrimaryStore, sqld: Sqld, tmp_path: Path) -> AsyncIterator[WatchedReplica]:
    replica = WatchedReplica(tmp_path / "replica.db", sqld.url, token, Beats(sqld))
    replica.start()
    yield replica
    await replica.stop()


@pytest.fixture
async def directory(replica: WatchedReplica) -> AsyncIterator[WatchedDirectory]:
    """At its own pace, as a server has it."""
    directory = WatchedDirectory(replica.path, damaged=replica.distrust)
    directory.start()
    yield directory
    await directory.stop()


async def import_(primary: PrimaryStore, wanted: Mapping[str, TenantRow]) -> None:
    await replace_all(primary, await stored(primary), wanted, time.time_ns() // 1_000_000)


async def until_greeted(directory: WatchedDirectory, greeting: str) -> float:
    """Wait until who calls acme would hear this; returns how long that took."""
    began = time.monotonic()
    await directory.until(lambda: getattr(directory.plan_for(ACME), "greeting", None) == greeting)
    return time.monotonic() - began


@pytest.mark.long
async def test_import_is_live_within_five_seconds(primary: PrimaryStore, directory: WatchedDirectory) -> None:
    await import_(primary, rows(acme("One.") + BETA))
    await until_greeted(directory, "One.")  # with the replica's first download
    took_s = []
    for greeting in ("Two.", "Three.", "Four."):
        await import_(primary, rows(acme(greeting) + BETA))
        took_s.append(await until_greeted(directory, greeting))
    assert max(took_s) < LIVE_S, took_s
    assert directory.plan_for(BETA_1) is not None


async def test_primary_goes_down_and_tenants_stay(
    primary: PrimaryStore, directory: WatchedDirectory, sqld: Sqld
) -> None:
    await import_(primary, rows(acme("One.")))
    await until_greeted(directory, "One.")
    sqld.stop()
    await directory.look()
    assert directory.plan_for(ACME) is not None
    assert directory.trouble is None


@pytest.mark.long
async def test_look_meets_damage_and_the_file_is_made_anew_while_tenants_stay(
    primary: PrimaryStore, sqld: Sqld, tmp_path: Path
) -> None:
    await import_(primary, rows(acme("One.")))
    first = WatchedReplica(tmp_path / "replica.db", sqld.url, token, Beats(sqld))
    first.start()
    await first.in_step()
    await first.stop()
    with closing(sqlite3.connect(first.path)) as database:  # everything into the file itself, out of its log
        assert database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    replica = WatchedReplica(first.path, sqld.url, token, first.beats)
    directory = WatchedDirectory(replica.path, damaged=replica.distrust)
    replica.start()
    await replica.in_step()
    await directory.look()
    [(page,)] = file_rows(replica.path, "SELECT rootpage FROM sqlite_schema WHERE name = 'tenant_changes'")
    with replica.path.open("r+b") as file:
        file.seek(4096 * (int(page or 0) - 1))
        file.write(b"\xee" * 4096)
    await directory.look()
    assert "malformed" in (directory.trouble or "")
    assert directory.plan_for(ACME) is not None
    await replica.until(lambda: replica.status().restarts == 1)
    await replica.in_step()
    await import_(primary, rows(acme("Two.")))
    await replica.in_step()
    await directory.look()
    assert directory.plan_for(ACME) == Plan(tenant="acme", greeting="Two.")
    assert directory.trouble is None
    await directory.stop()
    await replica.stop()
