"""The ledger of a zone that has a primary: everything of that zone in one place, started and stopped together.

    remember -> spool -> shipper -> primary -> replica

Starting waits for this machine's disk and for nothing else: a primary that is down, hangs or refuses us is found
out later, by the shipper, and shows in `last_error`. Does not know of other zones.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from app.ledger.heartbeat import Heartbeat, wall_ms
from app.ledger.machine_calls import CountCalls
from app.ledger.replica import Replica
from app.ledger.shipper import Pace, Shipper
from app.ledger.spool import Spool, SpooledLedger
from app.ledger.zones import Zone
from app.storage.migrations import known_migrations
from app.storage.primary import Primary
from app.storage.primary_migrations import check_primary
from app.storage.statement import Row, Statement
from app.storage.thread import OwnThread

DRAIN_S = 5.0
"""At the end, for the primary to take what is left. What it does not take is on the disk, for the next start."""
WATCH_S = 1.0
"""How often to look whether somebody has mended what kept records from the primary."""


class TursoLedger(SpooledLedger):
    """The `Ledger` of one zone. Make one with `open`."""

    def __init__(
        self,
        spool: Spool,
        primary: Primary,
        replica: Replica,
        shipper: Shipper,
        heartbeat: Heartbeat,
        token: Callable[[], str],
    ) -> None:
        super().__init__(spool)
        self._token = token
        self._thread = OwnThread("ledger-token")
        self._watching: asyncio.Task[None] | None = None
        self._primary = primary
        self._replica = replica
        self._shipper = shipper
        self._heartbeat = heartbeat
        self._parts = AsyncExitStack()

    @classmethod
    async def open(cls, zone: Zone, *, machine: str, region: str, pace: Pace | None = None) -> Self:
        """Open the spool and start everything. Never waits for the primary or the replica.

        `machine` tells apart the machines that share the primary. Raises StorageError when the spool cannot be
        had, and ValueError for a zone without a primary.
        """
        if zone.url is None:
            raise ValueError(f"zone {zone.name} has no primary")
        zone.make_directory()
        spool = await Spool.open(zone.spool)
        primary = Primary(zone.url, zone.token)
        heartbeat = Heartbeat(primary, machine, region)
        replica = Replica(zone.replica, zone.url, zone.token, heartbeat)
        shipper = Shipper(
            zone.name, spool, primary, lambda one: check_primary(one, known_migrations()), pace or Pace()
        )
        ledger = cls(spool, primary, replica, shipper, heartbeat, zone.token)
        ledger._start()
        return ledger

    def _start(self) -> None:
        self._parts.push_async_callback(self._primary.aclose)
        self._parts.push_async_callback(self._spool.close)
        self._parts.push_async_callback(self._shipper.stop)
        self._parts.push_async_callback(self._heartbeat.stop)
        self._parts.push_async_callback(self._replica.stop)
        self._parts.push_async_callback(self._stop_watching)
        self._shipper.start()
        self._heartbeat.start()
        self._replica.start()
        self._watching = asyncio.create_task(self._watch(), name="ledger-token")

    async def _watch(self) -> None:
        """Have a new token tried at once, and a heartbeat that waits to try again when records get through."""
        token, stored = await self._token_now(), self._shipper.stored
        while True:
            await asyncio.sleep(WATCH_S)
            before, token = token, await self._token_now()
            works, stored = self._shipper.stored != stored, self._shipper.stored
            if token != before:
                self._shipper.hurry()
            if self._heartbeat.trouble is not None and (works or token != before):
                await self._heartbeat.beat()

    async def _token_now(self) -> str | None:
        try:
            return await self._thread.run(self._token)
        except ValueError:
            return None  # there is none, which the shipper tells of

    async def _stop_watching(self) -> None:
        self._thread.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    def distrust(self, why: str) -> None:
        """Have the copy made anew: a reader found it damaged. Call it from the event loop's thread."""
        self._replica.distrust(why)

    @property
    def readable(self) -> Path:
        return self._replica.path

    @property
    def copied(self) -> bool:
        return True

    @property
    def current(self) -> bool:
        """True when the copy shows what the primary had a moment ago."""
        return self._replica.healthy

    def report_calls(self, count: CountCalls) -> None:
        self._heartbeat.report_calls(count)

    def calls_elsewhere(self, tenant: str) -> int:
        return self._replica.calls_elsewhere(tenant, wall_ms())

    async def drain(self, timeout_s: float) -> bool:
        """Wait until the disk, then the primary, has everything; False when that took longer."""
        ends_at = time.monotonic() + timeout_s
        flushed = await self._spool.flush(timeout_s)
        return flushed and await self._shipper.drain(max(0.0, ends_at - time.monotonic()))

    async def ask(self, statement: Statement) -> Sequence[Row]:
        """Ask the primary. Raises StorageError."""
        return await self._primary.query(statement)

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
    def set_aside(self) -> int:
        return self._spool.aside + self._replica.refused

    @property
    def heartbeat_error(self) -> str | None:
        """Why the primary did not take the last sign of life; None when it did."""
        return self._heartbeat.trouble

    @property
    def last_error(self) -> str | None:
        # The heartbeat finds a primary out that hangs while no call records anything.
        trouble = super().last_error or self._shipper.last_error or self._heartbeat.trouble
        return trouble or self._replica.trouble
