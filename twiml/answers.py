"""Answers to webhooks that are not documents: replays to another region, and refusals before the body is read."""

import logging
from collections.abc import Callable

from starlette.responses import Response

from app.regions.routing import Arrival, Refuse, Replay
from twiml import documents
from twiml.documents import Twiml
from twiml.intake import Gate
from twiml.replay_policy import Header, ReplayPolicy

log = logging.getLogger("nearcall.twiml")

REPLAY_STATUS = 409
"""Twilio never sees this status: Fly's proxy takes the answer and asks the next region (fly.md 5.1)."""


def replay_headers(replay_policy: ReplayPolicy, arrival: Arrival, to: Replay, signature: str) -> Response:
    """Make Fly ask another region. Logs no id of the call: those do not belong in this region's log."""
    log.info("webhook_replayed", extra={"zone": arrival.zone, "to": to.regions, "reason": to.why.value})
    return Response(status_code=REPLAY_STATUS, headers=replay_policy.replay_headers(arrival, to, signature))


def gate_for_calls(replay_policy: ReplayPolicy) -> Gate:
    """In front of a webhook that begins a call."""
    return _gate(replay_policy, replay_policy.before_new_call)


def gate_for_callbacks(replay_policy: ReplayPolicy) -> Gate:
    """In front of a webhook about a call that exists."""
    return _gate(replay_policy, replay_policy.before_callback)


def _gate(replay_policy: ReplayPolicy, ask: Callable[[Arrival], Replay | Refuse | None]) -> Gate:
    def gate(zone: str, header: Header, signature: str) -> Response | None:
        arrival = replay_policy.arrival(zone, header, signature)
        match ask(arrival):
            case Replay() as to:
                return replay_headers(replay_policy, arrival, to, signature)
            case Refuse(why):
                log.warning("webhook_refused", extra={"zone": zone, "reason": why.value})
                rule = replay_policy.zones[zone]
                return Twiml(documents.sentence(rule.sorry, rule.language))
            case None:
                return None

    return gate
