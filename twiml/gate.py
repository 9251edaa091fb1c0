"""The gate in front of the media socket: who may open one, decided before the 101.

Pure: the time is an argument, nothing is awaited. Of HTTP it knows a status, and of the socket nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from app.bridge.ticket import MEDIA_PREFIX, BadTicket, Nonces, Ticket, Tickets
from app.call.evidence import Route
from app.regions.routing import Refuse, Replay
from twiml.replay_policy import Header, ReplayPolicy
from twiml.signature import Signatures


@dataclass(frozen=True, slots=True)
class Admission:
    """The socket may open, for this call and no other."""

    ticket: Ticket
    twilio_region: str
    """The Twilio region whose token signed the upgrade."""
    trail: Route
    """The way of the request to this machine, for the call's records."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Answer with this status and an empty body: Twilio logs error 31920 (twilio.md 1.6)."""

    status: int
    reason: str
    """One word for logs and counters, never for the peer."""
    ticket: Ticket | None = field(default=None, compare=False)
    """The ticket of the call that has no stream now; None when Twilio did not ask, or the ticket was spent."""


@dataclass(frozen=True, slots=True)
class ReplayAnswer:
    """Answer with these headers: Fly asks another region, and the peer learns nothing."""

    headers: dict[str, str]
    reason: str


class UpgradeGate:
    """Checks an upgrade, the cheapest checks first, so that a stranger's attempt costs little."""

    def __init__(
        self,
        tickets: Tickets,
        nonces: Nonces,
        signatures: Signatures,
        replay_policy: ReplayPolicy,
        full: Callable[[], bool],
        expected: Callable[[str], bool],
        backend_failed: Callable[[Ticket], bool],
    ) -> None:
        """`full`: true when no stream may open. The call of the ticket may already count as expected.

        `expected`: true for the CallSid of a call that was announced here and waits for its stream.
        `backend_failed`: true when the call of this ticket lost its backend here before its stream came.
        """
        self._tickets = tickets
        self._nonces = nonces
        self._signatures = signatures
        self._replay_policy = replay_policy
        self._full = full
        self._expected = expected
        self._backend_failed = backend_failed

    def admit(self, raw_target: str, header: Header, now_s: float) -> Admission | ReplayAnswer | Refusal:
        """Let the upgrade in or say why not. Never raises. Only an admission uses the ticket up.

        `raw_target` is the request target exactly as received.
        """
        signature = header("X-Twilio-Signature")
        text = raw_target.removeprefix(MEDIA_PREFIX)
        if text == raw_target or not text or not {"/", "?"}.isdisjoint(text):
            return Refusal(404, "not_media")
        try:
            ticket = self._tickets.read(text, now_s)
        except BadTicket as bad:
            return Refusal(403, f"ticket_{bad.reason}")
        if self._nonces.spent(ticket, now_s):
            return Refusal(403, "ticket_used")
        signed = self._signatures.upgrade(raw_target, signature)
        if signed is None:
            return Refusal(403, "signature")
        arrival = self._replay_policy.arrival(ticket.zone, header, signature or "", signed.twilio_region)
        decision = self._replay_policy.decide_stream(
            arrival,
            full=self._full(),
            expected=self._expected(ticket.call_sid),
            backend_failed=self._backend_failed(ticket),
        )
        match decision:
            case Replay() as to:
                return ReplayAnswer(self._replay_policy.replay_headers(arrival, to, signature or ""), to.why.value)
            case Refuse(why):
                return Refusal(503, why.value, ticket)
        if not self._nonces.spend(ticket, now_s):
            self._replay_policy.refused("too_many_tickets")
            return Refusal(503, "too_many_tickets", ticket)
        return Admission(ticket, signed.twilio_region, self._replay_policy.trail(arrival))
