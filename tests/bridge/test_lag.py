"""The event loop's lag: what counts as overload, when it is over, and what the log says."""

import pytest

from app.bridge.lag import EVERY_S, WINDOW_S, LagGuard, LagMeter
from tests.waiting import until

pytestmark = pytest.mark.anyio

LIMIT_S = 0.1
LATE_S = 0.2
FINE_S = 0.004
IN_TIME_S = 10


class Loop:
    """An event loop's timer as the guard sees it: a late measurement delays all that follow."""

    def __init__(self) -> None:
        self.guard = LagGuard(LIMIT_S)
        self.now_s = 1_000.0
        self.changes: list[tuple[float, bool]] = []

    def run(self, seconds: float, *lags_s: float) -> None:
        """Measure for some seconds; the lags repeat."""
        end_s = self.now_s + seconds
        number = 0
        while self.now_s < end_s:
            lag_s = lags_s[number % len(lags_s)]
            number += 1
            self.now_s += EVERY_S + lag_s
            if self.guard.measured(lag_s, self.now_s):
                self.changes.append((round(self.now_s - end_s + seconds, 1), self.guard.high))


@pytest.fixture
def loop() -> Loop:
    """A loop that has run well for a while."""
    loop = Loop()
    loop.run(2 * WINDOW_S, FINE_S)
    return loop


def test_loop_that_stays_late_takes_no_calls_until_it_is_fine_again(loop: Loop) -> None:
    loop.run(60.0, LATE_S)
    [(after_s, high)] = loop.changes
    assert high
    assert after_s < WINDOW_S
    loop.run(60.0, FINE_S)
    [_, (fine_after_s, high)] = loop.changes
    assert not high
    assert 1.0 < fine_after_s <= WINDOW_S + EVERY_S + FINE_S


def test_one_measurement_in_ten_above_the_limit_is_too_many(loop: Loop) -> None:
    loop.run(60.0, LATE_S, *[FINE_S] * 6)
    assert [high for _, high in loop.changes] == [True]


def test_one_measurement_in_twenty_above_the_limit_is_not(loop: Loop) -> None:
    loop.run(60.0, LATE_S, *[FINE_S] * 19)
    assert loop.changes == []


@pytest.mark.parametrize("stopped_s", [1.0, 120.0])
def test_machine_that_its_host_stopped_once_or_twice_is_not_overloaded(loop: Loop, stopped_s: float) -> None:
    loop.run(stopped_s, stopped_s)
    loop.run(stopped_s, stopped_s)
    loop.run(60.0, FINE_S)
    assert loop.changes == []


def test_loop_that_stalls_for_a_second_at_a_time_is_overloaded(loop: Loop) -> None:
    """The window then holds few measurements: the late timer measures seldom."""
    loop.run(10.0, 1.0)
    assert [high for _, high in loop.changes] == [True]


def test_lag_between_the_two_limits_changes_nothing_either_way(loop: Loop) -> None:
    """Otherwise the first calls after an overload would bring it back, again and again."""
    between_s = 0.7 * LIMIT_S
    loop.run(60.0, between_s)
    assert loop.changes == []
    loop.run(60.0, LATE_S)
    loop.run(60.0, between_s)
    assert [high for _, high in loop.changes] == [True]


def test_start_is_not_judged() -> None:
    loop = Loop()
    loop.run(WINDOW_S - LATE_S - EVERY_S, LATE_S)
    assert loop.changes == []


async def test_meter_says_once_that_the_loop_is_late_and_once_that_it_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "nearcall.bridge")
    now_s, lag_s = 0.0, LATE_S

    def clock() -> float:
        nonlocal now_s
        now_s += lag_s  # so much time passes between any two looks at it
        return now_s

    meter = LagMeter(LIMIT_S, clock, every_s=0.0)
    meter.start()
    await until(lambda: meter.high, IN_TIME_S)
    assert meter.lag_ms == pytest.approx(1_000 * LATE_S)
    lag_s = FINE_S
    await until(lambda: not meter.high, IN_TIME_S)
    meter.stop()
    assert caplog.messages == ["loop_lag_high", "loop_lag_normal"]
    high, normal = caplog.records
    assert (high.levelname, vars(high)["limit_ms"]) == ("WARNING", 100)
    assert (normal.levelname, vars(normal)["high_for_s"] > 0) == ("INFO", True)


async def test_real_loop_that_blocks_is_measured_late() -> None:
    now_s = 0.0
    meter = LagMeter(LIMIT_S, lambda: now_s, every_s=0.001)
    meter.start()
    now_s = 0.251  # the loop did something else for a quarter of a second
    await until(lambda: meter.lag_ms > 0, IN_TIME_S)
    meter.stop()
    assert meter.lag_ms == pytest.approx(250)
