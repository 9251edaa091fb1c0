"""What the rest of the program knows of the ledger: hand over a record, ask how it is doing.

Refuses to know where records end up: one local file today, a spool in front of a remote primary later.
Callers keep this interface either way.
"""

from typing import Protocol

from app.call.records import Record


class LedgerError(Exception):
    """The ledger cannot do what was asked. The text names the file and what to do about it."""


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
        """Store what is left, within a bounded time, and stop. What could not be stored is logged."""

    @property
    def depth(self) -> int:
        """Records remembered and not stored yet."""

    @property
    def lost(self) -> int:
        """Records turned away since the start because too many were waiting."""

    @property
    def set_aside(self) -> int:
        """Records that the database did not take and that wait for an operator, as far as this machine knows."""

    @property
    def healthy(self) -> bool:
        """True when the last attempt to store something worked and nothing was lost since."""

    @property
    def last_error(self) -> str | None:
        """Why the ledger is not healthy, for /healthz; None when it is."""
