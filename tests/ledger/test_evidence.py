"""Evidence of where a call was handled: as a value, in its column, and as the text of the version before."""

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.call.evidence import BackendChoice, Evidence, Route
from app.call.records import CallEvent
from app.ledger.local import LocalLedger, open_migrated, write
from app.ledger.queries import Leg, Queries
from app.ledger.records import EVENTS, call_event, insertion, packed, packed_insertion
from app.ledger.residency import judge
from app.ledger.spool import Spool
from app.regions.zones import shipped_zones
from app.storage.database import Database
from tests.ledger.samples import NOW_MS, rows

OLD = Path(__file__).parent / "version_0004"
ROUTE = Route("ams", "fra", "ie1", ("iad", "gru"))
CHOICE = BackendChoice("openai-eu", "marin", ("eu", "us"), "only")
FORGED = 'a residency=eu because=only", "residency": ["eu"]'


def event(kind: str, evidence: Evidence | None) -> CallEvent:
    return CallEvent("CA1", "l", 0, NOW_MS, kind, evidence=evidence)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(open_migrated(tmp_path / "ledger.db")) as opened:
        yield opened


def read_back(database: Database) -> CallEvent:
    [row] = database.query(f"SELECT {', '.join(EVENTS.columns)} FROM events")
    return call_event(row)


@pytest.mark.parametrize(
    "record",
    [
        event("handled", ROUTE),
        event("handled", Route(None, "fra", None)),
        event("backend", CHOICE),
        event("backend", replace(CHOICE, voice=FORGED, residency=())),
        event("failover", None),
    ],
    ids=["route", "route unknown", "choice", "voice of a tenant", "none"],
)
def test_evidence_is_read_as_it_was_written(database: Database, record: CallEvent) -> None:
    assert write(database, [record]) == []
    assert read_back(database) == record


@pytest.mark.parametrize("odd", ["\0", "\ud800", "é"])
def test_evidence_with_any_text_is_stored(database: Database, odd: str) -> None:
    assert write(database, [event("backend", replace(CHOICE, voice=odd))]) == []
    read = read_back(database).evidence
    assert isinstance(read, BackendChoice)
    json.dumps(read.voice).encode()
    assert replace(read, voice="") == replace(CHOICE, voice="")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"edge": 1, "machine": "fra", "twilio": null, "sent_on_by": []}']
)
def test_evidence_that_cannot_be_read_is_none(database: Database, text: str) -> None:
    assert write(database, [event("handled", ROUTE)]) == []
    database.execute("UPDATE events SET evidence = ?", (text,))
    assert read_back(database).evidence is None


def test_evidence_of_a_later_version_is_read_as_far_as_it_is_known(database: Database) -> None:
    assert write(database, [event("handled", ROUTE)]) == []
    database.execute("UPDATE events SET evidence = json_set(evidence, '$.city', 'Amsterdam')")
    assert read_back(database).evidence == ROUTE


# --- Beside the version before ---------------------------------------------------------------------


def as_version_0004(path: Path, name: str) -> None:
    """Make the file as that version left it."""
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript((OLD / f"{name}.sql").read_text())


EXPECTED: dict[str, tuple[Evidence | None, ...]] = {
    "CA" + "1" * 32: (ROUTE, BackendChoice("openai-eu", "marin", ("eu",), "only")),
    "CA" + "2" * 32: (
        Route(None, "fra", None),
        BackendChoice("openai", "a residency=eu because=only", (), "only"),
    ),
    "CA" + "3" * 32: (
        ROUTE,
        BackendChoice("a", "marin", ("eu", "us"), "nearest"),
        None,
        BackendChoice("b", "marin", (), "next"),
    ),
    # Its text was cut: what is left of it was chosen by the tenant.
    "CA" + "4" * 32: (Route(None, "fra", None), None),
}


async def legs_in(path: Path) -> tuple[Leg, ...]:
    queries = Queries(path)
    try:
        return await queries.legs_between(0, 100)
    finally:
        await queries.close()


async def expect_old_calls(path: Path) -> None:
    legs = await legs_in(path)
    assert {leg.began.call_sid: tuple(each.evidence for each in leg.events) for leg in legs} == EXPECTED
    judged = [judge(leg.began, leg.events, "eu", shipped_zones()).breaches for leg in legs]
    assert judged == [
        (),
        ("answered by openai, which does not promise eu",),
        ("answered by b, which does not promise eu",),
        ("what its backend promises is not recorded",),
    ]


@pytest.mark.anyio
async def test_evidence_of_the_version_before_is_read_from_its_text(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    as_version_0004(path, "ledger")
    open_migrated(path).close()
    await expect_old_calls(path)


@pytest.mark.anyio
async def test_spool_of_the_version_before_is_stored(tmp_path: Path) -> None:
    as_version_0004(tmp_path / "spool.db", "spool")
    spool = await Spool.open(tmp_path / "spool.db")
    ledger = await LocalLedger.open(tmp_path / "ledger.db")
    await ledger.take_over(spool)
    await spool.close()
    await ledger.close()
    await expect_old_calls(tmp_path / "ledger.db")
    assert rows(tmp_path / "ledger.db", "SELECT count(*) FROM refused") == [(0,)]
    assert rows(tmp_path / "spool.db", "SELECT count(*) FROM spool") == [(0,)]


@pytest.mark.parametrize("record", [event("handled", ROUTE), event("backend", CHOICE), event("failover", None)])
def test_spooled_evidence_is_what_the_version_before_delivers(database: Database, record: CallEvent) -> None:
    """It knows the kind, takes each column by its name, and hands its value on as it is."""
    content = json.loads(packed(record).content)
    assert packed(record).kind == "Happening"
    assert all(re.fullmatch(r"[a-z][a-z_]*", column) for column in content)
    assert all(value is None or isinstance(value, str | int) for value in content.values())
    sql = f"INSERT INTO events ({', '.join(content)}) VALUES ({', '.join('?' * len(content))})"
    database.execute(sql, tuple(content.values()))
    assert read_back(database) == record
    assert packed_insertion(packed(record)) == insertion(record)
