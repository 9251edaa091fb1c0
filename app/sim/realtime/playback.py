"""Computes how much agent audio a client has played, if it plays in real time on arrival (realtime.md 2.2).

`auto_truncate` assumes this. Time is an argument.
"""

import math


class Playback:
    """The audio that was sent and, by this assumption, is not played yet."""

    def __init__(self) -> None:
        self._items: list[tuple[str, float]] = []  # id and milliseconds sent of it, oldest first
        self._ends_at_ms = -math.inf

    def sent(self, item_id: str, ms: float, now_ms: float) -> None:
        """Counts more audio of an item as sent."""
        if self._ends_at_ms <= now_ms:
            self._ends_at_ms = now_ms
            # What has played to its end is not cut any more; an item that goes on keeps its count.
            self._items = [each for each in self._items if each[0] == item_id]
        self._ends_at_ms += ms
        if self._items and self._items[-1][0] == item_id:
            ms += self._items.pop()[1]
        self._items.append((item_id, ms))

    def cut(self, now_ms: float) -> list[tuple[str, int]]:
        """Stops. Returns the items not played to their end, oldest first, with the milliseconds played of each."""
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
