"""Measures the server against its budgets, on this machine.

The server runs as `nearcall serve`, alone on one core, with its ledger on. Phones and backend run in this
process, on another core. The same load runs in turn through a minimal relay, the least program that could carry
the calls. Its column shows the machine's own noise and cost, and throughput is judged as a ratio of the two. TLS
is used only in the suite "tls", which shows how many calls a machine can take.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from app.variables import CALLS_MAX
from app.wire.formats import AudioFormat
from scripts.benchlib import targets
from scripts.benchlib.audio import DELTA_MS, FRAME_MS, Spoken, measure_audio
from scripts.benchlib.backend import LoadBackend
from scripts.benchlib.certificate import make_certificate
from scripts.benchlib.figures import Row, percentile, table
from scripts.benchlib.leg import Leg, run_leg
from scripts.benchlib.phone import CallRefusedError, Exchange
from scripts.benchlib.process import ChildError, cores, rss_kb
from scripts.benchlib.routing import Routing, measure_routing
from scripts.benchlib.targets import Target

SUITES = ("capacity", "tls", "latency", "memory", "start", "opening", "outage", "routing", "audio")

CAPACITY_CALLS = 200
LATENCY_CALLS = 100
CHURN_PER_S = 20
OUTAGE = "hung primary"
TLS = "with TLS"
CALLS_SHARE_MAX = 2 / 3
"""Of the calls that a core carries, a machine takes no more unless it is told to (NEARCALL_CALLS_MAX)."""
DECISION_MS = 0.2
REPLAY_MS = 10.0
"""A decision of ours and two requests of the edge's stand-in: no round trip may be waited for twice."""
RATIO_MIN = 0.6
LATENCY_MS = ((0.5, "p50", 0.3), (0.99, "p99", 2.0), (0.999, "p99.9", 10.0))
CLEAR_MS = 2.0
MEMORY_MB, MEMORY_CALL_MB = 75.0, 0.1
START_S = 1.5
HANDSHAKE_S, WEBHOOK_TO_START_S = 0.29, 0.3
GREETING_LIMIT_S = 5.0
FRAME_US, LATE_MS, STATE_KB = 15.0, 3.0, 4.0
"""Of converted audio: CPU of a frame, delay of each direction, memory of a call."""

LOAD_SHARE_MAX = 0.7
"""Above this share of its core the load measures itself."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look."""

    rounds: int
    window_s: float
    starts: int
    openings: int
    outage_s: float


FULL = Effort(rounds=3, window_s=8.0, starts=5, openings=20, outage_s=60.0)
QUICK = Effort(rounds=1, window_s=2.5, starts=3, openings=10, outage_s=10.0)


@dataclass(slots=True)
class Findings:
    """Everything that was measured, before it is judged."""

    legs: list[Leg] = field(default_factory=list)
    idle_kb: int = 0
    idle_after_kb: int = 0
    ready_s: list[float] = field(default_factory=list)
    ready_before_start_ms: list[float] = field(default_factory=list)
    """How long the backend had been ready when `start` was sent, for each call; negative: it was not."""
    greeting_ms: list[float] = field(default_factory=list)
    """From `start` to the greeting's first audio."""
    routing: Routing | None = None
    audio: Mapping[AudioFormat, Spoken] = field(default_factory=dict)

    def of(self, target: str, calls: int, churn_per_s: int = 0) -> list[Leg]:
        """The legs of one kind."""
        return [
            leg for leg in self.legs if (leg.target, leg.calls, leg.churn_per_s) == (target, calls, churn_per_s)
        ]


Say = Callable[[str], None]


# --- Measuring -------------------------------------------------------------------------------


async def measure(suites: Sequence[str], effort: Effort, say: Say) -> Findings:
    """Run everything the suites need. Raises ChildError, CallRefusedError, OSError."""
    findings = Findings()
    server_core, load_core = cores()
    os.sched_setaffinity(0, {load_core})
    with tempfile.TemporaryDirectory(prefix="nearcall-bench-") as name:
        directory = Path(name)
        if "start" in suites:
            await _measure_start(findings, directory, server_core, effort.starts, say)
        if {"capacity", "latency", "memory"} & set(suites):
            await _measure_legs(findings, directory, server_core, suites, effort, say)
        if "tls" in suites:
            await _measure_tls(findings, directory, server_core, effort, say)
        if "opening" in suites:
            await _measure_opening(findings, directory, server_core, effort.openings, say)
        if "routing" in suites:
            say("routing: handshakes, and streams that are sent on")
            findings.routing = await measure_routing()
        if "audio" in suites:
            say("audio: what backends that take no G.711 cost")
            findings.audio = measure_audio()
        if "outage" in suites:
            await _measure_outage(findings, directory, server_core, effort.outage_s, say)
    return findings


async def _measure_start(findings: Findings, directory: Path, core: int, starts: int, say: Say) -> None:
    say(f"start: {starts} times, and once before to warm up")
    for _ in range(starts + 1):
        async with targets.nearcall(directory, "http://127.0.0.1:9/v1", core=core) as server:
            findings.ready_s.append(server.ready_s)
    del findings.ready_s[0]


async def _measure_legs(
    findings: Findings, directory: Path, core: int, suites: Sequence[str], effort: Effort, say: Say
) -> None:
    load_backend = LoadBackend()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(load_backend.serve())
        relay = await stack.enter_async_context(targets.relay(directory, url, core=core))
        server = await stack.enter_async_context(targets.nearcall(directory, url, core=core))
        await asyncio.sleep(1)
        findings.idle_kb = rss_kb(server.child.pid)
        for target, calls, churn_per_s in _legs(suites, effort, relay, server):
            leg = await run_leg(load_backend, target, calls, effort.window_s, churn_per_s=churn_per_s)
            findings.legs.append(leg)
            say(_told(leg))
        findings.idle_after_kb = rss_kb(server.child.pid)


async def _measure_tls(findings: Findings, directory: Path, core: int, effort: Effort, say: Say) -> None:
    """As backends are spoken to in production. The phones' side has none there: Fly's edge ends TLS."""
    load_backend = LoadBackend()
    trusted, tls = make_certificate(directory)
    async with (
        load_backend.serve(tls) as url,
        targets.nearcall(directory, url, core=core, name=TLS, trusted=trusted) as server,
    ):
        for _ in range(effort.rounds):
            findings.legs.append(leg := await run_leg(load_backend, server, CAPACITY_CALLS, effort.window_s))
            say(_told(leg))


def _legs(
    suites: Sequence[str], effort: Effort, relay: Target, server: Target
) -> Iterator[tuple[Target, int, int]]:
    """Target, calls, churn.

    Small before large, because memory that was used once is kept; in turns, because a machine has better and worse
    minutes.
    """
    for number in range(effort.rounds):
        if "latency" in suites:
            for churn_per_s in (0, CHURN_PER_S):
                yield relay, LATENCY_CALLS, churn_per_s
                yield server, LATENCY_CALLS, churn_per_s
        elif "memory" in suites and number == 0:
            yield server, LATENCY_CALLS, 0
        if "capacity" in suites:
            yield relay, CAPACITY_CALLS, 0
            yield server, CAPACITY_CALLS, 0
        elif "memory" in suites and number == 0:
            yield server, CAPACITY_CALLS, 0


async def _measure_opening(findings: Findings, directory: Path, core: int, openings: int, say: Say) -> None:
    say(f"opening: {openings} calls, a backend whose handshake takes {HANDSHAKE_S * 1000:.0f} ms")
    load_backend = LoadBackend(HANDSHAKE_S)
    async with load_backend.serve() as url, targets.nearcall(directory, url, core=core) as server:
        exchange = Exchange(load_backend, server.endpoint)
        try:
            for number in range(openings + 1):
                phone = await exchange.call(webhook_to_start_s=WEBHOOK_TO_START_S)
                async with asyncio.timeout(GREETING_LIMIT_S):
                    await phone.spoken_to.wait()
                    updated_ns = (await load_backend.opening(phone.number)).updated_ns
                if number > 0:  # the first one warms up
                    findings.ready_before_start_ms.append((phone.started_ns - updated_ns) / 1e6)
                    findings.greeting_ms.append((phone.first_audio_ns - phone.started_ns) / 1e6)
            await exchange.close()
        finally:
            exchange.drop()


async def _measure_outage(findings: Findings, directory: Path, core: int, outage_s: float, say: Say) -> None:
    """The server and its replica's process share the core, and neither gets an answer from the primary."""
    load_backend = LoadBackend()
    with targets.hung_primary() as primary_url:
        async with (
            load_backend.serve() as url,
            targets.nearcall(directory, url, core=core, name=OUTAGE, primary_url=primary_url) as server,
        ):
            findings.legs.append(leg := await run_leg(load_backend, server, LATENCY_CALLS, outage_s))
            say(_told(leg))


def _told(leg: Leg) -> str:
    churn = f" and {leg.churn_per_s} short ones a second" if leg.churn_per_s else ""
    late_ms = percentile(leg.meter.late_ns, 0.99) / 1e6
    busy = leg.load_cpu_s / leg.window_s
    warning = "  LOAD TOO BUSY: its figures are not the server's" if busy > LOAD_SHARE_MAX else ""
    return (
        f"{leg.target:11}  {leg.calls} calls{churn}: {leg.cpu_ms_per_call_s:.2f} ms a call-second,"
        f" load busy {busy:.0%}, late {late_ms:.1f} ms (p99){warning}"
    )


# --- Judging ---------------------------------------------------------------------------------


def judge(findings: Findings, suites: Sequence[str]) -> list[Row]:
    """The rows of the chosen suites."""
    judges: dict[str, Callable[[Findings], list[Row]]] = {
        "capacity": _judge_capacity,
        "tls": _judge_tls,
        "latency": _judge_latency,
        "memory": _judge_memory,
        "start": _judge_start,
        "opening": _judge_opening,
        "outage": _judge_outage,
        "routing": _judge_routing,
        "audio": _judge_audio,
    }
    return [row for suite in SUITES if suite in suites for row in judges[suite](findings)]


def _judge_capacity(findings: Findings) -> list[Row]:
    group = f"Capacity: one core, {CAPACITY_CALLS} calls, no TLS, ledger on"
    relays, servers = (findings.of(name, CAPACITY_CALLS) for name in ("least relay", "nearcall"))
    relay_ms = statistics.mean(leg.cpu_ms_per_call_s for leg in relays)
    server_ms = statistics.mean(leg.cpu_ms_per_call_s for leg in servers)
    pairs = [r.cpu_ms_per_call_s / s.cpu_ms_per_call_s for r, s in zip(relays, servers, strict=True)]
    spread = f"from {min(pairs):.2f} to {max(pairs):.2f}" if len(pairs) > 1 else ""
    lost = sum(leg.lost_frames for leg in findings.legs if leg.target == "nearcall")
    lost_by_relay = sum(leg.lost_frames for leg in findings.legs if leg.target != "nearcall")
    return [
        Row(group, "CPU for a second of a call", "ms", server_ms, relay_ms),
        Row(group, "calls per core", "", 1000 / server_ms, 1000 / relay_ms),
        Row(
            group,
            "of the least relay's (stretch 0.75)",
            "",
            relay_ms / server_ms,
            1,
            RATIO_MIN,
            at_least=True,
            note=spread,
        ),
        Row(group, "caller frames lost", "", lost, lost_by_relay, 0),
    ]


def _judge_tls(findings: Findings) -> list[Row]:
    group = f"Capacity: one core, {CAPACITY_CALLS} calls, TLS to the backend, ledger on"
    legs = findings.of(TLS, CAPACITY_CALLS)
    calls = [1000 / leg.cpu_ms_per_call_s for leg in legs]
    note = f"at least {CALLS_MAX} / {CALLS_SHARE_MAX:.2f}; from {min(calls):.0f} to {max(calls):.0f}"
    least = CALLS_MAX / CALLS_SHARE_MAX
    return [
        Row(group, "calls per core", "", statistics.mean(calls), None, least, at_least=True, note=note),
        Row(group, "caller frames lost", "", sum(leg.lost_frames for leg in legs), None, 0),
    ]


def _judge_latency(findings: Findings) -> list[Row]:
    rows: list[Row] = []
    for churn_per_s in (0, CHURN_PER_S):
        while_ = f", while {churn_per_s} others start, and end, each second" if churn_per_s else ""
        group = f"Added latency: {LATENCY_CALLS} calls on one core{while_}"
        relays, servers = (findings.of(name, LATENCY_CALLS, churn_per_s) for name in ("least relay", "nearcall"))
        rows += _latencies(group, servers, relays)
    return rows


def _judge_outage(findings: Findings) -> list[Row]:
    servers = findings.of(OUTAGE, LATENCY_CALLS)
    outage = f"while the primary hangs for {servers[0].window_s:.0f} s"
    group = f"Added latency: {LATENCY_CALLS} calls on one core, {outage}"
    return _latencies(group, servers, [])


def _judge_routing(findings: Findings) -> list[Row]:
    found = findings.routing
    assert found is not None
    group = "Routing: where a call is taken"
    rows = [
        Row(group, f"handshake that is {what}, p99", "ms", percentile(ns, 0.99) / 1e6, None, DECISION_MS)
        for what, ns in (("taken", found.taken_ns), ("sent on", found.sent_on_ns))
    ]
    direct_ms, replayed_ms = (
        statistics.median(each) for each in (found.direct_beyond_ms, found.replayed_beyond_ms)
    )
    extra = "stream that is sent on, beyond the round trip more"
    note = "the edge's stand-in included"
    return [*rows, Row(group, extra, "ms", replayed_ms - direct_ms, None, REPLAY_MS, note=note)]


def _judge_audio(findings: Findings) -> list[Row]:
    group = f"Audio: a frame of {FRAME_MS} ms, base64 and JSON included; the agent's in deltas of {DELTA_MS} ms"
    passed = findings.audio[AudioFormat.G711]
    rows: list[Row] = []
    for name, found in findings.audio.items():
        converted = name is not AudioFormat.G711
        for whose, us, passed_us in (
            ("caller's", found.caller_us, passed.caller_us),
            ("agent's", found.agent_us, passed.agent_us),
        ):
            note = f"{us / passed_us:.1f} times a frame passed through" if converted else "passed through"
            rows.append(Row(group, f"{name}, {whose}", "us", us, None, FRAME_US, note=note))
    for name, found in findings.audio.items():
        if name is not AudioFormat.G711:
            late_ms = max(found.caller_late_ms, found.agent_late_ms)
            rows.append(Row(group, f"{name}, later than it was, each way", "ms", late_ms, None, LATE_MS))
            rows.append(Row(group, f"{name}, kept for a call", "kB", found.state_bytes / 1000, None, STATE_KB))
    return rows


def _latencies(group: str, servers: Sequence[Leg], relays: Sequence[Leg]) -> list[Row]:
    rows: list[Row] = []
    for what, name in (("caller to backend", "caller_ns"), ("agent to phone", "agent_ns")):
        ours, theirs = (
            [value for leg in legs for value in getattr(leg.meter, name)] for legs in (servers, relays)
        )
        for share, label, budget_ms in LATENCY_MS:
            relay_ms = percentile(theirs, share) / 1e6 if theirs else None
            rows.append(Row(group, f"{what}, {label}", "ms", percentile(ours, share) / 1e6, relay_ms, budget_ms))
    clears = [value for leg in servers for value in leg.meter.clear_ns]
    note = f"{len(clears)} samples"
    found_ms = percentile(clears, 0.99) / 1e6
    rows.append(Row(group, "speech_started to clear, p99", "ms", found_ms, None, CLEAR_MS, note=note))
    return rows


def _judge_memory(findings: Findings) -> list[Row]:
    group = f"Memory: resident, {MEMORY_MB:.0f} MB and {MEMORY_CALL_MB * 1000:.0f} kB a call"
    rows = [Row(group, "no call yet", "MB", findings.idle_kb / 1000, None, MEMORY_MB)]
    for calls in (LATENCY_CALLS, CAPACITY_CALLS):
        found_mb = findings.of("nearcall", calls)[0].rss_kb / 1000
        rows.append(Row(group, f"{calls} calls", "MB", found_mb, None, MEMORY_MB + MEMORY_CALL_MB * calls))
    grown_kb = (findings.of("nearcall", CAPACITY_CALLS)[0].rss_kb - findings.idle_kb) / CAPACITY_CALLS
    return [
        *rows,
        Row(group, f"each of {CAPACITY_CALLS} calls", "kB", grown_kb),
        Row(group, "all calls over", "MB", findings.idle_after_kb / 1000),
    ]


def _judge_start(findings: Findings) -> list[Row]:
    group = "Start: process to ready"
    return [
        Row(group, f"median of {len(findings.ready_s)}", "s", statistics.median(findings.ready_s), None, START_S),
        Row(group, "slowest", "s", max(findings.ready_s)),
    ]


def _judge_opening(findings: Findings) -> list[Row]:
    handshake_ms, start_ms = HANDSHAKE_S * 1000, WEBHOOK_TO_START_S * 1000
    group = (
        f"Opening: backend handshake {handshake_ms:.0f} ms, `start` {start_ms:.0f} ms after the webhook's answer"
    )
    early = findings.ready_before_start_ms
    late = sum(ms < 0 for ms in early)
    note = f"least margin {min(early):.1f} ms"
    return [
        Row(group, f"of {len(early)} calls, backend not ready at `start`", "", late, None, 0, note=note),
        Row(group, "`start` to the greeting's audio, median", "ms", statistics.median(findings.greeting_ms)),
        Row(group, "`start` to the greeting's audio, slowest", "ms", max(findings.greeting_ms)),
    ]


# --- The command -----------------------------------------------------------------------------


def main() -> int:
    """0: every budget is met; 1: not every one; 2: it could not be measured."""
    options = _parser().parse_args()
    suites = options.suite or SUITES
    effort = QUICK if options.quick else FULL
    if len(os.sched_getaffinity(0)) < 2:
        _say("Only one core: server and load share it, and the latencies say little.")
    gc.disable()  # a pause of ours would count as the server's
    try:
        findings = uvloop.run(measure(suites, effort, _say))
    except KeyboardInterrupt:
        _say("Interrupted.")
        return 130
    except (ChildError, CallRefusedError, OSError, TimeoutError) as error:
        _say(f"Could not measure: {str(error) or type(error).__name__}")
        return 2
    rows = judge(findings, suites)
    if options.json:
        print(json.dumps({"load_average": os.getloadavg(), "rows": [row.as_json() for row in rows]}, indent=2))
    else:
        print(f"\n{table(rows)}\n")
    missed = [row for row in rows if row.ok is False]
    _say(
        f"{len(missed)} of {sum(row.ok is not None for row in rows)} budgets missed."
        if missed
        else "All budgets met."
    )
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(SUITES)
    parser.add_argument("suite", nargs="*", type=_suite, help=f"what to measure: {known} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="take 1 minute instead of 5; high percentiles are then rough"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def _suite(name: str) -> str:
    if name not in SUITES:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SUITES)}")
    return name


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
