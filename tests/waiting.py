"""Waiting for what sends no event: a page over HTTP, a log, a file.

Looking without a pause takes the processor from whoever is waited for, and on two cores from every other test.
"""

import asyncio
import threading
from collections.abc import Callable

LOOK_AGAIN_S = 0.01

LAG_UNLIMITED_S = 60.0
"""For the servers of tests: on a busy machine they would turn calls away otherwise."""


async def a_moment() -> None:
    """Wait before looking again."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    timer = loop.call_later(LOOK_AGAIN_S, over.set_result, None)
    try:
        await over
    finally:
        timer.cancel()


def a_moment_outside_a_loop() -> None:
    """As `a_moment`, in a test that has no event loop."""
    threading.Event().wait(LOOK_AGAIN_S)


async def until(holds: Callable[[], object], limit_s: float) -> None:
    """Wait until it holds. Raises TimeoutError when that takes longer than the limit."""
    async with asyncio.timeout(limit_s):
        while not holds():
            await a_moment()
