"""Tables of a configuration file: what they may have, and what is wrong with one. Knows no file and no line."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from app.suggestions import instead
from app.urls import UrlError

_T = TypeVar("_T")

Fields = Mapping[str, tuple[Callable[[Any], Any], str]]
"""By name: how a value is read, raising ValueError, TypeError or AttributeError, and what it should look like."""


class TableError(ValueError):
    """A table cannot be used."""

    def __init__(self, path: tuple[str, ...], why: str) -> None:
        super().__init__(f"{'.'.join(path)}: {why}")
        self.path = path
        """From the outermost table to the field: ("zones", "eu", "regions")."""
        self.why = why
        self.more: tuple[TableError, ...] = ()
        """What else is wrong."""

    @property
    def every(self) -> "tuple[TableError, ...]":
        """This one first."""
        return (self, *self.more)


def _refuse(errors: Sequence[TableError]) -> None:
    """Raises the first, which has the others; nothing without any."""
    if errors:
        first, *more = (each for error in errors for each in error.every)
        first.more = tuple(more)
        raise first


def read_each(tables: Mapping[str, Any], read: Callable[[str, Any], _T]) -> dict[str, _T]:
    """What each table is, by its name. Raises TableError with all that is wrong with any of them."""
    found: dict[str, _T] = {}
    errors: list[TableError] = []
    for name, table in tables.items():
        try:
            found[name] = read(name, table)
        except TableError as error:
            errors.append(error)
    _refuse(errors)
    return found


def read_fields(path: tuple[str, ...], table: Any, fields: Fields, required: Sequence[str]) -> dict[str, Any]:
    """The values of the table at `path`. Raises TableError with all that is unknown, missing or wrong."""
    if not isinstance(table, dict):
        raise TableError(path, "should be a table")
    errors = [
        TableError(path, f"{name} is missing; it should be {fields[name][1]}")
        for name in required
        if name not in table
    ]
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in fields:
            errors.append(TableError((*path, name), f"there is no such field{instead(name, fields)}"))
            continue
        read, looks_like = fields[name]
        try:
            values[name] = read(value)
        except UrlError as error:
            errors.append(TableError((*path, name), f"should be {looks_like} ({error})"))
        except (ValueError, TypeError, AttributeError):
            errors.append(TableError((*path, name), f"should be {looks_like}"))
    _refuse(errors)
    return values
