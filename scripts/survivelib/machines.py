"""Runs in the world: deploys, and machines that are killed, among calls that go on."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app.sim.phone.options import PhoneOptions
from app.sim.realtime.faults import Timing
from app.world.world import ACCOUNT_SID, AUTH_TOKEN, World, world
from scripts.survivelib.agent import Agent
from scripts.survivelib.caller import region_of
from scripts.survivelib.records import turns_on
from scripts.survivelib.report import Report
from scripts.survivelib.stamps import words_of
from scripts.survivelib.story import Story
from scripts.survivelib.traffic import Traffic, tenants
from scripts.survivelib.verdict import Promises, judge

CITIES = {"nrt": "osaka", "fra": "berlin", "gru": "rio", "syd": "sydney", "iad": "ashburn", "lax": "san-diego"}
"""For each region a city whose calls it gets."""

DRAIN_S = 8.0
"""Four of them are for the move itself. Calls last two or three times as long."""
FIRST_DELTA_MS = 100.0
TIMING = Timing(first_delta_ms=FIRST_DELTA_MS, speed=5, transcription_ms=100)
SETTLE_LIMIT_S = 15.0
"""For the records of the last calls to reach the primary."""
CALLS_LIMIT_S = 90.0
"""For the calls under way to end by themselves, when the run has enough."""

DEPLOYS = Promises(answer_s=0.9, pause_s=0.3, pauses_max=1)
"""0.3 s until the voice detection takes a sentence for over, 0.1 s for the model, the rest for distances."""
KILLS = Promises(answer_s=0.9, pause_s=0.3, after_request_s=1.5, durable_s=1.0, faults_max=3)

HITS_MAX = 3
"""A call is resumed so often within a minute: a further kill would prove nothing."""
TROUBLED_MAX = 2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is."""

    regions: Sequence[str]
    slots: int
    """Calls at once."""
    sqld: Path
    directory: Path
    seed: int


@asynccontextmanager
async def _scene(
    size: Size, sentences: tuple[int, int], patience_s: float, say: Say
) -> AsyncIterator[tuple[World, Traffic]]:
    """A world with calls in it. At the end of the block calls end by themselves."""
    chance = random.Random(size.seed)
    async with AsyncExitStack() as stack:
        cities = [CITIES[region] for region in size.regions]
        running = await stack.enter_async_context(
            world(
                size.directory / "world",
                size.regions,
                cities,
                sqld_program=size.sqld,
                timing=TIMING,
                say=say,
                tenants=tenants(size.slots),
                settings={"NEARCALL_DRAIN_S": f"{DRAIN_S:g}"},
                backend_rtt_ms=lambda _region, _backend: 2.0,
            )
        )
        agent = Agent()
        for backend in running.backends.values():
            backend.script, backend.hears = agent.script(backend), words_of

        def options(slot: int) -> PhoneOptions:
            return PhoneOptions(
                f"{running.bases[cities[slot % len(cities)]]}/twiml/voice#rc=2&rp=ct,rt,5xx",
                AUTH_TOKEN,
                account_sid=ACCOUNT_SID,
                connected_after_ms=(0, 0),
                document_pace=0.0,
                keep_audio=False,
            )

        labels = [f"from {cities[slot % len(cities)]}" for slot in range(size.slots)]
        traffic = Traffic(agent, running.rest, chance, options, sentences, patience_s, labels)
        calls = asyncio.create_task(traffic.run(size.slots))
        try:
            yield running, traffic
            traffic.stop()
            say("waiting for the last calls to end")
            async with asyncio.timeout(CALLS_LIMIT_S):
                await asyncio.shield(calls)
            await _read_ledger(running, traffic.finished)
        finally:
            calls.cancel()
            await asyncio.wait({calls})


async def deploys(size: Size, rounds: int, say: Say) -> Report:
    """Stops and starts every region in turn, as a deploy does, while calls go on."""
    faults: Counter[str] = Counter()
    problems: list[str] = []
    hits = 0
    async with _scene(size, (5, 8), 6.0, say) as (running, traffic):
        for number in range(1, rounds + 1):
            for region in size.regions:
                await _until(lambda region=region: bool(traffic.callers_in(region)), 6.0)  # type: ignore[misc]
                hits += len(traffic.hurt(region, f"SIGTERM to {region}", unplaced=False))
                faults["SIGTERM"] += 1
                status = await running.drain(region)
                if status != 0:
                    problems.append(f"the server of {region} ended with status {status} in round {number}")
                await running.start(region)
                await running.well(region)
            say(f"{number} of {rounds} deploys, {len(traffic.finished)} calls over, {hits} were moved")
    return Report("deploys", size.seed, DEPLOYS, traffic.finished, faults, problems, needed=rounds)


async def kills(size: Size, count: int, say: Say) -> Report:
    """Kills machines at random instants of calls."""
    faults: Counter[str] = Counter()
    hits = 0
    chance = random.Random(size.seed + 1)
    async with _scene(size, (4, 7), 5.0, say) as (running, traffic):
        down: dict[str, asyncio.Task[None]] = {}
        try:
            while hits < count:
                await asyncio.sleep(chance.uniform(0, 1.5))
                for region in [region for region, task in down.items() if task.done()]:
                    down.pop(region).result()
                victim = _victim(traffic, chance, set(down))
                if victim is None or len(down) >= TROUBLED_MAX:
                    continue
                there = traffic.hurt(victim, f"SIGKILL to {victim}", unplaced=True)
                faults["SIGKILL"] += 1
                down[victim] = asyncio.create_task(_kill(running, victim), name=f"kill {victim}")
                if (hits + len(there)) // 10 > hits // 10:
                    say(f"{hits + len(there)} of {count} calls were hit, {len(traffic.finished)} are over")
                hits += len(there)
        finally:
            await asyncio.gather(*down.values())
    return Report("kills", size.seed, KILLS, traffic.finished, faults, needed=count)


def _victim(traffic: Traffic, chance: random.Random, down: set[str]) -> str | None:
    """Returns the region of a random call, unless one of the calls there was hit too often."""
    regions = sorted({region for each in traffic.live.values() if (region := region_of(each.phone))})
    left = [
        region
        for region in regions
        if region not in down and all(len(each.story.faults) < HITS_MAX for each in traffic.callers_in(region))
    ]
    return chance.choice(left) if left else None


async def _kill(running: World, region: str) -> None:
    await running.kill(region)
    await running.start(region)
    await running.well(region)


async def _until(condition: Callable[[], bool], limit_s: float) -> None:
    """Waits for a condition for a while."""
    for _ in range(round(limit_s / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)


async def _read_ledger(running: World, stories: Sequence[Story]) -> None:
    """Reads the turns of every call, as soon as all are there or cannot come any more."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLE_LIMIT_S
    waiting = list(stories)
    while waiting:
        turns = await turns_on(running.databases["global"], [story.call_sid for story in waiting])
        for story in waiting:
            story.turns = turns[story.call_sid]
        waiting = [story for story in waiting if any(each.promise == "ledger" for each in judge(story, DEPLOYS))]
        if loop.time() >= until:
            return
        await asyncio.sleep(0.5)
