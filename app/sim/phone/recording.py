"""Finds the speech in a recording, as a server's voice detection would."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.sim.phone.playout import BYTES_PER_S
from app.sim.realtime.vad import EnergyVad, SpeechStarted, VadSettings
from app.sim.wav import MULAW_SILENCE, WavError, read_wav

PAUSE_MS: Final = 200
"""The shortest silence after which a server may take the caller's turn to be over."""

_VAD: Final = VadSettings(prefix_padding_ms=0, silence_duration_ms=PAUSE_MS)


@dataclass(frozen=True, slots=True)
class Utterance:
    """Speech without a pause, in seconds from the beginning of its recording."""

    start_s: float
    end_s: float


def utterances(audio: bytes) -> tuple[Utterance, ...]:
    """Returns the speech in 8 kHz mu-law audio, in order; empty when there is none."""
    vad = EnergyVad(_VAD)
    found: list[Utterance] = []
    start_ms = 0
    silence = bytes([MULAW_SILENCE]) * (2 * PAUSE_MS * BYTES_PER_S // 1000)  # ends what lasts to the end
    for event in vad.write(audio + silence):
        if isinstance(event, SpeechStarted):
            start_ms = event.start_ms
        else:
            end_s = min((event.end_ms - PAUSE_MS) / 1000, len(audio) / BYTES_PER_S)
            found.append(Utterance(start_ms / 1000, end_s))
    return tuple(found)


def read_speech(path: Path) -> bytes:
    """Reads a recording for the caller to say, as 8 kHz mu-law.

    Raises WavError when it cannot be read or when a server would hear no speech in it.
    """
    audio = read_wav(path)
    if not utterances(audio):
        raise WavError(f"{path}: there is no speech in it that a server would hear, so nothing to answer")
    return audio
