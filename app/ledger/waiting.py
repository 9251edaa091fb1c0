"""The ledger of a zone whose database nobody can use until an operator acts: records wait on this machine's disk.

A malformed address, a schema newer than this program, a damaged local file. Calls are answered all the same. What
was kept is delivered by the next start that finds things in order (turso.py, local.py). Refuses to know what is
wrong, and to look whether it still is: these are things that a restart follows.
"""

from typing import Self

from app.call.records import Record
from app.ledger.spool import Spool
from app.ledger.zones import Zone


class WaitingLedger:
    """The `Ledger` of one zone, never healthy. Make one with `open`."""

    def __init__(self, spool: Spool, why: str) -> None:
        self._spool = spool
        self._why = why

    @classmethod
    async def open(cls, zone: Zone, why: str) -> Self:
        """`why` tells an operator what to mend. Raises LedgerError when the spool cannot be had."""
        zone.make_directory()
        return cls(await Spool.open(zone.spool), why)

    def remember(self, record: Record) -> None:
        self._spool.put(record)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything remembered so far is on this machine's disk."""
        return await self._spool.flush(timeout_s)

    async def close(self) -> None:
        await self._spool.close()

    @property
    def depth(self) -> int:
        return self._spool.depth

    @property
    def lost(self) -> int:
        return self._spool.lost

    @property
    def healthy(self) -> bool:
        return False

    @property
    def last_error(self) -> str:
        return self._spool.last_error or self._why
