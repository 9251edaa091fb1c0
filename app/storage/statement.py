"""SQL with its values, in the few types that every form of libSQL takes. Knows no tables and no connection."""

from dataclasses import dataclass

Value = int | str | None
Row = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement and what goes in place of its question marks."""

    sql: str
    values: Row
