"""Connects an edge to a Machine: tries the candidates in turn until one accepts, within a time limit.

It counts the requests at each Machine, and holds and breaks connections to inject faults. It does not look at the
request or the answer. Sources: fly.md 4 (retries), 18 (codes), 19 rules 5 to 8.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import h11

from app.sim.fly.edge import Machine, RoutingPreference, Rtt, State, choose
from app.sim.fly.http import HttpEnd
from app.sim.fly.link import Link
from app.sim.fly.replay import NoMachine
from app.sim.fly.world import World

MAX_TRIES: Final = 90
"""Connections tried for one attempt (fly.md 4)."""

_RETRY_PAUSE_S: Final = 0.05
"""Between two rounds of candidates that all refused; Fly's value is unknown. 90 tries then take some seconds."""

_CONNECT_LIMIT_S: Final = 5.0


@dataclass(slots=True)
class MachineConnection:
    """A connection to a Machine, counted as one active unit until `finish`."""

    machine: Machine
    edge: str
    http: HttpEnd
    release: Callable[[], None]
    tunnel: bool = False
    counted: bool = True

    def finish(self) -> None:
        """Releases the connection from its request. Calling it again does nothing."""
        if self.counted:
            self.counted = False
            self.http.link.close()
            self.release()


@dataclass(frozen=True, slots=True)
class Attempt:
    """What to send, from which edge, to which Machines. Only a repeatable attempt is tried more than once."""

    edge: str
    preference: RoutingPreference
    timeout_s: float | None
    repeatable: bool
    encode: Callable[[HttpEnd, Machine], bytes]
    refused: Callable[[Machine, str], None]
    """Called with each Machine that could not be connected to, and why."""


class Backhaul:
    """All connections to Machines."""

    def __init__(
        self,
        world: World,
        rtt_ms: Rtt,
        rng: random.Random,
        *,
        queue_timeout_s: float,
        keep: Callable[[Link], None],
    ) -> None:
        """`keep` is called with every connection, so that its owner can destroy them at the end."""
        self._world = world
        self._rtt_ms = rtt_ms
        self._rng = rng
        self._queue_timeout_s = queue_timeout_s
        self._keep = keep
        self._open: list[MachineConnection] = []
        self._hung: set[str] = set()

    async def reach(self, attempt: Attempt) -> MachineConnection | NoMachine:
        """Connects to a suitable Machine and sends the attempt. Without a candidate it waits for one."""
        loop = asyncio.get_running_loop()
        limit_s = self._queue_timeout_s if attempt.timeout_s is None else attempt.timeout_s
        ends_at = loop.time() + limit_s
        too_late = NoMachine.NO_CANDIDATE if attempt.timeout_s is None else NoMachine.TIMEOUT
        refused: set[str] = set()
        for _ in range(MAX_TRIES if attempt.repeatable else 1):
            while (machine := self._choose(attempt, refused)) is None:
                left_s = ends_at - loop.time()
                if left_s <= 0:
                    return too_late
                if refused:
                    await asyncio.sleep(min(left_s, _RETRY_PAUSE_S))
                    refused.clear()
                else:
                    await self._change(left_s)
            try:
                return await self._send(attempt, machine)
            except OSError as error:  # TimeoutError among them
                attempt.refused(machine, str(error))
                refused.add(machine.id)
            if loop.time() >= ends_at:
                return too_late
        return NoMachine.RETRIES_EXHAUSTED

    def hang(self, machine_id: str, hung: bool) -> None:
        """Stops the traffic to and from this Machine, or lets it flow again. It goes on accepting connections."""
        (self._hung.add if hung else self._hung.discard)(machine_id)
        for connection in self._open:
            if connection.machine.id == machine_id:
                connection.http.link.hold(hung)

    @property
    def connections(self) -> int:
        """How many connections to Machines are open."""
        return len(self._open)

    def is_hung(self, machine_id: str) -> bool:
        return machine_id in self._hung

    def tunnels(self, *, machine_id: str | None = None, edge: str | None = None) -> list[Link]:
        """The tunnels to a Machine, or through an edge."""
        return [
            each.http.link
            for each in self._open
            if each.tunnel and machine_id in (None, each.machine.id) and edge in (None, each.edge)
        ]

    def _choose(self, attempt: Attempt, refused: set[str]) -> Machine | None:
        candidates = [each for each in self._world.seen_from(attempt.edge) if each.id not in refused]
        return choose(candidates, self._world.active, attempt.edge, self._rtt_ms, attempt.preference, self._rng)

    async def _change(self, limit_s: float) -> None:
        """Waits for a change of the Machines, for at most `limit_s`."""
        looks = iter((False, True))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._world.notifier.until(lambda: next(looks))

    async def _send(self, attempt: Attempt, machine: Machine) -> MachineConnection:
        """Sends the attempt after one way's delay. Raises OSError after the way back when it cannot connect."""
        one_way_s = self._rtt_ms(attempt.edge, machine.region) / 2000
        self._world.take(machine.id)
        try:
            await asyncio.sleep(one_way_s)
            try:
                link = await self._connect(machine, one_way_s)
            except OSError:
                await asyncio.sleep(one_way_s)
                raise
            http = HttpEnd(link, h11.CLIENT)
            connection = MachineConnection(machine, attempt.edge, http, lambda: self._world.release(machine.id))
            self._open.append(connection)
            link.gone.add_done_callback(lambda _: self._open.remove(connection))
            link.hold(machine.id in self._hung)
            sent = attempt.encode(http, machine)
        except BaseException:  # raised again: a cancelled attempt, too, must not count against the Machine
            self._world.release(machine.id)
            raise
        link.write(sent, travelled=True)
        return connection

    async def _connect(self, machine: Machine, one_way_s: float) -> Link:
        """Connects to the Machine's real state, not to what the edge believes. Raises OSError with Fly's code."""
        now = self._world.machine(machine.id)
        if now.state is State.STOPPED:
            raise ConnectionRefusedError("PM11: recently stopped")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_LIMIT_S):
                _, link = await loop.create_connection(
                    lambda: Link(f"Machine {machine.id}", one_way_s, self._keep), now.host, now.port
                )
        except TimeoutError:
            raise TimeoutError(f"PC05: no connection within {_CONNECT_LIMIT_S} s") from None
        except OSError as error:
            raise ConnectionRefusedError(f"PC01: {error}") from None
        return link
