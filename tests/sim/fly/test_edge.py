"""Choosing a Machine: distance first, then health, limits and load."""

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from app.sim.fly.edge import Machine, RoutingPreference, State, choose, nearest_edge, region_groups

# lax is as far from nrt as from iad.
PLACES = {"sydney": 1, "syd": 0, "nrt": 80, "lax": 140, "iad": 200, "fra": 290, "lhr": 280, "berlin": 291}


def rtt_ms(a: str, b: str) -> float:
    return abs(PLACES[a] - PLACES[b])


def machine(machine_id: str, **changes: object) -> Machine:
    """`fra1` is in fra, well and running."""
    born = Machine(machine_id, machine_id.rstrip("0123456789"), 8080, checks_ok=True)
    return replace(born, **changes)  # type: ignore[arg-type]  # whatever field the test is about


def chosen(
    machines: list[Machine],
    edge: str,
    preference: RoutingPreference | None = None,
    active: Mapping[str, int] | None = None,
) -> str | None:
    found = choose(machines, active or {}, edge, rtt_ms, preference or RoutingPreference(), random.Random(0))
    return None if found is None else found.id


WORLD = [machine("nrt1"), machine("iad1"), machine("fra1")]


@pytest.mark.parametrize(
    ("location", "edge"), [("sydney", "nrt"), ("berlin", "fra"), ("lax", "iad"), ("iad", "iad")]
)
def test_client_enters_at_the_edge_with_the_shortest_round_trip(location: str, edge: str) -> None:
    assert nearest_edge(location, ["nrt", "iad", "fra"], rtt_ms) == edge


@pytest.mark.parametrize(
    ("edge", "expected"), [("syd", "nrt1"), ("lhr", "fra1"), ("lax", "iad1"), ("iad", "iad1")]
)
def test_nearest_region_serves(edge: str, expected: str) -> None:
    assert chosen(WORLD, edge) == expected


@pytest.mark.parametrize(
    "away",
    [{"state": State.STOPPED}, {"cordoned": True}, {"checks_ok": False}, {"hard_limit": 3}],
    ids=lambda away: next(iter(away)),
)
def test_next_region_serves_when_the_nearest_has_nobody(away: dict[str, object]) -> None:
    machines = [machine("nrt1", **away), machine("iad1"), machine("fra1")]
    assert chosen(machines, "syd", active={"nrt1": 3}) == "iad1"


def test_soft_limit_does_not_push_to_another_region() -> None:
    assert chosen([machine("nrt1", soft_limit=1), machine("iad1")], "syd", active={"nrt1": 50}) == "nrt1"


LOADS = [
    ({"fra1": 2, "fra2": 1, "fra3": 3}, "fra2"),  # all below soft: the least
    ({"fra1": 10, "fra2": 12, "fra3": 9}, "fra3"),  # one below soft
    ({"fra1": 12, "fra2": 11, "fra3": 15}, "fra2"),  # all between soft and hard
    ({"fra1": 20, "fra2": 19, "fra3": 20}, "fra2"),  # two at hard
    ({"fra1": 20, "fra2": 20, "fra3": 20}, None),
    ({"fra1": 21, "fra2": 20, "fra3": 99}, None),
]


@pytest.mark.parametrize(("active", "expected"), LOADS)
def test_inside_a_region_the_class_of_load_decides_then_the_count(
    active: dict[str, int], expected: str | None
) -> None:
    machines = [machine(each, soft_limit=10, hard_limit=20) for each in ("fra1", "fra2", "fra3")]
    assert chosen(machines, "fra", active=active) == expected


def test_machine_below_its_soft_limit_is_preferred_to_one_above_its_own() -> None:
    machines = [machine("fra1", soft_limit=1), machine("fra2", soft_limit=10)]
    assert chosen(machines, "fra", active={"fra1": 1, "fra2": 9}) == "fra2"


def test_equals_are_chosen_by_chance_that_a_seed_repeats() -> None:
    machines = [machine("fra1"), machine("fra2")]

    def sequence(seed: int) -> list[str]:
        rng = random.Random(seed)
        found = (choose(machines, {}, "fra", rtt_ms, RoutingPreference(), rng) for _ in range(20))
        return [each.id for each in found if each is not None]

    assert sequence(1) == sequence(1)
    assert set(sequence(1)) == {"fra1", "fra2"}


WISHES = [
    (RoutingPreference(region_groups(["iad"])), "iad1"),
    (RoutingPreference(region_groups(["lhr"])), None),
    (RoutingPreference(region_groups(["lhr", "iad", "nrt"])), "iad1"),
    (RoutingPreference(region_groups(["lhr", "any"])), "fra1"),
    (RoutingPreference(region_groups(["eu"])), "fra1"),
    (RoutingPreference(region_groups(["apac"])), "nrt1"),
    (RoutingPreference(region_groups(["sa", "us"])), "iad1"),
    (RoutingPreference(instance="nrt1"), "nrt1"),
    (RoutingPreference(instance="gone"), None),
    (RoutingPreference(prefer_instance="nrt1"), "nrt1"),
    (RoutingPreference(prefer_instance="gone"), "fra1"),
    (RoutingPreference(region_groups(["iad"]), prefer_instance="nrt1"), "iad1"),
    (RoutingPreference(without=frozenset({"fra1"})), "iad1"),
    (RoutingPreference(region_groups(["fra"]), without=frozenset({"fra1"})), None),
]


@pytest.mark.parametrize(("preference", "expected"), WISHES)
def test_wish_is_kept(preference: RoutingPreference, expected: str | None) -> None:
    assert chosen(WORLD, "fra", preference) == expected


def test_us_is_without_canada() -> None:
    us, na = region_groups(["us", "na"])
    assert us is not None
    assert na is not None
    assert na - us == {"yyz"}
