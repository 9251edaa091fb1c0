"""How each zone's ledger is, seen from this machine without its server: the primary, the spool, the replica.

Asks the primary three questions and reads files; changes nothing. Refuses to know how the answer is printed.
"""

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from app.ledger.file import open_for_reading
from app.ledger.ledger import LedgerError
from app.ledger.migrate import known_migrations, require_migrated
from app.ledger.migrate_primary import check_primary
from app.ledger.primary import Primary, PrimaryError, Stored
from app.ledger.sql import Statement
from app.ledger.zones import Zone
from app.ops.zones import set_aside

STALE_S = 30.0
"""Older than this a copy is not following: heartbeats come every 5 s, and arrive within one."""


@dataclass(frozen=True, slots=True)
class ZoneReport:
    """One zone."""

    zone: str
    where: str
    """URL of the primary, or path of the local file."""
    problems: tuple[str, ...]
    """What is wrong, a sentence each."""
    round_trip_ms: float | None = None
    """One question to the primary, on an open connection."""
    spool_depth: int | None = None
    """Records on this machine that the primary does not have yet."""
    spool_oldest_s: float | None = None
    """Age of the oldest of them."""
    replica_age_s: float | None = None
    """Since the newest heartbeat of any machine that this machine's copy has."""


async def report(zone: Zone) -> ZoneReport:
    """Look at a zone. Never raises for anything that is wrong with it."""
    problems = [f"{path} may have what callers said: delete it when it is of no use" for path in set_aside(zone)]
    if zone.url is None:
        problems += _of_file(zone.local)
        depth, spool_oldest_s = _of_spool(zone.spool, problems)
        if depth:
            problems.append(f"spool: {depth} records wait: a server that starts takes them into {zone.local}")
        return ZoneReport(zone.name, str(zone.local), tuple(problems), None, depth or None, spool_oldest_s)
    if zone.local.is_file():
        problems.append(f"local: {zone.local} is from before there was a database; only 'ledger purge' reads it")
    round_trip_ms = await _of_primary(zone.url, zone, problems)
    depth, spool_oldest_s = _of_spool(zone.spool, problems)
    replica_age_s = _of_replica(zone.replica, problems)
    return ZoneReport(zone.name, zone.url, tuple(problems), round_trip_ms, depth, spool_oldest_s, replica_age_s)


def _of_file(path: Path) -> list[str]:
    try:
        with closing(open_for_reading(path)) as database:
            require_migrated(database, known_migrations())
    except LedgerError as error:
        return [str(error)]
    return []


async def _of_primary(url: str, zone: Zone, problems: list[str]) -> float | None:
    async with Primary(url, zone.token) as primary:
        try:
            await check_primary(primary, known_migrations())
            # A write that finds nothing to change: a token that may only read is refused all the same.
            outcome = await primary.batch([Statement("DELETE FROM heartbeats WHERE machine IS NULL", ())])
            if not isinstance(outcome, Stored):
                raise PrimaryError(outcome)
        except LedgerError as error:
            problems.append(f"primary: {error}")
        # Of the last question, which found the connection open.
        return primary.round_trip_ms


def _of_spool(path: Path, problems: list[str]) -> tuple[int | None, float | None]:
    if not path.is_file():
        return 0, None
    try:
        with closing(open_for_reading(path)) as database:
            [(depth, oldest_ms)] = database.query("SELECT count(*), min(at_ms) FROM spool")
    except LedgerError as error:
        problems.append(f"spool: {error}")
        return None, None
    return int(depth or 0), None if oldest_ms is None else _age_s(int(oldest_ms))


def _of_replica(path: Path, problems: list[str]) -> float | None:
    if not path.is_file():
        problems.append("replica: there is none; a running server keeps one")
        return None
    try:
        with closing(open_for_reading(path)) as database:
            require_migrated(database, known_migrations())
            [(beat_ms,)] = database.query("SELECT max(at_ms) FROM heartbeats")
    except LedgerError as error:
        problems.append(f"replica: {error}")
        return None
    if beat_ms is None:
        problems.append("replica: no machine has given a sign of life yet")
        return None
    age_s = _age_s(int(beat_ms))
    if age_s > STALE_S:
        problems.append(f"replica: {age_s:.0f} s behind; no server runs here, or it cannot reach the primary")
    return age_s


def _age_s(at_ms: int) -> float:
    return max(0.0, time.time() - at_ms / 1_000)
