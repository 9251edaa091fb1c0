"""How each zone's ledger is, seen from this machine without its server: the primary, the spool, the replica.

Asks the primary three questions and reads files; changes nothing. Does not know how the answer is printed.
"""

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from app.cli.migrate import refuse_replacement
from app.ledger.zone_files import set_aside
from app.ledger.zones import Zone
from app.storage.database import open_for_reading
from app.storage.errors import StorageError
from app.storage.migrations import known_migrations, require_migrated
from app.storage.primary import Primary, PrimaryError, Stored
from app.storage.primary_migrations import check_primary
from app.storage.statement import Statement

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
    set_aside: int = 0
    """Records that were refused and wait for an operator, on the primary and on this machine."""
    replica_age_s: float | None = None
    """Since the newest heartbeat of any machine that this machine's copy has."""


async def report(zone: Zone) -> ZoneReport:
    """Look at a zone. Never raises for anything that is wrong with it."""
    problems = [f"{path} may have what callers said: delete it when it is of no use" for path in set_aside(zone)]
    if zone.url is None:
        set_aside_count = _of_file(zone.local, problems)
        depth, spool_oldest_s, here = _of_spool(zone.spool, problems)
        set_aside_count += here
        if depth:
            problems.append(f"spool: {depth} records wait: a server that starts takes them into {zone.local}")
        _tell_set_aside(set_aside_count, problems)
        return ZoneReport(
            zone.name, str(zone.local), tuple(problems), None, depth or None, spool_oldest_s, set_aside_count
        )
    if zone.local.is_file():
        problems.append(f"local: {zone.local} is from before there was a database; only 'ledger purge' reads it")
    round_trip_ms, set_aside_count = await _of_primary(zone.url, zone, problems)
    depth, spool_oldest_s, here = _of_spool(zone.spool, problems)
    set_aside_count += here
    _tell_set_aside(set_aside_count, problems)
    replica_age_s = _of_replica(zone.replica, problems)
    return ZoneReport(
        zone.name,
        zone.url,
        tuple(problems),
        round_trip_ms,
        depth,
        spool_oldest_s,
        set_aside_count,
        replica_age_s,
    )


def _tell_set_aside(count: int, problems: list[str]) -> None:
    if count:
        problems.append(
            f"{count} records were refused and are set aside: the server's log says why. When that is mended,"
            " 'nearcall ledger resend'"
        )


def _of_file(path: Path, problems: list[str]) -> int:
    try:
        with closing(open_for_reading(path)) as database:
            require_migrated(database, known_migrations())
            [(refused,)] = database.query("SELECT count(*) FROM refused")
    except StorageError as error:
        problems.append(str(error))
        return 0
    return int(refused or 0)


async def _of_primary(url: str, zone: Zone, problems: list[str]) -> tuple[float | None, int]:
    refused = 0
    async with Primary(url, zone.token) as primary:
        try:
            await refuse_replacement(zone, primary.query)
            await check_primary(primary, known_migrations())
            # A write that finds nothing to change: a token that may only read is refused all the same.
            outcome = await primary.batch([Statement("DELETE FROM heartbeats WHERE machine IS NULL", ())])
            if not isinstance(outcome, Stored):
                raise PrimaryError(outcome)
            [(count,)] = await primary.query(Statement("SELECT count(*) FROM refused", ()))
            refused = int(count or 0)
        except StorageError as error:
            problems.append(f"primary: {error}")
        # Of the last question, which found the connection open.
        return primary.round_trip_ms, refused


def _of_spool(path: Path, problems: list[str]) -> tuple[int | None, float | None, int]:
    """How many records wait, the age of the oldest, and how many are set aside."""
    if not path.is_file():
        return 0, None, 0
    try:
        with closing(open_for_reading(path)) as database:
            # A server killed in its first start leaves an empty file; earlier versions have no table aside.
            there = {name for (name,) in database.query("SELECT name FROM sqlite_schema WHERE type = 'table'")}
            waiting = database.query("SELECT count(*), min(at_ms) FROM spool") if "spool" in there else [(0, None)]
            [(depth, oldest_ms)] = waiting
            aside = int(database.query("SELECT count(*) FROM aside")[0][0] or 0) if "aside" in there else 0
    except StorageError as error:
        problems.append(f"spool: {error}")
        return None, None, 0
    return int(depth or 0), None if oldest_ms is None else _age_s(int(oldest_ms)), aside


def _of_replica(path: Path, problems: list[str]) -> float | None:
    if not path.is_file():
        problems.append("replica: there is none; a running server keeps one")
        return None
    try:
        with closing(open_for_reading(path)) as database:
            require_migrated(database, known_migrations())
            [(beat_ms,)] = database.query("SELECT max(at_ms) FROM heartbeats")
    except StorageError as error:
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
