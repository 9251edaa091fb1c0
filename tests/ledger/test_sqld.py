"""The tests' own primary lets in whom it should, and keeps what it was given."""

import http.client
import json

import pytest

from tests.ledger.sqld import Sqld, expired_token, foreign_token, token


def status(sqld: Sqld, bearer: str, sql: str = "CREATE TABLE t (a)") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", sqld.port, timeout=10)
    body = json.dumps({"requests": [{"type": "execute", "stmt": {"sql": sql}}, {"type": "close"}]})
    connection.request("POST", "/v2/pipeline", body, {"Authorization": f"Bearer {bearer}"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


@pytest.mark.parametrize(
    ("bearer", "expected"),
    [(token(), 200), (token("ro"), 403), (expired_token(), 401), (foreign_token(), 401), ("", 401)],
    ids=["rw", "ro", "expired", "foreign", "none"],
)
def test_token_decides_what_is_allowed(sqld: Sqld, bearer: str, expected: int) -> None:
    assert status(sqld, bearer) == expected


def test_restart_keeps_the_disk_and_losing_it_does_not(sqld: Sqld) -> None:
    sqld.execute("CREATE TABLE t (a)")
    sqld.stop()
    sqld.start()
    assert sqld.query("SELECT count(*) FROM t") == [(0,)]
    sqld.lose_disk()
    sqld.start()
    assert sqld.query("SELECT count(*) FROM sqlite_schema WHERE name = 't'") == [(0,)]
