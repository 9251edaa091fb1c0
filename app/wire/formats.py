"""The audio formats that a backend can be spoken to in. Names and numbers only; converting is audio.py's."""

from enum import StrEnum
from types import MappingProxyType


class AudioFormat(StrEnum):
    """By its name in a backend's settings. All are mono; PCM is 16-bit little-endian."""

    G711 = "g711"
    """Mu-law at 8 kHz, as Twilio has it: passed through."""
    PCM16_8K = "pcm16-8k"
    PCM16_16K = "pcm16-16k"
    PCM16_24K = "pcm16-24k"

    @property
    def rate_hz(self) -> int:
        """Samples a second."""
        return _RATES_HZ[self]


_RATES_HZ = MappingProxyType(
    {
        AudioFormat.G711: 8_000,
        AudioFormat.PCM16_8K: 8_000,
        AudioFormat.PCM16_16K: 16_000,
        AudioFormat.PCM16_24K: 24_000,
    }
)
