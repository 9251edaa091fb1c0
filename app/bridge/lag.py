"""Watches how late the event loop is, so that an overloaded machine takes no new calls.

A timer that is due every 100 ms shows by how much the loop runs it late. One slow moment is normal; a loop that is
late again and again within some seconds has more work than one core can do, and each further call would make the
audio of all calls worse. `LagGuard` decides and is pure: time is an argument. `LagMeter` measures, and logs when
the state changes.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

EVERY_S = 0.1
"""Between two measurements, which cost 5 microseconds each: 0.005 % of a core."""
WINDOW_S = 5.0
"""The seconds that the guard looks back. As many without trouble end it."""
LATE_SHARE = 0.1
"""The share of measurements above the limit that counts as overload: the 90th percentile is the lag."""
LATE_MIN = 3
"""So many measurements have to be above the limit. A machine that the host has stopped once, for however long, has
one."""
NORMAL_SHARE = 0.5
"""The lag has to fall below this share of the limit before calls are taken again: otherwise the first of them
would bring the overload back."""

log = logging.getLogger("nearcall.bridge")


class LagGuard:
    """Decides from measured lags whether the event loop is overloaded."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._measured: deque[tuple[float, float]] = deque()
        """When, and how late; the last WINDOW_S."""
        self._began_s: float | None = None
        self.high = False
        """True while no new call should be taken."""

    def measured(self, lag_s: float, now_s: float) -> bool:
        """Note one measurement. Returns True if it changed `high`."""
        if self._began_s is None:
            self._began_s = now_s
        self._measured.append((now_s, lag_s))
        while self._measured[0][0] < now_s - WINDOW_S:
            self._measured.popleft()
        before = self.high
        if self.high:
            self.high = self.lag_s >= self._limit_s * NORMAL_SHARE
        elif now_s - self._began_s >= WINDOW_S:  # a start imports and connects, and is late
            late = sum(lag >= self._limit_s for _, lag in self._measured)
            self.high = late >= LATE_MIN and self.lag_s >= self._limit_s
        return self.high is not before

    @property
    def lag_s(self) -> float:
        """The 90th percentile of the last seconds."""
        if not self._measured:
            return 0.0
        lags = sorted(lag for _, lag in self._measured)
        return lags[-1 - int(LATE_SHARE * (len(lags) - 1))]


class LagMeter:
    """Measures how late the event loop is, from `start` to `stop`."""

    def __init__(
        self, limit_s: float, clock: Callable[[], float] = time.monotonic, *, every_s: float = EVERY_S
    ) -> None:
        """`clock`: seconds of a clock that never goes back."""
        self._guard = LagGuard(limit_s)
        self._limit_s = limit_s
        self._clock = clock
        self._every_s = every_s
        self._due_s = 0.0
        self._high_since_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def high(self) -> bool:
        """True while the event loop is overloaded."""
        return self._guard.high

    @property
    def lag_ms(self) -> float:
        """The 90th percentile of the last seconds."""
        return self._guard.lag_s * 1000

    def start(self) -> None:
        """Begin to measure, in the running event loop."""
        self._due_s = self._clock() + self._every_s
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._measure)

    def stop(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()

    def _measure(self) -> None:
        now_s = self._clock()
        if self._guard.measured(max(0.0, now_s - self._due_s), now_s):
            self._log_change(now_s)
        self.start()

    def _log_change(self, now_s: float) -> None:
        fields = {"lag_ms": round(self.lag_ms), "limit_ms": round(self._limit_s * 1000)}
        if self.high:
            self._high_since_s = now_s
            log.warning("loop_lag_high", extra={**fields, "effect": "no new call is taken here"})
        else:
            log.info("loop_lag_normal", extra={**fields, "high_for_s": round(now_s - self._high_since_s, 1)})
