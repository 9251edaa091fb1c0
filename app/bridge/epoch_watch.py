"""Watches whether a leg still carries its call: claims its epoch, and asks again when the phone falls silent.

A half-open connection looks alive for seconds: Twilio has lost the stream, has asked what comes next, and another
machine carries the call. The old leg must not hang that call up, nor say anything in it. Nothing of this delays
audio: it runs in a task beside it, and when the ledger does not answer the call goes on.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from app.bridge.call_memory import CallMemory
from app.call.continuity import Owner

SILENT_S = 2.0
"""A phone that has sent nothing for so long may be lost: Twilio sends 50 frames a second."""

BEFORE_ENDING_S = 0.5
"""Longest wait for the ledger before the call is hung up: the caller has heard the goodbye and waits."""

FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 30.0
"""Between two questions to a ledger that does not answer, or about a phone that stays silent. It doubles."""


class WatchLog(Protocol):
    """Where the watch logs."""

    def info(self, event: str, /, **fields: object) -> None:
        """Log something worth knowing."""

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what an operator should look at."""


class EpochWatch:
    """The watch of one leg."""

    def __init__(
        self,
        memory: CallMemory,
        call_sid: str,
        epoch: int,
        leg: str,
        *,
        log: WatchLog,
        count: Callable[[str], None],
    ) -> None:
        """`count` counts an event by its name."""
        self._memory = memory
        self._call_sid = call_sid
        self.epoch = epoch
        self._leg = leg
        self._log = log
        self._count = count

    async def lost(self, phone_heard_at: Callable[[], float], clock: Callable[[], float]) -> None:
        """Return once another leg carries the call; until then, run for as long as the leg does.

        `phone_heard_at`: when the phone side last sent something, by `clock`.
        """
        if await self._claimed():
            await self._superseded_while_silent(phone_heard_at, clock)

    async def superseded(self) -> bool:
        """True when a later leg is known to carry the call. Bounded: to be asked before the call is ended."""
        found = await self._memory.owner(self._call_sid, self.epoch, BEFORE_ENDING_S)
        if found.owner is Owner.ANOTHER_LEG:
            self._note_superseded(found.detail)
        return found.owner is Owner.ANOTHER_LEG

    async def _claimed(self) -> bool:
        """True once the epoch is this leg's, False when it is another's."""
        pause_s, noted = FIRST_PAUSE_S, False
        while True:
            found = await self._memory.claim(self._call_sid, self.epoch, self._leg)
            match found.owner:
                case Owner.THIS_LEG:
                    return True
                case Owner.ANOTHER_LEG:
                    self._count("claim_taken")
                    self._log.warning("claim_taken", epoch=self.epoch, by=found.detail)
                    return False
                case Owner.UNKNOWN if not noted:
                    noted = True
                    self._count("claim_unknown")
                    self._log.warning("claim_unknown", epoch=self.epoch, why=found.detail)
                case Owner.UNKNOWN:
                    pass
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def _superseded_while_silent(
        self, phone_heard_at: Callable[[], float], clock: Callable[[], float]
    ) -> None:
        pause_s = SILENT_S
        while True:
            due_s = phone_heard_at() + SILENT_S - clock()
            if due_s > 0:
                pause_s = SILENT_S
                await asyncio.sleep(due_s)
                continue
            found = await self._memory.owner(self._call_sid, self.epoch, BEFORE_ENDING_S)
            if found.owner is Owner.ANOTHER_LEG:
                self._note_superseded(found.detail)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def _note_superseded(self, by: str) -> None:
        self._count("leg_superseded")
        self._log.info("leg_superseded", epoch=self.epoch, by=by)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session's leg stands in its call."""

    epoch: int = 0
    """The number of the leg."""
    memory: CallMemory | None = None
    """What the ledger of the call's zone knows; None: nothing is claimed."""
    count: Callable[[str], None] = lambda _event: None
    """Counts an event by its name."""

    def watch(self, call_sid: str, leg: str, log: WatchLog) -> EpochWatch | None:
        """A watch of this leg; None when nothing is claimed."""
        if self.memory is None:
            return None
        return EpochWatch(self.memory, call_sid, self.epoch, leg, log=log, count=self.count)

    async def flushed(self, timeout_s: float) -> bool:
        """Wait until all records are on a disk; False when that took longer."""
        return self.memory is None or await self.memory.flush(timeout_s)


ONLY_LEG = Place()
"""The leg of a call that nobody else can have."""
