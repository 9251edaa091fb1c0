"""Messages as Twilio spells them, and the strict reading of the application's."""

import base64
import json
from typing import Any

import pytest

from app.sim.phone.wire import (
    CONNECTED,
    Refused,
    Script,
    ServerClear,
    ServerMark,
    ServerMedia,
    read_server_message,
)

ACCOUNT, CALL, STREAM = "AC" + "0" * 32, "CA" + "1" * 32, "MZ" + "2" * 32


def script() -> Script:
    return Script(ACCOUNT, CALL, STREAM)


def test_connected_has_neither_stream_nor_sequence() -> None:
    assert json.loads(CONNECTED) == {"event": "connected", "protocol": "Call", "version": "1.0.0"}


def test_start_has_texts_and_numbers_as_captured() -> None:
    assert json.loads(script().start({"tenant": "acme"})) == {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": ACCOUNT,
            "streamSid": STREAM,
            "callSid": CALL,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"tenant": "acme"},
        },
        "streamSid": STREAM,
    }


def test_media_is_160_bytes_in_216_characters_with_texts_for_numbers() -> None:
    message = json.loads(script().media(155, bytes(range(160))))
    payload = message["media"].pop("payload")
    assert len(payload) == 216
    assert base64.b64decode(payload) == bytes(range(160))
    assert message == {
        "event": "media",
        "sequenceNumber": "1",
        "media": {"track": "inbound", "chunk": "1", "timestamp": "155"},
        "streamSid": STREAM,
    }


def test_silence_is_slashes() -> None:
    assert json.loads(script().media(100, None))["media"]["payload"] == "/" * 213 + "w=="


def test_sequence_counts_every_message_and_chunk_counts_media_only() -> None:
    writer = script()
    messages = [
        json.loads(text)
        for text in (
            writer.start({}),
            writer.media(100, None),
            writer.mark("g1"),
            writer.dtmf("5"),
            writer.media(120, None),
            writer.stop(),
        )
    ]
    assert [message["sequenceNumber"] for message in messages] == ["1", "2", "3", "4", "5", "6"]
    assert [m["media"]["chunk"] for m in messages if m["event"] == "media"] == ["1", "2"]


def test_dtmf_names_its_track_differently_from_media() -> None:
    assert json.loads(script().dtmf("#"))["dtmf"] == {"track": "inbound_track", "digit": "#"}


def test_mark_name_is_escaped() -> None:
    assert json.loads(script().mark('a"ä\\'))["mark"] == {"name": 'a"ä\\'}


def test_stop_names_account_and_call() -> None:
    assert json.loads(script().stop())["stop"] == {"accountSid": ACCOUNT, "callSid": CALL}


# What the application sends


def media(**changes: Any) -> dict[str, Any]:
    return {"event": "media", "streamSid": STREAM, "media": {"payload": "/////w=="}} | changes


def mark(name: Any) -> dict[str, Any]:
    return {"event": "mark", "streamSid": STREAM, "mark": {"name": name}}


@pytest.mark.parametrize(
    ("message", "read"),
    [
        (media(), ServerMedia(b"\xff\xff\xff\xff")),
        (mark("g1-a-0"), ServerMark("g1-a-0")),
        (mark("x" * 100), ServerMark("x" * 100)),
        ({"event": "clear", "streamSid": STREAM}, ServerClear()),
    ],
)
def test_right_message_is_read(message: dict[str, Any], read: object) -> None:
    assert read_server_message(json.dumps(message), STREAM) == read


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (media(track="outbound"), "message has extra track"),
        (media(sequenceNumber="1"), "message has extra sequenceNumber"),
        (media(media={"payload": "/////w==", "track": "outbound"}), "media has extra track"),
        (media(media={}), "media lacks payload"),
        (media(media="/////w=="), "media is not an object"),
        (media(media={"payload": ""}), "media.payload is not a text"),
        (media(media={"payload": [1]}), "media.payload is not a text"),
        (media(streamSid="MZ" + "3" * 32), "not this stream's"),
        (media(streamSid=None), "not this stream's"),
        ({"event": "media", "media": {"payload": "/////w=="}}, "message lacks streamSid"),
        (
            {"event": "media", "streamSid": STREAM, "payload": "/////w=="},
            "message lacks media; message has extra payload",
        ),
        ({"event": "clear", "streamSid": STREAM, "clear": {}}, "message has extra clear"),
        ({"event": "mark", "streamSid": STREAM}, "message lacks mark"),
        (mark(""), "mark.name '' is not a printable text"),
        (mark("a\nb"), "not a printable text"),
        (mark(7), "mark.name 7 is not a printable text"),
        (mark("x" * 101), "101 characters"),
        ({"event": "stop", "streamSid": STREAM}, "unknown event 'stop'"),
        ({"event": "Media", "streamSid": STREAM}, "unknown event 'Media'"),
        ({"event": ["media"], "streamSid": STREAM}, "unknown event"),
        ({}, "unknown event None"),
        ([], "a JSON list instead of an object"),
        ("media", "a JSON str instead of an object"),
    ],
)
def test_wrong_message_is_refused_with_the_reason(message: Any, why: str) -> None:
    refused = read_server_message(json.dumps(message), STREAM)
    assert isinstance(refused, Refused)
    assert refused.code == 31951
    assert why in refused.why


def test_text_that_is_not_json_is_refused() -> None:
    refused = read_server_message("{'event': 'clear'}", STREAM)
    assert isinstance(refused, Refused)
    assert refused.code == 31951


@pytest.mark.parametrize("payload", ["====", "/////w=", "/////w", "//// /w==", "_____w==", "////\n/w==", "ü"])
def test_payload_that_is_not_strict_base64_is_undecodable(payload: str) -> None:
    refused = read_server_message(json.dumps(media(media={"payload": payload})), STREAM)
    assert isinstance(refused, Refused)
    assert refused.code == 31950


def test_binary_frame_is_undecodable_even_with_a_right_text_in_it() -> None:
    assert read_server_message(json.dumps(media()).encode(), STREAM) == Refused(
        31950, "a binary frame of 103 bytes instead of text"
    )
