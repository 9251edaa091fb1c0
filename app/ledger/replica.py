"""A copy of a zone's database on this machine, which a child process keeps up to date and others read as a file.

    primary -> child (replica_child.py) -> replica.db <- this process, read-only, a thread of its own

The child is watched three ways: it ticks (a stopped or hung one does not), its exit code says what went wrong,
and the file itself shows how far it came (freshness.py). After any fault the child is ended and another one is
started, after a pause that doubles; a file that cannot be used is made anew. Neither the start of the server nor a
call waits for this. While there is no fresh file, readers have an old one or none, and `age_s` says which.

Of the ledger's tables this module knows only the heartbeat, which gives the age, and a count for operators. It
opens the file only through SQLite: closing a plain file handle drops SQLite's locks (app/storage/database.py).
"""

import asyncio
import json
import logging
import os
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from app.ledger import replica_child
from app.ledger.freshness import Freshness, Look, Treatment
from app.ledger.machine_calls import Report, calls_in, reports_of_others
from app.ledger.replica_child import Order
from app.storage.database import DatabaseError, damage, open_for_reading
from app.storage.errors import StorageError
from app.storage.loops import step_of
from app.storage.thread import OwnThread

SYNC_INTERVAL_S = 0.5
"""A row is in every replica that long after it is on the primary, and a round trip. Idle, it costs one request."""
CONNECT_S = 15
"""Whole seconds. One round trip, and TLS; but when the primary hangs, connect() waits for ever (libsql.md 6)."""
LOOK_S = 1.0
HANG_S = 20.0
"""A child that has not ticked for so long is stopped, or waits for ever. It ticks every 0.5 s, except while it
connects: hence longer than CONNECT_S."""
STALE_S = 20.0
"""Four heartbeats: a replica older than that is not healthy."""
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 10.0
STEADY_S = 60.0
"""A child that followed its primary for so long was a good one: the next pause is short again."""
STOP_S = 2.0
LAST_WORDS_BYTES = 2_000

_log = logging.getLogger("nearcall.ledger")


class Beats(Protocol):
    """What a replica needs of a heartbeat."""

    machine: str

    @property
    def acked_ms(self) -> int | None:
        """The newest beat that the primary is known to have, Unix ms."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """How a replica is doing."""

    age_s: float | None
    """How old what it shows may be; None when there is nothing to be seen."""
    connected: bool
    """True while a child follows the primary, as far as it knows."""
    restarts: int
    error: str | None
    """Why the last child was ended; None since one is in step again."""


class Replica:
    """Keeps the file at `path` in step with the primary at `url`. Its directory must exist."""

    def __init__(
        self,
        path: Path,
        url: str,
        token: Callable[[], str],
        heartbeat: Beats,
        *,
        freshness: Freshness | None = None,
        look: "Callable[[Path, str], Look] | None" = None,
    ) -> None:
        """`token` is asked again for each new child, so that a new one is used without a restart of the server.

        `look` looks at the files on behalf of a machine, and `freshness` judges what it saw.
        """
        self.path = path
        self._url = url
        self._token = token
        self._heartbeat = heartbeat
        self._freshness = freshness or Freshness()
        self._look_at = look or look_at
        self._beat_ms: int | None = None
        self._process: Process | None = None
        self._connected_s: float | None = None
        self._anew = False
        self._condemned: str | None = None
        self._restarts = 0
        self._error: str | None = None
        self._refused = 0
        self._others: tuple[Report, ...] = ()
        self._lost = False
        self._began_s = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = OwnThread("ledger-replica")

    def start(self) -> None:
        """Begin. Returns at once, whatever the primary and the file are like."""
        self._tasks = [
            asyncio.create_task(self._supervise(), name="replica-child"),
            asyncio.create_task(self._watch(), name="replica-watch"),
        ]

    async def stop(self) -> None:
        """End the child, within STOP_S, and leave the file to the next start."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._thread.close()

    def age_s(self) -> float | None:
        """Seconds that the replica may be behind, or None when it shows nothing at all."""
        return None if self._beat_ms is None else max(0.0, time.time() - self._beat_ms / 1000)

    @property
    def healthy(self) -> bool:
        """True when what is read there is fresh."""
        age_s = self.age_s()
        return age_s is not None and age_s < STALE_S

    @property
    def trouble(self) -> str | None:
        """Why the copy is not fresh; None when it is, and while it may still become so after the start."""
        if self.healthy or time.monotonic() - self._began_s < STALE_S:
            return self._error if self._lost else None
        age_s = self.age_s()
        behind = "there is no copy of the database" if age_s is None else f"the copy is {age_s:.0f} s behind"
        return f"{behind}: {self._error}" if self._error else behind

    @property
    def refused(self) -> int:
        """Records that the primary has set aside, as the copy shows them."""
        return self._refused

    def calls_elsewhere(self, tenant: str, now_ms: int) -> int:
        """How many calls the tenant has on other machines, as they have reported lately."""
        return calls_in(self._others, tenant, now_ms)

    def status(self) -> ReplicaStatus:
        """How the replica is doing, for operators."""
        return ReplicaStatus(self.age_s(), self._connected_s is not None, self._restarts, self._error)

    def distrust(self, why: str) -> None:
        """Make the file anew: a reader found it damaged. Call it from the event loop's thread."""
        self._condemn(Treatment.REBUILD, why)

    # --- The child ----------------------------------------------------------------------------

    async def _supervise(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            why = str(await step_of("replica-child", self._one_child))
            if self._connected_s is not None and time.monotonic() - self._connected_s >= STEADY_S:
                pause_s = RETRY_FIRST_S
            self._connected_s = None
            self._restarts += 1
            if why != self._error:  # said once: a primary that is down ends six children a minute
                level = logging.ERROR if self._lost else logging.WARNING
                _log.log(level, "replica_stopped", extra={"path": str(self.path), "why": why})
            self._error = why
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def _one_child(self) -> str:
        """Run a child to its end. Returns why it ended, or why it cannot be started."""
        try:
            return await self._run_child()
        except OSError as error:
            return f"cannot start a process: {error}"
        except ValueError as error:  # the token's file is missing or empty
            return str(error)

    async def _run_child(self) -> str:
        self._condemned = None
        token = await self._thread.run(self._token)  # may read a file
        order = Order(str(self.path), self._url, token, SYNC_INTERVAL_S, CONNECT_S, self._anew, os.getpid())
        process = await _started()
        self._process = process
        last_words = asyncio.create_task(_tail(process))
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            silence = await self._listen(process)
        finally:
            self._process = None
            await _ended(process)
            words = await last_words
        return self._condemned or silence or self._reason(process.returncode, words)

    async def _listen(self, process: Process) -> str | None:
        """Until the child ends, or says nothing for too long; then says so."""
        assert process.stdout is not None
        patience_s = HANG_S
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    signs = await process.stdout.read(64)
            except TimeoutError:
                return f"the replica's process has not moved for {patience_s:.0f} s"
            if not signs:
                return None
            if b"~" in signs:
                patience_s = replica_child.FIRST_SYNC_S
            if b"=" in signs:
                patience_s = HANG_S
            if b"+" in signs:
                self._anew = False
                self._connected_s = time.monotonic()
                self._freshness.connected(self._connected_s)
                _log.info("replica_connected", extra={"path": str(self.path)})

    def _reason(self, code: int | None, words: str) -> str:
        if code == replica_child.FILE:
            self._anew = True
        self._lost = code == replica_child.LOST
        if code == -signal.SIGALRM:
            return f"the primary did not answer within {CONNECT_S} s"
        how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return words or f"the replica's process ended: {how}"

    # --- The file -----------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await step_of("replica-watch", self._look)
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        connected_s = self._connected_s
        look = await self._thread.run(lambda: self._look_at(self.path, self._heartbeat.machine))
        self._consider(look, connected_s)

    def _consider(self, look: Look, connected_s: float | None) -> None:
        """Act on a look that was begun while the child of `connected_s` followed the primary."""
        self._beat_ms = look.beat_ms
        self._refused = look.refused
        self._others = look.others
        # A look at a file that was still being made, or at that of the child before, says nothing of this one: it
        # may show half a page, or a log that is gone by rights.
        if connected_s is None or connected_s != self._connected_s:
            return
        treatment, why = self._freshness.judge(look, self._heartbeat.acked_ms, time.monotonic())
        if treatment is not Treatment.KEEP:
            self._condemn(treatment, why)
        elif self._error is not None and self.healthy:
            self._error = None
            _log.info("replica_recovered", extra={"path": str(self.path), "restarts": self._restarts})

    def _condemn(self, treatment: Treatment, why: str) -> None:
        self._anew = self._anew or treatment is Treatment.REBUILD
        if self._process is not None and self._condemned is None:
            self._condemned = why
            _kill(self._process)


async def _started() -> Process:
    # -I: neither the directory we happen to be in nor the environment decides what it imports. A session of its
    # own: Ctrl-C is for us, and we tell the child. RUST_LOG: the library logs to stdout (libsql.md 1, point 9).
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        replica_child.__file__,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={"RUST_LOG": "off"},
        start_new_session=True,
    )


async def _ended(process: Process) -> None:
    """Ask the child to end, insist after STOP_S, and wait until it is gone."""
    assert process.stdin is not None
    process.stdin.close()
    # Not asyncio.timeout: in the clean-up of a cancelled task it raises CancelledError before Python 3.11.4, and
    # the child would be left running.
    gone = asyncio.ensure_future(process.wait())
    await asyncio.wait({gone}, timeout=STOP_S)
    if not gone.done():
        _kill(process)
    await gone


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


async def _tail(process: Process) -> str:
    """The end of what the child says on stderr."""
    assert process.stderr is not None
    tail = b""
    while chunk := await process.stderr.read(LAST_WORDS_BYTES):
        tail = (tail + chunk)[-LAST_WORDS_BYTES:]
    return tail.decode("utf-8", "replace").strip()


def look_at(path: Path, machine: str) -> Look:
    """What the files show of a machine's heartbeat. Reads a disk: for a thread."""
    parts = frozenset(part for part in replica_child.PARTS if path.with_name(path.name + part).exists())
    try:
        frame = path.with_name(path.name + "-client_wal_index").read_bytes()
    except FileNotFoundError:
        frame = b""
    try:
        with closing(open_for_reading(path)) as database:
            rows = database.query("SELECT at_ms FROM heartbeats WHERE machine = ?", (machine,))
            [(refused,)] = database.query("SELECT count(*) FROM refused")
            others = reports_of_others(database, machine)
    except DatabaseError as error:
        # Without damage: no such table yet, or the file is just being made.
        return Look(parts, frame, damage=damage(error))
    except StorageError:  # no file
        return Look(parts, frame)
    beat_ms = int(rows[0][0] or 0) if rows else None
    return Look(parts, frame, beat_ms=beat_ms, refused=int(refused or 0), others=others)
