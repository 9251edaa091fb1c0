"""A backend's circuit: what calls and probes find out decides whether calls go there first, last or not at all."""

import runpy
from itertools import product

import pytest

from app.backends import circuit as circuit_module
from app.backends.circuit import (
    FAILURES_MAX,
    FORGET_S,
    GOOD_PROBES,
    GOOD_PROBES_MAX,
    PAUSE_MAX_S,
    PAUSE_MIN_S,
    PAUSE_S,
    PROBATION_S,
    PROBE_FATAL_S,
    PROBE_S,
    PROBE_SLOW_MAX_S,
    TRANSITIONS,
    TRIAL_S,
    Cause,
    Circuit,
    CircuitState,
    Standing,
    moves,
)
from app.call.phases import diagram


def opened(*, fatal: bool = False) -> Circuit:
    circuit = Circuit()
    for _ in range(1 if fatal else FAILURES_MAX):
        circuit.failed(0.0, fatal=fatal)
    return circuit


def test_it_takes_several_failures_in_a_row() -> None:
    circuit = Circuit()
    for number in range(1, FAILURES_MAX):
        assert not circuit.failed(float(number), fatal=False)
        assert circuit.usable
    assert circuit.failed(9.0, fatal=False)
    assert (circuit.usable, circuit.probe_at) == (False, 9.0 + PROBE_S)


def test_call_that_went_well_ends_the_row() -> None:
    circuit = Circuit()
    for _ in range(10 * FAILURES_MAX):
        circuit.failed(0.0, fatal=False)
        circuit.worked()
    assert circuit.usable


def test_failures_long_ago_are_no_row() -> None:
    circuit = Circuit()
    for number in range(10 * FAILURES_MAX):
        circuit.failed(number * (FORGET_S + 1), fatal=False)
    assert circuit.usable


def test_refused_key_opens_at_once_and_is_probed_seldom() -> None:
    circuit = opened(fatal=True)
    assert (circuit.usable, circuit.probe_at) == (False, PROBE_FATAL_S)


def test_calls_that_end_while_it_is_open_change_nothing() -> None:
    circuit = opened()
    assert not circuit.failed(1.0, fatal=True)
    circuit.worked()
    assert (circuit.usable, circuit.probe_at) == (False, PROBE_S)


def test_good_probes_in_a_row_close_it() -> None:
    circuit = opened()
    for number in range(1, GOOD_PROBES):
        assert not circuit.probe_worked(float(number))
    circuit.probe_failed(5.0, fatal=False)
    assert not circuit.usable
    for number in range(1, GOOD_PROBES):
        assert not circuit.probe_worked(10.0 + number)
    assert circuit.probe_worked(20.0)
    assert (circuit.usable, circuit.probe_at) == (True, None)


@pytest.mark.parametrize(("later_s", "usable"), [(PROBATION_S - 1, False), (PROBATION_S + 1, True)])
def test_one_failure_is_enough_on_probation(later_s: float, usable: bool) -> None:
    circuit = opened()
    for _ in range(GOOD_PROBES):
        circuit.probe_worked(100.0)
    circuit.quick(100.0)
    circuit.failed(100.0 + later_s, fatal=False)
    assert circuit.usable == usable


# --- The table ---------------------------------------------------------------------------------------


def test_every_state_knows_every_cause_and_only_a_pause_ends_by_itself() -> None:
    known = {(state, cause) for state, row in TRANSITIONS.items() for cause in row}
    limited = CircuitState.RATE_LIMITED
    assert known == {
        (state, cause)
        for state, cause in product(CircuitState, Cause)
        if cause is not Cause.PAUSE_OVER or state is limited
    }


def test_module_says_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert diagram(moves()) in (circuit_module.__doc__ or "")
    runpy.run_path(circuit_module.__file__, run_name="__main__")
    assert capsys.readouterr().out.rstrip("\n") == diagram(moves())


# --- Callers who wait --------------------------------------------------------------------------------


def test_one_caller_who_waits_sends_the_others_elsewhere() -> None:
    circuit = Circuit()
    assert circuit.late(1.0) is CircuitState.SUSPECT
    assert (circuit.standing(1.0), circuit.usable) == (Standing.LAST, True)
    assert circuit.probe_at == 1.0  # at once


def test_suspect_is_given_up_when_nothing_it_is_asked_for_comes() -> None:
    circuit = Circuit()
    circuit.late(0.0)
    for number in range(2, FAILURES_MAX):
        assert circuit.probe_failed(float(number), fatal=False, late=True) is None
    assert circuit.probe_failed(9.0, fatal=False, late=True) is CircuitState.OPEN
    assert circuit.probe_at == 9.0 + PROBE_S


def test_quick_call_clears_a_suspect_and_one_that_ends_well_does_not() -> None:
    """A call that ends now may have begun long before the backend hung."""
    circuit = Circuit()
    circuit.late(0.0)
    circuit.worked()
    assert circuit.standing(0.0) is Standing.LAST
    assert circuit.quick(0.1) is CircuitState.CLOSED


def test_slow_probe_does_not_clear_a_suspect_and_a_quick_one_does() -> None:
    circuit = Circuit()
    circuit.late(0.0)
    assert circuit.probe_worked(1.0, slow=True) is None
    assert circuit.probe_at == 1.0 + 2 * PROBE_S
    assert circuit.probe_worked(9.0) is CircuitState.HALF_OPEN


def test_backend_that_stays_slow_is_probed_less_and_less_often() -> None:
    """Such a probe may speak, which costs tokens."""
    circuit = Circuit()
    circuit.late(0.0)
    for _ in range(100):
        circuit.probe_worked(1.0, slow=True)
    assert circuit.probe_at == 1.0 + PROBE_SLOW_MAX_S
    circuit.quick(2.0)
    circuit.late(3.0)
    assert circuit.probe_at == 3.0


def test_given_up_backend_that_works_slowly_is_better_than_none() -> None:
    circuit = opened()
    for number in range(1, GOOD_PROBES):
        assert circuit.probe_worked(float(number), slow=True) is None
    assert circuit.probe_worked(9.0, slow=True) is CircuitState.SUSPECT
    assert (circuit.usable, circuit.standing(9.0)) == (True, Standing.LAST)


def test_slow_probe_of_a_backend_that_gets_calls_makes_it_a_suspect() -> None:
    assert Circuit().probe_worked(0.0, slow=True) is CircuitState.SUSPECT


# --- One call at a time ------------------------------------------------------------------------------


def half_open() -> Circuit:
    """At 10 s."""
    circuit = opened()
    for _ in range(GOOD_PROBES):
        circuit.probe_worked(10.0)
    assert circuit.state(10.0) is CircuitState.HALF_OPEN
    return circuit


def test_backend_that_came_back_gets_one_call_until_that_was_quick() -> None:
    circuit = half_open()
    assert circuit.standing(10.0) is Standing.FIRST
    circuit.chosen(10.0)
    assert circuit.standing(10.1) is Standing.BACK
    assert circuit.probe_worked(10.2) is None  # only a call decides
    assert circuit.quick(11.0) is CircuitState.CLOSED
    circuit.chosen(11.0)
    assert circuit.standing(11.0) is Standing.FIRST


def test_call_that_reports_nothing_makes_room_for_the_next() -> None:
    circuit = half_open()
    circuit.chosen(10.0)
    assert circuit.standing(9.9 + TRIAL_S) is Standing.BACK
    assert circuit.standing(10.0 + TRIAL_S) is Standing.FIRST


def test_one_bad_call_is_enough_for_a_backend_that_came_back() -> None:
    assert half_open().failed(11.0, fatal=False) is CircuitState.OPEN
    assert half_open().late(11.0) is CircuitState.SUSPECT


def test_each_relapse_takes_twice_as_many_good_probes() -> None:
    circuit, needed = half_open(), GOOD_PROBES
    for relapse in range(1, 8):
        now = 100.0 * relapse
        circuit.failed(now, fatal=False)
        needed = min(GOOD_PROBES_MAX, 2 * needed)
        for _ in range(needed - 1):
            assert circuit.probe_worked(now) is None
        assert circuit.probe_worked(now) is CircuitState.HALF_OPEN


def test_backend_that_has_worked_for_long_is_no_relapse() -> None:
    circuit = half_open()
    circuit.late(11.0)
    for _ in range(2):
        circuit.probe_worked(12.0)
    circuit.quick(13.0)
    circuit.late(13.0 + PROBATION_S)
    assert circuit.probe_worked(50.0) is CircuitState.HALF_OPEN


# --- Too many requests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_after_s", "pause_s"),
    [(None, PAUSE_S), (3.0, 3.0), (0.0, PAUSE_MIN_S), (86_400.0, PAUSE_MAX_S)],
)
def test_limited_backend_is_left_alone_for_as_long_as_it_says(retry_after_s: float | None, pause_s: float) -> None:
    circuit = Circuit()
    assert circuit.limited(0.0, retry_after_s) is CircuitState.RATE_LIMITED
    assert (circuit.usable, circuit.probe_at) == (True, None)
    assert circuit.standing(pause_s - 0.01) is Standing.LAST
    assert circuit.standing(pause_s) is Standing.FIRST
    assert circuit.state(pause_s) is CircuitState.HALF_OPEN


def test_limit_never_gives_a_backend_up_and_lasts_longer_each_time() -> None:
    circuit, now = Circuit(), 0.0
    for number in range(20):
        for _ in range(FAILURES_MAX):
            circuit.limited(now, None)
        pause_s = min(PAUSE_MAX_S, PAUSE_S * 2**number)
        assert circuit.standing(now + pause_s - 0.01) is Standing.LAST
        now += pause_s
        assert circuit.standing(now) is Standing.FIRST
    circuit.quick(now)
    circuit.limited(now, None)
    assert circuit.standing(now + PAUSE_S) is Standing.FIRST


def test_limited_probe_waits_as_well_and_gives_nothing_up() -> None:
    circuit = Circuit()
    circuit.late(0.0)
    for _ in range(FAILURES_MAX):
        circuit.probe_limited(1.0, 30.0)
    assert (circuit.state(1.0), circuit.probe_at) == (CircuitState.SUSPECT, 31.0)
