"""Resumes a call whose stream was lost, on whichever machine of its zone Twilio asks.

The machine that had the call may be dead, so everything comes from the ledger and from the continuation in the
URL. The ledger's history decides whether the call goes on, and how; the continuation stands in for it while no
database answers. What the ledger contradicts is never resumed.

One stream at most comes of one question: Twilio may repeat it, and gets the same document.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.responses import Response

from app.bridge.call_registry import CallRegistry, Recall
from app.bridge.expiring import Expiring
from app.bridge.ticket import TICKET_VALID_S, Continuation, Continuations, Ticket, Tickets
from app.call.continuity import Recollection
from app.call.ending import EndReason
from app.call.plan import Plan
from app.regions.routing import Arrival, Refuse, Replay
from twiml import documents
from twiml.answers import replay_headers
from twiml.documents import Twiml
from twiml.intake import Incoming, PlanFor
from twiml.replay_policy import ReplayPolicy

log = logging.getLogger("nearcall.twiml")

LEGS_LATELY_MAX = 3
"""A call that needs more legs than this in a minute will not do better in the next one."""

LATELY_MS = 60_000


@dataclass(frozen=True, slots=True)
class _Refused:
    """The call is not resumed: the caller hears a sentence, or the end of a call that was over."""

    why: str
    contradiction: str = ""
    """What the ledger says against itself, if that is why."""


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """Another region is to be asked."""

    arrival: Arrival
    to: Replay


@dataclass(frozen=True, slots=True)
class _Resumed:
    """The call goes on here."""

    epoch: int
    document: str


_Outcome = _Refused | _Elsewhere | _Resumed

_WELL_ENDED = "well_ended"


class Resumer:
    """Resumes calls."""

    def __init__(
        self,
        registry: CallRegistry,
        *,
        tickets: Tickets,
        continuations: Continuations,
        recall: Recall,
        plan_of: Callable[[str], Plan | None],
        plan_for: PlanFor,
        fallback_plan: Plan,
        replay_policy: ReplayPolicy,
        clock: Callable[[], float],
        nonce: Callable[[], str],
        answers_max: int,
    ) -> None:
        """`plan_of` finds a tenant by its name, `plan_for` by the dialled number. `clock`: Unix seconds.

        `fallback_plan`: its apology is heard when the call has no tenant any more.
        """
        self._continuations = continuations
        self._registry = registry
        self._tickets = tickets
        self._recall = recall
        self._plan_of = plan_of
        self._plan_for = plan_for
        self._fallback_plan = fallback_plan
        self._replay_policy = replay_policy
        self._clock = clock
        self._nonce = nonce
        self._answers: Expiring[_Resumed] = Expiring(TICKET_VALID_S, answers_max)
        """By call and epoch, for as long as the ticket in it is good."""
        self._deciding: dict[str, asyncio.Task[_Outcome]] = {}

    async def answer(
        self, incoming: Incoming, continuation: Continuation | None, ending: EndReason | None
    ) -> Response:
        """A document that opens the next stream, or what the caller hears instead, or a replay.

        `continuation`: that of the leg that is over; None: the version before answered it. `ending`: how that leg
        ended, if this machine knows it.
        """
        call_sid = incoming.call_sid
        key = f"{call_sid} {0 if continuation is None else continuation.epoch}"
        kept = self._answers.get(key, self._clock())
        if kept is not None and self._still_good(call_sid, kept):
            log.info("call_answered_again", extra=incoming.ids())
            return Twiml(kept.document)
        deciding = self._deciding.get(key)
        if deciding is None:
            deciding = asyncio.get_running_loop().create_task(self._decide(key, incoming, continuation, ending))
            self._deciding[key] = deciding
            deciding.add_done_callback(lambda _: self._deciding.pop(key, None))
        # Shielded: whoever asks again waits for the same answer.
        match await asyncio.shield(deciding):
            case _Resumed(document=document):
                return Twiml(document)
            case _Elsewhere(arrival, to):
                return replay_headers(self._replay_policy, arrival, to, incoming.signature)
            case _Refused() as refused:
                return self._refuse(incoming, continuation, refused)

    def refuse(self, incoming: Incoming, why: str) -> Response:
        """The apology, for a question that is not to be answered by a resume."""
        return self._refuse(incoming, None, _Refused(why))

    def _still_good(self, call_sid: str, kept: _Resumed) -> bool:
        return self._registry.is_expected(call_sid) or self._registry.live_epoch(call_sid) == kept.epoch

    def _refuse(self, incoming: Incoming, continuation: Continuation | None, refused: _Refused) -> Response:
        if refused.why == _WELL_ENDED:
            log.info("call_was_over", extra=incoming.ids())
            return Twiml(documents.hang_up())
        if refused.contradiction:
            self._replay_policy.note("history_refused")
            log.error("history_refused", extra={**incoming.ids(), "contradiction": refused.contradiction})
        self._replay_policy.note("resume_refused")
        log.warning("resume_refused", extra={**incoming.ids(), "reason": refused.why})
        plan = self._plan_for(incoming.form.one("To")) or self._fallback_plan
        if continuation is not None:
            plan = self._plan_of(continuation.tenant) or plan
        return Twiml(documents.sorry(plan))

    # --- The decision ----------------------------------------------------------------------------

    async def _decide(
        self, key: str, incoming: Incoming, continuation: Continuation | None, ending: EndReason | None
    ) -> _Outcome:
        began_s = self._clock()
        zone = self._zone(incoming, continuation)
        refused = self._not_taken(incoming, zone)
        if refused is not None:
            return refused
        plan = self._plan(incoming, continuation)
        if plan is None:
            return _Refused("tenant_gone")
        if plan.zone != zone or (continuation is not None and continuation.zone != zone):
            return _Refused("tenant_moved")
        if ending is not None and ending.is_backend_fault:
            return _Refused("backend_fault")  # every backend that may have the call was tried here

        found = await self._recall(zone, incoming.call_sid, plan.tenant)
        # Meanwhile this machine may have begun to drain, or the call may have gone on here.
        refused = self._not_taken(incoming, zone)
        if refused is not None:
            return refused
        if self._registry.is_live(incoming.call_sid):
            return _Refused("stale")
        if found.troubles:
            self._replay_policy.note("history_degraded")
        if ending is None:
            elsewhere = self._ask_elsewhere(incoming, zone, continuation, found)
            if elsewhere is not None:
                return elsewhere
        why_not = self._why_not(found, continuation, round(self._clock() * 1_000))
        if why_not is not None:
            return why_not
        return self._resume(key, incoming, plan, continuation, found, began_s)

    def _zone(self, incoming: Incoming, continuation: Continuation | None) -> str:
        if incoming.zone is not None:
            return incoming.zone
        plan = self._plan_for(incoming.form.one("To")) or self._fallback_plan
        return plan.zone if continuation is None else continuation.zone

    def _plan(self, incoming: Incoming, continuation: Continuation | None) -> Plan | None:
        if continuation is None:
            return self._plan_for(incoming.form.one("To"))
        plan = self._plan_of(continuation.tenant)
        return None if plan is None else replace(plan, language=continuation.language)

    def _not_taken(self, incoming: Incoming, zone: str) -> _Elsewhere | _Refused | None:
        """Why this machine takes no call of the zone now, if it does not."""
        arrival = self._arrival(incoming, zone)
        match self._replay_policy.decide(arrival):
            case Replay() as to:
                return _Elsewhere(arrival, to)
            case Refuse(why):
                return _Refused(why.value)
            case _:
                return None

    def _arrival(self, incoming: Incoming, zone: str) -> Arrival:
        return self._replay_policy.arrival(zone, incoming.header, incoming.signature, incoming.twilio_region)

    def _ask_elsewhere(
        self, incoming: Incoming, zone: str, continuation: Continuation | None, found: Recollection
    ) -> _Elsewhere | None:
        """Another region to ask first, about a call that the ledger does not know.

        Of such a call nothing is recorded, but the machine that answered it may know why its stream never came. A
        call that the ledger knows is resumed at once: asking a machine that is dead takes two seconds.
        """
        if incoming.zone is None or found.contradiction or found.past is not None:
            return None
        arrival = self._arrival(incoming, zone)
        to = self._replay_policy.regions_to_ask(arrival, incoming.answered_in)
        if not isinstance(to, Replay):
            return None
        if found.one_machine or (continuation is None and not found.complete):
            return _Elsewhere(arrival, to)  # any of them may know the call
        if incoming.answered_in not in to.regions:
            return None
        return _Elsewhere(arrival, replace(to, regions=(incoming.answered_in,)))

    def _why_not(self, found: Recollection, continuation: Continuation | None, now_ms: int) -> _Refused | None:
        if found.contradiction:
            return _Refused("implausible_history", found.contradiction)
        past = found.past
        if past is None and continuation is None:
            return _Refused("unknown_call")
        if past is not None:
            reason = past.end_reason
            if not past.unfinished:
                if reason is not None and reason.owes_apology:
                    return _Refused(reason.value)
                return _Refused(_WELL_ENDED)
            if reason is not None and reason.is_backend_fault:
                return _Refused("backend_fault")
            if past.legs_lately > LEGS_LATELY_MAX:
                return _Refused("too_many_resumes")
        if continuation is not None:
            lately = [at_ms for at_ms in continuation.resumed_ms if at_ms > now_ms - LATELY_MS]
            if len(lately) >= LEGS_LATELY_MAX:
                return _Refused("too_many_resumes")
            no_stream = found.complete if past is None else not past.had_stream
            if lately and no_stream:
                # Whatever keeps its streams away, such as a wrong token, would keep the next one away too.
                return _Refused("stream_never_came")
        return None

    def _resume(
        self,
        key: str,
        incoming: Incoming,
        plan: Plan,
        continuation: Continuation | None,
        found: Recollection,
        began_s: float,
    ) -> _Resumed | _Refused:
        now_s = self._clock()
        past, form = found.past, incoming.form
        # Without either the call is not resumed, see `_why_not`.
        begun_ms = round(now_s * 1_000) if past is None else past.started_ms
        before = continuation or Continuation(
            *(incoming.call_sid, plan.tenant, plan.zone, 0, begun_ms, plan.language)
        )
        started_ms = before.started_ms if past is None else past.started_ms
        epoch = max(before.epoch, 0 if past is None else past.epoch) + 1
        ticket = Ticket(
            incoming.call_sid,
            plan.tenant,
            plan.zone,
            int(now_s),
            self._nonce(),
            resumes=True,
            caller=(past.caller if past is not None else "") or form.one("From"),
            called=(past.called if past is not None else "") or form.one("To"),
            epoch=epoch,
            began_ms=started_ms,
        )
        document = documents.connect(
            incoming.base,
            self._tickets.issue(ticket),
            plan.zone,
            self._replay_policy.region,
            self._continuations.issue(before.resumed(epoch, round(now_s * 1_000))),
        )
        resumed = _Resumed(epoch, document)
        if not self._answers.put(key, resumed, now_s):
            return _Refused("too_many_answers")
        history = found.history(started_ms)
        self._registry.expect(ticket, plan, history)
        self._replay_policy.taken("call")
        self._replay_policy.note("call_resumed")
        log.info(
            "call_resumed",
            extra={
                **incoming.ids(),
                "source": found.source,
                "epoch": epoch,
                "legs": 0 if past is None else past.legs,
                "turns": len(history.entries),
                "owed": history.owed.value,
                "spooled": found.spooled,
                "took_ms": round((self._clock() - began_s) * 1_000),
            },
        )
        return resumed
