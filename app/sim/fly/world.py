"""The real state of the Machines, and what each edge believes it to be a moment later.

Fly spreads state by gossip: a stop, a cordon or a failed check reaches each edge after its own delay, and until
then requests go to the old target. Here every edge knows the number of active requests at once; Fly spreads that
by gossip too. Sources: fly.md 4, 19 rules 1, 8.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from app.sim.fly.edge import Machine
from app.sim.notifier import Notifier


@dataclass(frozen=True, slots=True)
class _Version:
    number: int
    machine: Machine


@dataclass(slots=True)
class _Fact:
    """One Machine: its real state, and the last state that each edge knows."""

    truth: _Version
    heard: dict[str, _Version] = field(default_factory=dict)


class World:
    """All Machines. Every change goes through `change`, which wakes those that wait on `notifier`."""

    def __init__(self, edges: Iterable[str], *, propagation_s: tuple[float, float], rng: random.Random) -> None:
        self.edges = tuple(edges)
        self.notifier = Notifier()
        self.propagation_s = propagation_s
        """The shortest and the longest time until an edge learns of a change."""
        self._rng = rng
        self._facts: dict[str, _Fact] = {}
        self._active: Counter[str] = Counter()
        self._timers: set[asyncio.TimerHandle] = set()

    @property
    def active(self) -> Mapping[str, int]:
        """Requests and tunnels at each Machine now."""
        return self._active

    @property
    def machines(self) -> list[Machine]:
        """All Machines in their real state."""
        return [fact.truth.machine for fact in self._facts.values()]

    def machine(self, machine_id: str) -> Machine:
        """Returns the real state. Raises KeyError for an unknown ID."""
        return self._facts[machine_id].truth.machine

    def add(self, machine: Machine) -> None:
        """Adds a Machine that no edge knows yet. Raises ValueError when its ID is taken."""
        if machine.id in self._facts:
            raise ValueError(f"Machine {machine.id!r} is there already")
        self._facts[machine.id] = _Fact(_Version(0, machine))
        self._tell(self._facts[machine.id])

    def change(self, machine_id: str, to: Callable[[Machine], Machine]) -> None:
        """Changes a Machine now; the edges learn of it later."""
        fact = self._facts[machine_id]
        changed = to(fact.truth.machine)
        if changed == fact.truth.machine:
            return
        fact.truth = _Version(fact.truth.number + 1, changed)
        self._tell(fact)

    def seen_from(self, edge: str) -> list[Machine]:
        """Returns the Machines as this edge believes they are."""
        return [fact.heard[edge].machine for fact in self._facts.values() if edge in fact.heard]

    def known_everywhere(self) -> bool:
        """True when every edge knows the real state."""
        return all(fact.heard.get(edge) == fact.truth for fact in self._facts.values() for edge in self.edges)

    def take(self, machine_id: str) -> None:
        """Counts one more request at this Machine."""
        self._active[machine_id] += 1
        self.notifier.changed()

    def release(self, machine_id: str) -> None:
        """Counts one request less at this Machine."""
        self._active[machine_id] -= 1
        self.notifier.changed()

    def close(self) -> None:
        """Stops telling the edges anything."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _tell(self, fact: _Fact) -> None:
        for edge in self.edges:
            delay_s = self._rng.uniform(*self.propagation_s)
            if delay_s == 0:
                self._hear(edge, fact, fact.truth)
            else:
                self._later(delay_s, edge, fact, fact.truth)
        self.notifier.changed()

    def _later(self, delay_s: float, edge: str, fact: _Fact, version: _Version) -> None:
        def arrived() -> None:
            self._timers.discard(timer)
            self._hear(edge, fact, version)

        timer = asyncio.get_running_loop().call_later(delay_s, arrived)
        self._timers.add(timer)

    def _hear(self, edge: str, fact: _Fact, version: _Version) -> None:
        heard = fact.heard.get(edge)
        if heard is None or heard.number < version.number:  # news may overtake each other
            fact.heard[edge] = version
            self.notifier.changed()
