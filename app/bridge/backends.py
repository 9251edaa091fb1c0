"""The configured backends of this process: which one a call gets, how each is doing, and whether it is back.

Keeps a circuit for each (app/regions/circuit.py) and probes those that are open. Refuses to know zones' names:
what a zone allows is asked of its rule.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from app.bridge.backend import DialError
from app.bridge.session import Service, Verdict
from app.bridge.trial import FORMAT, attempt
from app.call.journal import Facts
from app.call.plan import Plan
from app.regions.backends import Backend, Choice, allowed, choose
from app.regions.circuit import Circuit
from app.regions.zones import ZoneRule
from app.wire.audio import spoken_in
from app.wire.dialect import Dialect

LOOK_S = 0.5
"""How often it is looked whether a probe is due."""

_OF_THE_CALL = frozenset({"session_expired", "invalid_value"})
"""Codes that say nothing about other calls: its length, and a voice or a language that its tenant wishes. A value
of the backend's own table is refused alike, and `nearcall backends check` tells so."""
_FATAL = frozenset({FORMAT, "insufficient_quota", "billing_hard_limit_reached", "invalid_api_key"})
"""Codes that every other call would get as well, until somebody pays or mends the key or the settings."""
_OF_THE_MODEL = frozenset({"model_not_found", "invalid_model"})
"""Codes that say nothing about calls with other models."""
_STATUS_FATAL = frozenset({401, 403})
"""Of HTTP: as `_FATAL`."""
_STATUS_OF_THE_MODEL = frozenset({400, 404})
"""Of HTTP: as `_OF_THE_MODEL`."""

log = logging.getLogger("nearcall.bridge")


@dataclass(frozen=True, slots=True)
class Line:
    """A backend and how it is spoken to."""

    backend: Backend
    dialect: Dialect
    circuit: Circuit = field(default_factory=Circuit)
    no_key: Callable[[], str | None] = lambda: None
    """Why it cannot even be dialled now; None while it can."""

    @property
    def broken(self) -> str | None:
        """Why calls do not go there; None while they do."""
        return self.no_key() or (None if self.circuit.usable else self.circuit.why)

    def weight(self, status: int | None, code: str) -> bool | None:
        """What a failure says about other calls: True, they fail too; False, it may be bad luck; None, nothing.

        A model is the tenant's affair, unless the backend has one for all.
        """
        of_the_model = code in _OF_THE_MODEL or status in _STATUS_OF_THE_MODEL
        if code in _OF_THE_CALL or (of_the_model and not self.backend.entry.tuning.model):
            return None
        return of_the_model or code in _FATAL or status in _STATUS_FATAL


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
        return {name: why for name, line in self._lines.items() if (why := line.broken) is not None}

    def serves(self, rule: ZoneRule) -> bool:
        """True when one that the zone allows is configured."""
        return bool(allowed((line.backend for line in self._lines.values()), rule))

    def usable(self, rule: ZoneRule) -> bool:
        """True when one that the zone allows works, as far as is known."""
        return any(line.broken is None and line.backend.satisfies(rule) for line in self._lines.values())

    def service(
        self, wish: Plan, rule: ZoneRule, facts: Facts, tried: Collection[str], *, working: bool
    ) -> Service | None:
        """The one for the call of these `facts`, which say nothing of a backend yet: see `choose`."""
        chosen = self.choose(wish, rule, tried, working=working)
        if chosen is None:
            return None
        choice, dialect = chosen
        backend, plan = choice.backend, dialect.fitted(wish)
        promise = ",".join(sorted(backend.entry.residency)) or "none"
        because = "next" if tried else choice.why
        why = f"{backend.name} voice={plan.voice} residency={promise} because={because}"
        return Service(
            plan,
            replace(facts, backend=backend.name, choice=why),
            spoken_in(dialect, backend.entry.tuning.audio),
            self.verdict(backend.name),
        )

    def choose(
        self, plan: Plan, rule: ZoneRule, tried: Collection[str] = (), *, working: bool = False
    ) -> tuple[Choice, Dialect] | None:
        """The one for a call; None when the zone allows none but those that were tried.

        When none works it is the one that would be best, for whoever asks has decided to take the call; with
        `working` it is None.
        """
        backends = [line.backend for name, line in self._lines.items() if name not in tried]
        choice = choose(backends, rule, self._region, plan.backends, self._works)
        if choice is None and not working:
            choice = choose(backends, rule, self._region, plan.backends, lambda _name: True)
        return None if choice is None else (choice, self._lines[choice.backend.name].dialect)

    def verdict(self, name: str) -> Verdict:
        """What a call tells about this backend."""
        line = self._lines[name]

        def was(why: str | None, *, status: int | None = None, code: str = "") -> None:
            if why is None:
                line.circuit.worked()
                return
            # Without a key it gets no calls anyway, and is to get them with the key.
            fatal = line.weight(status, code) if line.no_key() is None else None
            if fatal is not None and line.circuit.failed(self._clock(), why, fatal=fatal):
                log.error("backend given up for now", extra={"backend": name, "error": why})

        return was

    async def watch(self, plan: Plan) -> None:
        """Probe open circuits, as calls with this plan would find them, until cancelled."""
        try:
            while True:
                for line in self._lines.values():
                    due = line.circuit.probe_at
                    if due is not None and self._clock() >= due and not self._is_probed(line):
                        self._probe(line, plan)
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._probing:
                task.cancel()
            await asyncio.gather(*self._probing, return_exceptions=True)

    def _works(self, name: str) -> bool:
        return self._lines[name].broken is None

    def _is_probed(self, line: Line) -> bool:
        return any(task.get_name() == line.backend.name for task in self._probing)

    def _probe(self, line: Line, plan: Plan) -> None:
        task = asyncio.create_task(self._look(line, plan), name=line.backend.name)
        self._probing.add(task)
        task.add_done_callback(self._probing.discard)

    async def _look(self, line: Line, plan: Plan) -> None:
        try:
            await attempt(line.dialect, plan, speak=False)
        except DialError as error:
            # What is no fault of the backend's when a call meets it is none now: it may only lack this model.
            fatal = line.weight(error.status, error.code)
            if fatal is not None:
                line.circuit.probed(self._clock(), str(error), fatal=fatal)
                return
        if line.circuit.probed(self._clock(), None):
            log.warning("backend recovered", extra={"backend": line.backend.name})
