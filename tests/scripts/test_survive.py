"""scripts/survive itself: a short run, so that the long ones can be relied on.

It looks at the clock, since a pause is what they judge.
"""

import asyncio
from pathlib import Path

import pytest

from scripts.survivelib import losses
from scripts.survivelib.report import Report

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

LIMIT_S = 180


def silent(_text: str) -> None:
    pass


def check(report: Report) -> None:
    assert report.good, report.as_text()


async def test_calls_survive_backends_that_are_lost(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S):
        check(await losses.losses(losses.Size(24, 8, tmp_path, seed=1), silent))
