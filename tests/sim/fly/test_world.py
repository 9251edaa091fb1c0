"""What edges know, and when."""

import random
from dataclasses import replace

import pytest

from app.sim.fly.edge import Machine
from app.sim.fly.world import World

pytestmark = pytest.mark.anyio


def cordon(machine: Machine) -> Machine:
    return replace(machine, cordoned=True)


class Delays(random.Random):
    """Chance that gives these, in this order."""

    def __init__(self, *delays_s: float) -> None:
        super().__init__(0)
        self._delays_s = list(delays_s)

    def uniform(self, a: float, b: float) -> float:
        del a, b
        return self._delays_s.pop(0)


def world(*delays_s: float) -> World:
    """Two edges; the delays are of the first and the second edge in turn."""
    made = World(["nrt", "iad"], propagation_s=(0, 0), rng=Delays(*delays_s))
    made.add(Machine("m", "nrt", 1))
    return made


def cordoned(made: World, edge: str) -> bool:
    return made.seen_from(edge)[0].cordoned


async def test_each_edge_hears_of_a_change_at_a_time_of_its_own() -> None:
    made = world(0, 0, 0.01, 3600)
    made.change("m", cordon)
    assert (made.machine("m").cordoned, cordoned(made, "nrt"), made.known_everywhere()) == (True, False, False)
    await made.notifier.until(lambda: cordoned(made, "nrt"))
    assert not cordoned(made, "iad")
    made.close()


async def test_older_news_does_not_replace_newer() -> None:
    """Of three changes, the first comes last to nrt; by the time iad hears of the third, it has come."""
    made = world(0, 0, 0.01, 0, 0, 0, 0, 0.03)
    made.change("m", cordon)
    made.change("m", lambda each: replace(each, cordoned=False))
    made.change("m", lambda each: replace(each, port=2))
    await made.notifier.until(lambda: made.seen_from("iad")[0].port == 2)
    assert not cordoned(made, "nrt")


async def test_change_to_what_is_already_so_is_no_news() -> None:
    made = world(0, 0)
    made.change("m", lambda each: replace(each, cordoned=False))
    assert made.known_everywhere()


async def test_closed_world_hears_nothing_more() -> None:
    made, other = world(0, 0, 0.01, 0.01), world(0, 0, 0.03, 0)
    made.change("m", cordon)
    other.change("m", cordon)
    made.close()
    await other.notifier.until(lambda: cordoned(other, "nrt"))
    assert [cordoned(made, edge) for edge in ("nrt", "iad")] == [False, False]


async def test_active_requests_are_counted() -> None:
    made = world(0, 0)
    made.take("m")
    made.take("m")
    made.release("m")
    assert made.active["m"] == 1
