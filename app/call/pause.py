"""The tone that fills a long pause: two short, soft beeps, as a line makes that is being connected.

Knows nothing of calls. Twilio's format: mu-law at 8 kHz (G.711), as base64.
"""

from base64 import b64encode
from math import pi, sin

_RATE_HZ = 8_000
_HZ = 440
_BEEP_MS = 100
_REST_MS = 30
_LOUDNESS = 1_600
"""Of 32,767: clearly below speech."""
_FADE_MS = 20
"""A tone that begins at once begins with a click."""


def _encoded(sample: int) -> int:
    """One 16-bit sample in mu-law."""
    sign = 0x80 if sample < 0 else 0
    magnitude = min(abs(sample), 32_635) + 132
    exponent = magnitude.bit_length() - 8
    return ~(sign | exponent << 4 | magnitude >> exponent + 3 & 0x0F) & 0xFF


def _beep() -> bytes:
    count, fade = _BEEP_MS * _RATE_HZ // 1000, _FADE_MS * _RATE_HZ // 1000
    return bytes(
        _encoded(round(_LOUDNESS * min(1.0, at / fade, (count - at) / fade) * sin(2 * pi * _HZ * at / _RATE_HZ)))
        for at in range(count)
    )


_SILENCE = b"\xff" * (_REST_MS * _RATE_HZ // 1000)
_AUDIO = _SILENCE + _beep() + _SILENCE + _beep() + _SILENCE

TONE = b64encode(_AUDIO).decode("ascii")
TONE_BYTES = len(_AUDIO)
