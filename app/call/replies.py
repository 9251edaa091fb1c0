"""The one writer of `response.create`.

A backend has at most one active response (realtime.md 1.6). Greeting, idle prompt, tool outputs and all
else that wants the agent to speak queues here and is let out when nothing speaks, the caller is not speaking,
and the backend is not about to answer the caller by itself. Audio is not known here.
"""

from collections import deque
from dataclasses import dataclass, field

from app.call.limits import (
    BUSY_REFUSALS_MAX,
    CALLER_SPEAKS_MAX_S,
    CANCEL_WAIT_S,
    GREETING_WAIT_S,
    NEVER,
    OPEN_LIMIT_S,
    RESPONSE_STALL_S,
    RESPONSE_WAIT_S,
    RETRY_AFTER_S,
    TURN_WAIT_S,
)
from app.call.plan import Purpose

_REMEMBERED_REFUSALS = 16


@dataclass(frozen=True, slots=True)
class Request:
    """A wish for a response."""

    purpose: Purpose
    detail: str = ""


@dataclass(slots=True)
class Replies:
    """Which response is active, which was asked for, and which still waits."""

    active: str | None = None
    """The active response's id."""
    _active_heard_at: float = 0.0
    """The last sign of life of the active response."""
    active_request: Request | None = None
    """The wish it fulfils; None when the backend made it by itself to answer the caller."""
    caller_speaking: bool = False
    _speaks_since: float = 0.0
    _waiting: deque[Request] = field(default_factory=deque)
    _asked: Request | None = None
    _asked_at: float = 0.0
    _answer_due_at: float | None = None
    """The caller's turn was committed then, and the backend has not begun to answer."""
    _not_before: float = 0.0
    _busy_until: float = 0.0
    """A response that we know nothing of is active; its end clears this."""
    _cancel_at: float = NEVER
    """The backend should have cancelled the active response by then."""
    _refusals: int = 0
    """How often the wish at the head of the queue was refused because a response was active."""
    _refused: deque[str] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_REFUSALS))

    @property
    def quiet(self) -> bool:
        """True when no response is active, asked for, waiting or due."""
        return (
            self.active is None
            and self._asked is None
            and not self._waiting
            and self._answer_due_at is None
            and not self.caller_speaking
        )

    @property
    def answer_is_due(self) -> bool:
        """True when a response is active, asked for or the backend's to begin, and the caller does not speak."""
        return not self.caller_speaking and (
            self.active is not None or self._asked is not None or self._answer_due_at is not None
        )

    @property
    def waiting(self) -> int:
        """How many wishes wait to be let out."""
        return len(self._waiting)

    @property
    def requests(self) -> tuple[Request, ...]:
        """The wishes that wait, the next one first."""
        return tuple(self._waiting)

    def ask(self, request: Request) -> None:
        """Queue a wish. One of each purpose is enough."""
        if all(request.purpose is not waiting.purpose for waiting in self._waiting):
            self._waiting.append(request)

    def forget(self, *purposes: Purpose) -> None:
        """Drop waiting wishes that have lost their point."""
        self._waiting = deque(r for r in self._waiting if r.purpose not in purposes)

    def forget_all(self) -> None:
        """Drop all that waits: the call is ending."""
        self._waiting.clear()

    def take(self, now: float) -> Request | None:
        """The wish to send now, if one may be sent."""
        if now < self.next_take_at():
            return None
        self._asked, self._asked_at = self._waiting.popleft(), now
        return self._asked

    def caller_began(self, now: float) -> None:
        """The caller speaks. The active response, if any, is cancelled by the backend, or by us a moment later."""
        self.caller_speaking = True
        self._speaks_since = now
        self._answer_due_at = None
        if self.active is not None and not self.refused(self.active):
            self.refuse(self.active)
            self._cancel_at = now + CANCEL_WAIT_S

    def take_uncancelled(self, now: float) -> str | None:
        """The response that the caller has interrupted and the backend goes on with; returned once."""
        if now < self._cancel_at:
            return None
        self._cancel_at = NEVER
        return self.active

    def uncancelled_at(self) -> float:
        """When `take_uncancelled` will have something to say."""
        return self._cancel_at

    def lose_end_of_speech(self, now: float) -> None:
        """The caller has spoken for longer than anybody does: the end of it was missed, or it is a noise."""
        if now >= self.end_of_speech_lost_at():
            self.caller_speaking = False

    def end_of_speech_lost_at(self) -> float:
        """When `lose_end_of_speech` will have something to do."""
        return self._speaks_since + CALLER_SPEAKS_MAX_S if self.caller_speaking else NEVER

    def caller_stopped(self, now: float) -> None:
        """The caller stopped, or the turn was committed: it is the backend's to answer."""
        self.caller_speaking = False
        if self.active is None or self.refused(self.active):
            # The cancelled response may be over only after the turn is committed.
            self._answer_due_at = now

    def started(self, response_id: str, now: float) -> bool:
        """`response.created`. False when it came while the caller speaks: it must be cancelled."""
        if self._asked is None:
            # The backend answers by itself, with everything that these wishes were about in its context.
            self.forget(Purpose.TOOL, Purpose.WITHOUT_TOOLS, Purpose.RETRY, Purpose.KEYS)
            self._not_before = 0.0
        self.active, self._active_heard_at, self._cancel_at = response_id, now, NEVER
        self.active_request, self._asked = self._asked, None
        self._answer_due_at = None
        self._refusals = 0
        if self.caller_speaking:
            self.refuse(response_id)
        return not self.caller_speaking

    def ended(self, response_id: str) -> None:
        """`response.done`."""
        if self.active in {response_id, None}:
            self.active, self.active_request = None, None
            self._cancel_at = NEVER
        self._busy_until = 0.0

    def alive(self, response_id: str, now: float) -> None:
        """Something of the active response came."""
        if response_id == self.active:
            self._active_heard_at = now

    def hold(self, until: float) -> None:
        """Let nothing out before this instant."""
        self._not_before = max(self._not_before, until)

    def retry(self, request: Request | None, now: float) -> None:
        """A response failed: its wish is the next to be let out, after a moment.

        One of the backend's own becomes a wish to answer the caller, unless something else waits to be said.
        """
        self._asked = self._answer_due_at = None
        if request is not None or not self._waiting:
            self._put_back(request or Request(Purpose.RETRY))
        self.hold(now + RETRY_AFTER_S)

    @property
    def asked(self) -> Request | None:
        """The wish that was let out and has no response yet."""
        return self._asked

    def stop(self) -> None:
        """The backend is gone, or not needed any more: nothing is active and nothing will be."""
        self._waiting.clear()
        self.active = self.active_request = self._asked = self._answer_due_at = None
        self._cancel_at = NEVER
        self.caller_speaking = False

    def busy(self, now: float) -> bool:
        """Our request met an active response: it goes back to the head of the queue. False: once too often.

        If a response had just begun, that was the backend's own and not the one we asked for.
        """
        wish = self._asked or self.active_request
        self._asked = self.active_request = None
        if wish is None:
            return True
        self._put_back(wish)
        self._busy_until = now + TURN_WAIT_S
        self._refusals += 1
        return self._refusals <= BUSY_REFUSALS_MAX

    def _put_back(self, wish: Request) -> None:
        self.forget(wish.purpose)
        self._waiting.appendleft(wish)

    def refuse(self, response_id: str) -> None:
        """Nothing more of this response may reach the caller; late pieces of it can still arrive."""
        self._refused.append(response_id)

    def refused(self, response_id: str) -> bool:
        """True for a response that a barge-in cut off."""
        return response_id in self._refused

    def overdue_at(self, *, heard: bool) -> float:
        """When the response that is expected, or the rest of it, counts as not coming.

        `heard`: the caller has heard the agent. Until then the greeting has less time than any other response.
        """
        if self._asked is not None:
            hurried = not heard and self._asked.purpose is Purpose.GREETING
            return self._asked_at + (OPEN_LIMIT_S if hurried else RESPONSE_WAIT_S)
        if self.active is not None:
            wish = self.active_request
            hurried = not heard and wish is not None and wish.purpose is Purpose.GREETING
            return self._active_heard_at + (GREETING_WAIT_S if hurried else RESPONSE_STALL_S)
        if self._answer_due_at is not None:
            return self._answer_due_at + RESPONSE_WAIT_S
        return NEVER

    def next_take_at(self) -> float:
        """When `take` will have something by the clock alone."""
        if not self._waiting or self.active is not None or self._asked is not None or self.caller_speaking:
            return NEVER
        due_at = 0.0 if self._answer_due_at is None else self._answer_due_at + TURN_WAIT_S
        return max(due_at, self._not_before, self._busy_until)
