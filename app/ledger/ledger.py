"""What the rest of the program knows of the ledger: hand over a record, ask how it is doing.

Refuses to know where records end up: one local file today, a spool in front of a remote primary later.
Callers keep this interface either way.
"""

from collections.abc import Mapping
from typing import Protocol

from app.call.records import Record
from app.storage.errors import StorageError


class RecordsLostError(StorageError):
    """Records were lost before the server ended: the exit status says so to whoever started it."""

    def __init__(self, lost: Mapping[str, int]) -> None:
        """How many, by zone."""
        told = ", ".join(f"{count} of zone {zone}" for zone, count in sorted(lost.items()))
        super().__init__(f"Records of calls were lost: {told}. The log says why.")


class Ledger(Protocol):
    """Takes records without ever making a call wait for a disk or a database."""

    def remember(self, record: Record) -> None:
        """Keep a record. Returns at once and never raises; call it from the event loop's thread only.

        The same record may be handed over again: it is stored once. A record that cannot even be held in
        memory is counted in `lost` and logged as an error.
        """

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything remembered so far is stored; False when that took longer than the timeout."""

    async def close(self) -> None:
        """Store what is left, within a bounded time, and stop. What could not be stored counts as `lost`."""

    @property
    def depth(self) -> int:
        """Records remembered and not stored yet."""

    @property
    def lost(self) -> int:
        """Records that are gone: too many were waiting, the disk cannot read them again, or `close` came first."""

    @property
    def set_aside(self) -> int:
        """Records that the database did not take and that wait for an operator, as far as this machine knows."""

    @property
    def healthy(self) -> bool:
        """True when the last attempt to store something worked and nothing was lost since."""

    @property
    def last_error(self) -> str | None:
        """Why the ledger is not healthy, for /healthz; None when it is."""
