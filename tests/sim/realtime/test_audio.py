"""G.711 and PCM on the simulated backend's wire."""

import struct

import pytest

from app.sim.realtime.audio import (
    AudioFormat,
    Decoder,
    Encoder,
    alaw_to_linear,
    duration_ms,
    linear_to_alaw,
    linear_to_mulaw,
    mulaw_to_linear,
)

ALL = bytes(range(256))


@pytest.mark.parametrize(
    ("code", "sample"), [(0xFF, 0), (0x7F, 0), (0x80, 32124), (0x00, -32124), (0xFE, 8), (0x7E, -8)]
)
def test_mulaw_byte_is_the_sample_of_the_standard(code: int, sample: int) -> None:
    assert mulaw_to_linear(code) == sample


@pytest.mark.parametrize(("code", "sample"), [(0xD5, 8), (0x55, -8), (0xAA, 32256), (0x2A, -32256), (0xD4, 24)])
def test_alaw_byte_is_the_sample_of_the_standard(code: int, sample: int) -> None:
    assert alaw_to_linear(code) == sample


@pytest.mark.parametrize("code", range(256))
def test_alaw_comes_back_as_it_went(code: int) -> None:
    assert linear_to_alaw(alaw_to_linear(code)) == code


@pytest.mark.parametrize("code", [code for code in range(256) if code != 0x7F])
def test_mulaw_comes_back_as_it_went(code: int) -> None:
    assert linear_to_mulaw(mulaw_to_linear(code)) == code


def test_negative_zero_of_mulaw_becomes_silence() -> None:
    assert linear_to_mulaw(mulaw_to_linear(0x7F)) == 0xFF


@pytest.mark.parametrize(("sample", "code"), [(32767, 0x80), (-32768, 0x00)])
def test_loudest_samples_are_clipped(sample: int, code: int) -> None:
    assert linear_to_mulaw(sample) == code


def test_mulaw_passes_untouched() -> None:
    assert Encoder(AudioFormat.PCMU).encode(ALL) == Decoder(AudioFormat.PCMU).decode(ALL) == ALL


@pytest.mark.parametrize("audio_format", AudioFormat)
def test_every_format_has_its_bytes_for_a_millisecond(audio_format: AudioFormat) -> None:
    assert len(Encoder(audio_format).encode(bytes(8 * 40))) == 40 * audio_format.bytes_per_ms
    assert len(Decoder(audio_format).decode(bytes(40 * audio_format.bytes_per_ms))) == 8 * 40


@pytest.mark.parametrize(
    ("audio_format", "samples"),
    [
        (AudioFormat.PCM_8K, (0, 32124, 0)),
        (AudioFormat.PCM_16K, (0, 0, 16062, 32124, 16062, 0)),
    ],
)
def test_other_rates_are_interpolated_too(audio_format: AudioFormat, samples: tuple[int, ...]) -> None:
    assert Encoder(audio_format).encode(b"\xff\x80\xff") == struct.pack(f"<{len(samples)}h", *samples)


@pytest.mark.parametrize("cut", range(5))
@pytest.mark.parametrize(
    ("audio_format", "around"),
    [(AudioFormat.PCM_8K, (0,)), (AudioFormat.PCM_16K, (-400, 400)), (AudioFormat.PCM_24K, (-400, 100, 300))],
)
def test_pcm_of_any_rate_is_averaged_to_that_of_the_telephone(
    audio_format: AudioFormat, around: tuple[int, ...], cut: int
) -> None:
    samples = [mean + each for mean in (3000, -9000) for each in around]
    pcm = struct.pack(f"<{len(samples)}h", *samples)
    decoder = Decoder(audio_format)
    found = decoder.decode(pcm[:cut]) + decoder.decode(pcm[cut:])
    assert found == bytes([linear_to_mulaw(3000), linear_to_mulaw(-9000)])


def test_pcm_is_interpolated_across_the_border_of_two_pieces() -> None:
    whole = Encoder(AudioFormat.PCM_24K).encode(b"\xff\x80\xff")
    encoder = Encoder(AudioFormat.PCM_24K)
    assert encoder.encode(b"\xff\x80") + encoder.encode(b"\xff") == whole
    assert struct.unpack("<9h", whole) == (0, 0, 0, 10708, 21416, 32124, 21416, 10708, 0)


@pytest.mark.parametrize("cut", range(13))
def test_pcm_cut_anywhere_loses_no_sample(cut: int) -> None:
    pcm = struct.pack("<6h", 3000, 3000, 3000, -9000, -9000, -9000)
    decoder = Decoder(AudioFormat.PCM_24K)
    found = decoder.decode(pcm[:cut]) + decoder.decode(pcm[cut:])
    assert found == bytes([linear_to_mulaw(3000), linear_to_mulaw(-9000)])


@pytest.mark.parametrize("sample", [-32768, 32767])
def test_loudest_pcm_is_decoded(sample: int) -> None:
    assert Decoder(AudioFormat.PCM_24K).decode(struct.pack("<3h", sample, sample, sample)) == bytes(
        [linear_to_mulaw(sample)]
    )


def test_eight_bytes_are_a_millisecond() -> None:
    assert duration_ms(bytes(8 * 20 + 7)) == 20
