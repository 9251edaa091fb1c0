"""A drain's timetable and its progress: when each call is asked to move, by when it has to, and how many have.

The machines that take the calls open a backend session for each, so calls are not moved all at once.
"""

from dataclasses import dataclass

from app.call.limits import MOVE_FLUSH_S, REST_LIMIT_S, STOP_WAIT_S

MOVES_PER_S = 5
"""Calls asked to move in a second, unless there are too many for the time: the 200 of a full machine in 40 s."""

MOVE_S = MOVE_FLUSH_S + REST_LIMIT_S + STOP_WAIT_S
"""The longest that a move takes once it has begun."""


def timetable(calls: int, ends_in_s: float) -> list[tuple[float, float]]:
    """For each call when to ask it to move, and when it has to, whoever speaks. In seconds from now.

    Both are spread: calls that find no quiet moment are not moved together at the end either.
    """
    latest_s = ends_in_s - min(MOVE_S, ends_in_s / 2)
    gap_s = min(1 / MOVES_PER_S, latest_s / (2 * calls)) if calls else 0.0
    return [(number * gap_s, latest_s - (calls - 1 - number) * gap_s) for number in range(calls)]


@dataclass(slots=True)
class Drain:
    """A drain that is under way, or over."""

    began_at: float
    """By the event loop's clock."""
    deadline_s: float
    moved: int = 0
    """Calls that another machine was to go on with, by a redirect."""
    move_failed: int = 0
    """Calls whose redirect failed: their streams were closed, so that Twilio asks `/twiml/after`."""
    cut_short: int = 0
    """Calls that the deadline ended, or that nobody else could take."""

    def counts(self, calls_left: int) -> dict[str, int]:
        """What a log line and /healthz say."""
        return {
            "calls_left": calls_left,
            "moved": self.moved,
            "move_failed": self.move_failed,
            "cut_short": self.cut_short,
        }
