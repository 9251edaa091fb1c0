"""How a record is spelt as a row, and back: the one place where records and tables meet.

A table has a column for each field of its record, of the same name, and the record's key as primary key.
Keys are made by the call, not by the database, and every INSERT does nothing when its key is there: whatever
the outcome of a write was, it may be sent again. Does not know how statements are run.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from app.call.evidence import BackendChoice, Route
from app.call.records import CallEnded, CallEvent, CallStarted, Record, Speaker, Turn
from app.ledger import evidence
from app.storage.statement import Row, Statement, Value

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Table:
    """Where one kind of record is kept."""

    name: str
    columns: tuple[str, ...]
    insert: str


def _table(name: str, record_type: type[Record]) -> Table:
    columns = tuple(each.name for each in fields(record_type))
    return Table(name, columns, _insert(name, columns))


def _insert(name: str, columns: Iterable[str]) -> str:
    names = tuple(columns)
    places = ", ".join("?" * len(names))
    return f"INSERT INTO {name} ({', '.join(names)}) VALUES ({places}) ON CONFLICT DO NOTHING"  # noqa: S608 - names of our own, no data


LEGS = _table("legs", CallStarted)
TURNS = _table("turns", Turn)
EVENTS = _table("events", CallEvent)
ENDINGS = replace(
    _table("endings", CallEnded),
    # What the call itself said of its end takes the place of what a start supposed (open_legs.py).
    insert=_insert("endings", (each.name for each in fields(CallEnded))).replace(
        "DO NOTHING",
        "(call_sid, leg) DO UPDATE"
        " SET ended_ms = excluded.ended_ms, reason = excluded.reason, turns = excluded.turns"
        " WHERE endings.reason = 'machine_died'",
    ),
)


def insertion(record: Record) -> Statement:
    """The statement that stores a record, once or again."""
    table = _table_of(record)
    return Statement(table.insert, tuple(_value(_column(getattr(record, name))) for name in table.columns))


def refusal(record: Record, error: str, refused_ms: int) -> Statement:
    """The statement that sets aside a record the database does not take, so that it blocks no other."""
    return packed_refusal(packed(record), error, refused_ms)


_KINDS: Mapping[type[Record], str] = MappingProxyType(
    {CallStarted: "CallStarted", Turn: "Turn", CallEvent: "Happening", CallEnded: "CallEnded"}
)
"""What a record is called in spools and in the table `refused`: never change these. A machine's spool may hold
rows of the version before, and a rollback reads those of this one."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A record on its way: what has to be known of it without looking inside, and its content.

    Its columns travel with it by name, so a later program, or an earlier one, can still store it.
    """

    kind: str
    call_sid: str
    caller: str | None = field(repr=False)
    """Of the record that knows it; None for the others."""
    at_ms: int
    """When what it tells of began, Unix ms; 0 when it does not say so in 64 bits."""
    content: str = field(repr=False)
    """JSON in plain ASCII, which any database takes and a human can repair."""


def packed(record: Record) -> Packed:
    """Any record, also one that no table will take."""
    at_ms = getattr(record, _instant_of(record))
    return Packed(
        _KINDS[type(record)],
        _text(str(record.call_sid)),
        _text(str(record.caller)) if isinstance(record, CallStarted) else None,
        at_ms if isinstance(at_ms, int) and -(2**63) <= at_ms < 2**63 else 0,
        json.dumps({each.name: _column(getattr(record, each.name)) for each in fields(record)}, default=repr),
    )


def packed_insertion(record: Packed) -> Statement:
    """As `insertion`. Raises ValueError when this program cannot unpack it."""
    table = _TABLES.get(record.kind)
    if table is None:
        raise ValueError(f"this program knows no record of the kind {record.kind}")
    columns: dict[str, Value] = json.loads(record.content)
    sql = table.insert if tuple(columns) == table.columns else _other_insert(table.name, columns)
    return Statement(sql, tuple(map(_value, columns.values())))


def _other_insert(name: str, columns: Iterable[str]) -> str:
    """For the columns of another version of this program. Raises ValueError for what is no column."""
    if any(_COLUMN.fullmatch(column) is None for column in columns):
        raise ValueError(f"a record for {name} has names that no column can have")
    return _insert(name, columns)


def packed_refusal(record: Packed, error: str, refused_ms: int) -> Statement:
    """As `refusal`."""
    return Statement(
        "INSERT INTO refused (id, kind, call_sid, error, content, refused_ms) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (
            hashlib.sha256(record.content.encode()).hexdigest(),
            record.kind,
            record.call_sid,
            _text(error),
            record.content,
            refused_ms,
        ),
    )


def call_started(row: Row) -> CallStarted:
    """A row of LEGS.columns."""
    return CallStarted(**dict(zip(LEGS.columns, row, strict=True)))  # type: ignore[arg-type] # the columns are the fields


def turn(row: Row) -> Turn:
    """A row of TURNS.columns."""
    columns = dict(zip(TURNS.columns, row, strict=True))
    columns["speaker"] = Speaker(str(columns["speaker"]))
    columns["interrupted"] = bool(columns["interrupted"])
    return Turn(**columns)  # type: ignore[arg-type] # the columns are the fields


def call_event(row: Row) -> CallEvent:
    """A row of EVENTS.columns."""
    columns: dict[str, Any] = dict(zip(EVENTS.columns, row, strict=True))
    columns["evidence"] = evidence.from_row(columns["kind"], columns["detail"], columns["evidence"])
    return CallEvent(**columns)


def call_ended(row: Row) -> CallEnded:
    """A row of ENDINGS.columns."""
    return CallEnded(**dict(zip(ENDINGS.columns, row, strict=True)))  # type: ignore[arg-type] # the columns are the fields


_TABLES: Mapping[str, Table] = MappingProxyType(
    {"CallStarted": LEGS, "Turn": TURNS, "Happening": EVENTS, "CallEnded": ENDINGS}
)
_COLUMN = re.compile(r"[a-z][a-z_]*")


def _instant_of(record: Record) -> str:
    match record:
        case CallStarted() | Turn():
            return "started_ms"
        case CallEvent():
            return "at_ms"
        case CallEnded():
            return "ended_ms"


def _table_of(record: Record) -> Table:
    match record:
        case CallStarted():
            return LEGS
        case Turn():
            return TURNS
        case CallEvent():
            return EVENTS
        case CallEnded():
            return ENDINGS


def _column(value: Any) -> Any:
    """A field as its column has it: a value of several parts is one JSON text."""
    return evidence.to_json(value) if isinstance(value, Route | BackendChoice) else value


def _value(value: Value) -> Value:
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    """Text that every reader sees whole: U+FFFD in place of NUL and of half a surrogate pair.

    sqlite3 refuses the latter. It keeps NUL, but there SQL's own functions, `.dump` and libSQL's clients end the
    text. A model's transcript may hold either; the rest of the sentence is worth more than the odd character.
    """
    return text.replace("\0", _REPLACEMENT).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
