"""What to say about a name that is not known, in a file or on a command line."""

import difflib
from collections.abc import Iterable

LISTED_MAX = 30
"""A longer list of names does not help to find one."""


def close_to(name: str, names: Iterable[str], similar: float = 0.65) -> str:
    """The name that was probably meant; empty if none is similar enough (from 0 to 1)."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=similar)), "")


def instead(name: str, names: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: which one was meant, or which ones are known."""
    there = list(names)
    close = close_to(name, there)
    if close:
        return f"; did you mean {close}?"
    match len(there):
        case 0:
            return "; there are none yet"
        case 1:
            return f"; known is {there[0]}"
        case few if few <= LISTED_MAX:
            return f"; known are {', '.join(there)}"
    return ""
