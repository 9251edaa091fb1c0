"""A process with one ledger and nothing else, for tests that take its disk away.

Run `python -m tests.ledger.recorder DATA_DIR [URL of a primary]`. Each line of its input is a number of turns to
remember; the end of its input has it close. On its output is a JSON object whenever its state has changed, and a
last one when it has closed. Logs go to stderr.
"""

import asyncio
import json
import logging
import sys
import time
from pathlib import Path

from app.ledger.ledger import Ledger
from app.ledger.local import LocalLedger
from app.ledger.turso import TursoLedger
from app.ledger.zones import Zone
from tests.ledger.samples import turn
from tests.ledger.sqld import token

TICK_S = 0.01


class Recorder:
    """Remembers what it is told to, and says how the ledger is."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._put = 0
        self._told: dict[str, object] = {}
        self._ticked_at = time.monotonic()
        self.longest_gap_s = 0.0

    def tick(self) -> None:
        now = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now - self._ticked_at - TICK_S)
        self._ticked_at = now
        self.tell()
        asyncio.get_running_loop().call_later(TICK_S, self.tick)

    def tell(self, **more: object) -> None:
        ledger = self._ledger
        state: dict[str, object] = {"put": self._put, "depth": ledger.depth, "lost": ledger.lost}
        state |= {"error": ledger.last_error, **more}
        if state != self._told:
            self._told = state
            sys.stdout.write(json.dumps(state) + "\n")
            sys.stdout.flush()

    def put(self, count: int) -> None:
        for seq in range(self._put, self._put + count):
            self._ledger.remember(turn(seq, said="x" * 400))
        self._put += count


async def run(data_dir: Path, url: str | None) -> None:
    zone = Zone("global", data_dir, url, token)
    ledger: Ledger
    if url is None:
        ledger = await LocalLedger.open(zone.local, spool=zone.spool)
    else:
        ledger = await TursoLedger.open(zone, machine="m1", region="fra")
    recorder = Recorder(ledger)
    recorder.tick()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async for line in lines:
        recorder.put(int(line))
    began = time.monotonic()
    await ledger.close()
    recorder.tell(closed_s=time.monotonic() - began, longest_gap_s=recorder.longest_gap_s)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
