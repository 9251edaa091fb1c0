"""A backend's circuit: it opens on faults that others would meet, and closes only on what a probe has seen."""

import pytest

from app.backends.circuit import (
    FAILURES_MAX,
    FORGET_S,
    GOOD_PROBES,
    PROBATION_S,
    PROBE_FATAL_S,
    PROBE_S,
    Circuit,
)


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
    circuit.failed(100.0 + later_s, fatal=False)
    assert circuit.usable == usable
