"""A ledger, in a process of its own, whose disk is full, fails, hangs or is damaged: nothing is lost silently."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from app.ledger.spool import GIVE_UP_S
from app.storage.database import Database
from app.storage.migrations import known_migrations
from app.storage.primary import Primary
from app.storage.primary_migrations import migrate_primary
from app.storage.store import PrimaryStore
from tests.ledger.faulty_disk import FaultyDisk, damage_pages
from tests.ledger.samples import rows
from tests.ledger.sqld import Sqld, token
from tests.ledger.wire import Mode, Wire
from tests.waiting import a_moment_outside_a_loop

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
WAIT_S = 30.0
STOP_MAX_S = 13.0
"""Longest end of a ledger whose disk and primary are both gone."""

State = dict[str, Any]


class Child:
    """A running recorder (recorder.py)."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self._states: SimpleQueue[State | None] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._states.put(json.loads(line))
        self._states.put(None)

    def put(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()

    def until(self, holds: Callable[[State], bool]) -> State:
        """Wait for a state; the first that was told since the last one that was waited for."""
        state: State | None = None
        ends_at = time.monotonic() + WAIT_S
        try:
            while True:
                # States come for as long as the process lives, whatever is in them.
                state = self._states.get(timeout=max(0.0, ends_at - time.monotonic()))
                assert state is not None, self.log
                if holds(state):
                    return state
        except Empty:
            raise AssertionError(f"still {state}:\n{self.log}") from None

    def close(self) -> State:
        """Have it end; its last words."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        last = self.until(lambda state: "closed_s" in state)
        assert self._process.wait(WAIT_S) == 0, self.log
        return last

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()


@contextmanager
def recorder(data_dir: Path, disk: FaultyDisk, url: str | None = None) -> Iterator[Child]:
    log = data_dir.with_name("recorder.log")
    command = [sys.executable, "-m", "tests.ledger.recorder", str(data_dir), *([url] if url else [])]
    with (
        log.open("a") as output,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **disk.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        ) as process,
    ):
        try:
            child = Child(process, log)
            child.until(lambda _: True)
            yield child
        finally:
            # Of one that is stopped the pipes are closed without a complaint.
            process.kill()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


@pytest.fixture
def disk(data_dir: Path) -> FaultyDisk:
    return FaultyDisk(data_dir, data_dir.with_name("faults"))


async def migrate(sqld: Sqld) -> None:
    async with Primary(sqld.url, token) as primary:
        await migrate_primary(PrimaryStore(primary), known_migrations())


@pytest.fixture
def wire(sqld: Sqld) -> Iterator[Wire]:
    asyncio.run(migrate(sqld))
    with Wire(sqld.port) as wire:
        yield wire


def on_primary(sqld: Sqld) -> int:
    [(count,)] = sqld.query("SELECT count(*) FROM turns")
    return int(count)


def in_spool(data_dir: Path) -> int:
    [(count,)] = rows(data_dir / "global" / "spool.db", "SELECT count(*) FROM spool")
    return int(count or 0)


def spooled(child: Child, wire: Wire, count: int) -> None:
    """Have the primary out of reach, and this many records on the disk."""
    wire.become(Mode.REFUSE)
    child.put(count)
    child.until(lambda state: state["put"] == count and state["depth"] == count)


def written(data_dir: Path, count: int) -> None:
    """Until so many are in the file, seen from outside."""
    while in_spool(data_dir) < count:
        a_moment_outside_a_loop()


# --- With a primary -------------------------------------------------------------------------------


def test_full_disk_is_emptied_and_new_records_are_delivered_past_it(
    data_dir: Path, disk: FaultyDisk, sqld: Sqld, wire: Wire
) -> None:
    with recorder(data_dir, disk, wire.url) as child:
        spooled(child, wire, 3_000)
        written(data_dir, 3_000)
        disk.fill()
        child.put(500)
        child.until(lambda state: "full" in (state["error"] or "") and state["put"] == 3_500)
        wire.become(Mode.PASS)
        child.until(lambda state: state["depth"] == 0)
        assert on_primary(sqld) == 3_500
        child.put(100)
        child.until(lambda state: state["depth"] == 0 and state["put"] == 3_600)
        disk.mend()
        child.until(lambda state: state["error"] is None)
        last = child.close()
    assert (last["lost"], on_primary(sqld), in_spool(data_dir)) == (0, 3_600, 0)


def test_full_disk_takes_the_last_records_when_the_primary_is_gone_too(
    data_dir: Path, disk: FaultyDisk, sqld: Sqld, wire: Wire
) -> None:
    with recorder(data_dir, disk, wire.url) as child:
        wire.become(Mode.REFUSE)
        disk.fill()
        child.put(2_000)
        child.until(lambda state: "full" in (state["error"] or ""))
        last = child.close()
    assert (last["lost"], in_spool(data_dir)) == (0, 2_000)
    assert last["closed_s"] < STOP_MAX_S
    wire.become(Mode.PASS)
    with recorder(data_dir, disk, wire.url) as child:
        child.until(lambda state: state["depth"] == 0)
        assert child.close()["lost"] == 0
    assert on_primary(sqld) == 2_000


def test_file_that_cannot_be_written_is_replaced_and_its_records_delivered(
    data_dir: Path, disk: FaultyDisk, sqld: Sqld, wire: Wire
) -> None:
    spool = data_dir / "global" / "spool.db"
    with recorder(data_dir, disk, wire.url) as child:
        spooled(child, wire, 1_000)
        written(data_dir, 1_000)
        disk.fail(spool, spool.with_name("spool.db-wal"))
        child.put(300)
        child.until(lambda state: state["put"] == 1_300 and state["error"] is not None)
        wire.become(Mode.PASS)
        child.until(lambda state: state["depth"] == 0 and state["error"] is None)
        assert on_primary(sqld) == 1_300
        assert "spool_not_writable" in child.log
        assert child.close()["lost"] == 0
    assert in_spool(data_dir) == 0
    assert list(spool.parent.glob("*.damaged-*")) == []


def test_disk_that_fails_delivers_from_memory(data_dir: Path, disk: FaultyDisk, sqld: Sqld, wire: Wire) -> None:
    with recorder(data_dir, disk, wire.url) as child:
        disk.fail()
        child.put(300)
        child.until(lambda state: state["put"] == 300 and state["depth"] == 0)
        child.put(300)
        child.until(lambda state: state["put"] == 600 and state["depth"] == 0)
        last = child.close()
    assert (last["lost"], on_primary(sqld)) == (0, 600)
    assert last["closed_s"] < STOP_MAX_S


@pytest.mark.parametrize("fault", ["fail", "hang"])
def test_records_that_neither_disk_nor_primary_takes_are_counted(
    data_dir: Path, disk: FaultyDisk, sqld: Sqld, wire: Wire, fault: str
) -> None:
    with recorder(data_dir, disk, wire.url) as child:
        wire.become(Mode.HANG)
        getattr(disk, fault)()
        child.put(300)
        child.until(lambda state: state["put"] == 300 and state["error"] is not None)
        last = child.close()
        assert "file_closed_incomplete" in child.log
    assert last["lost"] == 300
    assert last["closed_s"] < STOP_MAX_S


def test_disk_that_hangs_is_told_of_and_records_are_delivered_from_memory(
    data_dir: Path, disk: FaultyDisk, sqld: Sqld, wire: Wire
) -> None:
    with recorder(data_dir, disk, wire.url) as child:
        disk.hang()
        child.put(250)
        child.until(lambda state: state["put"] == 250 and state["depth"] == 0)
        child.put(250)
        child.until(lambda state: state["put"] == 500 and state["depth"] == 0)
        child.until(lambda state: "has not answered" in (state["error"] or ""))
        assert "ERROR disk_hangs" in child.log
        assert on_primary(sqld) == 500
        disk.mend()
        # What the disk took while it hung is in the file: it is delivered again, and then deleted.
        child.until(lambda state: state["error"] is None and state["depth"] == 0)
        disk.hang()
        child.put(10)
        child.until(lambda state: state["put"] == 510 and state["depth"] == 0)
        last = child.close()
    assert (last["lost"], on_primary(sqld)) == (0, 510)
    assert last["closed_s"] < STOP_MAX_S


def test_disk_that_hangs_again_holds_up_only_what_is_on_it(
    data_dir: Path, disk: FaultyDisk, sqld: Sqld, wire: Wire
) -> None:
    with recorder(data_dir, disk, wire.url) as child:
        spooled(child, wire, 250)
        written(data_dir, 250)
        disk.hang()
        child.put(10)
        child.until(lambda state: state["put"] == 260 and "has not answered" in (state["error"] or ""))
        wire.become(Mode.PASS)
        # For longer than the shipper waits for an answer of the disk: from then on each of its looks fails.
        child.until(lambda state: state["depth"] == 250 and hanging_s(state) > GIVE_UP_S + 2)
        child.put(10)
        child.until(lambda state: state["put"] == 270 and state["depth"] == 250)
        child.until(lambda state: hanging_s(state) > GIVE_UP_S + 5)
        assert on_primary(sqld) == 20
        assert child.log.count("ERROR primary_failed") <= 2
        disk.mend()
        child.until(lambda state: state["error"] is None and state["depth"] == 0)
        last = child.close()
    assert (last["lost"], on_primary(sqld)) == (0, 270)


def hanging_s(state: State) -> float:
    """For how long the disk has not answered, as the ledger says."""
    found = re.search(r"has not answered for (\d+) s", state["error"] or "")
    return float(found[1]) if found else 0.0


def test_pages_damaged_under_a_running_server_cost_what_is_on_them_alone(
    data_dir: Path, disk: FaultyDisk, sqld: Sqld, wire: Wire
) -> None:
    spool = data_dir / "global" / "spool.db"
    with recorder(data_dir, disk, wire.url) as child:
        spooled(child, wire, 4_000)
        written(data_dir, 4_000)
        checkpoint(spool)
        damage_pages(spool, leaves_only=True)
        child.put(500)
        child.until(lambda state: state["put"] == 4_500)
        wire.become(Mode.PASS)
        state = child.until(lambda state: state["depth"] == 0 and state["error"] is None)
        lost = state["lost"]
        assert on_primary(sqld) + lost == 4_500
        assert 0 < lost < 1_500
        assert "spool_records_lost" in child.log
        assert child.close()["lost"] == lost


def checkpoint(path: Path) -> None:
    """So that what is damaged next is not put right from the log."""
    database = Database(path)
    database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


# --- In a local file ------------------------------------------------------------------------------


def in_file(data_dir: Path) -> int:
    [(count,)] = rows(data_dir / "ledger.db", "SELECT count(*) FROM turns")
    return int(count or 0)


def test_local_file_takes_the_last_records_of_a_full_disk(data_dir: Path, disk: FaultyDisk) -> None:
    with recorder(data_dir, disk) as child:
        disk.fill()
        child.put(2_000)
        child.until(lambda state: "full" in (state["error"] or ""))
        assert child.close()["lost"] == 0
    assert in_file(data_dir) == 2_000


def test_records_that_the_local_file_does_not_take_end_in_a_spool(data_dir: Path, disk: FaultyDisk) -> None:
    file = data_dir / "ledger.db"
    with recorder(data_dir, disk) as child:
        disk.fail(file, file.with_name("ledger.db-wal"))
        child.put(300)
        child.until(lambda state: state["put"] == 300 and state["error"] is not None)
        assert child.close()["lost"] == 0
    assert in_spool(data_dir) == 300


@pytest.mark.parametrize("fault", ["fail", "hang"])
def test_records_that_no_local_disk_takes_are_counted(data_dir: Path, disk: FaultyDisk, fault: str) -> None:
    with recorder(data_dir, disk) as child:
        getattr(disk, fault)()
        child.put(300)
        child.until(lambda state: state["put"] == 300 and state["error"] is not None)
        last = child.close()
        assert "file_closed_incomplete" in child.log
    assert last["lost"] == 300
    assert ("I/O error" if fault == "fail" else "has not answered") in last["error"]
    assert last["closed_s"] < STOP_MAX_S


def test_damaged_local_file_is_left_and_records_go_to_a_spool(data_dir: Path, disk: FaultyDisk) -> None:
    file = data_dir / "ledger.db"
    with recorder(data_dir, disk) as child:
        child.put(4_000)
        child.until(lambda state: state["put"] == 4_000 and state["depth"] == 0)
        checkpoint(file)
        with file.open("r+b") as raw:
            raw.seek(4096)
            raw.write(b"\xff" * (os.fstat(raw.fileno()).st_size - 4096))
        damaged = file.read_bytes()
        child.put(300)
        child.until(lambda state: "malformed" in (state["error"] or "") and state["depth"] == 300)
        child.put(100)
        assert child.close()["lost"] == 0
    assert in_spool(data_dir) == 400
    assert file.read_bytes() == damaged
