"""Converts between the audio formats on the simulated backend's wire and the one it works in.

Inside, all audio is G.711 mu-law at 8 kHz: one byte a sample, eight bytes a millisecond. This module converts the
wire formats of realtime.md 1.3 and 2.2. It shares no code with the bridge: the two ends of the wire must not agree
because both have the same mistake.
"""

import struct
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Final

BYTES_PER_MS: Final = 8
SILENCE: Final = b"\xff"


class AudioFormat(Enum):
    """A wire format: mono, and PCM is 16-bit little-endian. Each has a name, a rate, and the bytes of a sample."""

    PCMU = "mu-law", 8_000, 1
    PCMA = "A-law", 8_000, 1
    PCM_8K = "PCM", 8_000, 2
    PCM_16K = "PCM", 16_000, 2
    PCM_24K = "PCM", 24_000, 2

    @property
    def rate_hz(self) -> int:
        return self.value[1]

    @property
    def sample_bytes(self) -> int:
        return self.value[2]

    @property
    def bytes_per_ms(self) -> int:
        return self.rate_hz // 1000 * self.sample_bytes

    @property
    def samples_per_inner(self) -> int:
        """Samples of this format in the time of one inside."""
        return self.rate_hz // 8_000


PCM_BY_RATE: Final = {each.rate_hz: each for each in AudioFormat if each.sample_bytes == 2}


def duration_ms(mulaw: bytes | bytearray) -> int:
    """Whole milliseconds of mu-law audio."""
    return len(mulaw) // BYTES_PER_MS


def mulaw_to_linear(code: int) -> int:
    """One mu-law byte as a 16-bit sample (ITU-T G.711, bias 132)."""
    code = ~code & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 7)) - 0x84
    return -magnitude if code & 0x80 else magnitude


def linear_to_mulaw(sample: int) -> int:
    """One 16-bit sample as a mu-law byte; the loudest samples are clipped at 32635 as the standard says."""
    sign = 0x80 if sample < 0 else 0
    biased = min(abs(sample), 32635) + 0x84
    exponent = biased.bit_length() - 8
    return ~(sign | exponent << 4 | biased >> exponent + 3 & 0x0F) & 0xFF


def alaw_to_linear(code: int) -> int:
    """One A-law byte as a 16-bit sample (ITU-T G.711)."""
    code ^= 0x55
    exponent = code >> 4 & 7
    magnitude = (code & 0x0F) << 4 | 8
    if exponent:
        magnitude = magnitude + 0x100 << exponent - 1
    return magnitude if code & 0x80 else -magnitude


def linear_to_alaw(sample: int) -> int:
    """One 16-bit sample as an A-law byte."""
    sign = 0x80 if sample >= 0 else 0
    magnitude = sample if sample >= 0 else -sample - 1
    exponent = max(0, magnitude.bit_length() - 8)
    mantissa = magnitude >> (exponent + 3 if exponent else 4) & 0x0F
    return (sign | exponent << 4 | mantissa) ^ 0x55


MULAW_LINEAR: Final = tuple(mulaw_to_linear(code) for code in range(256))
_ALAW_TO_MULAW: Final = bytes(linear_to_mulaw(alaw_to_linear(code)) for code in range(256))
_MULAW_TO_ALAW: Final = bytes(linear_to_alaw(sample) for sample in MULAW_LINEAR)


@cache
def _linear_table() -> bytes:
    """Mu-law of every 14-bit sample; made on first use, since only PCM sessions need its 16,384 entries."""
    return bytes(linear_to_mulaw(high << 2) for high in range(-8192, 8192))


class Decoder:
    """Decodes caller audio of one wire format into mu-law. Keeps the bytes of a sample that a message cuts."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._rest = b""

    def decode(self, data: bytes) -> bytes:
        match self._format:
            case AudioFormat.PCMU:
                return data
            case AudioFormat.PCMA:
                return data.translate(_ALAW_TO_MULAW)
            case _:
                return self._decode_pcm(data)

    def _decode_pcm(self, data: bytes) -> bytes:
        """Averages samples down to 8 kHz. That is filter enough to hear speech and to measure energy."""
        per_inner = self._format.samples_per_inner
        data = self._rest + data
        whole = len(data) - len(data) % (2 * per_inner)
        self._rest = data[whole:]
        samples = struct.unpack(f"<{whole // 2}h", data[:whole])
        table = _linear_table()
        groups = zip(*(samples[start::per_inner] for start in range(per_inner)), strict=True)
        return bytes(table[(sum(group) // per_inner >> 2) + 8192] for group in groups)


class Encoder:
    """Encodes agent audio from mu-law. Keeps the last sample, so that pieces join without a click."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._last = 0

    def encode(self, mulaw: bytes) -> bytes:
        match self._format:
            case AudioFormat.PCMU:
                return mulaw
            case AudioFormat.PCMA:
                return mulaw.translate(_MULAW_TO_ALAW)
            case _:
                count = len(mulaw) * self._format.samples_per_inner
                return struct.pack(f"<{count}h", *self._interpolate(mulaw))

    def _interpolate(self, mulaw: bytes) -> Iterator[int]:
        steps = range(1, self._format.samples_per_inner + 1)
        last = self._last
        for code in mulaw:
            sample = MULAW_LINEAR[code]
            for step in steps:
                yield last + (sample - last) * step // len(steps)
            last = sample
        self._last = last
