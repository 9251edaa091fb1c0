"""Records that a primary refuses and does not keep, set aside in the spool's file for an operator.

They wait in a table of their own, where they block no other record, until `nearcall ledger resend` puts them back
into the spool. This module knows the two tables and nothing else.
"""

import time

from app.storage.database import Database
from app.storage.statement import Row

SCHEMA = """
CREATE TABLE IF NOT EXISTS aside (
    id         INTEGER PRIMARY KEY,  -- as it was in the spool
    kind       TEXT NOT NULL,
    call_sid   TEXT NOT NULL,
    caller     TEXT,
    at_ms      INTEGER NOT NULL,
    content    TEXT NOT NULL,
    error      TEXT NOT NULL,        -- why it was refused
    refused_ms INTEGER NOT NULL      -- Unix ms
) STRICT
"""
_COLUMNS = "kind, call_sid, caller, at_ms, content"


def set_aside(database: Database, record_id: int, error: str) -> bool:
    """Take a record out of the spool. Within a transaction. False when it is not there. Raises DatabaseError."""
    return _move(database, record_id, error, time.time_ns() // 1_000_000)


def add(database: Database, record: Row, error: str, refused_ms: int | None = None) -> None:
    """Set a record aside that is not in this file: kind, call_sid, caller, at_ms and content. As `set_aside`.

    One that is here already is not added: a file may be read twice when the process is killed in between.
    """
    same = "SELECT 1 FROM aside WHERE kind = ? AND call_sid = ? AND caller IS ? AND at_ms = ? AND content = ?"
    if database.query(same, record):
        return
    # By way of the spool, which never gives the same id twice.
    database.execute(f"INSERT INTO spool ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", record)  # noqa: S608 - as below
    [(record_id,)] = database.query("SELECT last_insert_rowid()")
    _move(database, int(record_id or 0), error, time.time_ns() // 1_000_000 if refused_ms is None else refused_ms)


def _move(database: Database, record_id: int, error: str, refused_ms: int) -> bool:
    database.execute(
        f"INSERT INTO aside (id, {_COLUMNS}, error, refused_ms)"  # noqa: S608 - names of our own, no data
        f" SELECT id, {_COLUMNS}, ?, ? FROM spool WHERE id = ?",
        (error, refused_ms, record_id),
    )
    database.execute("DELETE FROM spool WHERE id = ?", (record_id,))
    [(moved,)] = database.query("SELECT changes()")
    return bool(moved)


def put_back(database: Database) -> int:
    """Put all records back into the spool, behind those there. Returns how many. Raises DatabaseError."""
    with database.transaction():
        database.execute(f"INSERT INTO spool ({_COLUMNS}) SELECT {_COLUMNS} FROM aside ORDER BY id")  # noqa: S608
        [(count,)] = database.query("SELECT changes()")
        database.execute("DELETE FROM aside")
    return int(count or 0)


def count(database: Database) -> int:
    """Return how many records are set aside. Raises DatabaseError."""
    [(found,)] = database.query("SELECT count(*) FROM aside")
    return int(found or 0)
