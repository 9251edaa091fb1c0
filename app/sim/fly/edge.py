"""Chooses a Machine as Fly's edge does: the least loaded one in the nearest region that has a usable one.

Pure: what the edge believes about the Machines goes in, one Machine or none comes out. No socket, no clock, no
header. Sources: fly.md 4 (choice, load classes, soft and hard limit), 5.1 (regions of a replay), 19
rules 2, 5, 6.
"""

import enum
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

Rtt = Callable[[str, str], float]
"""`rtt_ms(a, b)`: the round trip between two places, regions or client locations, in milliseconds."""


class State(enum.StrEnum):
    STARTED = "started"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Machine:
    """What an edge knows about one Machine. Fly's defaults: soft limit 20, no hard limit (fly.md 2.5).

    `checks_ok` starts False: nothing is routed to a Machine before its first passing check.
    """

    id: str
    region: str
    port: int
    host: str = "127.0.0.1"
    state: State = State.STARTED
    cordoned: bool = False
    checks_ok: bool = False
    soft_limit: int = 20
    hard_limit: int | None = None

    @property
    def routable(self) -> bool:
        """True when new requests may go to it, apart from its load."""
        return self.state is State.STARTED and not self.cordoned and self.checks_ok


Group = frozenset[str] | None
"""Regions that are tried together; None is every region."""

NEAREST: Final[tuple[Group, ...]] = (None,)

_NORTH_AMERICA: Final = frozenset({"dfw", "ewr", "iad", "lax", "ord", "sjc", "yyz"})
_ALIASES: Final[Mapping[str, Group]] = {
    "any": None,
    # The regions of fly.md 12.1; which alias has which is by geography (unverified). `eu` is Europe, with London.
    "apac": frozenset({"bom", "nrt", "sin", "syd"}),
    "eu": frozenset({"ams", "arn", "cdg", "fra", "lhr"}),
    "na": _NORTH_AMERICA,
    "sa": frozenset({"gru"}),
    "us": _NORTH_AMERICA - {"yyz"},
    "usa": _NORTH_AMERICA - {"yyz"},
}


def region_groups(codes: Iterable[str]) -> tuple[Group, ...]:
    """Returns the groups for region codes and aliases, in the order in which they are tried."""
    return tuple(_ALIASES.get(code, frozenset({code})) for code in codes)


@dataclass(frozen=True, slots=True)
class RoutingPreference:
    """The Machines that a request may go to. Groups are tried in order; nothing outside them is tried."""

    groups: tuple[Group, ...] = NEAREST
    instance: str | None = None
    prefer_instance: str | None = None
    without: frozenset[str] = frozenset()


def nearest_edge(location: str, edges: Collection[str], rtt_ms: Rtt) -> str:
    """Returns the edge that anycast leads to: the shortest round trip, and of equals the first by name."""
    return min(edges, key=lambda edge: (rtt_ms(location, edge), edge))


def choose(
    machines: Iterable[Machine],
    active: Mapping[str, int],
    edge: str,
    rtt_ms: Rtt,
    preference: RoutingPreference,
    rng: random.Random,
) -> Machine | None:
    """Returns the Machine for the next request at this edge, None when no Machine can take it now."""
    usable = [each for each in machines if _usable(each, active, preference)]
    for group in preference.groups:
        candidates = [each for each in usable if group is None or each.region in group]
        for machine in candidates:
            if machine.id == preference.prefer_instance:
                return machine
        if candidates:
            nearest = min((rtt_ms(edge, each.region), each.region) for each in candidates)[1]
            return _least_loaded([each for each in candidates if each.region == nearest], active, rng)
    return None


def _usable(machine: Machine, active: Mapping[str, int], preference: RoutingPreference) -> bool:
    full = machine.hard_limit is not None and active.get(machine.id, 0) >= machine.hard_limit
    wanted = preference.instance in (None, machine.id) and machine.id not in preference.without
    return machine.routable and wanted and not full


def _least_loaded(machines: list[Machine], active: Mapping[str, int], rng: random.Random) -> Machine:
    """Below the soft limit first; then the one with fewer requests; equals at random."""

    def load(machine: Machine) -> tuple[bool, int]:
        count = active.get(machine.id, 0)
        return count >= machine.soft_limit, count

    least = min(load(each) for each in machines)
    return rng.choice([each for each in machines if load(each) == least])
