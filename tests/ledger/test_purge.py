"""Erasure: everything of the calls meant, nothing of others, and what is erased does not come back."""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.call.records import Record
from app.ledger import purge as purging
from app.ledger.local import open_migrated, write
from app.ledger.purge import (
    ERASED_KEPT_MS,
    TABLES,
    Erased,
    OlderThan,
    OneCall,
    OneCaller,
    Target,
    number_of,
    purge,
    purge_file,
    purge_zone,
)
from app.ledger.records import refusal
from app.ledger.spool import open_spool
from app.ledger.zones import Zone
from app.storage.database import Database
from app.storage.errors import StorageError
from app.storage.store import FileStore
from tests.ledger.samples import NOW_MS, call_event, ended, started, turn

pytestmark = pytest.mark.anyio

CALLER, OTHER = "+491701234567", "+4915112345"
LATER_MS = NOW_MS + 10**9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = open_migrated(path)
    yield database
    database.close()


def whole_call(call_sid: str, caller: str = CALLER) -> list[Record]:
    """One row in each of four tables, two turns."""
    return [
        started(call_sid, caller=caller),
        turn(0, call_sid),
        turn(1, call_sid),
        call_event(0, call_sid),
        ended(call_sid),
    ]


def put_rows(database: Database, *records: Record) -> None:
    assert write(database, list(records)) == []


def set_aside(database: Database, record: Record) -> None:
    statement = refusal(record, "no such column", NOW_MS)
    database.execute(statement.sql, statement.values)


def put_claim(database: Database, call_sid: str, claimed_ms: int = NOW_MS) -> None:
    database.execute("INSERT INTO claims VALUES (?, 0, 'a', 'm1', 'fra', ?)", (call_sid, claimed_ms))


def left(database: Database) -> dict[str, set[str]]:
    """Calls with a row, by table."""
    return {
        table: sids
        for table in TABLES
        if (sids := {str(sid) for (sid,) in database.query(f"SELECT call_sid FROM {table}")})
    }


def all_of(*call_sids: str) -> dict[str, set[str]]:
    return {table: set(call_sids) for table in ("legs", "turns", "events", "endings")}


async def erase(database: Database, target: Target) -> Erased:
    return await purge(FileStore(database), target, LATER_MS, dry_run=False)


async def test_one_call_goes_whole_and_others_stay(database: Database) -> None:
    put_rows(database, *whole_call("CA1"), *whole_call("CA2"))
    set_aside(database, turn(7, "CA1"))
    put_claim(database, "CA1")
    rows = {"legs": 1, "turns": 2, "events": 1, "endings": 1, "refused": 1, "claims": 1}
    assert await erase(database, OneCall("CA1")) == Erased(frozenset({"CA1"}), rows)
    assert left(database) == all_of("CA2")


async def test_all_calls_of_a_caller_go_whole(database: Database) -> None:
    put_rows(database, *whole_call("CA1"), *whole_call("CA2", OTHER), *whole_call("CA3"))
    assert len((await erase(database, OneCaller(CALLER))).call_sids) == 2
    assert left(database) == all_of("CA2")


async def test_refused_leg_of_a_caller_leads_to_the_calls_turns(database: Database) -> None:
    put_rows(database, turn(0, "CA1"), turn(0, "CA2"))
    set_aside(database, started("CA1"))
    set_aside(database, started("CA2", caller=OTHER))
    await erase(database, OneCaller(CALLER))
    assert left(database) == {"turns": {"CA2"}, "refused": {"CA2"}}


async def test_refused_leg_that_is_not_even_json_is_found_by_the_number_in_it(database: Database) -> None:
    set_aside(database, replace(started("CA1"), started_ms=float("nan")))  # type: ignore[arg-type]  # a bug
    await erase(database, OneCaller(CALLER))
    assert left(database) == {}


async def test_call_is_old_when_nothing_of_it_is_newer(database: Database) -> None:
    last_ms = NOW_MS + 60_000
    put_rows(database, *whole_call("CA1"))
    assert len((await erase(database, OlderThan(last_ms))).call_sids) == 0
    assert left(database) == all_of("CA1")
    assert len((await erase(database, OlderThan(last_ms + 1))).call_sids) == 1
    assert left(database) == {}


@pytest.mark.parametrize("record", [started(), turn(0), call_event(0), ended()], ids=lambda r: type(r).__name__)
async def test_record_alone_grows_old_as_well(database: Database, record: Record) -> None:
    put_rows(database, record)
    await erase(database, OlderThan(LATER_MS))
    assert left(database) == {}


async def test_refused_record_alone_grows_old_as_well(database: Database) -> None:
    set_aside(database, turn(0))
    await erase(database, OlderThan(NOW_MS + 1))
    assert left(database) == {}


async def test_claims_of_a_callers_calls_are_erased_with_them(database: Database) -> None:
    put_rows(database, *whole_call("CA1"), *whole_call("CA2", OTHER))
    put_claim(database, "CA1")
    put_claim(database, "CA2")
    await erase(database, OneCaller(CALLER))
    assert left(database) == {**all_of("CA2"), "claims": {"CA2"}}


async def test_claim_alone_grows_old_and_a_newer_one_keeps_its_call(database: Database) -> None:
    put_rows(database, *whole_call("CA1"))
    put_claim(database, "CA1", LATER_MS)
    put_claim(database, "CA2")
    await erase(database, OlderThan(LATER_MS))
    assert left(database) == {**all_of("CA1"), "claims": {"CA1"}}


async def test_late_claim_of_an_erased_call_is_not_stored(database: Database) -> None:
    await erase(database, OneCall("CA1"))
    put_claim(database, "CA1")
    assert left(database) == {}


@pytest.mark.parametrize("target", [OneCall("CA1"), OneCaller(CALLER), OlderThan(LATER_MS)])
async def test_dry_run_counts_and_erases_nothing(database: Database, target: Target) -> None:
    put_rows(database, *whole_call("CA1"))
    erased = await purge(FileStore(database), target, NOW_MS, dry_run=True)
    assert (erased.call_sids, erased.rows["turns"]) == (frozenset({"CA1"}), 2)
    assert left(database) == all_of("CA1")
    assert database.query("SELECT * FROM erased") == []


async def test_more_calls_than_a_page_all_go(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purging, "PAGE", 2)
    put_rows(database, *(started(f"CA{n}") for n in range(5)))
    assert len((await erase(database, OneCaller(CALLER))).call_sids) == 5
    assert left(database) == {}


@pytest.mark.parametrize("target", [OneCall("CA1"), OneCaller(CALLER)])
async def test_late_record_of_an_erased_call_is_not_stored(database: Database, target: Target) -> None:
    put_rows(database, started("CA1"))
    await erase(database, target)
    put_rows(database, *whole_call("CA1"), *whole_call("CA2"))
    set_aside(database, turn(9, "CA1"))
    assert left(database) == all_of("CA2")


async def test_call_is_erased_before_its_first_record_comes(database: Database) -> None:
    assert len((await erase(database, OneCall("CA1"))).call_sids) == 0
    put_rows(database, *whole_call("CA1"))
    assert left(database) == {}


async def test_call_that_was_only_old_may_be_stored_again(database: Database) -> None:
    put_rows(database, started("CA1"))
    await erase(database, OlderThan(LATER_MS))
    put_rows(database, started("CA1"))
    assert left(database) == {"legs": {"CA1"}}


async def test_note_of_an_erased_call_outlives_a_shorter_limit_and_goes_at_last(database: Database) -> None:
    await erase(database, OneCall("CA1"))
    await erase(database, OlderThan(LATER_MS + 1))
    assert database.query("SELECT call_sid FROM erased") == [("CA1",)]
    await purge(FileStore(database), OlderThan(0), LATER_MS + ERASED_KEPT_MS + 1, dry_run=False)
    assert database.query("SELECT call_sid FROM erased") == []


async def test_erased_words_are_not_left_in_the_files(path: Path, database: Database) -> None:
    secret = "meine Kontonummer"
    put_rows(database, *(turn(n, said=f"{secret} {n} " + "x" * 300) for n in range(100)))
    await purge_file(path, OneCall("CA1"), NOW_MS, dry_run=False)
    found = [file.name for file in path.parent.iterdir() if secret.encode() in file.read_bytes()]
    assert found == []


async def test_log_that_somebody_reads_is_not_called_erased(path: Path, database: Database) -> None:
    put_rows(database, *whole_call("CA1"))
    store = FileStore(database)
    with closing(Database(path)) as reader, reader.snapshot():
        reader.query("SELECT * FROM turns")
        await purge(store, OneCall("CA1"), NOW_MS, dry_run=False)
        database.execute("PRAGMA busy_timeout = 0")
        with pytest.raises(StorageError, match="still in the file's log"):
            store.scrub()
    store.scrub()


# --- Primary, spool and local file together; a file stands for the primary -------------------------


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    (tmp_path / "data" / "eu").mkdir(parents=True)
    return Zone("eu", tmp_path / "data", None, lambda: "")


def spool_up(zone: Zone, *rows: tuple[str, int]) -> None:
    """Records by call and Unix ms."""
    with closing(open_spool(zone.spool)) as spool:
        for call_sid, at_ms in rows:
            spool.execute(
                "INSERT INTO spool (kind, call_sid, caller, at_ms, content) VALUES ('Turn', ?, NULL, ?, '{}')",
                (call_sid, at_ms),
            )


def spooled(zone: Zone) -> list[tuple[str, int]]:
    with closing(Database(zone.spool)) as spool:
        return [(str(sid), int(at_ms or 0)) for sid, at_ms in spool.query("SELECT call_sid, at_ms FROM spool")]


async def test_spooled_call_grows_old_whole(zone: Zone, database: Database) -> None:
    spool_up(zone, ("CA1", NOW_MS), ("CA2", NOW_MS), ("CA2", LATER_MS))
    erased = await purge_zone(zone, FileStore(database), OlderThan(LATER_MS), LATER_MS, dry_run=False)
    assert (erased.call_sids, erased.rows["spool"]) == (frozenset({"CA1"}), 1)
    assert spooled(zone) == [("CA2", NOW_MS), ("CA2", LATER_MS)]


async def test_call_with_a_newer_record_in_the_spool_is_not_old_on_the_primary(
    zone: Zone, database: Database
) -> None:
    put_rows(database, *whole_call("CA1"), *whole_call("CA2"))
    spool_up(zone, ("CA1", LATER_MS))
    erased = await purge_zone(zone, FileStore(database), OlderThan(LATER_MS), LATER_MS, dry_run=False)
    assert erased.call_sids == {"CA2"}
    assert left(database) == all_of("CA1")


async def test_local_file_from_before_there_was_a_primary_is_erased_too(zone: Zone, database: Database) -> None:
    put_rows(database, *whole_call("CA1"))
    with closing(open_migrated(zone.local)) as local:
        put_rows(local, *whole_call("CA2"), *whole_call("CA3", OTHER))
        erased = await purge_zone(zone, FileStore(database), OneCaller(CALLER), NOW_MS, dry_run=False)
        assert erased.call_sids == {"CA1", "CA2"}
        assert left(local) == all_of("CA3")


async def test_spool_of_a_primary_that_is_no_longer_configured_is_erased_too(zone: Zone) -> None:
    spool_up(zone, ("CA1", NOW_MS), ("CA2", NOW_MS))
    erased = await purge_zone(zone, None, OneCall("CA1"), NOW_MS, dry_run=False)
    assert (erased, spooled(zone)) == (Erased(frozenset({"CA1"}), {"spool": 1}), [("CA2", NOW_MS)])


def test_every_table_with_something_of_a_call_is_erased_from(database: Database) -> None:
    tables = [str(name) for (name,) in database.query("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    of_calls = {
        t for t in tables if database.query(f"SELECT 1 FROM pragma_table_info('{t}') WHERE name = 'call_sid'")
    }
    assert of_calls == {*TABLES, "erased"}


@pytest.mark.parametrize(
    ("typed", "number"),
    [("+4930123456", "+4930123456"), (" +49 (30) 123-456 ", "+4930123456"), ("+1 202.555.0100", "+12025550100")],
)
def test_number_is_read_as_people_write_it(typed: str, number: str) -> None:
    assert number_of(typed) == number


@pytest.mark.parametrize(
    "typed", ["", "4930123456", "anonymous", "+0301234", "+49", "+49 30 12a45", "+" + "1" * 16]
)
def test_what_is_no_number_is_refused(typed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(typed))):
        number_of(typed)
