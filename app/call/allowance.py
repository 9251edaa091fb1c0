"""How often something may happen: so much at once, and so much a second (a token bucket)."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Allowance:
    """Begins full."""

    burst: float
    per_s: float
    _left: float = field(init=False)
    _at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self._left = self.burst

    def take(self, now: float) -> bool:
        """Use one up. False when there is none left."""
        self._left = min(self.burst, self._left + (now - self._at) * self.per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
