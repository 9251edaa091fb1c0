"""Mu-law audio as text: what the core counts and the sockets carry, and who has to convert it.

Loads no numpy of its own: a server whose backends all take G.711 must do without (see `spoken_in`).
"""

from app.call.limits import MULAW_BYTES_PER_MS
from app.wire.dialect import Dialect
from app.wire.formats import AudioFormat
from app.wire.text import base64_of

_SILENT_BYTE = b"\xff"
"""Zero in mu-law (G.711)."""


def silence(ms: int) -> str:
    """So much silence, as base64 of 8 kHz mu-law."""
    return base64_of(_SILENT_BYTE * (ms * MULAW_BYTES_PER_MS))


def spoken_in(dialect: Dialect, audio_format: AudioFormat) -> Dialect:
    """For one call: the dialect with mu-law to our side, whatever the backend is spoken to in.

    The first of a PCM format loads numpy and makes tables, a tenth of a second or, from a cold disk, a whole one:
    a server that has such a backend should ask once before it takes calls.
    """
    if audio_format is AudioFormat.G711:
        return dialect
    from app.wire.transcoded import Transcoded  # noqa: PLC0415  numpy: 17 MB that G.711 can do without

    return Transcoded(dialect, audio_format)
