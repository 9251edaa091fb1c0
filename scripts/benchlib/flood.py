"""Attacks a server on this machine as a stranger could, and measures what its calls notice.

The server runs as `nearcall serve`, on one core, with its ledger on. A few calls are active the whole time.
After a quiet phase each attack runs for some seconds in a process of its own: endless headers, pipelined
requests, half-open connections, unsigned webhooks, slow bodies, and, on streams with a valid ticket, 64 kB
messages and tiny fragments. Meanwhile `/livez` is requested fifty times a second, and each frame of the calls is
timed from phone to backend. Everything stays on 127.0.0.1.
"""

import argparse
import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson
import uvloop

from scripts.benchlib import targets
from scripts.benchlib.attacks import ATTACKS
from scripts.benchlib.backend import LoadBackend
from scripts.benchlib.figures import percentile
from scripts.benchlib.meter import Meter
from scripts.benchlib.phone import CallRefusedError, Exchange
from scripts.benchlib.process import ROOT, ChildError, cores, rss_kb
from scripts.benchlib.targets import Target

QUIET = "quiet"
LIVEZ_P99_MS = 20.0
MEDIA_GAP_MS = 100.0
GROWTH_MB = 64.0
"""Of the server over its quiet phase: 512 connections with full buffers have 30."""

LIVEZ_EVERY_S = 0.02
LIVEZ_LIMIT_S = 5.0
SETTLE_S = 1.0
FRAME_MS = 20


@dataclass(slots=True)
class Phase:
    """What one phase showed."""

    name: str
    livez_ns: list[int] = field(default_factory=list)
    livez_failed: int = 0
    meter: Meter = field(default_factory=Meter)
    rss_mb: float = 0.0
    closed: Mapping[str, int] = field(default_factory=dict)
    """Connections that the server closed, by its reasons."""
    attacker: Mapping[str, int] = field(default_factory=dict)
    """What the attacker saw."""

    @property
    def livez_p50_ms(self) -> float:
        return percentile(self.livez_ns, 0.5) / 1e6

    @property
    def livez_p99_ms(self) -> float:
        return percentile(self.livez_ns, 0.99) / 1e6

    @property
    def gap_ms(self) -> float:
        """The longest time between two frames of one call at the backend, at most."""
        return FRAME_MS + max(self.meter.caller_ns, default=0) / 1e6

    @property
    def lost(self) -> int:
        """Frames of the calls that never came."""
        return self.meter.frames_sent - len(self.meter.caller_ns)

    def missed(self, quiet: "Phase") -> list[str]:
        """The targets that were missed."""
        found = []
        if self.livez_p99_ms > LIVEZ_P99_MS or self.livez_failed:
            found.append("/livez")
        if self.gap_ms > MEDIA_GAP_MS or self.lost:
            found.append("media")
        if self.rss_mb - quiet.rss_mb > GROWTH_MB:
            found.append("memory")
        return found


async def flood(kinds: Sequence[str], seconds: float, calls: int) -> list[Phase]:
    """A quiet phase and one of each kind. Raises ChildError, CallRefusedError, OSError."""
    server_core, load_core = cores()
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nearcall-flood-")))
        load_backend = LoadBackend()
        backend = await stack.enter_async_context(load_backend.serve())
        target = await stack.enter_async_context(targets.nearcall(directory, backend, core=server_core))
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=target.endpoint.base, trust_env=False, timeout=LIVEZ_LIMIT_S)
        )
        exchange = Exchange(load_backend, target.endpoint)
        stack.callback(exchange.drop)
        for _ in range(calls):
            await exchange.call()
        await asyncio.sleep(SETTLE_S)
        phases = [await _phase(name, seconds, target, load_backend, client, load_core) for name in (QUIET, *kinds)]
        await exchange.close()
        target.child.check()
        return phases


async def _phase(
    name: str, seconds: float, target: Target, load_backend: LoadBackend, client: httpx.AsyncClient, load_core: int
) -> Phase:
    phase = Phase(name)
    before = await _closed(client)
    load_backend.meter = phase.meter
    phase.meter.open()
    attacking = None if name == QUIET else asyncio.create_task(_attack(name, target, seconds, load_core))
    ends_at = time.monotonic() + seconds
    try:
        while time.monotonic() < ends_at:
            asked_at = time.monotonic_ns()
            try:
                (await client.get("/livez", headers={"Connection": "close"})).raise_for_status()
                phase.livez_ns.append(time.monotonic_ns() - asked_at)
            except httpx.HTTPError:
                phase.livez_failed += 1
            phase.rss_mb = max(phase.rss_mb, rss_kb(target.child.pid) / 1024)
            await asyncio.sleep(LIVEZ_EVERY_S)
        phase.meter.close()
        phase.attacker = {} if attacking is None else await attacking
    finally:
        if attacking is not None:
            attacking.cancel()
            await asyncio.wait({attacking})
    await asyncio.sleep(SETTLE_S)  # what is on its way arrives, and what the attacker left is closed
    load_backend.meter = Meter()
    after = await _closed(client)
    phase.closed = {why: count - before.get(why, 0) for why, count in after.items() if count > before.get(why, 0)}
    target.child.check()
    return phase


async def _closed(client: httpx.AsyncClient) -> dict[str, int]:
    answer = orjson.loads((await client.get("/healthz", headers=targets.OPERATOR)).content)
    return dict(answer["connections"]["closed"])


async def _attack(kind: str, target: Target, seconds: float, core: int) -> dict[str, int]:
    """The attacker's process; it is gone when this returns."""
    port = target.endpoint.base.rpartition(":")[2]
    command = (sys.executable, "-m", "scripts.benchlib.attacks", kind, port, str(seconds))
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        async with asyncio.timeout(seconds + 10):
            answer, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ChildError(f"the attacker ({kind}) ended with {process.returncode}")
    return dict(orjson.loads(answer))


# --- The command -----------------------------------------------------------------------------------


def main() -> int:
    """0: every target is met; 1: not every one; 2: it could not be measured."""
    options = _parser().parse_args()
    gc.disable()  # a pause of ours would count as the server's
    try:
        phases = uvloop.run(flood(options.attack or tuple(ATTACKS), options.seconds, options.calls))
    except KeyboardInterrupt:
        return 130
    except (ChildError, CallRefusedError, OSError, TimeoutError) as error:
        print(f"Could not measure: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    quiet = phases[0]
    if options.json:
        answer = {"load_average": os.getloadavg(), "phases": [_as_json(each, quiet) for each in phases]}
        print(json.dumps(answer, indent=2))
    else:
        print(_table(phases))
    missed = sum(bool(phase.missed(quiet)) for phase in phases)
    print(f"{missed} of {len(phases)} phases missed a target." if missed else "All targets met.", file=sys.stderr)
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/flood", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.epilog = (
        f"Targets: /livez answers within {LIVEZ_P99_MS:g} ms (p99) and never fails, no audio gap exceeds "
        f"{MEDIA_GAP_MS:g} ms and no frame is lost, and memory grows by at most {GROWTH_MB:g} MB. If the quiet "
        "phase misses a target, the machine is too busy to measure. Exit status: 0 if all targets are met, 1 if "
        "one is missed, 2 if they could not be measured."
    )
    parser.add_argument(
        "--attack", action="append", choices=tuple(ATTACKS), help="run only this attack; repeatable"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each phase (default: 5)")
    parser.add_argument("--calls", type=int, default=5, help="number of active calls (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _as_json(phase: Phase, quiet: Phase) -> dict[str, object]:
    return {
        "phase": phase.name,
        "livez_p50_ms": round(phase.livez_p50_ms, 2),
        "livez_p99_ms": round(phase.livez_p99_ms, 2),
        "livez_failed": phase.livez_failed,
        "media_gap_ms": round(phase.gap_ms, 1),
        "frames_lost": phase.lost,
        "rss_mb": round(phase.rss_mb, 1),
        "closed": phase.closed,
        "attacker": phase.attacker,
        "missed": phase.missed(quiet),
    }


def _table(phases: Sequence[Phase]) -> str:
    lines = [f"{'':18}  /livez p50       p99  failed   media gap  lost    memory  closed for"]
    for phase in phases:
        closed = ", ".join(f"{why} {count}" for why, count in sorted(phase.closed.items())) or "-"
        missed = "".join(f"  MISSED: {what}" for what in phase.missed(phases[0]))
        lines.append(
            f"{phase.name:18}{phase.livez_p50_ms:9.1f} ms{phase.livez_p99_ms:7.1f} ms{phase.livez_failed:8}"
            f"{phase.gap_ms:9.0f} ms{phase.lost:6}{phase.rss_mb:7.0f} MB  {closed}{missed}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
