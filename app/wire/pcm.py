"""16-bit PCM at 8, 16 or 24 kHz from mu-law at 8 kHz, and back: for backends that take no G.711.

Only bytes of headerless audio come in and go out; nothing here knows of base64, messages or calls. It loads numpy,
17 MB of memory: import it only where a converter is needed (audio.py does).

Mu-law is converted by tables of every value. Rates are converted by one linear-phase FIR filter: a sinc of
CUTOFF_HZ under a Kaiser window, made once by `_response`. It is flat to 3.4 kHz (-0.27 dB there) and 63 dB down
from 4.0 kHz on, so that neither images nor aliases are heard, and it delays by 2.75 ms.

Any division of a stream into pieces gives the same bytes. Floating-point sums depend on their order, and so on
the length of a piece; these do not, because none is ever rounded: samples are integers of 16 bits and taps are
multiples of 2**-20, so that every partial sum is a multiple of 2**-20 below 2**18: a double holds it exactly.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

MULAW_HZ = 8_000
SAMPLE_BYTES = 2

CUTOFF_HZ = 3_650
KAISER_BETA = 6.0
"""A stop band 63 dB down. With CUTOFF_HZ and DELAY_SAMPLES it keeps what speech needs, to 3.4 kHz, and leaves
nothing of what starts at 4.0 kHz, where 8 kHz audio is mirrored."""
DELAY_SAMPLES = 22
"""Half the filter's length, in samples of 8 kHz: 2.75 ms."""

_TAP_STEPS = 1 << 20
_BIAS, _CLIP = 132, 32_635
_SILENT_CODE = b"\xff"

_BLOCK_STEPS = 16
"""Steps of the filter that one row of a matrix product makes: more would multiply by more zeros."""
_STEPS_AT_ONCE = 1_024
"""Steps of one product: 128 ms. Below 262,144 multiplications OpenBLAS does not wake its threads, whose waiting
and spinning would take time from the other calls; and a long piece needs no more memory than this."""

_PCM16 = np.dtype("<i2")

Samples = NDArray[np.int16]


# --- The converters --------------------------------------------------------------------------


class FromMulaw:
    """One stream of mu-law into PCM16 at `rate_hz`, late by the filter's delay."""

    __slots__ = ("_filter", "_kept")

    def __init__(self, rate_hz: int) -> None:
        self._filter = upward(rate_hz // MULAW_HZ)
        self._kept = _SILENT_CODE * (self._filter.window - 1)
        """What the next step still looks at."""

    @property
    def kept_bytes(self) -> int:
        """How much of what came is still needed for what follows."""
        return len(self._kept)

    def convert(self, mulaw: bytes) -> bytes:
        """The PCM that a piece makes: always all of it, a ratio of its length."""
        codes = self._kept + mulaw
        self._kept = codes[len(mulaw) :]
        return self._filter.apply(_LINEAR.take(np.frombuffer(codes, np.uint8))).tobytes()


class ToMulaw:
    """One item of PCM16 at `rate_hz` into mu-law: code k is the item's sound at k/8000 s.

    Nothing is late in it, for the filter's delay is left out at its head and made up for by `flush`. All in all it
    has a code for every whole 1/8000 s of PCM, and never more; what is over is dropped, as is half a sample.
    """

    __slots__ = ("_filter", "_kept")

    def __init__(self, rate_hz: int) -> None:
        self._filter = downward(rate_hz // MULAW_HZ)
        self._kept = bytes(self._filter.window // 2 * SAMPLE_BYTES)
        """What the next step still looks at, and what is not enough for one: maybe half a sample."""

    @property
    def kept_bytes(self) -> int:
        """How much of what came is still needed for what follows."""
        return len(self._kept)

    def convert(self, pcm: bytes) -> bytes:
        """The mu-law that a piece completes; maybe none."""
        pcm = self._kept + pcm
        samples = np.frombuffer(pcm, _PCM16, len(pcm) // SAMPLE_BYTES)
        used = self._filter.steps(len(samples)) * self._filter.in_samples
        self._kept = pcm[used * SAMPLE_BYTES :]
        return _CODES.take(self._filter.apply(samples).view(np.uint16)).tobytes()

    def flush(self) -> bytes:
        """The rest, at the item's end. The converter is used up then."""
        whole = len(self._kept) // SAMPLE_BYTES * SAMPLE_BYTES
        self._kept = self._kept[:whole]
        return self.convert(bytes((self._filter.window // 2 + 1 - self._filter.in_samples) * SAMPLE_BYTES))


# --- Mu-law ----------------------------------------------------------------------------------


def _linear() -> NDArray[np.float64]:
    """The sample of every code (G.711, on its scale of 16 bits)."""
    codes = ~np.arange(256, dtype=np.uint8)
    magnitudes = (((codes & 0x0F).astype(np.int16) << 3) + _BIAS << (codes >> 4 & 7)) - _BIAS
    return np.where(codes & 0x80, -magnitudes, magnitudes).astype(np.float64)


def _codes() -> NDArray[np.uint8]:
    """The code of every sample, in the order of the samples' bits read as unsigned."""
    samples = np.arange(1 << 16, dtype=np.uint16).view(np.int16).astype(np.int32)
    biased = np.minimum(np.abs(samples), _CLIP) + _BIAS
    segments = np.frexp(biased)[1] - 8
    signs = np.where(samples < 0, 0x80, 0)
    codes: NDArray[np.uint8] = (~(signs | segments << 4 | biased >> segments + 3 & 0x0F)).astype(np.uint8)
    return codes


_LINEAR, _CODES = _linear(), _codes()

# --- The filter ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter between two rates, shared by all calls.

    A step looks at `window` samples, makes `out_samples` of them and moves on by `in_samples`.
    """

    in_samples: int
    out_samples: int
    window: int
    matrix: NDArray[np.float64]
    """Takes the samples that _BLOCK_STEPS steps look at to what they make: the taps, over and over."""

    def steps(self, samples: int) -> int:
        """How many steps so many samples are enough for."""
        return max(0, (samples - self.window) // self.in_samples + 1)

    def apply(self, samples: NDArray[np.generic]) -> Samples:
        """What all steps make."""
        if self.window == 1:
            return samples.astype(_PCM16)
        steps = self.steps(len(samples))
        if 0 < steps <= _STEPS_AT_ONCE:
            return self._product(samples.astype(np.float64, copy=False), steps)
        parts = [np.empty(0, _PCM16)]
        for first in range(0, steps, _STEPS_AT_ONCE):
            last = min(first + _STEPS_AT_ONCE, steps)
            looked_at = samples[first * self.in_samples : (last - 1) * self.in_samples + self.window]
            parts.append(self._product(looked_at.astype(np.float64, copy=False), last - first))
        return np.concatenate(parts)

    def _product(self, samples: NDArray[np.float64], steps: int) -> Samples:
        """What these steps make: rounded, and within 16 bits."""
        blocks = -(-steps // _BLOCK_STEPS)
        missing = blocks * _BLOCK_STEPS - steps
        if missing:
            samples = np.concatenate((samples, np.zeros(missing * self.in_samples)))
        # Each row begins a hop after the one before and overlaps it; BLAS takes rows that do not.
        shape, strides = (blocks, len(self.matrix)), (_BLOCK_STEPS * self.in_samples * 8, 8)
        product = np.ndarray(shape, np.float64, samples, 0, strides).copy().dot(self.matrix)
        np.rint(product, product)
        made: Samples = product.clip(-32_768, 32_767, product).astype(_PCM16)
        return made.reshape(-1)[: steps * self.out_samples]


def _response(ratio: int) -> NDArray[np.float64]:
    """The filter at `ratio` times 8 kHz; a single tap where the rate stays."""
    if ratio == 1:
        return np.ones(1)
    half = DELAY_SAMPLES * ratio
    cutoff = 2 * CUTOFF_HZ / (MULAW_HZ * ratio)
    response: NDArray[np.float64] = np.sinc(cutoff * np.arange(-half, half + 1))
    response *= np.kaiser(2 * half + 1, KAISER_BETA)
    return response


def _taps(response: NDArray[np.float64]) -> NDArray[np.float64]:
    """In multiples of 1/_TAP_STEPS; their sum is exactly 1, so that a constant (silence) stays what it is."""
    taps: NDArray[np.float64] = np.rint(response / response.sum() * _TAP_STEPS)
    taps[np.argmax(taps)] += _TAP_STEPS - taps.sum()
    taps /= _TAP_STEPS
    return taps


@cache
def upward(ratio: int) -> Filter:
    """From 8 kHz: each sample makes `ratio`, by every `ratio`-th tap each (a polyphase interpolator)."""
    response = _response(ratio)
    window = -(-len(response) // ratio)
    step = np.zeros((window, ratio))
    for phase in range(ratio):
        taps = _taps(response[phase::ratio])
        step[window - len(taps) :, phase] = taps[::-1]
    return Filter(1, ratio, window, _repeated(step, 1))


@cache
def downward(ratio: int) -> Filter:
    """To 8 kHz: each `ratio` samples make one. The taps are symmetric: no need to turn them round."""
    step = _taps(_response(ratio))[:, np.newaxis]
    return Filter(ratio, 1, len(step), _repeated(step, ratio))


def _repeated(step: NDArray[np.float64], hop: int) -> NDArray[np.float64]:
    """_BLOCK_STEPS steps in one matrix, each `hop` samples after the one before."""
    window, out_samples = step.shape
    matrix = np.zeros((window + (_BLOCK_STEPS - 1) * hop, _BLOCK_STEPS * out_samples))
    for number in range(_BLOCK_STEPS):
        at, to = number * hop, number * out_samples
        matrix[at : at + window, to : to + out_samples] = step
    return matrix
