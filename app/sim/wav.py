"""WAV files to and from the telephone's audio: 8 kHz mono mu-law bytes.

Reads PCM of 8 or 16 bits and mu-law (format 7), any sample rate, mono or stereo; writes 16-bit PCM at 8 kHz.
The standard library's `wave` refuses format 7 and `audioop` left with Python 3.13, so both are done here.
Resampling is linear interpolation after a moving average, which is enough for a test phone. Files are read and
written in the calling thread.
"""

import functools
import itertools
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RATE_HZ: Final = 8000
MULAW_SILENCE: Final = 0xFF

_PCM: Final = 1
_MULAW: Final = 7
_EXTENSIBLE: Final = 0xFFFE
_BIAS: Final = 0x84
_CLIP: Final = 32635


class WavError(Exception):
    """The file cannot be used. The text names the file and the reason."""


def _decode_table() -> tuple[int, ...]:
    """G.711 mu-law code to 16-bit sample."""
    samples = []
    for code in range(256):
        inverted = ~code & 0xFF
        magnitude = (((inverted & 0x0F) << 3) + _BIAS << ((inverted & 0x70) >> 4)) - _BIAS
        samples.append(-magnitude if inverted & 0x80 else magnitude)
    return tuple(samples)


def _encode_sample(sample: int) -> int:
    """G.711 mu-law code of one 16-bit sample (the segment search of the standard's reference)."""
    sign = 0x80 if sample < 0 else 0
    magnitude = min(abs(sample), _CLIP) + _BIAS
    segment = magnitude.bit_length() - 8
    return ~(sign | segment << 4 | (magnitude >> segment + 3) & 0x0F) & 0xFF


_DECODE: Final = _decode_table()


@functools.cache
def _encode_table() -> bytes:
    """Codes by the sample as an unsigned 16-bit number; made on first use, since it takes a tenth of a second."""
    return bytes(_encode_sample(sample) for sample in itertools.chain(range(32768), range(-32768, 0)))


def mulaw_to_pcm(audio: bytes) -> list[int]:
    """Mu-law bytes to 16-bit samples."""
    return [_DECODE[code] for code in audio]


def pcm_to_mulaw(samples: list[int]) -> bytes:
    """16-bit samples to mu-law bytes."""
    table = _encode_table()
    return bytes(table[sample & 0xFFFF] for sample in samples)


def read_wav(path: str | Path) -> bytes:
    """The file's audio as 8 kHz mono mu-law bytes.

    Raises WavError when the file is missing, not WAV, empty, cut short or in a coding that is not supported.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WavError(f"{path}: {error.strerror or error}") from error
    try:
        return _mulaw_of(data)
    except WavError as error:
        raise WavError(f"{path}: {error}") from None


def write_wav(path: str | Path, *channels: bytes) -> None:
    """Write one (mono) or two (left, right) mu-law tracks as 16-bit PCM at 8 kHz.

    The shorter track is filled up with silence. A new file is its owner's alone. Raises WavError when the file
    cannot be written.
    """
    assert 1 <= len(channels) <= 2
    length = max(len(channel) for channel in channels)
    silence = bytes([MULAW_SILENCE])
    tracks = [mulaw_to_pcm(channel.ljust(length, silence)) for channel in channels]
    interleaved = itertools.chain.from_iterable(zip(*tracks, strict=True))
    body = struct.pack(f"<{length * len(tracks)}h", *interleaved)
    frame_bytes = 2 * len(tracks)
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + len(body), b"WAVE"),
        *(b"fmt ", 16, _PCM, len(tracks), RATE_HZ, RATE_HZ * frame_bytes, frame_bytes, 16),
        *(b"data", len(body)),
    )
    try:
        # A recorded call is private: only its owner may read the file.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(header + body)
    except OSError as error:
        raise WavError(f"{path}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class _Format:
    coding: int
    channels: int
    rate_hz: int
    bits: int


def _mulaw_of(data: bytes) -> bytes:
    if not data:
        raise WavError("the file is empty")
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise WavError("not a WAV file")
    shape, body = _chunks(data)
    if shape.coding == _MULAW and shape.channels == 1 and shape.rate_hz == RATE_HZ:
        return body
    samples = _samples(shape, body)
    if shape.channels == 2:
        samples = [(left + right) // 2 for left, right in zip(samples[::2], samples[1::2], strict=True)]
    return pcm_to_mulaw(_resample(samples, shape.rate_hz))


def _chunks(data: bytes) -> tuple[_Format, bytes]:
    """The `fmt ` and `data` chunks; any other is skipped. Chunks are padded to an even length."""
    shape: _Format | None = None
    offset = 12
    while offset + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, offset)
        offset += 8
        if offset + size > len(data):
            raise WavError(f"cut short: chunk {name!r} should have {size} bytes, {len(data) - offset} are there")
        body = data[offset : offset + size]
        offset += size + size % 2
        if name == b"fmt ":
            shape = _format(body)
        elif name == b"data":
            if shape is None:
                raise WavError("its audio comes before its format")
            return shape, _whole_frames(shape, body)
    raise WavError("it has no audio (no data chunk)")


def _format(body: bytes) -> _Format:
    if len(body) < 16:
        raise WavError(f"its format chunk has {len(body)} bytes instead of 16")
    coding, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if coding == _EXTENSIBLE and len(body) >= 26:
        (coding,) = struct.unpack_from("<H", body, 24)
    supported = (coding == _PCM and bits in (8, 16)) or (coding == _MULAW and bits == 8)
    if not supported:
        raise WavError(f"format {coding} with {bits} bits is not supported: use PCM of 8 or 16 bits, or mu-law")
    if channels not in (1, 2):
        raise WavError(f"{channels} channels are not supported: use mono or stereo")
    if not 1000 <= rate_hz <= 384_000:
        raise WavError(f"a sample rate of {rate_hz} Hz is not supported")
    return _Format(coding, channels, rate_hz, bits)


def _whole_frames(shape: _Format, body: bytes) -> bytes:
    frame_bytes = shape.channels * shape.bits // 8
    if len(body) % frame_bytes:
        raise WavError(f"cut short: {len(body)} bytes of audio are not whole frames of {frame_bytes}")
    if not body:
        raise WavError("it has no audio (its data chunk is empty)")
    return body


def _samples(shape: _Format, body: bytes) -> list[int]:
    if shape.coding == _MULAW:
        return mulaw_to_pcm(body)
    if shape.bits == 8:
        return [(value - 128) << 8 for value in body]
    return list(struct.unpack(f"<{len(body) // 2}h", body))


def _resample(samples: list[int], rate_hz: int) -> list[int]:
    """To 8 kHz. Coming down, each output is the average of the input samples it stands for (against aliases)."""
    if rate_hz == RATE_HZ:
        return samples
    count = max(1, len(samples) * RATE_HZ // rate_hz)
    step = rate_hz / RATE_HZ
    if step > 1:
        sums = list(itertools.accumulate(samples, initial=0))
        edges = [min(len(samples), round(index * step)) for index in range(count + 1)]
        return [(sums[b] - sums[a]) // max(1, b - a) for a, b in itertools.pairwise(edges)]
    last = len(samples) - 1
    result = []
    for index in range(count):
        whole = min(last, int(index * step))
        fraction = index * step - whole
        following = samples[min(last, whole + 1)]
        result.append(round(samples[whole] + (following - samples[whole]) * fraction))
    return result
