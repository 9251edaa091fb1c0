"""Waits for a condition in a simulator, without sleeping and without polling."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Notifier:
    """Wakes waiters when something has changed, so that they check their condition again."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, look: Callable[[], T | None]) -> T:
        """Waits until `look` returns neither None nor False, and returns that. Without limit: add a time-out."""
        while (found := look()) is None or found is False:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        return found
