"""Measures a zone's ledger with a real sqld behind a link of 100 ms each way, and compares it with the budgets.

It measures how soon a turn is on the primary and in a replica, whether 200 turns a second get through, and how
long the event loop stalls while the primary hangs. `scripts/bench-ledger` runs it; it is not a test, since
figures depend on the machine.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from app.cli.ledger_status import report
from app.ledger.turso import TursoLedger
from app.ledger.zones import Zone
from app.storage.database import open_for_reading
from app.storage.migrations import known_migrations
from app.storage.primary import Primary
from app.storage.primary_migrations import migrate_primary
from app.storage.statement import Row
from app.storage.store import PrimaryStore
from tests.ledger.samples import turn
from tests.ledger.sqld import Sqld, token
from tests.ledger.wire import Mode, Wire

EACH_WAY_S = 0.1
TICK_S = 0.001
READY_S = 30.0


@dataclass
class Gaps:
    """The longest time for which the event loop did not come round."""

    longest_s: float = 0.0

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        tick, last = asyncio.Event(), time.perf_counter()
        while True:
            loop.call_later(TICK_S, tick.set)
            await tick.wait()
            tick.clear()
            now = time.perf_counter()
            self.longest_s, last = max(self.longest_s, now - last - TICK_S), now


@asynccontextmanager
async def watched(said: list[str]) -> AsyncIterator[None]:
    """Says how long this loop stood still, and one beside it in a process of its own with nothing to do."""
    idle = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.ledger.figures", "--idle"), stdin=PIPE, stdout=PIPE
    )
    assert idle.stdout is not None
    await idle.stdout.readline()
    gaps = Gaps()
    watching = asyncio.create_task(gaps.watch())
    yield
    watching.cancel()
    beside, _ = await idle.communicate(b"")
    longest_ms = 1_000 * gaps.longest_s
    said.append(
        f"longest gap of the event loop {longest_ms:.1f} ms (of an idle one beside it {beside.decode()} ms)"
    )


async def idle() -> None:
    """The process beside: ticks from its first line until its input ends."""
    gaps = Gaps()
    sys.stdout.write("\n")
    sys.stdout.flush()
    watching = asyncio.create_task(gaps.watch())
    await asyncio.to_thread(sys.stdin.read)
    watching.cancel()
    sys.stdout.write(f"{1_000 * gaps.longest_s:.1f}")


async def measure(directory: Path, seconds: float) -> list[str]:
    with Sqld(directory / "sqld") as sqld:
        async with Primary(sqld.url, token) as primary:
            await migrate_primary(PrimaryStore(primary), known_migrations())
        (directory / "data").mkdir()
        with Wire(sqld.port, delay_s=EACH_WAY_S) as wire:
            zone = Zone("global", directory / "data", wire.url, token)
            ledger = await TursoLedger.open(zone, machine="m1", region="fra")
            lines = [await _single(ledger, sqld, zone), await _steady(ledger, sqld, seconds)]
            lines.append(await _hang(ledger, wire, seconds))
            wire.become(Mode.PASS)
            await ledger.close()
            return lines


async def _single(ledger: TursoLedger, sqld: Sqld, zone: Zone) -> str:
    ledger.remember(turn(0, "CA0"))
    await ledger.drain(READY_S)
    async with asyncio.timeout(READY_S):
        while (told := await report(zone)).replica_age_s is None:
            await _pause(0.1)
    at_primary, in_replica = [], []
    for seq in range(1, 11):
        began = time.perf_counter()
        ledger.remember(turn(seq, "CA0"))
        await _until(f"SELECT count(*) FROM turns WHERE call_sid = 'CA0' AND seq = {seq}", sqld.query)
        at_primary.append(time.perf_counter() - began)
        await _until(
            f"SELECT count(*) FROM turns WHERE call_sid = 'CA0' AND seq = {seq}",
            lambda sql: _ask(zone.replica, sql),
        )
        in_replica.append(time.perf_counter() - began)
    return (
        f"one turn: on the primary after {_span(at_primary)}, in the replica after {_span(in_replica)}"
        f" (round trip {told.round_trip_ms:.0f} ms)"
    )


async def _steady(ledger: TursoLedger, sqld: Sqld, seconds: float, per_s: int = 200) -> str:
    depths, gap = [], list[str]()
    async with watched(gap):
        began = time.perf_counter()
        for seq in range(int(seconds * per_s)):
            await _at(began + seq / per_s)
            ledger.remember(turn(seq, "CA1"))
            depths.append(ledger.depth)
        await ledger.drain(READY_S)
        took = time.perf_counter() - began
    [(stored,)] = sqld.query("SELECT count(*) FROM turns WHERE call_sid = 'CA1'")
    return (
        f"{per_s} turns a second for {seconds:g} s: {stored} stored {took - seconds:.2f} s after the last,"
        f" at most {max(depths)} waiting, {gap[0]}"
    )


async def _hang(ledger: TursoLedger, wire: Wire, seconds: float, per_s: int = 200) -> str:
    wire.become(Mode.HANG)
    gap = list[str]()
    async with watched(gap):
        began = time.perf_counter()
        for seq in range(int(seconds * per_s)):
            await _at(began + seq / per_s)
            ledger.remember(turn(seq, "CA2"))
    waiting = ledger.depth
    back = time.perf_counter()
    wire.become(Mode.PASS)
    await ledger.drain(READY_S)
    return (
        f"primary hangs for {seconds:g} s under the same load: {gap[0]},"
        f" {waiting} waiting, delivered {time.perf_counter() - back:.2f} s after it came back, {ledger.lost} lost"
    )


async def _at(instant: float) -> None:
    if (pause := instant - time.perf_counter()) > 0:
        await _pause(pause)


async def _pause(seconds: float) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


async def _until(sql: str, ask: Callable[[str], Sequence[Sequence[object]]]) -> None:
    async with asyncio.timeout(READY_S):
        while not (await asyncio.to_thread(ask, sql))[0][0]:
            await _pause(0.005)


def _ask(path: Path, sql: str) -> list[Row]:
    with closing(open_for_reading(path)) as database:
        return database.query(sql)


def _span(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s (worst {max(seconds):.2f} s of {len(seconds)})"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench-ledger", description=__doc__)
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="duration of the load, and of the time in which the primary hangs (default: 60)",
    )
    parser.add_argument("--idle", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.idle:
        asyncio.run(idle())
        return 0
    with tempfile.TemporaryDirectory() as directory:
        lines = asyncio.run(measure(Path(directory), options.seconds))
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
