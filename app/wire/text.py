"""Reading JSON that somebody else wrote: typed look-ups in what may be anything.

Tolerant of what is unknown, exact about what is used: a field of the wrong type reads as missing. Unknown
fields and events are not errors (both vendors add some within an api-version).
"""

import binascii
from math import isfinite
from typing import Any

import orjson

from app.call.limits import ID_MAX_CHARS
from app.wire.errors import WireError

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PADDINGS = (b"==", b"=", b"")

Message = bytes | bytearray | memoryview | str


def read_object(message: Message) -> dict[str, Any]:
    """The JSON object in a text frame. Raises WireError when it is none."""
    try:
        value = orjson.loads(message)
    except orjson.JSONDecodeError:
        raise WireError("not JSON") from None
    if type(value) is not dict:
        raise WireError("not a JSON object")
    return value


def text_of(values: dict[str, Any], key: str) -> str:
    """A string field; "" when it is missing or something else."""
    value = values.get(key)
    return value if type(value) is str else ""


def need_text(values: dict[str, Any], key: str) -> str:
    """A string field that the message means nothing without. Raises WireError."""
    value = values.get(key)
    if type(value) is not str or not value:
        raise WireError(f"{key} is missing")
    return value


def need_id(values: dict[str, Any], key: str) -> str:
    """An id that the message means nothing without, of a length that can be kept. Raises WireError."""
    value = need_text(values, key)
    if len(value) > ID_MAX_CHARS:
        raise WireError(f"{key} has more than {ID_MAX_CHARS} characters")
    return value


def count_of(values: dict[str, Any], key: str, maximum: int) -> int:
    """A count from 0 to `maximum`; 0 when it is missing, no number, or larger, which is a miscount.

    JSON has one type of number: 1e30 is a count as much as 7 is, and orjson reads it as a float.
    """
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= maximum:
        return 0
    return int(value)


def number_of(value: object) -> float | None:
    """A finite number, or a text that spells one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > _NUMBER_MAX_CHARS:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if isfinite(number) else None


_NUMBER_MAX_CHARS = 32


def object_of(values: dict[str, Any], key: str) -> dict[str, Any]:
    """A nested object; {} when it is missing or something else."""
    value = values.get(key)
    return value if type(value) is dict else {}


def base64_bytes(payload: str) -> int:
    """How many bytes a base64 text stands for. Raises WireError when it is not base64.

    The text itself goes on as it is, into JSON that is built by hand: nothing but the base64 alphabet may pass.
    It is not decoded, which would take three times as long: what is left without the alphabet is the padding.
    """
    try:
        text = payload.encode("ascii")
    except UnicodeEncodeError:
        raise WireError("audio is not base64") from None
    padding = text.translate(None, _BASE64)
    if len(text) % 4 or padding not in _PADDINGS or not text.endswith(padding):
        raise WireError("audio is not base64")
    return len(text) // 4 * 3 - len(padding)


def bytes_of(payload: str) -> bytes:
    """What a base64 text stands for. Raises WireError when it is not base64."""
    base64_bytes(payload)  # binascii's own strict mode lets padding pass that is too long
    return binascii.a2b_base64(payload)


def base64_of(data: bytes) -> str:
    """As base64, on one line."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")
