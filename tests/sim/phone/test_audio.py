"""One timeline for what is said and heard, and speech told from silence."""

import pytest

from app.sim.phone.audio import HeardSpeech, SpeechMeter, SpeechQueue, Track
from app.sim.phone.playout import Played

LOUD = bytes([0x80, 0x00]) * 80  # 20 ms between the two ends of the scale
QUIET = bytes([0xFE, 0x7E]) * 80  # 20 ms between the two smallest steps
SILENCE = b"\xff" * 160


def test_track_puts_silence_where_nothing_was() -> None:
    track = Track()
    track.add(10.02, b"\x01" * 160)
    track.add(10.06, b"\x02" * 160)
    assert track.between(10, 10.1) == SILENCE + b"\x01" * 160 + SILENCE + b"\x02" * 160 + SILENCE


def test_track_joins_what_follows_without_a_break() -> None:
    track = Track()
    track.add(10, b"\x01" * 160)
    track.add(10.02, b"\x02" * 160)
    assert track.between(10, 10.04) == b"\x01" * 160 + b"\x02" * 160


def test_track_cuts_at_both_ends() -> None:
    track = Track()
    track.add(10, bytes(range(80)))
    assert track.between(10.002, 10.004) == bytes(range(16, 32))


def test_track_outside_of_its_audio_is_silent() -> None:
    track = Track()
    track.add(10, b"\x01" * 160)
    assert track.between(20, 20.02) == SILENCE
    assert track.between(5, 5.02) == SILENCE
    assert track.between(10, 9) == b""


def test_speech_is_counted_in_20_ms() -> None:
    meter = SpeechMeter()
    meter.hear(10.0, LOUD * 3 + SILENCE + LOUD)
    assert meter.speech_ms == 80


@pytest.mark.parametrize("audio", [SILENCE, QUIET])
def test_what_can_hardly_be_heard_is_not_speech(audio: bytes) -> None:
    meter = SpeechMeter()
    meter.hear(10.0, audio * 50)
    assert meter.speech_ms == 0
    assert not meter.speaking


def test_speech_in_pieces_of_any_size_counts_the_same() -> None:
    meter = SpeechMeter()
    for index in range(10):
        meter.hear(10.0 + index * 0.006, LOUD[:48])
    assert meter.speech_ms == 60


def test_spell_ends_after_a_silence_and_lasts_to_its_last_loud_piece() -> None:
    meter = SpeechMeter()
    meter.hear(10.0, SILENCE + LOUD * 5)
    assert meter.finished(10.5) is None
    spell = meter.finished(10.8)
    assert spell is not None
    assert spell.started_at == pytest.approx(10.02)
    assert spell.ms == 100
    assert meter.finished(20) is None


def test_pause_inside_a_sentence_does_not_end_the_spell() -> None:
    meter = SpeechMeter()
    meter.hear(10.0, LOUD)
    assert meter.finished(10.4) is None
    meter.hear(10.4, LOUD)
    spell = meter.finished(11.1)
    assert spell is not None
    assert spell.ms == 420


def test_spell_is_finished_at_once_when_the_line_closes() -> None:
    meter = SpeechMeter()
    meter.hear(10.0, LOUD)
    spell = meter.finished(10.02, over=True)
    assert spell is not None
    assert spell.ms == 20


def test_caller_speaks_in_frames_and_the_last_is_filled_with_silence() -> None:
    track = Track()
    speech_queue = SpeechQueue(track)
    speech_queue.say(LOUD + b"\x01" * 40)
    assert [speech_queue.frame(at) for at in (10.0, 10.02, 10.04)] == [LOUD, b"\x01" * 40 + b"\xff" * 120, None]
    assert track.between(9.98, 10.02) == LOUD + b"\x01" * 40 + b"\xff" * 120


def test_speech_is_measured_even_when_no_audio_is_kept() -> None:
    heard_speech = HeardSpeech(None)
    heard_speech.hear([Played(10.0, LOUD)])
    assert heard_speech.meter.speech_ms == 20


def test_caller_is_silent_when_all_was_handed_out() -> None:
    speech_queue = SpeechQueue(None)
    speech_queue.say(LOUD)
    silent_before = speech_queue.silent
    speech_queue.frame(10.0)
    assert (silent_before, speech_queue.silent) == (False, True)
