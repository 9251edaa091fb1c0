"""Opens the tenants of a server: the copy of the global zone's database on this machine, or its local file."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from app.backends.table import allowed
from app.config import Settings
from app.ledger.ledger import Ledger
from app.ledger.zone_files import zone_of
from app.ledger.zones import DEFAULT_ZONE
from app.tenants.directory import TenantDirectory
from app.tenants.fields import Known
from app.tenants.tenancy import Tenancy


@asynccontextmanager
async def open_tenancy(settings: Settings, ledgers: Mapping[str, Ledger]) -> AsyncIterator[Tenancy]:
    """Read the tenants once, and keep reading them until the block ends. `ledgers`: of this machine, by zone."""
    ledger = ledgers.get(DEFAULT_ZONE)
    known = Known(settings.zones.keys(), settings.backend_names)
    if ledger is None:
        directory = TenantDirectory(
            zone_of(settings.ledger, DEFAULT_ZONE).readable, known, damaged=lambda _why: None
        )
    else:
        directory = TenantDirectory(ledger.readable, known, damaged=ledger.distrust)
    rules = settings.zones.values()
    tenancy = Tenancy(
        directory,
        settings.plan,
        copied=ledger is not None and ledger.copied,
        promised=any(rule.promises and allowed(settings.backends, rule) for rule in rules),
        current=lambda: ledger is not None and ledger.current,
        # A zone that is strict about Twilio's region or Fly's edge would refuse a test call.
        test_zones=[rule.name for rule in rules if rule.twilio_region is None and rule.edges is None],
    )
    await directory.look()
    directory.start()
    try:
        yield tenancy
    finally:
        await directory.stop()
