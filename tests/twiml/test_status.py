import pytest
from starlette.testclient import TestClient

from tests.twiml.world import CALL, CALL_FIELDS, CALLED, CALLER, World, post

ENDED = CALL_FIELDS | {
    "CallStatus": "completed",
    "CallDuration": "63",
    "SequenceNumber": "3",
    "SipResponseCode": "200",
    "Timestamp": "Thu, 01 Oct 2026 12:00:00 +0000",
    "CallbackSource": "call-progress-events",
}
FIELDS = ("call_sid", "call_status", "sequence", "duration_s", "sip_code", "error_code")


def logged(client: TestClient, caplog: pytest.LogCaptureFixture, fields: dict[str, str]) -> dict[str, object]:
    caplog.clear()
    caplog.set_level("INFO", "nearcall.twiml")
    answer = post(client, "/twiml/status", fields)
    assert (answer.status_code, answer.content) == (204, b"")
    (record,) = [record for record in caplog.records if record.name == "nearcall.twiml"]
    return record.__dict__


def test_a_call_status_is_one_log_line(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    line = logged(client, caplog, ENDED)
    assert [line[name] for name in FIELDS] == [CALL, "completed", 3, 63, 200, None]


def test_a_call_status_is_logged_without_numbers(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    line = str(logged(client, caplog, ENDED))
    assert CALLER[1:] not in line
    assert CALLED[1:] not in line


def test_callbacks_twice_and_out_of_order_are_lines_with_their_numbers(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = [
        logged(client, caplog, ENDED | {"SequenceNumber": number})["sequence"] for number in ("2", "0", "0")
    ]
    assert numbers == [2, 0, 0]


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "٣", "²", "9" * 7, CALLER])
def test_a_number_that_is_none_is_left_out(
    client: TestClient, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    assert logged(client, caplog, ENDED | {"SequenceNumber": text})["sequence"] is None


@pytest.mark.parametrize("text", ["", "Completed", CALLER, "completed\nforged line"])
def test_a_status_that_is_none_does_not_reach_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    assert logged(client, caplog, ENDED | {"CallStatus": text})["call_status"] == "unknown"


def test_a_status_changes_no_call(world: World, client: TestClient) -> None:
    post(client, "/twiml/status", ENDED)
    assert world.registry.expected == []
