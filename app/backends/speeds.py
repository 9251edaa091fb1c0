"""Ranks the backends by how soon they take a call from here, as probes and calls have measured.

The rank decides between backends that the table of distances cannot tell apart. Two times are measured: from the
beginning of the dialling to a configured session, and from the request for the greeting to its first audio. A
caller waits for both, so backends are compared by their sum where both of them have been heard. Most probes do not
have a backend speak, so one without calls has the first time only. The module is pure.
"""

from collections.abc import Collection, Iterable

NEWEST_SHARE = 0.25
"""The weight of the newest time against all before: a slow minute shows, a single slow answer does not."""
CLEARLY_MS = 50.0
CLEARLY_SHARE = 0.2
"""One backend overtakes another when it is faster by both. Less may be chance, and calls would go to and fro."""

SLOWER_MS = 1500.0
"""A session that takes so much longer than another backend's is too slow for a caller who could have the other.
Above a lost SYN (1 s) and above the distance of any two regions."""


class Speeds:
    """The order of some backends. Two of them change places only when one is clearly better than the other."""

    def __init__(self, names: Iterable[str]) -> None:
        self._order = sorted(names)
        """Best first; by name as long as nothing is measured."""
        self._ms: dict[str, float] = {}
        """To a configured session."""
        self._first_audio_ms: dict[str, float] = {}

    def rank(self, name: str) -> int:
        """The place of a backend, the best is 0."""
        return self._order.index(name)

    def measured(self, name: str, ms: float) -> None:
        """A probe or a call of this backend had its configured session after so long."""
        _blend(self._ms, name, ms)
        self._sort()

    def measured_first_audio(self, name: str, ms: float) -> None:
        """A call of this backend heard the first audio so long after it was asked for."""
        _blend(self._first_audio_ms, name, ms)
        self._sort()

    def is_slow(self, name: str, ms: float, others: Collection[str]) -> bool:
        """True when a session after so long is much slower than what one of the others usually needs."""
        times = [self._ms[other] for other in others if other != name and other in self._ms]
        return bool(times) and ms - min(times) >= SLOWER_MS

    def _sort(self) -> None:
        """Sort the backends with a time among themselves; the others keep their places."""
        timed: list[str] = []
        for name in filter(self._ms.__contains__, self._order):
            worse = (place for place, other in enumerate(timed) if self._clearly_better(name, other))
            timed.insert(next(worse, len(timed)), name)
        following = iter(timed)
        self._order = [next(following) if name in self._ms else name for name in self._order]

    def _clearly_better(self, name: str, other: str) -> bool:
        both_heard = {name, other} <= self._first_audio_ms.keys()
        mine, its = (
            self._ms[each] + (self._first_audio_ms[each] if both_heard else 0.0) for each in (name, other)
        )
        return its - mine >= max(CLEARLY_MS, CLEARLY_SHARE * its)


def _blend(times_ms: dict[str, float], name: str, ms: float) -> None:
    """Blend the newest time of a backend into its mean."""
    before = times_ms.get(name, ms)
    times_ms[name] = before + NEWEST_SHARE * (ms - before)
