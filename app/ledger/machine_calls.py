"""How many calls each machine has, by tenant: written with a machine's heartbeat, read from the others' replicas.

The numbers are some seconds old when another machine sees them, so a limit that counts with them is approximate.
A machine that has not reported for STALE_S counts for nothing: it is gone, or cut off, and so may its calls be.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import orjson

from app.storage.database import Database, DatabaseError, damage
from app.storage.statement import Statement

STALE_S = 20.0
"""Four heartbeats."""

CountCalls = Callable[[], Mapping[str, int]]
"""The number of this machine's calls, by tenant."""

_REPORT = (
    "INSERT INTO machine_calls (machine, at_ms, calls) VALUES (?, ?, ?)"
    " ON CONFLICT (machine) DO UPDATE SET at_ms = excluded.at_ms, calls = excluded.calls"
)
_FORGET = "DELETE FROM machine_calls WHERE at_ms < ?"
_OTHERS = (
    "SELECT at_ms, key, CAST(value AS INTEGER)"
    " FROM machine_calls, json_each(machine_calls.calls) WHERE machine <> ?"
)


@dataclass(frozen=True, slots=True)
class Report:
    """A machine's word about one tenant."""

    at_ms: int
    tenant: str
    calls: int


def report(machine: str, at_ms: int, calls: Mapping[str, int], *, forget_ms: int) -> list[Statement]:
    """The statements that tell other machines about the calls of this one.

    They remove what machines reported that have been silent for `forget_ms`.
    """
    text = orjson.dumps(dict(calls), option=orjson.OPT_SORT_KEYS).decode()
    return [Statement(_REPORT, (machine, at_ms, text)), Statement(_FORGET, (at_ms - forget_ms,))]


def reports_of_others(database: Database, machine: str) -> tuple[Report, ...]:
    """What all machines but this one have reported. Raises DatabaseError for a damaged file."""
    try:
        rows = database.query(_OTHERS, (machine,))
    except DatabaseError as error:
        if damage(error) is not None:
            raise
        return ()  # the primary is not migrated yet
    return tuple(Report(int(at_ms or 0), str(tenant), int(calls or 0)) for at_ms, tenant, calls in rows)


def calls_in(reports: Iterable[Report], tenant: str, now_ms: int) -> int:
    """How many calls the tenant has, as reported lately."""
    return sum(each.calls for each in reports if each.tenant == tenant and now_ms - each.at_ms < STALE_S * 1000)
