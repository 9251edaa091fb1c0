"""The tenants as calls see them: in memory, by number and by name, never older than a few seconds.

    tenants import -> primary -> replica.db, or the local ledger.db -> a look every second -> a snapshot

A thread of its own looks at the file, which costs one row, and reads it again only after an import. Calls see a
snapshot that never changes; a new one takes its place. A tenant whose rows cannot be used is left out and logged
once, and its numbers are kept as broken: callers who dial them hear an apology, not another tenant's greeting. The
file may be missing, or unreadable for a while: the last snapshot stays. Does not know what a call is, or what the
caller of an unknown number hears.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from app.call.plan import Plan
from app.storage.database import DatabaseError, damage, open_for_reading
from app.storage.errors import StorageError
from app.storage.loops import step_of
from app.storage.thread import OwnThread
from app.tenants.fields import Known
from app.tenants.store import (
    EVERYTHING_IN_HEX,
    LATEST,
    NO_MARK,
    Mark,
    TenantRow,
    TenantRows,
    mark_of,
    rows_of,
    unhexed,
)
from app.tenants.tenant import tenant_of

LOOK_S = 1.0
"""With the replica's half a second and a round trip, an import takes effect everywhere within two seconds."""
QUIET_LOOKS = 5
"""A replica that is being made has no tables for a moment, which is not worth a line in the log."""
BEHIND_LOOKS = 60
"""A replica that is made anew shows the past before the present, for a minute at most. A database that is still at
an earlier import then was restored from a backup, and is right; unless it has no tenants at all, see VANISHED."""
VANISHED = (
    "there were tenants, and now there are none although no import removed them: the last ones stay in use until"
    " the database is restored, or 'nearcall tenants import' stores them again"
)
"""Every import leaves a row with a higher number, also an import that removes every tenant. A database without
tenants and without such a row has lost them."""

log = logging.getLogger("nearcall.tenants")


@dataclass(frozen=True, slots=True)
class _Snapshot:
    mark: Mark = NO_MARK
    rows: Mapping[str, TenantRow] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)
    """By the tenant's name."""
    by_number: Mapping[str, Plan] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    """A tenant's name to why it cannot be used."""
    broken_numbers: frozenset[str] = frozenset()


class TenantDirectory:
    """The tenants in the file at `path`. Use it in the event loop's thread; its answers never wait for a disk."""

    def __init__(
        self,
        path: Path,
        known: Known,
        *,
        damaged: Callable[[str], object],
        look_s: float = LOOK_S,
    ) -> None:
        """`damaged` is called with SQLite's error, in the event loop's thread, when the file is broken."""
        self._path = path
        self._known = known
        self._damaged = damaged
        self._look_s = look_s
        self._snapshot = _Snapshot()
        self._behind = 0
        self._vanished = False
        self._read = False
        self._trouble: str | None = None
        self._failed = 0
        self._thread = OwnThread("tenants")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look every `look_s` seconds. Returns at once, whatever state the file is in."""
        self._task = asyncio.create_task(self._run(), name="tenants")

    async def stop(self) -> None:
        """Stop looking. Does not wait for a disk that hangs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._thread.close()

    # --- For calls ----------------------------------------------------------------------------

    def plan_for(self, number: str) -> Plan | None:
        """The plan of the tenant that has this number; None when no tenant has it, and when it `is_broken`."""
        return self._snapshot.by_number.get(number)

    def plan_of(self, tenant: str) -> Plan | None:
        """The plan of a tenant by name; None when there is no such tenant, or it cannot be used."""
        return self._snapshot.plans.get(tenant)

    def is_broken(self, number: str) -> bool:
        """True for a number of a tenant that cannot be used."""
        return number in self._snapshot.broken_numbers

    @property
    def known(self) -> bool:
        """True when there are tenants at all, usable or not."""
        return bool(self._snapshot.rows)

    # --- For operators ------------------------------------------------------------------------

    @property
    def read(self) -> bool:
        """True when the file was read at least once. Before that it is not known whether there are tenants."""
        return self._read

    @property
    def broken(self) -> Mapping[str, str]:
        """Tenants that cannot be used, and why."""
        return self._snapshot.broken

    @property
    def trouble(self) -> str | None:
        """What is wrong with the tenants in the file; None when nothing is wrong, and while there is no file."""
        return VANISHED if self._vanished else self._trouble

    # --- Looking ------------------------------------------------------------------------------

    async def look(self) -> None:
        """Look once, and read the tenants if they have changed. Failures are logged; the last snapshot stays."""
        last = self._snapshot
        try:
            found = await self._thread.run(lambda: _newer(self._path, last, self._known, self._behind))
        except DatabaseError as error:
            self._cannot_read(error)
            return
        except StorageError:  # no file, for now
            return
        if self._failed >= QUIET_LOOKS:
            log.info("tenants_readable_again", extra={"path": str(self._path)})
        self._trouble, self._failed, self._read = None, 0, True
        vanished = found is _Vanished.ALL
        if vanished and not self._vanished:
            log.error("tenants_vanished", extra={"path": str(self._path), "error": VANISHED})
        elif self._vanished and not vanished:
            log.warning("tenants_returned", extra={"path": str(self._path)})
        self._vanished = vanished
        match found:
            case _Snapshot():
                self._behind = 0
                self._show(found)
            case int():
                self._behind = found
            case _Vanished.ALL:
                pass

    def _show(self, found: _Snapshot) -> None:
        last, self._snapshot = self._snapshot, found
        if found.mark != last.mark:
            counts = {"tenants": len(found.plans), "numbers": len(found.by_number), "change": found.mark[0]}
            log.info("tenants_loaded", extra=counts)
        for name, why in found.broken.items():
            if last.broken.get(name) != why:
                log.error("tenant_unusable", extra={"tenant": name, "error": why})

    def _cannot_read(self, error: DatabaseError) -> None:
        self._trouble = str(error)
        self._failed += 1
        if self._failed == QUIET_LOOKS:
            log.warning("tenants_unreadable", extra={"path": str(self._path), "error": self._trouble})
        if (words := damage(error)) is not None:
            self._damaged(words)

    async def _run(self) -> None:
        while True:
            await step_of("tenants", self.look)
            await asyncio.sleep(self._look_s)


class _Vanished(Enum):
    """There were tenants, and now there are none."""

    ALL = 1


def _newer(path: Path, last: _Snapshot, known: Known, behind: int) -> _Snapshot | int | _Vanished:
    """Return the tenants if they have changed, otherwise for how many looks the file has shown the past.

    Runs in the directory's own thread. Raises StorageError.
    """
    with closing(open_for_reading(path)) as database, database.snapshot():
        mark = mark_of(database.query(LATEST.sql))
        if mark[0] < last.mark[0] and behind < BEHIND_LOOKS:
            return behind + 1
        if last.rows and mark[0] <= last.mark[0] and not database.query("SELECT 1 FROM tenants LIMIT 1"):
            return _Vanished.ALL
        if mark == last.mark:
            return 0
        rows = database.query(EVERYTHING_IN_HEX.sql)
    return _snapshot(rows_of(mark, unhexed(rows)), last, known)


def _snapshot(found: TenantRows, last: _Snapshot, known: Known) -> _Snapshot:
    rows = found.tenants
    plans: dict[str, Plan] = {}
    broken: dict[str, str] = {}
    for name, row in rows.items():
        # Reading a thousand tenants again because one has changed would hold the interpreter lock for long.
        same = last.plans.get(name) if last.rows.get(name) == row else None
        try:
            plans[name] = same or _plan(name, row, known)
        except ValueError as error:
            broken[name] = str(error)
    return _Snapshot(
        found.mark,
        rows,
        plans,
        {number: plan for name, plan in plans.items() for number in rows[name].numbers},
        broken,
        frozenset(number for name in broken for number in rows[name].numbers),
    )


def _plan(name: str, row: TenantRow, known: Known) -> Plan:
    if row.content is None:
        raise ValueError("it has numbers, and nothing else")
    return tenant_of(name, row.numbers, row.content, known).plan
