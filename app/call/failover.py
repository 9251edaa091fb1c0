"""The backends of a call while none is ready: how long one may take, who follows, and who is to blame.

Knows the backends that have failed by name, never which others there are: the bridge is asked for them.
"""

from dataclasses import dataclass, field

from app.call import events as ev
from app.call import limits
from app.call.ending import EndReason
from app.call.failure import BackendFailure, Scope


@dataclass(slots=True)
class Failover:
    """Whether another backend may still take the call."""

    _dialled_at: float
    """When the present backend began to be dialled."""
    forgiving: bool = False
    """It is a session that is taken over: the caller has talked with the backend, so that it is known to work."""
    _step_ends_at: float = limits.NEVER
    """When the present one will have taken too long for its next step: handshake, configuration or greeting."""
    _greeting_asked_at: float | None = None
    """When the present one was asked for the greeting; None once that was heard or is not awaited any more."""
    _sought: BackendFailure | None = None
    """What the present one failed by, while another one is looked for."""
    _patient: bool = False
    """One was late already. What makes two of them late is not their fault: this one has all the time left."""
    _failed: list[str] = field(default_factory=list)
    """Backends that have failed this call by more than being late."""
    _late: list[str] = field(default_factory=list)
    """Backends that have been late, or lost the session: they are tried again when all others have failed."""
    _late_excluded: bool = False
    """The search that goes on leaves these out."""

    @property
    def seeking(self) -> bool:
        """True while another backend is looked for."""
        return self._sought is not None

    def step_began(self, now: float, limit_s: float) -> None:
        """The present backend is to answer within `limit_s`."""
        self._step_ends_at = now + limit_s

    def step_ended(self) -> None:
        """The present backend has answered, or no answer is expected any more."""
        self._step_ends_at = limits.NEVER
        self._greeting_asked_at = None

    def greeting_asked(self, now: float) -> None:
        """The present backend was asked for the greeting."""
        self.step_began(now, limits.GREETING_LATE_S)
        self._greeting_asked_at = now

    def greeting_heard(self, now: float) -> list[ev.ReportFirstAudio]:
        """The agent's first audio came. Report once how long the greeting took, unless the caller spoke first."""
        if self._greeting_asked_at is None:
            return []
        after_ms = (now - self._greeting_asked_at) * 1000
        self._greeting_asked_at = None
        return [ev.ReportFirstAudio(after_ms)]

    def due_at(self) -> float:
        """When the present backend will have taken too long."""
        return limits.NEVER if self._patient or self._sought is not None else self._step_ends_at

    def late(self, now: float) -> bool:
        """True when the present backend has taken too long."""
        return now >= self.due_at()

    def stood_still(self, for_s: float) -> None:
        """This process has done nothing for so long. What the backend sent meanwhile is still to be read."""
        self._step_ends_at += for_s
        if self._greeting_asked_at is not None:
            self._greeting_asked_at += for_s

    def ready_after_ms(self, now: float) -> float:
        """How long ago the dialling of the present backend began."""
        return (now - self._dialled_at) * 1000

    def blame(self, failure: BackendFailure, now: float) -> list[ev.ReportOutcome]:
        """Report what the present backend failed by, unless it was dialled so late that it had no fair chance."""
        hurried = now - self._dialled_at < limits.BACKEND_LATE_S / 2
        if failure.reason is EndReason.BACKEND_NOT_READY and hurried:
            return []
        return [ev.ReportOutcome(failure)]

    def seek(self, backend: str, failure: BackendFailure) -> list[ev.FindBackend]:
        """The present backend failed: look for another one. One that fails twice at once is replaced once.

        A late one is left only for one that works: it may still come. While a session is taken over, a backend
        that fails once is asked again when there is no other.
        """
        if self._sought is not None:
            return []
        self._sought = failure
        only_late = failure.reason is EndReason.BACKEND_NOT_READY
        spared = self.forgiving and not failure.fatal and backend not in self._late
        (self._late if only_late or spared else self._failed).append(backend)
        self._patient = self._patient or only_late
        self._late_excluded = not only_late and not set(self._late) <= set(self._failed)
        return [ev.FindBackend(failure, (*self._failed, *self._late), only_working=only_late)]

    def seek_after_loss(self, backend: str, failure: BackendFailure, *, again: bool) -> list[ev.FindBackend]:
        """The session that the call talked with was lost: look for the backend of the next one.

        It is the same one when only that session was concerned, unless this happens `again`. One that did not do
        its work is asked again when there is no other; one that refuses its work is not.
        """
        self._sought = failure
        if failure.fatal or (failure.reason is EndReason.BACKEND_REFUSED and failure.scope is not Scope.CALL):
            self._failed.append(backend)
        elif again or not (failure.reason is EndReason.BACKEND_LOST or failure.scope is Scope.CALL):
            self._late.append(backend)
            self._late_excluded = True
        return [ev.FindBackend(failure, (*self._failed, *self._late), only_working=False)]

    @property
    def failure(self) -> BackendFailure:
        """What the present backend failed by. Ask only while another one is looked for."""
        assert self._sought is not None, "an answer to a question that was not asked"
        return self._sought

    def found(self, now: float) -> None:
        """There is another one, which is dialled now."""
        self._sought = None
        self._greeting_asked_at = None
        self._dialled_at = now
        self.step_began(now, limits.BACKEND_LATE_S)

    def found_none(self) -> list[ev.FindBackend] | BackendFailure | None:
        """There is no other one: look among those that were late, or return what ends the call.

        None when the present one is only late: the call goes on waiting for it.
        """
        failure = self.failure
        if self._late_excluded:
            self._late_excluded = False
            return [ev.FindBackend(failure, (*self._failed,), only_working=False)]
        self._sought = None
        return None if failure.reason is EndReason.BACKEND_NOT_READY else failure
