"""Mu-law to PCM and back: exact codes, a filter that is clean, on time and the same however audio is cut."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire import pcm as module
from app.wire.pcm import FromMulaw, ToMulaw
from tests.wire import signals
from tests.wire.signals import db, level_of, mulaw_signal, signal_of, snr_db, tone

RATES_HZ = [8_000, 16_000, 24_000]
RESAMPLED_HZ = [16_000, 24_000]
DELAY_MS_MAX = 3.0
STOP_DB = -50
SPEECH_HZ = [200, 300, 500, 1_000, 1_500, 2_000, 2_500, 3_000, 3_200, 3_400]


def to_mulaw(rate_hz: int, pcm: bytes, *cuts: int) -> bytes:
    """A whole item, in the pieces that these places cut it into."""
    item = ToMulaw(rate_hz)
    return b"".join(item.convert(piece) for piece in pieces(pcm, cuts)) + item.flush()


def from_mulaw(rate_hz: int, mulaw: bytes, *cuts: int) -> bytes:
    """A stream, in pieces."""
    stream = FromMulaw(rate_hz)
    return b"".join(stream.convert(piece) for piece in pieces(mulaw, cuts))


def pieces(data: bytes, cuts: tuple[int, ...]) -> list[bytes]:
    """The same bytes, cut."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


# --- Mu-law ----------------------------------------------------------------------------------


def test_every_code_becomes_the_output_value_of_the_standard() -> None:
    assert from_mulaw(8_000, bytes(range(256))) == signals.LINEAR.astype("<i2").tobytes()


def test_every_sample_becomes_the_code_of_its_interval_in_the_standard() -> None:
    samples = np.arange(-32_768, 32_768).astype("<i2").tobytes()
    assert to_mulaw(8_000, samples) == signals.MULAW.tobytes()


def test_every_code_survives_both_ways_but_negative_zero() -> None:
    """0x7f and 0xff are both zero; it comes back as the positive one."""
    codes = bytes(range(256))
    assert to_mulaw(8_000, from_mulaw(8_000, codes)) == codes.replace(b"\x7f", b"\xff")


# --- However it is cut -----------------------------------------------------------------------

LOUD = st.binary(max_size=4_000)
"""Any bytes: as PCM mostly near full scale, so that sums are long and rounding is close."""
CUTS = st.lists(st.integers(0, 4_000), max_size=12)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@given(data=LOUD, cuts=CUTS)
def test_a_stream_of_mulaw_is_the_same_however_it_is_cut(rate_hz: int, data: bytes, cuts: list[int]) -> None:
    assert from_mulaw(rate_hz, data, *cuts) == from_mulaw(rate_hz, data)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@given(data=LOUD, cuts=CUTS)
def test_an_item_of_pcm_is_the_same_however_it_is_cut_even_within_a_sample(
    rate_hz: int, data: bytes, cuts: list[int]
) -> None:
    assert to_mulaw(rate_hz, data, *cuts) == to_mulaw(rate_hz, data)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_long_pieces_are_as_short_ones(rate_hz: int) -> None:
    """Far above what one product of matrices takes: 5 s."""
    noise = np.random.default_rng(1).integers(0, 256, 2 * 5 * rate_hz, np.uint8).tobytes()
    assert to_mulaw(rate_hz, noise, *range(0, len(noise), 997)) == to_mulaw(rate_hz, noise)
    assert from_mulaw(rate_hz, noise, *range(0, len(noise), 160)) == from_mulaw(rate_hz, noise)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@given(length=st.integers(0, 1_000))
def test_a_stream_makes_all_its_pcm_at_once(rate_hz: int, length: int) -> None:
    assert len(from_mulaw(rate_hz, bytes(length))) == length * rate_hz // 8_000 * 2


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@given(length=st.integers(0, 4_000), cuts=CUTS)
def test_item_has_a_code_for_every_whole_eighth_of_a_millisecond(
    rate_hz: int, length: int, cuts: list[int]
) -> None:
    item = ToMulaw(rate_hz)
    taken = made = 0
    for piece in pieces(bytes(length), tuple(cuts)):
        taken += len(piece)
        made += len(item.convert(piece))
        assert made <= taken // 2 * 8_000 // rate_hz
    assert made + len(item.flush()) == length // 2 * 8_000 // rate_hz


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_half_a_sample_at_the_end_is_dropped(rate_hz: int) -> None:
    whole = signals.pcm(tone(1_004, rate_hz, ms=20))
    assert to_mulaw(rate_hz, whole + b"\x7f") == to_mulaw(rate_hz, whole)


# --- Exact -----------------------------------------------------------------------------------


def exactly(taps: list[Fraction], samples: list[int]) -> int:
    """A filter's output as the definition has it: nothing is rounded before the end."""
    total = sum((tap * sample for tap, sample in zip(taps, samples, strict=True)), Fraction(0))
    return max(-32_768, min(32_767, round(total)))


@pytest.mark.parametrize("rate_hz", RESAMPLED_HZ)
def test_the_filter_is_the_sum_that_it_is_defined_as(rate_hz: int) -> None:
    ratio = rate_hz // 8_000
    down = module.downward(ratio)
    taps = [Fraction(tap) for tap in down.matrix[: down.window, 0]]
    samples = np.random.default_rng(2).choice([-32_768, 32_767, 5, -1], 400).astype("<i2")
    windows = range(0, len(samples) - down.window + 1, ratio)
    wanted = [exactly(taps, samples[at : at + down.window].tolist()) for at in windows]
    assert down.apply(samples).tolist() == wanted


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_taps_are_such_that_no_sum_is_rounded(rate_hz: int) -> None:
    for each in (module.upward(rate_hz // 8_000), module.downward(rate_hz // 8_000)):
        whole = each.matrix * 2**20
        assert np.array_equal(whole, np.rint(whole))
        assert np.abs(whole).sum(axis=0).max() * 32_768 < 2**53
        assert np.array_equal(each.matrix.sum(axis=0), np.ones(each.matrix.shape[1]))


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("code", [0xFF, 0x00, 0x80, 0x35])
def test_what_stands_still_comes_out_as_it_went_in(rate_hz: int, code: int) -> None:
    held = from_mulaw(rate_hz, bytes([code]) * 400)[200 * rate_hz // 8_000 * 2 :]
    assert set(signal_of(held)) == {signals.LINEAR[code]}
    assert set(to_mulaw(rate_hz, held)[50:-50]) == {code}


@pytest.mark.parametrize("rate_hz", RESAMPLED_HZ)
def test_what_is_too_loud_is_clipped_and_does_not_wrap(rate_hz: int) -> None:
    """A square wave of full scale: any filter's edges would rise above it."""
    ratio = rate_hz // 8_000
    square = np.repeat([32_767, -32_768] * 8, 40 * ratio)
    mulaw = signals.mulaw(np.repeat([32_767.0, -32_768.0] * 8, 40))
    up = signal_of(from_mulaw(rate_hz, mulaw))[22 * ratio :]
    assert up.max() == 32_767
    assert up.min() == -32_768
    held = np.abs(np.arange(len(up)) % (40 * ratio) - 20 * ratio) < 15 * ratio
    assert np.all(np.sign(up[held]) == np.sign(square[: len(up)][held]))
    down = mulaw_signal(to_mulaw(rate_hz, square.astype("<i2").tobytes()))
    held = np.abs(np.arange(len(down)) % 40 - 20) < 15
    assert np.all(np.sign(down[held]) == np.sign(square[::ratio][held]))
    assert {down.max(), -down.min()} == {32_124}


# --- On time ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_callers_audio_is_equally_late_at_every_frequency(
    rate_hz: int,
) -> None:
    click = b"\xff" * 100 + b"\x90" + b"\xff" * 100
    response = signal_of(from_mulaw(rate_hz, click))
    centre = int(response.argmax())
    late_ms = (centre / rate_hz - 100 / 8_000) * 1000
    assert 0 <= late_ms <= DELAY_MS_MAX
    reach = min(centre, len(response) - centre - 1)
    # Linear phase: the same on both sides of its centre, but for the last unit that taps are rounded to.
    around = response[centre - reach : centre + reach + 1]
    assert np.abs(around - around[::-1]).max() <= 1


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_of_an_item_a_code_is_the_sound_at_its_own_instant(rate_hz: int) -> None:
    found = mulaw_signal(to_mulaw(rate_hz, signals.pcm(tone(1_004, rate_hz))))
    wanted = tone(1_004, 8_000)
    assert len(found) == len(wanted)
    assert snr_db(wanted[30:-30], found[30:-30]) >= 35
    # At its two ends the filter sees the silence around the item.
    assert snr_db(wanted, found) >= 25


# --- Clean -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("amplitude", [4_000, 8_000, 16_000, 32_000])
@pytest.mark.parametrize("frequency_hz", [1_000, 1_004])
def test_a_tone_there_and_back_is_hardly_worse_than_mulaw_itself(
    rate_hz: int, amplitude: int, frequency_hz: float
) -> None:
    wanted = tone(frequency_hz, 8_000, amplitude=amplitude)
    sent = signals.mulaw(wanted)
    returned = mulaw_signal(to_mulaw(rate_hz, from_mulaw(rate_hz, sent)))
    late = 0 if rate_hz == 8_000 else 22
    wanted, found = wanted[50 : -100 - late], returned[50 + late : -100]
    once = snr_db(wanted, mulaw_signal(sent)[50 : -100 - late])
    assert snr_db(wanted, found) >= max(35, once - 0.2)


@pytest.mark.parametrize("rate_hz", RESAMPLED_HZ)
def test_speech_passes_both_filters_within_half_a_decibel(rate_hz: int) -> None:
    for frequency_hz in SPEECH_HZ:
        sent = tone(frequency_hz, 8_000)
        up = signal_of(from_mulaw(rate_hz, signals.mulaw(sent)))[rate_hz // 50 : -rate_hz // 50]
        assert abs(db(level_of(up, frequency_hz, rate_hz) / 8_000)) < 0.5
        down = mulaw_signal(to_mulaw(rate_hz, signals.pcm(tone(frequency_hz, rate_hz))))[160:-160]
        assert abs(db(level_of(down, frequency_hz, 8_000) / 8_000)) < 0.5


@pytest.mark.parametrize("rate_hz", RESAMPLED_HZ)
def test_images_of_what_the_caller_says_are_fifty_decibels_down(rate_hz: int) -> None:
    """Of every frequency of 8 kHz audio, right up to 4 kHz."""
    for frequency_hz in [*SPEECH_HZ, 3_600, 3_800, 3_900, 3_950]:
        sent = signals.mulaw(tone(frequency_hz, 8_000))
        up = signal_of(from_mulaw(rate_hz, sent))[rate_hz // 50 : -rate_hz // 50]
        images_hz = [image for image in (8_000 - frequency_hz, 8_000 + frequency_hz) if image < rate_hz / 2]
        for image_hz in images_hz:
            assert db(level_of(up, image_hz, rate_hz) / 8_000) < STOP_DB


@pytest.mark.parametrize("rate_hz", RESAMPLED_HZ)
def test_what_a_phone_cannot_carry_leaves_nothing_behind(rate_hz: int) -> None:
    """Everything from 4 kHz on would come back as another sound: what is left of it, whatever it became."""
    for frequency_hz in range(4_000, rate_hz // 2, 50):
        sent = tone(frequency_hz, rate_hz, amplitude=30_000)
        left = mulaw_signal(to_mulaw(rate_hz, signals.pcm(sent)))[30:-30]
        assert db(float(np.sqrt(np.mean(left**2) * 2)) / 30_000) < STOP_DB


# --- Small -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_what_is_kept_between_pieces_does_not_grow(rate_hz: int) -> None:
    stream, item = FromMulaw(rate_hz), ToMulaw(rate_hz)
    for _ in range(50):
        stream.convert(bytes(1_601))
        item.convert(bytes(9_601))
        assert stream.kept_bytes + item.kept_bytes < 400
