"""The shipped sentences, and the reader of their files."""

import re
import struct
from pathlib import Path

import pytest

from app.sim.realtime.audio import MULAW_LINEAR, duration_ms
from app.sim.speech import Sentence, mulaw_of_wav, sentence_for, spoken

MAKE_SPEECH = Path(__file__).parents[2] / "scripts" / "make-speech"


def wav(encoding: int = 7, channels: int = 1, rate: int = 8000, extra: bytes = b"") -> bytes:
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, encoding, channels, rate, rate, 1, 8)
    body = fmt + extra + struct.pack("<4sI", b"data", 4) + b"\x01\x02\x03\x04"
    return struct.pack("<4sI4s", b"RIFF", len(body) + 4, b"WAVE") + body


@pytest.mark.parametrize("sentence", Sentence)
def test_recording_is_speech_of_a_sensible_length_and_loudness(sentence: Sentence) -> None:
    speech = spoken(sentence)
    samples = [MULAW_LINEAR[code] for code in speech.mulaw]
    assert 500 <= duration_ms(speech.mulaw) <= 5000
    assert 10_000 < max(samples) < 32_000, "peak between half scale and clipping"
    assert 300 < sum(abs(sample) for sample in samples) / len(samples) < 4000
    assert max(abs(sample) for sample in samples[-400:]) < 1000, "ends in silence"


def test_greeting_lasts_long_enough_to_be_interrupted() -> None:
    assert 4000 <= duration_ms(spoken(Sentence.GREETING).mulaw) <= 5000


def test_script_that_makes_the_recordings_says_the_same_words() -> None:
    made = dict(re.findall(r'^say (\w+) "(.*)"$', MAKE_SPEECH.read_text(), re.MULTILINE))
    assert made == {sentence.file_name.removesuffix(".wav"): sentence.words for sentence in Sentence}


@pytest.mark.parametrize(
    ("purpose", "sentence"),
    [
        ("greeting", Sentence.GREETING),
        ("goodbye", Sentence.GOODBYE),
        ("tool", Sentence.GENERAL),
        (None, Sentence.GENERAL),
    ],
)
def test_purpose_chooses_the_sentence(purpose: str | None, sentence: Sentence) -> None:
    assert sentence_for(purpose) is sentence


def test_wav_with_chunks_between_is_read() -> None:
    assert mulaw_of_wav(wav(extra=struct.pack("<4sI", b"fact", 3) + b"abc\0")) == b"\x01\x02\x03\x04"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a WAV file"),
        (b"RIFF\0\0\0\0WAVE", "no format or no data"),
        (wav()[:-1], "ends inside its 'data' chunk"),
        (wav()[:30], "ends inside its 'fmt ' chunk"),
        (wav(encoding=1), "format 1, 1 channels, 8000 Hz"),
        (wav(channels=2), "2 channels"),
        (wav(rate=16000), "16000 Hz"),
    ],
)
def test_other_file_is_refused_by_what_is_wrong(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mulaw_of_wav(content)
