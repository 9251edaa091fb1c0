"""The configured backends of this process: which one a call gets, how each is doing, and whether it is back.

Keeps a circuit for each (app/regions/circuit.py) and probes those that are open. Refuses to know zones' names:
what a zone allows is asked of its rule.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.bridge.backend import DialError
from app.bridge.probe import probe
from app.bridge.session import STATUS_FATAL, STATUS_OF_THE_CALL, Verdict
from app.call.plan import Plan
from app.regions.backends import Backend, Choice, allowed, choose
from app.regions.circuit import Circuit
from app.regions.zones import ZoneRule
from app.wire.dialect import Dialect

LOOK_S = 0.5
"""How often it is looked whether a probe is due."""

log = logging.getLogger("nearcall.bridge")


@dataclass(frozen=True, slots=True)
class Line:
    """A backend and how it is spoken to."""

    backend: Backend
    dialect: Dialect
    circuit: Circuit = field(default_factory=Circuit)


class Backends:
    """Every backend that has a key."""

    def __init__(self, lines: Sequence[Line], region: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = {line.backend.name: line for line in lines}
        self._region = region
        self._clock = clock
        self._probing: set[asyncio.Task[None]] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all, usable or not."""
        return tuple(self._lines)

    @property
    def broken(self) -> dict[str, str]:
        """Why calls do not go to a backend, by its name."""
        return {name: line.circuit.why for name, line in self._lines.items() if not line.circuit.usable}

    def serves(self, rule: ZoneRule) -> bool:
        """True when one that the zone allows is configured."""
        return bool(allowed((line.backend for line in self._lines.values()), rule))

    def usable(self, rule: ZoneRule) -> bool:
        """True when one that the zone allows works, as far as is known."""
        return any(line.circuit.usable and line.backend.satisfies(rule) for line in self._lines.values())

    def choose(self, plan: Plan, rule: ZoneRule) -> tuple[Choice, Dialect] | None:
        """The one for a call; None when the zone allows none of them.

        When none works it is the one that would be best: whoever asks has decided to take the call.
        """
        backends = [line.backend for line in self._lines.values()]
        choice = choose(backends, rule, self._region, plan.backends, self._works)
        choice = choice or choose(backends, rule, self._region, plan.backends, lambda _name: True)
        return None if choice is None else (choice, self._lines[choice.backend.name].dialect)

    def verdict(self, name: str) -> Verdict:
        """What a call tells about this backend."""
        line = self._lines[name]

        def was(why: str | None, *, fatal: bool = False) -> None:
            if why is None:
                line.circuit.worked()
            elif line.circuit.failed(self._clock(), why, fatal=fatal):
                log.error("backend given up for now", extra={"backend": name, "error": why})

        return was

    async def watch(self, model: str) -> None:
        """Probe open circuits with this model until cancelled."""
        try:
            while True:
                for line in self._lines.values():
                    due = line.circuit.probe_at
                    if due is not None and self._clock() >= due and not self._is_probed(line):
                        self._probe(line, model)
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._probing:
                task.cancel()
            await asyncio.gather(*self._probing, return_exceptions=True)

    def _works(self, name: str) -> bool:
        return self._lines[name].circuit.usable

    def _is_probed(self, line: Line) -> bool:
        return any(task.get_name() == line.backend.name for task in self._probing)

    def _probe(self, line: Line, model: str) -> None:
        task = asyncio.create_task(self._look(line, model), name=line.backend.name)
        self._probing.add(task)
        task.add_done_callback(self._probing.discard)

    async def _look(self, line: Line, model: str) -> None:
        try:
            await probe(line.dialect.address(model))
        except DialError as error:
            # What is no fault of the backend's when a call meets it is none now: it may only lack this model.
            if error.status not in STATUS_OF_THE_CALL:
                line.circuit.probed(self._clock(), str(error), fatal=error.status in STATUS_FATAL)
                return
        if line.circuit.probed(self._clock(), None):
            log.warning("backend recovered", extra={"backend": line.backend.name})
