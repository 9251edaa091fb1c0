"""Keeps what was said and heard in a call on one timeline, and measures when the agent speaks.

Pure: times are given, audio is 8 kHz mu-law. It knows nothing of streams, marks or files.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from app.sim.phone.playout import BYTES_PER_S, Played
from app.sim.wav import MULAW_SILENCE, mulaw_to_pcm

BLOCK_BYTES: Final = 160
BLOCK_MS: Final = 20

_CONTIGUOUS_S: Final = 1e-6
_LOUD: Final = 4
"""Mean of |sample| / 64 from which 20 ms count as speech: 256 of 32768, about -42 dB below full scale."""

_QUIET_S: Final = 0.6
"""Speech is over after this much silence; pauses inside a sentence are shorter."""

_MAGNITUDE: Final = bytes(min(255, abs(sample) >> 6) for sample in mulaw_to_pcm(bytes(range(256))))


def is_loud(block: bytes | bytearray) -> bool:
    """True when 20 ms of mu-law are loud enough to be speech."""
    return sum(block.translate(_MAGNITUDE)) >= _LOUD * BLOCK_BYTES


class Track:
    """Audio with the time at which each stretch of it was said or heard."""

    def __init__(self) -> None:
        self._stretches: list[tuple[float, bytearray]] = []

    def add(self, at: float, audio: bytes) -> None:
        """Times must not go back."""
        if self._stretches:
            start, stretch = self._stretches[-1]
            if abs(start + len(stretch) / BYTES_PER_S - at) < _CONTIGUOUS_S:
                stretch += audio
                return
        self._stretches.append((at, bytearray(audio)))

    def between(self, start: float, end: float) -> bytes:
        """Returns exactly (end - start) seconds of audio, with silence where there was none."""
        audio = bytearray([MULAW_SILENCE]) * max(0, round((end - start) * BYTES_PER_S))
        for at, stretch in self._stretches:
            offset = round((at - start) * BYTES_PER_S)
            piece = stretch[max(0, -offset) : max(0, len(audio) - offset)]
            audio[max(0, offset) : max(0, offset) + len(piece)] = piece
        return bytes(audio)


@dataclass(frozen=True, slots=True)
class SpeechSpan:
    """The agent spoke from `started_at`, for `ms` up to its last loud 20 ms."""

    started_at: float
    ms: int


class SpeechMeter:
    """Tells speech from silence by loudness, 20 ms at a time, in the order in which it is heard."""

    def __init__(self) -> None:
        self.speech_ms = 0
        self._block = bytearray()
        self._span_start: float | None = None
        self._last_loud = 0.0

    @property
    def speaking(self) -> bool:
        return self._span_start is not None

    @property
    def speaking_since(self) -> float | None:
        """When the present stretch of speech began; None during silence."""
        return self._span_start

    def hear(self, at: float, audio: bytes) -> None:
        """Takes audio that was heard from `at` on."""
        self._block += audio
        end = at + len(audio) / BYTES_PER_S
        while len(self._block) >= BLOCK_BYTES:
            block = self._block[:BLOCK_BYTES]
            block_end = end - (len(self._block) - BLOCK_BYTES) / BYTES_PER_S
            del self._block[:BLOCK_BYTES]
            if is_loud(block):
                self._loud(block_end)

    def finished(self, now: float, *, over: bool = False) -> SpeechSpan | None:
        """Returns the speech that ended by `now`. With `over` it ends at once: the agent was cut off."""
        if self._span_start is None or (not over and now - self._last_loud < _QUIET_S):
            return None
        span = SpeechSpan(self._span_start, round((self._last_loud - self._span_start) * 1000))
        self._span_start = None
        if over:
            self._block.clear()  # what is left of a cut-off word is no part of the next one
        return span

    def _loud(self, end: float) -> None:
        self.speech_ms += BLOCK_MS
        self._last_loud = end
        if self._span_start is None:
            self._span_start = end - BLOCK_MS / 1000


class SpeechQueue:
    """The audio that the caller has yet to say, in frames of 20 ms, and a track of what was said."""

    def __init__(self, track: Track | None) -> None:
        self._queue = bytearray()
        self._track = track

    @property
    def silent(self) -> bool:
        return not self._queue

    def say(self, audio: bytes) -> None:
        self._queue += audio

    def frame(self, at: float) -> bytes | None:
        """Returns the 20 ms before `at`, None for silence. A last short piece is filled up with silence."""
        if not self._queue:
            return None
        frame = bytes(self._queue[:BLOCK_BYTES]).ljust(BLOCK_BYTES, bytes([MULAW_SILENCE]))
        del self._queue[:BLOCK_BYTES]
        if self._track is not None:
            self._track.add(at - BLOCK_MS / 1000, frame)
        return frame


class HeardSpeech:
    """The agent's audio that the caller heard: its measure and, if kept, its track."""

    def __init__(self, track: Track | None, listener: Callable[[float, bytes], None] | None = None) -> None:
        self.meter = SpeechMeter()
        self._track = track
        self._listener = listener

    def hear(self, pieces: Iterable[Played]) -> None:
        for piece in pieces:
            self.meter.hear(piece.at, piece.audio)
            if self._listener is not None:
                self._listener(piece.at, piece.audio)
            if self._track is not None:
                self._track.add(piece.at, piece.audio)
