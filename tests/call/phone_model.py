"""What Twilio does with the audio we send, written down once more and differently: the measure of what was heard.

From twilio.md 1.4 and 1.5: audio is appended and played at once at 8 bytes a millisecond; a mark comes back when
all before it was played, at once when the buffer is empty; a clear throws everything away and returns all marks.
Messages take `one_way_s` each way. Playback may stall. Knows nothing of how the core reckons.
"""

from dataclasses import dataclass, field


def mulaw(letter: str, ms: int) -> str:
    """Base64 of `ms` of audio, recognisable by its letter."""
    groups, rest = divmod(ms * 8, 3)
    return letter * (4 * groups) + ("", letter * 2 + "==", letter * 3 + "=")[rest]


def length_ms(payload: str) -> float:
    """The length of such audio."""
    return (len(payload) * 3 / 4 - payload.count("=")) / 8


@dataclass(slots=True)
class _Chunk:
    letter: str
    begins_at: float
    ends_at: float


@dataclass(slots=True)
class _Mark:
    name: str
    played_at: float


@dataclass(slots=True)
class Phone:
    """One stream, seen from Twilio's side of it. Instants given are ours: when a message is sent or received."""

    one_way_s: float = 0.0
    stalls: tuple[tuple[float, float], ...] = ()
    """When playback stands still: instants and seconds, at Twilio's side, in order."""
    late_s: tuple[float, ...] = (0.0,)
    """How much later than `one_way_s` the marks come back, one after the other, over and over."""
    loses_marks: bool = False
    cleared_at: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    """How long playback stood still for want of audio, after the first."""
    most_ms: float = 0.0
    """The most audio that was ever here at once."""
    _chunks: list[_Chunk] = field(default_factory=list)
    _marks: list[_Mark] = field(default_factory=list)
    _end: float = 0.0
    _taken: int = 0
    _last_return: float = 0.0

    def audio(self, payload: str, now: float) -> None:
        """A media message was sent to it."""
        arrives = now + self.one_way_s
        if self._chunks and arrives > self._end:
            self.gaps_s.append(arrives - self._end)
        begins = self._moves_at(max(arrives, self._end))
        self._end = self._after(begins, length_ms(payload) / 1000)
        self._chunks.append(_Chunk(payload[0], begins, self._end))
        self.most_ms = max(self.most_ms, 1000 * (self._ran(self._end) - self._ran(arrives)))

    def mark(self, name: str, now: float) -> None:
        """A mark message was sent to it."""
        if not self.loses_marks:
            self._marks.append(_Mark(name, max(now + self.one_way_s, self._end)))

    def clear(self, now: float) -> None:
        """A clear message was sent to it."""
        self.cleared_at = arrives = now + self.one_way_s
        self._end = min(self._end, arrives)
        self._chunks = [chunk for chunk in self._chunks if chunk.begins_at < arrives]
        for chunk in self._chunks:
            chunk.ends_at = min(chunk.ends_at, arrives)
        for mark in self._marks:
            mark.played_at = min(mark.played_at, arrives)

    def returns_at(self) -> float | None:
        """When the next mark comes back to us."""
        if not self._marks:
            return None
        late = self.late_s[self._taken % len(self.late_s)]
        return max(self._marks[0].played_at + self.one_way_s + late, self._last_return)

    def take_mark(self) -> str:
        """The mark that comes back."""
        self._last_return = self.returns_at() or 0.0
        self._taken += 1
        return self._marks.pop(0).name

    def played_ms(self, letter: str, until: float = float("inf")) -> float:
        """How much of the audio of this letter came out of the loudspeaker until an instant of Twilio's."""
        return sum(
            1000 * (self._ran(min(chunk.ends_at, until)) - self._ran(chunk.begins_at))
            for chunk in self._chunks
            if chunk.letter == letter and chunk.begins_at < until
        )

    # Playback runs, stands still while stalled, and runs again: `_ran` is the time it ran until an instant.

    def _ran(self, at: float) -> float:
        return at - sum(max(0.0, min(at, begin + length) - begin) for begin, length in self.stalls)

    def _moves_at(self, at: float) -> float:
        return next((b + length for b, length in self.stalls if b <= at < b + length), at)

    def _after(self, at: float, run_s: float) -> float:
        """When playback that begins at `at` has run for so long."""
        end = at + run_s
        for begin, length in self.stalls:
            if at <= begin < end:
                end += length
        return end
