"""`POST /twiml/voice`: a call comes in, and is answered with a ticket for its stream.

The same webhook may come twice: Twilio repeats one that got no answer. As long as the call's stream has not come,
the answer is the same, byte for byte, and the call is announced once. Twilio's idempotency token is not used: the
CallSid identifies the call too, is signed, and is also in a request that Twilio made anew.
"""

import logging
from collections.abc import Callable, Collection

from starlette.responses import Response

from app.bridge.call_registry import CallRegistry
from app.bridge.expiring import Expiring
from app.bridge.ticket import TICKET_VALID_S, Continuation, Continuations, Ticket, Tickets
from app.call.ending import EndReason
from app.call.plan import Plan
from app.regions.routing import NO_ROOM, Arrival, Reason, Refuse, Replay, Take
from twiml import documents
from twiml.answers import replay_headers
from twiml.documents import Twiml
from twiml.intake import Incoming, PlanFor
from twiml.replay_policy import ReplayPolicy

log = logging.getLogger("nearcall.twiml")

ANSWERS_MAX = 20_000
"""Answers kept for a retry, about 1 kB each. That many calls in a minute are far more than one machine
takes."""


class Voice:
    """Answers calls."""

    def __init__(
        self,
        registry: CallRegistry,
        *,
        tickets: Tickets,
        continuations: Continuations,
        plan_for: PlanFor,
        fallback_plan: Plan,
        replay_policy: ReplayPolicy,
        backends: Collection[str],
        clock: Callable[[], float],
        nonce: Callable[[], str],
        is_broken: Callable[[str], bool],
        answers_max: int = ANSWERS_MAX,
    ) -> None:
        """`fallback_plan`: callers of an unknown number hear its language. `clock`: Unix seconds.

        `backends`: the names of all backends, for which a number's URL may ask. `is_broken`: true for a number of
        a tenant that cannot be used.
        """
        self._registry = registry
        self._tickets = tickets
        self._continuations = continuations
        self._plan_for = plan_for
        self._fallback_plan = fallback_plan
        self._replay_policy = replay_policy
        self._backends = backends
        self._clock = clock
        self._nonce = nonce
        self._is_broken = is_broken
        self._answers: Expiring[tuple[str, str]] = Expiring(TICKET_VALID_S, answers_max)
        """CallSid to zone and document, for as long as its ticket is good."""

    def answer(self, incoming: Incoming) -> Response:
        """A document that opens the stream, or what the caller hears instead, or a replay to another region."""
        now_s = self._clock()
        call_sid = incoming.call_sid
        called = incoming.form.one("To")
        if self._replay_policy.starting:
            # Another machine knows the number's tenant: one of the URL's zone, if the URL names a zone.
            zone = incoming.zone or self._fallback_plan.zone
            elsewhere = self._elsewhere(incoming, zone, self._fallback_plan, known=False)
            if elsewhere is not None:  # otherwise this machine has learnt the tenants a moment ago
                return elsewhere
        plan = self._plan_for(called)
        if plan is None:
            if self._is_broken(called):
                self._refused("tenant_unusable", incoming)
                # The tenant's zone cannot be read either, so the record has no number.
                self._record(incoming, EndReason.NOT_TAKEN, "tenant_unusable", "")
                return Twiml(documents.sorry(self._fallback_plan))
            self._refused("unknown_number", incoming)
            self._record(incoming, EndReason.UNKNOWN_NUMBER, "unknown_number", called)
            return Twiml(documents.not_in_service(self._fallback_plan.language))
        if incoming.zone not in (None, plan.zone):
            # Fail closed: a promise about where a call is handled is kept or the call ends (design: zones).
            self._refused("zone_not_the_tenants", incoming)
            self._record_of(plan, incoming, EndReason.NOT_TAKEN, "zone_not_the_tenants")
            return Twiml(documents.sorry(plan))
        kept = self._answers.get(call_sid, now_s)
        # Not if the tenant has moved to another zone since: its calls may not be handled here any more.
        if kept is not None and kept[0] == plan.zone and self._registry.is_expected(call_sid):
            log.info("call_answered_again", extra=incoming.ids())
            return Twiml(kept[1])
        elsewhere = self._elsewhere(incoming, plan.zone, plan)
        if elsewhere is not None:
            return elsewhere
        shortage = self._registry.tenant_shortage(plan)
        if shortage is not None:
            return self._beyond_tenants_limit(incoming, plan, shortage)

        backend = self._preferred(incoming)
        ticket = Ticket(
            call_sid,
            plan.tenant,
            plan.zone,
            int(now_s),
            self._nonce(),
            backend=backend,
            caller=incoming.form.one("From"),
            called=called,
        )
        continuation = Continuation(
            *(call_sid, plan.tenant, plan.zone, ticket.epoch, ticket.started_ms, plan.language)
        )
        document = documents.connect(
            incoming.base,
            self._tickets.issue(ticket),
            plan.zone,
            self._replay_policy.region,
            self._continuations.issue(continuation),
        )
        if not self._answers.put(call_sid, (plan.zone, document), now_s):
            self._refused("too_many_answers", incoming)
            self._record_of(plan, incoming, EndReason.NOT_TAKEN, "too_many_answers")
            return Twiml(documents.no_room(plan))
        self._registry.expect(ticket, plan)
        self._replay_policy.taken("call")
        log.info("call_answered", extra=incoming.ids())
        return Twiml(document)

    def _preferred(self, incoming: Incoming) -> str:
        """The backend that the URL asks for. An unknown name is ignored: it must not cost the caller the call."""
        if incoming.backend in {"", *self._backends}:
            return incoming.backend
        known = ", ".join(sorted(self._backends))
        fields = {"asked": incoming.backend[:32], "known": known}
        log.warning("unknown_backend_ignored", extra={**incoming.ids(), **fields})
        return ""

    def _record_of(self, plan: Plan, incoming: Incoming, reason: EndReason, why: str) -> None:
        """Record a call that was not taken, if its calls may be handled here: other zones have no ledger here."""
        if self._replay_policy.allows(plan.zone):
            numbers = incoming.form.one("From"), incoming.form.one("To")
            self._registry.record_refused_call(
                incoming.call_sid, plan.zone, plan.tenant, reason, f"webhook {why}", *numbers
            )

    def _record(self, incoming: Incoming, reason: EndReason, why: str, called: str) -> None:
        """The same for a call without a known tenant: nothing says where the caller's number may be kept."""
        zone = incoming.zone or self._fallback_plan.zone
        self._registry.record_refused_call(incoming.call_sid, zone, "", reason, f"webhook {why}", "", called)

    def _refused(self, reason: str, incoming: Incoming) -> None:
        self._replay_policy.refused(reason)
        _log_refused(reason, incoming)

    def _beyond_tenants_limit(self, incoming: Incoming, plan: Plan, why: Reason) -> Response:
        """Send the call on if another machine may have room for this tenant, or refuse it."""
        if why is Reason.TENANT_FULL:
            arrival = self._arrival(incoming, plan.zone)
            to = self._replay_policy.send_on(arrival, why)
            if isinstance(to, Replay):
                return replay_headers(self._replay_policy, arrival, to, incoming.signature)
            _log_refused(why.value, incoming)
        else:
            self._refused(why.value, incoming)
        self._record_of(plan, incoming, EndReason.TENANT_FULL, why.value)
        return Twiml(documents.no_room(plan))

    def _arrival(self, incoming: Incoming, zone: str) -> Arrival:
        return self._replay_policy.arrival(zone, incoming.header, incoming.signature, incoming.twilio_region)

    def _elsewhere(self, incoming: Incoming, zone: str, plan: Plan, *, known: bool = True) -> Response | None:
        """A replay to another region, or a refusal in the words of `plan`; None when the call can be taken here.

        `known`: `plan` is the plan of the call's tenant.
        """
        arrival = self._arrival(incoming, zone)
        match self._replay_policy.decide(arrival):
            case Replay() as to:
                return replay_headers(self._replay_policy, arrival, to, incoming.signature)
            case Refuse(why):
                _log_refused(why.value, incoming)
                if known:
                    self._record_of(plan, incoming, EndReason.NOT_TAKEN, why.value)
                return Twiml(documents.no_room(plan) if why in NO_ROOM else documents.sorry(plan))
            case Take():
                return None


def _log_refused(reason: str, incoming: Incoming) -> None:
    log.warning("call_refused", extra={**incoming.ids(), "reason": reason, "zone": incoming.zone})
