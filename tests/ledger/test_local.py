"""The local ledger: nothing waits for it, nothing is lost, nothing is doubled."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from app.call.records import Record
from app.ledger.ledger import Ledger
from app.ledger.local import LocalLedger, open_migrated, write
from app.storage.database import Database, DatabaseError, open_for_writing
from app.storage.errors import StorageError
from app.storage.statement import Row
from app.storage.writer import BATCH_MAX
from tests.ledger.samples import (
    NOW_MS,
    Disk,
    FaultyDatabase,
    NthStatement,
    call_event,
    ended,
    one_call,
    rows,
    started,
    turn,
)

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
FLUSH_S = 10.0
COUNTS = (
    "SELECT (SELECT count(*) FROM legs), (SELECT count(*) FROM turns),"
    " (SELECT count(*) FROM events), (SELECT count(*) FROM endings)"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def ledger(path: Path) -> AsyncIterator[LocalLedger]:
    ledger = await LocalLedger.open(path)
    yield ledger
    await ledger.close()


@pytest.fixture
def disk() -> Disk:
    return Disk()


async def remembered(ledger: Ledger, records: list[Record]) -> bool:
    for record in records:
        ledger.remember(record)
    return await ledger.flush(FLUSH_S)


async def failed(disk: Disk) -> None:
    """Until the writer has met the full disk and tries again."""
    assert await asyncio.to_thread(disk.asked_again.wait, 10)


async def test_flushed_call_is_in_the_file(ledger: LocalLedger, path: Path) -> None:
    assert await remembered(ledger, one_call())
    assert rows(path, COUNTS) == [(1, 2, 1, 1)]
    assert (ledger.depth, ledger.lost, ledger.healthy) == (0, 0, True)


async def test_more_than_a_batch_is_stored_in_order(ledger: LocalLedger, path: Path) -> None:
    assert await remembered(ledger, [turn(seq) for seq in range(3 * BATCH_MAX + 1)])
    assert rows(path, "SELECT count(*), min(seq), max(seq) FROM turns") == [(3_001, 0, 3_000)]


async def test_record_sent_again_is_stored_once(ledger: LocalLedger, path: Path) -> None:
    assert await remembered(ledger, one_call() + one_call())
    assert await remembered(ledger, one_call())
    assert rows(path, COUNTS) == [(1, 2, 1, 1)]


async def test_closing_stores_what_was_not_flushed(path: Path) -> None:
    ledger = await LocalLedger.open(path)
    ledger.remember(started())
    await ledger.close()
    assert rows(path, COUNTS) == [(1, 0, 0, 0)]


async def test_closing_gives_the_file_back(path: Path) -> None:
    """The last connection takes the write-ahead log with it. The ballast stays for the next start."""
    ledger = await LocalLedger.open(path)
    assert await remembered(ledger, [started()])
    await ledger.close()
    assert sorted(path.parent.iterdir()) == [path.with_suffix(".ballast"), path]


async def test_closing_twice_and_flushing_after_it_are_harmless(path: Path) -> None:
    ledger = await LocalLedger.open(path)
    await ledger.close()
    await ledger.close()
    assert await ledger.flush(FLUSH_S)


async def test_record_after_the_end_is_counted_and_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = await LocalLedger.open(path)
    await ledger.close()
    ledger.remember(started())
    assert ledger.lost == 1
    assert "record_lost" in caplog.messages


async def test_two_ledgers_on_one_file_take_turns(ledger: LocalLedger, path: Path) -> None:
    other = await LocalLedger.open(path)
    both = await asyncio.gather(
        remembered(ledger, [turn(seq, "CA1") for seq in range(200)]),
        remembered(other, [turn(seq, "CA2") for seq in range(200)]),
    )
    await other.close()
    assert all(both)
    assert rows(path, "SELECT call_sid, count(*) FROM turns GROUP BY call_sid") == [("CA1", 200), ("CA2", 200)]


# --- Faults at start ------------------------------------------------------------------------------


async def test_start_fails_with_the_reason_when_the_file_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        await LocalLedger.open(tmp_path / "gone" / "ledger.db")


async def test_rolled_back_program_writes_into_a_file_with_a_newer_schema(path: Path) -> None:
    with closing(open_migrated(path)) as database:
        database.execute("INSERT INTO schema_migrations VALUES (99, '0099_future.sql', 'x', 0)")
        database.execute("ALTER TABLE turns ADD COLUMN future TEXT")
    ledger = await LocalLedger.open(path)
    ledger.remember(turn(0))
    assert await ledger.flush(FLUSH_S)
    await ledger.close()
    assert rows(path, "SELECT seq, future FROM turns") == [(0, None)]


async def test_start_fails_when_another_program_keeps_the_file_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.database.LOCK_WAIT_S", 0.02)
    holder = open_for_writing(path)
    with holder.transaction(), pytest.raises(StorageError, match="database is locked"):
        await LocalLedger.open(path)
    holder.close()


async def test_waiting_for_another_writer_lets_the_event_loop_run(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Or the lock could not be given back here before SQLite has waited for it in vain."""
    waiting = asyncio.Event()
    loop = asyncio.get_running_loop()

    def says_so(sql: str) -> bool:
        if sql == "BEGIN IMMEDIATE":
            loop.call_soon_threadsafe(waiting.set)
        return False

    open_migrated(path).close()
    ledger = await LocalLedger.open(path, connect=lambda path: FaultyDatabase(path, says_so))
    holder = open_for_writing(path)
    with holder.transaction():
        ledger.remember(started())
        async with asyncio.timeout(FLUSH_S):
            await waiting.wait()
        assert not await ledger.flush(0.05)
    assert await ledger.flush(FLUSH_S)
    holder.close()
    await ledger.close()
    assert "write_failed" not in caplog.messages


# --- Faults at run time ---------------------------------------------------------------------------

STATEMENTS = 2 + len(one_call())
"""BEGIN, an INSERT for each record, COMMIT."""


def test_writing_a_call_takes_the_statements_that_the_next_tests_fail(path: Path) -> None:
    open_migrated(path).close()
    count = NthStatement(0)
    database = FaultyDatabase(path, count)
    write(database, one_call())
    database.close()
    assert count.seen == STATEMENTS


@pytest.mark.parametrize("nth", range(1, STATEMENTS + 1))
def test_disk_that_fails_at_any_statement_keeps_nothing_of_the_batch(path: Path, nth: int) -> None:
    open_migrated(path).close()
    faulty = FaultyDatabase(path, NthStatement(nth))
    with pytest.raises(StorageError, match="disk is full"):
        write(faulty, one_call())
    faulty.close()
    assert rows(path, COUNTS) == [(0, 0, 0, 0)]


@pytest.mark.parametrize("nth", range(1, STATEMENTS + 1))
async def test_ledger_tries_again_after_a_failure_at_any_statement(path: Path, nth: int) -> None:
    statement = NthStatement(nth)

    def connect(path: Path) -> Database:
        open_migrated(path).close()
        return FaultyDatabase(path, statement)

    ledger = await LocalLedger.open(path, connect=connect)
    assert await remembered(ledger, one_call())
    assert ledger.healthy
    await ledger.close()
    assert rows(path, COUNTS) == [(1, 2, 1, 1)]
    assert rows(path, "SELECT * FROM refused") == []


class RollsBack(Database):
    """A disk that is full in the middle of a transaction: SQLite itself rolls back, once."""

    full = True

    def execute(self, sql: str, values: Row = ()) -> None:
        if self.full and sql.startswith("INSERT INTO turns"):
            self.full = False
            super().execute("ROLLBACK")
            raise DatabaseError("database or disk is full")
        super().execute(sql, values)


def test_transaction_that_sqlite_ended_blames_no_record(path: Path) -> None:
    open_migrated(path).close()
    database = RollsBack(path)
    with pytest.raises(DatabaseError, match="disk is full"):
        write(database, one_call())
    database.close()
    assert rows(path, COUNTS) == [(0, 0, 0, 0)]
    assert rows(path, "SELECT * FROM refused") == []


async def test_full_disk_keeps_records_in_memory_until_it_has_room(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = await LocalLedger.open(path, connect=disk.open)
    disk.full = True
    ledger.remember(started())
    await failed(disk)
    ledger.remember(turn(0))
    assert not await ledger.flush(0)
    assert (ledger.depth, ledger.healthy, ledger.last_error) == (2, False, "database or disk is full")
    assert "write_failed" in caplog.messages
    disk.full = False
    assert await ledger.flush(FLUSH_S)
    assert (ledger.depth, ledger.healthy, ledger.last_error) == (0, True, None)
    assert "write_recovered" in caplog.messages
    await ledger.close()
    assert rows(path, COUNTS) == [(1, 1, 0, 0)]


async def test_full_queue_turns_records_away_counted_and_logged_once_a_second(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = await LocalLedger.open(path, connect=disk.open, depth_max=3)
    disk.full = True
    for seq in range(10):
        ledger.remember(turn(seq))
    assert (ledger.depth, ledger.lost, ledger.healthy) == (3, 7, False)
    assert caplog.messages.count("record_lost") == 1
    disk.full = False
    assert await ledger.flush(FLUSH_S)
    assert await remembered(ledger, [turn(20)])
    assert (ledger.lost, ledger.healthy) == (7, True)
    await ledger.close()
    assert rows(path, "SELECT seq FROM turns") == [(0,), (1,), (2,), (20,)]


async def test_closing_gives_up_on_a_disk_that_stays_full_and_says_how_much(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.storage.writer.CLOSE_S", 0.05)
    ledger = await LocalLedger.open(path, connect=disk.open)
    disk.full = True
    ledger.remember(started())
    await failed(disk)
    await ledger.close()
    [line] = [record for record in caplog.records if record.message == "file_closed_incomplete"]
    assert (line.levelno, line.__dict__["unwritten"]) == (logging.ERROR, 1)


async def test_record_that_no_table_takes_is_set_aside_and_blocks_no_other(
    ledger: LocalLedger, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing: Any = None
    poison: list[Record] = [replace(call_event(0), detail=missing), started(started_ms=2**63)]
    assert await remembered(ledger, [turn(0), *poison, turn(1)])
    assert rows(path, COUNTS) == [(0, 2, 0, 0)]
    assert rows(path, "SELECT kind, call_sid FROM refused ORDER BY kind") == [
        ("CallStarted", "CA1"),
        ("Happening", "CA1"),
    ]
    assert ledger.healthy
    assert caplog.messages.count("record_refused") == 2


def test_disk_that_fails_while_a_record_is_set_aside_keeps_no_batch(path: Path) -> None:
    open_migrated(path).close()
    faulty = FaultyDatabase(path, lambda sql: sql.startswith("INSERT INTO refused"))
    with pytest.raises(StorageError, match="disk is full"):
        write(faulty, [turn(0), started(started_ms=2**63)])
    faulty.close()
    assert rows(path, COUNTS) == [(0, 0, 0, 0)]


async def test_record_set_aside_keeps_its_content_and_is_set_aside_once(ledger: LocalLedger, path: Path) -> None:
    poison = started(started_ms=2**63)
    assert await remembered(ledger, [poison, poison])
    [(content, error)] = rows(path, "SELECT content, error FROM refused")
    assert json.loads(str(content))["caller"] == poison.caller
    assert "too large to convert to SQLite INTEGER" in str(error)


async def test_bug_in_a_connection_is_retried_and_does_not_end_the_thread(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bugs = iter([0, 1, 0])
    statement = NthStatement(1)

    def connect(path: Path) -> Database:
        open_migrated(path).close()
        _ = 1 // (1 - next(bugs))
        return FaultyDatabase(path, statement)

    ledger = await LocalLedger.open(path, connect=connect)
    assert await remembered(ledger, [started()])
    assert any(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)
    await ledger.close()


# --- Real processes, real faults ------------------------------------------------------------------

WRITER = """
import asyncio, sys
from pathlib import Path
from app.ledger.local import LocalLedger
from tests.ledger.samples import turn

async def main():
    ledger = await LocalLedger.open(Path(sys.argv[1]))
    seq = 0
    while True:
        for seq in range(seq, seq + 50):
            ledger.remember(turn(seq))
        await ledger.flush(10)
        print(seq, flush=True)

asyncio.run(main())
"""


def test_kill_9_under_load_loses_and_doubles_nothing_that_was_flushed(path: Path) -> None:
    acknowledged = [killed_after(path, lines) for lines in (3, 9, 27)]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    [(count, last, distinct)] = rows(path, "SELECT count(*), max(seq), count(DISTINCT seq) FROM turns")
    assert count == distinct == int(last or 0) + 1
    assert int(last or 0) >= max(acknowledged)


def killed_after(path: Path, lines: int) -> int:
    """Run the writer from its first record, kill it in the middle of its work; the last seq it was sure of."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        flushed = [int(child.stdout.readline()) for _ in range(lines)]
        os.kill(child.pid, signal.SIGKILL)
        flushed += [int(line) for line in child.stdout.read().splitlines()]
    assert child.returncode == -signal.SIGKILL
    return flushed[-1]


FULL_DISK = """
import asyncio, logging, resource, sys
from pathlib import Path
from app.ledger.local import LocalLedger
from tests.ledger.samples import turn

class Failed(logging.Handler):
    def __init__(self, loop, event):
        super().__init__()
        self.loop, self.event = loop, event

    def emit(self, record):
        if record.msg == "write_failed":
            self.loop.call_soon_threadsafe(self.event.set)

async def main():
    failed = asyncio.Event()
    logging.getLogger().addHandler(Failed(asyncio.get_running_loop(), failed))
    ledger = await LocalLedger.open(Path(sys.argv[1]))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    for seq in range(2_000):
        ledger.remember(turn(seq, said="x" * 200))
    await asyncio.wait_for(failed.wait(), 10)
    print(ledger.healthy, ledger.depth > 0, ledger.lost)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(await ledger.flush(10), ledger.healthy, ledger.depth)
    await ledger.close()

asyncio.run(main())
"""


def test_file_that_may_not_grow_is_written_when_it_may_again(path: Path) -> None:
    """The operating system refuses the write, as on a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("False True 0\nTrue True 0\n", "")
    assert rows(path, "SELECT count(*), max(seq) FROM turns") == [(2_000, 1_999)]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_leg_cut_short_gets_its_ending_and_the_truth_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = await LocalLedger.open(path)
    for record in (started("CA1"), turn(0, "CA1"), started("CA2"), ended("CA2")):
        ledger.remember(record)
    assert await ledger.flush(10)
    for _ in range(2):
        await ledger.end_unfinished(NOW_MS + 5_000)
    found = "SELECT call_sid, ended_ms, reason, turns FROM endings ORDER BY call_sid"
    assert rows(path, found) == [
        ("CA1", NOW_MS + 900, "machine_died", 1),
        ("CA2", NOW_MS + 60_000, "caller_hung_up", 2),
    ]
    ledger.remember(ended("CA1"))
    assert await ledger.flush(10)
    assert rows(path, found)[0] == ("CA1", NOW_MS + 60_000, "caller_hung_up", 2)
    await ledger.end_unfinished(NOW_MS + 5_000)
    await ledger.close()
    assert rows(path, found)[0][2] == "caller_hung_up"


async def test_start_does_not_wait_for_a_disk_that_hangs_and_ends_no_leg_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.writer.OPEN_S", 0.05)
    monkeypatch.setattr("app.ledger.local.OPEN_S", 0.05)
    answers = Event()

    def connect(path: Path) -> Database:
        assert answers.wait(FLUSH_S)
        return open_migrated(path)

    async with asyncio.timeout(FLUSH_S):
        ledger = await LocalLedger.open(path, connect=connect)
        with pytest.raises(StorageError, match="has not answered"):
            await ledger.end_unfinished(NOW_MS + 5_000)
    ledger.remember(started())
    answers.set()
    assert await ledger.flush(FLUSH_S)
    await ledger.close()
    assert rows(path, COUNTS) == [(1, 0, 0, 0)]
