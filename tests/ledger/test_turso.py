"""A zone's whole ledger: it starts whatever the primary does, and no record of a zone touches another's."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.ledger.shipper import Pace
from app.ledger.turso import TursoLedger
from app.ledger.zones import Zone
from app.storage.errors import StorageError
from app.storage.migrations import known_migrations
from app.storage.primary import Primary
from app.storage.primary_migrations import migrate_primary
from app.storage.store import PrimaryStore
from app.world.process import free_port
from tests.ledger.samples import one_call, rows, started
from tests.ledger.sqld import Sqld, expired_token, token
from tests.ledger.wire import Mode, Wire
from tests.waiting import until

pytestmark = pytest.mark.anyio

DRAIN_S = 10.0
SOON = Pace(0.01, 0.02, 0.02)


@asynccontextmanager
async def ledger_of(zone: Zone) -> AsyncIterator[TursoLedger]:
    ledger = await TursoLedger.open(zone, machine="m1", region="fra", pace=SOON)
    try:
        yield ledger
    finally:
        await ledger.close()


async def migrate(sqld: Sqld) -> None:
    async with Primary(sqld.url, token) as primary:
        await migrate_primary(PrimaryStore(primary), known_migrations())


@pytest.fixture
def other_sqld(tmp_path: Path) -> Iterator[Sqld]:
    with Sqld(tmp_path / "other-sqld") as server:
        yield server


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


async def test_call_is_on_the_primary_and_the_ledger_is_well(data_dir: Path, sqld: Sqld) -> None:
    await migrate(sqld)
    async with ledger_of(Zone("global", data_dir, sqld.url, token)) as ledger:
        for record in one_call():
            ledger.remember(record)
        assert await ledger.drain(DRAIN_S)
    assert sqld.query("SELECT count(*) FROM turns") == [(2,)]
    assert (ledger.healthy, ledger.last_error, ledger.depth, ledger.lost) == (True, None, 0, 0)


@pytest.mark.parametrize("mode", [Mode.HANG, Mode.REFUSE, Mode.RESET])
async def test_start_and_end_do_not_wait_for_a_primary_that_is_down(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    monkeypatch.setattr("app.ledger.turso.DRAIN_S", 0.05)
    with Wire(free_port()) as wire:
        wire.become(mode)
        zone = Zone("global", data_dir, wire.url, token)
        async with ledger_of(zone) as ledger:
            ledger.remember(started())
            assert await ledger.flush(DRAIN_S)
            assert ledger.depth == 1
    assert rows(zone.spool, "SELECT call_sid FROM spool") == [("CA1",)]


async def test_bad_token_shows_as_an_alarm_and_records_stay(data_dir: Path, sqld: Sqld) -> None:
    bearer = expired_token()
    async with ledger_of(Zone("global", data_dir, sqld.url, lambda: bearer)) as ledger:
        ledger.remember(started())
        assert not await ledger.drain(0.2)
        assert "refuses the token" in str(ledger.last_error)
        assert (ledger.healthy, ledger.depth) == (False, 1)
        await migrate(sqld)
        bearer = token()
        assert await ledger.drain(DRAIN_S)


async def test_record_of_the_eu_is_in_no_file_and_on_no_primary_of_another_zone(
    data_dir: Path, tmp_path: Path, sqld: Sqld, other_sqld: Sqld
) -> None:
    await migrate(sqld)
    await migrate(other_sqld)
    eu = Zone("eu", data_dir, other_sqld.url, token)
    everywhere = Zone("global", data_dir, sqld.url, token)
    async with ledger_of(eu) as eu_ledger, ledger_of(everywhere) as ledger:
        eu_ledger.remember(started("CAofTheEU"))
        ledger.remember(started("CAofAnywhere"))
        assert await eu_ledger.drain(DRAIN_S)
        assert await ledger.drain(DRAIN_S)
    assert holders(tmp_path / "sqld", b"CAofTheEU") == set()
    assert holders(tmp_path / "other-sqld", b"CAofTheEU") != set()
    assert holders(data_dir, b"CAofTheEU") <= {"eu"}
    assert holders(data_dir, b"CAofAnywhere") <= {"global"}
    assert sqld.query("SELECT call_sid FROM legs") == [("CAofAnywhere",)]
    assert other_sqld.query("SELECT call_sid FROM legs") == [("CAofTheEU",)]


def holders(root: Path, words: bytes) -> set[str]:
    """The directories right below that have a file with these bytes."""
    files = (file for file in root.rglob("*") if file.is_file())
    return {file.relative_to(root).parts[0] for file in files if words in file.read_bytes()}


async def test_data_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        await TursoLedger.open(
            Zone("global", tmp_path / "gone", "http://127.0.0.1:1", token), machine="m1", region="fra"
        )


async def test_zone_without_a_primary_is_refused(data_dir: Path) -> None:
    with pytest.raises(ValueError, match="no primary"):
        await TursoLedger.open(Zone("global", data_dir, None, token), machine="m1", region="fra")


@pytest.mark.parametrize("name", ["", "../eu", "EU", "e/u", "."])
def test_name_that_is_no_plain_word_is_no_zone(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="lower-case word"):
        Zone(name, tmp_path, None, token)


def test_files_of_two_zones_have_nothing_in_common(tmp_path: Path) -> None:
    eu, everywhere = Zone("eu", tmp_path, None, token), Zone("global", tmp_path, None, token)
    assert {eu.spool, eu.replica, eu.local}.isdisjoint({everywhere.spool, everywhere.replica, everywhere.local})


async def test_new_token_is_tried_at_once_and_health_follows_without_a_record(data_dir: Path, sqld: Sqld) -> None:
    await migrate(sqld)
    bearer = expired_token()
    zone = Zone("global", data_dir, sqld.url, lambda: bearer)
    ledger = await TursoLedger.open(zone, machine="m1", region="fra")
    ledger.remember(started())
    await until(lambda: "token" in str(ledger.last_error) and "token" in str(ledger.heartbeat_error), DRAIN_S)
    bearer = token()
    await until(lambda: ledger.healthy and not ledger.depth, DRAIN_S)
    await ledger.close()
    assert sqld.query("SELECT call_sid FROM legs") == [("CA1",)]
