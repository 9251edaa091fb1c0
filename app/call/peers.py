"""The two peers of a call: whether they are still there, and whether they make sense.

A half-open connection looks like a quiet one; only a ping tells them apart (twilio.md 6.6). Any message is a
sign of life. Knows nothing of what the peers say.
"""

from dataclasses import dataclass, field

from app.call.events import Side
from app.call.limits import BAD_MESSAGES_MAX, PEER_SILENT_S, PING_EVERY_S


@dataclass(slots=True)
class _Connection:
    heard_at: float
    pinged_at: float
    awaiting_pong: bool = False
    rtt_ms: float = 0.0


@dataclass(slots=True)
class Peers:
    """What is known of each peer while its connection is up."""

    _up: dict[Side, _Connection] = field(default_factory=dict)
    _bad: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(Side, 0))

    def connected(self, side: Side, now: float) -> None:
        """A connection is up. It is pinged at once, to learn the round trip."""
        self._up[side] = _Connection(heard_at=now, pinged_at=now - PING_EVERY_S)

    def gone(self, side: Side) -> None:
        """A connection is down."""
        self._up.pop(side, None)

    def heard(self, side: Side, now: float) -> None:
        """Something came from this peer."""
        connection = self._up.get(side)
        if connection is not None:
            connection.heard_at = now

    def pong(self, side: Side, now: float) -> float:
        """Our ping was answered. Returns the round trip in ms: the shortest seen, it has no queues in it."""
        connection = self._up.get(side)
        if connection is None:
            return 0.0
        connection.heard_at = now
        if connection.awaiting_pong:
            connection.awaiting_pong = False
            rtt_ms = (now - connection.pinged_at) * 1000
            connection.rtt_ms = min(connection.rtt_ms or rtt_ms, rtt_ms)
        return connection.rtt_ms

    def bad_message(self, side: Side) -> bool:
        """One more message that makes no sense. True when it was one too many."""
        self._bad[side] += 1
        return self._bad[side] > BAD_MESSAGES_MAX

    def silent(self, now: float) -> Side | None:
        """A peer that counts as gone."""
        for side, connection in self._up.items():
            if now >= connection.heard_at + PEER_SILENT_S:
                return side
        return None

    def pings_due(self, now: float) -> list[Side]:
        """The peers to ping now; they are taken as pinged."""
        due = [side for side, connection in self._up.items() if now >= connection.pinged_at + PING_EVERY_S]
        for side in due:
            self._up[side].pinged_at = now
            self._up[side].awaiting_pong = True
        return due

    def due_at(self) -> float | None:
        """When `silent` or `pings_due` will have something to say."""
        times = [min(c.pinged_at + PING_EVERY_S, c.heard_at + PEER_SILENT_S) for c in self._up.values()]
        return min(times) if times else None
