"""How many calls machines have, by tenant: reported with the heartbeat, and counted by the others."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.ledger.heartbeat import Heartbeat, wall_ms
from app.ledger.local import open_migrated
from app.ledger.machine_calls import STALE_S, Report, calls_in, report, reports_of_others
from app.ledger.replica import look_at
from app.storage.database import Database
from app.storage.primary import Primary, Stored
from tests.ledger.replicas import Beats, WatchedReplica, migrated
from tests.ledger.samples import NOW_MS
from tests.ledger.sqld import Sqld, token
from tests.waiting import until

pytestmark = pytest.mark.anyio

ROWS = "SELECT machine, at_ms, calls FROM machine_calls ORDER BY machine"
IN_TIME_S = 20
A_DAY_MS = 86_400_000


@pytest.fixture
def clock() -> Iterator[int]:
    """Five seconds pass between two looks at it."""
    return iter(range(NOW_MS, NOW_MS + 1_000_000, 5_000))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Database]:
    """A local file with today's schema."""
    database = open_migrated(tmp_path / "ledger.db")
    yield database
    database.close()


def store(file: Database, machine: str, at_ms: int, **calls: int) -> None:
    """Let a machine report."""
    with file.transaction():
        for statement in report(machine, at_ms, calls, forget_ms=A_DAY_MS):
            file.execute(statement.sql, statement.values)


def test_report_replaces_the_one_before_and_others_are_summed(file: Database) -> None:
    store(file, "m1", NOW_MS, acme=9)
    store(file, "m1", NOW_MS + 1, acme=2, berlin=1)
    store(file, "m2", NOW_MS, acme=3)
    store(file, "m3", NOW_MS)
    seen = reports_of_others(file, "me")
    counts = {tenant: calls_in(seen, tenant, NOW_MS + 1) for tenant in ("acme", "berlin", "nobody")}
    assert counts == {"acme": 5, "berlin": 1, "nobody": 0}


def test_own_report_does_not_count(file: Database) -> None:
    store(file, "m1", NOW_MS, acme=2)
    store(file, "m2", NOW_MS, acme=3)
    assert calls_in(reports_of_others(file, "m1"), "acme", NOW_MS) == 3


def test_report_removes_those_of_machines_that_are_long_gone(file: Database) -> None:
    store(file, "gone", NOW_MS - A_DAY_MS - 1, acme=9)
    store(file, "silent", NOW_MS - A_DAY_MS, acme=9)
    store(file, "m1", NOW_MS, acme=1)
    assert file.query("SELECT machine FROM machine_calls ORDER BY machine") == [("m1",), ("silent",)]


def test_machine_that_has_not_reported_lately_counts_for_nothing() -> None:
    reports = [Report(NOW_MS, "acme", 3), Report(NOW_MS + 5_000, "acme", 1)]
    just_fresh_ms = NOW_MS + int(STALE_S * 1000) - 1
    assert [calls_in(reports, "acme", just_fresh_ms + later) for later in (0, 1, 5_001)] == [4, 1, 0]


def test_file_without_the_table_still_shows_the_heartbeat(tmp_path: Path, file: Database) -> None:
    """A primary that is not migrated yet must not make its copy look stale."""
    store(file, "m2", NOW_MS, acme=3)
    with file.transaction():
        file.execute("INSERT INTO heartbeats VALUES ('m1', 'fra', ?)", (NOW_MS,))
    look = look_at(tmp_path / "ledger.db", "m1")
    assert (look.beat_ms, look.others) == (NOW_MS, (Report(NOW_MS, "acme", 3),))
    with file.transaction():
        file.execute("DROP TABLE machine_calls")
    look = look_at(tmp_path / "ledger.db", "m1")
    assert (look.beat_ms, look.others, look.damage) == (NOW_MS, (), None)


async def test_beat_reports_calls_while_there_are_any(sqld: Sqld, tmp_path: Path, clock: Iterator[int]) -> None:
    migrated(sqld, tmp_path)
    calls: dict[str, int] = {}
    async with Primary(sqld.url, token) as primary:
        heartbeat = Heartbeat(primary, "m1", "fra", clock_ms=clock.__next__)
        heartbeat.report_calls(lambda: calls)
        await heartbeat.beat()
        assert sqld.query(ROWS) == []
        calls["acme"] = 2
        await heartbeat.beat()
        assert sqld.query(ROWS) == [("m1", NOW_MS + 5_000, '{"acme":2}')]
        calls.clear()
        await heartbeat.beat()
        await heartbeat.beat()
    # The second beat without calls left the row alone.
    assert sqld.query(ROWS) == [("m1", NOW_MS + 10_000, "{}")]


async def test_beat_reaches_a_primary_without_the_table(sqld: Sqld, tmp_path: Path, clock: Iterator[int]) -> None:
    migrated(sqld, tmp_path)
    sqld.execute("DROP TABLE machine_calls")
    async with Primary(sqld.url, token) as primary:
        heartbeat = Heartbeat(primary, "m1", "fra", clock_ms=clock.__next__)
        heartbeat.report_calls(lambda: {"acme": 2})
        assert await heartbeat.beat() == Stored()
    assert (heartbeat.acked_ms, heartbeat.trouble) == (NOW_MS, None)
    assert sqld.query("SELECT machine, at_ms FROM heartbeats") == [("m1", NOW_MS)]


async def test_another_machines_calls_come_with_the_replica(sqld: Sqld, tmp_path: Path) -> None:
    migrated(sqld, tmp_path)
    replica = WatchedReplica(tmp_path / "replica.db", sqld.url, token, Beats(sqld))
    replica.start()
    try:
        async with asyncio.timeout(IN_TIME_S), Primary(sqld.url, token) as primary:
            heartbeat = Heartbeat(primary, "another", "iad")
            heartbeat.report_calls(lambda: {"acme": 2})
            await heartbeat.beat()
            await until(lambda: replica.calls_elsewhere("acme", wall_ms()) == 2, IN_TIME_S)
            assert replica.calls_elsewhere("berlin", wall_ms()) == 0
    finally:
        await replica.stop()
