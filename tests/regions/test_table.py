"""Distances between regions: estimates, but the order of nearest regions must be the one a map shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.regions.table import HOMES, REGIONS, nearest_first, region_code, rtt_ms
from app.regions.zones import shipped_zones
from app.validation import WrongValueError

CODES = st.sampled_from(sorted(REGIONS))


@given(CODES, CODES)
def test_way_there_is_as_long_as_the_way_back(one: str, other: str) -> None:
    assert rtt_ms(one, other) == pytest.approx(rtt_ms(other, one))
    assert (rtt_ms(one, other) > rtt_ms(one, one)) == (one != other)


@pytest.mark.parametrize(
    ("origin", "order"),
    [
        ("iad", ["iad", "lax", "fra", "gru", "nrt", "syd"]),
        ("fra", ["fra", "iad", "lax", "gru", "nrt", "syd"]),
        ("syd", ["syd", "nrt", "lax", "gru", "iad", "fra"]),
        ("cdg", ["fra", "iad", "lax", "gru", "nrt", "syd"]),
    ],
)
def test_nearest_comes_first(origin: str, order: list[str]) -> None:
    assert list(nearest_first(origin, HOMES)) == order


def test_estimates_are_of_the_size_that_is_measured_between_such_cities() -> None:
    assert 80 < rtt_ms("fra", "iad") < 110
    assert 8 < rtt_ms("fra", "cdg") < 15
    assert 220 < rtt_ms("fra", "syd") < 300
    assert 200 < rtt_ms("fra", "nrt") < 260


@given(CODES, st.lists(CODES))
def test_every_region_comes_once(origin: str, regions: list[str]) -> None:
    ordered = nearest_first(origin, regions)
    assert sorted(ordered) == sorted(set(regions))
    assert [rtt_ms(origin, each) for each in ordered] == sorted(rtt_ms(origin, each) for each in set(regions))


def test_codes_are_flys() -> None:
    assert set(HOMES) <= set(REGIONS)
    eu = shipped_zones()["eu"]
    assert eu.regions is not None
    assert eu.regions <= set(REGIONS)
    assert not eu.allows("lhr")
    assert len(REGIONS) == 18


@pytest.mark.parametrize(
    ("text", "meant"),
    [("tokyo", "nrt"), ("Sydney", "syd"), ("sidney", "syd"), ("fraa", "fra"), ("mars", ""), ("FRA", "fra")],
)
def test_unknown_region_is_refused_with_the_code_that_was_meant(text: str, meant: str) -> None:
    assert region_code("fra") == "fra"
    with pytest.raises(WrongValueError) as raised:
        region_code(text)
    assert raised.value.suggestion == meant
