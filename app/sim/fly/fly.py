"""A stand-in for Fly.io in front of real processes: edges, routing, `fly-replay`, checks, distance and faults.

It needs the Machines (the port of each process and its region) and the round-trip time between places. Clients
of each location get a port of 127.0.0.1 that behaves as Fly's anycast address does there. It starts and stops no
process: its user does, and reports it with `machine_stopped` and `machine_started`. Not simulated: TLS, HTTP/2,
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
    """The settings of the simulated app.

    `forging_allowed` lets clients send headers that only the edge should write. Fly does not document what it does
    with them, nor the time-out of its queue, nor how long state takes to propagate.
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
    """One app on Fly, used with `async with`. An unknown Machine ID raises KeyError."""

    def __init__(
        self,
        machines: Iterable[Machine],
        *,
        edges: Iterable[str],
        rtt_ms: Rtt,
        options: FlyOptions | None = None,
        on_hop: Callable[[Trace, Hop], None] | None = None,
    ) -> None:
        """`edges` are region codes, also of regions without Machines. `on_hop` is called for every hop."""
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
        """Opens a port (0: any) for the clients of a location, who enter at its nearest edge. Returns the port."""
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
        """Adds a Machine. Requests go to it once a check has passed and the edges know it."""
        self._world.add(machine)
        if machine.state is State.STARTED:
            self._checks.begin(machine.id)

    @property
    def propagation_s(self) -> tuple[float, float]:
        """The shortest and the longest time until an edge learns of a change. It can be set at any time."""
        return self._world.propagation_s

    @propagation_s.setter
    def propagation_s(self, propagation_s: tuple[float, float]) -> None:
        self._world.propagation_s = propagation_s

    @property
    def links(self) -> frozenset[Link]:
        """All connections that are open, of clients and to Machines."""
        return frozenset(self._links)

    @property
    def connections(self) -> int:
        """How many connections to Machines are open."""
        return self._backhaul.connections

    @property
    def checked(self) -> tuple[str, ...]:
        """The ids of the Machines whose health is checked."""
        return self._checks.machines

    def machine(self, machine_id: str) -> Machine:
        """Returns the Machine in its present state, whatever the edges believe."""
        return self._world.machine(machine_id)

    def active(self, machine_id: str) -> int:
        """Returns how many requests and tunnels count against its limits now."""
        return self._world.active[self.machine(machine_id).id]

    def machine_stopped(self, machine_id: str) -> None:
        """Reports that its process has ended: connections are refused at once, and the edges learn of it later."""
        self._checks.end(machine_id)
        self._world.change(machine_id, lambda each: replace(each, state=State.STOPPED, checks_ok=False))

    def machine_started(self, machine_id: str, port: int) -> None:
        """Reports that a new process of it listens on this port. Requests go there once a check has passed."""
        self._backhaul.hang(machine_id, hung=False)
        self._world.change(machine_id, lambda each: replace(each, state=State.STARTED, checks_ok=False, port=port))
        self._checks.begin(machine_id)

    def cordon(self, machine_id: str) -> None:
        """Sends it no new requests. Its present requests and tunnels stay."""
        self._world.change(machine_id, lambda each: replace(each, cordoned=True))

    def uncordon(self, machine_id: str) -> None:
        self._world.change(machine_id, lambda each: replace(each, cordoned=False))

    # Faults

    def set_health(self, machine_id: str, ok: bool | None) -> None:
        """Makes its checks pass or fail, whatever it answers; None goes by its answers."""
        self._checks.override(machine_id, ok)

    def hang(self, machine_id: str) -> None:
        """Lets it accept connections but moves no byte on them, old or new. Its checks time out."""
        self._backhaul.hang(machine_id, hung=True)
        self._world.notifier.changed()

    def unhang(self, machine_id: str) -> None:
        """Ends `hang`: held bytes move again."""
        self._backhaul.hang(machine_id, hung=False)
        self._world.notifier.changed()

    def reset_tunnels(self, machine_id: str) -> int:
        """Breaks its tunnels with a TCP reset, as when its host dies. Returns how many."""
        tunnels = self._backhaul.tunnels(machine_id=self.machine(machine_id).id)
        for link in tunnels:
            link.break_far_end()
        return len(tunnels)

    def restart_proxy(self, edge: str) -> int:
        """Breaks every tunnel through an edge, on both sides. Returns how many."""
        tunnels = self._backhaul.tunnels(edge=edge)
        for link in tunnels:
            link.fail(f"the proxy in {edge} was restarted")
        return len(tunnels)

    # What happened

    @property
    def traces(self) -> list[Trace]:
        """The latest requests with their hops, oldest first."""
        return self._log.traces

    def trace(self, request_id: str) -> Trace:
        """Returns the hops of one request, by the `Fly-Request-Id` of its answer."""
        return self._log[request_id]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition on the Machines, checked at every change. Without limit: add a time-out."""
        await self._world.notifier.until(condition)

    def settled(self) -> bool:
        """True when every edge knows the present state."""
        return self._world.known_everywhere()

    async def ready(self) -> None:
        """Waits until every edge can use every started, uncordoned Machine. Without limit: add a time-out."""
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
