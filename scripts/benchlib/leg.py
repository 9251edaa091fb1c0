"""Measures one leg: a number of calls on one target, within one window of time."""

import asyncio
import time
from dataclasses import dataclass

from scripts.benchlib.backend import LoadBackend
from scripts.benchlib.meter import Meter
from scripts.benchlib.phone import Exchange
from scripts.benchlib.process import cpu_s, rss_kb
from scripts.benchlib.targets import Target

RAMP_PER_S = 120
SETTLE_S = 2.0
"""From the last call's start to the window: greetings are over, and the script of every call has begun."""
DRAIN_S = 0.3
"""After the window, for what is still on its way."""
SHORT_CALL_S = 2.0
"""How long each short call of the churn lasts."""


@dataclass(frozen=True, slots=True)
class Leg:
    """The measurements of one window."""

    target: str
    calls: int
    churn_per_s: int
    window_s: float
    cpu_s: float
    load_cpu_s: float
    rss_kb: int
    meter: Meter

    @property
    def cpu_ms_per_call_s(self) -> float:
        """Processor time for one call in one second, in ms."""
        return self.cpu_s / self.window_s / self.calls * 1000

    @property
    def calls_per_core(self) -> float:
        return 1000 / self.cpu_ms_per_call_s

    @property
    def lost_frames(self) -> int:
        """Caller frames of the window that never reached the backend."""
        return self.meter.frames_sent - len(self.meter.caller_ns)


async def run_leg(
    load_backend: LoadBackend, target: Target, calls: int, window_s: float, *, churn_per_s: int = 0
) -> Leg:
    """Starts `calls` calls, measures them for `window_s` seconds, and ends them.

    With `churn_per_s`, that many short calls start and end each second in addition.
    """
    exchange = Exchange(load_backend, target.endpoint)
    try:
        await _ramp(exchange, calls)
        churning = _Churn(exchange, churn_per_s) if churn_per_s else None
        await asyncio.sleep(SETTLE_S)
        load_backend.meter = meter = Meter()
        cpu_before, load_before, started = cpu_s(target.child.pid), time.process_time(), time.monotonic()
        meter.open()
        await asyncio.sleep(window_s)
        meter.close()
        took_s = time.monotonic() - started
        used_s, load_s = cpu_s(target.child.pid) - cpu_before, time.process_time() - load_before
        memory_kb = rss_kb(target.child.pid)
        await asyncio.sleep(DRAIN_S)
        if churning is not None:
            await churning.end()
        target.child.check()
        await exchange.close()
    finally:
        exchange.drop()
        load_backend.meter = Meter()
    return Leg(target.name, calls, churn_per_s, took_s, used_s, load_s, memory_kb, meter)


async def _ramp(exchange: Exchange, calls: int) -> None:
    ringing = []
    try:
        for _ in range(calls):
            ringing.append(asyncio.create_task(exchange.call()))
            await asyncio.sleep(1 / RAMP_PER_S)
        await asyncio.gather(*ringing)
    finally:
        for task in ringing:
            task.cancel()


class _Churn:
    """Starts short calls at a steady rate until `end`."""

    def __init__(self, exchange: Exchange, per_s: int) -> None:
        self._exchange = exchange
        self._calls: set[asyncio.Task[None]] = set()
        self._coming = asyncio.create_task(self._come(per_s))

    async def end(self) -> None:
        """Starts no more calls and waits for the present ones. Raises the error of a failed call."""
        self._coming.cancel()
        await asyncio.gather(*self._calls)

    async def _come(self, per_s: int) -> None:
        while True:
            self._calls.add(asyncio.create_task(self._call()))
            await asyncio.sleep(1 / per_s)

    async def _call(self) -> None:
        phone = await self._exchange.call()
        await asyncio.sleep(SHORT_CALL_S)
        await self._exchange.end(phone)
