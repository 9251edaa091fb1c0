"""Figures, verdicts and how a stranger reads them: one table, or JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_HEADINGS = ("", "nearcall", "least relay", "budget", "")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. A figure without a budget is there to be known."""

    group: str
    what: str
    unit: str
    measured: float
    relay: float | None = None
    """The same of the least relay, in the same run: what the machine itself costs."""
    budget: float | None = None
    at_least: bool = False
    """The budget is a lower bound."""
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Within the budget; None without one."""
        if self.budget is None:
            return None
        return self.measured >= self.budget if self.at_least else self.measured <= self.budget

    @property
    def verdict(self) -> str:
        """The last column."""
        if self.ok is None:
            return self.note
        noisy = not self.ok and not self.at_least and self.relay is not None and self.relay > (self.budget or 0)
        notes = [
            "ok" if self.ok else "MISSED",
            self.note,
            "so does the least relay: a noisy machine" if noisy else "",
        ]
        return ", ".join(note for note in notes if note)

    def as_json(self) -> dict[str, object]:
        """For machines."""
        return {
            "group": self.group,
            "what": self.what,
            "unit": self.unit,
            "measured": round(self.measured, 4),
            "relay": None if self.relay is None else round(self.relay, 4),
            "budget": self.budget,
            "budget_is": "at least" if self.at_least else "at most",
            "ok": self.ok,
            "note": self.note,
        }


def percentile(values: Iterable[int], share: float) -> float:
    """The value that `share` of all values do not exceed; 0 of nothing."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * share))]) if ordered else 0.0


def table(rows: Sequence[Row]) -> str:
    """The figures, grouped, in columns."""
    lines: list[tuple[str, ...]] = []
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append((group,))
        sign = "at least " if row.at_least else ""
        lines.append(
            (
                f"  {row.what}",
                _shown(row.measured, row.unit),
                "" if row.relay is None else _shown(row.relay, row.unit),
                "" if row.budget is None else sign + _shown(row.budget, row.unit),
                row.verdict,
            )
        )
    cells = [_HEADINGS, *(line for line in lines if len(line) > 1)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS))]
    return "\n".join(_line(line, widths) for line in [_HEADINGS, *lines])


def _line(line: Sequence[str], widths: Sequence[int]) -> str:
    if len(line) == 1:
        return f"\n{line[0]}"
    first, *middle, last = line
    numbers = "  ".join(cell.rjust(width) for cell, width in zip(middle, widths[1:], strict=False))
    return f"{first.ljust(widths[0])}  {numbers}  {last}".rstrip()


def _shown(value: float, unit: str) -> str:
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}".rstrip()
