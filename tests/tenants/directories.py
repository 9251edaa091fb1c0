"""A directory that tests can wait for."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from app.tenants.directory import LOOK_S, TenantDirectory
from tests.ledger.replicas import WAIT_S
from tests.tenants.samples import KNOWN


class WatchedDirectory(TenantDirectory):
    """Says when it has looked."""

    def __init__(
        self, path: Path, *, damaged: Callable[[str], object] = lambda _: None, look_s: float = LOOK_S
    ) -> None:
        super().__init__(path, KNOWN, damaged=damaged, look_s=look_s)
        self._looked = asyncio.Event()

    async def look(self) -> None:
        await super().look()
        self._looked.set()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for a state; the predicate is asked after each look."""
        async with asyncio.timeout(WAIT_S):
            while not predicate():
                self._looked.clear()
                await self._looked.wait()
