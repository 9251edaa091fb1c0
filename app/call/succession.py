"""The backends of a call until it talks: how long one may take, and what follows when it fails.

Knows that a backend failed and by what, never which others there are: the bridge is asked for them.
"""

from dataclasses import dataclass

from app.call import events as ev
from app.call import limits
from app.call.ending import EndReason
from app.call.phases import BackendPhase

_OPENING = (BackendPhase.DIALLING, BackendPhase.CONFIGURING)


@dataclass(slots=True)
class Succession:
    """Whether another backend may still take the call."""

    dialled_at: float
    """When the present one was."""
    _sought: tuple[EndReason, str] | None = None
    """What the present one failed by, while another one is looked for."""
    _last: bool = False
    """There is no other one: the present one has as long as the call has."""

    def due_at(self, phase: BackendPhase) -> float:
        """When the present backend, which is in this phase, will have taken too long."""
        if self._last or self._sought is not None or phase not in _OPENING:
            return limits.NEVER
        return self.dialled_at + limits.BACKEND_LATE_S

    def seek(self, reason: EndReason, detail: str) -> list[ev.Command]:
        """The present one failed. One that does so twice at once is replaced once."""
        if self._sought is not None:
            return []
        self._sought = reason, detail
        return [ev.FindBackend(reason, detail)]

    def found(self, now: float) -> str:
        """Another one is being dialled. Returns what the one before failed by."""
        (reason, detail), self._sought, self.dialled_at = self._failure(), None, now
        return f"{reason} {detail}".rstrip()

    def nobody(self) -> tuple[EndReason, str] | None:
        """There is no other one. Returns what ends the call; None when the present one is only late."""
        failure, self._sought, self._last = self._failure(), None, True
        return None if failure[0] is EndReason.BACKEND_NOT_READY else failure

    def _failure(self) -> tuple[EndReason, str]:
        assert self._sought is not None, "an answer that nobody asked for"
        return self._sought
