"""Instants and spans as operators type and read them."""

import re

import pytest

from app.cli.when import instant_ms, shown, span_ms, span_shown

NOW_MS = 1_763_632_800_123


@pytest.mark.parametrize(
    ("typed", "ms"), [("90s", 90_000), ("45m", 2_700_000), ("12h", 43_200_000), (" 30d ", 2_592_000_000)]
)
def test_span_is_a_number_and_a_unit(typed: str, ms: int) -> None:
    assert span_ms(typed) == ms


@pytest.mark.parametrize("typed", ["", "30", "d", "-1d", "1.5h", "1 d", "30D", "1w", "9999999d", "٣d"])
def test_anything_else_is_no_span(typed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(typed))):
        span_ms(typed)


@pytest.mark.parametrize(
    ("typed", "ms"),
    [
        ("1h", NOW_MS - 3_600_000),
        ("2025-11-20", 1_763_596_800_000),
        ("2025-11-20T10:00", 1_763_632_800_000),
        ("2025-11-20 10:00:00.123", NOW_MS),
        ("2025-11-20T11:00+01:00", 1_763_632_800_000),
        ("2025-11-20T10:00:00Z", 1_763_632_800_000),
    ],
)
def test_instant_is_so_long_ago_or_a_date_in_utc(typed: str, ms: int) -> None:
    assert instant_ms(typed, NOW_MS) == ms


@pytest.mark.parametrize("typed", ["", "yesterday", "20.11.2025", "2025-13-01", "5"])
def test_anything_else_is_no_instant(typed: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(typed))):
        instant_ms(typed, NOW_MS)


def test_instant_is_shown_to_the_second() -> None:
    assert shown(NOW_MS) == "2025-11-20 10:00:00"


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0.0 s"), (59_900, "59.9 s"), (60_000, "1:00"), (3_599_400, "59:59"), (3_661_000, "1:01:01")],
)
def test_span_is_shown_as_people_say_it(ms: int, text: str) -> None:
    assert span_shown(ms) == text
