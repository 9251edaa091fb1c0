"""A replica that tests can wait for, and the heartbeat that it is measured by."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from app.ledger.freshness import Freshness, Look
from app.ledger.local import open_migrated
from app.ledger.replica import Replica, look_at
from app.storage.database import Database
from tests.ledger.sqld import Sqld

WAIT_S = 20.0


class Beats:
    """Beats when told to, past the code that does it in earnest (test_heartbeat.py)."""

    def __init__(self, sqld: Sqld, machine: str = "m1") -> None:
        self.machine = machine
        self.acked_ms: int | None = None
        self._sqld = sqld

    def beat(self) -> int:
        """Returns the time that it leaves on the primary."""
        at_ms = max(time.time_ns() // 1_000_000, (self.acked_ms or 0) + 1)
        self._sqld.execute(
            f"INSERT INTO heartbeats VALUES ('{self.machine}', 'fra', {at_ms})"
            " ON CONFLICT (machine) DO UPDATE SET at_ms = excluded.at_ms"
        )
        self.acked_ms = at_ms
        return at_ms


class WatchedReplica(Replica):
    """Says when it has looked at its file."""

    def __init__(
        self,
        path: Path,
        url: str,
        token: Callable[[], str],
        beats: Beats,
        *,
        freshness: Freshness | None = None,
        look: Callable[[Path, str], Look] = look_at,
    ) -> None:
        super().__init__(path, url, token, beats, freshness=freshness, look=look)
        self.beats = beats
        self._looked = asyncio.Event()

    def _consider(self, look: Look, connected_s: float | None) -> None:
        super()._consider(look, connected_s)
        self._looked.set()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for a state; the predicate is asked after each look."""
        async with asyncio.timeout(WAIT_S):
            while not predicate():
                self._looked.clear()
                await self._looked.wait()

    async def in_step(self) -> None:
        """Beat once, and wait until the replica shows it and has forgotten its troubles."""
        at_ms = self.beats.beat()
        await self.until(lambda: self._beat_ms == at_ms and self.status().error is None)

    async def next_child(self, end: Callable[[], None]) -> None:
        """Do what should end the child, and wait until another one brought the replica into step."""
        restarts = self.status().restarts
        end()
        await self.until(lambda: self.status().restarts > restarts)
        await self.in_step()

    @property
    def pid(self) -> int:
        """Of the child."""
        assert self._process is not None
        return self._process.pid


def migrated(sqld: Sqld, scratch: Path) -> None:
    """Give the primary the schema that a local ledger has."""
    local = open_migrated(scratch / "schema.db")
    for (sql,) in local.query("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"):
        sqld.execute(str(sql))
    for version, name, checksum, at_ms in local.query("SELECT * FROM schema_migrations"):
        sqld.execute(f"INSERT INTO schema_migrations VALUES ({version}, '{name}', '{checksum}', {at_ms})")
    local.close()


def file_rows(path: Path, sql: str) -> list[tuple[int | str | None, ...]]:
    """Ask the replica's file as anybody would: read-only."""
    database = Database(path, "ro")
    try:
        return database.query(sql)
    finally:
        database.close()
