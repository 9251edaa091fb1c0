import asyncio
from collections import Counter
from typing import Any

import pytest

from app.bridge import epoch_watch
from app.bridge.epoch_watch import EpochWatch
from app.call.continuity import Ownership
from tests.bridge.memory import MINE, OTHERS, UNKNOWN, Memory
from tests.bridge.test_session import Log

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PAUSE_S", "LAST_PAUSE_S"):
        monkeypatch.setattr(epoch_watch, name, 0.001)
    monkeypatch.setattr(epoch_watch, "SILENT_S", 0.01)


def watch(memory: Memory, counts: Counter[str]) -> EpochWatch:
    log: Any = Log()
    return EpochWatch(memory, "CA1", 0, "leg", log=log, count=lambda event: counts.update((event,)))


async def test_leg_is_lost_when_its_epoch_is_taken() -> None:
    counts: Counter[str] = Counter()
    memory = Memory([UNKNOWN, UNKNOWN, OTHERS], [MINE])
    await asyncio.wait_for(watch(memory, counts).lost(lambda: 0.0, lambda: 0.0), 5)
    assert counts == {"claim_unknown": 1, "claim_taken": 1}
    assert memory.asked == {"claim": 3}


async def test_leg_with_a_silent_phone_asks_until_it_is_superseded() -> None:
    counts: Counter[str] = Counter()
    memory = Memory([MINE], [MINE, UNKNOWN, OTHERS])
    await asyncio.wait_for(watch(memory, counts).lost(lambda: 0.0, lambda: 60.0), 5)
    assert memory.asked == {"claim": 1, "owner": 3}
    assert counts == {"leg_superseded": 1}


async def test_leg_with_a_phone_that_sends_asks_nothing() -> None:
    memory = Memory([MINE], [OTHERS])
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch(memory, Counter()).lost(loop.time, loop.time), 0.05)
    assert memory.asked["owner"] == 0


@pytest.mark.parametrize(("found", "superseded"), [(MINE, False), (UNKNOWN, False), (OTHERS, True)])
async def test_leg_that_is_not_known_to_be_superseded_may_end_the_call(found: Ownership, superseded: bool) -> None:
    assert await watch(Memory([MINE], [found]), Counter()).superseded() is superseded
