"""This machine's sign of life on a zone's primary: one row, renewed every few seconds, and its number of calls.

Nothing else tells how old a replica is: syncs that fail are silent, and a replica that has stopped looks just like
a primary on which nothing happens (libsql.md 4.3). The time in this row, as the replica shows it, gives that age,
measured by one and the same clock. Does not know what a replica is.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from app.ledger.machine_calls import CountCalls, report
from app.storage.loops import Bug, step_of
from app.storage.primary import Alarm, Outcome, Stored
from app.storage.statement import Statement

EVERY_S = 5.0
"""17,000 small writes a day and machine, which a busy machine's turns outnumber a hundred to one."""
ALARM_EVERY_S = 60.0
"""While the primary refuses us: a wrong token does not get better by asking faster."""
FORGET_MS = 30 * 86_400_000
"""Machines that have been silent for so long are gone."""

_BEAT = (
    "INSERT INTO heartbeats (machine, region, at_ms) VALUES (?, ?, ?)"
    " ON CONFLICT (machine) DO UPDATE SET region = excluded.region, at_ms = excluded.at_ms"
)
_FORGET = "DELETE FROM heartbeats WHERE at_ms < ?"


class Writes(Protocol):
    """What a heartbeat needs of a primary."""

    async def batch(self, steps: Sequence[Statement]) -> Outcome:
        """Run all steps or none."""


def wall_ms() -> int:
    """Unix ms."""
    return time.time_ns() // 1_000_000


class Heartbeat:
    """Beats from `start` to `stop`. Failures are the primary's business; here they only make the age grow."""

    def __init__(
        self, primary: Writes, machine: str, region: str, *, clock_ms: Callable[[], int] = wall_ms
    ) -> None:
        self.machine = machine
        self._primary = primary
        self._region = region
        self._clock_ms = clock_ms
        self._acked_ms: int | None = None
        self.trouble: str | None = None
        """Why the last beat did not arrive; None when it did."""
        self._task: asyncio.Task[None] | None = None
        self._count_calls: CountCalls = dict
        self._reported = False
        """True while the primary has a number of calls from us that is not 0."""

    def report_calls(self, count: CountCalls) -> None:
        """Report these numbers with each beat from now on."""
        self._count_calls = count

    @property
    def acked_ms(self) -> int | None:
        """The newest beat that the primary is known to have, Unix ms; None before the first."""
        return self._acked_ms

    def start(self) -> None:
        """Begin to beat. Returns at once."""
        self._task = asyncio.create_task(self._run(), name="ledger-heartbeat")

    async def stop(self) -> None:
        """Stop beating. A beat under way may or may not arrive."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def beat(self) -> Outcome:
        """Renew the row once. Says what became of it."""
        at_ms = self._clock_ms()
        steps = [Statement(_BEAT, (self.machine, self._region, at_ms))]
        if self._acked_ms is None:
            steps.append(Statement(_FORGET, (at_ms - FORGET_MS,)))
        calls = self._count_calls()
        told = report(self.machine, at_ms, calls, forget_ms=FORGET_MS) if calls or self._reported else []
        outcome = await self._primary.batch([*steps, *told])
        if told and isinstance(outcome, Alarm) and outcome.schema:
            # The primary is not migrated yet. The replica's age must not depend on that.
            calls, outcome = {}, await self._primary.batch(steps)
        if isinstance(outcome, Stored):
            self._reported = bool(calls)
            self._acked_ms = at_ms
            self.trouble = None
        else:
            self.trouble = outcome.why
        return outcome

    async def _run(self) -> None:
        while True:
            outcome = await step_of("ledger-heartbeat", self.beat)
            # Six machines that were deployed together do not have to write at the same moment.
            await asyncio.sleep(pause_s(outcome) * random.uniform(0.8, 1.0))  # noqa: S311 - no secret


def pause_s(outcome: Outcome | Bug) -> float:
    """How long to wait after a beat with this outcome."""
    match outcome:
        case Alarm(schema=False):
            return ALARM_EVERY_S
        case _:
            return EVERY_S
