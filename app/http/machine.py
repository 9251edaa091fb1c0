"""The state of this machine, as routing and health see it."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.backends.pool import Backends
from app.bridge.call_registry import CallRegistry
from app.bridge.lag import LagMeter
from app.ledger.ledger import Ledger
from app.regions.routing import Here
from app.regions.zones import ZoneRule
from app.tenants.tenancy import Tenancy


@dataclass(frozen=True, slots=True)
class Machine:
    """The parts of this machine whose state decides whether it takes a call."""

    region: str
    deployed: tuple[str, ...]
    """The regions that have machines of ours."""
    zones: Mapping[str, ZoneRule]
    ledgers: Mapping[str, Ledger]
    tenancy: Tenancy
    backends: Backends
    registry: CallRegistry
    lag: LagMeter

    def here(self) -> Here:
        """Return what the routing decides by: the zones that are usable here, and whether there is room."""
        return Here(
            self.region,
            self.deployed,
            frozenset(zone for zone in self.ledgers if self.backends.usable(self.zones[zone])),
            self.registry.draining,
            self.registry.full(),
            self.registry.crowded(),
            self.lag.high,
            starting=not self.tenancy.settled,
        )

    @property
    def served_zones(self) -> tuple[str, ...]:
        """The zones whose calls can be taken here: they have a ledger, and a backend that they allow."""
        return tuple(sorted(zone for zone in self.ledgers if self.backends.serves(self.zones[zone])))

    @property
    def test_numbers(self) -> tuple[str, ...]:
        """The numbers that test calls may dial here."""
        numbers = self.tenancy.test_numbers
        return tuple(numbers[zone] for zone in self.served_zones if zone in numbers)
