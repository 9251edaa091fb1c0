"""Speech that says what it is: audio of which every 20 ms names its speaker, call, sentence, session and frame.

Both sides of a simulated call speak it. Whoever hears a frame knows which word of which sentence it is, so a word
that is lost, doubled or spoken by a second agent shows. The stamps are loud mu-law bytes: a voice detection takes
them for speech. They survive everything that passes mu-law on, whole or in part, and nothing that converts it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

FRAME_BYTES = 160
FRAME_S = 0.02
WORD_FRAMES = 20
"""A word of the agent's takes 400 ms. It is written in four letters and a space, which is how fast people speak:
from that a server knows how much of an answer was heard that broke off."""

_SYNC = b"\x00\x00"
_DATA = 0x80
"""A nibble n is the byte 0x80 + n: among the loudest of mu-law, and never part of the sync."""
_FILLER = b"\x90"
_DIGITS = (1, 3, 3, 3, 3)
"""Nibbles of the speaker, the call, the sentence, the session and the frame."""
_STAMP = re.compile(_SYNC + b"([\x80-\x8f]{%d})" % (sum(_DIGITS) + 1))
_STAMP_BYTES = len(_SYNC) + sum(_DIGITS) + 1
_BYTES_PER_S = 8_000


class Voice(IntEnum):
    """Who speaks, and what."""

    CALLER = 1
    ANSWER = 2
    GREETING = 3
    OTHER = 4
    """Of the agent: neither greeting nor answer."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What one frame says of itself."""

    voice: Voice
    call: int
    sentence: int
    """The caller's sentence, or the one that is answered; 0: none."""
    session: int
    """The backend session that speaks; 0 for the caller."""
    frame: int


def speech(voice: Voice, call: int, sentence: int, session: int, frames: Iterable[int]) -> bytes:
    """Returns the audio of these frames."""
    return b"".join(_frame(Stamp(voice, call, sentence, session, each)) for each in frames)


def _frame(stamp: Stamp) -> bytes:
    values = (stamp.voice, stamp.call, stamp.sentence, stamp.session, stamp.frame)
    nibbles = [
        value >> 4 * place & 0xF
        for value, digits in zip(values, _DIGITS, strict=True)
        for place in reversed(range(digits))
    ]
    data = bytes(_DATA + nibble for nibble in (*nibbles, _check(nibbles)))
    return (_SYNC + data).ljust(FRAME_BYTES, _FILLER)


def _check(nibbles: Iterable[int]) -> int:
    return sum((place + 1) * nibble for place, nibble in enumerate(nibbles)) & 0xF


def _read(data: bytes) -> Stamp | None:
    nibbles = [byte - _DATA for byte in data]
    if _check(nibbles[:-1]) != nibbles[-1]:
        return None
    values, at = [], 0
    for digits in _DIGITS:
        value = 0
        for nibble in nibbles[at : at + digits]:
            value = value << 4 | nibble
        values.append(value)
        at += digits
    if values[0] not in list(Voice):
        return None
    return Stamp(Voice(values[0]), *values[1:])


class Ear:
    """Reads the stamps in audio that comes in pieces, each with the time at which it begins to be heard."""

    def __init__(self) -> None:
        self._rest = b""

    def hear(self, at: float, audio: bytes) -> list[tuple[float, Stamp]]:
        """Returns the stamps that this audio completes, each with the time at which it is heard."""
        heard = self._rest + audio
        began = at - len(self._rest) / _BYTES_PER_S
        found = []
        end = 0
        for match in _STAMP.finditer(heard):
            end = match.end()
            if (stamp := _read(match[1])) is not None:
                found.append((began + match.start() / _BYTES_PER_S, stamp))
        self._rest = heard[max(end, len(heard) - _STAMP_BYTES + 1) :]
        return found


# --- In words ----------------------------------------------------------------------------------------

_CALLERS = re.compile(r"c(\d+)\.(\d+)f(\d+)-(\d+)")
_AGENTS = re.compile(r"\ba(\d)w(\d)\b")


def words_of(mulaw: bytes) -> str:
    """Returns the transcript of a caller's audio: the frames of each sentence that are in it, in order."""
    runs: list[list[int]] = []
    for _, stamp in Ear().hear(0, mulaw):
        last = runs[-1] if runs else None
        if last is not None and last[:2] == [stamp.call, stamp.sentence] and last[3] + 1 == stamp.frame:
            last[3] = stamp.frame
        else:
            runs.append([stamp.call, stamp.sentence, stamp.frame, stamp.frame])
    return " ".join(f"c{call:03}.{sentence:02}f{first:02}-{last:02}" for call, sentence, first, last in runs)


def answer_words(sentence: int, words: Iterable[int]) -> str:
    """Returns the transcript of these words of an answer. Sentences and words have one digit."""
    return " ".join(f"a{sentence}w{word}" for word in words)


@dataclass(frozen=True, slots=True)
class Wording:
    """What a text says of the conversation. The same frame or word may come twice."""

    caller: Mapping[tuple[int, int], tuple[int, ...]]
    """Call and sentence to the caller's frames."""
    agent: Mapping[int, tuple[int, ...]]
    """Sentence to the words of the answer."""


def wording_of(text: str) -> Wording:
    """Reads a transcript, or any text with such words in it."""
    caller: defaultdict[tuple[int, int], tuple[int, ...]] = defaultdict(tuple)
    agent: defaultdict[int, tuple[int, ...]] = defaultdict(tuple)
    for match in _CALLERS.finditer(text):
        call, sentence, first, last = map(int, match.groups())
        caller[call, sentence] += tuple(range(first, last + 1))
    for match in _AGENTS.finditer(text):
        sentence, word = map(int, match.groups())
        agent[sentence] += (word,)
    return Wording(caller, agent)
