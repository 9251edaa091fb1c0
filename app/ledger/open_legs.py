"""Legs that began on this machine and have not ended, kept in the spool's file because a machine may die.

A process that dies writes no endings, so the next start writes them for the legs that it finds in the file. The
legs of this process are in memory as well, in case the file is damaged and a new one takes its place. An ending
too many does no harm: the ending that a call writes itself replaces it (records.py).
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from app.call.ending import EndReason
from app.call.records import CallEnded, CallEvent, CallStarted, Record, Turn
from app.ledger.records import packed
from app.storage.database import Database
from app.storage.statement import Row

SCHEMA = """
CREATE TABLE IF NOT EXISTS open_legs (
    call_sid TEXT NOT NULL,
    leg      TEXT NOT NULL,
    last_ms  INTEGER NOT NULL,  -- Unix ms of the newest record
    turns    INTEGER NOT NULL,
    PRIMARY KEY (call_sid, leg)
) STRICT, WITHOUT ROWID
"""
ALL = "SELECT call_sid, leg, last_ms, turns FROM open_legs"
_BEGIN = (
    "INSERT INTO open_legs VALUES (?, ?, ?, ?) ON CONFLICT (call_sid, leg) DO UPDATE"
    " SET last_ms = max(last_ms, excluded.last_ms), turns = turns + excluded.turns"
)
_GO_ON = "UPDATE open_legs SET last_ms = max(last_ms, ?), turns = turns + ? WHERE call_sid = ? AND leg = ?"
_END = "DELETE FROM open_legs WHERE call_sid = ? AND leg = ?"
_PUT = "INSERT INTO spool (kind, call_sid, caller, at_ms, content) VALUES (?, ?, ?, ?, ?)"

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _News:
    """What some records say about one leg."""

    begun: bool = False
    ended: bool = False
    last_ms: int = 0
    turns: int = 0

    def and_then(self, later: "_News") -> "_News":
        return _News(
            self.begun or later.begun,
            self.ended or later.ended,
            max(self.last_ms, later.last_ms),
            self.turns + later.turns,
        )


class OpenLegs:
    """The open legs of this process. `delivered` and `waiting` are for any thread, the rest for the file's own."""

    def __init__(self) -> None:
        self._open: dict[_Key, _News] = {}
        self._lock = threading.Lock()  # guards what follows
        self._delivered: dict[_Key, _News] = {}
        """What the file does not say yet, of records that went to the primary without it."""

    @property
    def waiting(self) -> bool:
        """True while the file does not say what became of a leg."""
        return bool(self._delivered)

    def delivered(self, records: Iterable[Record]) -> None:
        """Have what these records say of their legs written with the next transaction."""
        with self._lock:
            _tell(self._delivered, _news(records))
            # A leg of which the file knows nothing needs no row. Else an outage of hours would fill the memory.
            whole = [key for key, news in self._delivered.items() if news.begun and news.ended]
            for key in whole:
                del self._delivered[key]

    @contextmanager
    def transaction(self, database: Database, records: Iterable[Record] = ()) -> Iterator[None]:
        """A transaction in which the file also learns of legs, by these records too. Raises DatabaseError."""
        with self._lock:
            before, self._delivered = self._delivered, {}
        news = dict(before)
        _tell(news, _news(records))
        try:
            with database.transaction():
                yield
                for key, each in news.items():
                    _write(database, key, each)
        except BaseException:  # whatever it was, the file does not say it
            with self._lock:
                _tell(before, self._delivered)
                self._delivered = before
            raise
        for key, each in news.items():
            if each.ended:
                self._open.pop(key, None)
            elif each.begun or key in self._open:
                self._open[key] = self._open.get(key, _News()).and_then(replace(each, begun=True))

    def copy_to(self, database: Database) -> None:
        """Write them into a new file. Raises DatabaseError."""
        with database.transaction():
            for key, each in self._open.items():
                _write(database, key, each)

    def end_others(self, database: Database) -> None:
        """End all legs in the file that are not of this process. Within a transaction. Raises DatabaseError."""
        self.end(database, database.query(ALL))

    def end(self, database: Database, rows: Iterable[Row]) -> None:
        """Put an ending into the spool for each of these that is not open in this process. As `end_others`."""
        for call_sid, leg, last_ms, turns in rows:
            if (str(call_sid), str(leg)) in self._open:
                continue
            ending = packed(
                CallEnded(
                    str(call_sid), str(leg), int(last_ms or 0), EndReason.MACHINE_DIED.value, int(turns or 0)
                )
            )
            database.execute(_PUT, (ending.kind, ending.call_sid, ending.caller, ending.at_ms, ending.content))
            database.execute(_END, (call_sid, leg))


def _write(database: Database, key: _Key, news: _News) -> None:
    if news.ended:
        database.execute(_END, key)
    elif news.begun:
        database.execute(_BEGIN, (*key, news.last_ms, news.turns))
    else:
        database.execute(_GO_ON, (news.last_ms, news.turns, *key))


def _tell(known: dict[_Key, _News], news: dict[_Key, _News]) -> None:
    for key, each in news.items():
        known[key] = known.get(key, _News()).and_then(each)


def _news(records: Iterable[Record]) -> dict[_Key, _News]:
    found: dict[_Key, _News] = {}
    for record in records:
        match record:
            case CallStarted():
                news = _News(begun=True, last_ms=_ms(record.started_ms))
            case Turn():
                news = _News(last_ms=_ms(record.ended_ms), turns=1)
            case CallEvent():
                news = _News(last_ms=_ms(record.at_ms))
            case CallEnded():
                news = _News(ended=True)
        _tell(found, {(_text(record.call_sid), _text(record.leg)): news})
    return found


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
