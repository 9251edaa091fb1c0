"""What operators ask the ledger: which calls were there lately, and what happened in one.

Each question opens the file, read-only, in a thread of its own, and asks only for what an index answers at once.
The file is the local ledger or a replica; a replica may be made anew between two questions. Does not know which
of the two it is, and how rows become JSON.
"""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from app.call.ending import WELL_ENDED
from app.call.records import CallEnded, CallEvent, CallStarted, Turn
from app.ledger import records
from app.ledger.records import ENDINGS, EVENTS, LEGS, TURNS, Table
from app.storage.database import Database, DatabaseError, damage, open_for_reading
from app.storage.migrations import known_migrations, require_migrated
from app.storage.statement import Row
from app.storage.thread import OwnThread

RECENT_MAX = 1_000
"""Most calls, or turns, in one answer."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CallSummary:
    """One call in a list: how its first leg began, how its latest leg ended."""

    call_sid: str
    tenant: str
    zone: str
    region: str
    backend: str
    caller: str
    called: str
    started_ms: int
    """Unix ms."""
    ended_ms: int | None
    """Unix ms; None while the call is live, or when its machine died and has not started again."""
    end_reason: str | None
    legs: int
    """Streams; 0 when nobody talked."""
    turns: int
    cost_microusd: int | None
    """Millionths of a US dollar; None when a turn's cost is not known."""


@dataclass(frozen=True, slots=True)
class CallHistory:
    """Everything about one call, in the order in which it happened."""

    call_sid: str
    legs: tuple[CallStarted, ...]
    turns: tuple[Turn, ...]
    events: tuple[CallEvent, ...]
    endings: tuple[CallEnded, ...]


TurnKey = tuple[int, str, str, int]
"""Where a turn stands among all: when it began, call, leg, number."""

BEFORE_ALL: TurnKey = (-1, "", "", -1)
END_OF_TIME_MS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class CallTurn:
    """A turn, and whose it is. Without the leg's record, which may come later, that is not known."""

    tenant: str | None
    zone: str | None
    region: str | None
    caller: str | None
    called: str | None
    turn: Turn

    @property
    def key(self) -> TurnKey:
        """To ask for what comes after it."""
        return (self.turn.started_ms, self.turn.call_sid, self.turn.leg, self.turn.seq)


# Walks legs_by_start from the newest, skips legs that continue a call, and stops at the limit.
# A leg without a stream counts only in a call that has no other: the stream may have come to another machine.
_COUNTS = (
    "({leg}.stream_sid <> '' OR NOT EXISTS"
    " (SELECT 1 FROM legs AS talked WHERE talked.call_sid = {leg}.call_sid AND talked.stream_sid <> ''))"
)
_WELL = ", ".join(f"'{reason.value}'" for reason in sorted(WELL_ENDED))

RECENT_CALLS = f"""
SELECT first.call_sid, first.tenant, first.zone, first.region, first.backend, first.caller, first.called,
       first.started_ms, ending.ended_ms, ending.reason,
       (SELECT count(*) FROM legs WHERE call_sid = first.call_sid AND stream_sid <> ''),
       (SELECT count(*) FROM turns WHERE call_sid = first.call_sid),
       (SELECT CASE WHEN count(*) = count(cost_microusd) THEN coalesce(sum(cost_microusd), 0) END
        FROM turns WHERE call_sid = first.call_sid)
FROM legs AS first
LEFT JOIN endings AS ending
  ON ending.call_sid = first.call_sid
 AND ending.leg = (SELECT leg FROM legs AS latest WHERE call_sid = first.call_sid
                   AND {_COUNTS.format(leg="latest")} ORDER BY started_ms DESC, leg DESC LIMIT 1)
WHERE first.started_ms >= ? AND {_COUNTS.format(leg="first")} AND NOT EXISTS (
  SELECT 1 FROM legs AS earlier
  WHERE earlier.call_sid = first.call_sid AND {_COUNTS.format(leg="earlier")}
    AND (earlier.started_ms, earlier.leg) < (first.started_ms, first.leg)
)
AND (NOT ? OR ending.reason NOT IN ({_WELL}))
ORDER BY first.started_ms DESC
LIMIT ?
"""  # noqa: S608 - names of our own, no data

_WHOSE = ("tenant", "zone", "region", "caller", "called")

# Walks turns_by_start, which holds the primary key as well: a page costs what is on it.
TURNS_BETWEEN = f"""
SELECT {", ".join(f"legs.{name}" for name in _WHOSE)}, {", ".join(f"turns.{name}" for name in TURNS.columns)}
FROM turns LEFT JOIN legs ON legs.call_sid = turns.call_sid AND legs.leg = turns.leg
WHERE turns.started_ms >= ? AND turns.started_ms < ?
  AND (turns.started_ms, turns.call_sid, turns.leg, turns.seq) > (?, ?, ?, ?)
ORDER BY turns.started_ms, turns.call_sid, turns.leg, turns.seq
LIMIT ?
"""  # noqa: S608 - names of our own, no data


LegKey = tuple[int, str, str]
"""Where a leg stands among all: when it began, call, leg."""

BEFORE_ALL_LEGS: LegKey = (-1, "", "")


@dataclass(frozen=True, slots=True)
class Leg:
    """A leg of a call, and what happened in it."""

    began: CallStarted
    events: tuple[CallEvent, ...]

    @property
    def key(self) -> LegKey:
        """To ask for what comes after it."""
        return (self.began.started_ms, self.began.call_sid, self.began.leg)


_LEGS = f"""
SELECT {", ".join(LEGS.columns)} FROM legs
WHERE started_ms >= ? AND (started_ms, call_sid, leg) > (?, ?, ?)
ORDER BY started_ms, call_sid, leg LIMIT ?
"""  # noqa: S608 - names of our own, no data

_EVENTS_OF = f"""
SELECT {", ".join(EVENTS.columns)} FROM events WHERE call_sid IN (SELECT value FROM json_each(?))
ORDER BY at_ms, seq
"""  # noqa: S608 - names of our own, no data


class Queries:
    """Answers from the file at `path`, off the event loop."""

    def __init__(self, path: Path, damaged: Callable[[str], object] = lambda _: None) -> None:
        """`damaged` is told, in the event loop's thread, when SQLite finds the file broken: `Replica.distrust`."""
        self._path = path
        self._damaged = damaged
        self._thread = OwnThread("ledger-queries")

    async def recent_calls(
        self, limit: int, since_ms: int = 0, *, failed: bool = False
    ) -> tuple[CallSummary, ...]:
        """The calls that began last, newest first, none before `since_ms` (Unix ms).

        `failed`: only those that did not end as a call should, or were not taken at all.

        Raises StorageError, and ValueError for a limit out of range.
        """
        _check_limit(limit)
        return await self._ask(lambda database: _recent_calls(database, limit, since_ms, failed=failed))

    async def turns_between(
        self, since_ms: int, until_ms: int, limit: int, after: TurnKey = BEFORE_ALL
    ) -> tuple[CallTurn, ...]:
        """Turns that began from `since_ms` on and before `until_ms` (Unix ms), oldest first: a page of them.

        The next page is what comes `after` the last one's key. Raises as `recent_calls`.
        """
        _check_limit(limit)
        return await self._ask(lambda database: _turns_between(database, since_ms, until_ms, limit, after))

    async def legs_between(self, since_ms: int, limit: int, after: LegKey = BEFORE_ALL_LEGS) -> tuple[Leg, ...]:
        """Legs that began from `since_ms` on (Unix ms) with their events, oldest first: a page of them.

        The next page is what comes `after` the last one's key. Raises as `recent_calls`.
        """
        _check_limit(limit)
        return await self._ask(lambda database: _legs_between(database, since_ms, limit, after))

    async def call(self, call_sid: str) -> CallHistory | None:
        """One call with its turns and events, or None when the ledger has nothing of it. Raises StorageError."""
        return await self._ask(lambda database: _call(database, call_sid))

    async def close(self) -> None:
        """End the thread, after the question in hand. Does not wait for that: the disk may hang."""
        self._thread.close()

    async def _ask(self, question: Callable[[Database], _T]) -> _T:
        try:
            return await self._thread.run(lambda: self._answer(question))
        except DatabaseError as error:
            if (words := damage(error)) is not None:
                self._damaged(words)
            raise

    def _answer(self, question: Callable[[Database], _T]) -> _T:
        with closing(open_for_reading(self._path)) as database:
            require_migrated(database, known_migrations())
            return question(database)


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= RECENT_MAX:
        raise ValueError(f"limit should be between 1 and {RECENT_MAX}, and is {limit}")


def _recent_calls(database: Database, limit: int, since_ms: int, *, failed: bool) -> tuple[CallSummary, ...]:
    return tuple(CallSummary(*row) for row in database.query(RECENT_CALLS, (since_ms, failed, limit)))  # type: ignore[arg-type] # the columns are the fields


def _turns_between(
    database: Database, since_ms: int, until_ms: int, limit: int, after: TurnKey
) -> tuple[CallTurn, ...]:
    whose = len(_WHOSE)
    # SQLite walks the index from the first bound alone: without this each page would begin at the first one.
    from_ms = max(since_ms, after[0])
    rows = database.query(TURNS_BETWEEN, (from_ms, until_ms, *after, limit))
    return tuple(CallTurn(*row[:whose], records.turn(row[whose:])) for row in rows)  # type: ignore[arg-type, call-arg] # as above


def _legs_between(database: Database, since_ms: int, limit: int, after: LegKey) -> tuple[Leg, ...]:
    # A leg and its events are stored in one transaction or after each other: seen at one moment, both or none.
    with database.snapshot():
        legs = [
            records.call_started(row) for row in database.query(_LEGS, (max(since_ms, after[0]), *after, limit))
        ]
        rows = database.query(_EVENTS_OF, (json.dumps([leg.call_sid for leg in legs]),))
    events = [records.call_event(row) for row in rows]
    return tuple(
        Leg(leg, tuple(each for each in events if (each.call_sid, each.leg) == (leg.call_sid, leg.leg)))
        for leg in legs
    )


def _call(database: Database, call_sid: str) -> CallHistory | None:
    with database.snapshot():
        legs = _rows_of(database, LEGS, call_sid, "started_ms, leg")
        turns = _rows_of(database, TURNS, call_sid, "started_ms, leg, seq")
        events = _rows_of(database, EVENTS, call_sid, "at_ms, leg, seq")
        endings = _rows_of(database, ENDINGS, call_sid, "ended_ms, leg")
    if not (legs or turns or events or endings):
        return None
    return CallHistory(
        call_sid,
        tuple(map(records.call_started, legs)),
        tuple(map(records.turn, turns)),
        tuple(map(records.call_event, events)),
        tuple(map(records.call_ended, endings)),
    )


def _rows_of(database: Database, table: Table, call_sid: str, order: str) -> list[Row]:
    columns = ", ".join(table.columns)
    sql = f"SELECT {columns} FROM {table.name} WHERE call_sid = ? ORDER BY {order}"  # noqa: S608 - names of our own, no data
    return database.query(sql, (call_sid,))
