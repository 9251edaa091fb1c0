"""A bounded map whose entries expire after a fixed life.

The time is an argument.
"""

from typing import Generic, TypeVar

V = TypeVar("V")


class Expiring(Generic[V]):
    """Entries by key, each for `life_s` seconds, at most `limit` at a time.

    No entry is removed early to make room: entries guard against doing a thing twice, and a guard that forgets
    under load does not work. The caller decides what a full map means.
    """

    def __init__(self, life_s: float, limit: int) -> None:
        self._life_s = life_s
        self._limit = limit
        self._entries: dict[str, tuple[float, V]] = {}
        """Key to (expires at, value), oldest first."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str, now_s: float) -> V | None:
        """The value of `key`; None when there is none or it has expired."""
        entry = self._entries.get(key)
        if entry is None or entry[0] <= now_s:
            return None
        return entry[1]

    def put(self, key: str, value: V, now_s: float) -> bool:
        """Set the value of `key`, in place of an older one. False, and nothing changed, when the map is full."""
        self._forget(now_s)
        if key not in self._entries and len(self._entries) >= self._limit:
            return False
        self._entries.pop(key, None)
        self._entries[key] = (now_s + self._life_s, value)
        return True

    def _forget(self, now_s: float) -> None:
        while self._entries:
            oldest = next(iter(self._entries))
            if self._entries[oldest][0] > now_s:
                return
            del self._entries[oldest]
