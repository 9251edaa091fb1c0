"""Detects speech by its energy, on the clock of the audio *written*, as the backend's server VAD does.

It takes mu-law and returns when speech began and ended, in milliseconds of audio since the first byte. The speed
of writing makes no difference (realtime.md 1.5). It keeps no audio and sends no events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.sim.realtime.audio import BYTES_PER_MS, MULAW_LINEAR

WINDOW_MS: Final = 20  # one telephone frame
_WINDOW_BYTES: Final = WINDOW_MS * BYTES_PER_MS

ONSET_MS: Final = 60
"""Loud audio of this length counts as speech by default: longer than a click, shorter than a
syllable."""

_FULL_LEVEL: Final = 1000
"""Mean sample size (of 32768) that a threshold of 1.0 asks for: -30 dBFS. The default threshold of 0.5 lies
6 dB lower, well over a telephone's comfort noise and well under speech (-20 dBFS)."""

_LEVEL_SHIFT: Final = 4
_LEVELS: Final = bytes(min(255, abs(sample) >> _LEVEL_SHIFT) for sample in MULAW_LINEAR)
"""Loudness of each mu-law byte in one byte, so that a window costs one `translate` and one `sum`, both in C."""


@dataclass(frozen=True, slots=True)
class VadSettings:
    """The numbers of a `turn_detection` object (realtime.md 1.3, 2.2)."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    speech_duration_ms: int = ONSET_MS

    @property
    def onset_windows(self) -> int:
        """Loud windows that make speech."""
        return max(1, -(-self.speech_duration_ms // WINDOW_MS))

    @property
    def pause_windows(self) -> int:
        """Quiet windows that may be among them: what is longer than one syllable has gaps."""
        return max(0, self.onset_windows - ONSET_MS // WINDOW_MS)

    @property
    def longest_onset_ms(self) -> int:
        """From the first loud window to the detection."""
        return (self.onset_windows + self.pause_windows) * WINDOW_MS


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Speech was detected at `at_ms`; with the padding before it the turn begins at `start_ms`."""

    start_ms: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The silence after speech has lasted long enough; `end_ms` is the end of the turn and includes it."""

    end_ms: int


class EnergyVad:
    """The detector. Feed it everything that is written to the input buffer, in order."""

    def __init__(self, settings: VadSettings | None) -> None:
        self._rest = b""
        self._clock_ms = 0  # end of the last whole window
        self._cleared_at_ms = 0  # padding never reaches back over this
        self._onset_ms = 0  # start of the first of the loud windows
        self._loud_run = 0
        self._quiet_run = 0  # quiet ones among them
        self._quiet_ms = 0
        self.speaking = False
        self.configure(settings)

    def configure(self, settings: VadSettings | None) -> None:
        """Changes the settings, or switches detection off with None. The clock runs on."""
        self._settings = settings
        # A threshold of 0 must not take digital silence for speech.
        threshold = settings.threshold if settings else 1.0
        self._loud = max(1.0, threshold * _FULL_LEVEL * _WINDOW_BYTES / (1 << _LEVEL_SHIFT))
        if settings is None:
            self.restart()

    def restart(self) -> None:
        """Drops the turn in progress, whose audio the client has committed or cleared."""
        self.speaking = False
        self._loud_run = self._quiet_run = self._quiet_ms = 0
        self._cleared_at_ms = self._clock_ms

    def write(self, mulaw: bytes) -> Sequence[SpeechStarted | SpeechStopped]:
        """Returns the events in this audio, in order; most often there are none."""
        if self._rest:
            mulaw = self._rest + mulaw
        end = len(mulaw) - len(mulaw) % _WINDOW_BYTES
        self._rest = mulaw[end:]
        if self._settings is None:
            self._clock_ms += end // BYTES_PER_MS
            return ()
        events: list[SpeechStarted | SpeechStopped] = []
        for start in range(0, end, _WINDOW_BYTES):
            self._clock_ms += WINDOW_MS
            loud = sum(mulaw[start : start + _WINDOW_BYTES].translate(_LEVELS)) >= self._loud
            if event := self._hear(loud, self._settings):
                events.append(event)
        return events

    def _hear(self, loud: bool, settings: VadSettings) -> SpeechStarted | SpeechStopped | None:
        if self.speaking:
            self._quiet_ms = 0 if loud else self._quiet_ms + WINDOW_MS
            if self._quiet_ms < max(WINDOW_MS, settings.silence_duration_ms):
                return None
            self.restart()
            return SpeechStopped(self._clock_ms)
        if not loud:
            self._quiet_run += 1
            if self._quiet_run > settings.pause_windows:
                self._loud_run = self._quiet_run = 0
            return None
        if not self._loud_run:
            self._onset_ms, self._quiet_run = self._clock_ms - WINDOW_MS, 0
        self._loud_run += 1
        if self._loud_run < settings.onset_windows:
            return None
        self.speaking, self._quiet_ms = True, 0
        start_ms = max(self._cleared_at_ms, self._onset_ms - settings.prefix_padding_ms)
        return SpeechStarted(start_ms, self._clock_ms)
