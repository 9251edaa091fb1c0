"""Opens the tenants of a server: the copy of the global zone's database on this machine, or its local file."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from app.backends.table import allowed
from app.config import Settings
from app.ledger.ledger import Ledger
from app.ledger.turso import TursoLedger
from app.ledger.zone_files import zone_of
from app.ledger.zones import DEFAULT_ZONE
from app.tenants.directory import TenantDirectory
from app.tenants.fields import Known
from app.tenants.tenancy import Tenancy


@asynccontextmanager
async def open_tenancy(settings: Settings, ledgers: Mapping[str, Ledger]) -> AsyncIterator[Tenancy]:
    """Read the tenants once, and keep reading them until the block ends. `ledgers`: of this machine, by zone."""
    zone = zone_of(settings.ledger, DEFAULT_ZONE)
    faulty = DEFAULT_ZONE in settings.ledger.faults
    copied = DEFAULT_ZONE in ledgers and zone.url is not None and not faulty
    current, distrust = _copy_of(ledgers.get(DEFAULT_ZONE))
    directory = TenantDirectory(
        # A database whose settings are bad may have left a copy: its tenants are still tenants.
        zone.replica if zone.url is not None or faulty else zone.local,
        Known(settings.zones.keys(), settings.backend_names),
        damaged=distrust,
    )
    rules = settings.zones.values()
    tenancy = Tenancy(
        directory,
        settings.plan,
        copied=copied,
        promised=any(rule.promises and allowed(settings.backends, rule) for rule in rules),
        current=current,
        # A zone that is strict about Twilio's region or Fly's edge would refuse a test call.
        test_zones=[rule.name for rule in rules if rule.twilio_region is None and rule.edges is None],
    )
    await directory.look()
    directory.start()
    try:
        yield tenancy
    finally:
        await directory.stop()


def _copy_of(ledger: Ledger | None) -> tuple[Callable[[], bool], Callable[[str], None]]:
    """Whether the file that readers use is current, and how to report that it is damaged."""
    if isinstance(ledger, TursoLedger):
        return lambda: ledger.current, ledger.distrust
    return lambda: True, lambda _why: None
