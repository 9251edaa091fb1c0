"""The tools that a response called, and which of them still run.

A tool runs only when its response completed: a cancelled one's arguments may be cut off (realtime.md 1.10).
What a tool does is not known here.
"""

from dataclasses import dataclass, field

from app.call.events import ToolCalled
from app.call.limits import NEVER, TOOL_CALLS_MAX, TOOL_WAIT_S

_SEEN_MAX = 8 * TOOL_CALLS_MAX
"""Calls that are recognised when they come a second time."""


@dataclass(slots=True)
class Tools:
    """Tool calls of one call."""

    _called: list[ToolCalled] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    """Ids of the calls of the active response, those that were one too many included."""
    _running: dict[str, float] = field(default_factory=dict)
    """Tool call to the instant at which it is given up."""

    @property
    def running(self) -> bool:
        """True while outputs are still to come: the agent is not to speak before all are in."""
        return bool(self._running)

    def runs(self, tool_call_id: str) -> bool:
        """True while the output of this call is still to come."""
        return tool_call_id in self._running

    @property
    def collected(self) -> int:
        """How many tools the active response has called so far."""
        return len(self._called)

    def called(self, call: ToolCalled) -> bool:
        """The model wants a tool; its response is not over yet. False: one too many; returned once.

        A backend sends a call twice: when its arguments are complete and when its item is.
        """
        if call.tool_call_id in self._seen:
            return True
        if len(self._seen) < _SEEN_MAX:
            self._seen.add(call.tool_call_id)
        if len(self._called) >= TOOL_CALLS_MAX:
            return False
        self._called.append(call)
        return True

    def take(self, response_id: str) -> list[ToolCalled]:
        """The response is over: what it called. Whatever else was collected is dropped."""
        calls = [call for call in self._called if call.response_id == response_id]
        self._called.clear()
        self._seen.clear()
        return calls

    def lose_session(self) -> None:
        """What was called and does not run will not be: its response is never over."""
        self._called.clear()
        self._seen.clear()

    def started(self, tool_call_id: str, now: float) -> None:
        """A tool runs."""
        self._running[tool_call_id] = now + TOOL_WAIT_S

    def finished(self, tool_call_id: str) -> bool:
        """A tool's output is in. False when it is not awaited any more."""
        return self._running.pop(tool_call_id, None) is not None

    def forget(self) -> None:
        """Outputs are not awaited any more."""
        self._running.clear()

    def expires_at(self) -> float:
        """When `expired` will have something."""
        return min(self._running.values()) if self._running else NEVER

    def expired(self, now: float) -> list[str]:
        """The tool calls whose output is given up."""
        return [tool_call_id for tool_call_id, until in self._running.items() if until <= now]
