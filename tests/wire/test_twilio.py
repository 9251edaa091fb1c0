"""Twilio's messages, read and written (twilio.md 1). What Twilio would drop in silence is looked for here."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.call.events import CallerAudio, Event, KeyPressed, MarkReturned, PhoneStarted, PhoneStopped
from app.wire.audio import silence
from app.wire.errors import WireError
from app.wire.twilio import MAX_MESSAGE_BYTES, Sender, parse
from tests.wire.vectors import damaged, lines, without

SID = "MZ00000000000000000000000000000003"
CALL = "CA00000000000000000000000000000002"
FRAME = "/" * 213 + "w=="
"""160 bytes of silence: Twilio's cadence."""
FROM_TWILIO = lines("twilio_to_us.jsonl")

STARTED = PhoneStarted(SID, CALL)
MEANINGS: list[Event | None] = [
    None,
    None,
    STARTED,
    STARTED,
    CallerAudio(FRAME, 160, 155),
    CallerAudio(FRAME, 160, 175),
    CallerAudio("/////w==", 4, 195),
    CallerAudio("/////w==", 4, 18_553),
    KeyPressed("5"),
    KeyPressed("#"),
    MarkReturned("g3-r7-12"),
    PhoneStopped(),
]


def message(**values: Any) -> bytes:
    """A message of Twilio's."""
    return json.dumps(values).encode()


def media(**values: Any) -> bytes:
    """A media message with some values changed; None takes one out."""
    body = {"track": "inbound", "chunk": "3", "timestamp": "195", "payload": "/////w==", **values}
    return message(
        event="media", streamSid=SID, media={key: value for key, value in body.items() if value is not None}
    )


def start(**values: Any) -> bytes:
    """A start message with some of its values changed."""
    body = json.loads(FROM_TWILIO[2])
    body["start"] |= values
    return json.dumps(body).encode()


# --- What Twilio sends -----------------------------------------------------------------------


@pytest.mark.parametrize(("text", "meaning"), list(zip(FROM_TWILIO, MEANINGS, strict=True)))
def test_message_of_twilios_means_what_the_reference_says(text: bytes, meaning: Event | None) -> None:
    assert parse(text) == meaning


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview, bytes.decode])
def test_message_is_read_from_whatever_the_socket_holds_it_in(form: Any) -> None:
    assert parse(form(FROM_TWILIO[4])) == CallerAudio(FRAME, 160, 155)


@pytest.mark.parametrize("text", FROM_TWILIO)
def test_unknown_fields_are_nobodys_business(text: bytes) -> None:
    more = json.loads(text) | {"new": {"deep": [1, 2]}, "another": None}
    assert parse(json.dumps(more).encode()) == parse(text)


@pytest.mark.parametrize("event", ["connected", "ping", "warning", "", "MEDIA"])
def test_unknown_event_is_nothing(event: str) -> None:
    assert parse(message(event=event)) is None


def test_audio_of_another_track_is_not_the_callers() -> None:
    assert parse(media(track="outbound")) is None


def test_media_without_a_track_is_the_callers() -> None:
    assert parse(media(track=None)) == CallerAudio("/////w==", 4, 195)


@pytest.mark.parametrize("timestamp", [195, 195.0, 195.9, "195.5", "1.955e2", " 195", "000000000000000195"])
def test_timestamp_may_be_spelt_as_any_number(timestamp: Any) -> None:
    assert parse(media(timestamp=timestamp)) == CallerAudio("/////w==", 4, 195)


@pytest.mark.parametrize("timestamp", [-20, -20.5, "-20", "-20.9"])
def test_timestamp_may_lie_before_the_streams_beginning(timestamp: Any) -> None:
    assert parse(media(timestamp=timestamp)) == CallerAudio("/////w==", 4, -20)


@pytest.mark.parametrize(
    "media_format",
    [
        {"encoding": "audio/x-mulaw", "sampleRate": "8000", "channels": 1},
        {"encoding": "audio/x-mulaw", "sampleRate": 8000.0, "channels": "1"},
        {"encoding": "audio/x-mulaw", "sampleRate": 8000},
        {"encoding": "audio/x-mulaw"},
        {},
        None,
    ],
)
def test_media_format_that_contradicts_nothing_is_the_one_that_twilio_has(media_format: Any) -> None:
    assert parse(start(mediaFormat=media_format)) == STARTED


def test_start_without_parameters_is_a_start() -> None:
    body = without(json.loads(FROM_TWILIO[2]), ("start", "customParameters"))
    assert parse(json.dumps(body).encode()) == STARTED


@pytest.mark.parametrize("digit", list("0123456789*#ABCD"))
def test_key_of_a_telephone_is_a_key(digit: str) -> None:
    assert parse(message(event="dtmf", dtmf={"track": "inbound_track", "digit": digit})) == KeyPressed(digit)


@pytest.mark.parametrize("digit", ["", "12", "x", " ", "\u0661", None, 5])
def test_anything_else_is_no_key(digit: Any) -> None:
    assert parse(message(event="dtmf", dtmf={"digit": digit})) is None


# --- What cannot be understood ---------------------------------------------------------------

SENSELESS = [
    b"",
    b" ",
    b"null",
    b"[]",
    b'"media"',
    b"17",
    b"{",
    b'{"event":"media"}{"event":"media"}',
    b"\xff\xfe",
    b'{"event":"\xff"}',
    b'{"event":"\\ud800"}',
    b'{"event":1e999}',
    b'{"event":NaN}',
    b"[" * 5_000,
    message(),
    message(event=None),
    message(event=7),
    message(event=["media"]),
    message(event="media"),
    message(event="media", media=[]),
    media(payload=None),
    media(payload=""),
    media(payload=7),
    media(timestamp=None),
    media(timestamp=""),
    media(timestamp="²"),
    media(timestamp="nan"),
    media(timestamp="inf"),
    media(timestamp="1.5.5"),
    media(timestamp=True),
    media(timestamp=[1]),
    media(timestamp=1e30),
    media(timestamp="9" * 30),
    media(timestamp="9" * 400),
    start(streamSid=""),
    start(callSid=None),
    start(callSid=7),
    start(mediaFormat={"encoding": "audio/x-mulaw", "sampleRate": "16000"}),
    start(mediaFormat={"encoding": "audio/x-mulaw", "sampleRate": None}),
    start(mediaFormat={"encoding": "audio/x-mulaw", "channels": "2"}),
    start(mediaFormat={"encoding": None}),
    start(mediaFormat={"encoding": "audio/x-alaw", "sampleRate": 8000, "channels": 1}),
    start(mediaFormat={"encoding": "audio/x-mulaw", "sampleRate": 16000, "channels": 1}),
    start(mediaFormat={"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 2}),
]


@pytest.mark.parametrize("text", SENSELESS, ids=lambda text: str(text[:48]))
def test_message_that_cannot_be_understood_is_refused(text: bytes) -> None:
    with pytest.raises(WireError):
        parse(text)


NOT_BASE64 = [
    "A",
    "AA",
    "AAA",
    "AAAAA",
    "AA==AA==",
    "=AAA",
    "AAA A",
    "AAAA\n",
    "AA\n==",
    "AAA\u0000",
    "ÄAAA",
    "A-_A",
]
INJECTED = ['AAAA"}}', 'AA"A', "AA\\A", 'AAAA","track":"outbound', "AA\u2028A", "AAAA\r\n"]


@pytest.mark.parametrize("payload", [*NOT_BASE64, *INJECTED])
def test_payload_that_is_not_base64_is_refused_before_it_gets_into_json(payload: str) -> None:
    with pytest.raises(WireError, match="base64"):
        parse(media(payload=payload))


def test_refusal_says_nothing_of_what_was_in_the_message() -> None:
    with pytest.raises(WireError) as refusal:
        parse(media(payload="my secret words"))
    assert "secret" not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("text", FROM_TWILIO)
def test_message_that_is_cut_anywhere_is_refused(text: bytes) -> None:
    for end in range(len(text)):
        with pytest.raises(WireError):
            parse(text[:end])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=damaged(FROM_TWILIO))
def test_any_value_in_any_place_is_understood_or_refused(text: bytes) -> None:
    _understood_or_refused(text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.binary(max_size=64))
def test_any_bytes_are_understood_or_refused(text: bytes) -> None:
    _understood_or_refused(text)


def _understood_or_refused(text: bytes) -> None:
    try:
        parsed = parse(text)
    except WireError:
        return
    if isinstance(parsed, CallerAudio):
        assert parsed.audio_bytes == len(base64.b64decode(parsed.payload, validate=True))
        assert abs(parsed.timestamp_ms) <= 10**15
    if isinstance(parsed, PhoneStarted):
        # Whatever Twilio calls its stream, we can answer it.
        assert json.loads(Sender(parsed.stream_sid).clear())["streamSid"] == parsed.stream_sid


def test_longest_message_of_twilios_is_far_below_the_bound() -> None:
    parameters = {f"p{n}": "x" * 490 for n in range(40)}
    assert max(len(start(customParameters=parameters)), *map(len, FROM_TWILIO)) < MAX_MESSAGE_BYTES / 2


# --- What we send ----------------------------------------------------------------------------


OURS = [Sender(SID).media("/////w=="), Sender(SID).mark("g3-r7-12"), Sender(SID).clear()]


@pytest.mark.parametrize(("ours", "text"), list(zip(OURS, lines("twilio_from_us.jsonl"), strict=True)))
def test_message_of_ours_has_exactly_the_keys_that_twilio_takes(ours: bytes, text: bytes) -> None:
    assert json.loads(ours) == json.loads(text)
    assert ours == text


@settings(derandomize=True)
@given(audio=st.binary(min_size=1, max_size=400))
def test_audio_of_any_bytes_comes_out_as_it_went_in(audio: bytes) -> None:
    payload = base64.b64encode(audio).decode()
    sent = json.loads(Sender(SID).media(payload))
    assert base64.b64decode(sent["media"]["payload"]) == audio
    assert parse(media(payload=payload)) == CallerAudio(payload, len(audio), 195)


@pytest.mark.parametrize("stream_sid", [SID, 'MZ"quote', "MZ\\", "MZ\n", "MZü", "MZ\u2028"])
def test_stream_sid_of_any_characters_is_still_one_json_string(stream_sid: str) -> None:
    sender = Sender(stream_sid)
    sent = [json.loads(sender.media("AAAA")), json.loads(sender.mark("0-1-1")), json.loads(sender.clear())]
    assert [each["streamSid"] for each in sent] == [stream_sid] * 3


# --- Silence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ms", [1, 20, 60, 200, 10_000])
def test_silence_is_mulaw_zero_of_the_length_asked_for(ms: int) -> None:
    assert base64.b64decode(silence(ms), validate=True) == b"\xff" * (8 * ms)


def test_twenty_milliseconds_of_silence_are_what_twilio_itself_sends() -> None:
    assert silence(20) == FRAME


def test_no_silence_is_nothing() -> None:
    assert silence(0) == ""
