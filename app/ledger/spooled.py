"""What ledgers that keep their records in a spool have in common. Does not know where records go from there."""

from app.call.records import Record
from app.ledger.spool import Spool


class SpooledLedger:
    """The part of a `Ledger` that the spool answers."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def remember(self, record: Record) -> None:
        self._spool.put(record)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything remembered so far is on this disk or the primary: no kill -9 takes it away."""
        return await self._spool.flush(timeout_s)

    @property
    def depth(self) -> int:
        return self._spool.depth

    @property
    def lost(self) -> int:
        return self._spool.lost

    @property
    def set_aside(self) -> int:
        return self._spool.aside

    @property
    def last_error(self) -> str | None:
        return self._spool.last_error

    @property
    def healthy(self) -> bool:
        return self.last_error is None
