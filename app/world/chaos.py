"""Makes many calls while machines are killed, drained and cut off at random, and checks that none left its zone.

Now and then all machines lose all backends at once. No region is better off then, so every caller has to hear the
sentence; and once the backends are back, the machines have to find that out by themselves.

The servers' own records are checked against the zones' rules. In addition, every file of a machine outside the EU,
its log included, is searched for the ids of calls that should never have been there.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.ledger.queries import BEFORE_ALL_LEGS, Queries
from app.ledger.residency import judge
from app.regions.zones import shipped_zones
from app.storage.errors import StorageError
from app.world.calls import Outcome, place
from app.world.world import World

AT_ONCE = 6
FAULT_EVERY_S = (0.5, 2.0)
DOWN_S = (0.5, 4.0)
TROUBLED_MAX = 2
BLACKOUT_S = 3.0
"""How much longer than another fault a blackout lasts: a machine gives a backend up after three calls."""
SERVED_LIMIT_S = 30.0
"""From the end of the last fault until an agent answers again: two good probes of a backend, and Fly's checks."""
BLACKOUT = "blackout"
EVERYWHERE = "everywhere"
"""Where a blackout is."""
FAULTS = ("kill", "drain", "sick") * 6 + (BLACKOUT,)
"""Each as likely as it is often in here."""


@dataclass
class ChaosReport:
    """The calls, the faults and the breaches of a chaos run."""

    outcomes: list[Outcome] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)
    """A sentence for each part of a call that was outside its zone."""
    judged: int = 0
    """How many recorded calls were checked against their zone's rule."""
    forsaken: list[str] = field(default_factory=list)
    """Zones whose calls no agent answered any more although every fault was over."""

    @property
    def unserved(self) -> list[Outcome]:
        """Calls whose callers heard neither the agent nor an announcement."""
        return [each for each in self.outcomes if not each.good]

    @property
    def good(self) -> bool:
        """True when there were calls, and no breach, no caller who heard nothing and no forsaken zone."""
        complaints = (self.breaches, self.unserved, self.forsaken)
        return not any(complaints) and bool(self.judged and self.outcomes)


async def chaos(
    world: World,
    calls: int,
    chance: random.Random,
    over: Callable[[Outcome], None] = lambda _outcome: None,
    *,
    kinds: Sequence[str] = FAULTS,
) -> ChaosReport:
    """Makes the calls among faults of these kinds. `over` is called with each result. Raises MachineError."""
    report = ChaosReport()
    cities = sorted(world.bases)
    plan = [(chance.choice(cities), chance.choice(("global", "eu"))) for _ in range(calls)]
    places = asyncio.Semaphore(AT_ONCE)

    async def one(city: str, zone: str) -> None:
        async with places:
            outcome = await place(world, city, zone, None)
            report.outcomes.append(outcome)
            over(outcome)

    faults = asyncio.create_task(_trouble(world, chance, kinds, report.faults))
    try:
        async with asyncio.TaskGroup() as tasks:
            for city, zone in plan:
                tasks.create_task(one(city, zone))
    finally:
        faults.cancel()
        await asyncio.wait({faults})
    if not faults.cancelled():
        faults.result()  # raises, since the task never returns by itself
    later = await _call_until_served(world, report)
    eu_calls = [each.call_sid for each in [*report.outcomes, *later] if each.zone == "eu" and each.call_sid]
    report.breaches += await asyncio.to_thread(strays, world.directory, tuple(world.machines), eu_calls)
    await _judge(world, report)
    return report


async def _call_until_served(world: World, report: ChaosReport) -> list[Outcome]:
    """Calls each zone that was served during the run until an agent answers. Returns these calls."""
    made: list[Outcome] = []
    city = min(world.bases)
    for zone in sorted({each.zone for each in report.outcomes if each.served}):
        try:
            async with asyncio.timeout(SERVED_LIMIT_S):
                while not made or made[-1].zone != zone or not made[-1].served:
                    made.append(await place(world, city, zone, None))
        except TimeoutError:
            report.forsaken.append(zone)
    return made


async def _trouble(world: World, chance: random.Random, kinds: Sequence[str], faults: Counter[str]) -> None:
    """Injects faults into at most TROUBLED_MAX machines at a time, so that calls have somewhere to go.

    A blackout is for all machines, whatever else they suffer from.
    """
    troubled: dict[str, asyncio.Task[None]] = {}
    try:
        while True:
            await asyncio.sleep(chance.uniform(*FAULT_EVERY_S))
            for where in [each for each, task in troubled.items() if task.done()]:
                troubled.pop(where).result()  # raises when it could not be started again
            fault = chance.choice(kinds)
            well = [EVERYWHERE] if fault == BLACKOUT else sorted(world.machines)
            well = [each for each in well if each not in troubled]
            if not well or (fault != BLACKOUT and len(troubled.keys() - {EVERYWHERE}) >= TROUBLED_MAX):
                continue
            region = chance.choice(well)
            faults[fault] += 1
            suffering = _suffer(world, region, fault, chance.uniform(*DOWN_S))
            troubled[region] = asyncio.create_task(suffering, name=f"{fault} {region}")
    finally:
        # Awaited to their end, so that each stopped machine starts again and delivers its spool.
        await asyncio.gather(*troubled.values())


async def _suffer(world: World, region: str, fault: str, down_s: float) -> None:
    match fault:
        case "blackout":
            await asyncio.gather(*(world.sicken(each) for each in world.machines))
            await asyncio.sleep(BLACKOUT_S + down_s)
            await asyncio.gather(*(world.heal(each) for each in world.machines))
            return
        case "kill":
            await world.kill(region)
            await asyncio.sleep(down_s)
            await world.start(region)
        case "drain":
            await world.drain(region)
            await asyncio.sleep(down_s)
            await world.start(region)
        case _:
            await world.sicken(region)
            await asyncio.sleep(down_s)
            await world.heal(region)
    await world.well(region)


def strays(directory: Path, regions: Sequence[str], call_sids: Sequence[str]) -> list[str]:
    """Returns a sentence for each file outside the EU that mentions one of these calls."""
    found: list[str] = []
    eu = shipped_zones()["eu"]
    roots = [directory / region for region in regions if not eu.allows(region)] + [directory / "sqld-global"]
    for file in (file for root in roots for file in root.rglob("*") if file.is_file()):
        content = file.read_bytes()
        found += [
            f"{sid} is mentioned in {file.relative_to(directory)}" for sid in call_sids if sid.encode() in content
        ]
    return found


async def _judge(world: World, report: ChaosReport) -> None:
    """Checks every leg in every zone's records, on every machine."""
    zones = shipped_zones()
    for region, machine in world.machines.items():
        for zone in ("global", "eu"):
            for path in _files(machine.data_dir, zone):
                queries = Queries(path)
                after = BEFORE_ALL_LEGS
                try:
                    while page := await queries.legs_between(0, 1_000, after):
                        report.judged += len(page)
                        for leg in page:
                            found = judge(leg.began, leg.events, zone, zones)
                            report.breaches += [f"{found.call_sid}: {each} ({region})" for each in found.breaches]
                        after = page[-1].key
                except StorageError:
                    # The machine was killed while it made this copy. Other machines have the records.
                    continue
                finally:
                    await queries.close()


def _files(data_dir: Path, zone: str) -> list[Path]:
    local = data_dir / "ledger.db" if zone == "global" else data_dir / zone / "ledger.db"
    return [path for path in (local, data_dir / zone / "replica.db") if path.is_file()]
