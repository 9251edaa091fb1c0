"""The energy detector on the clock of written audio."""

import pytest

from app.sim.realtime.audio import linear_to_mulaw
from app.sim.realtime.vad import EnergyVad, SpeechStarted, SpeechStopped, VadSettings

SILENCE = b"\xff"


def tone(ms: int, size: int = 4000) -> bytes:
    """A square wave of samples of this size."""
    return (bytes([linear_to_mulaw(size)]) * 8 + bytes([linear_to_mulaw(-size)]) * 8) * (ms // 2)


def silence(ms: int) -> bytes:
    return SILENCE * (ms * 8)


def detector(threshold: float = 0.5, prefix_ms: int = 300, silence_ms: int = 500) -> EnergyVad:
    return EnergyVad(VadSettings(threshold, prefix_ms, silence_ms))


@pytest.mark.parametrize("size_bytes", [1, 7, 80, 159, 160, 161, 1600, 16_000])
def test_size_of_the_pieces_changes_nothing(size_bytes: int) -> None:
    audio = silence(1000) + tone(400) + silence(600)
    vad = detector()
    events = [event for at in range(0, len(audio), size_bytes) for event in vad.write(audio[at : at + size_bytes])]
    assert events == [SpeechStarted(700, 1060), SpeechStopped(1900)]


def test_padding_does_not_reach_before_the_beginning() -> None:
    assert list(detector().write(tone(100))) == [SpeechStarted(0, 60)]


def test_padding_does_not_reach_into_the_turn_before() -> None:
    vad = detector(prefix_ms=1000, silence_ms=200)
    assert list(vad.write(tone(400) + silence(300) + tone(400))) == [
        SpeechStarted(0, 60),
        SpeechStopped(600),
        SpeechStarted(600, 760),
    ]


def test_click_shorter_than_speech_is_ignored() -> None:
    assert list(detector().write(silence(200) + tone(40) + silence(1000))) == []


def test_speech_shorter_than_asked_for_is_ignored() -> None:
    vad = EnergyVad(VadSettings(speech_duration_ms=200))
    assert list(vad.write(silence(200) + tone(180) + silence(1000))) == []


def test_speech_that_must_be_longer_may_pause_between_its_syllables() -> None:
    vad = EnergyVad(VadSettings(speech_duration_ms=200))
    spoken = tone(120) + silence(60) + tone(80)
    assert list(vad.write(silence(1000) + spoken + silence(500))) == [
        SpeechStarted(1000 - 300, 1260),
        SpeechStopped(1760),
    ]


def test_sounds_too_far_apart_are_no_speech_together() -> None:
    vad = EnergyVad(VadSettings(speech_duration_ms=200))
    assert list(vad.write((tone(120) + silence(200)) * 4)) == []


def test_pause_shorter_than_the_silence_does_not_end_the_turn() -> None:
    found = detector(silence_ms=500).write(tone(400) + silence(480) + tone(400) + silence(500))
    assert found == [SpeechStarted(0, 60), SpeechStopped(400 + 480 + 400 + 500)]


@pytest.mark.parametrize(
    ("threshold", "size", "heard"),
    [(0.5, 600, True), (0.5, 400, False), (1.0, 900, False), (1.0, 1100, True), (0.0, 100, True)],
)
def test_threshold_asks_for_louder_speech(threshold: float, size: int, heard: bool) -> None:
    assert bool(detector(threshold).write(tone(400, size))) is heard


def test_digital_silence_is_never_speech() -> None:
    assert list(detector(threshold=0.0).write(silence(1000))) == []


def test_detector_that_is_off_keeps_the_clock() -> None:
    vad = EnergyVad(None)
    assert list(vad.write(tone(1000))) == []
    vad.configure(VadSettings())
    assert list(vad.write(tone(100))) == [SpeechStarted(700, 1060)]


def test_restart_forgets_the_turn_in_progress() -> None:
    vad = detector()
    vad.write(tone(400))
    vad.restart()
    assert list(vad.write(silence(1000))) == []


def test_silence_of_zero_ends_the_turn_with_the_first_quiet_frame() -> None:
    assert detector(silence_ms=0).write(tone(100) + silence(20))[-1] == SpeechStopped(120)
