"""Kills `nearcall serve` under load while its link, its primary or its disk fails, and counts lost records.

First come kills with a good disk (`--rounds`). A record counts as *recorded* if it is in the server's spool or
on the primary at the instant of a kill; each of those must be on the primary in the end. Each caller hears one
greeting, so a call with two agent turns, two beginnings or two ends was duplicated. A call that ended well
before the kill must be there whole.

Then come the faults (`--faults` times each): the disk is full, fails, hangs or damages pages, or the primary is
wiped and migrated anew, or disk and primary both fail. For each fault (but for the last) one server is killed,
and another one is told to stop. In the end the primary must have every call that ended 2 s before a kill, and
after a stop every call, except for as many records as the log and the exit status report as lost. The tests run
a few rounds and each fault once (test_torture.py), and so does `scripts/torture --short`.
"""

import argparse
import asyncio
import json
import logging
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import httpx

from app.sim.phone.errors import PhoneError
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.realtime.faults import IMMEDIATELY
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.storage.database import Database, open_for_writing
from app.storage.migrations import known_migrations
from app.storage.primary import Primary
from app.storage.primary_migrations import migrate_primary
from app.storage.store import PrimaryStore
from app.world.process import free_port
from scripts.benchlib import targets
from scripts.benchlib.phone import ACCOUNT_SID, AUTH_TOKEN
from scripts.benchlib.process import Child, child
from tests.ledger.faulty_disk import FaultyDisk, damage_pages
from tests.ledger.sqld import Sqld, token
from tests.ledger.wire import Mode, Wire
from tests.waiting import a_moment

CALLERS = 10
LIFE_MAX_S = 2.0
"""Longest life of a server, from when it takes calls; every other one's from when its first call is over, which is
later than that on a machine with much to do."""
FIRST_CALL_S = 30.0
OVER_S = 0.4
"""So long after its end a call's records are in the spool: they wait there for company for 50 ms."""
DRAIN_S = 60.0
FAULT_S = 3.0
"""So long calls go on beside a fault."""
MEMORY_S = 2.0
"""So long before a kill a call was over whose records must be safe: memory is emptied within that time."""
STOP_S = 20.0
RECORDS_LOST = 3
"""The exit status of a server that lost records."""
TOLD_LOST = re.compile(r"ledger_records_lost\b.*?\blost\W+(\d+)")
MODES = (Mode.PASS, Mode.PASS, Mode.PASS, Mode.HANG, Mode.RESET, Mode.REFUSE)

TABLES = {"CallStarted": "legs", "Turn": "turns", "Happening": "events", "CallEnded": "endings"}
WHOLE = {"CallStarted", "Turn", "CallEnded"}

Key = tuple[str, str, str, int]
"""Kind of record, call, leg, number in the call or 0."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of what was recorded."""

    recorded: int
    """Records in the spool or on the primary when the server was killed."""
    spooled: int
    """Those that were in the spool alone."""
    lost: int
    doubled: int
    calls: int
    """Calls that were over before a kill."""
    incomplete: int
    """Those of them that are not on the primary whole."""

    @property
    def good(self) -> bool:
        """Something was tried, and nothing is missing or there twice."""
        return bool(self.spooled and self.calls) and not (self.lost or self.doubled or self.incomplete)


class Fault(Enum):
    """What goes wrong beside a healthy primary, or with its data."""

    FULL = "full"
    FAILS = "fails"
    HANGS = "hangs"
    DAMAGED = "damaged"
    WIPED = "wiped"
    GONE = "gone"
    """The disk fails and the primary is out of reach: records are lost, and the server has to say so."""

    @property
    def ends(self) -> tuple[bool, ...]:
        """How to end a server beside it: by a kill, and by a stop. A killed one owns up to nothing."""
        return (True,) if self is Fault.GONE else (False, True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the calls beside a fault."""

    fault: Fault
    stopped: bool
    """Told to stop; else killed."""
    degraded: bool
    """The server has said that its ledger is in trouble."""
    calls: int
    """Calls that were over, long enough before a kill."""
    incomplete: int
    """Those of them that are not on the primary whole."""
    doubled: int
    status: int
    told_lost: int
    """Records that the server, or the one after it, says are lost."""
    last_line: str
    """The server's last words."""

    @property
    def good(self) -> bool:
        """Something was tried, and nothing is missing that was not told."""
        status_fits = not self.stopped or self.status == (RECORDS_LOST if self.told_lost else 0)
        if self.fault is Fault.GONE and not self.told_lost:
            return False
        # For a call that is incomplete at least one record is lost.
        told = self.incomplete <= self.told_lost
        return bool(self.calls) and self.degraded and status_fits and told and self.doubled == 0


@dataclass
class Callers:
    """Calls one after another for as long as somebody answers."""

    url: str
    begun_at: dict[str, float] = field(default_factory=dict)
    """When a call was dialled, by its id."""
    over_at: dict[str, float] = field(default_factory=dict)
    """When a call in which the agent was heard had been hung up, by its id."""
    one_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def calls(self) -> None:
        """One caller. A server that is killed meanwhile is what this is about."""
        while True:
            with suppress(PhoneError):
                await self._call()

    async def _call(self) -> None:
        options = PhoneOptions(
            f"{self.url}/twiml/voice",
            AUTH_TOKEN,
            account_sid=ACCOUNT_SID,
            connected_after_ms=(0, 0),
            document_pace=0.0,
        )
        begun_at = time.monotonic()
        async with Phone(options) as phone:
            await phone.dial()
            if phone.call_sid is not None:
                self.begun_at[phone.call_sid] = begun_at
            await phone.answered()
            await phone.heard_speech(100)
            await phone.hang_up()
            if phone.call_sid is not None:
                self.over_at[phone.call_sid] = time.monotonic()
                self.one_over.set()


async def torture(directory: Path, rounds: int, seed: int) -> Verdict:
    """Run the rounds and count. Takes about two seconds each."""
    chance = random.Random(seed)
    recorded: set[Key] = set()
    spooled: set[Key] = set()
    finished: set[str] = set()
    with ExitStack() as stack:
        sqld = stack.enter_context(Sqld(directory / "sqld"))
        await _migrate(sqld)
        wire = stack.enter_context(Wire(sqld.port))
        async with RealtimeSimulator(api_key=targets.BACKEND_KEY, timing=IMMEDIATELY, record=False) as backend:
            base = f"http://127.0.0.1:{free_port()}"
            env = {
                **targets.settings(base, directory, backend.url, targets.BACKEND_KEY),
                "TURSO_URL": wire.url,
                "TURSO_TOKEN": token(),
            }
            for number in range(rounds):
                finished |= await _round(directory, base, env, sqld, wire, chance, after_a_call=number % 2 == 0)
                waiting, there = _in_spool(directory), _on_primary(sqld).keys()
                spooled |= waiting - there
                recorded |= waiting | there
            wire.become(Mode.PASS)
            await _drain(directory, base, env)
        stored = _on_primary(sqld)
    return Verdict(
        recorded=len(recorded),
        spooled=len(spooled),
        lost=len(recorded - stored.keys()),
        doubled=stored.total() - len(stored) + _doubled(stored),
        calls=len(finished),
        incomplete=sum(not {kind for kind, sid, _, _ in stored if sid == call} >= WHOLE for call in finished),
    )


async def _round(
    directory: Path,
    base: str,
    env: Mapping[str, str],
    sqld: Sqld,
    wire: Wire,
    chance: random.Random,
    *,
    after_a_call: bool,
) -> set[str]:
    """One server from its start to its kill -9; which calls were over by then."""
    wire.become(chance.choice(MODES))
    callers = Callers(base)
    async with _server(directory, base, env) as server:
        calling = [asyncio.create_task(callers.calls()) for _ in range(CALLERS)]
        if after_a_call:
            async with asyncio.timeout(FIRST_CALL_S):
                await callers.one_over.wait()
        life_s = chance.uniform(0, LIFE_MAX_S)
        await asyncio.wait(calling, timeout=life_s / 2)
        match chance.randrange(6):
            case 0:
                sqld.stop()
                sqld.start()
            case 1:
                wire.drop_next_answer()
            case 2:
                wire.become(chance.choice(MODES))
        await asyncio.wait(calling, timeout=life_s / 2)
        server.check()
        killed_at = time.monotonic()
        server.process.kill()
        await server.process.wait()
        for task in calling:
            task.cancel()
        await asyncio.wait(calling)
    for task in calling:
        if not task.cancelled():
            task.result()  # raises: nothing but a cancellation should end it
    return {sid for sid, at in callers.over_at.items() if at < killed_at - OVER_S}


@asynccontextmanager
async def _server(directory: Path, base: str, env: Mapping[str, str]) -> AsyncIterator[Child]:
    async with child("nearcall", targets.SERVE, directory, env=env) as server:
        await targets.until_answered(server, int(base.rpartition(":")[2]), targets.HEALTH)
        yield server


async def torture_by_fault(directory: Path, fault: Fault, *, stopped: bool, seed: int) -> Outcome:
    """One server beside a fault, and its end; then another one on a healthy disk, and count."""
    chance = random.Random(seed)
    with ExitStack() as stack:
        sqld = stack.enter_context(Sqld(directory / "sqld"))
        await _migrate(sqld)
        wire = stack.enter_context(Wire(sqld.port))
        data_dir = directory / "data"
        disk = FaultyDisk(data_dir, directory / "faults")
        async with RealtimeSimulator(api_key=targets.BACKEND_KEY, timing=IMMEDIATELY, record=False) as backend:
            base = f"http://127.0.0.1:{free_port()}"
            env = {
                **targets.settings(base, directory, backend.url, targets.BACKEND_KEY),
                **disk.env,
                "TURSO_URL": wire.url,
                "TURSO_TOKEN": token(),
            }
            callers = Callers(base)
            async with (
                _server(directory, base, env) as server,
                httpx.AsyncClient(base_url=base, trust_env=False) as client,
            ):
                calling = [asyncio.create_task(callers.calls()) for _ in range(CALLERS)]
                async with asyncio.timeout(FIRST_CALL_S):
                    await callers.one_over.wait()
                await _begin(fault, sqld, wire, disk, chance)
                counts_from = time.monotonic() if fault is Fault.WIPED else 0.0
                degraded = await _goes_on(client, calling, FAULT_S + chance.uniform(0, 1))
                if fault is Fault.DAMAGED:
                    damage_pages(_moved_from_its_log(data_dir / "global" / "spool.db"))
                    if stopped:
                        wire.become(Mode.PASS)
                for task in calling:
                    task.cancel()
                await asyncio.wait(calling)
                if fault is Fault.WIPED:
                    await _migrate(sqld)
                server.check()
                ended_at = time.monotonic()
                status = await _end(server, stopped=stopped)
                log = server.log.read_text()
                last_line = log.splitlines()[-1]
            disk.mend()
            wire.become(Mode.PASS)
            await _drain(directory, base, env)
            log += (directory / "nearcall.log").read_text()
        stored = _on_primary(sqld)
    over = {
        sid
        for sid, at in callers.over_at.items()
        if callers.begun_at[sid] > counts_from and (stopped or at < ended_at - MEMORY_S)
    }
    return Outcome(
        fault,
        stopped,
        degraded=degraded,
        calls=len(over),
        incomplete=sum(not {kind for kind, sid, _, _ in stored if sid == call} >= WHOLE for call in over),
        doubled=stored.total() - len(stored) + _doubled(stored),
        status=status,
        told_lost=sum(map(int, TOLD_LOST.findall(log))),
        last_line=last_line,
    )


async def _migrate(sqld: Sqld) -> None:
    async with Primary(sqld.url, token) as primary:
        await migrate_primary(PrimaryStore(primary), known_migrations())


async def _begin(fault: Fault, sqld: Sqld, wire: Wire, disk: FaultyDisk, chance: random.Random) -> None:
    match fault:
        case Fault.FULL:
            disk.fill(chance.choice((0, 20_000, 200_000)))
        case Fault.FAILS:
            disk.fail()
        case Fault.HANGS:
            disk.hang()
        case Fault.DAMAGED:
            # For the spool to have many pages.
            wire.become(Mode.REFUSE)
        case Fault.GONE:
            wire.become(Mode.REFUSE)
            disk.fail()
        case Fault.WIPED:
            sqld.lose_disk()
            sqld.start()


def _moved_from_its_log(path: Path) -> Path:
    """The file, with all that its write-ahead log had: what is damaged in there is cut off without a word."""
    with closing(Database(path)) as database:
        database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


async def _goes_on(client: httpx.AsyncClient, calling: Sequence["asyncio.Task[None]"], for_s: float) -> bool:
    """Let calls go on for a while, or twice that until the server says that its ledger is in trouble."""
    ends_at = time.monotonic() + for_s
    degraded = False
    while not degraded or time.monotonic() < ends_at:
        await asyncio.wait(calling, timeout=0.1)
        degraded = degraded or (await client.get("/healthz")).json().get("why") == "ledger"
        if time.monotonic() > ends_at + for_s:
            break
    return degraded


async def _end(server: Child, *, stopped: bool) -> int:
    if stopped:
        server.process.terminate()
    else:
        server.process.kill()
    async with asyncio.timeout(STOP_S):
        return await server.process.wait()


async def _drain(directory: Path, base: str, env: Mapping[str, str]) -> None:
    """A last server that brings everything to the primary."""
    async with (
        asyncio.timeout(DRAIN_S),
        _server(directory, base, env),
        httpx.AsyncClient(base_url=base, trust_env=False, headers=targets.OPERATOR) as client,
    ):
        while (await client.get("/healthz")).json()["ledger_depth"]:
            await a_moment()


def _in_spool(directory: Path) -> set[Key]:
    """What the killed server left on its disk, read from a copy."""
    with tempfile.TemporaryDirectory(dir=directory) as copy:
        for file in (directory / "data" / "global").glob("spool.db*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, copy)
        with closing(open_for_writing(Path(copy) / "spool.db")) as database:
            if not database.query("SELECT * FROM sqlite_master WHERE name = ?", ("spool",)):
                return set()
            rows = database.query("SELECT kind, content FROM spool")
    contents = [(str(kind), json.loads(str(content))) for kind, content in rows]
    return {(kind, each["call_sid"], each["leg"], each.get("seq", 0)) for kind, each in contents}


def _on_primary(sqld: Sqld) -> Counter[Key]:
    found: Counter[Key] = Counter()
    for kind, table in TABLES.items():
        seq = "seq" if kind in {"Turn", "Happening"} else "0"
        rows = sqld.query(f"SELECT call_sid, leg, {seq} FROM {table}")
        found.update((kind, str(sid), str(leg), int(number)) for sid, leg, number in rows)
    return found


def _doubled(stored: Mapping[Key, int]) -> int:
    """Beginnings, turns and ends that a call has too many of: one of each is all it can have."""
    each = Counter((kind, sid) for kind, sid, _, _ in stored if kind in WHOLE)
    return each.total() - len(each)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="number of kills with a good disk (default: 200)")
    parser.add_argument(
        "--faults", type=int, default=5, help="number of times that each fault is tried (default: 5)"
    )
    parser.add_argument("--short", action="store_true", help="run 6 rounds and each fault once: two minutes")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(2**32), help="random seed, to reproduce a run"
    )
    options = parser.parse_args(arguments)
    rounds, times = (6, 1) if options.short else (options.rounds, options.faults)
    # Simulators that still write to a server that was killed: that is the point here.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    good = True
    if rounds:
        with tempfile.TemporaryDirectory() as directory:
            verdict = asyncio.run(torture(Path(directory), rounds, options.seed))
        sys.stdout.write(f"{rounds} rounds, seed {options.seed}: {verdict}\n")
        good = verdict.good
    for number in range(times):
        for fault in Fault:
            for stopped in fault.ends:
                with tempfile.TemporaryDirectory() as directory:
                    seed = options.seed + number
                    outcome = asyncio.run(torture_by_fault(Path(directory), fault, stopped=stopped, seed=seed))
                sys.stdout.write(f"{'good' if outcome.good else 'BAD'}: seed {seed}: {outcome}\n")
                sys.stdout.flush()
                good = good and outcome.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
