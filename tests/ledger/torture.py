"""Kills a server that records turns, again and again, over a link and a primary that fail as well; then counts.

A turn is *recorded* when the server has flushed it: its line on the child's output says so. Each of those must be
on the primary in the end, once. A few rounds are a test (test_torture.py); many are `scripts/torture`.
"""

import argparse
import asyncio
import itertools
import random
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from app.ledger.migrate import known_migrations
from app.ledger.migrate_primary import migrate_primary
from app.ledger.primary import Primary
from app.ledger.shelf import PrimaryShelf
from app.ledger.shipper import Pace
from app.ledger.turso import TursoLedger
from app.ledger.zones import Zone
from tests.ledger.samples import turn
from tests.ledger.sqld import Sqld, token
from tests.ledger.wire import Mode, Wire

ROOT = Path(__file__).parents[2]
LIFE_MAX_S = 0.5
"""Longest life of a server, from its first recorded turns."""
DRAIN_S = 60.0
BURST = 10
MODES = (Mode.PASS, Mode.PASS, Mode.PASS, Mode.HANG, Mode.RESET, Mode.REFUSE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the turns that were recorded."""

    recorded: int
    lost: int
    doubled: int
    stored: int
    """On the primary; more than recorded, because a kill may come before the word that a turn is recorded."""


def torture(directory: Path, rounds: int, seed: int) -> Verdict:
    """Run the rounds and count. Takes about half a second each."""
    chance = random.Random(seed)
    with ExitStack() as stack:
        sqld = stack.enter_context(Sqld(directory / "sqld"))
        asyncio.run(_migrate(sqld))
        (directory / "data").mkdir()
        wire = stack.enter_context(Wire(sqld.port))
        recorded = [_round(directory / "data", sqld, wire, number, chance) for number in range(rounds)]
        wire.become(Mode.PASS)
        subprocess.run(_child(directory / "data", wire, "drain"), check=True, cwd=ROOT)
        rows = sqld.query("SELECT call_sid, count(*), count(DISTINCT seq), max(seq) FROM turns GROUP BY call_sid")
    stored = {call_sid: (count, distinct, last) for call_sid, count, distinct, last in rows}
    return Verdict(
        recorded=sum(recorded),
        lost=sum(
            max(0, wanted - stored.get(f"CA{number}", (0, 0, 0))[1]) for number, wanted in enumerate(recorded)
        ),
        doubled=sum(count - distinct for count, distinct, _ in stored.values()),
        stored=sum(distinct for _, distinct, _ in stored.values()),
    )


def _round(data_dir: Path, sqld: Sqld, wire: Wire, number: int, chance: random.Random) -> int:
    """One server from its start to its kill -9; how many turns it recorded."""
    wire.become(chance.choice(MODES))
    with subprocess.Popen(
        _child(data_dir, wire, f"CA{number}"), stdout=subprocess.PIPE, cwd=ROOT, bufsize=0
    ) as child:
        assert child.stdout is not None
        heard = child.stdout.read(1)
        dies_at = time.monotonic() + chance.uniform(0, LIFE_MAX_S)
        match chance.randrange(6):
            case 0:
                sqld.stop()
                sqld.start()
            case 1:
                wire.drop_next_answer()
            case 2:
                wire.become(chance.choice(MODES))
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, dies_at - time.monotonic())):
                heard += child.stdout.read(4096)
        child.send_signal(signal.SIGKILL)
        heard += child.stdout.read()
    assert child.returncode == -signal.SIGKILL, f"round {number} ended by itself: {child.returncode}"
    return heard.count(b"\n") * BURST


def _child(data_dir: Path, wire: Wire, task: str) -> list[str]:
    return [sys.executable, "-m", "tests.ledger.torture", "--child", str(data_dir), wire.url, task]


async def _migrate(sqld: Sqld) -> None:
    async with Primary(sqld.url, token) as primary:
        await migrate_primary(PrimaryShelf(primary), known_migrations())


async def _serve(data_dir: Path, url: str, task: str) -> None:
    """A server's ledger. As a call: record until killed. To drain: bring all to the primary, and end."""
    zone = Zone("global", data_dir, url, token)
    ledger = await TursoLedger.open(zone, machine="m1", region="fra", pace=Pace(0.02, 0.1, 0.1))
    if task == "drain":
        drained = await ledger.drain(DRAIN_S)
        await ledger.close()
        sys.exit(0 if drained else 1)
    for first in itertools.count(step=BURST):
        for seq in range(first, first + BURST):
            ledger.remember(turn(seq, task))
        if not await ledger.flush(DRAIN_S):
            sys.exit(1)
        sys.stdout.write("\n")
        sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="for the same faults again")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        data_dir, url, task = options.child
        asyncio.run(_serve(Path(data_dir), url, task))
    with tempfile.TemporaryDirectory() as directory:
        verdict = torture(Path(directory), options.rounds, options.seed)
    sys.stdout.write(f"{options.rounds} rounds, seed {options.seed}: {verdict}\n")
    return 1 if verdict.lost or verdict.doubled or not verdict.recorded else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
