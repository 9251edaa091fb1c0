"""WAV files to mu-law and back."""

import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sim.wav import WavError, mulaw_to_pcm, pcm_to_mulaw, read_wav, write_wav


def wav(coding: int, channels: int, rate_hz: int, bits: int, body: bytes, *, extra: bytes = b"") -> bytes:
    """A RIFF file; `extra` is put between the format and the audio."""
    frame = channels * bits // 8
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, coding, channels, rate_hz, rate_hz * frame, frame, bits)
    chunks = fmt + extra + struct.pack("<4sI", b"data", len(body)) + body
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks


def sine(rate_hz: int, ms: int, hz: int = 440) -> list[int]:
    return [round(10000 * math.sin(2 * math.pi * hz * n / rate_hz)) for n in range(rate_hz * ms // 1000)]


def pcm16(samples: list[int]) -> bytes:
    return struct.pack(f"<{len(samples)}h", *samples)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "caller.wav"


@pytest.mark.parametrize(
    ("code", "sample"),
    # ITU-T G.711: the two zeros, the smallest step, the ends
    [(0xFF, 0), (0x7F, 0), (0xFE, 8), (0x7E, -8), (0x80, 32124), (0x00, -32124), (0xF0, 120), (0xEF, 132)],
)
def test_mulaw_codes_stand_for_the_samples_of_the_standard(code: int, sample: int) -> None:
    assert mulaw_to_pcm(bytes([code])) == [sample]


@pytest.mark.parametrize(("sample", "code"), [(0, 0xFF), (32767, 0x80), (-32768, 0x00), (8, 0xFE), (-8, 0x7E)])
def test_samples_are_coded_as_the_standard_does(sample: int, code: int) -> None:
    assert pcm_to_mulaw([sample]) == bytes([code])


@given(st.binary())
def test_every_code_survives_the_round_trip_but_the_second_zero(audio: bytes) -> None:
    assert pcm_to_mulaw(mulaw_to_pcm(audio)) == audio.replace(b"\x7f", b"\xff")


@given(st.integers(-32635, 32635))
def test_coding_is_never_further_off_than_half_a_step(sample: int) -> None:
    (decoded,) = mulaw_to_pcm(pcm_to_mulaw([sample]))
    assert abs(decoded - sample) <= (abs(sample) + 132) / 16 / 2 + 1


def test_mulaw_at_8_khz_is_read_byte_for_byte(file: Path) -> None:
    file.write_bytes(wav(7, 1, 8000, 8, bytes(range(256))))
    assert read_wav(file) == bytes(range(256))


def test_pcm_of_16_bits_at_8_khz_keeps_its_samples(file: Path) -> None:
    file.write_bytes(wav(1, 1, 8000, 16, pcm16(sine(8000, 100))))
    assert read_wav(file) == pcm_to_mulaw(sine(8000, 100))


def test_pcm_of_8_bits_is_unsigned(file: Path) -> None:
    file.write_bytes(wav(1, 1, 8000, 8, bytes([128, 255, 0])))
    assert read_wav(file) == pcm_to_mulaw([0, 127 << 8, -32768])


def test_stereo_becomes_the_mean_of_both_sides(file: Path) -> None:
    file.write_bytes(wav(1, 2, 8000, 16, pcm16([1000, 3000, -400, 0])))
    assert read_wav(file) == pcm_to_mulaw([2000, -200])


@pytest.mark.parametrize("rate_hz", [11025, 16000, 22050, 24000, 44100, 48000])
def test_other_rates_give_the_same_tone_for_the_same_time(file: Path, rate_hz: int) -> None:
    file.write_bytes(wav(1, 1, rate_hz, 16, pcm16(sine(rate_hz, 100))))
    heard, expected = mulaw_to_pcm(read_wav(file)), sine(8000, 100)
    assert abs(len(heard) - 800) <= 1
    error = math.sqrt(sum((a - b) ** 2 for a, b in zip(heard, expected, strict=False)) / 800)
    assert error < 1500  # the averaging shifts by less than a sample


def test_lower_rates_are_interpolated(file: Path) -> None:
    file.write_bytes(wav(1, 1, 4000, 16, pcm16([0, 1000, 2000])))
    assert read_wav(file) == pcm_to_mulaw([0, 500, 1000, 1500, 2000, 2000])


def test_unknown_chunks_of_odd_length_are_skipped(file: Path) -> None:
    extra = struct.pack("<4sI", b"LIST", 3) + b"abc\x00"
    file.write_bytes(wav(7, 1, 8000, 8, b"\x10\x20", extra=extra))
    assert read_wav(file) == b"\x10\x20"


def test_extensible_format_names_its_coding_further_back(file: Path) -> None:
    fmt = struct.pack("<HHIIHHHHIH14x", 0xFFFE, 1, 8000, 16000, 2, 16, 22, 16, 0, 1)
    chunks = struct.pack("<4sI", b"fmt ", len(fmt)) + fmt + struct.pack("<4sI", b"data", 2) + pcm16([500])
    file.write_bytes(struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks)
    assert read_wav(file) == pcm_to_mulaw([500])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (b"ID3\x04 an mp3 file", "not a WAV file"),
        (b"RIFF", "not a WAV file"),
        (wav(7, 1, 8000, 8, b""), "its data chunk is empty"),
        (wav(7, 1, 8000, 8, bytes(100))[:-10], "cut short"),
        (wav(1, 1, 8000, 16, b"\x00\x01\x02"), "whole frames"),
        (wav(85, 1, 8000, 0, bytes(10)), "format 85"),
        (wav(1, 1, 8000, 24, bytes(9)), "24 bits"),
        (wav(3, 1, 8000, 32, bytes(8)), "format 3"),
        (wav(1, 6, 8000, 16, bytes(12)), "6 channels"),
        (wav(1, 1, 0, 16, bytes(2)), "0 Hz"),
        (wav(1, 1, 8000, 16, b"")[:36], "no data chunk"),
        (struct.pack("<4sI4s4sI", b"RIFF", 12, b"WAVE", b"fmt ", 2) + b"\x01\x00", "2 bytes instead of 16"),
        (struct.pack("<4sI4s4sI", b"RIFF", 12, b"WAVE", b"data", 2) + b"\x01\x00", "before its format"),
    ],
)
def test_unusable_file_is_named_with_the_reason(file: Path, content: bytes, text: str) -> None:
    file.write_bytes(content)
    with pytest.raises(WavError, match=text) as caught:
        read_wav(file)
    assert str(file) in str(caught.value)


def test_missing_file_is_named(file: Path) -> None:
    with pytest.raises(WavError, match=r"caller\.wav: No such file"):
        read_wav(file)


@pytest.mark.parametrize("length", range(12 + 24 + 8))
def test_wav_cut_inside_its_headers_is_refused_at_every_length(file: Path, length: int) -> None:
    file.write_bytes(wav(7, 1, 8000, 8, b"\x10")[:length])
    with pytest.raises(WavError):
        read_wav(file)


def test_written_mono_is_read_back(file: Path) -> None:
    audio = pcm_to_mulaw(sine(8000, 50))
    write_wav(file, audio)
    assert read_wav(file) == audio


def test_stereo_has_left_and_right_and_the_shorter_filled_up(file: Path) -> None:
    write_wav(file, pcm_to_mulaw([1000, 2000]), pcm_to_mulaw([3000]))
    assert file.read_bytes()[22] == 2
    left_then_right = struct.unpack("<4h", file.read_bytes()[44:])
    assert left_then_right == (*mulaw_to_pcm(pcm_to_mulaw([1000, 3000, 2000])), 0)


def test_sound_of_a_call_is_its_owners_alone(file: Path) -> None:
    write_wav(file, b"\xff")
    assert file.stat().st_mode & 0o777 == 0o600


def test_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(WavError, match="nowhere"):
        write_wav(tmp_path / "nowhere" / "call.wav", b"\xff")
