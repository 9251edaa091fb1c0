"""Our audio beside that of somebody else: sox, whose codec and resampler share nothing with ours."""

import shutil
import subprocess

import numpy as np
import pytest

from app.wire.pcm import FromMulaw, ToMulaw
from tests.wire import signals
from tests.wire.signals import Signal, db, level_of, mulaw_signal, signal_of, snr_db, tone

MULAW = ["-t", "raw", "-r", "8000", "-c", "1", "-e", "mu-law", "-b", "8"]
RESAMPLED_HZ = [16_000, 24_000]
SPEECH_HZ = [200, 300, 500, 1_000, 1_500, 2_000, 2_500, 3_000, 3_200, 3_400]


def pcm_at(rate_hz: int) -> list[str]:
    """How sox is told of 16-bit PCM."""
    return ["-t", "raw", "-r", str(rate_hz), "-c", "1", "-e", "signed-integer", "-b", "16", "-L"]


def sox(data: bytes, taken: list[str], made: list[str], *effects: str) -> bytes:
    """What sox makes of it; `-D`: it adds no dither."""
    program = shutil.which("sox")
    if program is None:
        pytest.skip("sox is not installed. On Debian: apt-get install sox")
    command = [program, "-D", *taken, "-", *made, "-", *effects]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def to_mulaw(rate_hz: int, pcm: bytes) -> bytes:
    """A whole item."""
    item = ToMulaw(rate_hz)
    return item.convert(pcm) + item.flush()


def middle(signal: Signal, rate_hz: int) -> Signal:
    """Without the ends, where filters see the silence around."""
    return signal[rate_hz // 50 : -rate_hz // 50]


# --- G.711 -----------------------------------------------------------------------------------

SAMPLES = np.arange(-32_768, 32_768)


def test_sox_decodes_every_code_to_the_same_sample() -> None:
    codes = bytes(range(256))
    assert FromMulaw(8_000).convert(codes) == sox(codes, MULAW, pcm_at(8_000))


def test_sox_encodes_every_sample_of_fourteen_bits_to_the_same_code() -> None:
    """G.711's own scale; two more bits are ours, and no matter of taste on multiples of four."""
    samples = SAMPLES[SAMPLES % 4 == 0].astype("<i2").tobytes()
    assert to_mulaw(8_000, samples) == sox(samples, pcm_at(8_000), MULAW)


def test_sox_encodes_samples_as_the_fourteen_bits_it_rounds_them_to() -> None:
    """The one difference, next to 383 of 65,536 samples: sox rounds to 14 bits (halves up) before it looks for the
    interval, so that a sample one or two below a decision value goes up. We look for the sample itself, as the
    standard's decision values have it; tests/wire/test_pcm.py compares all of them with its table."""
    samples = SAMPLES.astype("<i2").tobytes()
    rounded = np.clip((SAMPLES + 2) // 4 * 4, -32_768, 32_764).astype("<i2").tobytes()
    theirs = sox(samples, pcm_at(8_000), MULAW)
    assert to_mulaw(8_000, rounded) == theirs
    ours = to_mulaw(8_000, samples)
    assert sum(our != their for our, their in zip(ours, theirs, strict=True)) == 383


# --- Rates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", RESAMPLED_HZ)
def test_tones_are_as_loud_as_soxs_both_ways(rate_hz: int) -> None:
    for frequency_hz in SPEECH_HZ:
        caller = signals.mulaw(tone(frequency_hz, 8_000))
        ours = middle(signal_of(FromMulaw(rate_hz).convert(caller)), rate_hz)
        theirs = middle(signal_of(sox(caller, MULAW, pcm_at(rate_hz), "rate", "-v")), rate_hz)
        assert len(ours) == len(theirs)
        assert abs(db(level_of(ours, frequency_hz, rate_hz) / level_of(theirs, frequency_hz, rate_hz))) < 0.5
        agent = signals.pcm(tone(frequency_hz, rate_hz))
        ours = middle(mulaw_signal(to_mulaw(rate_hz, agent)), 8_000)
        theirs = middle(mulaw_signal(sox(agent, pcm_at(rate_hz), MULAW, "rate", "-v")), 8_000)
        assert len(ours) == len(theirs)
        assert abs(db(level_of(ours, frequency_hz, 8_000) / level_of(theirs, frequency_hz, 8_000))) < 0.5


@pytest.mark.parametrize("rate_hz", RESAMPLED_HZ)
def test_above_four_kilohertz_is_only_noise_where_sox_has_none(rate_hz: int) -> None:
    """The caller's whole band, as noise: what is mirrored of it is 50 dB below it, as sox finds it."""
    noise = np.random.default_rng(6).normal(0, 4_000, 16_000)
    caller = signals.mulaw(np.clip(noise, -32_000, 32_000))
    ours = FromMulaw(rate_hz).convert(caller)
    above = signal_of(sox(ours, pcm_at(rate_hz), pcm_at(rate_hz), "sinc", "-a", "120", "-t", "100", "4000"))
    loudness = float(np.sqrt(np.mean(middle(above, rate_hz) ** 2) / np.mean(signal_of(ours) ** 2)))
    assert db(loudness) < -50


@pytest.mark.parametrize("rate_hz", RESAMPLED_HZ)
def test_an_item_is_soxs_sample_for_sample_within_what_mulaw_itself_costs(rate_hz: int) -> None:
    """Noise with the slope of speech, from 200 Hz to 3.4 kHz, against sox's best filter before any mu-law: at the
    same instants, too, or nothing would be left of it."""
    spectrum = np.fft.rfft(np.random.default_rng(5).normal(size=2 * rate_hz))
    frequencies = np.fft.rfftfreq(2 * rate_hz, 1 / rate_hz)
    spectrum[(frequencies < 200) | (frequencies > 3_400)] = 0
    shaped = np.fft.irfft(spectrum / (1 + frequencies / 500))
    item = signals.pcm(shaped * 20_000 / np.abs(shaped).max())
    wanted = middle(signal_of(sox(item, pcm_at(rate_hz), pcm_at(8_000), "rate", "-v")), 8_000)
    ours = snr_db(wanted, middle(mulaw_signal(to_mulaw(rate_hz, item)), 8_000))
    theirs = snr_db(wanted, middle(mulaw_signal(sox(item, pcm_at(rate_hz), MULAW, "rate", "-v")), 8_000))
    assert ours > 35
    assert ours > theirs - 0.2
