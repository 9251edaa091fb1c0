"""Where speech is found in a recording."""

from pathlib import Path

import pytest

from app.sim.phone.recording import read_speech, utterances
from app.sim.wav import WavError, write_wav
from tests.sim.caller import tone

VOICES = Path(__file__).parents[3] / "app" / "sim" / "voices"
SILENCE_S = b"\xff" * 8_000


def test_utterances_are_told_apart_by_their_pauses() -> None:
    found = utterances(SILENCE_S + tone(500) + SILENCE_S + tone(300))
    assert [(each.start_s, each.end_s) for each in found] == [(1.0, 1.5), (2.5, 2.8)]


def test_silence_and_clicks_are_no_speech() -> None:
    assert utterances(SILENCE_S + tone(20) + SILENCE_S) == ()


def test_recording_without_speech_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "silence.wav"
    write_wav(file, SILENCE_S)
    with pytest.raises(WavError, match=r"silence\.wav: there is no speech"):
        read_speech(file)


@pytest.mark.parametrize("name", ["caller_asks.wav", "caller_interrupts.wav"])
def test_shipped_recordings_of_the_caller_have_speech(name: str) -> None:
    assert read_speech(VOICES / name)
