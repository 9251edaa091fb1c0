"""Legs that began on this machine and have not ended, kept in the spool's file: a machine that dies ends none.

Whatever is here when the file is opened is of a process that is gone. Its next start writes the endings.
"""

from app.call.ending import EndReason
from app.call.records import CallEnded, CallStarted, Happening, Record, Turn
from app.ledger.file import Database
from app.ledger.records import packed

SCHEMA = """
CREATE TABLE IF NOT EXISTS open_legs (
    call_sid TEXT NOT NULL,
    leg      TEXT NOT NULL,
    last_ms  INTEGER NOT NULL,  -- Unix ms of the newest record
    turns    INTEGER NOT NULL,
    PRIMARY KEY (call_sid, leg)
) STRICT, WITHOUT ROWID
"""
_BEGIN = "INSERT INTO open_legs VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING"
_GO_ON = "UPDATE open_legs SET last_ms = max(last_ms, ?), turns = turns + ? WHERE call_sid = ? AND leg = ?"
_END = "DELETE FROM open_legs WHERE call_sid = ? AND leg = ?"
_PUT = "INSERT INTO spool (kind, call_sid, caller, at_ms, content) VALUES (?, ?, ?, ?, ?)"


def note(database: Database, record: Record) -> None:
    """Remember what a record says of its leg. Within a transaction. Raises DatabaseError."""
    key = (_text(record.call_sid), _text(record.leg))
    match record:
        case CallStarted():
            database.execute(_BEGIN, (*key, _ms(record.started_ms)))
        case Turn():
            database.execute(_GO_ON, (_ms(record.ended_ms), 1, *key))
        case Happening():
            database.execute(_GO_ON, (_ms(record.at_ms), 0, *key))
        case CallEnded():
            database.execute(_END, key)


def end_all(database: Database) -> None:
    """Put an ending into the spool for each leg of an earlier process. Raises DatabaseError."""
    with database.transaction():
        for call_sid, leg, last_ms, turns in database.query("SELECT call_sid, leg, last_ms, turns FROM open_legs"):
            ending = packed(
                CallEnded(
                    str(call_sid), str(leg), int(last_ms or 0), EndReason.MACHINE_DIED.value, int(turns or 0)
                )
            )
            database.execute(_PUT, (ending.kind, ending.call_sid, ending.caller, ending.at_ms, ending.content))
        database.execute("DELETE FROM open_legs")


# A record with values of other types is spooled as it is, and set aside by the database: not refused here.


def _text(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()


def _ms(value: object) -> int:
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else 0


END_UNFINISHED = """
INSERT INTO endings (call_sid, leg, ended_ms, reason, turns)
SELECT call_sid, leg,
       max(started_ms,
           coalesce((SELECT max(ended_ms) FROM turns WHERE call_sid = legs.call_sid AND leg = legs.leg), 0),
           coalesce((SELECT max(at_ms) FROM events WHERE call_sid = legs.call_sid AND leg = legs.leg), 0)),
       ?, (SELECT count(*) FROM turns WHERE call_sid = legs.call_sid AND leg = legs.leg)
FROM legs
WHERE started_ms >= ? AND NOT EXISTS (SELECT 1 FROM endings WHERE call_sid = legs.call_sid AND leg = legs.leg)
ON CONFLICT DO NOTHING
"""
"""The same in a local ledger, which has all records of its machine: of legs that began after an instant."""
