"""Answers the upgrade of a media stream: opens the stream, replays it to another region, or refuses it."""

import logging
from collections.abc import Callable

from app.bridge.call_registry import CallRegistry
from app.bridge.handover import Denial
from app.bridge.link import Link
from twiml.answers import REPLAY_STATUS
from twiml.gate import Admission, Refusal, ReplayAnswer, UpgradeGate
from twiml.replay_policy import Header, ReplayPolicy

NO_CALL = "no_call"
"""The call has a live stream already, no tenant any more, a tenant that moved to another zone, or no backend."""

log = logging.getLogger("nearcall.twiml")


class UpgradeAnswers:
    """Answers upgrades as the gate decides, and gives admitted streams their calls."""

    def __init__(
        self,
        gate: UpgradeGate,
        registry: CallRegistry,
        replay_policy: ReplayPolicy,
        clock: Callable[[], float],
    ) -> None:
        """`clock`: Unix seconds."""
        self._gate = gate
        self._registry = registry
        self._replay_policy = replay_policy
        self._clock = clock

    def answer(self, target: str, header: Header) -> Link | Denial:
        """Return the listener for the stream, or the status that refuses it. `target`: exactly as received."""
        match self._gate.admit(target, header, self._clock()):
            case Admission() as admission:
                return self._open(admission)
            case ReplayAnswer(headers, reason):
                log.info("stream_replayed", extra={"reason": reason})
                return Denial(REPLAY_STATUS, headers)
            case Refusal(status, reason, ticket):
                log.warning("stream_refused", extra={"status": status, "reason": reason})
                if ticket is not None:
                    self._registry.record_refused_stream(ticket, reason)
                return Denial(status)

    def _open(self, admission: Admission) -> Link | Denial:
        link = self._registry.answer(admission.ticket, admission.twilio_region, admission.trail)
        if link is None:
            self._replay_policy.refused(NO_CALL)
            # Without ids: the tenant may have moved to a zone that does not allow them in this region's log.
            log.warning("stream_refused", extra={"status": 403, "reason": NO_CALL})
            self._registry.record_refused_stream(admission.ticket, NO_CALL)
            return Denial(403)
        self._replay_policy.taken("stream")
        return link
