"""The ledger of a zone whose database nobody can use until an operator acts: records wait on this machine's disk.

A malformed address, a schema that was changed, a damaged local file. Calls are answered all the same. The next
start that finds things in order delivers what was kept (turso.py, local.py). Does not look for itself
whether things are in order again, because what an operator does then is to restart the server.
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
