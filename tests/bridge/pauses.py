"""Notices when this process is kept from running, by its machine or by a neighbour."""

import asyncio
import threading
import time
from types import TracebackType
from typing import Self

BEAT_S = 0.005


def stand_still(for_s: float) -> None:
    """Keep the event loop from doing anything, as if this process were stopped."""
    threading.Event().wait(for_s)


class Pauses:
    """Measures while its `with` block is running. Work of our own, however long, is no pause: it takes CPU."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._at = self._cpu_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._at, self._cpu_s = time.monotonic(), time.process_time()
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()

    def _beat(self) -> None:
        at, cpu_s = time.monotonic(), time.process_time()
        self.longest_s = max(self.longest_s, at - self._at - (cpu_s - self._cpu_s) - BEAT_S)
        self._at, self._cpu_s = at, cpu_s
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
