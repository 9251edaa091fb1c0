"""The ledgers of a server: which shape each zone's has, and that all of them keep one interface."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from app.config import LedgerSettings, PrimarySettings
from app.ledger.ledger import Ledger, RecordsLostError
from app.ledger.opening import open_ledgers, recorders
from app.storage.database import open_for_writing
from app.storage.errors import StorageError
from app.world.process import free_port
from tests.ledger.samples import one_call, rows, started, turn
from tests.ledger.sqld import token

pytestmark = pytest.mark.anyio

FLUSH_S = 10.0
BAD_URL = "TURSO_URL is malformed."


def nowhere() -> PrimarySettings:
    return PrimarySettings(f"http://127.0.0.1:{free_port()}", token)


def places(
    data_dir: Path,
    primaries: Mapping[str, PrimarySettings] | None = None,
    faults: Mapping[str, str] | None = None,
) -> LedgerSettings:
    return LedgerSettings(
        region="fra", machine="m1", data_dir=data_dir, primaries=primaries or {}, faults=faults or {}
    )


@asynccontextmanager
async def only(settings: LedgerSettings) -> AsyncIterator[Ledger]:
    async with open_ledgers(settings, ["global"]) as ledgers:
        yield ledgers["global"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.ledger.turso.DRAIN_S", 0.05)


SHAPES = ["local", "primary is down", "waits for a mended setting", "waits for a mended file"]


def settings_of(shape: str, data_dir: Path) -> LedgerSettings:
    if shape == "primary is down":
        return places(data_dir, primaries={"global": nowhere()})
    if shape == "waits for a mended setting":
        return places(data_dir, faults={"global": BAD_URL})
    if shape == "waits for a mended file":
        (data_dir / "ledger.db").write_bytes(b"not a database, and long enough to have a header" * 100)
    return places(data_dir)


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_ledger_keeps_records_and_says_where_readers_look(tmp_path: Path, shape: str) -> None:
    local = shape == "local"
    async with only(settings_of(shape, tmp_path)) as ledger:
        for record in one_call():
            ledger.remember(record)
        assert await ledger.flush(FLUSH_S)
        assert await ledger.drain(0.1) == local
        assert ledger.depth == (0 if local else len(one_call()))
        assert ledger.lost == ledger.set_aside == 0
        in_file = shape in {"local", "waits for a mended file"}
        assert ledger.readable == (tmp_path / "ledger.db" if in_file else tmp_path / "global" / "replica.db")
        assert (ledger.copied, ledger.current) == (shape == "primary is down", local)
    if not local:
        assert rows(tmp_path / "global" / "spool.db", "SELECT count(*) FROM spool") == [(len(one_call()),)]


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_ledger_takes_word_of_a_damaged_file(
    tmp_path: Path, shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with only(settings_of(shape, tmp_path)) as ledger:
        caplog.clear()
        for _ in range(2):
            ledger.distrust("a reader found it malformed")
        ledger.remember(started())
        assert await ledger.flush(FLUSH_S)
        if shape != "primary is down":
            assert "malformed" in str(ledger.last_error)
            assert [one.message for one in caplog.records if one.levelno == logging.ERROR] == [
                "ledger_file_damaged"
            ]
    assert ledger.lost == 0


async def test_local_file_that_a_reader_distrusts_is_left_and_filled_again(tmp_path: Path) -> None:
    async with only(places(tmp_path)) as ledger:
        ledger.remember(turn(0))
        assert await ledger.drain(FLUSH_S)
        ledger.distrust("a reader found it malformed")
        ledger.remember(turn(1))
    async with only(places(tmp_path)) as ledger:
        assert (ledger.healthy, ledger.depth) == (True, 0)
    assert rows(tmp_path / "ledger.db", "SELECT seq FROM turns ORDER BY seq") == [(0,), (1,)]


async def test_zone_without_a_primary_beside_others_has_no_ledger(tmp_path: Path) -> None:
    settings = places(tmp_path, primaries={"global": nowhere()}, faults={"eu": BAD_URL, "us": BAD_URL})
    async with open_ledgers(settings, ["global", "eu", "au"]) as ledgers:
        assert sorted(ledgers) == ["eu", "global"]


async def lose_one(data_dir: Path, error: Exception | None = None) -> None:
    async with only(places(data_dir)) as ledger:
        await ledger.close()
        ledger.remember(started())
        if error is not None:
            raise error


async def test_records_that_are_lost_are_counted_by_zone_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(RecordsLostError, match="1 of zone global"):
        await lose_one(tmp_path)


async def test_error_of_the_server_is_not_hidden_by_lost_records(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="its own"):
        await lose_one(tmp_path, StorageError("its own"))


async def test_session_writes_to_the_ledger_of_its_zone_alone(tmp_path: Path) -> None:
    seen: list[object] = []
    async with open_ledgers(places(tmp_path), ["global", "eu"]) as ledgers:
        recorders(ledgers, seen.append)["eu"](started())
        assert await ledgers["eu"].drain(FLUSH_S)
    assert seen == [started()]
    assert rows(tmp_path / "eu" / "ledger.db", "SELECT count(*) FROM legs") == [(1,)]
    with closing(open_for_writing(tmp_path / "ledger.db")) as database:
        assert database.query("SELECT count(*) FROM legs") == [(0,)]
