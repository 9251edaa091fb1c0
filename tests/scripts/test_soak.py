"""scripts/soak itself: a short one, with every way of ending, so that the long one can be relied on."""

import asyncio

import pytest

from scripts.benchlib import soak as soak_module
from scripts.benchlib.endings import ALL_ENDINGS
from scripts.benchlib.soak import soak

pytestmark = [pytest.mark.anyio, pytest.mark.long]


async def test_soak_makes_its_calls_and_finds_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_module, "WARM_UP_CALLS", len(ALL_ENDINGS))
    async with asyncio.timeout(150):
        report = await soak(len(ALL_ENDINGS), len(ALL_ENDINGS), seed=1)
    assert sum(report.made.values()) == 2 * len(ALL_ENDINGS)
    assert report.leaked == {}
    # So few calls do not end, and are not taken over, for every reason there is.
    assert [problem for problem in report.problems if not problem.startswith("no call ")] == []
