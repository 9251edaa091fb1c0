"""A stand-in for Fly.io in front of real processes: edges, routing, `fly-replay`, checks, distance and faults.

It takes Machines (where their processes listen, in which region they are) and a round-trip time between places.
Clients of each location get a port of 127.0.0.1 that behaves as Fly's anycast address does there. It starts and
stops no process: whoever does says so with `machine_stopped` and `machine_started`. Not simulated: TLS, HTTP/2,
autostart and autostop, suspending, the replay's JSON form, replay caching, other apps. Sources: fly.md 4 to 9,
11, 19.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Literal, Self

from app.sim.fly.checks import Checks
from app.sim.fly.edge import Machine, Rtt, State, nearest_edge
from app.sim.fly.link import Link
from app.sim.fly.log import Hop, Log, Trace
from app.sim.fly.proxy import ClientPort, Proxy
from app.sim.fly.reach import Backhaul
from app.sim.fly.world import World

_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class FlyOptions:
    """`forging_allowed` lets clients send the headers that only the edge has reason to write.

    What Fly really does with those is not documented, and neither are the queue's time-out and the propagation's
    span.
    """

    app_name: str = "app"
    queue_timeout_s: float = 10.0
    propagation_s: tuple[float, float] = (0.1, 0.5)
    check_path: str = "/healthz"
    check_interval_s: float = 1.0
    check_timeout_s: float = 5.0
    forwarded_proto: Literal["http", "https"] = "http"
    forging_allowed: bool = False
    seed: int = 0


class Fly:
    """One app on Fly, `async with` as long as it is there. Machine IDs it does not know are a KeyError."""

    def __init__(
        self,
        machines: Iterable[Machine],
        *,
        edges: Iterable[str],
        rtt_ms: Rtt,
        options: FlyOptions | None = None,
        on_hop: Callable[[Trace, Hop], None] | None = None,
    ) -> None:
        """`edges` are region codes, more than have Machines if wanted. `on_hop` is told what happens, then."""
        edges = list(edges)
        if not edges:
            raise ValueError("edges: at least one is needed, or clients have nowhere to connect to")
        self._machines = list(machines)
        self._rtt_ms = rtt_ms
        self._options = options or FlyOptions()
        self._log = Log(on_hop)
        rng = random.Random(self._options.seed)
        self._world = World(edges, propagation_s=self._options.propagation_s, rng=rng)
        self._links: set[Link] = set()
        self._backhaul = Backhaul(
            self._world, rtt_ms, rng, queue_timeout_s=self._options.queue_timeout_s, keep=self._keep
        )
        self._proxy = Proxy(
            self._backhaul,
            self._log,
            rng,
            app_name=self._options.app_name,
            forwarded_proto=self._options.forwarded_proto,
            forging_allowed=self._options.forging_allowed,
        )
        self._checks = Checks(
            self._world,
            self._backhaul.is_hung,
            path=self._options.check_path,
            interval_s=self._options.check_interval_s,
            timeout_s=self._options.check_timeout_s,
        )
        self._servers: list[asyncio.Server] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._faults: list[BaseException] = []

    async def __aenter__(self) -> Self:
        for machine in self._machines:
            self.add_machine(machine)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await self._checks.close()
        self._world.close()
        links = list(self._links)
        for link in links:
            link.destroy()
        await asyncio.gather(*(link.gone for link in links))
        if error is None and self._faults:
            raise self._faults[0]

    async def listen(self, client_location: str, port: int = 0) -> int:
        """Open a port (0: any) for clients of this location; they enter at the edge nearest to it."""
        edge = nearest_edge(client_location, self._world.edges, self._rtt_ms)
        one_way_s = self._rtt_ms(client_location, edge) / 2000
        name = f"the client in {client_location}"

        def accept(link: Link) -> None:
            self._keep(link)
            task = asyncio.get_running_loop().create_task(self._proxy.serve(link, client_port))
            self._serving.add(task)
            task.add_done_callback(self._served)

        server = await asyncio.get_running_loop().create_server(
            lambda: Link(name, one_way_s, accept), _LOOPBACK, port
        )
        self._servers.append(server)
        client_port = ClientPort(client_location, edge, int(server.sockets[0].getsockname()[1]))
        return client_port.port

    # The Machines

    def add_machine(self, machine: Machine) -> None:
        """A Machine more; requests go to it when a check has passed and the edges have heard of it."""
        self._world.add(machine)
        if machine.state is State.STARTED:
            self._checks.begin(machine.id)

    def machine(self, machine_id: str) -> Machine:
        """As it is now, whatever the edges believe."""
        return self._world.machine(machine_id)

    def active(self, machine_id: str) -> int:
        """Requests and tunnels that count against its limits now."""
        return self._world.active[self.machine(machine_id).id]

    def machine_stopped(self, machine_id: str) -> None:
        """Its process is gone: connections are refused from now on, and the edges hear of it later."""
        self._checks.end(machine_id)
        self._world.change(machine_id, lambda each: replace(each, state=State.STOPPED, checks_ok=False))

    def machine_started(self, machine_id: str, port: int) -> None:
        """A new process of it listens at this port; requests go there when a check has passed."""
        self._backhaul.hang(machine_id, hung=False)
        self._world.change(machine_id, lambda each: replace(each, state=State.STARTED, checks_ok=False, port=port))
        self._checks.begin(machine_id)

    def cordon(self, machine_id: str) -> None:
        """No new requests; what is there stays."""
        self._world.change(machine_id, lambda each: replace(each, cordoned=True))

    def uncordon(self, machine_id: str) -> None:
        self._world.change(machine_id, lambda each: replace(each, cordoned=False))

    # Faults

    def set_health(self, machine_id: str, ok: bool | None) -> None:
        """Let its checks pass or fail whatever it answers; None: as it answers."""
        self._checks.override(machine_id, ok)

    def hang(self, machine_id: str) -> None:
        """It takes connections and nothing moves on them, nor on those it has. Its checks time out."""
        self._backhaul.hang(machine_id, hung=True)
        self._world.notifier.changed()

    def unhang(self, machine_id: str) -> None:
        """What was held up goes on."""
        self._backhaul.hang(machine_id, hung=False)
        self._world.notifier.changed()

    def reset_tunnels(self, machine_id: str) -> int:
        """Break its tunnels with a TCP reset, as when its host dies. Returns how many."""
        tunnels = self._backhaul.tunnels(machine_id=self.machine(machine_id).id)
        for link in tunnels:
            link.break_far_end()
        return len(tunnels)

    def restart_proxy(self, edge: str) -> int:
        """Break every tunnel through an edge, to both sides. Returns how many."""
        tunnels = self._backhaul.tunnels(edge=edge)
        for link in tunnels:
            link.fail(f"the proxy in {edge} was restarted")
        return len(tunnels)

    # What happened

    @property
    def traces(self) -> list[Trace]:
        """The latest requests and their hops, oldest first."""
        return self._log.traces

    def trace(self, request_id: str) -> Trace:
        """What became of one request, by the `Fly-Request-Id` of its answer."""
        return self._log[request_id]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something about the Machines is so; it looks again at every change. Give it a time-out."""
        await self._world.notifier.until(condition)

    def settled(self) -> bool:
        """True when every edge believes what is."""
        return self._world.known_everywhere()

    async def ready(self) -> None:
        """Wait until every edge may use every started Machine that is not cordoned. Give it a time-out."""
        await self.until(lambda: self.settled() and all(map(_checked, self._world.machines)))

    def _served(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._faults.append(fault)  # the simulator's own, or on_hop's: raised at the end

    def _keep(self, link: Link) -> None:
        self._links.add(link)
        link.gone.add_done_callback(lambda _: self._links.discard(link))


def _checked(machine: Machine) -> bool:
    return machine.checks_ok or machine.cordoned or machine.state is not State.STARTED
