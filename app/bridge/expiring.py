"""A memory with an end: entries are forgotten after a fixed life, and their number is bounded.

Knows neither what it keeps nor a clock: the time is an argument.
"""

from typing import Generic, TypeVar

V = TypeVar("V")


class Expiring(Generic[V]):
    """Entries by key, each for `life_s` seconds, at most `limit` at a time.

    Nothing is thrown out early to make place: what is kept here guards against doing a thing twice, and a
    guard that forgets under load is none. The caller decides what a full memory means.
    """

    def __init__(self, life_s: float, limit: int) -> None:
        self._life_s = life_s
        self._limit = limit
        self._entries: dict[str, tuple[float, V]] = {}
        """Key to (forgotten at, value), oldest first."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str, now_s: float) -> V | None:
        """What was kept under `key`, None when nothing was or its life is over."""
        entry = self._entries.get(key)
        if entry is None or entry[0] <= now_s:
            return None
        return entry[1]

    def put(self, key: str, value: V, now_s: float) -> bool:
        """Keep `value` under `key`, in place of an older one. False, and nothing kept, when full."""
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
