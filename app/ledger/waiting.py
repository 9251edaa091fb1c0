"""The ledger of a zone whose database nobody can use until an operator acts: records wait on this machine's disk.

A malformed address, a schema newer than this program, a damaged local file. Calls are answered all the same. What
was kept is delivered by the next start that finds things in order (turso.py, local.py). Refuses to know what is
wrong, and to look whether it still is: these are things that a restart follows.
"""

from typing import Self

from app.ledger.spool import Spool
from app.ledger.spooled import SpooledLedger
from app.ledger.zones import Zone


class WaitingLedger(SpooledLedger):
    """The `Ledger` of one zone, never healthy. Make one with `open`."""

    def __init__(self, spool: Spool, why: str) -> None:
        super().__init__(spool)
        self._why = why

    @classmethod
    async def open(cls, zone: Zone, why: str) -> Self:
        """`why` tells an operator what to mend. Raises StorageError when the spool cannot be had."""
        zone.make_directory()
        return cls(await Spool.open(zone.spool), why)

    async def close(self) -> None:
        await self._spool.close()

    @property
    def last_error(self) -> str:
        return super().last_error or self._why
