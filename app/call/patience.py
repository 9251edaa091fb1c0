"""How long a call may be quiet, and how long it may be at all.

It says when the caller is to be asked whether they are still there, when to give up asking, when to warn of the
longest allowed time and when that is over. How any of it is said is decided elsewhere.
"""

from dataclasses import dataclass
from enum import Enum, auto

from app.call.plan import Plan


class Reminder(Enum):
    """What has fallen due."""

    ASK = auto()
    GIVE_UP = auto()
    WARN = auto()
    TIME_IS_UP = auto()


@dataclass(slots=True)
class Patience:
    """The clocks of one call, from the moment its stream began."""

    plan: Plan
    began_at: float
    _quiet_since: float = 0.0
    _asked: int = 0
    _warned: bool = False

    def reset_idle(self, now: float) -> None:
        """Something was said or done, by anybody."""
        self._quiet_since = now

    def stood_still(self, for_s: float) -> None:
        """This process has done nothing for so long: what the caller said meanwhile is still to be heard."""
        self._quiet_since += for_s

    def caller_is_there(self, now: float) -> None:
        """The caller spoke or pressed a key: the questions start over."""
        self._quiet_since = now
        self._asked = 0

    def due(self, now: float, *, quiet: bool) -> Reminder | None:
        """What has fallen due, once. `quiet`: nobody speaks, and nothing is on its way to be spoken."""
        if self.ends_at() <= now:
            return Reminder.TIME_IS_UP
        if not self._warned and self._warns_at() <= now:
            self._warned = True
            return Reminder.WARN
        if quiet and self._asks_at() <= now:
            self._quiet_since = now
            if self._asked >= self.plan.idle_prompts_max:
                return Reminder.GIVE_UP
            self._asked += 1
            return Reminder.ASK
        return None

    def due_at(self, *, quiet: bool) -> float:
        """When `due` will have something."""
        times = [self.ends_at()]
        if not self._warned:
            times.append(self._warns_at())
        if quiet:
            times.append(self._asks_at())
        return min(times)

    def ends_at(self) -> float:
        """When the longest allowed time is over."""
        return self.began_at + self.plan.max_call_s

    def _warns_at(self) -> float:
        return self.ends_at() - self.plan.max_call_warning_s

    def _asks_at(self) -> float:
        return max(self._quiet_since, self.began_at) + self.plan.idle_prompt_s
