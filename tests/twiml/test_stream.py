import logging

import pytest
from starlette.testclient import TestClient

from tests.twiml.world import ACCOUNT, CALL, post
from twiml.stream import error_code

STREAM = "MZ" + "0" * 31 + "4"
STARTED = {
    "AccountSid": ACCOUNT,
    "CallSid": CALL,
    "StreamSid": STREAM,
    "StreamName": "main",
    "StreamEvent": "stream-started",
    "Timestamp": "2026-10-01T12:00:00.000Z",
}
"""twilio.md 1.8."""


def logged(client: TestClient, caplog: pytest.LogCaptureFixture, **fields: str) -> logging.LogRecord:
    caplog.set_level("INFO", "nearcall.twiml")
    answer = post(client, "/twiml/stream", STARTED | fields)
    assert (answer.status_code, answer.content) == (204, b"")
    (record,) = [record for record in caplog.records if record.name == "nearcall.twiml"]
    return record


@pytest.mark.parametrize("event", ["stream-started", "stream-stopped"])
def test_a_stream_event_is_one_log_line(client: TestClient, caplog: pytest.LogCaptureFixture, event: str) -> None:
    record = logged(client, caplog, StreamEvent=event)
    line = record.__dict__
    assert (line["call_sid"], line["stream_sid"], line["stream_event"]) == (CALL, STREAM, event)
    assert (line["error_code"], line["error"], record.levelname) == (None, None, "INFO")


@pytest.mark.parametrize(
    ("text", "code", "meaning", "level"),
    [
        ("31920 Stream - Websocket - Handshake Error", 31920, "upgrade not answered with 101", "WARNING"),
        ("31921 Stream - WebSocket - Close Error", 31921, "closed by this server", "INFO"),
        ("31999 something new", 31999, "not in our list", "WARNING"),
        ("no code at all", None, None, "WARNING"),
    ],
)
def test_a_stream_error_is_logged_with_its_code_and_meaning(
    client: TestClient,
    caplog: pytest.LogCaptureFixture,
    *,
    text: str,
    code: int | None,
    meaning: str | None,
    level: str,
) -> None:
    record = logged(client, caplog, StreamEvent="stream-error", StreamError=text)
    line = record.__dict__
    assert (line["error_code"], line["error"], record.levelname) == (code, meaning, level)


def test_the_url_in_an_error_does_not_reach_the_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    text = "31903 wss://voice.example.com/media/SECRET-TICKET broke"
    record = logged(client, caplog, StreamEvent="stream-error", StreamError=text, StreamName="SECRET-TICKET")
    assert "SECRET" not in str(record.__dict__)


@pytest.mark.parametrize("field", ["StreamSid", "StreamEvent"])
def test_a_word_that_twilio_does_not_use_does_not_reach_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    record = logged(client, caplog, **{field: "+4930123456\nforged line"})
    assert "+4930" not in str(record.__dict__)


@pytest.mark.parametrize(
    ("text", "code"), [("", None), ("31921", 31921), ("(31903)", 31903), ("131921", None), ("+319211", None)]
)
def test_a_code_is_found_only_as_a_word(text: str, code: int | None) -> None:
    assert error_code(text) == code
