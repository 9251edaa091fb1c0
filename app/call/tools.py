"""The tools that a response called, and which of them still run.

A tool runs only when its response completed: a cancelled one's arguments may be cut off (realtime.md 1.10).
Knows nothing of what a tool does.
"""

from dataclasses import dataclass, field

from app.call.events import ToolCalled
from app.call.limits import TOOL_CALLS_MAX


@dataclass(slots=True)
class Tools:
    """Tool calls of one call."""

    _called: list[ToolCalled] = field(default_factory=list)
    _running: set[str] = field(default_factory=set)

    @property
    def running(self) -> bool:
        """True while outputs are still to come: the agent is not to speak before all are in."""
        return bool(self._running)

    def called(self, call: ToolCalled) -> None:
        """The model wants a tool; its response is not over yet."""
        if len(self._called) < TOOL_CALLS_MAX:
            self._called.append(call)

    def take(self, response_id: str) -> list[ToolCalled]:
        """The response is over: what it called. Whatever else was collected is dropped."""
        calls = [call for call in self._called if call.response_id == response_id]
        self._called.clear()
        return calls

    def started(self, tool_call_id: str) -> None:
        """A tool runs."""
        self._running.add(tool_call_id)

    def finished(self, tool_call_id: str) -> bool:
        """A tool's output is in. False when it was not running."""
        if tool_call_id not in self._running:
            return False
        self._running.discard(tool_call_id)
        return True
