"""Converts instants and durations between what operators type or read, such as `30d`, and Unix milliseconds."""

import re
from datetime import UTC, datetime

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
LOOKS_LIKE = "30d, 12h, 45m, or an instant such as 2026-11-20 or 2026-11-20T14:30 (UTC)"


def span_ms(text: str) -> int:
    """Parse a duration such as `30d` into milliseconds. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip())
    if found is None:
        raise ValueError(f"{text!r} should be a duration such as 30d, 12h, 45m or 90s")
    return int(found[1]) * _UNITS_MS[found[2]]


def instant_ms(text: str, now_ms: int) -> int:
    """Parse `12h` (that long ago) or a date and time, by default in UTC, into Unix ms. Raises ValueError."""
    try:
        return now_ms - span_ms(text)
    except ValueError:
        pass
    try:
        instant = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} should be {LOOKS_LIKE}") from None
    return round((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1_000)


def shown(at_ms: int) -> str:
    """Format an instant to the second, in UTC."""
    return f"{datetime.fromtimestamp(at_ms / 1_000, UTC):%Y-%m-%d %H:%M:%S}"


def span_shown(ms: float) -> str:
    """Format a duration: 0.4 s, 1:05, 2:03:04."""
    if ms < 60_000:
        return f"{ms / 1_000:.1f} s"
    seconds = round(ms / 1_000)
    hours, minutes = seconds // 3_600, seconds // 60 % 60
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
