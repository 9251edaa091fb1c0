"""A whole server with primaries: a call leaves traces in its zone alone, and a bad primary stops no call."""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.call.plan import Plan
from app.call.records import CallStarted
from app.cli.tenant_store import write_tenants
from app.config import PrimarySettings
from app.ledger.purge import TABLES
from app.ledger.queries import Queries
from app.ledger.zones import Zone
from app.sim.phone.events import EndReason
from app.sim.phone.phone import Phone
from app.storage.errors import StorageError
from app.storage.migrations import known_migrations
from app.storage.primary import Primary
from app.storage.primary_migrations import migrate_primary
from app.storage.store import PrimaryStore
from app.tenants.store import TenantRows
from app.world.process import free_port
from tests.bridge.world import OPERATOR, World, world
from tests.ledger.samples import rows
from tests.ledger.sqld import Sqld, token
from tests.tenants.samples import rows as tenant_rows
from tests.waiting import a_moment

pytestmark = pytest.mark.anyio

HELLO = Plan(greeting="Hello.")
NOTHING = frozenset[str]()
"""What a backend promises when no zone but the global one can have calls."""


@pytest.fixture
def eu_sqld(tmp_path: Path) -> Iterator[Sqld]:
    with Sqld(tmp_path / "eu-sqld") as server:
        yield server


@pytest.fixture
def primaries(sqld: Sqld, eu_sqld: Sqld) -> Mapping[str, PrimarySettings]:
    return {"global": PrimarySettings(sqld.url, token), "eu": PrimarySettings(eu_sqld.url, token)}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def migrate(*servers: Sqld) -> None:
    for server in servers:
        async with Primary(server.url, token) as primary:
            await migrate_primary(PrimaryStore(primary), known_migrations())


async def a_call(nearcall: World) -> str:
    """The agent is heard, the caller hangs up."""
    async with Phone(nearcall.phone()) as phone:
        await phone.dial()
        await phone.answered()
        await phone.heard_speech(200)
        await phone.hang_up()
        assert phone.call_sid is not None
        return phone.call_sid


async def health(nearcall: World) -> dict[str, object]:
    async with httpx.AsyncClient(base_url=nearcall.server.url, trust_env=False, headers=OPERATOR) as client:
        answer = await client.get("/healthz")
    assert answer.status_code == httpx.codes.OK
    return dict(answer.json())


async def degraded(nearcall: World) -> dict[str, object]:
    """What /healthz says once it is not well; the world's own time-out ends the waiting."""
    while (told := await health(nearcall))["status"] != "degraded":
        await a_moment()
    return told


def errors_in(caplog: pytest.LogCaptureFixture) -> str:
    """Why the shipper failed, in the log's words: /healthz names the zone alone."""
    failures = (one for one in caplog.records if one.message == "primary_failed")
    return " ".join(str(one.__dict__["error"]) for one in failures)


def traces(sqld: Sqld) -> set[str]:
    """Tables with something of a call."""
    return {table for table in TABLES if sqld.query(f"SELECT count(*) FROM {table}") != [(0,)]}


async def copied(replica: Path, call_sid: str) -> None:
    """Until the call's end has come into the copy; the world's own time-out ends the waiting."""
    queries = Queries(replica)
    history = None
    while history is None or not history.endings:
        with suppress(StorageError):
            history = await queries.call(call_sid)
        await a_moment()
    await queries.close()


def mentions(directory: Path, text: str) -> list[str]:
    """Files that have the text in them, also in what is no row any more. There are files."""
    files = [file for file in directory.iterdir() if file.is_file()]
    assert files != []
    return [file.name for file in files if text.encode() in file.read_bytes()]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits for a primary neither at its start, for the tenants, nor at its end."""
    monkeypatch.setattr("app.ledger.turso.DRAIN_S", 0.1)
    monkeypatch.setattr("app.tenants.tenancy.COPY_WAIT_S", 0.0)


@pytest.mark.parametrize(("zone", "other"), [("eu", "global"), ("global", "eu")])
async def test_call_leaves_its_records_in_its_zone_and_nothing_anywhere_else(
    data_dir: Path,
    sqld: Sqld,
    eu_sqld: Sqld,
    primaries: Mapping[str, PrimarySettings],
    zone: str,
    other: str,
) -> None:
    await migrate(sqld, eu_sqld)
    plan = Plan(greeting="Hello.", zone=zone)
    async with world(data_dir, plan=plan, primaries=primaries) as nearcall:
        call_sid = await a_call(nearcall)
        await copied(data_dir / zone / "replica.db", call_sid)
    of = {"global": sqld, "eu": eu_sqld}
    assert {"legs", "turns", "endings"} <= traces(of[zone])
    assert of[zone].query("SELECT call_sid, zone FROM legs") == [(call_sid, zone)]
    assert traces(of[other]) == set()
    assert rows(data_dir / zone / "spool.db", "SELECT * FROM spool") == []
    assert mentions(data_dir / zone, call_sid) != []
    assert mentions(data_dir / other, call_sid) == []


async def test_turn_is_stored_with_its_model_and_what_it_cost(
    data_dir: Path, sqld: Sqld, primaries: Mapping[str, PrimarySettings]
) -> None:
    await migrate(sqld)
    async with world(
        data_dir, plan=Plan(greeting="Hello."), primaries={"global": primaries["global"]}
    ) as nearcall:
        await a_call(nearcall)
    [(model, cost)] = sqld.query("SELECT model, cost_microusd FROM turns WHERE speaker = 'agent'")
    assert model == Plan().model
    assert cost > 0


@pytest.mark.usefixtures("hasty")
async def test_server_whose_primary_lacks_the_schema_keeps_records_and_says_so(
    data_dir: Path, primaries: Mapping[str, PrimarySettings], sqld: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    only = {"global": primaries["global"]}
    async with world(data_dir, plan=HELLO, primaries=only, residency=NOTHING) as nearcall:
        told = await degraded(nearcall)
        call_sid = await a_call(nearcall)
    assert told["why"] == "ledger"
    assert told["ledger"] == ["global"]
    assert "run 'nearcall migrate'" in errors_in(caplog)
    kept = rows(data_dir / "global" / "spool.db", "SELECT kind FROM spool WHERE call_sid = ?", (call_sid,))
    assert {"CallStarted", "Turn", "CallEnded"} <= {str(kind) for (kind,) in kept}

    await migrate(sqld)
    async with world(data_dir, primaries=only) as nearcall:
        while (await health(nearcall))["ledger_depth"] != 0:
            await a_moment()
    assert sqld.query("SELECT call_sid FROM legs") == [(call_sid,)]
    assert rows(data_dir / "global" / "spool.db", "SELECT * FROM spool") == []


@pytest.mark.usefixtures("hasty")
async def test_server_older_than_the_schema_delivers_its_calls(
    data_dir: Path, primaries: Mapping[str, PrimarySettings], sqld: Sqld
) -> None:
    await migrate(sqld)
    sqld.execute("INSERT INTO schema_migrations VALUES (999, '0999_future.sql', 'x', 1)")
    only = {"global": primaries["global"]}
    async with world(data_dir, plan=HELLO, primaries=only, residency=NOTHING) as nearcall:
        call_sid = await a_call(nearcall)
    assert sqld.query("SELECT call_sid FROM legs") == [(call_sid,)]
    assert rows(data_dir / "global" / "spool.db", "SELECT * FROM spool") == []


@pytest.mark.usefixtures("hasty")
async def test_server_whose_primary_is_not_there_takes_calls_and_says_so(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = {"global": PrimarySettings(f"http://127.0.0.1:{free_port()}", token)}
    async with world(data_dir, plan=HELLO, primaries=nobody, residency=NOTHING) as nearcall:
        await a_call(nearcall)
        told = await degraded(nearcall)
    assert told["ledger"] == ["global"]
    assert "cannot reach 127.0.0.1:" in errors_in(caplog)


async def test_server_with_a_bad_database_delivers_its_calls_once_it_is_mended(
    data_dir: Path, primaries: Mapping[str, PrimarySettings], sqld: Sqld, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {"global": "TURSO_URL is malformed."}
    async with world(data_dir, plan=HELLO, ledger_faults=bad, residency=NOTHING) as nearcall:
        told = await health(nearcall)
        call_sid = await a_call(nearcall)
    assert (told["status"], told["ledger"]) == ("degraded", ["global"])
    [line] = [one for one in caplog.records if one.levelname == "ERROR"]
    assert (line.__dict__["zone"], line.__dict__["error"]) == ("global", "TURSO_URL is malformed.")

    await migrate(sqld)
    async with world(data_dir, primaries={"global": primaries["global"]}) as nearcall:
        while (await health(nearcall))["ledger_depth"] != 0:
            await a_moment()
    assert sqld.query("SELECT call_sid FROM legs") == [(call_sid,)]
    assert {"legs", "turns", "endings"} <= traces(sqld)


@pytest.mark.parametrize("fault", ["changed", "damaged"])
async def test_server_whose_own_file_is_unusable_stores_its_calls_once_mended(data_dir: Path, fault: str) -> None:
    file = data_dir / "ledger.db"
    async with world(data_dir):
        pass
    good = file.read_bytes()
    if fault == "changed":
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("UPDATE schema_migrations SET checksum = 'x' WHERE version = 1")
    else:
        damaged(file)
    bad = file.read_bytes()

    async with world(data_dir, plan=HELLO, residency=NOTHING) as nearcall:
        told = await health(nearcall)
        call_sid = await a_call(nearcall)
    assert (told["status"], told["ledger"]) == ("degraded", ["global"])
    assert file.read_bytes() == bad

    file.write_bytes(good)
    async with world(data_dir) as nearcall:
        told = await health(nearcall)
    assert (told["status"], told["ledger_depth"]) == ("ok", 0)
    stored = rows(
        file,
        "SELECT kind, call_sid FROM (SELECT 'leg' AS kind, call_sid FROM legs UNION ALL"
        " SELECT 'turn', call_sid FROM turns UNION ALL SELECT 'ending', call_sid FROM endings)",
    )
    assert set(stored) == {(kind, call_sid) for kind in ("leg", "turn", "ending")}
    assert rows(data_dir / "global" / "spool.db", "SELECT * FROM spool") == []


ACME = '[tenants.acme]\nnumbers = ["+4930654321"]\nzone = "eu"\n'


def damaged(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"not a database, and long enough to have a header" * 100)


async def unanswered(nearcall: World, number: str = "+4930654321") -> None:
    """The caller hears no agent, and what is recorded says nothing about the caller."""
    async with Phone(nearcall.phone(to=number)) as phone:
        await phone.dial()
        await phone.wait_for(lambda p: p.ended is not None or p.streams != [])
        assert phone.streams == []
    legs = [each for each in nearcall.records if isinstance(each, CallStarted)]
    assert [(leg.caller, leg.stream_sid) for leg in legs] == [("", "")] * len(legs)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", ["no database", "bad setting", "damaged file"])
async def test_number_is_not_the_built_in_tenants_while_nobody_can_look_it_up(data_dir: Path, fault: str) -> None:
    settings: dict[str, Any] = {}
    if fault == "no database":
        settings = {"primaries": {"global": PrimarySettings(f"http://127.0.0.1:{free_port()}", token)}}
    elif fault == "bad setting":
        settings = {"ledger_faults": {"global": "TURSO_URL is malformed."}}
    else:
        damaged(data_dir / "ledger.db")
    async with world(data_dir, plan=HELLO, settle=False, **settings) as nearcall:
        await unanswered(nearcall)


async def test_tenants_of_the_copy_are_known_when_their_database_setting_is_bad(data_dir: Path) -> None:
    await write_tenants(Zone("global", data_dir, None, str), TenantRows(), tenant_rows(ACME), 1)
    (data_dir / "global").mkdir()
    (data_dir / "ledger.db").rename(data_dir / "global" / "replica.db")
    bad = {"global": "TURSO_URL is malformed."}
    async with world(data_dir, plan=HELLO, ledger_faults=bad) as nearcall:
        await unanswered(nearcall, "+4930000000")


async def test_zone_without_a_database_has_a_local_file(data_dir: Path) -> None:
    async with world(data_dir, plan=Plan(greeting="Hello.", zone="eu")) as nearcall:
        call_sid = await a_call(nearcall)
    assert rows(data_dir / "eu" / "ledger.db", "SELECT call_sid, zone FROM legs") == [(call_sid, "eu")]
    assert rows(data_dir / "ledger.db", "SELECT call_sid FROM legs") == []


async def test_tenants_limit_counts_the_calls_of_other_machines(
    sqld: Sqld, primaries: Mapping[str, PrimarySettings], data_dir: Path
) -> None:
    await migrate(sqld)
    told = {"global": primaries["global"]}
    plan = replace(HELLO, max_calls_everywhere=3)
    async with (
        world(data_dir, plan=plan, primaries=told, residency=NOTHING) as nearcall,
        Phone(nearcall.phone()) as phone,
    ):
        await phone.dial()
        await phone.heard_speech(200)
        # Other machines read this machine's number of calls.
        while sqld.query("SELECT machine, calls FROM machine_calls") != [("local", '{"default":1}')]:
            await a_moment()
        now_ms = time.time_ns() // 1_000_000
        sqld.execute(f"INSERT INTO machine_calls VALUES ('another', {now_ms}, '{{\"default\": 2}}')")
        # It comes with the copy. Meanwhile the limit is not reached, as far as this machine knows.
        while True:
            async with Phone(nearcall.phone()) as one_more:
                await one_more.dial()
                await one_more.wait_for(lambda p: p.speech_ms > 0 or p.ended is not None)
                if one_more.ended is EndReason.REJECTED:
                    break
                await one_more.hang_up()
        await phone.hang_up()
