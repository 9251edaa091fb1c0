"""Opens the ledgers of a server, closes them, and says what was lost.

A server always starts. A zone whose ledger cannot be used has one that keeps records on this machine's disk until
a restart, and the log has one ERROR that says why.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from app.call.records import Record
from app.ledger.ledger import Ledger, RecordsLostError
from app.ledger.local import LocalLedger
from app.ledger.prices import Prices
from app.ledger.spool import Spool
from app.ledger.turso import TursoLedger
from app.ledger.waiting import WaitingLedger
from app.ledger.zone_files import Places, zone_of
from app.ledger.zones import Zone
from app.storage.errors import StorageError

_log = logging.getLogger("nearcall.ledger")


class LedgerPlaces(Places, Protocol):
    """What a server's settings say about its ledgers."""

    @property
    def region(self) -> str:
        """Where this machine is."""

    @property
    def machine(self) -> str:
        """Tells the machines that share a primary apart."""

    @property
    def faults(self) -> Mapping[str, str]:
        """By zone, what is wrong with the settings of its primary."""


@asynccontextmanager
async def open_ledgers(places: LedgerPlaces, allowed: Collection[str]) -> AsyncIterator[Mapping[str, Ledger]]:
    """A ledger for each zone that calls may be in here. Waits for this machine's disk, never for a network.

    `allowed`: the zones whose records may be kept on this machine. Raises StorageError, and at the end
    RecordsLostError if nothing else was raised before.
    """
    ledgers: dict[str, Ledger] = {}
    try:
        await _make_directory(places.data_dir)
        for name in _zones_with_a_place(places, allowed):
            ledgers[name] = await _open(zone_of(places, name), places)
        yield ledgers
    finally:
        lost = await _close(ledgers)
    if lost:
        raise RecordsLostError(lost)


def recorders(
    ledgers: Mapping[str, Ledger], watch: Callable[[Record], None]
) -> Mapping[str, Callable[[Record], None]]:
    """By zone, what a session hands its records to. It is given that of its own zone and no other.

    `watch` sees every record, with its cost.
    """
    prices = Prices.packed()

    def recorder(ledger: Ledger) -> Callable[[Record], None]:
        def remember(record: Record) -> None:
            priced = prices.priced(record)
            ledger.remember(priced)
            watch(priced)

        return remember

    return {zone: recorder(ledger) for zone, ledger in ledgers.items()}


def _zones_with_a_place(places: LedgerPlaces, allowed: Collection[str]) -> list[str]:
    """Zones that have a place for their records: a primary, or files when no zone has a primary.

    A zone without a primary beside others that have one takes no calls: its records would have nowhere to go.
    """
    configured = {*places.primaries, *places.faults}
    return sorted(configured & set(allowed) if configured else allowed)


async def _open(zone: Zone, places: LedgerPlaces) -> Ledger:
    if zone.name in places.faults:
        # A primary whose settings are bad may have left a copy.
        return await _open_waiting(zone, places.faults[zone.name], zone.replica)
    if zone.url is not None:
        return await TursoLedger.open(zone, region=places.region, machine=places.machine)
    await _make_directory(zone.local.parent)
    try:
        ledger = await LocalLedger.open(zone.local, spool=zone.spool)
    except StorageError as error:
        return await _open_waiting(zone, str(error), zone.local)
    if zone.spool.is_file():
        await _take_over(zone, ledger)
    try:
        await ledger.end_unfinished(time.time_ns() // 1_000_000)
    except StorageError as error:
        _log.warning("dead_legs_not_ended", extra={"zone": zone.name, "error": str(error)})
    return ledger


async def _open_waiting(zone: Zone, why: str, readable: Path) -> Ledger:
    extra = {"zone": zone.name, "error": why, "spool": str(zone.spool), "remedy": "mend it and restart"}
    _log.error("ledger_unusable", extra=extra)
    return await WaitingLedger.open(zone, why, readable)


async def _take_over(zone: Zone, ledger: LocalLedger) -> None:
    spool = await Spool.open(zone.spool)
    try:
        await ledger.take_over(spool)
    except StorageError as error:
        _log.warning("spool_not_taken_over", extra={"zone": zone.name, "error": str(error)})
    finally:
        await spool.close()


async def _close(ledgers: Mapping[str, Ledger]) -> Mapping[str, int]:
    """Close all at once: each may wait a while for its primary. Returns how many records each zone has lost."""
    await asyncio.gather(*(ledger.close() for ledger in ledgers.values()))
    lost = {zone: ledger.lost for zone, ledger in ledgers.items() if ledger.lost}
    for zone, count in lost.items():
        _log.error("ledger_records_lost", extra={"zone": zone, "lost": count, "error": ledgers[zone].last_error})
    return lost


async def _make_directory(path: Path) -> None:
    try:
        await asyncio.to_thread(path.mkdir, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StorageError(f"Cannot use {path} (NEARCALL_DATA_DIR): it is not a directory.") from error
    except OSError as error:
        raise StorageError(f"Cannot use {path} (NEARCALL_DATA_DIR): {error.strerror}.") from error
