"""How a record is spelt as a row, and back: the one place where records and tables meet.

A table has a column for each field of its record, of the same name, and the record's key as primary key.
Keys are made by the call, not by the database, and every INSERT does nothing when its key is there: whatever
the outcome of a write was, it may be sent again. Refuses to know how statements are run.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields

from app.call.records import CallEnded, CallStarted, Happening, Record, Speaker, Turn
from app.ledger.sql import Row, Statement, Value

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Table:
    """Where one kind of record is kept."""

    name: str
    columns: tuple[str, ...]
    insert: str


def _table(name: str, record_type: type[Record]) -> Table:
    columns = tuple(field.name for field in fields(record_type))
    places = ", ".join("?" * len(columns))
    insert = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({places}) ON CONFLICT DO NOTHING"  # noqa: S608 - names of our own, no data
    return Table(name, columns, insert)


LEGS = _table("legs", CallStarted)
TURNS = _table("turns", Turn)
EVENTS = _table("events", Happening)
ENDINGS = _table("endings", CallEnded)


def insertion(record: Record) -> Statement:
    """The statement that stores a record, once or again."""
    table = _table_of(record)
    return Statement(table.insert, tuple(_value(getattr(record, name)) for name in table.columns))


def refusal(record: Record, error: str, refused_ms: int) -> Statement:
    """The statement that sets aside a record the database does not take, so that it blocks no other.

    Its content is kept as JSON in plain ASCII, which any database takes, for a human to repair.
    """
    content = json.dumps(asdict(record), default=repr)
    return Statement(
        "INSERT INTO refused (id, kind, call_sid, error, content, refused_ms) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (
            hashlib.sha256(content.encode()).hexdigest(),
            type(record).__name__,
            _text(str(record.call_sid)),
            _text(error),
            content,
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


def happening(row: Row) -> Happening:
    """A row of EVENTS.columns."""
    return Happening(**dict(zip(EVENTS.columns, row, strict=True)))  # type: ignore[arg-type] # the columns are the fields


def call_ended(row: Row) -> CallEnded:
    """A row of ENDINGS.columns."""
    return CallEnded(**dict(zip(ENDINGS.columns, row, strict=True)))  # type: ignore[arg-type] # the columns are the fields


def _table_of(record: Record) -> Table:
    match record:
        case CallStarted():
            return LEGS
        case Turn():
            return TURNS
        case Happening():
            return EVENTS
        case CallEnded():
            return ENDINGS


def _value(value: Value) -> Value:
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    """Text that every reader sees whole: U+FFFD in place of NUL and of half a surrogate pair.

    sqlite3 refuses the latter. It keeps NUL, but there SQL's own functions, `.dump` and libSQL's clients end the
    text. A model's transcript may hold either; the rest of the sentence is worth more than the odd character.
    """
    return text.replace("\0", _REPLACEMENT).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
