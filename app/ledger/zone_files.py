"""The zones of a machine, from its settings."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from app.ledger.zones import DEFAULT_ZONE, Zone


class PrimaryPlace(Protocol):
    """Where a primary is, and how to be let in."""

    @property
    def url(self) -> str:
        """http(s)."""

    def token(self) -> str:
        """The token as it is now. Raises ValueError when there is none."""


class Places(Protocol):
    """What settings say about where records are."""

    @property
    def data_dir(self) -> Path:
        """The directory of this machine's files."""

    @property
    def primaries(self) -> Mapping[str, PrimaryPlace]:
        """By zone. A zone without one keeps its records in a file on this machine."""


class ZonedPlaces(Protocol):
    """The settings of all zones."""

    @property
    def zones(self) -> Collection[str]:
        """The names of all zones."""

    @property
    def ledger(self) -> Places:
        """Where their records are."""


def zone_of(ledger: Places, name: str) -> Zone:
    """A zone as this machine keeps it: with its database, or in a local file."""
    primary = ledger.primaries.get(name)
    if primary is None:
        return Zone(name, ledger.data_dir, None, lambda: "")
    return Zone(name, ledger.data_dir, primary.url, primary.token)


def zones_here(settings: ZonedPlaces) -> list[Zone]:
    """The zones of these settings that have a database, or a file on this machine."""
    zones = [zone_of(settings.ledger, name) for name in settings.zones]
    return [zone for zone in zones if zone.url is not None or zone.name == DEFAULT_ZONE or zone.local.is_file()]


def zones_with_traces(settings: ZonedPlaces) -> list[Zone]:
    """`zones_here`, and those of which only a spool is left on this machine: for erasure, and to tell of them."""
    zones = [zone_of(settings.ledger, name) for name in settings.zones]
    here = {zone.name for zone in zones_here(settings)}
    return [zone for zone in zones if zone.name in here or zone.spool.is_file()]


def set_aside(zone: Zone) -> list[Path]:
    """Damaged files of a zone that the server has put aside, each without its log. No command can read them."""
    found = set(zone.directory.glob("*.damaged-*"))
    # Includes a log whose file is gone.
    return sorted(
        each for each in found if each.with_name(re.sub(r"-(shm|wal)$", "", each.name)) not in found - {each}
    )
