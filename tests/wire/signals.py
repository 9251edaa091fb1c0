"""Signals for the tests of converted audio, and how they are measured. Shares no arithmetic with app/wire."""

import math
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]

SEGMENTS = [(0, 1, 1), (1, 2, 15), (31, 4, 16), (95, 8, 16), (223, 16, 16), (479, 32, 16), (991, 64, 16)]
SEGMENTS += [(2015, 128, 16), (4063, 256, 16)]
"""G.711, table 2a: where a segment's decision values begin, how far apart they are, and how many; of 14 bits."""
VIRTUAL_DECISION = 8159
"""x_128 of the same table: there the last interval ends."""
DECISIONS = [start + step * number for start, step, count in SEGMENTS for number in range(count)]
OUTPUTS = [0] + [
    (low + high) // 2 for low, high in zip(DECISIONS[1:], [*DECISIONS[2:], VIRTUAL_DECISION], strict=True)
]
"""The values at the decoder's output: y_0 = 0, the others half-way between two decision values."""
SCALE = 4
"""From 14 bits to 16."""


def mulaw_of(sample: int) -> int:
    """By the table: the interval that a sample of 16 bits lies in. The bits of a character are all inverted."""
    interval = bisect_right(DECISIONS, abs(sample) / SCALE) - 1
    return (0x7F if sample < 0 else 0xFF) - interval


def sample_of(code: int) -> int:
    """By the table: the value at the decoder's output, on a scale of 16 bits."""
    return -OUTPUTS[0x7F - code] * SCALE if code < 0x80 else OUTPUTS[0xFF - code] * SCALE


MULAW = np.array([mulaw_of(sample) for sample in range(-32_768, 32_768)], np.uint8)
LINEAR = np.array([sample_of(code) for code in range(256)], np.float64)


def tone(frequency_hz: float, rate_hz: int, *, amplitude: float = 8_000, ms: int = 400) -> Signal:
    """A sine, not yet rounded."""
    instants = np.arange(rate_hz * ms // 1000) / rate_hz
    made: Signal = amplitude * np.sin(2 * math.pi * frequency_hz * instants + 0.3)
    return made


def pcm(signal: Signal) -> bytes:
    """As 16-bit PCM."""
    return np.rint(signal).astype("<i2").tobytes()


def signal_of(data: bytes) -> Signal:
    """Of 16-bit PCM."""
    return np.frombuffer(data, "<i2").astype(np.float64)


def mulaw(signal: Signal) -> bytes:
    """As mu-law."""
    return MULAW[np.rint(signal).astype(np.int32) + 32_768].tobytes()


def mulaw_signal(data: bytes) -> Signal:
    """Of mu-law."""
    return LINEAR[np.frombuffer(data, np.uint8)]


def snr_db(wanted: Signal, found: Signal) -> float:
    """How far the difference is below what was wanted."""
    return 10 * math.log10(float(np.sum(wanted**2) / np.sum((found - wanted) ** 2)))


def level_of(signal: Signal, frequency_hz: float, rate_hz: int) -> float:
    """A tone's amplitude in a signal, by a window whose side lobes are 90 dB down."""
    window = np.kaiser(len(signal), 12)
    turns = np.exp(-2j * math.pi * frequency_hz * np.arange(len(signal)) / rate_hz)
    return float(2 * abs(np.sum(signal * window * turns)) / np.sum(window))


def db(ratio: float) -> float:
    """An amplitude's ratio; of none at all -200."""
    return 20 * math.log10(max(ratio, 1e-10))
