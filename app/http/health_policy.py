"""Decides how this machine is doing: what takes it out of Fly's routing, and what an operator should look at.

"Down" (503) takes a machine out of Fly's routing. When every machine is down the edge has no candidate, and the
caller hears Twilio's own error (fly.md 11 and 18, PR01). No machine can know how the others are, so a machine is
down only for reasons that end by themselves: it is about to stop, or it has just started. A machine that reaches
no backend, or has no room, stays up: it sends each call on to the next region itself (app/regions/routing.py), and
where no region is left it answers with the tenant's apology.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from app.backends.pool import TRIED_LATE
from app.bridge.front import Front
from app.http.health import Health
from app.http.machine import Machine
from app.regions.routing import Here
from twiml.replay_policy import ReplayPolicy

STARTING_LIMIT_S = 60.0
"""How long a machine that has not read the tenants yet stays out of the routing. Reading them usually takes two
seconds. When it takes longer the database is away, perhaps for all machines."""


def assess(here: Here, up_s: float, troubles: Sequence[str]) -> tuple[str | None, str | None]:
    """Return why this machine must get no new calls, and what does not work although it may; None: nothing.

    `up_s`: seconds since its start. `troubles`: what else does not work while calls go on, the worst first.
    """
    if here.draining:
        return "draining", None
    if here.starting and up_s < STARTING_LIMIT_S:
        return "starting", None
    states = (
        ("starting", here.starting),
        ("no_backend", not here.usable),
        ("full", here.full),
        ("lagging", here.lagging),
    )
    return None, next(chain((name for name, holds in states if holds), troubles), None)


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """Looks at this machine and decides how it is doing."""

    machine: Machine
    replay_policy: ReplayPolicy
    front: Front
    clock: Callable[[], float]
    """Seconds of a clock that never goes back."""
    started_at_s: float
    """When the server started, by `clock`."""
    last_drain: Mapping[str, object] | None = None
    """How this machine's last drain went, before the server started."""

    def look(self) -> Health:
        """Return how this machine is doing now."""
        ledgers, registry = self.machine.ledgers, self.machine.registry
        # Why a ledger is broken, which names paths and hosts, is in the log and in `nearcall ledger status`.
        broken = sorted(zone for zone, ledger in ledgers.items() if not ledger.healthy)
        set_aside = sum(ledger.set_aside for ledger in ledgers.values())
        states = self.machine.backends.states
        details: dict[str, object] = {
            "calls": registry.counts,
            "loop_lag_ms": round(self.machine.lag.lag_ms),
            "ledger_depth": sum(ledger.depth for ledger in ledgers.values()),
            "decisions": self.replay_policy.counts,
            "connections": {"open": self.front.open, "closed": self.front.closed},
            "backends": states,
        }
        if self.last_drain is not None:
            details["last_drain"] = self.last_drain
        progress = registry.drain_progress
        if progress is not None:
            details["drain"] = progress
        if broken:
            details["ledger"] = broken
        if set_aside:
            details["ledger_set_aside"] = set_aside
        troubles = (
            ("ledger", broken or set_aside),
            ("tenants", self.machine.tenancy.trouble),
            ("backends", not TRIED_LATE.isdisjoint(states.values())),
        )
        here = self.machine.here()
        up_s = self.clock() - self.started_at_s
        down, degraded = assess(here, up_s, [name for name, holds in troubles if holds])
        return Health(down, degraded, details, here.region, self.machine.test_numbers)
