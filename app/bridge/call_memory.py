"""What a call asks of its zone's ledger, beside writing to it: who carries the call, and what was said in it."""

from typing import Protocol

from app.call.continuity import Ownership, Recollection


class CallMemory(Protocol):
    """The answers of one zone's ledger. No method raises: what the ledger cannot say is part of each answer."""

    async def claim(self, call_sid: str, epoch: int, leg: str) -> Ownership:
        """Claim an epoch of a call for a leg. May be repeated."""

    async def owner(self, call_sid: str, epoch: int, timeout_s: float) -> Ownership:
        """Say whether the leg with this epoch still carries the call, or a later one does."""

    async def recall(self, call_sid: str, tenant: str) -> Recollection:
        """Find out what happened in a call that should be this tenant's."""

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all records are on a disk; False when that took longer."""
