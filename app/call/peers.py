"""The two peers of a call: whether they are still there, and whether they make sense.

A half-open connection looks like a quiet one; only a ping tells them apart (twilio.md 6.6). Any message is a
sign of life. What the peers say is not looked at here.
"""

from dataclasses import dataclass, field

from app.call.allowance import Allowance
from app.call.events import Side
from app.call.limits import (
    BAD_MESSAGE_FORGIVEN_S,
    BAD_MESSAGES_MAX,
    NEVER,
    PEER_MUTE_S,
    PEER_SILENT_S,
    PING_EVERY_S,
    UNREAD_S,
)


@dataclass(slots=True)
class Peer:
    """One end of the call, and what is known of its connection."""

    side: Side
    heard_at: float = 0.0
    """The last sign of life."""
    rtt_ms: float = 0.0
    """The shortest round trip seen: it has no queues in it. 0 until the first pong."""
    _up: bool = False
    _pinged_at: float = 0.0
    answers_pings: bool = False
    """It has answered one."""
    _awaiting_pong: bool = False
    _read_at: float = 0.0
    """When a pong last came: it read what we had sent."""
    _bad_messages: Allowance = field(
        default_factory=lambda: Allowance(BAD_MESSAGES_MAX, 1 / BAD_MESSAGE_FORGIVEN_S)
    )

    def connected(self, now: float) -> None:
        """The connection is up. It is pinged at once, to learn the round trip."""
        self._up = True
        self.heard_at = self._read_at = now
        self._pinged_at = now - PING_EVERY_S

    def gone(self) -> None:
        """The connection is down."""
        self._up = False

    def pong(self, now: float) -> None:
        """Our ping was answered."""
        self.heard_at = self._read_at = now
        self.answers_pings = True
        if self._awaiting_pong:
            self._awaiting_pong = False
            rtt_ms = (now - self._pinged_at) * 1000
            self.rtt_ms = min(self.rtt_ms or rtt_ms, rtt_ms)

    def stood_still(self, for_s: float) -> None:
        """This process has done nothing for so long. What the peer sent meanwhile is still to be read."""
        self.heard_at += for_s
        self._read_at += for_s
        # Its pong has waited for us: it would be no round trip.
        self._awaiting_pong = False

    def bad_message(self, now: float) -> bool:
        """One more message that makes no sense. True when it was one too many."""
        return not self._bad_messages.take(now)

    def silent(self, now: float) -> bool:
        """True when the peer counts as gone."""
        return self._up and now >= self._gone_at()

    def unread(self, now: float) -> bool:
        """True when the peer used to answer pings and no longer does. Looked at whenever it is pinged."""
        return self._up and self.answers_pings and now >= self._read_at + UNREAD_S

    def ping_due(self, now: float) -> bool:
        """True when it is to be pinged now; it is taken as pinged."""
        if not self._up or now < self._pinged_at + PING_EVERY_S:
            return False
        self._pinged_at = now
        self._awaiting_pong = True
        return True

    def due_at(self) -> float:
        """When `silent` or `ping_due` will have something to say."""
        return min(self._pinged_at + PING_EVERY_S, self._gone_at()) if self._up else NEVER

    def _gone_at(self) -> float:
        return self.heard_at + (PEER_SILENT_S if self.answers_pings else PEER_MUTE_S)
