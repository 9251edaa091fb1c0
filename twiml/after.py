"""`POST /twiml/after`: what happens to a call whose stream is gone.

Twilio asks after every end of the stream, also after one that we wanted, and says nothing about why
(twilio.md 2.1). So the answer comes from our own record of the call.
"""

import logging
from enum import StrEnum
from typing import assert_never

from starlette.responses import Response

from app.call.plan import Plan
from app.regions.routing import Replay
from twiml import documents
from twiml.answers import replay_headers
from twiml.call_registry import Desk, PlanFor
from twiml.documents import Twiml
from twiml.intake import Incoming
from twiml.replay_policy import ReplayPolicy

log = logging.getLogger("nearcall.twiml")

OVER = frozenset({"completed", "busy", "failed", "no-answer", "canceled"})
"""CallStatus of a call that nobody listens to any more (twilio.md 2.4)."""


class Verdict(StrEnum):
    """What our record says about a call whose stream is gone."""

    OVER = "over"
    """There is no call any more."""
    DONE = "done"
    """Its last stream ended as it should."""
    BROKEN = "broken"
    """Its last stream ended in the middle of the call, and we know why."""
    LOST = "lost"
    """We still believe the stream is open: its loss has not reached us yet."""
    UNKNOWN = "unknown"
    """No record here: the stream never came, or another machine had it."""


class After:
    """Ends calls, with a sentence where one is owed."""

    def __init__(self, desk: Desk, plan_for: PlanFor, fallback_plan: Plan, replay_policy: ReplayPolicy) -> None:
        """`fallback_plan`: whose sentence is heard when a number has no tenant any more."""
        self._desk = desk
        self._plan_for = plan_for
        self._fallback_plan = fallback_plan
        self._replay_policy = replay_policy

    def answer(self, incoming: Incoming) -> Response:
        """What the caller hears after the stream, or the way to a region that may know."""
        verdict = self.judge(incoming.call_sid, incoming.form.one("CallStatus"))
        if verdict is Verdict.UNKNOWN and incoming.zone is not None:
            arrival = self._replay_policy.arrival(incoming.zone, incoming.header, incoming.signature)
            to = self._replay_policy.search(arrival, incoming.answered_in)
            if isinstance(to, Replay):
                return replay_headers(self._replay_policy, arrival, to, incoming.signature)
        log.info(
            "stream gone",
            extra={
                **incoming.ids(),
                "verdict": verdict.value,
                "ending": self._desk.ending(incoming.call_sid),
            },
        )
        match verdict:
            case Verdict.OVER:
                return Twiml(documents.nothing())
            case Verdict.DONE:
                return Twiml(documents.hang_up())
            case Verdict.BROKEN | Verdict.LOST | Verdict.UNKNOWN:
                return Twiml(documents.sorry(self._plan_for(incoming.form.one("To")) or self._fallback_plan))
            case _:
                assert_never(verdict)

    def judge(self, call_sid: str, call_status: str) -> Verdict:
        """Which of the verdicts it is. A live stream is asked for first: an older one may have ended well."""
        if call_status in OVER:
            return Verdict.OVER
        if self._desk.live(call_sid):
            return Verdict.LOST
        ending = self._desk.ending(call_sid)
        if ending is None:
            return Verdict.UNKNOWN
        return Verdict.BROKEN if ending.owes_apology else Verdict.DONE
