"""A world: an edge, a server process for each region, a database for each zone, backends and callers at distances.

    city -> edge -> machine -> backend          every arrow as long as it is on the map (places.py)
                       |
                    database of the zone        without distance, and without sqld a file of each machine

Two tenants: one in zone global, one in zone eu, a number each. Stand-ins are Fly's edge, Twilio and OpenAI;
servers, sockets, signatures and databases are real. Refuses to know what is tried in it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from app.cli.migrate import migrate_zone
from app.cli.tenant_store import read_tenants, rows_of, write_tenants
from app.ledger.zones import Zone
from app.regions.table import REGIONS
from app.sim.fly.edge import Machine as Seen
from app.sim.fly.fly import Fly, FlyOptions
from app.sim.phone.twilio_rest import TwilioRest
from app.sim.realtime.faults import LIKE_THE_SERVICE, Timing
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import Script, parrot
from app.tenants.document import parse_document
from app.tenants.fields import Known
from app.tenants.tenant import tenants_in
from app.world.database import sqld
from app.world.machine import Machine, MachineError
from app.world.places import BACKENDS, rtt_ms

ACCOUNT_SID = "AC" + "0" * 31 + "1"
AUTH_TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105  of nobody's account
API_KEY = "sk-of-the-world"
NUMBERS = {"global": "+12025550100", "eu": "+493055500"}
"""The number of each zone's tenant."""

READY_LIMIT_S = 30.0
BACK_LIMIT_S = 30.0
"""From when a region is well until it has its calls again."""
EDGES = tuple(sorted(REGIONS))
"""Fly takes connections in all its regions, also where we have no machine."""

TENANTS = f"""
[tenants.everywhere]
numbers = ["{NUMBERS["global"]}"]
greeting = "Hello."

[tenants.berlin]
numbers = ["{NUMBERS["eu"]}"]
zone = "eu"
greeting = "Guten Tag."
"""
"""One tenant for each zone."""


@dataclass
class World:
    """A running world: its machines, and what tests can do to them."""

    fly: Fly
    machines: Mapping[str, Machine]
    """By region."""
    bases: Mapping[str, str]
    """The URL of the service for the callers of each city."""
    directory: Path
    backends: Mapping[str, RealtimeSimulator]
    """By name."""
    databases: Mapping[str, str]
    """The URL of each zone's database; empty without sqld."""
    rest: TwilioRest
    """Twilio's REST API. A phone whose call is to be redirected or hung up has to be attached to it."""

    async def kill(self, region: str) -> None:
        """Kills the machine: its calls break off, and the edges learn of it later."""
        self.machines[region].kill()
        await self.machines[region].gone()
        self.fly.machine_stopped(region)

    async def drain(self, region: str) -> int | None:
        """Sends SIGTERM as a deploy does. The machine ends when its calls have ended. Returns its exit status."""
        self.machines[region].drain()
        await self.machines[region].gone()
        self.fly.machine_stopped(region)
        return self.machines[region].exit_status

    async def start(self, region: str) -> None:
        """Starts the machine again after `kill` or `drain`. Raises MachineError."""
        await self.machines[region].start()
        self.fly.machine_started(region, self.machines[region].port)

    async def well(self, region: str) -> None:
        """Waits until every edge sends calls there again. Raises MachineError when that takes too long."""
        try:
            async with asyncio.timeout(BACK_LIMIT_S):
                await self.fly.until(lambda: self.fly.machine(region).checks_ok and self.fly.settled())
        except TimeoutError:
            raise MachineError(f"{region} was well, and had no calls again after {BACK_LIMIT_S:g} s") from None

    async def sicken(self, region: str) -> None:
        """Cuts the machine off from all backends."""
        await self.machines[region].sicken()

    async def heal(self, region: str) -> None:
        """Ends `sicken`."""
        await self.machines[region].heal()


@asynccontextmanager
async def world(
    directory: Path,
    regions: Sequence[str],
    cities: Sequence[str],
    *,
    sqld_program: Path | None,
    script: Script = parrot,
    timing: Timing = LIKE_THE_SERVICE,
    say: Callable[[str], None] = lambda _text: None,
    tenants: str = TENANTS,
    settings: Mapping[str, str] = MappingProxyType({}),
    backend_rtt_ms: Callable[[str, str], float] = rtt_ms,
) -> AsyncIterator[World]:
    """Starts a world and waits until it is healthy.

    `tenants` is a document as `nearcall tenants import` takes it, `settings` are environment variables of every
    machine, and `backend_rtt_ms` says how far the backends are.

    Raises MachineError, DatabaseError, StorageError and TimeoutError.
    """
    async with AsyncExitStack() as stack:
        urls = {}
        if sqld_program is not None:
            say("starting a database for each zone")
            urls = {
                zone: await stack.enter_async_context(sqld(sqld_program, directory / f"sqld-{zone}"))
                for zone in NUMBERS
            }
        backends = {
            name: await stack.enter_async_context(
                RealtimeSimulator(api_key=API_KEY, timing=timing, record=False, script=script)
            )
            for name in BACKENDS
        }
        ports = {name: urlsplit(each.url).port or 0 for name, each in backends.items()}
        fly = Fly(
            [],
            edges=EDGES,
            rtt_ms=rtt_ms,
            options=FlyOptions(check_interval_s=1.0, propagation_s=(0.05, 0.3), queue_timeout_s=5.0),
        )
        await stack.enter_async_context(fly)
        bases = {city: f"http://127.0.0.1:{await fly.listen(city)}" for city in cities}
        environ = {**_environ(bases, regions, urls), **settings}
        rest = TwilioRest(ACCOUNT_SID, {ACCOUNT_SID: AUTH_TOKEN})
        rest_url = await stack.enter_async_context(rest.serve())
        machines = {
            region: Machine(region, directory / region, environ, ports, rest_url, backend_rtt_ms=backend_rtt_ms)
            for region in regions
        }
        for machine in machines.values():
            await stack.enter_async_context(machine)
        if urls:
            zones = [Zone("global", Path(), urls["global"], str)]
            await migrate_zone(Zone("eu", Path(), urls["eu"], str))
            await migrate_zone(zones[0])
        else:
            zones = [Zone("global", machine.data_dir, None, str) for machine in machines.values()]
        await store_tenants(tenants, zones)
        say(f"starting {len(machines)} servers")
        await asyncio.gather(*(machine.start() for machine in machines.values()))
        for region, machine in machines.items():
            fly.add_machine(Seen(region, region, machine.port, soft_limit=180, hard_limit=300))
        async with asyncio.timeout(READY_LIMIT_S):
            await fly.ready()
        yield World(fly, machines, bases, directory, backends, urls, rest)


def _environ(bases: Mapping[str, str], regions: Sequence[str], urls: Mapping[str, str]) -> dict[str, str]:
    databases = {"TURSO_URL" if zone == "global" else "TURSO_EU_URL": url for zone, url in urls.items()}
    return {
        "NEARCALL_PUBLIC_URL": ",".join(bases.values()),
        "NEARCALL_SECRET": "w" * 40,
        "NEARCALL_REGIONS": ",".join(regions),
        # The machines share the processors of this one, so their event loops are late for no reason of their own.
        "NEARCALL_LAG_MAX_MS": "10000",
        "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
        "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
        "OPENAI_API_KEY": API_KEY,
        "OPENAI_EU_API_KEY": API_KEY,
        **databases,
    }


async def store_tenants(text: str, zones: Sequence[Zone]) -> None:
    """Stores the tenants of a document in the global database of each of these. Raises StorageError."""
    document = parse_document(text, "world.toml")
    wanted = rows_of(tenants_in(document, Known(NUMBERS.keys(), BACKENDS.keys())))
    for zone in zones:
        await write_tenants(zone, await read_tenants(zone), wanted, time.time_ns() // 1_000_000)
