"""The backends of a call until the caller hears one: how long one may take, and what follows when it fails.

Knows that a backend failed and by what, never which others there are: the bridge is asked for them.
"""

from dataclasses import dataclass

from app.call import events as ev
from app.call import limits
from app.call.ending import EndReason


@dataclass(slots=True)
class Failover:
    """Whether another backend may still take the call."""

    _step_ends_at: float = limits.NEVER
    """When the present one will have taken too long for its next step: handshake, configuration or greeting."""
    _sought: tuple[EndReason, str] | None = None
    """What the present one failed by, while another one is looked for."""
    _patient: bool = False
    """One was late already. What makes two of them late is not theirs: this one has all the time that is left."""

    @property
    def seeking(self) -> bool:
        """True while another backend is looked for."""
        return self._sought is not None

    def step_began(self, now: float, limit_s: float) -> None:
        """The present backend is to answer within `limit_s`."""
        self._step_ends_at = now + limit_s

    def step_ended(self) -> None:
        """It has, or nothing is expected of it."""
        self._step_ends_at = limits.NEVER

    def due_at(self) -> float:
        """When the present backend will have taken too long."""
        return limits.NEVER if self._patient or self._sought is not None else self._step_ends_at

    def late(self, now: float) -> bool:
        """True when it has taken too long."""
        return now >= self.due_at()

    def stood_still(self, for_s: float) -> None:
        """This process has done nothing for so long. What the backend sent meanwhile is still to be read."""
        self._step_ends_at += for_s

    def seek(self, reason: EndReason, detail: str) -> list[ev.Command]:
        """The present one failed. One that does so twice at once is replaced once."""
        if self._sought is not None:
            return []
        self._sought = reason, detail
        self._patient = self._patient or reason is EndReason.BACKEND_NOT_READY
        return [ev.FindBackend(reason, detail)]

    def found(self, now: float) -> str:
        """Another one is being dialled. Returns what the one before failed by."""
        (reason, detail), self._sought = self._failure(), None
        self.step_began(now, limits.BACKEND_LATE_S)
        return f"{reason} {detail}".rstrip()

    def nobody(self) -> tuple[EndReason, str] | None:
        """There is no other one. Returns what ends the call; None when the present one is only late."""
        failure, self._sought = self._failure(), None
        return None if failure[0] is EndReason.BACKEND_NOT_READY else failure

    def _failure(self) -> tuple[EndReason, str]:
        assert self._sought is not None, "an answer that nobody asked for"
        return self._sought
