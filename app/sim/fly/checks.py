"""The health checks of a service: a real `GET` to each started Machine, directly and not through an edge.

Only a 2xx passes; a redirect does not. A failed check takes a Machine out of the routing and does nothing else to
it; a passed check puts it back. Source: fly.md 11.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import httpx

from app.sim.fly.edge import Machine, State
from app.sim.fly.world import World


class Checks:
    """One task per started Machine."""

    def __init__(
        self, world: World, is_hung: Callable[[str], bool], *, path: str, interval_s: float, timeout_s: float
    ) -> None:
        self._world = world
        self._is_hung = is_hung
        self._path = path
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            verify=False,  # noqa: S501  plain http on the private network
            trust_env=False,
            timeout=timeout_s,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._overrides: dict[str, bool] = {}

    @property
    def machines(self) -> tuple[str, ...]:
        """The ids of the Machines that are checked."""
        return tuple(self._tasks)

    def begin(self, machine_id: str) -> None:
        """Checks this Machine from now on, the first time at once."""
        self.end(machine_id)
        self._tasks[machine_id] = asyncio.create_task(self._check(machine_id))

    def end(self, machine_id: str) -> None:
        """Stops checking this Machine. It keeps its last result."""
        task = self._tasks.pop(machine_id, None)
        if task is not None:
            task.cancel()

    def override(self, machine_id: str, ok: bool | None) -> None:
        """Fixes the result of the checks, whatever the Machine answers; None goes by its answers again."""
        if ok is None:
            self._overrides.pop(machine_id, None)
        else:
            self._overrides[machine_id] = ok
        if self._world.machine(machine_id).state is State.STARTED:
            self.begin(machine_id)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for machine_id in list(self._tasks):
            self.end(machine_id)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def _check(self, machine_id: str) -> None:
        while True:
            ok = self._overrides.get(machine_id)
            if ok is None:
                ok = await self._passes(self._world.machine(machine_id))
            self._world.change(machine_id, partial(replace, checks_ok=ok))
            await asyncio.sleep(self._interval_s)

    async def _passes(self, machine: Machine) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.get(f"http://{machine.host}:{machine.port}{self._path}")
                while self._is_hung(machine.id):
                    await self._world.notifier.until(lambda: not self._is_hung(machine.id))
        except (TimeoutError, httpx.TransportError):
            return False
        return response.is_success
