"""The one decision: thirty cases written by hand, thousands made from the rules, and none that lets a call of the
EU be taken outside of it. What is expected is worked out here anew, from the design's words and not from the code.
"""

import itertools
from dataclasses import replace

import pytest

from app.regions.routing import HOPS_MAX, Arrival, Decision, Here, Reason, Refuse, Replay, Take, decide, elsewhere
from app.regions.table import HOMES, nearest_first
from app.regions.zones import ZoneRule, read_zone, shipped_zones

EU = frozenset({"ams", "arn", "cdg", "fra"})
"""Fly's regions in the European Union, as the design says it, not as the code does."""

STRICT = read_zone(
    "strict",
    {
        "regions": ["ams", "arn", "cdg", "fra"],
        "residency": "eu",
        "database": "TURSO_STRICT",
        "twilio_region": "ie1",
        "edges": ["ams", "arn", "cdg", "fra"],
    },
)
APAC = read_zone("apac", {"regions": ["nrt", "syd"], "residency": "any", "database": "TURSO_APAC"})
ZONES = {**shipped_zones(), "strict": STRICT, "apac": APAC}
ALL = frozenset(ZONES)
PAIR = (*HOMES, "cdg")
"""Machines in the six regions, and a second one in the EU."""


def here(region: str, *, deployed: tuple[str, ...] = HOMES, **state: object) -> Here:
    return replace(Here(region, deployed, ALL), **state)  # type: ignore[arg-type]


def sent(*regions: str, why: Reason) -> Replay:
    return Replay(regions, why)


BY_HAND: list[tuple[str, Arrival, Here, Decision]] = [
    # Where it should be.
    ("anywhere is fine", Arrival("global"), here("nrt"), Take()),
    ("EU in the EU", Arrival("eu"), here("fra"), Take()),
    ("EU in its other region", Arrival("eu"), here("cdg", deployed=PAIR), Take()),
    ("a zone of an operator's own", Arrival("apac"), here("syd"), Take()),
    ("not on Fly", Arrival("eu"), here("local"), Take()),
    # Where it may not be.
    ("EU in Virginia", Arrival("eu"), here("iad"), sent("fra", why=Reason.ZONE)),
    (
        "EU in Virginia, two to go to",
        Arrival("eu"),
        here("iad", deployed=PAIR),
        sent("cdg", "fra", why=Reason.ZONE),
    ),
    ("EU in Tokyo", Arrival("eu"), here("nrt", deployed=PAIR), sent("fra", "cdg", why=Reason.ZONE)),
    ("London is not in the EU", Arrival("eu"), here("lhr"), sent("fra", why=Reason.ZONE)),
    ("EU, and no machine there", Arrival("eu"), here("iad", deployed=("iad", "lax")), Refuse(Reason.ZONE)),
    ("EU, sent from there", Arrival("eu", tried=("fra",)), here("iad"), Refuse(Reason.ZONE)),
    ("EU, Fly could not deliver it", Arrival("eu", came_back=True), here("iad"), Refuse(Reason.ZONE)),
    ("apac in Frankfurt", Arrival("apac"), here("fra"), sent("nrt", "syd", why=Reason.ZONE)),
    ("nobody knows the zone", Arrival("mars"), here("fra"), Refuse(Reason.UNKNOWN_ZONE)),
    ("nor is it the global one", Arrival(""), here("fra"), Refuse(Reason.UNKNOWN_ZONE)),
    # This machine cannot.
    (
        "draining",
        Arrival("global"),
        here("gru", draining=True),
        sent("iad", "fra", "lax", "syd", "nrt", why=Reason.DRAINING),
    ),
    ("full", Arrival("global"), here("lax", full=True), sent("iad", "nrt", "fra", "gru", "syd", why=Reason.FULL)),
    (
        "no backend",
        Arrival("global"),
        here("nrt", usable=frozenset()),
        sent("syd", "lax", "iad", "fra", "gru", why=Reason.BACKEND),
    ),
    ("EU, draining, nothing left", Arrival("eu"), here("fra", draining=True), Refuse(Reason.DRAINING)),
    (
        "EU, draining, one left",
        Arrival("eu"),
        here("fra", deployed=PAIR, draining=True),
        sent("cdg", why=Reason.DRAINING),
    ),
    (
        "EU, its only backend is sick",
        Arrival("eu"),
        here("fra", usable=frozenset({"global"})),
        Refuse(Reason.BACKEND),
    ),
    (
        "full, and came from the nearest",
        Arrival("global", tried=("iad",)),
        here("lax", full=True),
        sent("nrt", "fra", "gru", "syd", why=Reason.FULL),
    ),
    (
        "full, and all others have been asked",
        Arrival("global", tried=("nrt", "fra", "gru", "syd", "iad")),
        here("lax", full=True),
        Refuse(Reason.FULL),
    ),
    (
        "full, and Fly could not deliver it",
        Arrival("global", came_back=True),
        here("lax", full=True),
        Refuse(Reason.FULL),
    ),
    ("Fly could not deliver it, and we can", Arrival("global", came_back=True), here("lax"), Take()),
    (
        "late, so that one more call would spoil the others",
        Arrival("global"),
        here("lax", lagging=True, crowded=True),
        sent("iad", "nrt", "fra", "gru", "syd", why=Reason.LAGGING),
    ),
    (
        "too many calls are being set up",
        Arrival("global"),
        here("lax", crowded=True),
        sent("iad", "nrt", "fra", "gru", "syd", why=Reason.CROWDED),
    ),
    ("not on Fly, and full", Arrival("global"), here("local", full=True), Refuse(Reason.FULL)),
    # Strict zones.
    ("strict, as it should be", Arrival("strict", edge="ams", twilio_region="ie1"), here("fra"), Take()),
    (
        "strict, Twilio works in the US",
        Arrival("strict", edge="ams", twilio_region="us1"),
        here("fra"),
        Refuse(Reason.TWILIO_REGION),
    ),
    ("strict, nobody looked yet", Arrival("strict", edge="ams"), here("iad"), sent("fra", why=Reason.ZONE)),
    (
        "strict, decrypted in Virginia",
        Arrival("strict", edge="iad", twilio_region="ie1"),
        here("fra"),
        Refuse(Reason.EDGE),
    ),
    ("strict, no edge named", Arrival("strict", twilio_region="ie1"), here("fra"), Refuse(Reason.EDGE)),
]


@pytest.mark.parametrize(
    ("arrival", "machine", "expected"), [row[1:] for row in BY_HAND], ids=[r[0] for r in BY_HAND]
)
def test_decision_written_by_hand(arrival: Arrival, machine: Here, expected: Decision) -> None:
    assert decide(arrival, machine, ZONES) == expected


def test_there_are_enough_of_them() -> None:
    assert len(BY_HAND) >= 30


REGIONS = (*HOMES, "cdg", "lhr")
EDGES = (None, "fra", "iad")
STATES: tuple[dict[str, object], ...] = (
    {},
    {"draining": True},
    {"full": True},
    {"crowded": True},
    {"lagging": True},
    {"usable": frozenset[str]()},
    {"usable": frozenset({"global"})},
    {"draining": True, "full": True, "usable": frozenset[str]()},
)
TRIED = ((), ("iad",), ("fra",), ("iad", "fra"), ("nrt", "fra", "gru", "syd", "iad", "lax"))
GENERATED = list(
    itertools.product(
        ZONES, REGIONS, range(len(STATES)), EDGES, ("us1", "ie1", None), TRIED, (False, True), (HOMES, PAIR)
    )
)


def expected_of(arrival: Arrival, machine: Here, rule: ZoneRule) -> Decision:
    """Design sections 1.2 and 6, read once more."""
    if rule is STRICT and arrival.twilio_region == "us1":
        return Refuse(Reason.TWILIO_REGION)
    if rule is STRICT and arrival.edge not in EU:
        return Refuse(Reason.EDGE)
    home = {"global": set(machine.deployed) | {machine.region}, "apac": {"nrt", "syd"}}.get(rule.name, set(EU))
    reasons = [
        (Reason.ZONE, machine.region not in home),
        (Reason.DRAINING, machine.draining),
        (Reason.FULL, machine.full),
        (Reason.LAGGING, machine.lagging),
        (Reason.CROWDED, machine.crowded),
        (Reason.BACKEND, rule.name not in machine.usable),
    ]
    why = next((reason for reason, holds in reasons if holds), None)
    if why is None:
        return Take()
    left = [
        each for each in machine.deployed if each in home and each != machine.region and each not in arrival.tried
    ]
    if arrival.came_back or len(arrival.tried) > 5 or not left:
        return Refuse(why)
    return Replay(nearest_first(machine.region, left), why)


def test_decisions_made_from_the_rules() -> None:
    assert len(GENERATED) > 10_000
    for zone, region, state, edge, twilio_region, tried, came_back, deployed in GENERATED:
        arrival = Arrival(zone, edge, twilio_region, tried, came_back)
        machine = here(region, deployed=deployed, **STATES[state])
        assert decide(arrival, machine, ZONES) == expected_of(arrival, machine, ZONES[zone]), (arrival, machine)


def test_no_decision_takes_a_call_of_the_eu_outside_or_sends_it_there() -> None:
    for zone, region, state, edge, twilio_region, tried, came_back, deployed in GENERATED:
        if zone not in {"eu", "strict"}:
            continue
        machine = here(region, deployed=deployed, **STATES[state])
        match decide(Arrival(zone, edge, twilio_region, tried, came_back), machine, ZONES):
            case Take():
                assert region in EU
                assert zone in machine.usable
            case Replay(regions):
                assert set(regions) <= EU


def test_nothing_is_sent_back_and_every_way_ends() -> None:
    """Whatever the machines say, following the decisions ends after each region was asked once."""
    for start, zone in itertools.product(REGIONS, ZONES):
        arrival, region = Arrival(zone, edge="fra", twilio_region="ie1"), start
        for _ in range(HOPS_MAX + 1):
            decision = decide(arrival, here(region, deployed=PAIR, full=True), ZONES)
            if not isinstance(decision, Replay):
                break
            assert region not in decision.regions
            assert not set(arrival.tried) & set(decision.regions)
            arrival = replace(arrival, tried=(*arrival.tried, region))
            region = decision.regions[0]
        assert isinstance(decision, Refuse)


def test_call_that_is_known_elsewhere_is_looked_for_where_its_zone_allows() -> None:
    found = elsewhere(Arrival("eu"), here("fra", deployed=PAIR), ZONES["eu"], Reason.NOT_HERE)
    assert found == Replay(("cdg",), Reason.NOT_HERE)
