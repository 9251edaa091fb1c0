"""The input audio buffer of a session: the caller's audio since the last commit (realtime.md 1.4, 1.5).

Audio is read in the configured format only: mu-law for a session that still expects PCM becomes noise, as in the
real service.
"""

from collections.abc import Sequence
from typing import Final

from app.sim.realtime.audio import BYTES_PER_MS, AudioFormat, Decoder
from app.sim.realtime.schema import Refusal
from app.sim.realtime.vad import WINDOW_MS, EnergyVad, SpeechStarted, SpeechStopped, VadSettings

MAX_BUFFERED_MS: Final = 300_000
"""Five minutes of an endless turn are kept and older audio is dropped, in steps: at most 4.8 MB are held. The
real limit is not documented."""

SHORTEST_COMMIT_MS: Final = 100  # realtime.md 1.4


class InputBuffer:
    """Buffers audio, returns the detector's events, and gives out the audio of a turn."""

    def __init__(self, audio_format: AudioFormat, settings: VadSettings | None) -> None:
        self._decoder = Decoder(audio_format)
        self._vad = EnergyVad(settings)
        self._settings = settings
        self._audio = bytearray()
        self._start = 0  # position of the first byte of `_audio` on the clock of written audio, in bytes

    @property
    def clock_ms(self) -> int:
        """How much audio has been written since the session began."""
        return (self._start + len(self._audio)) // BYTES_PER_MS

    @property
    def is_speaking(self) -> bool:
        return self._vad.speaking

    def read_as(self, audio_format: AudioFormat) -> None:
        """Audio written from now on is in this format."""
        self._decoder = Decoder(audio_format)

    def detect(self, settings: VadSettings | None) -> None:
        """Changes the detector, or switches it off with None."""
        self._settings = settings
        self._vad.configure(settings)

    def write(self, data: bytes) -> Sequence[SpeechStarted | SpeechStopped]:
        """Takes audio in the session's format. Returns the events that it caused in the detector, in order."""
        mulaw = self._decoder.decode(data)
        self._forget_old()
        self._audio += mulaw
        return self._vad.write(mulaw)

    def begin_turn(self, start_ms: int) -> None:
        """Begins a turn: audio before its start does not belong to it."""
        self._drop_before(start_ms * BYTES_PER_MS)

    def end_turn(self, end_ms: int) -> bytes:
        """Takes the turn that the detector ended. Audio after its end stays."""
        end = end_ms * BYTES_PER_MS
        turn = bytes(self._audio[: end - self._start])
        self._drop_before(end)
        return turn

    def commit(self) -> bytes:
        """Takes everything for a client's commit; raises Refusal when that is less than 100 ms."""
        buffered_ms = len(self._audio) / BYTES_PER_MS
        if buffered_ms < SHORTEST_COMMIT_MS:
            raise Refusal(
                "input_audio_buffer_commit_empty",
                "Error committing input audio buffer: buffer too small. Expected at least "
                f"{SHORTEST_COMMIT_MS}ms of audio, but buffer only has {buffered_ms:.2f}ms of audio.",
            )
        taken = bytes(self._audio)
        self.clear()
        return taken

    def clear(self) -> None:
        """Drops the audio that was not committed, also of a turn in progress. The clock runs on."""
        self._drop_before(self._start + len(self._audio))
        self._vad.restart()

    def _forget_old(self) -> None:
        """Drops old audio. Between turns only what a turn could begin with is kept, to bound the memory."""
        keep_ms = MAX_BUFFERED_MS
        if self._settings and not self._vad.speaking:
            keep_ms = self._settings.prefix_padding_ms + self._settings.longest_onset_ms + WINDOW_MS
        keep = keep_ms * BYTES_PER_MS
        if len(self._audio) > 2 * keep:  # not at each frame: moving the rest to the front has its price
            self._drop_before(self._start + len(self._audio) - keep)

    def _drop_before(self, position: int) -> None:
        drop = min(max(0, position - self._start), len(self._audio))
        del self._audio[:drop]
        self._start += drop
