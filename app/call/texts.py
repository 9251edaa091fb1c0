"""Texts of peers, cut to a length that records, logs and messages can carry."""

CUT_MARK = " … (cut)"
"""Ends a text that was longer than may be kept, so that the reader knows."""


def cut(text: str, max_chars: int) -> str:
    """The text itself, or its beginning and CUT_MARK: never more than `max_chars` characters."""
    return text if len(text) <= max_chars else text[: max_chars - len(CUT_MARK)] + CUT_MARK
