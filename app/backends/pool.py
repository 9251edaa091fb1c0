"""The configured backends of this process: which one a call gets, how each is doing, and whether it works again.

Every backend has a circuit (app/backends/circuit.py). A backend whose circuit is open is probed; at a server's
start all of them are, so that a refused key is found before the first caller finds it. Zones are not known by
name: their rules say which backends they allow.
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
from app.backends.probe import Trial, attempt
from app.backends.speeds import Speeds
from app.backends.table import Backend, Choice, allowed, choose
from app.bridge.session import Service
from app.call.evidence import BackendChoice
from app.call.failure import BackendFailure, Scope
from app.call.journal import Facts
from app.call.plan import Plan
from app.regions.zones import ZoneRule
from app.wire.audio import spoken_in
from app.wire.dialect import Dialect

LOOK_S = 0.5
"""How often the pool looks whether a probe is due."""
MEASURE_S = 300.0
"""How often a backend that works is probed where there are several. Nothing else measures one without calls."""

log = logging.getLogger("nearcall.backends")


@dataclass(frozen=True, slots=True)
class PoolMember:
    """A backend, how it is spoken to, and what is known of it."""

    backend: Backend
    dialect: Dialect
    circuit: Circuit = field(default_factory=Circuit)
    no_key: Callable[[], str | None] = lambda: None
    """Says why the backend cannot even be dialled now; None while it can."""

    @property
    def usable(self) -> bool:
        """True while calls go there."""
        return self.no_key() is None and self.circuit.usable

    def concerns_others(self, failure: BackendFailure) -> bool:
        """True when this failure of one call says something about others.

        A model is the tenant's choice, unless the backend has one model for all. A backend without a key gets no
        calls anyway, and is to get them as soon as it has the key.
        """
        if self.no_key() is not None:
            return False
        same_model = bool(self.backend.entry.tuning.model)
        return failure.scope is Scope.BACKEND or (failure.scope is Scope.MODEL and same_model)


class State(StrEnum):
    """How a backend is doing, for /healthz."""

    UNTRIED = "untried"
    OK = "ok"
    FAILING = "failing"


Advise = Callable[[BackendFailure, Backend, str], str | None]
"""Says what an operator can do about a failure of a backend with this model; None when its text says it all."""


def _no_advice(_failure: BackendFailure, _backend: Backend, _model: str) -> None:
    return None


class Backends:
    """Every backend that has a key."""

    def __init__(
        self,
        members: Sequence[PoolMember],
        region: str,
        clock: Callable[[], float] = time.monotonic,
        advise: Advise = _no_advice,
    ) -> None:
        self._members = {member.backend.name: member for member in members}
        self._region = region
        self._clock = clock
        self._advise = advise
        self._probing: set[asyncio.Task[None]] = set()
        self._speeds = Speeds(self._members)
        self._seen = dict.fromkeys(self._members, State.UNTRIED)
        self._logged: dict[str, str] = {}
        """By name, the text of the last failed probe that was logged: the same text is not logged again."""
        self._measure_at = dict.fromkeys(self._members, float("-inf"))
        """When a backend that calls go to is probed next."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all backends, usable or not."""
        return tuple(self._members)

    @property
    def states(self) -> dict[str, State]:
        """How each backend is doing, by its name."""
        return {
            name: self._seen[name] if member.usable else State.FAILING for name, member in self._members.items()
        }

    def serves(self, rule: ZoneRule) -> bool:
        """True when a backend that the zone allows is configured."""
        return bool(allowed((member.backend for member in self._members.values()), rule))

    def usable(self, rule: ZoneRule) -> bool:
        """True when a backend that the zone allows works, as far as is known."""
        return any(member.usable and member.backend.satisfies(rule) for member in self._members.values())

    def service(
        self, wish: Plan, rule: ZoneRule, facts: Facts, tried: Collection[str], *, working: bool
    ) -> Service | None:
        """Choose the backend for the call of these `facts`, which name no backend yet: see `choose`."""
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
            partial(self.report_outcome, backend.name),
            partial(self.report_ready, backend.name),
        )

    def choose(
        self, plan: Plan, rule: ZoneRule, tried: Collection[str] = (), *, working: bool = False
    ) -> tuple[Choice, Dialect] | None:
        """Choose a backend for a call; None when the zone allows none but those that were tried.

        When no backend works this is the one that would be best, because the caller of this method has decided to
        take the call; with `working` it is None.
        """
        backends = [member.backend for name, member in self._members.items() if name not in tried]
        choice = choose(backends, rule, self._region, plan.backends, self._works, self._speeds.rank)
        if choice is None and not working:
            choice = choose(backends, rule, self._region, plan.backends, lambda _name: True, self._speeds.rank)
        return None if choice is None else (choice, self._members[choice.backend.name].dialect)

    def report_outcome(self, name: str, failure: BackendFailure | None) -> None:
        """Take in how a call did with this backend: by what it failed, or None when it was served well."""
        member = self._members[name]
        if failure is None:
            member.circuit.worked()
            self._seen[name] = State.OK
        elif member.concerns_others(failure) and member.circuit.failed(self._clock(), fatal=failure.fatal):
            self._log_given_up(member, failure, member.backend.entry.tuning.model)

    def report_ready(self, name: str, ms: float) -> None:
        """Take in that a call or a probe had its configured session after so many ms."""
        self._seen[name] = State.OK
        self._speeds.measured(name, ms)

    async def watch(self, plan: Plan, *, try_all: bool = False) -> None:
        """Probe open circuits, as calls with this plan would find them, until cancelled.

        `try_all`: also every other backend, at once and until it has worked, and then now and then to measure it.
        """
        try:
            while True:
                now = self._clock()
                for member in self._members.values():
                    if self._is_due(member, now, try_all=try_all) and not self._is_probed(member):
                        self._probe(member, plan)
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._probing:
                task.cancel()
            await asyncio.gather(*self._probing, return_exceptions=True)

    def _is_due(self, member: PoolMember, now: float, *, try_all: bool) -> bool:
        due = member.circuit.probe_at
        if due is None and try_all and member.no_key() is None:
            due = self._measure_at[member.backend.name]
        return due is not None and now >= due

    def _works(self, name: str) -> bool:
        return self._members[name].usable

    def _is_probed(self, member: PoolMember) -> bool:
        return any(task.get_name() == member.backend.name for task in self._probing)

    def _probe(self, member: PoolMember, plan: Plan) -> None:
        task = asyncio.create_task(self._look(member, plan), name=member.backend.name)
        self._probing.add(task)
        task.add_done_callback(self._probing.discard)

    async def _look(self, member: PoolMember, plan: Plan) -> None:
        try:
            trial = await attempt(member.dialect, plan, speak=False)
        except DialError as error:
            self._failed(member, error.failure, member.dialect.fitted(plan).model)
        else:
            self._worked(member, trial)

    def _worked(self, member: PoolMember, trial: Trial) -> None:
        name = member.backend.name
        configured_ms = trial.opened_ms + trial.configured_ms
        if self._seen[name] is not State.OK:
            log.info("backend_works", extra={"backend": name, "configured_ms": round(configured_ms)})
        self.report_ready(name, configured_ms)
        self._logged.pop(name, None)
        self._measure_at[name] = self._clock() + MEASURE_S if len(self._members) > 1 else float("inf")
        if member.circuit.probe_at is None:
            member.circuit.worked()
        else:
            self._probe_worked(member)

    def _failed(self, member: PoolMember, failure: BackendFailure, model: str) -> None:
        """A probe has failed. That counts like a call's failure, except that no caller noticed it."""
        name, now = member.backend.name, self._clock()
        concerns_others = member.concerns_others(failure)
        self._seen[name] = State.FAILING
        if member.circuit.probe_at is not None:
            # What is no fault of the backend's when a call meets it is none now: it may only lack this model.
            if concerns_others:
                member.circuit.probe_failed(now, fatal=failure.fatal)
            else:
                self._probe_worked(member)
            return
        self._measure_at[name] = now + (PROBE_S if concerns_others else PROBE_FATAL_S)
        if concerns_others and member.circuit.failed(now, fatal=failure.fatal):
            self._log_given_up(member, failure, model)
        elif self._logged.get(name) != failure.text:
            self._logged[name] = failure.text
            log.error("backend_unusable", extra=self._log_fields(member, failure, model))

    def _probe_worked(self, member: PoolMember) -> None:
        if member.circuit.probe_worked(self._clock()):
            log.warning("backend_recovered", extra={"backend": member.backend.name})

    def _log_given_up(self, member: PoolMember, failure: BackendFailure, model: str) -> None:
        log.error("backend_given_up", extra=self._log_fields(member, failure, model))

    def _log_fields(self, member: PoolMember, failure: BackendFailure, model: str) -> dict[str, str]:
        hint = self._advise(failure, member.backend, model)
        fields = {
            "backend": member.backend.name,
            "reason": failure.reason.value,
            "error": failure.text or failure.reason.value,
        }
        return fields | ({"hint": hint} if hint else {})
