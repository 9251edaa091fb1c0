"""The input audio buffer: what it keeps, what it gives, and that it does not grow."""

from collections.abc import Sequence

import pytest

from app.sim.realtime.audio import AudioFormat
from app.sim.realtime.input import MAX_BUFFERED_MS, InputBuffer
from app.sim.realtime.schema import Refusal
from app.sim.realtime.vad import SpeechStarted, SpeechStopped, VadSettings

SILENCE = b"\xff"
LOUD = b"\x80\x00"  # the two largest samples


def write_frames(buffer: InputBuffer, frame: bytes, count: int) -> Sequence[SpeechStarted | SpeechStopped]:
    return [event for _ in range(count) for event in buffer.write(frame)]


def test_open_line_between_turns_keeps_only_what_a_turn_could_begin_with() -> None:
    buffer = InputBuffer(AudioFormat.PCMU, VadSettings(prefix_padding_ms=300))
    write_frames(buffer, SILENCE * 160, 3000)
    assert buffer.clock_ms == 60_000
    assert len(buffer.commit()) <= 2 * (300 + 80) * 8


def test_turn_after_a_long_silence_has_its_padding() -> None:
    buffer = InputBuffer(AudioFormat.PCMU, VadSettings(prefix_padding_ms=300))
    write_frames(buffer, SILENCE * 160, 3000)
    (started,) = write_frames(buffer, LOUD * 80, 10)
    assert started == SpeechStarted(59_700, 60_060)
    buffer.begin_turn(59_700)
    assert buffer.end_turn(60_200) == SILENCE * 300 * 8 + LOUD * 200 * 4


@pytest.mark.parametrize("settings", [VadSettings(), None])
def test_audio_that_nothing_takes_is_bounded(settings: VadSettings | None) -> None:
    buffer = InputBuffer(AudioFormat.PCMU, settings)
    second = LOUD * 4000
    write_frames(buffer, second, 3 * MAX_BUFFERED_MS // 1000)
    assert buffer.clock_ms == 3 * MAX_BUFFERED_MS
    assert len(buffer.commit()) <= 2 * MAX_BUFFERED_MS * 8 + len(second)


def test_what_was_written_behind_a_turn_stays_for_the_next() -> None:
    buffer = InputBuffer(AudioFormat.PCMU, None)
    buffer.write(LOUD * 4000 + SILENCE * 4000)
    assert buffer.end_turn(1000) == LOUD * 4000
    assert buffer.commit() == SILENCE * 4000


def test_commit_takes_everything_once() -> None:
    buffer = InputBuffer(AudioFormat.PCMU, None)
    buffer.write(LOUD * 400)
    assert buffer.commit() == LOUD * 400
    with pytest.raises(Refusal) as refused:
        buffer.commit()
    assert refused.value.code == "input_audio_buffer_commit_empty"


def test_change_of_the_format_keeps_what_was_written_before() -> None:
    buffer = InputBuffer(AudioFormat.PCM_24K, None)
    buffer.write(bytes(6 * 800))
    buffer.read_as(AudioFormat.PCMU)
    buffer.write(LOUD * 400)
    assert buffer.commit() == SILENCE * 800 + LOUD * 400
