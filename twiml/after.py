"""`POST /twiml/after` and `POST /twiml/resume`: what happens to a call after its stream.

Twilio asks `/twiml/after` after every end of a stream, also after one that we wanted, and does not say why the
stream ended (twilio.md 2.1). So the answer comes from our own record of the call, and from the ledger. It asks
`/twiml/resume` when a machine that stops has redirected a live call there; the answer is found in the same way.
"""

import logging
from collections.abc import Callable
from enum import StrEnum

from starlette.responses import Response

from app.bridge.call_registry import CallRegistry
from app.bridge.ticket import BadContinuation, Continuations
from app.call.ending import EndReason
from twiml import documents
from twiml.documents import Twiml
from twiml.intake import Incoming
from twiml.resume import Resumer

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
    LIVE = "live"
    """A later stream of the call is open: this question is about an older one."""
    UNKNOWN = "unknown"
    """No record here: the stream never came, or another machine had it."""


class After:
    """Decides whether a call is over, and has it resumed when it is not."""

    def __init__(
        self,
        registry: CallRegistry,
        continuations: Continuations,
        resumer: Resumer,
        clock: Callable[[], float],
    ) -> None:
        """`clock`: Unix seconds."""
        self._registry = registry
        self._continuations = continuations
        self._resumer = resumer
        self._clock = clock

    async def answer(self, incoming: Incoming) -> Response:
        """The next stream of the call, what the caller hears instead, or a replay to another region."""
        return await self._answer(incoming, None)

    async def answer_moved(self, incoming: Incoming) -> Response:
        """The same for a call that a machine has redirected here.

        That machine drains. It is not asked how the leg ended, also when the ledger does not know: it would send
        the question on, and with two regions there is nobody left to send it to.
        """
        return await self._answer(incoming, EndReason.MOVED)

    async def _answer(self, incoming: Incoming, by_default: EndReason | None) -> Response:
        """`by_default`: how the leg ended, if this machine has no record of it."""
        call_sid = incoming.call_sid
        if incoming.form.one("CallStatus") in OVER:
            _log_ended(incoming, StreamOutcome.OVER, self._registry.ending(call_sid))
            return Twiml(documents.nothing())
        continuation = None
        if incoming.continuation:
            try:
                continuation = self._continuations.read(incoming.continuation, self._clock())
            except BadContinuation as bad:
                return self._resumer.refuse(incoming, f"continuation_{bad.reason}")
            if continuation.call_sid != call_sid:
                return self._resumer.refuse(incoming, "continuation_of_other_call")
        epoch = 0 if continuation is None else continuation.epoch
        live_epoch = self._registry.live_epoch(call_sid)
        if live_epoch is not None and live_epoch <= epoch:
            # We believe that the stream is open. Its records are made at once, and count in what follows.
            log.info("stream_lost", extra=incoming.ids())
            self._registry.lose_stream(call_sid)
        ending = self._registry.ending(call_sid, epoch) or by_default
        outcome = self.judge(call_sid, ending)
        _log_ended(incoming, outcome, ending)
        if outcome is StreamOutcome.DONE:
            return Twiml(documents.hang_up())
        return await self._resumer.answer(incoming, continuation, ending)

    def judge(self, call_sid: str, ending: EndReason | None) -> StreamOutcome:
        """How the call's last stream ended. A live stream decides first: an older one may have ended well."""
        if self._registry.is_live(call_sid):
            return StreamOutcome.LIVE
        if ending is None:
            return StreamOutcome.UNKNOWN
        goes_on = ending.owes_apology or ending is EndReason.MOVED
        return StreamOutcome.BROKEN if goes_on else StreamOutcome.DONE


def _log_ended(incoming: Incoming, outcome: StreamOutcome, ending: EndReason | None) -> None:
    log.info("stream_ended", extra={**incoming.ids(), "outcome": outcome.value, "ending": ending})
