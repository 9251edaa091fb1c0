"""Whole calls with peers that obey the references: the invariants hold, and the backend has no complaint.

A seed that fails is a script that can be read: World(seed).run(), then world.script.log.
"""

from collections import Counter
from functools import cache

import pytest

from app.call.events import AddToolOutput, CreateResponse, HangUp, PassSilence, RunTool, SendClear, Truncate
from app.call.journal import TAKE_OVER
from app.call.records import CallEvent
from tests.call.simulation import World, simulated, worst_truncation_ms

SEEDS = range(15)


@cache
def call(seed: int, *, clean: bool) -> World:
    """Every call is lived through once and looked at from several sides."""
    return simulated(seed, clean=clean)


@pytest.mark.parametrize("seed", SEEDS)
def test_call_whose_phone_stalls_and_loses_marks_keeps_the_invariants(seed: int) -> None:
    assert call(seed, clean=False).complaints == []


@pytest.mark.parametrize("seed", SEEDS)
def test_backend_is_told_what_the_phone_played(seed: int) -> None:
    world = call(seed, clean=True)
    assert world.complaints == []
    assert worst_truncation_ms(world) <= 40.0


def test_simulated_calls_live_through_what_matters() -> None:
    worlds = [call(seed, clean=clean) for seed in SEEDS for clean in (True, False)]
    seen = Counter(
        type(command) for world in worlds for _, _, commands in world.script.log for command in commands
    )
    assert min(seen[kind] for kind in (SendClear, Truncate, CreateResponse)) > 50
    assert min(seen[kind] for kind in (RunTool, AddToolOutput, HangUp, PassSilence)) > 5
    reasons = {world.script.ended.reason for world in worlds if world.script.ended is not None}
    assert len(reasons) >= 5
    events = [each for world in worlds for each in world.script.records if isinstance(each, CallEvent)]
    assert sum(each.kind == TAKE_OVER for each in events) > 10


def test_same_seed_is_the_same_call() -> None:
    assert simulated(3, clean=False).script.log == simulated(3, clean=False).script.log
