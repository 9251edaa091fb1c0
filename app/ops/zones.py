"""The zones of a machine, from its settings."""

from app.config import ZONES, LedgerSettings
from app.ledger.zones import DEFAULT_ZONE, Zone


def zone_of(settings: LedgerSettings, name: str) -> Zone:
    """A zone as this machine keeps it: with its database, or in a local file."""
    primary = settings.primaries.get(name)
    if primary is None:
        return Zone(name, settings.data_dir, None, lambda: "")
    return Zone(name, settings.data_dir, primary.url, primary.token)


def zones_here(settings: LedgerSettings) -> list[Zone]:
    """The zones of these settings that have a database, or a file on this machine."""
    zones = [zone_of(settings, name) for name in ZONES]
    return [zone for zone in zones if zone.url is not None or zone.name == DEFAULT_ZONE or zone.local.is_file()]
