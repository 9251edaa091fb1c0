"""The configured backends of this process: which one a call gets, how each is doing, and whether it works again.

Every backend has a circuit (app/backends/circuit.py). It is judged by what callers waited for it: for a configured
session and for the first audio. A backend that was given up or is suspected is probed; at a server's start all of
them are, so that a refused key is found before the first caller finds it. Zones are not known by name: their rules
say which backends they allow.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from app.backends.circuit import PROBE_FATAL_S, PROBE_S, Circuit, CircuitState, Standing
from app.backends.dial import DialError
from app.backends.probe import Trial, attempt
from app.backends.speeds import Speeds
from app.backends.table import Backend, Choice, allowed, choose
from app.bridge.session import Service
from app.call import limits
from app.call.ending import EndReason
from app.call.evidence import BackendChoice
from app.call.failure import BackendFailure, Remedy, Scope, not_ready
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
        """True unless the backend was given up or has no key."""
        return self.no_key() is None and self.circuit.usable

    def standing(self, now: float) -> Standing:
        """How early a call tries the backend now."""
        return Standing.GIVEN_UP if self.no_key() is not None else self.circuit.standing(now)

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
    HALF_OPEN = "half_open"
    """It works again, and one call at a time finds out whether calls do."""
    SUSPECT = "suspect"
    """A caller waited too long for it, or it is much slower than another one: it is tried last."""
    RATE_LIMITED = "rate_limited"
    """It refuses calls because it gets too many: it is tried last for some seconds."""
    FAILING = "failing"


TRIED_LATE = frozenset({State.SUSPECT, State.RATE_LIMITED, State.FAILING})
"""The states of a backend that calls pass over where they find another one."""

_SHOWN: Mapping[CircuitState, State] = MappingProxyType(
    {
        CircuitState.HALF_OPEN: State.HALF_OPEN,
        CircuitState.SUSPECT: State.SUSPECT,
        CircuitState.RATE_LIMITED: State.RATE_LIMITED,
        CircuitState.OPEN: State.FAILING,
    }
)


Advise = Callable[[BackendFailure, Backend, str], str | None]
"""Says what an operator can do about a failure of a backend with this model; None when its text says it all."""


def _no_advice(_failure: BackendFailure, _backend: Backend, _model: str) -> None:
    return None


class CallReports:
    """What one call finds out about its backend."""

    def __init__(self, backends: "Backends", name: str, *, greets: bool, trial: bool) -> None:
        """`greets`: the agent speaks first, so that the call is opened only when its first audio has come.

        `trial`: the backend just came back, and this call tries it.
        """
        self._backends = backends
        self._name = name
        self._greets = greets
        self._trial = trial
        self._configured = False
        self._slow = False
        self._heard = False

    def ready(self, ms: float) -> None:
        """The call had its configured session so long after the dialling began."""
        self._configured = True
        self._slow = self._backends.report_session(self._name, ms)
        if not self._greets and not self._slow:
            self._backends.report_quick(self._name)

    def first_audio(self, ms: float) -> None:
        """The first audio came so long after it was asked for."""
        self._heard = True
        too_slow = self._backends.report_first_audio(self._name, ms)
        if not too_slow and not self._slow:
            self._backends.report_quick(self._name)

    def outcome(self, failure: BackendFailure | None) -> None:
        """The call failed by this, or was served well."""
        waited = failure is not None and failure.reason in _CALLER_WAITED and not self._heard
        self._backends.report_outcome(self._name, failure, late=waited, mute=waited and self._configured)
        if self._trial and failure is None and self._backends.states[self._name] is State.HALF_OPEN:
            # Its caller spoke first, so that there was no greeting to be measured.
            self._backends.report_quick(self._name)


_CALLER_WAITED = frozenset({EndReason.BACKEND_NOT_READY, EndReason.BACKEND_SILENT})
"""How a call ends, or leaves a backend, after its caller has waited for nothing."""


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
        self._mute: set[str] = set()
        """Backends that configured a session and then did not speak. Their probes have them speak."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all backends, usable or not."""
        return tuple(self._members)

    @property
    def states(self) -> dict[str, State]:
        """How each backend is doing, by its name."""
        return {name: self._state(member) for name, member in self._members.items()}

    def _state(self, member: PoolMember) -> State:
        if member.no_key() is not None:
            return State.FAILING
        return _SHOWN.get(member.circuit.state(self._clock()), self._seen[member.backend.name])

    def serves(self, rule: ZoneRule) -> bool:
        """True when a backend that the zone allows is configured."""
        return bool(allowed((member.backend for member in self._members.values()), rule))

    def usable(self, rule: ZoneRule) -> bool:
        """True when a backend that the zone allows was not given up. One that is only slow is better than none."""
        return any(member.usable and member.backend.satisfies(rule) for member in self._members.values())

    def service(
        self, wish: Plan, rule: ZoneRule, facts: Facts, tried: Collection[str], *, working: bool
    ) -> Service | None:
        """Choose the backend for the call of these `facts`, which name no backend yet: see `choose`.

        The call counts as the one that tries a backend that just came back.
        """
        chosen = self.choose(wish, rule, tried, working=working)
        if chosen is None:
            return None
        choice, dialect = chosen
        backend, plan = choice.backend, dialect.fitted(wish)
        because = "next" if tried else choice.why
        promises = tuple(sorted(backend.entry.residency))
        trial = self._members[backend.name].circuit.chosen(self._clock())
        reports = CallReports(self, backend.name, greets=bool(plan.greeting), trial=trial)
        return Service(
            plan,
            replace(
                facts, backend=backend.name, choice=BackendChoice(backend.name, plan.voice, promises, because)
            ),
            spoken_in(dialect, backend.entry.tuning.audio),
            reports.outcome,
            reports.ready,
            reports.first_audio,
        )

    def choose(
        self, plan: Plan, rule: ZoneRule, tried: Collection[str] = (), *, working: bool = False
    ) -> tuple[Choice, Dialect] | None:
        """Choose a backend for a call; None when the zone allows none but those that were tried.

        Backends that were slow for a caller, or that refuse calls for the moment, come after all others whatever
        the tenant prefers. After those come the ones that were given up, because the caller of this method has
        decided to take the call. With `working` neither are chosen: the present backend is only late.
        """
        now = self._clock()
        standings = {name: member.standing(now) for name, member in self._members.items() if name not in tried}
        backends = [self._members[name].backend for name in standings]
        last = Standing.BACK if working else Standing.GIVEN_UP
        for standing in sorted({each for each in standings.values() if each <= last}):
            better = frozenset(name for name, each in standings.items() if each <= standing)
            choice = choose(backends, rule, self._region, plan.backends, better.__contains__, self._speeds.rank)
            if choice is not None:
                return choice, self._members[choice.backend.name].dialect
        return None

    # --- What calls report -------------------------------------------------------------------

    def report_outcome(
        self, name: str, failure: BackendFailure | None, *, late: bool = False, mute: bool = False
    ) -> None:
        """Take in how a call did with this backend: by what it failed, or None when it was served well.

        `late`: it failed by having the caller wait for the opening; `mute`: after its session was configured.
        """
        member, now = self._members[name], self._clock()
        if failure is None:
            member.circuit.worked()
            self._seen[name] = State.OK
            return
        if not member.concerns_others(failure):
            return
        model = member.backend.entry.tuning.model
        if failure.remedy is Remedy.RATE_LIMIT:
            entered = member.circuit.limited(now, failure.retry_after_s)
        elif late:
            if mute:
                self._mute.add(name)
            entered = member.circuit.late(now)
        else:
            entered = member.circuit.failed(now, fatal=failure.fatal)
        self._log_entered(member, entered, failure, model)

    def report_session(self, name: str, ms: float) -> bool:
        """Take in that a call had its configured session after so many ms. True when that was much too slow."""
        self._seen[name] = State.OK
        slow = self._measured(name, ms)
        if slow:
            member = self._members[name]
            entered = member.circuit.slow(self._clock())
            self._log_entered(member, entered, _slow_session(ms), member.backend.entry.tuning.model)
        return slow

    def report_first_audio(self, name: str, ms: float) -> bool:
        """Take in that the first audio came after so many ms. True when another backend is to be preferred."""
        self._speeds.measured_first_audio(name, ms)
        if ms < limits.GREETING_LATE_S * 1000 or len(self._members) == 1:
            return False  # a model that thinks before it speaks, and no other one to be heard sooner
        member = self._members[name]
        self._mute.add(name)
        entered = member.circuit.slow(self._clock())
        failure = not_ready(f"its first audio took {ms:.0f} ms")
        self._log_entered(member, entered, failure, member.backend.entry.tuning.model)
        return True

    def report_quick(self, name: str) -> None:
        """Take in that a call was opened in good time."""
        self._log_entered(self._members[name], self._members[name].circuit.quick(self._clock()))

    def _measured(self, name: str, ms: float) -> bool:
        """Note the time of a session. True when it was much slower than another backend that takes calls."""
        now = self._clock()
        others = [other for other, member in self._members.items() if member.standing(now) is Standing.FIRST]
        slow = self._speeds.is_slow(name, ms, others)
        self._speeds.measured(name, ms)
        return slow

    # --- Probes ------------------------------------------------------------------------------

    async def watch(self, plan: Plan, *, try_all: bool = False) -> None:
        """Probe backends that were given up or are suspected, as calls with this plan would find them.

        Ends when it is cancelled.

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

    def _is_probed(self, member: PoolMember) -> bool:
        return any(task.get_name() == member.backend.name for task in self._probing)

    def _probe(self, member: PoolMember, plan: Plan) -> None:
        task = asyncio.create_task(self._look(member, plan), name=member.backend.name)
        self._probing.add(task)
        task.add_done_callback(self._probing.discard)

    async def _look(self, member: PoolMember, plan: Plan) -> None:
        began_at = self._clock()
        try:
            trial = await attempt(member.dialect, plan, speak=member.backend.name in self._mute)
        except DialError as error:
            late = self._clock() - began_at >= limits.BACKEND_LATE_S
            self._failed(member, error.failure, member.dialect.fitted(plan).model, late=late)
        else:
            self._worked(member, trial)

    def _worked(self, member: PoolMember, trial: Trial) -> None:
        name, now = member.backend.name, self._clock()
        configured_ms = trial.opened_ms + trial.configured_ms
        if self._seen[name] is not State.OK:
            log.info("backend_works", extra={"backend": name, "configured_ms": round(configured_ms)})
        self._seen[name] = State.OK
        self._logged.pop(name, None)
        self._measure_at[name] = now + MEASURE_S if len(self._members) > 1 else float("inf")
        failure = _slow_session(configured_ms) if self._measured(name, configured_ms) else None
        if trial.first_audio_ms is not None and trial.first_audio_ms >= limits.GREETING_LATE_S * 1000:
            failure = not_ready(f"its first audio took {trial.first_audio_ms:.0f} ms")
        entered = member.circuit.probe_worked(now, slow=failure is not None)
        self._log_entered(member, entered, failure, member.backend.entry.tuning.model)

    def _failed(self, member: PoolMember, failure: BackendFailure, model: str, *, late: bool) -> None:
        """A probe has failed. That counts like a call's failure, except that no caller noticed it."""
        name, now = member.backend.name, self._clock()
        concerns_others = member.concerns_others(failure)
        self._seen[name] = State.FAILING
        self._measure_at[name] = now + (PROBE_S if concerns_others else PROBE_FATAL_S)
        entered = None
        if concerns_others and failure.remedy is Remedy.RATE_LIMIT:
            entered = member.circuit.probe_limited(now, failure.retry_after_s)
        elif concerns_others:
            entered = member.circuit.probe_failed(now, fatal=failure.fatal, late=late)
        elif member.circuit.probe_at is not None:
            # What is no fault of the backend's when a call meets it is none now: it may only lack this model.
            entered = member.circuit.probe_worked(now)
        if entered is not None:
            self._log_entered(member, entered, failure, model)
        elif member.circuit.probe_at is None and self._logged.get(name) != failure.text:
            self._logged[name] = failure.text
            log.error("backend_unusable", extra=self._log_fields(member, failure, model))

    # --- The log -----------------------------------------------------------------------------

    def _log_entered(
        self,
        member: PoolMember,
        entered: CircuitState | None,
        failure: BackendFailure | None = None,
        model: str = "",
    ) -> None:
        """Log the state that a backend's circuit has come to; None: it has stayed as it was."""
        name = member.backend.name
        fields = {"backend": name} if failure is None else self._log_fields(member, failure, model)
        match entered:
            case None:
                pass
            case CircuitState.OPEN:
                log.error("backend_given_up", extra=fields)
            case CircuitState.SUSPECT:
                log.warning("backend_suspected", extra=fields)
            case CircuitState.RATE_LIMITED:
                log.warning("backend_rate_limited", extra=fields)
            case CircuitState.HALF_OPEN:
                log.info("backend_on_trial", extra={"backend": name})
            case CircuitState.CLOSED:
                self._mute.discard(name)
                log.warning("backend_recovered", extra={"backend": name})

    def _log_fields(self, member: PoolMember, failure: BackendFailure, model: str) -> dict[str, str]:
        hint = self._advise(failure, member.backend, model)
        fields = {
            "backend": member.backend.name,
            "reason": failure.reason.value,
            "error": failure.text or failure.reason.value,
        }
        return fields | ({"hint": hint} if hint else {})


def _slow_session(ms: float) -> BackendFailure:
    return not_ready(f"its session took {ms:.0f} ms, much more than another backend's")
