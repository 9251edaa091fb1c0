"""What to say of a name that nobody knows, in a file or on a command line."""

import difflib
from collections.abc import Iterable

LISTED_MAX = 30
"""More names than that help nobody who looks for one."""


def instead(name: str, names: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: what was meant, or what there is."""
    there = list(names)
    close = difflib.get_close_matches(name, there, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    match len(there):
        case 0:
            return "; none is known"
        case 1:
            return f"; known is {there[0]}"
        case few if few <= LISTED_MAX:
            return f"; known are {', '.join(there)}"
    return ""
