"""The timetable of a drain: every call is asked early enough, and they are spread."""

from itertools import pairwise

import pytest

from app.bridge.draining import MOVE_S, MOVES_PER_S, timetable


def test_few_calls_are_asked_one_after_the_other() -> None:
    asked, forced = zip(*timetable(3, 277.0), strict=True)
    assert asked == pytest.approx((0.0, 1 / MOVES_PER_S, 2 / MOVES_PER_S))
    latest_s = 277.0 - MOVE_S
    assert forced == pytest.approx((latest_s - 2 / MOVES_PER_S, latest_s - 1 / MOVES_PER_S, latest_s))


@pytest.mark.parametrize(
    ("calls", "ends_in_s"), [(1, 5.0), (5, 5.0), (200, 5.0), (200, 277.0), (5, 0.0), (0, 5.0)]
)
def test_every_call_has_time_to_find_a_quiet_moment_and_to_move(calls: int, ends_in_s: float) -> None:
    for ask_in_s, by_s in timetable(calls, ends_in_s):
        assert 0.0 <= ask_in_s <= by_s <= ends_in_s - min(MOVE_S, ends_in_s / 2) + 1e-9


def test_full_machine_is_spread_as_far_as_the_deadline_allows() -> None:
    asked = [ask_in_s for ask_in_s, _ in timetable(200, 277.0)]
    assert asked[-1] == pytest.approx(199 / MOVES_PER_S)
    forced = [by_s for _, by_s in timetable(200, 277.0)]
    gaps = [later - earlier for earlier, later in pairwise(forced)]
    assert min(gaps) == pytest.approx(1 / MOVES_PER_S)
