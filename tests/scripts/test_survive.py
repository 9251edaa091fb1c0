"""scripts/survive itself: a short run, so that the long ones can be relied on.

It looks at the clock, since a pause is what they judge.
"""

import asyncio
from pathlib import Path

import pytest

from scripts.survivelib import losses, survive
from scripts.survivelib.report import Report

pytestmark = pytest.mark.anyio

LIMIT_S = 180


def silent(_text: str) -> None:
    pass


def check(report: Report) -> None:
    assert report.good, report.as_text()


def test_run_that_cannot_be_tried_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert survive.main(["kills", "--sqld", "/nowhere/sqld"]) == 2
    assert "there is no libSQL server at /nowhere/sqld" in capsys.readouterr().err
    assert survive.main(["losses", "--keep", str(tmp_path)]) == 2
    assert f"{tmp_path} exists" in capsys.readouterr().err


@pytest.mark.alone
async def test_calls_survive_backends_that_are_lost(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT_S):
        check(await losses.losses(losses.Size(24, 8, tmp_path, seed=1), silent))
