"""Brings the records of one zone from its spool to its primary, for as long as the server runs.

One batch is under way at a time, and takes along all that came meanwhile: over a link of 200 ms there and back
that is BATCH_MAX records five times a second, and a record waits for one round trip at most. What became of a
batch decides what is next:

    Stored   its records leave the spool
    Retry    the same batch is sent again after a pause, which grows, and is random so that the machines do not all
             retry at the same moment
    Alarm    logged as an error, and tried again every half a minute with the token as it is then; records stay
    Poison   the batch is halved until the refused record is found, which is set aside on the primary; the others
             go on. A record that the primary does not take even there is sent again later, alone, and then set
             aside on this machine. While the disk does not take it either, it waits and is no longer sent

Each zone has a task of its own, so a primary that hangs delays only its own zone. This module does not know how
records get onto the disk, and how a batch is sent.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from app.ledger.records import packed_insertion, packed_refusal
from app.ledger.spool import Spool, Spooled
from app.storage.errors import StorageError
from app.storage.loops import Bug, step_of
from app.storage.primary import Alarm, Outcome, Poison, Primary, PrimaryError, Retry, Stored
from app.storage.statement import Statement

BATCH_MAX = 200
"""Records in one request: 900 a second over a 200 ms link, in some 200 kB."""

MEMORY_PAUSE_S = 1.0
"""Longest pause while records wait in memory alone."""

LOOK_AGAIN_S = 60.0
"""How often an idle spool is counted anew: `ledger purge`, another process, may have removed records."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to wait before asking again."""

    retry_first_s: float = 0.2
    retry_max_s: float = 5.0
    """Longest pause after a primary came back. A request that hangs takes its own time-out besides."""
    alarm_s: float = 30.0
    """A wrong token does not get better by asking faster."""
    suspect_s: float = 30.0
    """Before a record is sent again that was refused as a whole request (HTTP 400, 413): perhaps by a proxy."""

    def after(self, failures: int) -> float:
        """The pause after so many failures in a row, from 1."""
        longest = min(self.retry_max_s, self.retry_first_s * 2.0 ** min(failures - 1, 16))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


Check = Callable[[Primary], Awaitable[None]]
"""Raises StorageError when the schema of a primary is not for this program."""

SUSPECT_ATTEMPTS = 2
"""If a primary that takes other records refuses one so often, the record is at fault."""

_NOTHING = Statement("DELETE FROM heartbeats WHERE machine IS NULL", ())
"""A write that changes nothing, to find out whether the primary takes anything."""

_log = logging.getLogger("nearcall.ledger")


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A record that the primary refused while it took others."""

    attempts: int
    next_s: float
    """When to send it again, by time.monotonic."""


class _SpoolError(StorageError):
    """The spool gives no records at the moment."""


@dataclass(frozen=True, slots=True)
class _SpoolTrouble(Retry):
    """A step failed because of this machine's disk, not because of the primary."""


class Shipper:
    """Delivers the records of one zone, from `start` to `stop`."""

    def __init__(self, zone: str, spool: Spool, primary: Primary, check: Check, pace: Pace) -> None:
        self._zone = zone
        self._spool = spool
        self._primary = primary
        self._check = check
        self._pace = pace
        self._checked = False
        self._batch_max = BATCH_MAX
        self._after = 0
        self._refused: dict[int, str] = {}
        self._suspects: dict[int, _Suspect] = {}
        self._held: dict[int, dict[str, str]] = {}
        """Records to set aside here as soon as the disk takes them, with what the log says of them."""
        self._held_next_s = 0.0
        self._held_error = ""
        self._failures = 0
        self.stored = 0
        """Batches that the primary has taken."""
        self._trouble: Retry | Alarm | None = None
        self._hurry = asyncio.Event()
        self._empty = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def alarm(self) -> str | None:
        """What somebody has to change before records get through; None when nothing is known."""
        return self._trouble.why if isinstance(self._trouble, Alarm) else None

    @property
    def last_error(self) -> str | None:
        """Why the last attempt failed; None if it succeeded."""
        return None if self._trouble is None else self._trouble.why

    def start(self) -> None:
        """Begin. Returns at once, whatever the primary does."""
        self._task = asyncio.create_task(self._run(), name=f"ledger-shipper-{self._zone}")

    async def stop(self) -> None:
        """Stop in the middle of whatever is under way. Records that were not acknowledged stay in the spool."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def hurry(self) -> None:
        """Try again at once, because the cause of a failure may be gone."""
        self._held_next_s = 0.0
        self._hurry.set()
        self._spool.wake()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until the spool is empty; False when that took longer. Pauses are cut short once."""
        self.hurry()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._spool.depth > sum(map(self._spool.may_have, (*self._suspects, *self._held))):
                    self._empty.clear()
                    await self._empty.wait()
        return self._spool.depth == 0

    async def _run(self) -> None:
        while True:
            outcome = await step_of(f"ledger-shipper-{self._zone}", self._outcome)
            if isinstance(outcome, Bug):
                outcome = Alarm(str(outcome))
            await self._rest(self._learn(outcome))

    async def _outcome(self) -> Outcome:
        """Deliver one batch, and say what became of it or what was in the way."""
        try:
            return await self._step()
        except PrimaryError as error:
            return error.failure
        except _SpoolError as error:
            return _SpoolTrouble(f"the spool: {error}")
        except StorageError as error:
            return Alarm(str(error))  # the primary's schema is not the one of this program

    async def _step(self) -> Outcome:
        """Deliver one batch. Waits for one to come."""
        if not self._checked:
            await self._check(self._primary)
            self._checked = True
        try:
            batch = await self._next_batch()
        except StorageError as error:
            raise _SpoolError(str(error)) from error
        if not batch:
            await self._let_go([])
            self._learn(Stored())
            self._empty.set()
            held_due = [self._held_next_s] if self._held else []
            due = [each.next_s for each in self._suspects.values()] + held_due
            await self._spool.arrival(min([LOOK_AGAIN_S, *map(self._due_in_s, due)]))
            return Stored()
        # In a thread: a full batch takes the event loop's time otherwise. Nothing else runs here meanwhile.
        statements = await asyncio.to_thread(lambda: [self._statement(each) for each in batch])
        outcome = await self._primary.batch(statements)
        match outcome:
            case Stored():
                self.stored += 1
                self._after = max(self._after, *(each.id for each in batch))
                self._batch_max = min(2 * self._batch_max, BATCH_MAX)
                await self._let_go([each.id for each in batch])
            case Poison(index, why):
                return await self._isolate(batch, index, why)
            case Alarm(schema=True):
                # Say what exactly is missing, and be ready as soon as it is there.
                self._checked = False
                await self._check(self._primary)
            case _:
                pass
        return outcome

    async def _next_batch(self) -> list[Spooled]:
        """A suspect that is due, alone; else what comes next, without suspects."""
        await self._set_aside_held()
        for suspect in [each for each, state in self._suspects.items() if self._due_in_s(state.next_s) <= 0]:
            try:
                found = await self._spool.find(suspect)
            except StorageError as error:
                # What can be had without the disk does not wait for it.
                _log.warning("refused_record_not_read_again", extra={"error": str(error)})
                self._suspects[suspect] = replace(self._suspects[suspect], next_s=self._later_s())
                continue
            if found is not None:
                return [found]
            self._forget([suspect])  # erased, or under another id: in the file now, or in another file
        without = {*self._suspects, *self._held}
        while batch := await self._spool.take(self._batch_max, self._after, without):
            if good := [each for each in batch if each.id not in without]:
                return good
            self._after = max(self._after, batch[-1].id)
        return []

    @staticmethod
    def _due_in_s(next_s: float) -> float:
        return max(0.0, next_s - time.monotonic())

    def _later_s(self) -> float:
        return time.monotonic() + self._pace.suspect_s

    def _statement(self, each: Spooled) -> Statement:
        if each.id not in self._refused:
            try:
                return packed_insertion(each.record)
            except ValueError as error:
                self._refuse(each, str(error))
        return packed_refusal(each.record, self._refused[each.id], time.time_ns() // 1_000_000)

    async def _isolate(self, batch: list[Spooled], index: int | None, why: str) -> Outcome:
        """Change the next attempt so that it can succeed: half the batch, or without the refused record."""
        if index is None and len(batch) > 1:
            self._batch_max = len(batch) // 2
            return Stored()
        culprit = batch[index or 0]
        if index is not None and culprit.id not in self._refused:
            self._refuse(culprit, why)
            return Stored()
        # Refused as a whole request, or even as a record that is set aside. Is it the record, or everything?
        self._refused.pop(culprit.id, None)
        if not isinstance(await self._primary.batch([_NOTHING]), Stored):
            return Alarm(f"the primary refuses whatever it is sent: {why}")
        await self._suspect(culprit, why)
        return Stored()

    async def _suspect(self, culprit: Spooled, why: str) -> None:
        """Send it again later; at last set it aside on this machine."""
        before = self._suspects.get(culprit.id)
        attempts = 1 if before is None else before.attempts + 1
        fields = {
            "zone": self._zone,
            "kind": culprit.record.kind,
            "call_sid": culprit.record.call_sid,
            "error": why,
        }
        if attempts < SUSPECT_ATTEMPTS:
            self._suspects[culprit.id] = _Suspect(attempts, self._later_s())
            _log.warning("refused_record_kept_for_later", extra=fields)
            return
        self._suspects.pop(culprit.id, None)
        self._held[culprit.id] = fields
        await self._set_aside_held()
        if culprit.id in self._held:
            extra = {**fields, "disk": self._held_error}
            _log.error("refused_record_waits_for_the_disk", extra=extra)

    async def _set_aside_held(self) -> None:
        """Set aside what was refused often enough, unless the disk did not take such a record a while ago."""
        if self._due_in_s(self._held_next_s) > 0:
            return
        for record_id, fields in tuple(self._held.items()):
            try:
                there = await self._spool.set_aside(record_id, fields["error"])
            except StorageError as error:
                self._held_error = str(error)
                self._held_next_s = self._later_s()
                return
            self._forget([record_id])
            if there:
                extra = {**fields, "remedy": "nearcall ledger resend"}
                _log.error("record_set_aside", extra=extra)

    def _refuse(self, each: Spooled, why: str) -> None:
        self._refused[each.id] = why
        _log.error(
            "record_refused",
            extra={"zone": self._zone, "kind": each.record.kind, "call_sid": each.record.call_sid, "error": why},
        )

    async def _let_go(self, ids: list[int]) -> None:
        """Delivered records leave the spool."""
        await self._spool.done(ids)
        self._forget(ids)

    def _forget(self, ids: Iterable[int]) -> None:
        for each in ids:
            self._refused.pop(each, None)
            self._suspects.pop(each, None)
            self._held.pop(each, None)

    def _learn(self, outcome: Outcome) -> float:
        """Remember the outcome, and log it if it changed. Returns how long to wait before the next attempt."""
        before = self._trouble
        if not isinstance(outcome, Retry | Alarm):
            self._trouble, self._failures = None, 0
            if before is not None and not isinstance(before, _SpoolTrouble):
                _log.warning("primary_recovered", extra={"zone": self._zone, "depth": self._spool.depth})
            return 0.0
        self._trouble = outcome
        self._failures += 1
        if before is None or before.why != outcome.why or isinstance(outcome, Alarm):
            fields = {"zone": self._zone, "error": outcome.why, "depth": self._spool.depth}
            if not isinstance(outcome, _SpoolTrouble):
                _log.error("primary_failed", extra=fields)
            elif not self._spool.refusing:
                # The spool's writer logs a disk that refuses records. Here it would be a line every second: the
                # records in memory are delivered in between.
                _log.error("spool_not_read", extra=fields)
        if isinstance(outcome, Alarm):
            return self._pace.alarm_s
        pause_s = self._pace.after(self._failures)
        if self._spool.refusing:
            # Records in memory are lost when the process dies, and only the primary can take them.
            pause_s = min(pause_s, MEMORY_PAUSE_S)
        return max(pause_s, min(outcome.after_s or 0.0, self._pace.alarm_s))

    async def _rest(self, pause_s: float) -> None:
        if pause_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._hurry.wait()
        self._hurry.clear()
