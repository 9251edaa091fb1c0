"""Mu-law audio as text: what the core counts and the sockets carry."""

import binascii

from app.call.limits import MULAW_BYTES_PER_MS

_SILENT_BYTE = b"\xff"
"""Zero in mu-law (G.711)."""


def silence(ms: int) -> str:
    """So much silence, as base64 of 8 kHz mu-law."""
    return binascii.b2a_base64(_SILENT_BYTE * (ms * MULAW_BYTES_PER_MS), newline=False).decode("ascii")
