"""What the rest of the program knows of a zone's ledger: hand it a record, ask how it is doing, read its file.

Three shapes keep this interface: one local file (local.py), a spool in front of a remote primary (turso.py), and a
spool alone while neither can be used (waiting.py). Only opening.py knows which one a zone has.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from app.call.records import Record
from app.ledger.machine_calls import CountCalls
from app.storage.errors import StorageError
from app.storage.statement import Row, Statement


class RecordsLostError(StorageError):
    """Records were lost before the server ended: the exit status says so to whoever started it."""

    def __init__(self, lost: Mapping[str, int]) -> None:
        """`lost`: how many, by zone."""
        counts = ", ".join(f"{count} of zone {zone}" for zone, count in sorted(lost.items()))
        super().__init__(f"Records of calls were lost: {counts}. The log says why.")


class Ledger(Protocol):
    """Takes records without ever making a call wait for a disk or a database."""

    def remember(self, record: Record) -> None:
        """Keep a record. Returns at once and never raises; call it from the event loop's thread only.

        The same record may be handed over again: it is stored once. A record that cannot even be held in
        memory is counted in `lost` and logged as an error.
        """

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything remembered so far is stored; False when that took longer than the timeout."""

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything is where the zone's records are kept; False when that took longer."""

    async def ask(self, statement: Statement) -> Sequence[Row]:
        """Run one statement where the zone's records are kept, and return its rows. It may be run twice.

        Waits for the primary, or for this disk: give it a timeout. Raises StorageError.
        """

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

    @property
    def readable(self) -> Path:
        """The file that answers questions: the local file, or this machine's copy of the primary."""

    @property
    def copied(self) -> bool:
        """True when that file is a copy of a primary, which this server makes and keeps in step."""

    @property
    def current(self) -> bool:
        """True when that file shows what was recorded up to a moment ago."""

    def report_calls(self, count: CountCalls) -> None:
        """Let other machines know how many calls are here: `count` is asked every few seconds."""

    def calls_elsewhere(self, tenant: str) -> int:
        """How many calls this tenant has on other machines, as they have reported lately. Approximate."""

    def distrust(self, why: str) -> None:
        """A reader found that file damaged: do not rely on it. Call it from the event loop's thread."""
