"""A background loop goes on after a bug, and stops when it is cancelled."""

import asyncio

import pytest

from app.storage.loops import Bug, step_of

pytestmark = pytest.mark.anyio


async def test_result_of_a_step_is_passed_on() -> None:
    async def step() -> int:
        return 7

    assert await step_of("counting", step) == 7


async def test_bug_is_logged_with_its_loop_and_returned(caplog: pytest.LogCaptureFixture) -> None:
    async def step() -> int:
        raise KeyError("zone")

    bug = await step_of("counting", step)
    assert isinstance(bug, Bug)
    assert str(bug) == "KeyError: 'zone'"
    [record] = caplog.records
    assert (record.message, vars(record)["loop"]) == ("loop_step_failed", "counting")
    assert record.exc_info is not None
    assert record.exc_info[1] is bug.error


async def test_cancelled_step_ends_its_loop() -> None:
    begun = asyncio.Event()

    async def step() -> None:
        begun.set()
        await asyncio.Event().wait()

    loop = asyncio.create_task(step_of("waiting", step))
    await begun.wait()
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
