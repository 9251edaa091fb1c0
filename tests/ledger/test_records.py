"""Records as rows."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.call.records import CallEnded, CallEvent, CallStarted, Record, Speaker, Turn
from app.ledger import records
from app.ledger.local import open_migrated, write
from app.ledger.records import ENDINGS, EVENTS, LEGS, TURNS, Packed, Table, insertion, packed, packed_insertion
from app.storage.database import Database
from app.storage.statement import Statement
from tests.ledger import samples
from tests.ledger.samples import one_call, started, turn

TABLES = {CallStarted: LEGS, Turn: TURNS, CallEvent: EVENTS, CallEnded: ENDINGS}

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
integers = st.integers(-(2**63), 2**63 - 1)
every_record = st.one_of(
    st.builds(CallStarted, **dict.fromkeys(TABLES[CallStarted].columns, texts) | {"started_ms": integers}),
    st.builds(
        Turn,
        **{name: integers for name in TURNS.columns if name.endswith(("_ms", "_tokens", "seq"))},
        **dict.fromkeys(("call_sid", "leg", "backend", "model"), texts),
        **dict.fromkeys(("said", "heard"), st.none() | texts),
        speaker=st.sampled_from(Speaker),
        interrupted=st.booleans(),
        cost_microusd=st.none() | integers,
    ),
    st.builds(CallEvent, call_sid=texts, leg=texts, seq=integers, at_ms=integers, kind=texts, detail=texts),
    st.builds(CallEnded, call_sid=texts, leg=texts, ended_ms=integers, reason=texts, turns=integers),
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_migrated(tmp_path / "ledger.db")
    yield database
    database.close()


def stored(database: Database, kind: type[Record]) -> list[Record]:
    table = TABLES[kind]
    back: Any = {
        CallStarted: records.call_started,
        Turn: records.turn,
        CallEvent: records.call_event,
        CallEnded: records.call_ended,
    }[kind]
    return [back(row) for row in database.query(f"SELECT {', '.join(table.columns)} FROM {table.name}")]


@given(record=every_record)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_record_comes_back_as_it_was(database: Database, record: Record) -> None:
    database.execute(f"DELETE FROM {TABLES[type(record)].name}")
    assert write(database, [record]) == []
    assert stored(database, type(record)) == [record]


@pytest.mark.parametrize("ms", [0, 2**31, samples.NOW_MS, 2**53 + 1, 2**63 - 1])
def test_instant_stays_an_integer_at_every_size(database: Database, ms: int) -> None:
    write(database, [samples.started(started_ms=ms)])
    assert database.query("SELECT started_ms, typeof(started_ms) FROM legs") == [(ms, "integer")]


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_table_has_the_columns_of_its_record_in_order(database: Database, table: Table) -> None:
    columns = database.query("SELECT name FROM pragma_table_info(?)", (table.name,))
    assert tuple(name for (name,) in columns) == table.columns


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("a\0b", "a\N{REPLACEMENT CHARACTER}b"),
        ("\ud83d alone", "\N{REPLACEMENT CHARACTER}" * 3 + " alone"),
        ("line\nbreak\t\x1b[0m", "line\nbreak\t\x1b[0m"),
        ("", ""),
        (None, None),
    ],
)
def test_text_that_some_reader_would_cut_or_sqlite_refuse_keeps_its_rest(
    database: Database, said: str | None, kept: str | None
) -> None:
    assert write(database, [samples.turn(0, said=said)]) == []
    assert database.query("SELECT said FROM turns") == [(kept,)]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (2**63, "too large"),
        (1.5, "cannot store REAL value in INTEGER column turns.said_ms"),
        ("1 s", "cannot store TEXT value in INTEGER column turns.said_ms"),
        (None, "NOT NULL constraint failed: turns.said_ms"),
        (object(), "type 'object' is not supported"),
    ],
)
def test_value_that_does_not_fit_sets_its_record_aside_with_the_reason(
    database: Database, wrong: Any, why: str
) -> None:
    [refused] = write(database, [replace(samples.turn(0), said_ms=wrong)])
    assert why in refused
    assert database.query("SELECT kind, json_valid(content) FROM refused") == [("Turn", 1)]
    assert stored(database, Turn) == []


def test_same_record_twice_is_one_row(database: Database) -> None:
    assert write(database, [samples.turn(0), samples.turn(0)]) == []
    assert write(database, [samples.turn(0)]) == []
    assert stored(database, Turn) == [samples.turn(0)]


def test_every_field_of_a_record_is_stored() -> None:
    assert [table.columns for table in TABLES.values()] == [
        tuple(field.name for field in fields(kind)) for kind in TABLES
    ]


# --- On the way -----------------------------------------------------------------------------------


@pytest.mark.parametrize("record", one_call(), ids=lambda record: type(record).__name__)
def test_packed_record_is_stored_as_it_would_have_been_unpacked(record: Record) -> None:
    assert packed_insertion(packed(record)) == insertion(record)


def test_packed_record_of_an_earlier_program_is_stored_as_far_as_it_knew() -> None:
    packed_turn = Packed("Turn", "CA1", None, 0, '{"call_sid": "CA1", "seq": 3}')
    assert packed_insertion(packed_turn) == Statement(
        "INSERT INTO turns (call_sid, seq) VALUES (?, ?) ON CONFLICT DO NOTHING", ("CA1", 3)
    )


@pytest.mark.parametrize(
    ("kind", "content"),
    [("Verdict", "{}"), ("Turn", '{"seq) VALUES (1); --": 1}'), ("Turn", "{")],
    ids=["kind", "column", "cut off"],
)
def test_packed_record_that_is_none_of_ours_is_refused(kind: str, content: str) -> None:
    with pytest.raises(ValueError):
        packed_insertion(Packed(kind, "CA1", None, 0, content))


def test_packed_record_keeps_its_caller_and_its_words_out_of_logs() -> None:
    shown = repr(packed(started())) + repr(packed(turn(0)))
    assert started().caller not in shown
    assert "Guten Tag" not in shown


def test_names_of_records_in_a_spool_are_those_of_every_version() -> None:
    """A spool outlives the program that wrote it: a class may be renamed, its name on disk may not."""
    kinds = [packed(record).kind for record in (started(), turn(0), samples.call_event(0), samples.ended())]
    assert kinds == ["CallStarted", "Turn", "Happening", "CallEnded"]
