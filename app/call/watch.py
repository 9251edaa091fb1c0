"""Are both peers still there? Pings, round trips, and the time since each was last heard.

A half-open connection looks like a quiet one; only a ping tells them apart (twilio.md 6.6). Any message is a
sign of life. Knows nothing of what the peers say.
"""

from dataclasses import dataclass

from app.call.limits import PEER_SILENT_S, PING_EVERY_S


@dataclass(slots=True)
class Watch:
    """One connection. Made when it is up."""

    heard_at: float
    pinged_at: float
    awaiting_pong: bool = False
    rtt_ms: float = 0.0

    @classmethod
    def begin(cls, now: float) -> "Watch":
        """A connection that is up since now; it is pinged at once, to learn the round trip."""
        return cls(heard_at=now, pinged_at=now - PING_EVERY_S)

    def due_at(self) -> float:
        """When this watch wants a look."""
        return min(self.pinged_at + PING_EVERY_S, self.heard_at + PEER_SILENT_S)

    def silent(self, now: float) -> bool:
        """True when the peer counts as gone."""
        return now >= self.heard_at + PEER_SILENT_S

    def ping(self, now: float) -> bool:
        """True when a ping is due; it is taken as sent."""
        if now < self.pinged_at + PING_EVERY_S:
            return False
        self.pinged_at = now
        self.awaiting_pong = True
        return True

    def pong(self, now: float) -> None:
        """The peer answered: the shortest round trip seen is the one without queues in it."""
        self.heard_at = now
        if self.awaiting_pong:
            self.awaiting_pong = False
            rtt_ms = (now - self.pinged_at) * 1000
            self.rtt_ms = rtt_ms if self.rtt_ms == 0 else min(self.rtt_ms, rtt_ms)
