"""Media Streams messages as Twilio writes them, and a strict reader of what the application sends back.

Pure: text in, values out. Sources: twilio.md 1.2 (Twilio to server), 1.3 (server to Twilio), 1.6 (codes).
The reader is stricter than Twilio shows itself: Twilio reports the first wrong message of a stream and is silent
about the rest, so production cannot tell us; this phone refuses each with a sentence.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

FRAME_MS: Final = 20
FRAME_BYTES: Final = 160
SILENT_PAYLOAD: Final = base64.b64encode(b"\xff" * FRAME_BYTES).decode()

MAX_MARK_CHARS: Final = 100
"""Our own limit: Twilio publishes none (twilio.md 1.4)."""

CONNECTED: Final = '{"event":"connected","protocol":"Call","version":"1.0.0"}'


class Script:
    """Writes the messages of one stream, keeping the sequence (start = 1, one more for every later message)."""

    def __init__(self, account_sid: str, call_sid: str, stream_sid: str) -> None:
        self._account_sid = account_sid
        self._call_sid = call_sid
        self._stream_sid = stream_sid
        self._sequence = 0
        self._chunk = 0

    def start(self, parameters: Mapping[str, str]) -> str:
        body = {
            "accountSid": self._account_sid,
            "streamSid": self._stream_sid,
            "callSid": self._call_sid,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": dict(parameters),
        }
        return self._message("start", {"start": body})

    def media(self, timestamp_ms: int, audio: bytes | None) -> str:
        """Returns one frame; None is silence. This is the hot path: it only builds a string."""
        self._sequence += 1
        self._chunk += 1
        payload = SILENT_PAYLOAD if audio is None else base64.b64encode(audio).decode()
        return (
            f'{{"event":"media","sequenceNumber":"{self._sequence}","media":{{"track":"inbound","chunk":"{self._chunk}",'
            f'"timestamp":"{timestamp_ms}","payload":"{payload}"}},"streamSid":"{self._stream_sid}"}}'
        )

    def mark(self, name: str) -> str:
        return self._message("mark", {"mark": {"name": name}})

    def dtmf(self, digit: str) -> str:
        return self._message("dtmf", {"dtmf": {"track": "inbound_track", "digit": digit}})

    def stop(self) -> str:
        return self._message("stop", {"stop": {"accountSid": self._account_sid, "callSid": self._call_sid}})

    def _message(self, event: str, body: dict[str, Any]) -> str:
        self._sequence += 1
        numbered = {"event": event, "sequenceNumber": str(self._sequence), **body, "streamSid": self._stream_sid}
        return orjson.dumps(numbered).decode()


@dataclass(frozen=True, slots=True)
class ServerMedia:
    audio: bytes


@dataclass(frozen=True, slots=True)
class ServerMark:
    name: str


@dataclass(frozen=True, slots=True)
class ServerClear:
    pass


@dataclass(frozen=True, slots=True)
class Refused:
    """A message Twilio would ignore, with the code of its warning: 31950 undecodable, 31951 not valid."""

    code: int
    why: str


ServerMessage = ServerMedia | ServerMark | ServerClear


def read_server_message(raw: str | bytes, stream_sid: str) -> ServerMessage | Refused:
    """Reads one message of the application. Returns Refused when Twilio would not take it."""
    if isinstance(raw, bytes):
        return Refused(31950, f"a binary frame of {len(raw)} bytes instead of text")
    try:
        message = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return Refused(31951, f"not JSON: {error}")
    if not isinstance(message, dict):
        return Refused(31951, f"a JSON {type(message).__name__} instead of an object")
    event = message.get("event")
    match event:
        case "media" | "mark":
            wrong = _wrong_keys(message, {"event", "streamSid", event}, "message")
        case "clear":
            wrong = _wrong_keys(message, {"event", "streamSid"}, "message")
        case _:
            return Refused(31951, f"unknown event {event!r}")
    if wrong is not None:
        return wrong
    if message["streamSid"] != stream_sid:
        return Refused(31951, f"streamSid {message['streamSid']!r} is not this stream's")
    if event == "media":
        return _media(message["media"])
    if event == "mark":
        return _mark(message["mark"])
    return ServerClear()


def _media(body: Any) -> ServerMedia | Refused:
    wrong = _wrong_keys(body, {"payload"}, "media")
    if wrong is not None:
        return wrong
    payload = body["payload"]
    if not isinstance(payload, str) or not payload:
        return Refused(31951, "media.payload is not a text with something in it")
    try:
        return ServerMedia(binascii.a2b_base64(payload, strict_mode=True))
    except ValueError as error:  # binascii.Error, and ValueError for text that is not ASCII
        return Refused(31950, f"media.payload is not base64: {error}")


def _mark(body: Any) -> ServerMark | Refused:
    wrong = _wrong_keys(body, {"name"}, "mark")
    if wrong is not None:
        return wrong
    name = body["name"]
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        return Refused(31951, f"mark.name {name!r} is not a printable text")
    if len(name) > MAX_MARK_CHARS:
        return Refused(31951, f"mark.name has {len(name)} characters, keep it to {MAX_MARK_CHARS}")
    return ServerMark(name)


def _wrong_keys(body: Any, expected: set[str], what: str) -> Refused | None:
    if not isinstance(body, dict):
        return Refused(31951, f"{what} is not an object")
    keys = body.keys()
    if keys == expected:
        return None
    missing, extra = sorted(expected - keys), sorted(keys - expected)
    text = "; ".join(
        part
        for part in (
            f"{what} lacks {', '.join(missing)}" * bool(missing),
            f"{what} has extra {', '.join(extra)}" * bool(extra),
        )
        if part
    )
    return Refused(31951, text)
