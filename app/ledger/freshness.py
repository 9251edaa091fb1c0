"""Decides from its files whether a replica is in step with its primary, has to be restarted, or made anew.

    what is seen                                                        treatment
    a part of the file gone while the child has it open                 REBUILD: it writes where nobody reads
    SQLite calls it damaged                                             REBUILD
    shows the newest heartbeat that the primary is known to have        in step
    lacks it, STUCK_S long, and nothing arrives                         RESTART; when that did not help, REBUILD
    lacks it, and something arrives (a first download, a backlog)       patience, but LOST_S of it at most

A primary that is down acknowledges no heartbeat, so its outage is never held against the replica: a beat counts as
missing once the primary has acknowledged a later one. Time is an argument, and nothing here reads files or starts
processes.
"""

from dataclasses import dataclass
from enum import Enum

from app.ledger.machine_calls import Report

STUCK_S = 15.0
"""Three heartbeats. A sync takes a round trip, so by then it is not slow, it is broken (a connection that the
network forgot, a token that expired: the library has no time-out and tells nobody, libsql.md 1 and 6)."""
LOST_S = 900.0
"""A replica that still grows after so long and never shows the beat mixes the pages of two databases."""


class Treatment(Enum):
    """What to do with the replica."""

    KEEP = "keep"
    RESTART = "restart"
    REBUILD = "rebuild"


@dataclass(frozen=True, slots=True)
class Look:
    """What the files showed at one instant."""

    parts: frozenset[str]
    """Suffixes of the files that are there."""
    frame: bytes
    """The position in the primary's log, as the library notes it down."""
    beat_ms: int | None = None
    """This machine's newest heartbeat, Unix ms; None when there is none to be seen."""
    refused: int = 0
    """Records that the primary has set aside."""
    others: tuple[Report, ...] = ()
    """What other machines have reported about their calls."""
    damage: str | None = None
    """SQLite's message if it calls the file damaged."""


class Freshness:
    """What was seen of one replica so far, and what to do with it."""

    def __init__(self) -> None:
        self._parts: frozenset[str] = frozenset()
        self._frame = b""
        self._moved_s = 0.0
        self._in_step_s = 0.0
        self._missing_ms: int | None = None
        self._restarts = 0

    def connected(self, now_s: float) -> None:
        """A new child follows the primary from now on: patience starts again."""
        self._parts = frozenset()
        self._missing_ms = None
        self._moved_s = self._in_step_s = now_s

    def judge(self, look: Look, acked_ms: int | None, now_s: float) -> tuple[Treatment, str]:
        """Say what to do and why. `acked_ms` is the newest heartbeat that the primary has."""
        if look.damage is not None:
            return Treatment.REBUILD, look.damage
        if gone := self._parts - look.parts:
            return Treatment.REBUILD, f"somebody removed {', '.join(f'replica.db{part}' for part in sorted(gone))}"
        self._parts = look.parts
        if look.frame != self._frame:
            self._frame, self._moved_s = look.frame, now_s
        if acked_ms is None or (look.beat_ms is not None and look.beat_ms >= acked_ms):
            self._in_step_s = now_s
            self._missing_ms = None
            if acked_ms is not None:
                self._restarts = 0
            return Treatment.KEEP, ""
        return self._out_of_step(acked_ms, now_s)

    def _out_of_step(self, acked_ms: int, now_s: float) -> tuple[Treatment, str]:
        if self._missing_ms is None:
            self._missing_ms = acked_ms
        if acked_ms == self._missing_ms:
            return Treatment.KEEP, ""
        behind_s = now_s - self._in_step_s
        if behind_s >= LOST_S:
            return Treatment.REBUILD, f"behind the primary for {behind_s:.0f} s although data arrives"
        if now_s - max(self._moved_s, self._in_step_s) < STUCK_S:
            return Treatment.KEEP, ""
        self._restarts += 1
        why = f"behind the primary for {behind_s:.0f} s and nothing arrives"
        return (Treatment.RESTART if self._restarts == 1 else Treatment.REBUILD), why
