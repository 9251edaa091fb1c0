"""The spool: on disk first, taken any number of times, gone when it was delivered."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from app.ledger import aside
from app.ledger.records import packed_insertion
from app.ledger.resend import resend_aside
from app.ledger.spool import Spool, Spooled, open_spool
from app.storage.database import Database, closed_on_error
from app.storage.errors import StorageError
from tests.ledger.samples import NOW_MS, Disk, FaultyDatabase, call_event, ended, one_call, rows, started, turn

pytestmark = pytest.mark.anyio

FLUSH_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
async def spool(path: Path) -> AsyncIterator[Spool]:
    spool = await Spool.open(path)
    yield spool
    await spool.close()


async def test_records_are_taken_in_order_and_stay_until_they_are_done(spool: Spool) -> None:
    for record in one_call():
        spool.put(record)
    assert await spool.flush(FLUSH_S)
    taken = await spool.take(3)
    assert [each.record.kind for each in taken] == ["CallStarted", "Turn", "Turn"]
    assert await spool.take(3) == taken
    assert [each.record.kind for each in await spool.take(10, after=taken[-1].id)] == ["Happening", "CallEnded"]
    await spool.done([each.id for each in taken])
    assert spool.depth == 2
    assert [each.record.kind for each in await spool.take(10)] == ["Happening", "CallEnded"]


async def test_number_of_a_record_is_never_used_again(spool: Spool) -> None:
    spool.put(turn(0))
    assert await spool.flush(FLUSH_S)
    [first] = await spool.take(10)
    await spool.done([first.id])
    spool.put(turn(1))
    assert await spool.flush(FLUSH_S)
    assert [each.id > first.id for each in await spool.take(10)] == [True]


async def test_depth_and_age_count_what_an_earlier_run_left(path: Path) -> None:
    earlier = await Spool.open(path)
    earlier.put(turn(0))
    earlier.put(turn(1))
    await earlier.close()
    spool = await Spool.open(path)
    assert spool.depth == 2
    await spool.close()


@pytest.mark.parametrize(
    "record", [started(), turn(0), call_event(0), ended()], ids=lambda one: type(one).__name__
)
async def test_columns_for_erasure_hold_the_call_and_who_called(spool: Spool, path: Path, record: object) -> None:
    spool.put(record)  # type: ignore[arg-type] # parametrised over all of Record
    assert await spool.flush(FLUSH_S)
    caller = getattr(record, "caller", None)
    [(call_sid, number, at_ms)] = rows(path, "SELECT call_sid, caller, at_ms FROM spool")
    assert (call_sid, number) == ("CA1", caller)
    assert int(at_ms or 0) >= NOW_MS


async def test_rows_erased_by_another_process_are_not_counted(spool: Spool, path: Path) -> None:
    spool.put(started())
    assert await spool.flush(FLUSH_S)
    eraser = Database(path)
    eraser.execute("DELETE FROM spool WHERE caller = ?", (started().caller,))
    eraser.close()
    assert await spool.take(10) == []
    assert spool.depth == 0


async def test_delivered_words_stay_neither_in_the_file_nor_in_its_log(spool: Spool, path: Path) -> None:
    spool.put(turn(0, said="something very private"))
    assert await spool.flush(FLUSH_S)
    [one] = await spool.take(10)
    await spool.done([one.id])
    assert await spool.take(10, after=one.id) == []
    assert "very private" not in content_of(path)
    assert "very private" not in content_of(path.with_name("spool.db-wal"))


async def test_log_that_somebody_reads_is_emptied_the_next_time(spool: Spool, path: Path) -> None:
    spool.put(turn(0, said="something very private"))
    assert await spool.flush(FLUSH_S)
    [one] = await spool.take(10)
    with reading(path):
        await spool.done([one.id])
        assert await spool.take(10, after=one.id) == []
    assert await spool.take(10, after=one.id) == []
    assert "very private" not in content_of(path.with_name("spool.db-wal"))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Somebody who has the file open and looks at it."""
    with closing(Database(path, "ro")) as reader, reader.snapshot():
        reader.query("SELECT count(*) FROM spool")
        yield


def content_of(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


async def test_arrival_is_told_and_its_wait_has_an_end(spool: Spool) -> None:
    await spool.arrival(0.0)
    spool.put(turn(0))
    async with asyncio.timeout(FLUSH_S):
        await spool.arrival(2 * FLUSH_S)
    assert len(await spool.take(10)) == 1


async def test_full_disk_keeps_what_is_spooled_and_later_takes_the_rest(path: Path) -> None:
    disk = Disk()
    spool = await Spool.open(path, connect=disk.open_spool)
    spool.put(turn(0))
    assert await spool.flush(FLUSH_S)
    disk.full = True
    spool.put(turn(1))
    assert await asyncio.to_thread(disk.asked_again.wait, FLUSH_S)
    unwritten, first = await spool.take(10)
    assert (unwritten.id, first.id) == (-2, 1)
    await spool.done([first.id])
    assert (spool.depth, spool.lost, spool.last_error) == (1, 0, "database or disk is full")
    disk.full = False
    assert await spool.flush(FLUSH_S)
    await spool.done([])
    assert (spool.depth, spool.last_error) == (1, None)
    assert [each.id for each in await spool.take(10)] == [2]
    await spool.close()


async def test_record_that_is_delivered_from_memory_is_not_written_any_more(path: Path) -> None:
    disk = Disk()
    spool = await Spool.open(path, connect=disk.open_spool)
    disk.full = True
    spool.put(turn(0))
    spool.put(turn(1))
    assert await asyncio.to_thread(disk.asked_again.wait, FLUSH_S)
    unwritten = await spool.take(1)
    assert [json.loads(each.record.content)["seq"] for each in unwritten] == [0]
    await spool.done([each.id for each in unwritten])
    for _ in range(2):  # the first may be an attempt that began with both
        disk.asked_again.clear()
        assert await asyncio.to_thread(disk.asked_again.wait, FLUSH_S)
    disk.full = False
    assert await spool.flush(FLUSH_S)
    assert [json.loads(each.record.content)["seq"] for each in await spool.take(10)] == [1]
    await spool.close()


async def test_start_on_a_full_disk_keeps_what_is_spooled_and_takes_the_rest(path: Path) -> None:
    earlier = await Spool.open(path)
    earlier.put(turn(0))
    await earlier.close()
    full = True

    def connect(path: Path) -> Database:
        database = open_spool(path)
        if full:
            # What a disk without room for the log's index says.
            with closed_on_error(database):
                database.execute("PRAGMA max_page_count = 1")
                database.execute("CREATE TABLE more (content TEXT)")
        return database

    spool = await Spool.open(path, connect=connect)
    assert "disk is full" in str(spool.last_error)
    spool.put(turn(1))
    full = False
    assert await spool.flush(FLUSH_S)
    assert len(await spool.take(10)) == 2
    assert spool.last_error is None
    await spool.close()


async def test_too_many_records_for_a_full_disk_are_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    spool = await Spool.open(path, connect=disk.open_spool, depth_max=2)
    disk.full = True
    for seq in range(5):
        spool.put(turn(seq))
    assert (spool.lost, spool.last_error is None) == (3, False)
    assert "record_lost" in caplog.messages
    disk.full = False
    await spool.close()
    assert rows(path, "SELECT count(*) FROM spool") == [(2,)]


async def test_question_after_the_end_is_an_error_and_no_wait(path: Path) -> None:
    spool = await Spool.open(path)
    await spool.close()
    with pytest.raises(StorageError, match="is closed"):
        await spool.take(1)


@pytest.fixture
def no_database(path: Path) -> Path:
    path.write_bytes(b"no database at all" * 100)
    return path


async def test_damaged_file_is_kept_aside_and_a_new_one_begun(
    no_database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = await Spool.open(no_database)
    spool.put(turn(0))
    assert await spool.flush(FLUSH_S)
    await spool.close()
    [line] = [record for record in caplog.records if record.message == "spool_damaged"]
    assert "no database at all" in content_of(Path(line.__dict__["kept"]))
    assert rows(no_database, "SELECT count(*) FROM spool") == [(1,)]


@pytest.fixture
def torn(path: Path) -> Path:
    """A spool of many pages, of which all but the first were overwritten."""
    database = open_spool(path)
    fill = "INSERT INTO spool (kind, call_sid, at_ms, content) VALUES ('Turn', 'CA1', 0, hex(zeroblob(3000)))"
    database.execute(fill)
    database.execute(fill)
    database.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    return path


async def test_file_that_is_found_damaged_when_it_is_read_is_kept_aside_too(
    torn: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = await Spool.open(torn)
    await spool.close()
    assert "spool_damaged" in caplog.messages


def overwrite_a_page_in_the_middle(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4096 // 2 * 4096)
        file.write(b"\xff" * 4096)


def open_forgetful(path: Path) -> Database:
    """Reads pages from the disk again."""
    database = open_spool(path)
    database.execute("PRAGMA cache_size = 1")
    return database


def fill(path: Path, count: int) -> None:
    database = open_spool(path)
    database.execute(
        "INSERT INTO spool (kind, call_sid, at_ms, content)"
        " SELECT 'Turn', 'CA1', 0, hex(zeroblob(500)) FROM json_each(?)",
        (json.dumps([0] * count),),
    )
    database.close()


def lost_ids(caplog: pytest.LogCaptureFixture) -> list[int]:
    """What the log says of the one file that could not be read to its end."""
    [line] = [one for one in caplog.records if one.message == "spool_records_lost"]
    assert line.__dict__["lost"] == len(line.__dict__["ids"])
    return list(line.__dict__["ids"])


async def everything_in(spool: Spool) -> list[int]:
    """Take and let go all there is, as the shipper does; the ids."""
    ids: list[int] = []
    while batch := await spool.take(100, max(ids, default=0)):
        ids += [each.id for each in batch]
        await spool.done(ids[-len(batch) :])
    return ids


async def test_one_damaged_page_is_found_at_the_start_and_the_others_are_read(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, 50)
    overwrite_a_page_in_the_middle(path)
    spool = await Spool.open(path)
    taken = await everything_in(spool)
    lost = lost_ids(caplog)
    assert 0 < len(lost) < 10
    assert len(taken) == 50 - len(lost)
    assert (spool.depth, spool.lost, spool.last_error) == (0, len(lost), None)
    await spool.close()
    assert "spool_damaged" in caplog.messages


async def test_damaged_file_that_a_kill_left_unread_is_read_once_by_the_next(path: Path) -> None:
    fill(path.with_name("spool.db.damaged-1795283896871"), 50)
    spool = await Spool.open(path)
    assert spool.depth > 0
    assert len(await everything_in(spool)) == 50
    assert spool.depth == 0
    await spool.close()
    spool = await Spool.open(path)
    assert await everything_in(spool) == []
    await spool.close()


async def test_records_behind_a_damaged_page_are_taken_and_the_lost_named_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, 200)
    spool = await Spool.open(path, connect=open_forgetful)
    overwrite_a_page_in_the_middle(path)
    taken = await everything_in(spool)
    lost = lost_ids(caplog)
    assert 0 < len(lost) < 10
    assert len(set(taken)) == len(taken) == 200 - len(lost)
    assert min(taken) > 200
    assert (spool.depth, spool.lost, spool.last_error) == (0, len(lost), None)
    spool.put(turn(0))
    assert await spool.flush(FLUSH_S)
    assert [each.id for each in await spool.take(100, after=max(taken))] == [max(taken) + 1]
    await spool.close()


async def test_depth_is_never_0_before_lost_records_of_a_damaged_file_count(path: Path) -> None:
    fill(path, 200)
    seen: set[tuple[bool, bool]] = set()
    opened: list[Spool] = []

    def look(_sql: str) -> bool:
        if damaged_files(path):
            seen.update((each.depth > 0, each.lost > 0) for each in opened)
        return False

    def connect(path: Path) -> Database:
        open_forgetful(path).close()
        database = FaultyDatabase(path, look)
        database.query("PRAGMA cache_size = 1")
        return database

    spool = await Spool.open(path, connect=connect)
    opened.append(spool)
    overwrite_a_page_in_the_middle(path)
    await everything_in(spool)
    assert (spool.depth, spool.lost > 0) == (0, True)
    await spool.close()
    assert (True, False) in seen
    assert (False, False) not in seen


async def test_start_fails_with_the_reason_when_there_is_no_directory(path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        await Spool.open(path / "gone" / "spool.db")


async def test_record_unpacks_to_the_statement_that_stores_it(path: Path, spool: Spool) -> None:
    spool.put(turn(0))
    assert await spool.flush(FLUSH_S)
    [one] = await spool.take(1)
    statement = packed_insertion(one.record)
    assert statement.sql.startswith("INSERT INTO turns (call_sid, leg, seq, speaker,")
    assert statement.values[:4] == ("CA1", "0", 0, "agent")


def test_spool_opened_twice_keeps_its_rows(path: Path) -> None:
    database = open_spool(path)
    database.execute("INSERT INTO spool (kind, call_sid, at_ms, content) VALUES ('Turn', 'CA1', 0, '{}')")
    database.close()
    open_spool(path).close()
    assert rows(path, "SELECT count(*) FROM spool") == [(1,)]


# --- Legs that a dead machine never ended ------------------------------------------------------------


async def test_leg_that_was_cut_short_gets_its_ending_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    first = await Spool.open(path)
    for record in (started("CA1"), turn(3, "CA1"), started("CA2"), ended("CA2")):
        first.put(record)
    assert await first.flush(10)
    delivered = await first.take(10)
    await first.done([each.id for each in delivered])
    await first.close()  # the disk of a machine that was killed is the same, but for the log
    for _ in range(2):
        again = await Spool.open(path)
        records = [json.loads(each.record.content) for each in await again.take(10)]
        await again.close()
        assert records == [
            {"call_sid": "CA1", "leg": "0", "ended_ms": NOW_MS + 903, "reason": "machine_died", "turns": 1}
        ]


def endings(taken: list[Spooled]) -> list[tuple[str, str]]:
    contents = [json.loads(each.record.content) for each in taken if each.record.kind == "CallEnded"]
    return [(one["call_sid"], one["reason"]) for one in contents]


async def left_by_a_dead_machine(path: Path) -> None:
    earlier = await Spool.open(path)
    earlier.put(started("CA1"))
    assert await earlier.flush(FLUSH_S)
    await earlier.close()


async def test_full_disk_holds_up_endings_of_dead_legs_alone(
    path: Path,
) -> None:
    await left_by_a_dead_machine(path)
    disk = Disk()
    disk.full = True
    spool = await Spool.open(path, connect=disk.open_spool)
    [one] = await spool.take(10)
    assert one.record.kind == "CallStarted"
    spool.put(started("CA2"))
    disk.full = False
    assert await spool.flush(FLUSH_S)
    await spool.done([])
    assert endings(await spool.take(10)) == [("CA1", "machine_died")]
    await spool.close()


async def test_leg_whose_end_was_delivered_from_memory_is_not_ended_again(path: Path) -> None:
    disk = Disk()
    spool = await Spool.open(path, connect=disk.open_spool)
    spool.put(started("CA1"))
    assert await spool.flush(FLUSH_S)
    disk.full = True
    spool.put(ended("CA1"))
    spool.put(started("CA2"))
    assert await asyncio.to_thread(disk.asked_again.wait, FLUSH_S)
    await spool.done([each.id for each in await spool.take(10)])
    disk.full = False
    # The way of a shipper that has nothing to do.
    async with asyncio.timeout(FLUSH_S):
        while spool.refusing:
            await spool.arrival(FLUSH_S)
    await spool.done([])
    await spool.close()
    again = await Spool.open(path)
    assert endings(await again.take(10)) == [("CA2", "machine_died")]
    await again.close()


async def test_spool_that_is_replaced_keeps_the_open_legs_of_its_process(path: Path) -> None:
    disk = Disk()
    spool = await Spool.open(path, connect=disk.open_spool)
    for call_sid in ("CA1", "CA2"):
        spool.put(started(call_sid))
    assert await spool.flush(FLUSH_S)
    await everything_in(spool)
    disk.damaged = True
    spool.put(ended("CA2"))
    assert await spool.flush(FLUSH_S)
    taken = [each for each in await spool.take(10) if each.id > 2]
    assert endings(taken) == [("CA2", "caller_hung_up")]
    await everything_in(spool)
    await spool.close()
    assert damaged_files(path) == []
    again = await Spool.open(path)
    assert endings(await again.take(10)) == [("CA1", "machine_died")]
    await again.close()


async def test_legs_of_a_dead_machine_are_ended_when_its_spool_is_damaged_too(path: Path) -> None:
    await left_by_a_dead_machine(path)
    fill(path, 50)
    overwrite_a_page_in_the_middle(path)
    spool = await Spool.open(path)
    found: list[Spooled] = []
    while batch := await spool.take(100, found[-1].id if found else 0):
        found += batch
        await spool.done([each.id for each in batch])
    assert endings(found) == [("CA1", "machine_died")]
    await spool.close()
    again = await Spool.open(path)
    assert await again.take(10) == []
    await again.close()


async def test_legs_of_a_dead_machine_that_cannot_be_read_are_told_of(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await left_by_a_dead_machine(path)
    [(root,)] = rows(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'open_legs'")
    rows(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek((int(root or 0) - 1) * 4096)
        file.write(b"\xff" * 4096)
    spool = await Spool.open(path)
    [one] = await spool.take(10)
    assert one.record.kind == "CallStarted"
    await everything_in(spool)
    assert (spool.lost, spool.depth) == (0, 0)
    assert "dead_legs_unknown" in caplog.messages
    await spool.close()


# --- Records that are set aside ----------------------------------------------------------------------


def damaged_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.damaged-*"))


def fill_aside(path: Path, count: int) -> None:
    database = open_spool(path)
    with database.transaction():
        for number in range(count):
            aside.add(database, ("Turn", "CA1", None, 0, f"{number}" + "0" * 800), "HTTP 400", 7)
    database.close()


async def test_records_set_aside_outlive_a_spool_damaged_under_a_server(path: Path) -> None:
    disk = Disk()
    spool = await Spool.open(path, connect=disk.open_spool)
    for seq in range(3):
        spool.put(turn(seq))
    assert await spool.flush(FLUSH_S)
    first, *others = await spool.take(10)
    assert await spool.set_aside(first.id, "HTTP 400: so it says")
    await spool.done([each.id for each in others])
    disk.damaged = True
    spool.put(turn(3))
    assert await spool.flush(FLUSH_S)
    assert damaged_files(path) != []
    assert spool.aside == 1
    await everything_in(spool)
    assert (spool.aside, spool.lost, damaged_files(path)) == (1, 0, [])
    [(error, content)] = rows(path, "SELECT error, content FROM aside")
    assert (error, json.loads(str(content))["seq"]) == ("HTTP 400: so it says", 0)
    await spool.close()
    assert resend_aside(path).spooled == 1


async def test_records_set_aside_are_moved_once_from_a_spool_found_damaged(path: Path) -> None:
    fill_aside(path, 20)
    fill(path, 300)
    overwrite_a_page_in_the_middle(path)
    spool = await Spool.open(path)
    await everything_in(spool)
    assert spool.aside == 20
    await spool.close()
    assert rows(path, "SELECT DISTINCT error, refused_ms FROM aside") == [("HTTP 400", 7)]
    # As if the process had been killed before the file got its last name.
    [kept] = [each for each in damaged_files(path) if each.name.endswith("-read")]
    kept.rename(kept.with_name(kept.name.removesuffix("-read")))
    again = await Spool.open(path)
    await everything_in(again)
    assert again.aside == 20
    await again.close()


async def test_records_set_aside_that_cannot_be_read_any_more_count_as_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill_aside(path, 100)
    spool = await Spool.open(path, connect=open_forgetful)
    assert spool.aside == 100
    overwrite_a_page_in_the_middle(path)
    spool.put(turn(0))
    assert await spool.flush(FLUSH_S)
    await everything_in(spool)
    assert 0 < spool.aside < 100
    assert spool.lost == 100 - spool.aside
    assert "spool_records_lost" in caplog.messages
    await spool.close()


async def test_unknown_number_of_unreadable_records_set_aside_counts_as_one_lost(path: Path) -> None:
    fill_aside(path, 100)
    overwrite_a_page_in_the_middle(path)
    spool = await Spool.open(path)
    await everything_in(spool)
    assert 0 < spool.aside < 100
    assert spool.lost == 1
    await spool.close()


async def test_records_set_aside_behind_a_damaged_page_are_not_lost_silently(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill_aside(path, 100)
    database = open_spool(path)
    database.execute("DELETE FROM sqlite_sequence")
    database.close()
    overwrite_a_page_in_the_middle(path)
    spool = await Spool.open(path)
    await everything_in(spool)
    assert spool.lost == 1
    assert "spool_records_lost" in caplog.messages
    await spool.close()


async def test_record_in_memory_is_set_aside_in_the_file_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.writer.RETRY_FIRST_S", 60.0)  # the spool itself would be quicker
    disk = Disk()
    spool = await Spool.open(path, connect=disk.open_spool)
    disk.full = True
    spool.put(turn(0))
    async with asyncio.timeout(FLUSH_S):
        while not spool.refusing:
            await spool.arrival(FLUSH_S)
    [unwritten] = await spool.take(10)
    assert unwritten.id < 0
    with pytest.raises(StorageError, match="full"):
        await spool.set_aside(unwritten.id, "HTTP 400")
    assert (spool.depth, spool.aside) == (1, 0)
    disk.full = False
    assert await spool.set_aside(unwritten.id, "HTTP 400")
    assert await spool.flush(FLUSH_S)
    assert (spool.depth, spool.aside) == (0, 1)
    assert not await spool.set_aside(unwritten.id, "HTTP 400")
    await spool.close()
    assert rows(path, "SELECT (SELECT count(*) FROM spool), (SELECT count(*) FROM aside)") == [(0, 1)]
