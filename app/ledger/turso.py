"""The ledger of a zone that has a primary: everything of that zone in one place, started and stopped together.

    remember -> spool -> shipper -> primary -> replica -> queries

Starting waits for this machine's disk and for nothing else: a primary that is down, hangs or refuses us is found
out later, by the shipper, and shows in `last_error`. Refuses to know of other zones.
"""

import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

from app.call.records import Record
from app.ledger.heartbeat import Heartbeat
from app.ledger.ledger import LedgerError
from app.ledger.migrate import known_migrations
from app.ledger.migrate_primary import check_primary
from app.ledger.primary import Primary
from app.ledger.queries import Queries
from app.ledger.replica import Replica
from app.ledger.shipper import Pace, Shipper
from app.ledger.spool import Spool
from app.ledger.zones import Zone

DRAIN_S = 5.0
"""At the end, for the primary to take what is left. What it does not take is on the disk, for the next start."""


@dataclass(frozen=True, slots=True)
class ZoneStatus:
    """How a zone's ledger is doing on this machine."""

    zone: str
    spool_depth: int
    """Records that the primary does not have yet."""
    spool_oldest_s: float | None
    """Age of the oldest of them that is on the disk."""
    primary_answered_s_ago: float | None
    """None: not yet."""
    primary_round_trip_ms: float | None
    alarm: str | None
    """What somebody has to change before records get through."""
    replica_age_s: float | None
    """None: not known yet."""


class TursoLedger:
    """The `Ledger` of one zone. Make one with `open`."""

    def __init__(
        self,
        zone: Zone,
        spool: Spool,
        primary: Primary,
        replica: Replica,
        shipper: Shipper,
        heartbeat: Heartbeat,
    ) -> None:
        self._zone = zone
        self._spool = spool
        self._primary = primary
        self._replica = replica
        self._shipper = shipper
        self._heartbeat = heartbeat
        self._parts = AsyncExitStack()
        self.queries = Queries(zone.replica, damaged=replica.distrust)

    @classmethod
    async def open(cls, zone: Zone, *, machine: str, region: str, pace: Pace | None = None) -> Self:
        """Open the spool and start everything. Never waits for the primary or the replica.

        `machine` tells apart the machines that share the primary. Raises LedgerError when the spool cannot be had,
        and ValueError for a zone without a primary.
        """
        if zone.url is None:
            raise ValueError(f"zone {zone.name} has no primary")
        _make_directory(zone)
        spool = await Spool.open(zone.spool)
        primary = Primary(zone.url, zone.token)
        heartbeat = Heartbeat(primary, machine, region)
        replica = Replica(zone.replica, zone.url, zone.token, heartbeat)
        shipper = Shipper(
            zone.name, spool, primary, lambda one: check_primary(one, known_migrations()), pace or Pace()
        )
        ledger = cls(zone, spool, primary, replica, shipper, heartbeat)
        ledger._start()
        return ledger

    def _start(self) -> None:
        self._parts.push_async_callback(self._primary.aclose)
        self._parts.push_async_callback(self._spool.close)
        self._parts.push_async_callback(self._shipper.stop)
        self._parts.push_async_callback(self._heartbeat.stop)
        self._parts.push_async_callback(self._replica.stop)
        self._parts.push_async_callback(self.queries.close)
        self._shipper.start()
        self._heartbeat.start()
        self._replica.start()

    def remember(self, record: Record) -> None:
        self._spool.put(record)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything remembered so far is on this machine's disk, where no kill -9 takes it away."""
        return await self._spool.flush(timeout_s)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until the disk, then the primary, has everything; False when either took longer."""
        return await self._spool.flush(timeout_s) and await self._shipper.drain(timeout_s)

    async def close(self) -> None:
        """Deliver what is left, within DRAIN_S, and stop. What is not delivered stays in the spool.

        While an operator has to act first (a token, a migration) nothing can be delivered: only the disk is
        waited for.
        """
        if self._shipper.alarm is None:
            await self.drain(DRAIN_S)
        else:
            await self.flush(DRAIN_S)
        await self._parts.aclose()

    @property
    def depth(self) -> int:
        return self._spool.depth

    @property
    def lost(self) -> int:
        return self._spool.lost

    @property
    def healthy(self) -> bool:
        return self.last_error is None

    @property
    def last_error(self) -> str | None:
        # The heartbeat finds a primary out that hangs while no call records anything.
        return self._spool.last_error or self._shipper.last_error or self._heartbeat.trouble

    def status(self) -> ZoneStatus:
        """For `nearcall ledger status`, /healthz and metrics."""
        oldest_ms = self._spool.oldest_ms
        return ZoneStatus(
            zone=self._zone.name,
            spool_depth=self._spool.depth,
            spool_oldest_s=None if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1_000),
            primary_answered_s_ago=self._primary.answered_s_ago,
            primary_round_trip_ms=self._primary.round_trip_ms,
            alarm=self._shipper.alarm,
            replica_age_s=self._replica.age_s(),
        )


def _make_directory(zone: Zone) -> None:
    """0700: a zone's records are nobody else's business. Raises LedgerError."""
    if not zone.data_dir.is_dir():
        raise LedgerError(
            f"the data directory {zone.data_dir} does not exist: create it, or point NEARCALL_DATA_DIR elsewhere"
        )
    try:
        zone.directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"cannot create {zone.directory}: {error.strerror}") from error
