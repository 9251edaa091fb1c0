"""Measured times: which of several backends goes first, and that calls do not go now here, now there."""

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.backends.speeds import CLEARLY_MS, CLEARLY_SHARE, SLOWER_MS, Speeds
from app.backends.table import Backend, BackendEntry, choose
from app.regions.zones import shipped_zones

NAMES = ("a", "b", "c")


def order(speeds: Speeds, names: Iterable[str] = NAMES) -> str:
    return "".join(sorted(names, key=speeds.rank))


def measured(times: Mapping[str, float]) -> Speeds:
    speeds = Speeds(NAMES)
    for name, ms in times.items():
        speeds.measured(name, ms)
    return speeds


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({}, "abc"),
        ({"b": 1}, "abc"),  # of the others nothing is known
        ({"a": 300, "b": 250}, "abc"),  # 50 ms, and less than a fifth
        ({"a": 300, "b": 239}, "bac"),
        ({"a": 60, "b": 20}, "abc"),  # a fifth, and less than 50 ms
        ({"a": 300, "b": 270, "c": 200}, "cab"),
        ({"a": 300, "c": 100}, "cba"),  # b keeps its place
        ({"c": 100, "b": 200, "a": 300}, "cba"),
        ({"a": 100, "b": 200, "c": 300}, "abc"),
    ],
)
def test_backend_goes_before_another_only_when_it_is_clearly_sooner(
    times: Mapping[str, float], expected: str
) -> None:
    assert order(measured(times)) == expected


def test_order_does_not_depend_on_the_order_of_the_configuration() -> None:
    assert order(Speeds(("c", "a", "b"))) == "abc"


def test_one_slow_answer_changes_nothing_and_a_slow_minute_does() -> None:
    speeds = measured({"a": 300, "b": 300, "c": 300})
    speeds.measured("a", 500)
    assert order(speeds) == "abc"
    for _ in range(4):
        speeds.measured("a", 500)
    assert order(speeds) == "bca"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(280, 320))))
def test_times_that_differ_by_chance_never_change_the_order(times: list[tuple[str, float]]) -> None:
    speeds = measured({"a": 300, "b": 200})
    assert order(speeds) == "bac"
    speeds = measured({"a": 300, "b": 300})
    for name, ms in times:
        speeds.measured(name, ms)
        assert order(speeds) == "abc"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(1, 5_000)), max_size=60))
def test_backend_that_was_overtaken_needs_to_be_clearly_sooner_again(times: list[tuple[str, float]]) -> None:
    speeds, mean, first = Speeds("ab"), dict[str, float](), "a"
    for name, ms in times:
        speeds.measured(name, ms)
        mean[name] = mean.get(name, ms) + 0.25 * (ms - mean.get(name, ms))
        leader = order(speeds, "ab")[0]
        if leader != first:
            gain = mean[first] - mean[leader]
            assert gain >= CLEARLY_MS * 0.999
            assert gain >= CLEARLY_SHARE * mean[first] * 0.999
        first = leader


def test_measured_times_decide_only_between_equally_near_backends() -> None:
    def backend(name: str, near: tuple[str, ...] = ()) -> Backend:
        return Backend(BackendEntry(name, "openai", "https://x.test/v1", "K", frozenset(), near), "k")

    rank = measured({"a": 900, "b": 100, "c": 10}).rank
    backends = (backend("a"), backend("b"), backend("c", ("nrt",)))

    def chosen(region: str, *preferred: str) -> tuple[str, str]:
        found = choose(backends, shipped_zones()["global"], region, preferred, lambda _name: True, rank)
        assert found is not None
        return found.backend.name, found.why

    assert chosen("fra") == ("b", "fastest")
    assert chosen("fra", "a") == ("a", "preferred")
    assert chosen("nrt") == ("c", "nearest")


def test_first_audio_counts_between_backends_that_were_both_heard() -> None:
    speeds = measured({"a": 300, "b": 350, "c": 360})
    speeds.measured_first_audio("a", 2_000)
    assert order(speeds) == "abc"
    speeds.measured_first_audio("b", 600)
    assert order(speeds) == "bac"


@pytest.mark.parametrize(
    ("ms", "others", "slow"),
    [
        (300 + SLOWER_MS, "abc", True),
        (299 + SLOWER_MS, "abc", False),
        (3_000, "a", False),  # there is no other one
        (3_000, "ac", False),  # of which nothing is known
    ],
)
def test_session_is_slow_only_beside_a_much_quicker_one(ms: float, others: str, slow: bool) -> None:
    speeds = measured({"a": 200, "b": 300})
    assert speeds.is_slow("a", ms, others) is slow
