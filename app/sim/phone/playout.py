"""Twilio's playout buffer: the agent's audio that waits to be played, and how much of it was really played.

Pure arithmetic: every call takes `now`, in seconds of one monotonic clock. No socket, no JSON.

The model (twilio.md 1.4, 1.5): bytes play at 8 per millisecond in order of arrival. When the last byte has been
played the clock stops; the next byte starts it again at the moment it arrives. A mark stands at a position in the
bytes and comes back when every byte before it was played, at once if nothing waits. `clear` throws away
what waits and gives back every pending mark, in order: such an echo means "gone", not "heard".

A *position* counts every byte ever accepted, so it stays valid across a clear: the audio between two
positions can be asked for at any time later, and `heard_bytes` says how much of it reached the ear.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

BYTES_PER_MS: Final = 8
BYTES_PER_S: Final = 8000

CAPACITY_BYTES: Final = 4_800_000
"""Ten minutes; more is discarded with warning 31931 (twilio.md 1.5)."""

_ROUNDING_BYTES: Final = 1e-3
"""A byte counts as played this much early: float seconds of a long-running clock do not divide by 8000 exactly."""


@dataclass(slots=True)
class Segment:
    """Bytes `start` to `end` (positions) were heard without a break, the first of them at `at`."""

    at: float
    start: int
    end: int

    @property
    def ended_at(self) -> float:
        """When its last byte so far was played."""
        return self.at + (self.end - self.start) / BYTES_PER_S


@dataclass(frozen=True, slots=True)
class Played:
    """Audio that was heard from `at` on."""

    at: float
    audio: bytes


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark stands behind `position` bytes."""

    name: str
    position: int


@dataclass(frozen=True, slots=True)
class Echo:
    """A mark goes back. `heard`: all audio before it was played or cleared earlier; False: this clear took it."""

    name: str
    position: int
    heard: bool


@dataclass(frozen=True, slots=True)
class Cleared:
    """What a clear did: the last position heard before it, what it threw away, the marks it gave back."""

    played_to: int
    discarded_bytes: int
    echoes: list[Echo]


class PlayoutBuffer:
    """The buffer that the module describes. `now` must never go back."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.segments: list[Segment] = []
        self._capacity_bytes = capacity_bytes
        self._waiting = bytearray()
        self._marks: deque[Mark] = deque()
        self._playing: Segment | None = None  # None: nothing waits, the clock stands
        self._position = 0  # of the next byte to be played
        self._fresh: list[Played] = []
        self._now = float("-inf")

    @property
    def appended(self) -> int:
        """The position after the last accepted byte."""
        return self._position + len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes were waiting at the last `now`."""
        return len(self._waiting)

    def append(self, audio: bytes, now: float) -> int:
        """Queue audio. Returns how many bytes of it were discarded because the buffer is full."""
        self._advance(now)
        accepted = audio[: self._capacity_bytes - len(self._waiting)]
        if accepted and self._playing is None:
            self._playing = Segment(now, self._position, self._position)
            self.segments.append(self._playing)
        self._waiting += accepted
        return len(audio) - len(accepted)

    def mark(self, name: str, now: float) -> None:
        """Queue a mark behind everything appended so far; `due` gives it back."""
        self._advance(now)
        self._marks.append(Mark(name, self.appended))

    def due(self, now: float) -> list[Echo]:
        """The marks whose audio has been played by `now`, in order; each is given once."""
        self._advance(now)
        echoes = []
        while self._marks and self._marks[0].position <= self._position:
            mark = self._marks.popleft()
            echoes.append(Echo(mark.name, mark.position, heard=True))
        return echoes

    def next_due(self) -> float | None:
        """When `due` will have something to give, if nothing else happens until then."""
        if not self._marks:
            return None
        if self._playing is None or self._marks[0].position <= self._position:
            return self._now
        return self._time_of(self._playing, self._marks[0].position)

    def clear(self, now: float) -> Cleared:
        """Discards what was not played by `now`."""
        self._advance(now)
        played_to, discarded = self._position, len(self._waiting)
        echoes = [Echo(m.name, m.position, heard=m.position <= played_to) for m in self._marks]
        self._marks.clear()
        self._waiting.clear()
        self._position += discarded
        self._playing = None
        return Cleared(played_to, discarded, echoes)

    def take_played(self, now: float) -> list[Played]:
        """What was heard since the last call, for recording it."""
        self._advance(now)
        fresh, self._fresh = self._fresh, []
        return fresh

    def heard_bytes(self, start: int, end: int, now: float) -> int:
        """How many of the bytes from position `start` to `end` were really played by `now`."""
        self._advance(now)
        return sum(max(0, min(end, s.end) - max(start, s.start)) for s in self.segments)

    def _advance(self, now: float) -> None:
        assert now >= self._now, f"time went back from {self._now} to {now}"
        self._now = now
        run = self._playing
        if run is None:
            return
        elapsed_bytes = int((now - run.at) * BYTES_PER_S + _ROUNDING_BYTES)
        count = min(run.start + elapsed_bytes - self._position, len(self._waiting))
        if count <= 0:
            return
        self._fresh.append(Played(self._time_of(run, self._position), bytes(self._waiting[:count])))
        del self._waiting[:count]
        self._position += count
        run.end = self._position
        if not self._waiting:
            self._playing = None

    @staticmethod
    def _time_of(run: Segment, position: int) -> float:
        return run.at + (position - run.start) / BYTES_PER_S
