"""From the spool to a real primary: after every fault of link, token and disk, each record is there once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.call.records import Record
from app.ledger.resend import resend_aside, resend_refused
from app.ledger.shipper import BATCH_MAX, Pace, Shipper
from app.ledger.spool import Spool, open_spool
from app.storage.migrations import known_migrations
from app.storage.primary import Outcome, Poison, Primary, Retry
from app.storage.primary_migrations import check_primary, migrate_primary
from app.storage.statement import Statement
from app.storage.store import PrimaryStore
from tests.ledger.samples import Disk, call_event, one_call, rows, started, turn
from tests.ledger.sqld import Sqld, expired_token, token
from tests.ledger.wire import Mode, Wire
from tests.waiting import a_moment, until

pytestmark = pytest.mark.anyio

DRAIN_S = 10.0
SOON = Pace(retry_first_s=0.01, retry_max_s=0.02, alarm_s=0.02, suspect_s=0.02)
COUNTS = (
    "SELECT (SELECT count(*) FROM legs), (SELECT count(*) FROM turns),"
    " (SELECT count(*) FROM events), (SELECT count(*) FROM endings)"
)


async def migrate(sqld: Sqld) -> None:
    async with Primary(sqld.url, token) as primary:
        await migrate_primary(PrimaryStore(primary), known_migrations())


@pytest.fixture
async def migrated(sqld: Sqld) -> Sqld:
    await migrate(sqld)
    return sqld


@pytest.fixture
def wire(migrated: Sqld) -> Iterator[Wire]:
    with Wire(migrated.port) as wire:
        yield wire


class Rig:
    """A spool, a primary and what goes between them."""

    def __init__(self, spool: Spool, shipper: Shipper, primary: Primary) -> None:
        self.spool = spool
        self.shipper = shipper
        self.primary = primary

    def put(self, records: list[Record]) -> None:
        for record in records:
            self.spool.put(record)

    async def delivered(self, records: list[Record]) -> bool:
        self.put(records)
        return await self.spool.flush(DRAIN_S) and await self.shipper.drain(DRAIN_S)


@asynccontextmanager
async def rig(
    path: Path, url: str, *, bearer: Any = token, timeout_s: float = 0.3, pace: Pace = SOON
) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        spool = await Spool.open(path)
        stack.push_async_callback(spool.close)
        primary = await stack.enter_async_context(Primary(url, bearer, timeout_s=timeout_s))
        shipper = Shipper("global", spool, primary, lambda one: check_primary(one, known_migrations()), pace)
        stack.push_async_callback(shipper.stop)
        shipper.start()
        yield Rig(spool, shipper, primary)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


async def noticed(caplog: pytest.LogCaptureFixture, text: str) -> str:
    """Wait until the shipper has logged that something failed, and return why."""
    async with asyncio.timeout(DRAIN_S):
        while True:
            for record in caplog.records:
                if record.message == "primary_failed" and text in record.__dict__["error"]:
                    return str(record.__dict__["error"])
            await a_moment()


async def test_call_arrives_whole(path: Path, migrated: Sqld) -> None:
    async with rig(path, migrated.url) as one:
        assert await one.delivered(one_call())
        assert (one.spool.depth, one.shipper.last_error) == (0, None)
    assert migrated.query(COUNTS) == [(1, 2, 1, 1)]


async def test_more_than_a_batch_arrives(path: Path, migrated: Sqld) -> None:
    async with rig(path, migrated.url, timeout_s=10) as one:
        assert await one.delivered([turn(seq) for seq in range(2 * BATCH_MAX + 1)])
    assert migrated.query("SELECT count(*), max(seq) FROM turns") == [(2 * BATCH_MAX + 1, 2 * BATCH_MAX)]


async def test_records_of_an_earlier_run_arrive(path: Path, migrated: Sqld) -> None:
    spool = await Spool.open(path)
    spool.put(started())
    await spool.close()
    async with rig(path, migrated.url) as one:
        assert one.spool.depth == 2  # with the ending that the earlier run did not write
        assert await one.delivered([])
    assert migrated.query(COUNTS) == [(1, 0, 0, 1)]


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.RESET, Mode.HANG])
async def test_records_wait_while_the_link_is_bad_and_arrive_afterwards(
    path: Path, migrated: Sqld, wire: Wire, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(path, wire.url) as one:
        assert await one.delivered([started()])
        wire.become(mode)
        one.put([turn(0)])
        await noticed(caplog, "")
        assert (one.spool.depth, one.shipper.alarm, one.shipper.last_error is None) == (1, None, False)
        wire.become(Mode.PASS)
        assert await one.delivered([turn(1)])
        assert one.shipper.last_error is None
    assert migrated.query(COUNTS) == [(1, 2, 0, 0)]
    assert "primary_recovered" in caplog.messages


async def test_records_whose_answer_was_lost_are_sent_again_and_stored_once(
    path: Path, migrated: Sqld, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(path, wire.url) as one:
        assert await one.delivered([started()])
        wire.drop_next_answer()
        assert await one.delivered([turn(0), turn(1)])
        await noticed(caplog, "")
    assert migrated.query(COUNTS) == [(1, 2, 0, 0)]


async def test_primary_killed_under_load_gets_everything_once(path: Path, migrated: Sqld) -> None:
    async with rig(path, migrated.url) as one:
        one.put([turn(seq) for seq in range(3 * BATCH_MAX)])
        assert await one.spool.flush(DRAIN_S)
        migrated.stop()
        one.put([turn(3 * BATCH_MAX)])
        migrated.start()
        assert await one.delivered([])
    assert migrated.query("SELECT count(*), count(DISTINCT seq) FROM turns") == [(3 * BATCH_MAX + 1,) * 2]


async def test_empty_disk_of_the_primary_is_an_alarm_until_somebody_migrates(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(path, migrated.url) as one:
        assert await one.delivered([started("CA1")])
        migrated.lose_disk()
        migrated.start()
        one.put([started("CA2"), turn(0, "CA2")])
        assert "nearcall migrate" in await noticed(caplog, "migrate")
        assert one.spool.depth == 2
        await migrate(migrated)
        assert await one.delivered([])
    assert migrated.query("SELECT call_sid FROM legs") == [("CA2",)]


async def test_schema_that_is_not_there_yet_is_an_alarm_before_anything_is_sent(
    path: Path, sqld: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig(path, sqld.url) as one:
        one.put([started()])
        assert await noticed(caplog, "nearcall migrate") == one.shipper.alarm
        await migrate(sqld)
        assert await one.delivered([])
        assert one.shipper.last_error is None


async def test_newer_schema_takes_the_records_of_a_rolled_back_program(path: Path, migrated: Sqld) -> None:
    migrated.execute("INSERT INTO schema_migrations VALUES (99, '0099_future.sql', 'x', 0)")
    migrated.execute("ALTER TABLE legs ADD COLUMN future TEXT")
    async with rig(path, migrated.url) as one:
        one.put([started()])
        assert await one.delivered([])
        assert one.shipper.last_error is None
    assert migrated.query("SELECT call_sid, future FROM legs") == [("CA1", None)]


async def test_refused_token_is_an_alarm_and_a_new_one_needs_no_restart(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    bearer = expired_token()
    async with rig(path, migrated.url, bearer=lambda: bearer) as one:
        one.put([started()])
        await noticed(caplog, "refuses the token")
        assert one.spool.depth == 1
        bearer = token()
        assert await one.delivered([])
    assert migrated.query(COUNTS) == [(1, 0, 0, 0)]
    assert bearer not in caplog.text


async def test_alarm_is_not_a_loop(path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[str] = []

    def bearer() -> str:
        asked.append("")
        return expired_token()

    async with rig(path, migrated.url, bearer=bearer, pace=Pace(alarm_s=60.0)) as one:
        one.put([started()])
        await noticed(caplog, "refuses the token")
        one.put([turn(0)])
        assert await one.spool.flush(DRAIN_S)
        assert len(asked) == 1


async def test_record_that_no_table_takes_is_set_aside_and_blocks_no_other(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    missing: Any = None
    poison: list[Record] = [replace(call_event(0), detail=missing), started(started_ms=2**63)]
    async with rig(path, migrated.url) as one:
        assert await one.delivered([turn(0), *poison, turn(1)])
        assert one.shipper.last_error is None
    assert migrated.query(COUNTS) == [(0, 2, 0, 0)]
    assert migrated.query("SELECT kind, call_sid FROM refused ORDER BY kind") == [
        ("CallStarted", "CA1"),
        ("Happening", "CA1"),
    ]
    assert caplog.messages.count("record_refused") == 2


class Refusing(Primary):
    """Calls every record bad until it is well."""

    well = False

    async def batch(self, steps: Sequence[Statement]) -> Outcome:
        return await super().batch(steps) if self.well else Poison(0, "HTTP 400: so it says")


async def test_record_that_a_sick_primary_refused_is_stored_once_it_is_well(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    spool = await Spool.open(path)
    async with Refusing(migrated.url, token) as primary:
        shipper = Shipper("global", spool, primary, lambda one: check_primary(one, known_migrations()), SOON)
        shipper.start()
        spool.put(turn(0))
        await noticed(caplog, "refuses whatever it is sent")
        primary.well = True
        assert await shipper.drain(DRAIN_S)
        await shipper.stop()
    await spool.close()
    assert migrated.query("SELECT (SELECT count(*) FROM turns), (SELECT count(*) FROM refused)") == [(1, 0)]


class Choosy(Primary):
    """Answers HTTP 400 to whole requests in which a certain word is, so often."""

    word = "odd"
    times = 1
    away = False
    """True: takes nothing at all."""
    asked = 0

    async def batch(self, steps: Sequence[Statement]) -> Outcome:
        self.asked += 1
        if self.away:
            return Retry("away")
        if self.times and any(self.word in str(value) for step in steps for value in step.values):
            self.times -= 1
            return Poison(None, "HTTP 400: so it says")
        return await super().batch(steps)


@asynccontextmanager
async def choosy(
    path: Path, url: str, times: int, *, disk: Disk | None = None, pace: Pace = SOON
) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        spool = await Spool.open(path, connect=open_spool if disk is None else disk.open_spool)
        stack.push_async_callback(spool.close)
        primary = await stack.enter_async_context(Choosy(url, token))
        primary.times = times
        shipper = Shipper("global", spool, primary, lambda one: check_primary(one, known_migrations()), pace)
        stack.push_async_callback(shipper.stop)
        shipper.start()
        yield Rig(spool, shipper, primary)


async def test_record_that_met_one_http_400_is_sent_again_and_not_set_aside(path: Path, migrated: Sqld) -> None:
    async with choosy(path, migrated.url, times=1) as one:
        one.put([turn(0, said="odd")])
        await until(lambda: not one.spool.depth and bool(migrated.query("SELECT 1 FROM turns")), DRAIN_S)
        assert one.spool.aside == 0
    assert migrated.query("SELECT (SELECT count(*) FROM turns), (SELECT count(*) FROM refused)") == [(1, 0)]


async def test_record_that_is_always_refused_is_set_aside_and_holds_up_no_other(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    async with choosy(path, migrated.url, times=1_000) as one:
        one.put([turn(0), turn(1, said="odd"), turn(2)])
        await until(lambda: one.spool.aside == 1, DRAIN_S)
        assert await one.delivered([turn(3)])
        assert one.shipper.last_error is None
    assert migrated.query("SELECT seq FROM turns ORDER BY seq") == [(0,), (2,), (3,)]
    assert caplog.messages.count("record_set_aside") == 1
    async with rig(path, migrated.url) as again:
        assert (again.spool.aside, again.spool.depth) == (1, 0)
    assert resend_aside(path).spooled == 1
    async with rig(path, migrated.url) as again:
        assert await again.delivered([])
        assert again.spool.aside == 0
    assert migrated.query("SELECT count(*) FROM turns") == [(4,)]


def logged(caplog: pytest.LogCaptureFixture, message: str) -> Callable[[], bool]:
    return lambda: message in caplog.messages


async def test_record_refused_from_memory_is_set_aside_when_the_disk_takes_it(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.ledger.shipper.BATCH_MAX", 2)
    disk = Disk()
    async with choosy(path, migrated.url, times=1_000_000, disk=disk) as one:
        disk.full = True
        # More than a batch of them, before and behind the others.
        one.put([turn(seq, said="odd" if seq not in {3, 7} else "even") for seq in range(8)])
        await until(lambda: migrated.query("SELECT count(*) FROM turns") == [(2,)], DRAIN_S)
        await until(lambda: caplog.messages.count(WAITS) == 6, DRAIN_S)
        one.put([turn(8)])
        await until(lambda: migrated.query("SELECT count(*) FROM turns") == [(3,)], DRAIN_S)
        await until(lambda: one.spool.depth == 6, DRAIN_S)
        assert (one.spool.aside, one.spool.lost) == (0, 0)
        requests = one.shipper.stored
        disk.full = False
        await until(lambda: (one.spool.aside, one.spool.depth) == (6, 0), DRAIN_S)
        assert one.shipper.stored == requests
        assert one.shipper.last_error is None
        assert await one.shipper.drain(DRAIN_S)
    assert rows(path, "SELECT count(*) FROM spool") == [(0,)]
    assert rows(path, "SELECT count(*), count(DISTINCT content) FROM aside") == [(6, 6)]
    assert "record_set_aside" in caplog.messages
    assert migrated.query("SELECT seq FROM turns ORDER BY seq") == [(3,), (7,), (8,)]


WAITS = "refused_record_waits_for_the_disk"


async def test_record_refused_from_memory_that_no_disk_takes_counts_as_lost(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.writer.CLOSE_REFUSED_S", 0.05)
    disk = Disk()
    async with choosy(path, migrated.url, times=1_000_000, disk=disk) as one:
        disk.full = True
        one.put([turn(0, said="odd"), turn(1)])
        await until(logged(caplog, WAITS), DRAIN_S)
        await until(lambda: one.spool.depth == 1, DRAIN_S)
        # There is nothing more to wait for.
        assert not await one.shipper.drain(DRAIN_S)
    assert one.spool.lost == 1
    assert migrated.query("SELECT seq FROM turns") == [(1,)]


async def test_record_refused_once_from_memory_is_sent_again_from_there(path: Path, migrated: Sqld) -> None:
    disk = Disk()
    async with choosy(path, migrated.url, times=1, disk=disk) as one:
        disk.full = True
        one.put([turn(0, said="odd")])
        await until(lambda: one.spool.depth == 0, DRAIN_S)
        assert migrated.query("SELECT seq FROM turns") == [(0,)]
        disk.full = False


async def test_suspect_on_the_disk_is_kept_while_others_wait_in_memory(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    async with choosy(path, migrated.url, times=1, disk=disk, pace=replace(SOON, suspect_s=0.5)) as one:
        primary = one.primary
        assert isinstance(primary, Choosy)
        one.put([turn(0, said="odd")])
        await until(logged(caplog, "refused_record_kept_for_later"), DRAIN_S)
        one.put([turn(1)])
        await until(lambda: one.spool.depth == 1, DRAIN_S)
        primary.away = disk.full = True
        one.put([turn(2)])
        # Until it was due: at least 0.01 s are between two attempts.
        enough = primary.asked + 100
        await until(lambda: primary.asked >= enough, DRAIN_S)
        primary.away = False
        await until(lambda: migrated.query("SELECT seq FROM turns ORDER BY seq") == [(0,), (1,), (2,)], DRAIN_S)
        disk.full = False
        await until(lambda: one.spool.depth == 0, DRAIN_S)


async def test_refused_record_that_a_full_disk_cannot_keep_holds_up_no_other(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    async with choosy(path, migrated.url, times=1_000_000, disk=disk, pace=replace(SOON, suspect_s=0.2)) as one:
        one.put([turn(0, said="odd")])
        assert await one.spool.flush(DRAIN_S)
        await until(logged(caplog, "refused_record_kept_for_later"), DRAIN_S)
        disk.full = True
        await until(logged(caplog, WAITS), DRAIN_S)
        one.put([turn(1)])
        await until(lambda: migrated.query("SELECT count(*) FROM turns") == [(1,)], DRAIN_S)
        disk.full = False
        await until(lambda: one.spool.aside == 1, DRAIN_S)
    assert rows(path, "SELECT count(*) FROM aside") == [(1,)]


async def test_refused_record_that_others_overtook_outlives_its_damaged_spool(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    async with choosy(path, migrated.url, times=1, disk=disk, pace=replace(SOON, suspect_s=60)) as one:
        one.put([turn(0, said="odd")])
        await until(logged(caplog, "refused_record_kept_for_later"), DRAIN_S)
        one.put([turn(1), turn(2)])
        await until(lambda: migrated.query("SELECT count(*) FROM turns") == [(2,)], DRAIN_S)
        await until(lambda: one.spool.depth == 1, DRAIN_S)
        disk.damaged = True
        one.put([turn(3)])
        await until(logged(caplog, "spool_recovered"), DRAIN_S)
        await until(lambda: migrated.query("SELECT count(*) FROM turns") == [(4,)], DRAIN_S)
    assert one.spool.lost == 0


async def test_record_too_large_for_the_primary_blocks_no_other(path: Path, migrated: Sqld) -> None:
    """sqld takes 10 MB in a request, and answers 413 to more."""
    async with rig(path, migrated.url, timeout_s=10) as one:
        one.put([turn(0), turn(1, said="x" * 12_000_000), turn(2)])
        await until(lambda: one.spool.aside == 1, DRAIN_S)
        assert await one.delivered([turn(3)])
    assert migrated.query("SELECT seq FROM turns ORDER BY seq") == [(0,), (2,), (3,)]


async def test_refused_records_go_into_their_tables_when_they_are_sent_again(path: Path, migrated: Sqld) -> None:
    bad: Any = None
    async with rig(path, migrated.url) as one:
        assert await one.delivered([replace(call_event(0), detail=bad), turn(0)])
    good = "UPDATE refused SET content = json_set(content, '$.detail', 'mended')"
    async with Primary(migrated.url, token) as primary:
        resent = await resend_refused(PrimaryStore(primary))
        assert (resent.stored, len(resent.refused)) == (0, 1)
        migrated.execute(good)
        assert (await resend_refused(PrimaryStore(primary))).stored == 1
    assert migrated.query("SELECT detail, (SELECT count(*) FROM refused) FROM events") == [("mended", 0)]


async def test_text_of_any_kind_arrives(path: Path, migrated: Sqld) -> None:
    async with rig(path, migrated.url) as one:
        assert await one.delivered([turn(0, said="nul \0 half \ud83d 'quote' \U0001f600")])
    assert migrated.query("SELECT said FROM turns") == [("nul � half ��� 'quote' \U0001f600",)]


async def test_record_of_a_newer_program_is_set_aside_with_its_content(path: Path, migrated: Sqld) -> None:
    put = "INSERT INTO spool (kind, call_sid, at_ms, content) VALUES ('Verdict', 'CA9', 0, '{\"call_sid\": 9}')"
    with closing(open_spool(path)) as database:
        database.execute(put)
    async with rig(path, migrated.url) as one:
        assert await one.delivered([turn(0)])
    assert migrated.query("SELECT kind, call_sid, content FROM refused") == [("Verdict", "CA9", '{"call_sid": 9}')]


async def test_records_that_were_spooled_arrive_while_the_disk_is_full(
    path: Path, migrated: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    spool = await Spool.open(path, connect=disk.open_spool)
    spool.put(started())
    assert await spool.flush(DRAIN_S)
    disk.full = True
    async with Primary(migrated.url, token) as primary:
        shipper = Shipper("global", spool, primary, lambda one: check_primary(one, known_migrations()), SOON)
        shipper.start()
        assert await shipper.drain(DRAIN_S)
        spool.put(turn(0))
        assert await spool.flush(DRAIN_S)
        assert migrated.query(COUNTS) == [(1, 1, 0, 0)]
        assert "database or disk is full" in str(spool.last_error)
        disk.full = False
        assert await shipper.drain(DRAIN_S)
        await shipper.stop()
    await spool.close()


async def test_hanging_zone_holds_up_no_other(tmp_path: Path, migrated: Sqld, wire: Wire) -> None:
    wire.become(Mode.HANG)
    async with (
        rig(tmp_path / "eu.db", wire.url, timeout_s=60) as slow,
        rig(tmp_path / "g.db", migrated.url) as one,
    ):
        slow.put([started("CA1")])
        assert await slow.spool.flush(DRAIN_S)
        assert await asyncio.to_thread(wire.asked.wait, DRAIN_S)
        assert await one.delivered([started("CA2")])
        assert slow.spool.depth == 1
    assert migrated.query("SELECT call_sid FROM legs") == [("CA2",)]
