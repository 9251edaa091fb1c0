"""The ledger of a zone whose database nobody can use until an operator acts: records wait on this machine's disk.

A malformed address, a schema that was changed, a damaged local file. Calls are answered all the same. The next
start that finds things in order delivers what was kept (turso.py, local.py). Does not look for itself
whether things are in order again, because what an operator does then is to restart the server.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from app.ledger.machine_calls import CountCalls
from app.ledger.spool import Spool, SpooledLedger
from app.ledger.zones import Zone
from app.storage.errors import StorageError
from app.storage.statement import Row, Statement

_log = logging.getLogger("nearcall.ledger")


class WaitingLedger(SpooledLedger):
    """The `Ledger` of one zone, never healthy. Make one with `open`."""

    def __init__(self, spool: Spool, why: str, readable: Path) -> None:
        super().__init__(spool)
        self.readable = readable
        self._why = why

    @classmethod
    async def open(cls, zone: Zone, why: str, readable: Path) -> Self:
        """`why` tells an operator what to mend. `readable`: the file that may still answer questions.

        Raises StorageError when the spool cannot be had.
        """
        zone.make_directory()
        return cls(await Spool.open(zone.spool), why, readable)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until the disk has everything. False also while records wait: they go nowhere until a restart."""
        return await self.flush(timeout_s) and self.depth == 0

    async def ask(self, statement: Statement) -> Sequence[Row]:  # noqa: ARG002  there is nobody to ask
        """Raise StorageError: nothing answers until a restart."""
        raise StorageError(self._why)

    async def close(self) -> None:
        await self._spool.close()

    @property
    def last_error(self) -> str:
        return super().last_error or self._why

    @property
    def copied(self) -> bool:
        """False: whatever is in the file, no newer copy comes before a restart."""
        return False

    @property
    def current(self) -> bool:
        """False: what this server records does not come into the file."""
        return False

    def report_calls(self, count: CountCalls) -> None:
        """Do nothing: no other machine reads this file."""

    def calls_elsewhere(self, tenant: str) -> int:  # noqa: ARG002  there is no other machine
        """Return 0: this machine knows of no other one."""
        return 0

    def distrust(self, why: str) -> None:
        """Tell an operator: only a restart can use a mended file."""
        if why not in self._why:
            self._why = f"{self._why}; {why}"
            _log.error("ledger_file_damaged", extra={"path": str(self.readable), "error": why})
