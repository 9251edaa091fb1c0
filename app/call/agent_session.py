"""What a call knows of one backend's session: its responses, its tool calls, and what of its items was cut.

A backend that takes a call over gets a new AgentSession, because nothing in here means anything to it. What
belongs to the phone and to the leg (the playout, the turns, the journal, how long the caller has waited) is kept
in conversation.py and outlives the session.
"""

from collections import deque
from dataclasses import dataclass, field

from app.call import events as ev
from app.call import limits
from app.call.plan import Abilities, Plan, Purpose, wording
from app.call.replies import Replies, Request
from app.call.tools import Tools


@dataclass(slots=True)
class AgentSession:
    """The state of one backend session in one call."""

    plan: Plan
    """The tenant's, as this backend can carry it out."""
    abilities: Abilities
    replies: Replies = field(default_factory=Replies)
    tools: Tools = field(default_factory=Tools)
    failed_responses: int = 0
    """In a row."""
    tool_rounds: int = 0
    """Responses in a row that only called tools."""
    tools_exhausted: bool = False
    """They were too many: the model must speak."""
    tools_began_at: float = 0.0
    spoke_in: str | None = None
    """The last response that had audio."""
    said_by: str | None = None
    """A response that stalled when all of its audio had come: nobody waits for more of it."""
    cut_while_made: str | None = None
    """A response that goes on until it is cancelled: what comes meanwhile is in its items, behind the cuts."""
    _cut_items: deque[str] = field(default_factory=lambda: deque(maxlen=limits.CUT_ITEMS_REMEMBERED))
    _cuts: deque[ev.Truncate] = field(default_factory=lambda: deque(maxlen=limits.CUT_ITEMS_REMEMBERED))
    """What was cut since the caller last interrupted, or a response was last cancelled."""

    def create(self, request: Request) -> ev.CreateResponse:
        """Ask for a response. Exact words are asked for once: after a failure instructions may still work."""
        exact = request.purpose is Purpose.GREETING and not self.failed_responses
        instructions = wording(request.purpose, self.plan, request.detail)
        words = self.plan.greeting if exact else ""
        may_call_tools = request.purpose is not Purpose.WITHOUT_TOOLS
        return ev.CreateResponse(request.purpose, instructions, words, may_call_tools)

    def cancel(self, response_id: str) -> ev.CancelResponse:
        """Cancel a response of which nothing was cut so far."""
        self._cuts.clear()
        self.cut_while_made = response_id
        return ev.CancelResponse(response_id)

    def truncate(self, item_id: str, heard_ms: int) -> list[ev.Truncate]:
        """Tell the backend that only so much of an item was heard, unless it sees to that itself."""
        self._cut_items.append(item_id)
        if self.abilities.truncates:
            return []
        cut = ev.Truncate(item_id, heard_ms)
        self._cuts.append(cut)
        return [cut]

    def was_truncated(self, item_id: str) -> bool:
        """True for an item that `truncate` was called for."""
        return item_id in self._cut_items

    def caller_began(self, now: float) -> None:
        """The caller speaks."""
        self.said_by = None
        active = self.replies.active
        if active is None or not self.replies.refused(active):
            self._cuts.clear()
        self.replies.caller_began(now)

    def repeat_cuts(self, ended: ev.ResponseEnded) -> list[ev.Truncate]:
        """The cuts of a response that went on after them: what it has added is to be cut as well."""
        went_on = ended.status is not ev.ResponseStatus.CANCELLED and self.replies.refused(ended.response_id)
        if ended.response_id != self.cut_while_made and not went_on:
            return []
        self.cut_while_made = None
        return [*self._cuts]

    def ask_after_tools(self) -> None:
        """Every output is in: the model goes on, and must speak when it has called tools too often."""
        self.replies.ask(Request(Purpose.WITHOUT_TOOLS if self.tools_exhausted else Purpose.TOOL))
