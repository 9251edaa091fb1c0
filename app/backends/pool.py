"""The configured backends of this process: which one a call gets, how each is doing, and whether it is back.

Keeps a circuit for each (app/backends/circuit.py) and probes those that are open. Probes all of them at a server's
start too, so that no caller finds out that a key is refused. Refuses to know zones' names: what a zone allows is
asked of its rule.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from app.backends.circuit import PROBE_FATAL_S, PROBE_S, Circuit
from app.backends.dial import DialError
from app.backends.probe import FORMAT, Trial, attempt
from app.backends.speeds import Speeds
from app.backends.table import Backend, Choice, allowed, choose
from app.bridge.session import Service, Verdict
from app.call.evidence import BackendChoice
from app.call.journal import Facts
from app.call.plan import Plan
from app.regions.zones import ZoneRule
from app.wire.audio import spoken_in
from app.wire.dialect import Dialect

LOOK_S = 0.5
"""How often it is looked whether a probe is due."""
MEASURE_S = 300.0
"""How often a backend that works is probed where there are several. Nothing else measures one without calls."""

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


class State(StrEnum):
    """How a backend is doing, for /healthz."""

    UNTRIED = "untried"
    OK = "ok"
    FAILING = "failing"


Advise = Callable[[DialError, Backend, str], str | None]
"""What an operator can do about a failure of a backend, with this model; None when the failure says it all."""


def _no_advice(_error: DialError, _backend: Backend, _model: str) -> None:
    return None


class Backends:
    """Every backend that has a key."""

    def __init__(
        self,
        lines: Sequence[Line],
        region: str,
        clock: Callable[[], float] = time.monotonic,
        advise: Advise = _no_advice,
    ) -> None:
        self._lines = {line.backend.name: line for line in lines}
        self._region = region
        self._clock = clock
        self._advise = advise
        self._probing: set[asyncio.Task[None]] = set()
        self._speeds = Speeds(self._lines)
        self._seen = dict.fromkeys(self._lines, State.UNTRIED)
        self._told: dict[str, str] = {}
        """By name, the failure of a probe that the log has said: the same one again is no news."""
        self._measure_at = dict.fromkeys(self._lines, float("-inf"))
        """When a backend that calls go to is probed next."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all, usable or not."""
        return tuple(self._lines)

    @property
    def broken(self) -> dict[str, str]:
        """Why calls do not go to a backend, by its name."""
        return {name: why for name, line in self._lines.items() if (why := line.broken) is not None}

    @property
    def states(self) -> dict[str, State]:
        """How each is doing, by its name."""
        return {
            name: State.FAILING if line.broken is not None else self._seen[name]
            for name, line in self._lines.items()
        }

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
        because = "next" if tried else choice.why
        promises = tuple(sorted(backend.entry.residency))
        return Service(
            plan,
            replace(
                facts, backend=backend.name, choice=BackendChoice(backend.name, plan.voice, promises, because)
            ),
            spoken_in(dialect, backend.entry.tuning.audio),
            self.verdict(backend.name),
            partial(self._ready_after, backend.name),
        )

    def choose(
        self, plan: Plan, rule: ZoneRule, tried: Collection[str] = (), *, working: bool = False
    ) -> tuple[Choice, Dialect] | None:
        """The one for a call; None when the zone allows none but those that were tried.

        When none works it is the one that would be best, for whoever asks has decided to take the call; with
        `working` it is None.
        """
        backends = [line.backend for name, line in self._lines.items() if name not in tried]
        choice = choose(backends, rule, self._region, plan.backends, self._works, self._speeds.rank)
        if choice is None and not working:
            choice = choose(backends, rule, self._region, plan.backends, lambda _name: True, self._speeds.rank)
        return None if choice is None else (choice, self._lines[choice.backend.name].dialect)

    def verdict(self, name: str) -> Verdict:
        """What a call tells about this backend."""
        line = self._lines[name]

        def was(why: str | None, *, status: int | None = None, code: str = "") -> None:
            if why is None:
                line.circuit.worked()
                self._seen[name] = State.OK
                return
            # Without a key it gets no calls anyway, and is to get them with the key.
            fatal = line.weight(status, code) if line.no_key() is None else None
            if fatal is not None and line.circuit.failed(self._clock(), why, fatal=fatal):
                self._say_given_up(line, DialError(why, status, code), line.backend.entry.tuning.model)

        return was

    async def watch(self, plan: Plan, *, try_all: bool = False) -> None:
        """Probe open circuits, as calls with this plan would find them, until cancelled.

        `try_all`: also every other backend, at once and until it has worked, and then now and then to measure it.
        """
        try:
            while True:
                now = self._clock()
                for line in self._lines.values():
                    if self._is_due(line, now, try_all=try_all) and not self._is_probed(line):
                        self._probe(line, plan)
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._probing:
                task.cancel()
            await asyncio.gather(*self._probing, return_exceptions=True)

    def _is_due(self, line: Line, now: float, *, try_all: bool) -> bool:
        due = line.circuit.probe_at
        if due is None and try_all and line.no_key() is None:
            due = self._measure_at[line.backend.name]
        return due is not None and now >= due

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
            trial = await attempt(line.dialect, plan, speak=False)
        except DialError as error:
            self._failed(line, error, line.dialect.fitted(plan).model)
        else:
            self._worked(line, trial)

    def _worked(self, line: Line, trial: Trial) -> None:
        name = line.backend.name
        configured_ms = trial.opened_ms + trial.configured_ms
        if self._seen[name] is not State.OK:
            log.info("backend works", extra={"backend": name, "configured_ms": round(configured_ms)})
        self._ready_after(name, configured_ms)
        self._told.pop(name, None)
        self._measure_at[name] = self._clock() + MEASURE_S if len(self._lines) > 1 else float("inf")
        if line.circuit.probe_at is None:
            line.circuit.worked()
        else:
            self._probed_well(line)

    def _ready_after(self, name: str, ms: float) -> None:
        """A probe or a call has its session."""
        self._seen[name] = State.OK
        self._speeds.measured(name, ms)

    def _failed(self, line: Line, error: DialError, model: str) -> None:
        """A probe has failed. That is a failure like a call's, except that nobody noticed it."""
        name, now = line.backend.name, self._clock()
        # Without a key it gets no calls anyway: see `verdict`.
        fatal = line.weight(error.status, error.code) if line.no_key() is None else None
        self._seen[name] = State.FAILING
        if line.circuit.probe_at is not None:
            # What is no fault of the backend's when a call meets it is none now: it may only lack this model.
            if fatal is None:
                self._probed_well(line)
            else:
                line.circuit.probed(now, str(error), fatal=fatal)
            return
        self._measure_at[name] = now + (PROBE_FATAL_S if fatal is None else PROBE_S)
        if fatal is not None and line.circuit.failed(now, str(error), fatal=fatal):
            self._say_given_up(line, error, model)
        elif self._told.get(name) != str(error):
            self._told[name] = str(error)
            log.error("backend not usable", extra=self._fault(line, error, model))

    def _probed_well(self, line: Line) -> None:
        if line.circuit.probed(self._clock(), None):
            log.warning("backend recovered", extra={"backend": line.backend.name})

    def _say_given_up(self, line: Line, error: DialError, model: str) -> None:
        log.error("backend given up for now", extra=self._fault(line, error, model))

    def _fault(self, line: Line, error: DialError, model: str) -> dict[str, str]:
        hint = self._advise(error, line.backend, model)
        return {"backend": line.backend.name, "error": str(error), **({"hint": hint} if hint else {})}
