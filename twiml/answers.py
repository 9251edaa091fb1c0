"""Answers to webhooks that are no documents: the way to another region, and what a gate says before the body."""

import logging
from collections.abc import Callable

from starlette.responses import Response

from app.regions.routing import Arrival, Refuse, SendOn
from twiml import documents
from twiml.documents import Twiml
from twiml.intake import Gate
from twiml.replay_policy import Header, Passages

log = logging.getLogger("nearcall.twiml")

SENT_ON = 409
"""Never seen by Twilio: Fly takes the answer back and asks the next region (fly.md 5.1)."""


def onward(passages: Passages, arrival: Arrival, to: SendOn, signature: str) -> Response:
    """Has Fly ask another region. Says nothing of whose call it is: that is not for this region's log."""
    log.info("webhook sent on", extra={"zone": arrival.zone, "to": to.regions, "why": to.why.value})
    return Response(status_code=SENT_ON, headers=passages.onward(arrival, to, signature))


def gate_for_calls(passages: Passages) -> Gate:
    """In front of a webhook that begins a call."""
    return _gate(passages, passages.away)


def gate_for_news(passages: Passages) -> Gate:
    """In front of a webhook about a call that exists."""
    return _gate(passages, passages.astray)


def _gate(passages: Passages, ask: Callable[[Arrival], SendOn | Refuse | None]) -> Gate:
    def gate(zone: str, header: Header, signature: str) -> Response | None:
        arrival = passages.arrival(zone, header, signature)
        match ask(arrival):
            case SendOn() as to:
                return onward(passages, arrival, to, signature)
            case Refuse(why):
                log.warning("webhook refused", extra={"zone": zone, "reason": why.value})
                rule = passages.zones[zone]
                return Twiml(documents.sentence(rule.sorry, rule.language))
            case None:
                return None

    return gate
