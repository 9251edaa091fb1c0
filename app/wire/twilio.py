"""Twilio Media Streams: its messages to events, our commands to its messages (twilio.md 1).

Strict in what we send (an extra field, a wrong streamSid or a header byte is dropped by Twilio, and reported
only the first time), tolerant of what we get. Keeps no state: what is out of order, the call core finds out.
"""

from typing import Any

import orjson

from app.call.events import CallerAudio, Event, KeyPressed, MarkReturned, PhoneStarted, PhoneStopped
from app.wire.errors import WireError
from app.wire.text import Message, base64_bytes, need_id, number_of, object_of, read_object, text_of

MAX_MESSAGE_BYTES = 64 * 1024
"""Twilio's own messages are 400 bytes; `start` with parameters (each below 500 characters) a few thousand."""


def parse(message: Message) -> Event | None:
    """What a text frame of Twilio's means; None for what does not concern us.

    Raises WireError for what cannot be understood.
    """
    values = read_object(message)
    event = values.get("event")
    if event == "media":
        media = values.get("media")
        return _media(media if type(media) is dict else {})
    match event:
        case "mark":
            return MarkReturned(text_of(object_of(values, "mark"), "name"))
        case "start":
            return _start(object_of(values, "start"))
        case "stop":
            return PhoneStopped()
        case "dtmf":
            digit = text_of(object_of(values, "dtmf"), "digit")
            return KeyPressed(digit) if digit in _KEYS else None
        case str():
            return None
        case _:
            raise WireError("event is missing")


def _media(media: dict[str, Any]) -> CallerAudio | None:
    """The hot path: everything is looked at once, and nothing is called twice."""
    payload = media.get("payload")
    if type(payload) is not str or not payload:
        raise WireError("payload is missing")
    if media.get("track", "inbound") != "inbound":
        return None
    return CallerAudio(payload, base64_bytes(payload), _milliseconds(media.get("timestamp")))


_KEYS = frozenset("0123456789*#ABCD")


def _milliseconds(value: object) -> int:
    """Timestamps are strings of digits (twilio.md 1.2). Any other way to write a number is taken as well."""
    if type(value) is str and len(value) <= 12 and value.isdecimal():
        return int(value)
    number = number_of(value)
    if number is None or abs(number) > _TIMESTAMP_MAX_MS:
        raise WireError("timestamp is not a number")
    return int(number)


_TIMESTAMP_MAX_MS = 10**15
"""30,000 years."""


def _start(start: dict[str, object]) -> PhoneStarted:
    media_format = object_of(start, "mediaFormat")
    encoding = media_format.get("encoding", "audio/x-mulaw")
    rate, channels = (
        number_of(media_format.get(key, usual)) for key, usual in (("sampleRate", 8000), ("channels", 1))
    )
    # What is left out contradicts nothing: Twilio has one format (twilio.md 1.2).
    if (encoding, rate, channels) != ("audio/x-mulaw", 8000, 1):
        raise WireError("mediaFormat is not audio/x-mulaw, 8000, 1")
    return PhoneStarted(need_id(start, "streamSid"), need_id(start, "callSid"))


class Sender:
    """Builds messages for one stream. Made when `start` has given the stream's id."""

    __slots__ = ("_clear", "_mark", "_media")

    def __init__(self, stream_sid: str) -> None:
        sid = orjson.dumps(stream_sid)
        self._media = b'{"event":"media","streamSid":' + sid + b',"media":{"payload":"'
        self._mark = b'{"event":"mark","streamSid":' + sid + b',"mark":{"name":"'
        self._clear = b'{"event":"clear","streamSid":' + sid + b"}"

    def media(self, payload: str) -> bytes:
        """Play this: base64 of headerless mu-law, any length."""
        return self._media + payload.encode("ascii") + b'"}}'

    def mark(self, name: str) -> bytes:
        """Tell when everything before it was played. `name`: letters, digits and dashes."""
        return self._mark + name.encode("ascii") + b'"}}'

    def clear(self) -> bytes:
        """Throw away what was not played, and return all marks at once."""
        return self._clear
