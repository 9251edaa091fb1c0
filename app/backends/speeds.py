"""Ranks the backends by how soon they take a call from here, as probes and calls have measured.

The rank decides between backends that the table of distances cannot tell apart. The measured time is that from the
beginning of the dialling to a configured session. The module is pure.
"""

from collections.abc import Iterable

NEWEST_SHARE = 0.25
"""The weight of the newest time against all before: a slow minute shows, a single slow answer does not."""
CLEARLY_MS = 50.0
CLEARLY_SHARE = 0.2
"""One backend overtakes another when it is faster by both. Less may be chance, and calls would go to and fro."""


class Speeds:
    """The order of some backends. Two of them change places only when one is clearly better than the other."""

    def __init__(self, names: Iterable[str]) -> None:
        self._order = sorted(names)
        """Best first; by name as long as nothing is measured."""
        self._ms: dict[str, float] = {}

    def rank(self, name: str) -> int:
        """The place of a backend, the best is 0."""
        return self._order.index(name)

    def measured(self, name: str, ms: float) -> None:
        """A probe or a call of this backend took so long."""
        before = self._ms.get(name, ms)
        self._ms[name] = before + NEWEST_SHARE * (ms - before)
        self._sort()

    def _sort(self) -> None:
        """Sort the backends with a time among themselves; the others keep their places."""
        timed: list[str] = []
        for name in filter(self._ms.__contains__, self._order):
            worse = (place for place, other in enumerate(timed) if self._clearly_better(name, other))
            timed.insert(next(worse, len(timed)), name)
        following = iter(timed)
        self._order = [next(following) if name in self._ms else name for name in self._order]

    def _clearly_better(self, name: str, other: str) -> bool:
        gain_ms = self._ms[other] - self._ms[name]
        return gain_ms >= max(CLEARLY_MS, CLEARLY_SHARE * self._ms[other])
