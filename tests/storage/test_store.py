"""How long a command waits for a primary."""

import asyncio
from collections.abc import Sequence

import pytest

from app.storage.primary import Outcome, Primary, PrimaryError, Retry
from app.storage.statement import Statement
from app.storage.store import PrimaryStore

pytestmark = pytest.mark.anyio


class TomorrowPrimary(Primary):
    """Answers nothing today."""

    async def batch(self, statements: Sequence[Statement]) -> Outcome:
        return Retry("too much", after_s=86_400.0)


async def test_primary_that_asks_for_a_day_is_asked_again_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept_s.append(delay_s)

    async with TomorrowPrimary("http://127.0.0.1:9", lambda: "") as primary:
        monkeypatch.setattr(asyncio, "sleep", sleep)
        with pytest.raises(PrimaryError, match="too much"):
            await PrimaryStore(primary, (1.0, 40.0)).change([Statement("SELECT 1", ())])
    assert slept_s == [30.0, 40.0]
