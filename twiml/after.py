"""`POST /twiml/after`: what happens to a call after its stream.

Twilio asks after every end of a stream, also after one that we wanted, and does not say why the stream ended
(twilio.md 2.1). So the answer comes from our own record of the call.
"""

import logging
from enum import StrEnum
from typing import assert_never

from starlette.responses import Response

from app.bridge.call_registry import CallRegistry
from app.call.ending import EndReason
from app.call.plan import Plan
from app.regions.routing import Replay
from twiml import documents
from twiml.answers import replay_headers
from twiml.documents import Twiml
from twiml.intake import Incoming, PlanFor
from twiml.replay_policy import ReplayPolicy

log = logging.getLogger("nearcall.twiml")

OVER = frozenset({"completed", "busy", "failed", "no-answer", "canceled"})
"""CallStatus of a call that has ended: nobody listens any more (twilio.md 2.4)."""


class StreamOutcome(StrEnum):
    """What our record says about the last stream of a call."""

    OVER = "over"
    """The call has ended too."""
    DONE = "done"
    """Its last stream ended as it should."""
    BROKEN = "broken"
    """Its last stream ended in the middle of the call, and we know why."""
    LOST = "lost"
    """We still believe the stream is open: its loss has not reached us yet."""
    UNKNOWN = "unknown"
    """No record here: the stream never came, or another machine had it."""


class After:
    """Ends calls, with an apology when the call was cut short."""

    def __init__(
        self, registry: CallRegistry, plan_for: PlanFor, fallback_plan: Plan, replay_policy: ReplayPolicy
    ) -> None:
        """`fallback_plan`: its apology is heard when the number has no tenant any more."""
        self._registry = registry
        self._plan_for = plan_for
        self._fallback_plan = fallback_plan
        self._replay_policy = replay_policy

    def answer(self, incoming: Incoming) -> Response:
        """What the caller hears after the stream, or a replay to a region that may know the call."""
        outcome = self.judge(incoming.call_sid, incoming.form.one("CallStatus"))
        if outcome is StreamOutcome.UNKNOWN and incoming.zone is not None:
            arrival = self._replay_policy.arrival(incoming.zone, incoming.header, incoming.signature)
            to = self._replay_policy.regions_to_ask(arrival, incoming.answered_in)
            if isinstance(to, Replay):
                return replay_headers(self._replay_policy, arrival, to, incoming.signature)
        log.info(
            "stream_ended",
            extra={
                **incoming.ids(),
                "outcome": outcome.value,
                "ending": self._registry.ending(incoming.call_sid),
            },
        )
        match outcome:
            case StreamOutcome.OVER:
                return Twiml(documents.nothing())
            case StreamOutcome.DONE:
                return Twiml(documents.hang_up())
            case StreamOutcome.BROKEN | StreamOutcome.LOST | StreamOutcome.UNKNOWN:
                return Twiml(documents.sorry(self._plan_for(incoming.form.one("To")) or self._fallback_plan))
            case _:
                assert_never(outcome)

    def judge(self, call_sid: str, call_status: str) -> StreamOutcome:
        """How the call's last stream ended. A live stream decides first: an older one may have ended well."""
        if call_status in OVER:
            return StreamOutcome.OVER
        if self._registry.is_live(call_sid):
            return StreamOutcome.LOST
        ending = self._registry.ending(call_sid)
        if ending is None:
            return StreamOutcome.UNKNOWN
        goes_on = ending.owes_apology or ending is EndReason.MOVED
        return StreamOutcome.BROKEN if goes_on else StreamOutcome.DONE
