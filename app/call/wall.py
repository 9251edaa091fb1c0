"""The call's clock fixed to Unix time, so that a core without clocks can date its records."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wall:
    """An instant known on both clocks."""

    now: float
    """The call's clock, in seconds."""
    unix_ms: int

    def ms(self, at: float) -> int:
        """The Unix millisecond of an instant of the call's clock."""
        return self.unix_ms + round((at - self.now) * 1000)

    def at(self, unix_ms: int) -> float:
        """The instant of the call's clock at this Unix millisecond."""
        return self.now + (unix_ms - self.unix_ms) / 1000
