"""Tables of a configuration file: what they may have, and what is wrong with one. Knows no file and no line."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Fields = Mapping[str, tuple[Callable[[Any], Any], str]]
"""By name: how a value is read, raising ValueError, TypeError or AttributeError, and what it should look like."""


class TableError(ValueError):
    """A table cannot be used."""

    def __init__(self, path: tuple[str, ...], why: str) -> None:
        super().__init__(f"{'.'.join(path)}: {why}")
        self.path = path
        """From the outermost table to the field: ("zones", "eu", "regions")."""
        self.why = why


def read_fields(path: tuple[str, ...], table: Any, fields: Fields, required: Sequence[str]) -> dict[str, Any]:
    """The values of the table at `path`. Raises TableError for the first that is unknown, missing or wrong."""
    if not isinstance(table, dict):
        raise TableError(path, "should be a table")
    unknown = sorted(set(table) - set(fields))
    if unknown:
        raise TableError((*path, unknown[0]), f"there is no such field; known are {', '.join(fields)}")
    missing = [name for name in required if name not in table]
    if missing:
        raise TableError(path, f"{missing[0]} is missing; it should be {fields[missing[0]][1]}")
    values: dict[str, Any] = {}
    for name, value in table.items():
        read, looks_like = fields[name]
        try:
            values[name] = read(value)
        except (ValueError, TypeError, AttributeError):
            raise TableError((*path, name), f"should be {looks_like}") from None
    return values
