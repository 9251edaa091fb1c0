"""The commands about calls and the ledger, as an operator meets them: on a local file, and with a real primary."""

import asyncio
import csv
import io
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from app.call.evidence import BackendChoice, Evidence, Route
from app.call.records import CallEvent, Record
from app.cli import calls as cli_calls
from app.cli.shared import record_settings
from app.ledger.local import open_migrated, write
from app.ledger.records import insertion
from app.ledger.spool import open_spool
from app.storage.database import Database, open_for_writing
from app.storage.primary import Primary, Stored
from app.world.process import free_port
from tests.commands import Nearcall, run_nearcall
from tests.ledger.nobody import nobody
from tests.ledger.samples import NOW_MS, call_event, ended, rows, started, turn
from tests.ledger.sqld import Sqld, token

ROOT = Path(__file__).parents[2]
CALL, OTHER = "CA" + "1" * 32, "CA" + "2" * 32
CALLER, SOMEBODY = "+491701234567", "+4915112345"


def one_call(call_sid: str = CALL, caller: str = CALLER) -> list[Record]:
    said = replace(turn(1, call_sid, said="Grüß Gott, wie kann ich helfen?"), interrupted=True, said_ms=2_000)
    return [
        started(call_sid, caller=caller),
        replace(turn(0, call_sid), model="big", cost_microusd=18_120),
        replace(said, heard="Grüß Gott,", heard_ms=700, answer_heard_ms=750, cost_microusd=1_880),
        call_event(0, call_sid),
        ended(call_sid),
    ]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def nearcall(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nearcall:
    monkeypatch.chdir(tmp_path)

    return lambda *arguments, **environ: run_nearcall(
        *arguments, **{"NEARCALL_DATA_DIR": str(data_dir), **environ}
    )


@pytest.fixture
def ledger(data_dir: Path) -> Iterator[Database]:
    """The local file, with two calls in it."""
    data_dir.mkdir()
    database = open_migrated(data_dir / "ledger.db")
    assert write(database, [*one_call(), *one_call(OTHER, SOMEBODY)]) == []
    yield database
    database.close()


# --- calls -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ledger")
def test_list_has_a_line_for_each_call(nearcall: Nearcall) -> None:
    ran = nearcall("calls", "list")
    header, *lines = ran.out.splitlines()
    assert ran.code == 0
    assert header.split()[2:] == ["call", "from", "to", "region", "length", "turns", "cost", "ended"]
    assert {line.split()[2] for line in lines} == {CALL, OTHER}
    assert "$0.0200" in lines[0]
    assert "1:00" in lines[0]
    assert lines[0].endswith("caller_hung_up")


@pytest.mark.usefixtures("ledger")
def test_list_as_json_is_one_object_a_line(nearcall: Nearcall) -> None:
    ran = nearcall("calls", "list", "--json", "--limit", "1")
    [call] = ran.objects
    assert (call["started_ms"], call["cost_microusd"], call["turns"]) == (NOW_MS, 20_000, 2)


@pytest.mark.usefixtures("ledger")
def test_list_since_an_instant_after_all_calls_is_empty(nearcall: Nearcall) -> None:
    assert nearcall("calls", "list", "--json", "--since", "2100-01-01").out == ""


@pytest.mark.usefixtures("ledger")
def test_show_tells_what_was_said_and_what_of_it_was_heard(nearcall: Nearcall) -> None:
    text = nearcall("calls", "show", CALL).out
    assert f"from {CALLER} to +4930555, tenant acme, zone eu" in text
    assert "0.7 of 2.0 s heard, then interrupted, up to: Grüß Gott,], answered after 0.75 s" in text
    assert "* backend_lost code=1006" in text
    assert "caller_hung_up after 1:00" in text
    assert "2 turns, cost $0.0200" in text


@pytest.mark.usefixtures("ledger")
def test_show_as_json_has_every_record(nearcall: Nearcall) -> None:
    [call] = nearcall("calls", "show", CALL, "--json").objects
    assert [len(call[part]) for part in ("legs", "turns", "events", "endings")] == [1, 2, 1, 1]
    assert call["turns"][0]["speaker"] == "agent"


@pytest.mark.usefixtures("ledger")
def test_call_that_is_not_there_is_told(nearcall: Nearcall) -> None:
    ran = nearcall("calls", "show", "CA404")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "nearcall: The ledger has no call CA404 in zone global.\n"


def test_what_a_model_wrote_cannot_command_the_terminal(nearcall: Nearcall, ledger: Database) -> None:
    assert write(ledger, [turn(9, CALL, said="\x1b[2Jgone")]) == []
    assert "\x1b" not in nearcall("calls", "show", CALL).out
    assert "\\x1b[2Jgone" in nearcall("calls", "show", CALL).out


@pytest.mark.usefixtures("ledger")
def test_export_writes_a_json_line_for_each_turn_with_its_call(nearcall: Nearcall) -> None:
    turns = nearcall("calls", "export").objects
    assert [(each["call_sid"], each["seq"]) for each in turns] == [(CALL, 0), (OTHER, 0), (CALL, 1), (OTHER, 1)]
    assert (turns[0]["caller"], turns[0]["model"], turns[0]["cost_microusd"]) == (CALLER, "big", 18_120)


@pytest.mark.usefixtures("ledger")
def test_export_as_csv_comes_back_whole(nearcall: Nearcall) -> None:
    lines = list(csv.DictReader(io.StringIO(nearcall("calls", "export", "--format", "csv").out)))
    assert [line["said"] for line in lines[2:]] == ["Grüß Gott, wie kann ich helfen?"] * 2
    assert lines[2]["caller"] == CALLER


@pytest.mark.usefixtures("ledger")
def test_export_takes_more_than_a_page(nearcall: Nearcall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_calls, "PAGE", 3)
    assert len(nearcall("calls", "export").objects) == 4


@pytest.mark.usefixtures("ledger")
def test_export_of_a_span_begins_in_it_and_ends_before_its_end(nearcall: Nearcall) -> None:
    span = ("--since", "2025-11-20T10:00:00.124", "--until", "2025-11-20T10:00:00.124")
    assert nearcall("calls", "export", *span).out == ""
    span = ("--since", "2025-11-20T10:00:00.124", "--until", "2025-11-20T10:00:00.125")
    assert [each["seq"] for each in nearcall("calls", "export", *span).objects] == [1, 1]


@pytest.mark.usefixtures("ledger")
def test_export_into_a_file_says_how_much_it_was(nearcall: Nearcall, tmp_path: Path) -> None:
    ran = nearcall("calls", "export", "--output", "turns.jsonl")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "4 turns written to turns.jsonl\n"
    assert len((tmp_path / "turns.jsonl").read_text("utf-8").splitlines()) == 4


@pytest.mark.usefixtures("ledger")
def test_export_into_a_file_that_cannot_be_written_is_told(nearcall: Nearcall) -> None:
    ran = nearcall("calls", "export", "--output", "nowhere/turns")
    assert (ran.code, ran.err) == (1, "nearcall: Cannot write nowhere/turns: No such file or directory.\n")


def test_export_that_fails_leaves_the_one_before(nearcall: Nearcall, tmp_path: Path) -> None:
    (tmp_path / "turns.jsonl").write_text("yesterday's")
    assert nearcall("calls", "export", "--output", "turns.jsonl").code == 1
    assert [(file.name, file.read_text("utf-8")) for file in tmp_path.iterdir()] == [
        ("turns.jsonl", "yesterday's")
    ]


@pytest.mark.parametrize("arguments", [("list",), ("show", CALL), ("export",), ("tail",)], ids=" ".join)
def test_ledger_that_is_not_there_is_told(nearcall: Nearcall, arguments: tuple[str, ...]) -> None:
    ran = nearcall("calls", *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert "there is no ledger at" in ran.err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("list", "--zone", "mars"), "one of global, eu"),
        (("list", "--since", "yesterday"), "yesterday"),
        (("list", "--limit", "0"), "--limit"),
        (("export", "--until", "5"), "'5'"),
        (("export", "--format", "xml"), "xml"),
        (("show",), "CALL"),
    ],
)
def test_wrong_command_line_is_told(nearcall: Nearcall, arguments: tuple[str, ...], why: str) -> None:
    ran = nearcall("calls", *arguments)
    assert ran.code == 2
    assert why in ran.err


@pytest.mark.usefixtures("ledger")
def test_eu_calls_are_not_to_be_had_outside_the_eu(nearcall: Nearcall) -> None:
    ran = nearcall("calls", "list", "--zone", "eu", FLY_REGION="iad")
    assert ran.code == 1
    assert "not kept in iad" in ran.err


def test_tail_prints_turns_as_they_are_recorded_and_old_ones_not(
    nearcall: Nearcall, ledger: Database, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time stands at the sample's; the second look finds a new turn, the third one ends the command.

    A turn that began more than a minute ago is too late: no look reads that far back.
    """
    late = replace(turn(3, CALL, said="Spät."), started_ms=NOW_MS - 60_000)
    monkeypatch.setattr(cli_calls, "now_ms", lambda: NOW_MS + 1_000)
    looks = threading.Semaphore(2)

    async def next_look(_delay_s: float) -> None:
        if not looks.acquire(blocking=False):
            raise KeyboardInterrupt
        database = open_migrated(data_dir / "ledger.db")
        write(database, [turn(2, CALL, said="Neu."), turn(2, OTHER, said="Fremd."), late])
        database.close()

    monkeypatch.setattr(asyncio, "sleep", next_look)
    ran = nearcall("calls", "tail", CALL)
    assert ran.code == 130
    assert [line.split("agent: ")[1] for line in ran.out.splitlines()] == ["Neu.  [0.0 s]"]


# --- ledger, on a file -------------------------------------------------------------------------


def test_migrate_makes_the_local_ledger_and_then_has_nothing_to_do(nearcall: Nearcall) -> None:
    first, second = nearcall("migrate", "--json"), nearcall("migrate", "--json")
    assert (first.code, second.code) == (0, 0)
    assert first.objects[0]["applied"][0] == "0001_calls_turns_events.sql"
    assert second.objects == [{"zone": "global", "applied": []}]


@pytest.mark.usefixtures("ledger")
def test_status_of_a_local_ledger_is_good(nearcall: Nearcall) -> None:
    ran = nearcall("ledger", "status", "--json")
    assert ran.code == 0
    assert ran.objects[0]["problems"] == []


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    "command",
    ["ledger status", "ledger resend", "ledger purge --older-than 30d", "ledger purge --caller +4930111111"],
)
def test_spool_that_a_killed_server_left_empty_is_one_without_records(
    nearcall: Nearcall, data_dir: Path, command: str
) -> None:
    (data_dir / "global").mkdir()
    (data_dir / "global" / "spool.db").touch(mode=0o600)
    ran = nearcall(*command.split())
    assert (ran.code, "no such table" in ran.err) == (0, False)


def test_status_of_an_old_file_names_what_it_lacks(nearcall: Nearcall, data_dir: Path) -> None:
    data_dir.mkdir()
    open_for_writing(data_dir / "ledger.db").close()
    ran = nearcall("ledger", "status")
    assert ran.code == 1
    assert "the ledger lacks 0001_calls_turns_events.sql: run 'nearcall migrate'" in ran.err


def test_purge_erases_a_callers_calls_after_a_dry_run_said_so(nearcall: Nearcall, ledger: Database) -> None:
    dry = nearcall("ledger", "purge", "--caller", "+49 170 1234567", "--dry-run")
    assert (
        dry.out == "global: 1 calls would be erased (1 legs, 2 turns, 1 events, 1 endings, 0 refused, 0 claims)\n"
    )
    assert ledger.query("SELECT count(*) FROM legs") == [(2,)]
    wet = nearcall("ledger", "purge", "--caller", "+49 170 1234567")
    assert wet.out == "global: 1 calls were erased (1 legs, 2 turns, 1 events, 1 endings, 0 refused, 0 claims)\n"
    assert ledger.query("SELECT call_sid FROM legs") == [(OTHER,)]


def test_purge_by_age_erases_what_is_older(nearcall: Nearcall, ledger: Database) -> None:
    assert nearcall("ledger", "purge", "--older-than", "36500d", "--json").objects[0]["calls"] == 0
    assert nearcall("ledger", "purge", "--older-than", "1s", "--json").objects[0]["calls"] == 2
    assert ledger.query("SELECT * FROM turns") == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "exactly one"),
        (("--call", CALL, "--older-than", "1d"), "exactly one"),
        (("--call", "CA1"), "32"),
        (("--caller", "anonymous"), "anonymous"),
        (("--older-than", "2026-01-01"), "30d"),
    ],
)
def test_purge_that_is_not_clear_erases_nothing(
    nearcall: Nearcall, ledger: Database, arguments: tuple[str, ...], why: str
) -> None:
    ran = nearcall("ledger", "purge", *arguments)
    assert ran.code == 2
    assert why in ran.err
    assert ledger.query("SELECT count(*) FROM legs") == [(2,)]


@pytest.mark.usefixtures("ledger")
def test_damaged_spool_that_was_put_aside_is_named_until_it_is_deleted(nearcall: Nearcall, data_dir: Path) -> None:
    (data_dir / "global").mkdir()
    for suffix in ("", "-wal", "-shm"):
        (data_dir / "global" / f"spool.db.damaged-1{suffix}").touch()
    status, purge = nearcall("ledger", "status"), nearcall("ledger", "purge", "--call", CALL)
    assert (status.code, purge.code) == (1, 1)
    assert "spool.db.damaged-1 may have what callers said" in status.err
    assert status.err.count("spool.db.damaged-1") == purge.err.count("spool.db.damaged-1") == 1
    assert "1 calls were erased" in purge.out
    assert "spool.db.damaged-1 is damaged and was not looked into" in purge.err


@pytest.mark.usefixtures("ledger")
def test_local_ledger_beside_a_configured_database_is_named(nearcall: Nearcall) -> None:
    ran = nearcall("ledger", "status", TURSO_URL=f"http://127.0.0.1:{free_port()}")
    assert "ledger.db is from before there was a database" in ran.err


@pytest.mark.usefixtures("ledger", "spool")
def test_spool_without_a_database_is_named(nearcall: Nearcall) -> None:
    ran = nearcall("ledger", "status")
    assert ran.code == 1
    assert "spool: 3 records wait: a server that starts takes them into " in ran.err


# --- With a primary ----------------------------------------------------------------------------


@pytest.fixture
def turso(sqld: Sqld) -> dict[str, str]:
    return {"TURSO_URL": sqld.url, "TURSO_TOKEN": token()}


def put(sqld: Sqld, *records: Record) -> None:
    async def send() -> None:
        async with Primary(sqld.url, token) as primary:
            assert await primary.batch([insertion(record) for record in records]) == Stored()

    asyncio.run(send())


@pytest.fixture
def spool(data_dir: Path) -> Path:
    """With turns of both calls in it, and the first record of a third one."""
    path = data_dir / "global" / "spool.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    database = open_spool(path)
    for call_sid, caller in ((CALL, None), (OTHER, None), ("CA" + "3" * 32, CALLER)):
        database.execute(
            "INSERT INTO spool (kind, call_sid, caller, at_ms, content) VALUES ('Turn', ?, ?, ?, '{}')",
            (call_sid, caller, NOW_MS),
        )
    database.close()
    return path


def spooled(spool: Path) -> list[str]:
    return [str(sid) for (sid,) in rows(spool, "SELECT call_sid FROM spool ORDER BY id")]


def test_migrate_makes_the_tables_of_a_primary(nearcall: Nearcall, turso: dict[str, str], sqld: Sqld) -> None:
    assert nearcall("migrate", **turso).code == 0
    assert nearcall("migrate", "--json", **turso).objects == [{"zone": "global", "applied": []}]
    assert sqld.query("SELECT count(*) FROM turns") == [(0,)]


def test_migrate_outside_the_eu_reaches_the_eu_database_and_purge_does_not(
    nearcall: Nearcall, turso: dict[str, str]
) -> None:
    eu = {"TURSO_EU_URL": turso["TURSO_URL"], "TURSO_EU_TOKEN": token(), "FLY_REGION": "iad"}
    assert [each["zone"] for each in nearcall("migrate", "--json", **eu).objects] == ["global", "eu"]
    purged = nearcall("ledger", "purge", "--call", CALL, "--json", **eu).objects
    assert [each["zone"] for each in purged] == ["global"]


def test_zone_that_cannot_be_migrated_is_told_and_the_others_are_migrated(
    nearcall: Nearcall, turso: dict[str, str], sqld: Sqld
) -> None:
    eu = {"TURSO_EU_URL": turso["TURSO_URL"], "TURSO_EU_TOKEN": token()}
    other = {"TURSO_URL": turso["TURSO_URL"].replace("127.0.0.1", "localhost"), "TURSO_TOKEN": token("ro")}
    ran = nearcall("migrate", **eu, **other)
    assert ran.code == 1
    assert ran.err.startswith(
        "nearcall: global: 0001_calls_turns_events.sql failed: the primary refuses the token"
    )
    assert ran.out.startswith("eu: 0001_calls_turns_events.sql, ")
    assert sqld.query("SELECT count(*) FROM turns") == [(0,)]


@pytest.mark.usefixtures("spool")
def test_status_tells_spool_and_round_trip_and_that_no_replica_is_here(
    nearcall: Nearcall, turso: dict[str, str]
) -> None:
    nearcall("migrate", **turso)
    ran = nearcall("ledger", "status", "--json", **turso)
    [zone] = ran.objects
    assert (ran.code, zone["zone"], zone["spool_depth"]) == (1, "global", 3)
    assert zone["round_trip_ms"] > 0
    assert zone["spool_oldest_s"] > 0
    assert zone["problems"] == ["replica: there is none; a running server keeps one"]


def test_status_of_a_primary_that_is_not_there_says_so(nearcall: Nearcall) -> None:
    ran = nearcall("ledger", "status", TURSO_URL=f"http://127.0.0.1:{free_port()}")
    assert ran.code == 1
    assert "nearcall: global: primary: cannot reach 127.0.0.1:" in ran.err


def test_status_of_a_token_that_may_only_read_says_so(nearcall: Nearcall, turso: dict[str, str]) -> None:
    nearcall("migrate", **turso)
    ran = nearcall("ledger", "status", **{**turso, "TURSO_TOKEN": token("ro")})
    assert ran.code == 1
    assert "nearcall: global: primary: the primary refuses the token" in ran.err


def test_newer_schema_is_left_to_a_newer_program(nearcall: Nearcall, turso: dict[str, str], sqld: Sqld) -> None:
    nearcall("migrate", **turso)
    sqld.execute("INSERT INTO schema_migrations VALUES (999, '0999_future.sql', 'x', 1)")
    assert "0999_future.sql" not in nearcall("ledger", "status", **turso).err
    told = nearcall("migrate", **turso).err
    assert "the ledger has 0999_future.sql" in told
    assert "run a newer program" in told


def test_calls_without_a_copy_of_the_primary_are_told_who_keeps_one(
    nearcall: Nearcall, turso: dict[str, str]
) -> None:
    ran = nearcall("calls", "list", **turso)
    assert ran.code == 1
    assert "a running server keeps one there" in ran.err


def test_purge_erases_a_caller_on_primary_and_spool_and_late_records_too(
    nearcall: Nearcall, turso: dict[str, str], sqld: Sqld, spool: Path
) -> None:
    nearcall("migrate", **turso)
    put(sqld, *one_call(), *one_call(OTHER, SOMEBODY))
    ran = nearcall("ledger", "purge", "--caller", CALLER, "--json", **turso)
    assert ran.objects == [
        {
            "zone": "global",
            "dry_run": False,
            "calls": 2,
            "legs": 1,
            "turns": 2,
            "events": 1,
            "endings": 1,
            "refused": 0,
            "claims": 0,
            "spool": 2,
        }
    ]
    assert spooled(spool) == [OTHER]
    put(sqld, *one_call())
    assert sqld.query("SELECT DISTINCT call_sid FROM turns") == [(OTHER,)]
    assert sqld.query("SELECT call_sid FROM legs") == [(OTHER,)]


def test_dry_purge_of_a_primary_erases_nothing(
    nearcall: Nearcall, turso: dict[str, str], sqld: Sqld, spool: Path
) -> None:
    nearcall("migrate", **turso)
    put(sqld, *one_call())
    ran = nearcall("ledger", "purge", "--call", CALL, "--dry-run", "--json", **turso)
    assert (ran.objects[0]["turns"], ran.objects[0]["spool"]) == (2, 1)
    assert sqld.query("SELECT count(*) FROM turns") == [(2,)]
    assert sqld.query("SELECT * FROM erased") == []
    assert len(spooled(spool)) == 3


def test_purge_by_age_reaches_primary_and_spool(
    nearcall: Nearcall, turso: dict[str, str], sqld: Sqld, spool: Path
) -> None:
    nearcall("migrate", **turso)
    put(sqld, *one_call())
    [zone] = nearcall("ledger", "purge", "--older-than", "1s", "--json", **turso).objects
    assert (zone["calls"], zone["spool"]) == (3, 3)
    assert (sqld.query("SELECT * FROM legs"), spooled(spool)) == ([], [])


def test_purge_that_the_primary_refuses_erases_nothing_and_says_so(
    nearcall: Nearcall, turso: dict[str, str], spool: Path
) -> None:
    nearcall("migrate", **turso)
    ran = nearcall("ledger", "purge", "--call", CALL, **{**turso, "TURSO_TOKEN": token("ro")})
    assert ran.code == 1
    assert "the primary refuses the token" in ran.err
    assert len(spooled(spool)) == 3


@pytest.mark.parametrize("bad", ["libsql://", "http://db.nearcall.test", "turso.example"])
@pytest.mark.parametrize("command", [("migrate",), ("calls", "list"), ("ledger", "status")], ids=" ".join)
def test_malformed_url_is_one_clear_line(nearcall: Nearcall, command: tuple[str, ...], bad: str) -> None:
    ran = nearcall(*command, TURSO_URL=bad, TURSO_TOKEN="t")
    assert ran.code == 1
    assert ran.err.startswith("nearcall: TURSO_URL is malformed")
    assert len(ran.err.splitlines()) == 1


# --- residency ---------------------------------------------------------------------------------


@pytest.fixture
def eu_ledger(data_dir: Path) -> Iterator[Database]:
    """The local file of zone eu, with a call that stayed there."""
    (data_dir / "eu").mkdir(parents=True)
    (open_migrated(data_dir / "ledger.db")).close()
    database = open_migrated(data_dir / "eu" / "ledger.db")
    told: tuple[tuple[str, Evidence], ...] = (
        ("handled", Route("ams", "fra", "ie1", ("iad",))),
        ("backend", BackendChoice("openai-eu", "marin", ("eu",), "only")),
    )
    events = [replace(call_event(seq, CALL), kind=kind, evidence=each) for seq, (kind, each) in enumerate(told)]
    assert write(database, [replace(started(CALL), backend="openai-eu"), *events, ended(CALL)]) == []
    yield database
    database.close()


@pytest.mark.usefixtures("eu_ledger")
def test_residency_report_shows_each_part_of_a_call_that_stayed(nearcall: Nearcall) -> None:
    ran = nearcall("residency", "report")
    assert ran.code == 0
    columns = ran.out.splitlines()[1].split()[2:]
    assert columns == [CALL, "acme", "eu", "ams", "ie1", "fra", "iad", "openai-eu", "eu", "eu", "yes"]
    assert ran.out.splitlines()[-1] == "1 call, every promise kept"
    [call] = nearcall("residency", "report", "--json", "--tenant", "acme").objects
    assert (call["machine"], call["edge"], call["by"], call["breaches"]) == ("fra", "ams", "iad", [])
    assert nearcall("residency", "report", "--json", "--tenant", "other").out == ""
    assert nearcall("residency", "report", "--json", "--since", "2100-01-01").out == ""
    assert len(nearcall("residency", "report", "--json", "--zone", "eu").objects) == 1
    assert nearcall("residency", "report", "--json", "--zone", "global").out == ""


def test_residency_report_refuses_a_zone_that_is_not_defined(nearcall: Nearcall) -> None:
    ran = nearcall("residency", "report", "--zone", "mars")
    assert ran.code == 2
    assert "should be one of global, eu" in " ".join(ran.err.split())


@pytest.mark.usefixtures("eu_ledger")
def test_page_of_a_call_says_how_it_came_and_why_it_got_its_backend(nearcall: Nearcall) -> None:
    page = nearcall("calls", "show", CALL, "--zone", "eu").out
    assert "* handled edge=ams machine=fra twilio=ie1 by=iad\n" in page
    assert "* backend openai-eu voice=marin residency=eu because=only\n" in page
    [call] = nearcall("calls", "show", CALL, "--zone", "eu", "--json").objects
    assert [each["evidence"]["residency"] for each in call["events"] if each["kind"] == "backend"] == [["eu"]]


def test_voice_of_a_tenant_cannot_pass_for_a_promise(nearcall: Nearcall, eu_ledger: Database) -> None:
    forged = replace(
        call_event(7, CALL), kind="backend", evidence=BackendChoice("b", "a residency=eu", (), "next")
    )
    assert write(eu_ledger, [forged]) == []
    page = nearcall("calls", "show", CALL, "--zone", "eu").out
    assert '* backend b voice="a residency=eu" residency=none because=next\n' in page
    assert f"{CALL} of acme: answered by b, which does not promise eu" in nearcall("residency", "report").err


@pytest.mark.usefixtures("eu_ledger", "ledger_of_strays")
def test_residency_report_fails_for_a_call_that_left(nearcall: Nearcall) -> None:
    ran = nearcall("residency", "report")
    assert ran.code == 1
    assert f"nearcall: {OTHER} of acme: recorded in the database of zone global" in ran.err
    assert "every promise kept" not in ran.out
    assert len(nearcall("residency", "report", "--json").objects) == 2
    # A call of zone eu in the database of zone global is a call of zone eu.
    assert OTHER in nearcall("residency", "report", "--zone", "eu").err
    assert nearcall("residency", "report", "--zone", "global").code == 0


@pytest.fixture
def ledger_of_strays(data_dir: Path, eu_ledger: Database) -> None:
    database = open_migrated(data_dir / "ledger.db")
    assert write(database, [started(OTHER)]) == []
    database.close()


@pytest.mark.usefixtures("ledger")
def test_residency_report_outside_the_zone_says_what_it_cannot_see(nearcall: Nearcall) -> None:
    ran = nearcall("residency", "report", FLY_REGION="nrt")
    assert "calls of zone eu are not kept in nrt: ask on a machine of that zone as well" in ran.err


# --- A database that lost everything, and records that were refused -----------------------------------


def copied(data_dir: Path) -> None:
    """A copy, on this machine, of a database that had one call."""
    (data_dir / "global").mkdir(parents=True)
    database = open_migrated(data_dir / "global" / "replica.db")
    assert write(database, one_call()) == []
    database.close()


def test_migrate_refuses_an_empty_database_beside_a_copy_that_has_calls(
    nearcall: Nearcall, turso: dict[str, str], sqld: Sqld, data_dir: Path
) -> None:
    copied(data_dir)
    ran = nearcall("migrate", **turso)
    assert ran.code == 1
    assert "the database is empty" in ran.err
    assert "has 1 calls and 0 tenants" in ran.err
    assert sqld.query("SELECT count(*) FROM sqlite_schema") == [(0,)]
    assert "the database is empty" in nearcall("ledger", "status", **turso).err


def test_migrate_replaces_a_lost_database_when_it_is_told_so(
    nearcall: Nearcall, turso: dict[str, str], sqld: Sqld, data_dir: Path
) -> None:
    copied(data_dir)
    assert nearcall("migrate", "--replace-lost-database", "eu", **turso).code == 2
    assert nearcall("migrate", "--replace-lost-database", "global", **turso).code == 0
    assert sqld.query("SELECT count(*) FROM database_replacements") == [(1,)]
    assert nearcall("migrate", **turso).code == 0


def test_migrated_database_that_is_not_the_copied_one_is_told(
    nearcall: Nearcall, turso: dict[str, str], data_dir: Path
) -> None:
    assert nearcall("migrate", **turso).code == 0
    copied(data_dir)
    assert "another database than before" in nearcall("migrate", **turso).err
    assert "another database than before" in nearcall("ledger", "status", **turso).err


def test_refused_record_is_told_by_status_and_sent_again_by_resend(nearcall: Nearcall, ledger: Database) -> None:
    assert write(ledger, [replace(call_event(5), at_ms="late")]) != []  # type: ignore[arg-type]
    ran = nearcall("ledger", "status")
    assert (ran.code, "1 records were refused" in ran.err) == (1, True)
    assert nearcall("ledger", "resend").code == 1
    ledger.execute("UPDATE refused SET content = json_set(content, '$.at_ms', 7)")
    [sent] = nearcall("ledger", "resend", "--json").objects
    assert (sent["stored"], sent["refused"]) == (1, [])
    assert nearcall("ledger", "status").code == 0


def test_purge_erases_what_was_set_aside_on_this_machine(
    nearcall: Nearcall, ledger: Database, data_dir: Path
) -> None:
    (data_dir / "global").mkdir()
    spool = open_spool(data_dir / "global" / "spool.db")
    spool.execute(
        "INSERT INTO aside VALUES (1, 'CallStarted', ?, ?, 0, '{}', 'HTTP 413', 0)", ("CA" + "9" * 32, CALLER)
    )
    spool.close()
    [erased] = nearcall("ledger", "purge", "--caller", CALLER, "--json").objects
    assert erased["spool"] == 1
    assert rows(data_dir / "global" / "spool.db", "SELECT count(*) FROM aside") == [(0,)]


# --- Calls that nobody answered -----------------------------------------------------------------------


def test_list_failed_has_the_calls_that_were_not_taken_and_show_tells_why(
    nearcall: Nearcall, ledger: Database
) -> None:
    refused = "CA" + "8" * 32
    not_taken: list[Record] = [
        replace(started(refused, f"{NOW_MS}.refused"), stream_sid="", backend="", model=""),
        CallEvent(refused, f"{NOW_MS}.refused", 0, NOW_MS, "end", "webhook full"),
        replace(ended(refused, f"{NOW_MS}.refused", NOW_MS), reason="not_taken", turns=0),
        # The stream of this one came to another machine: it is no failure.
        replace(started(CALL, "0.0", NOW_MS - 5_000), stream_sid="", region="iad"),
        replace(ended(CALL, "0.0", NOW_MS - 1_000), reason="stream_never_came", turns=0),
    ]
    assert write(ledger, not_taken) == []
    [failed] = nearcall("calls", "list", "--failed", "--json").objects
    assert (failed["call_sid"], failed["end_reason"], failed["legs"]) == (refused, "not_taken", 0)
    everything = {call["call_sid"]: call for call in nearcall("calls", "list", "--json").objects}
    assert (everything[CALL]["region"], everything[CALL]["end_reason"]) == ("fra", "caller_hung_up")
    text = nearcall("calls", "show", refused).out
    assert "nobody talked, no backend was asked: not_taken" in text
    assert "* end webhook full" in text


def test_exported_csv_has_no_formula_and_keeps_its_numbers_and_json(nearcall: Nearcall, ledger: Database) -> None:
    formula = '=HYPERLINK("http://evil")'
    assert write(ledger, [started("CA7"), replace(turn(0, "CA7", said=formula), said_ms=-5)]) == []
    table = list(csv.DictReader(io.StringIO(nearcall("calls", "export", "--format", "csv").out)))
    [row] = [each for each in table if each["call_sid"] == "CA7"]
    assert (row["said"], row["said_ms"], row["caller"]) == (f"'{formula}", "-5", CALLER)
    [turned] = [each for each in nearcall("calls", "export").objects if each["call_sid"] == "CA7"]
    assert (turned["said"], turned["caller"]) == (formula, CALLER)


# --- Where nothing can be written, and where nobody reads ----------------------------------------------


def test_calls_on_a_disk_that_cannot_be_written_are_listed(ledger: Database, data_dir: Path) -> None:
    ledger.close()
    assert not list(data_dir.glob("*-wal"))
    listing = f"{sys.executable} -c 'from app.cli.main import main; main()' calls list --json"
    mounted = f"mount --bind {data_dir} {data_dir} && mount -o remount,bind,ro {data_dir} && exec {listing}"
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a disk read-only")
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted],
        env={"NEARCALL_DATA_DIR": str(data_dir), "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr, len(ran.stdout.splitlines())) == (0, "", 2)


def test_reader_that_goes_away_ends_a_command_without_a_word(ledger: Database, data_dir: Path) -> None:
    """As `nearcall calls export | head -1`: more than a pipe holds, and nobody who reads on."""
    assert write(ledger, [turn(seq, said="x" * 500) for seq in range(1_000)]) == []
    ran = subprocess.Popen(
        [sys.executable, "-c", "from app.cli.main import main; main()", "calls", "export"],
        env={"NEARCALL_DATA_DIR": str(data_dir)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert ran.stdout is not None
    assert ran.stderr is not None
    with ran.stdout as out, ran.stderr as err:
        assert out.readline().startswith(b"{")
        out.close()
        assert err.read() == b""
    assert ran.wait(30) == 141


@pytest.mark.parametrize(
    "command",
    [
        "calls list",
        "calls show CA404",
        "calls export",
        "ledger status",
        "ledger resend",
        "ledger purge --older-than 30d",
        "residency report",
        "tenants list",
        "tenants export",
        "migrate",
    ],
)
def test_data_directory_that_cannot_be_looked_into_is_one_line(command: str, nearcall: Nearcall) -> None:
    directory = "/tmp/" + 300 * "a"
    ran = nearcall(*command.split(), NEARCALL_DATA_DIR=directory)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"nearcall: Cannot look into {directory} (NEARCALL_DATA_DIR): File name too long.\n"


@pytest.mark.parametrize("zone", [".", "eu"])
def test_private_directory_of_another_user_is_one_line_of_advice(
    zone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.chdir("/")
        monkeypatch.setenv("NEARCALL_DATA_DIR", name)
        private = Path(name) / zone
        private.mkdir(exist_ok=True)
        Path(name).chmod(0o755)
        record_settings(Path(".env"))  # imports what nobody may not, where Python is in root's home
        private.chmod(0o000)
        with nobody(), pytest.raises(typer.Exit) as ended:
            record_settings(Path(".env"))
        private.chmod(0o700)
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == (
        f"nearcall: Cannot look into {private} (NEARCALL_DATA_DIR): Permission denied. Run this as the user who"
        " runs the server.\n"
    )
