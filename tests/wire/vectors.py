"""Message files, and ways to damage a message: shared by the tests of every dialect."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

VECTORS = Path(__file__).parent.parent / "vectors"


def lines(name: str) -> list[bytes]:
    """The messages of a file, one a line."""
    return (VECTORS / name).read_bytes().splitlines()


def event(kind: str, **values: Any) -> bytes:
    """A backend's server event."""
    return json.dumps({"type": kind, "event_id": "event_1", **values}).encode()


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where there is a value inside a message, itself included."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from paths(each, (*path, key))


def replaced(message: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """The message with another value in one place."""
    if not path:
        return value
    changed = deepcopy(message)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def without(message: Any, path: tuple[str | int, ...]) -> Any:
    """The message with a value taken out."""
    changed = deepcopy(message)
    place = changed
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return changed


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["", "0", "-1", "1e9", "AAAA", '"}', "inbound", "audio/pcmu", "٣", "\u0000", "²"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
"""Any JSON value, the awkward ones often."""


def damaged(messages: list[bytes]) -> st.SearchStrategy[bytes]:
    """A valid message with any of its values replaced by anything."""

    def at_a_path(message: Any) -> st.SearchStrategy[bytes]:
        where = st.sampled_from(list(paths(message)))
        return st.builds(lambda path, value: json.dumps(replaced(message, path, value)).encode(), where, anything)

    return st.sampled_from([json.loads(message) for message in messages]).flatmap(at_a_path)
