"""The audio formats on the simulated backend's wire, and the one it thinks in.

Inside, all audio is G.711 mu-law at 8 kHz: one byte a sample, eight bytes a millisecond. This module turns
the three wire formats of realtime.md 1.3 into that and back. It knows nothing of sessions, and shares no code
with the bridge: the two ends of the wire must not agree by having the same mistake.
"""

import struct
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Final

BYTES_PER_MS: Final = 8
SILENCE: Final = b"\xff"
_PCM_PER_SAMPLE: Final = 3  # 24 kHz against 8 kHz


class AudioFormat(Enum):
    """A wire format by its name in `session.audio.*.format.type`."""

    PCMU = "audio/pcmu"
    PCMA = "audio/pcma"
    PCM = "audio/pcm"  # 16-bit little-endian, 24 kHz only


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
    """Caller audio of one wire format into mu-law. Keeps the bytes of a sample cut by a message border."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._rest = b""

    def decode(self, data: bytes) -> bytes:
        match self._format:
            case AudioFormat.PCMU:
                return data
            case AudioFormat.PCMA:
                return data.translate(_ALAW_TO_MULAW)
            case AudioFormat.PCM:
                return self._decode_pcm(data)

    def _decode_pcm(self, data: bytes) -> bytes:
        """Averages three samples into one, which is low-pass enough to hear speech and to measure energy."""
        data = self._rest + data
        whole = len(data) - len(data) % (2 * _PCM_PER_SAMPLE)
        self._rest = data[whole:]
        samples = struct.unpack(f"<{whole // 2}h", data[:whole])
        table = _linear_table()
        triples = zip(samples[::3], samples[1::3], samples[2::3], strict=True)
        return bytes(table[((a + b + c) // 3 >> 2) + 8192] for a, b, c in triples)


class Encoder:
    """Agent audio from mu-law into one wire format. Keeps the last sample, so that pieces join without a click."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._last = 0

    def encode(self, mulaw: bytes) -> bytes:
        match self._format:
            case AudioFormat.PCMU:
                return mulaw
            case AudioFormat.PCMA:
                return mulaw.translate(_MULAW_TO_ALAW)
            case AudioFormat.PCM:
                return struct.pack(f"<{len(mulaw) * _PCM_PER_SAMPLE}h", *self._interpolate(mulaw))

    def _interpolate(self, mulaw: bytes) -> Iterator[int]:
        last = self._last
        for code in mulaw:
            sample = MULAW_LINEAR[code]
            yield last + (sample - last) // 3
            yield last + (sample - last) * 2 // 3
            yield sample
            last = sample
        self._last = last
