"""How much of the agent's audio a client has played that plays it in real time as it arrives (realtime.md 2.2).

That is what `auto_truncate` assumes. Time is an argument; nothing here knows a session.
"""

import math


class Playback:
    """What was sent and, by the assumption, is not yet played: a queue that never runs dry early."""

    def __init__(self) -> None:
        self._items: list[tuple[str, float]] = []  # id and milliseconds sent of it, oldest first
        self._ends_at_ms = -math.inf

    def sent(self, item_id: str, ms: float, now_ms: float) -> None:
        """So much more audio of an item has left."""
        if self._ends_at_ms <= now_ms:
            self._ends_at_ms = now_ms
            # What has played to its end is not cut any more; an item that goes on keeps its count.
            self._items = [each for each in self._items if each[0] == item_id]
        self._ends_at_ms += ms
        if self._items and self._items[-1][0] == item_id:
            ms += self._items.pop()[1]
        self._items.append((item_id, ms))

    def cut(self, now_ms: float) -> list[tuple[str, int]]:
        """Stops: the items not played to their end, oldest first, with the whole milliseconds played of each."""
        unplayed_ms = max(0.0, self._ends_at_ms - now_ms)
        found: list[tuple[str, int]] = []
        for item_id, ms in reversed(self._items):
            if unplayed_ms <= 0:
                break
            found.append((item_id, math.floor(max(0.0, ms - unplayed_ms))))
            unplayed_ms -= ms
        self._items.clear()
        self._ends_at_ms = -math.inf
        return found[::-1]
