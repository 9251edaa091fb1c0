"""The sentences that the simulated agent can say, and which of them fits a request.

The recordings are in `voices/`; scripts/make-speech makes them.
"""

import struct
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from typing import Final

_WAVE_FORMAT_MULAW: Final = 7


class Sentence(Enum):
    """A shipped recording: the file's name and the words in it."""

    GREETING = "greeting", "Hello, this is the nearcall demo. Say something, and I will repeat it back to you."
    YOU_SAID = "you_said", "You said:"
    CLOSING = "closing", "You can interrupt me at any time, just start to talk."
    IDLE = "idle", "Are you still there?"
    WARNING = "warning", "This call will end in one minute."
    GOODBYE = "goodbye", "Goodbye."
    GENERAL = "general", "All right."

    @property
    def file_name(self) -> str:
        return f"{self.value[0]}.wav"

    @property
    def words(self) -> str:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Speech:
    """Audible words: mu-law at 8 kHz and what they say."""

    words: str
    mulaw: bytes


def sentence_for(purpose: str | None) -> Sentence:
    """Returns the sentence for the `metadata.purpose` of a `response.create`; the general one by default."""
    match purpose:
        case "greeting":
            return Sentence.GREETING
        case "idle":
            return Sentence.IDLE
        case "warning":
            return Sentence.WARNING
        case "goodbye":
            return Sentence.GOODBYE
        case _:
            return Sentence.GENERAL


@cache
def spoken(sentence: Sentence) -> Speech:
    """Returns the recording of a sentence. Reads the disk once per process; `load_all` does so before any call."""
    wav = files("app.sim").joinpath("voices", sentence.file_name).read_bytes()
    return Speech(sentence.words, mulaw_of_wav(wav))


def load_all() -> None:
    """Reads every recording now, so that no call waits for the disk."""
    for sentence in Sentence:
        spoken(sentence)


def mulaw_of_wav(wav: bytes) -> bytes:
    """Returns the samples of a mu-law 8 kHz mono WAV file (the standard library's `wave` reads PCM only).

    Raises ValueError that says what is wrong with any other file.
    """
    if wav[:4] != b"RIFF" or wav[8:12] != b"WAVE":
        raise ValueError("not a WAV file")
    format_seen = False
    at = 12
    while at + 8 <= len(wav):
        name, size = struct.unpack_from("<4sI", wav, at)
        body = wav[at + 8 : at + 8 + size]
        if len(body) < size:
            raise ValueError(f"WAV file ends inside its {name.decode('ascii', 'replace')!r} chunk")
        if name == b"fmt ":
            encoding, channels, rate = struct.unpack_from("<HHI", body)
            if (encoding, channels, rate) != (_WAVE_FORMAT_MULAW, 1, 8000):
                raise ValueError(
                    f"WAV file is format {encoding}, {channels} channels, {rate} Hz, not mu-law mono 8000 Hz"
                )
            format_seen = True
        elif name == b"data" and format_seen:
            return body
        at += 8 + size + size % 2
    raise ValueError("WAV file has no format or no data chunk")
