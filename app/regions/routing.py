"""Take a call here, send it to another region, or refuse it: the one decision, for webhooks and upgrades alike.

Fail closed: what is not allowed is refused, never "just this once". A live call is never sent anywhere, because
nobody asks here about one. Pure. Refuses to know how a replay is spelt on the wire, and who signed what.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.regions.table import LOCAL, nearest_first
from app.regions.zones import ZoneRule

HOPS_MAX = 6
"""Regions that may send one request on: each of ours once. Fly stops at ten (fly.md 5.4)."""


class Reason(StrEnum):
    """Why a call is not taken here. For logs and counters."""

    ZONE = "zone"
    """Its zone does not allow this region."""
    STARTING = "starting"
    """Nobody knows here yet whose number it is."""
    DRAINING = "draining"
    FULL = "full"
    """This machine has as many calls as it may have."""
    CROWDED = "crowded"
    """Too many calls are being set up here at this moment."""
    LAGGING = "lagging"
    """The event loop is late, and one more call would make the audio of all worse."""
    TENANT_FULL = "tenant_full"
    """The tenant has as many calls on this machine as it may have on one."""
    TENANT_FULL_EVERYWHERE = "tenant_full_everywhere"
    """The tenant has as many calls as it may have on all machines together."""
    BACKEND = "backend"
    """No backend that the zone allows can be used from here."""
    NOT_HERE = "not_here"
    """It is about a call that this machine knows nothing of."""
    UNKNOWN_ZONE = "unknown_zone"
    TWILIO_REGION = "twilio_region"
    """A strict zone, and another Twilio region processes the call."""
    EDGE = "edge"
    """A strict zone, and the call came in through another edge."""


NO_ROOM = frozenset(
    {Reason.FULL, Reason.CROWDED, Reason.LAGGING, Reason.TENANT_FULL, Reason.TENANT_FULL_EVERYWHERE}
)
"""Everything works, and there is no room: the caller hears a busy tone, or what the tenant has chosen instead."""


@dataclass(frozen=True, slots=True)
class Here:
    """This machine, at this moment."""

    region: str
    deployed: tuple[str, ...]
    """Regions that have machines of ours."""
    usable: frozenset[str]
    """Zones for which a backend can be used from here."""
    draining: bool = False
    full: bool = False
    crowded: bool = False
    """Too many calls are being set up. Ends within seconds."""
    lagging: bool = False
    """The event loop has been late for some seconds."""
    starting: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that asks for a call to be taken, as far as it can be believed."""

    zone: str
    edge: str | None = None
    """Fly's edge that it came in through (header Fly-Region, which Fly overwrites)."""
    twilio_region: str | None = None
    """Whose token signed it; None: not looked at yet."""
    tried: tuple[str, ...] = ()
    """Regions that sent it on to us, by our own signed word."""
    came_back: bool = False
    """Fly could not deliver our replay, and does not take another one for this request (fly.md 5.4)."""


@dataclass(frozen=True, slots=True)
class Take:
    """Here."""


@dataclass(frozen=True, slots=True)
class Replay:
    """To the first of these regions that has a machine that can be reached."""

    regions: tuple[str, ...]
    why: Reason


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nowhere. The caller hears a sentence."""

    why: Reason


Decision = Take | Replay | Refuse


def decide(arrival: Arrival, here: Here, zones: Mapping[str, ZoneRule]) -> Decision:
    """What happens to a request that would begin a call."""
    rule = zones.get(arrival.zone)
    if rule is None:
        return Refuse(Reason.UNKNOWN_ZONE)
    if rule.twilio_region is not None and arrival.twilio_region not in (None, rule.twilio_region):
        return Refuse(Reason.TWILIO_REGION)
    if rule.edges is not None and here.region != LOCAL and arrival.edge not in rule.edges:
        return Refuse(Reason.EDGE)
    why = _why_not(rule, here)
    return Take() if why is None else elsewhere(arrival, here, rule, why)


def elsewhere(arrival: Arrival, here: Here, rule: ZoneRule, why: Reason) -> Replay | Refuse:
    """Where a request goes that this machine does not take: each region is tried once, the nearest first."""
    if arrival.came_back or here.region == LOCAL or len(arrival.tried) >= HOPS_MAX:
        return Refuse(why)
    left = {region for region in here.deployed if rule.allows(region)} - {here.region, *arrival.tried}
    return Replay(nearest_first(here.region, left), why) if left else Refuse(why)


def _why_not(rule: ZoneRule, here: Here) -> Reason | None:
    if not rule.allows(here.region):
        return Reason.ZONE
    if here.starting:
        return Reason.STARTING
    if here.draining:
        return Reason.DRAINING
    if here.full:
        return Reason.FULL
    if here.lagging:
        return Reason.LAGGING
    if here.crowded:
        return Reason.CROWDED
    if rule.name not in here.usable:
        return Reason.BACKEND
    return None
