"""Measures one window of time: latencies from stamps that travel inside the audio, and counts.

A stamp is 12 bytes at the head of a piece of audio, 16 characters of base64: a number and the instant it was
sent. Both ends are in this process and both read the machine's monotonic clock, so a difference is a latency.
"""

import struct
import time
from array import array
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass, field

STAMP_CHARS = 16
_STAMP = struct.Struct(">IQ")
STAMP_BYTES = _STAMP.size


def stamp(number: int) -> bytes:
    """Returns `number` and the present time as base64."""
    return b2a_base64(_STAMP.pack(number, time.monotonic_ns()), newline=False)


def read_stamp(text: bytes) -> tuple[int, int]:
    """The number and the instant, in ns."""
    number, sent_ns = _STAMP.unpack(a2b_base64(text))
    return number, sent_ns


def filler(audio_bytes: int, level: int) -> bytes:
    """Base64 of so much audio less the stamp that goes before it."""
    return b2a_base64(bytes([level]) * (audio_bytes - STAMP_BYTES), newline=False)


def _longs() -> "array[int]":
    return array("q")


@dataclass(slots=True)
class Meter:
    """Collects what was sent within a window. Open before `since_ns` is set, closed after `until_ns`."""

    since_ns: int = 1 << 62
    until_ns: int = 1 << 62
    caller_ns: "array[int]" = field(default_factory=_longs)
    """Caller frames: phone to backend."""
    agent_ns: "array[int]" = field(default_factory=_longs)
    """Agent audio that may go out at once: backend to phone."""
    clear_ns: "array[int]" = field(default_factory=_longs)
    """speech_started at the backend to `clear` at the phone."""
    late_ns: "array[int]" = field(default_factory=_longs)
    """How late the load test itself was, which shows the noise of the machine."""
    frames_sent: int = 0

    def open(self) -> None:
        """Begins the window."""
        self.since_ns = time.monotonic_ns()

    def close(self) -> None:
        """Ends the window. What was sent within it still counts when it arrives."""
        self.until_ns = time.monotonic_ns()

    def covers(self, sent_ns: int) -> bool:
        """True for what was sent within the window."""
        return self.since_ns <= sent_ns < self.until_ns
