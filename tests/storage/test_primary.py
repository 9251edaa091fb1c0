"""The primary: what a batch becomes under every answer that a server, a network or a token can give."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.storage.primary import Alarm, Poison, Primary, PrimaryError, Retry, Stored, batch_outcome, rows_of
from app.storage.statement import Statement
from app.world.process import free_port
from tests.ledger.faulty_disk import no_descriptor_left
from tests.ledger.sqld import Sqld, expired_token, foreign_token, token

pytestmark = pytest.mark.anyio


def put(key: int | str | None, text: str | None = "x") -> Statement:
    return Statement("INSERT INTO t (k, v) VALUES (?, ?) ON CONFLICT DO NOTHING", (key, text))


@pytest.fixture
async def primary(sqld: Sqld) -> AsyncIterator[Primary]:
    sqld.execute("CREATE TABLE t (k INTEGER NOT NULL PRIMARY KEY, v TEXT) STRICT")
    async with Primary(sqld.url, token) as primary:
        yield primary


async def test_batch_is_stored_once_however_often_it_is_sent(primary: Primary, sqld: Sqld) -> None:
    assert await primary.batch([put(1), put(2)]) == Stored()
    assert await primary.batch([put(2), put(3)]) == Stored()
    assert sqld.query("SELECT k FROM t") == [(1,), (2,), (3,)]


async def test_values_come_back_as_they_went(primary: Primary) -> None:
    text = 'Grüße "quoted" \\ \n \U0001f600'
    assert await primary.batch([put(2**63 - 1, text), put(-(2**63), None)]) == Stored()
    rows = await primary.query(Statement("SELECT k, v FROM t WHERE k <> ? ORDER BY k", (0,)))
    assert rows == [(-(2**63), None), (2**63 - 1, text)]


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_statement_that_the_schema_refuses_is_named_and_nothing_is_stored(
    primary: Primary, sqld: Sqld, at: int
) -> None:
    steps = [put(1), put(2)]
    steps.insert(at, put("not a number"))
    outcome = await primary.batch(steps)
    assert isinstance(outcome, Poison)
    assert outcome.index == at
    assert sqld.query("SELECT k FROM t") == []
    assert await primary.batch([put(3)]) == Stored()


@pytest.mark.parametrize(
    ("key", "text"),
    [(2**63, "x"), (1, "half \ud83d"), (12.7, "x"), (1, ["x"])],
    ids=["65 bits", "surrogate", "float", "list"],
)
async def test_value_that_cannot_be_spelt_is_named_before_anything_is_sent(
    primary: Primary, key: Any, text: Any
) -> None:
    outcome = await primary.batch([put(5), put(key, text)])
    assert isinstance(outcome, Poison)
    assert outcome.index == 1


async def test_statement_that_is_no_sql_is_poison(primary: Primary, sqld: Sqld) -> None:
    outcome = await primary.batch([put(1), Statement("INSRT INTO t", ())])
    assert isinstance(outcome, Poison)
    assert sqld.query("SELECT k FROM t") == []


def failing(code: str, at: int) -> AbstractAsyncContextManager[Primary]:
    """A primary whose step `at` of a batch (0 is BEGIN) fails with that code."""
    errors = [None] * at + [{"code": code, "message": "so it says"}, None, None]
    batch = {"type": "batch", "result": {"step_results": [None] * len(errors), "step_errors": errors}}
    return answering("200 OK", json.dumps({"results": [{"type": "ok", "response": batch}]}).encode())


@asynccontextmanager
async def answering(status: str, body: bytes, bearer: Callable[[], str] = token) -> AsyncIterator[Primary]:
    """A primary that says this to everything."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, Primary(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", bearer) as primary:
        yield primary


@pytest.mark.parametrize(
    "code", ["SQLITE_CORRUPT", "SQLITE_READONLY", "SQLITE_AUTH", "SQLITE_UNKNOWN", "STREAM_CLOSED", ""]
)
async def test_failure_that_no_record_can_cause_is_an_alarm_and_condemns_none(code: str) -> None:
    async with failing(code, at=1) as primary:
        assert isinstance(await primary.batch([put(1)]), Alarm)


@pytest.mark.parametrize(
    "code",
    [
        "SQLITE_CONSTRAINT",
        "SQLITE_CONSTRAINT_DATATYPE",
        "SQLITE_MISMATCH",
        "SQLITE_TOOBIG",
        "SQLITE_RANGE",
        "SQL_PARSE_ERROR",
        "SQL_INPUT_ERROR",
        "ARGS_INVALID",
    ],
)
async def test_failure_that_is_a_records_own_is_poison(code: str) -> None:
    async with failing(code, at=1) as primary:
        assert isinstance(await primary.batch([put(1)]), Poison)


@pytest.mark.parametrize(("code", "at"), [("SQLITE_BUSY", 1), ("SQLITE_CORRUPT", 0)], ids=["busy", "begin"])
async def test_failure_that_may_pass_is_retried(code: str, at: int) -> None:
    async with failing(code, at=at) as primary:
        assert isinstance(await primary.batch([put(1)]), Retry)


async def test_missing_table_is_an_alarm_about_the_schema(primary: Primary, sqld: Sqld) -> None:
    sqld.execute("DROP TABLE t")
    outcome = await primary.batch([put(1)])
    assert isinstance(outcome, Alarm)
    assert outcome.schema


@pytest.mark.parametrize("bad", [token("ro"), expired_token(), foreign_token()], ids=["ro", "expired", "foreign"])
async def test_token_that_may_not_write_is_an_alarm(sqld: Sqld, bad: str) -> None:
    async with Primary(sqld.url, lambda: bad) as primary:
        outcome = await primary.batch([put(1)])
    assert isinstance(outcome, Alarm)
    assert "refuses the token" in outcome.why
    assert bad not in outcome.why


async def test_database_of_this_machine_may_do_without_a_token() -> None:
    body = json.dumps({"results": [{"type": "ok", "response": {"result": {"rows": []}}}]}).encode()
    async with answering("200 OK", body, str) as primary:
        assert await primary.query(Statement("SELECT 1", ())) == []


async def test_token_is_left_out_of_the_primarys_own_words() -> None:
    async with answering("403 Forbidden", f"the token {token()} has been revoked".encode()) as primary:
        outcome = await primary.batch([put(1)])
    assert isinstance(outcome, Alarm)
    assert outcome.why == "the primary refuses the token: HTTP 403: the token [token] has been revoked"


async def test_token_is_asked_for_each_request(sqld: Sqld) -> None:
    sqld.execute("CREATE TABLE t (k INTEGER NOT NULL PRIMARY KEY, v TEXT) STRICT")
    tokens: Iterator[str] = iter([expired_token(), token()])
    async with Primary(sqld.url, lambda: next(tokens)) as primary:
        assert isinstance(await primary.batch([put(1)]), Alarm)
        assert await primary.batch([put(1)]) == Stored()


async def test_token_that_is_gone_is_an_alarm(sqld: Sqld) -> None:
    def gone() -> str:
        raise ValueError("/run/token: No such file or directory")

    async with Primary(sqld.url, gone) as primary:
        assert await primary.batch([put(1)]) == Alarm(
            "there is no usable token: /run/token: No such file or directory"
        )


async def test_token_file_on_a_disk_that_hangs_does_not_hold_up_name_look_ups() -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
    over = threading.Event()

    def hanging() -> str:
        assert over.wait(60)
        return token()

    port = free_port()
    async with Primary(f"http://127.0.0.1:{port}", hanging, timeout_s=0.05) as primary:
        try:
            assert await primary.batch([put(1)]) == Retry(f"no answer from 127.0.0.1:{port} within 0.05 s")
            async with asyncio.timeout(10):
                assert await loop.getaddrinfo("localhost", 80)
        finally:
            over.set()


async def test_refused_connection_is_retried() -> None:
    async with Primary(f"http://127.0.0.1:{free_port()}", token) as primary:
        assert isinstance(await primary.batch([put(1)]), Retry)
        with pytest.raises(PrimaryError) as raised:
            await primary.query(Statement("SELECT 1", ()))
    assert isinstance(raised.value.failure, Retry)


async def test_hanging_primary_is_given_up_on_and_asked_again(sqld: Sqld) -> None:
    sqld.execute("CREATE TABLE t (k INTEGER NOT NULL PRIMARY KEY, v TEXT) STRICT")
    async with Primary(sqld.url, token, timeout_s=0.2) as hasty, Primary(sqld.url, token) as primary:
        sqld.hang()
        assert await hasty.batch([put(1)]) == Retry(f"no answer from 127.0.0.1:{sqld.port} within 0.2 s")
        sqld.wake()
        assert await primary.batch([put(1)]) == Stored()
    assert sqld.query("SELECT k FROM t") == [(1,)]


async def test_address_that_is_no_url_is_an_alarm() -> None:
    async with Primary("ftp://127.0.0.1", token) as primary:
        assert isinstance(await primary.batch([put(1)]), Alarm)


async def test_answered_request_tells_how_long_it_took(primary: Primary) -> None:
    assert primary.round_trip_ms is None
    assert await primary.batch([put(1)]) == Stored()
    assert primary.round_trip_ms is not None


async def test_lack_of_descriptors_is_named(sqld: Sqld) -> None:
    async with Primary(sqld.url, token) as primary:
        with no_descriptor_left():
            outcome = await primary.batch([Statement("SELECT 1", ())])
    assert isinstance(outcome, Retry)
    assert "Too many open files (EMFILE)" in outcome.why


# --- Answers of any shape ------------------------------------------------------------------------

_KEYS = st.sampled_from(
    [
        "results",
        "type",
        "error",
        "response",
        "result",
        "rows",
        "message",
        "code",
        "value",
        "step_results",
        "step_errors",
    ]
)
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)
_RESULT = st.fixed_dictionaries(
    {"type": st.sampled_from(["ok", "error"]) | _ANY},
    optional={
        "error": _ANY,
        "response": _ANY
        | st.fixed_dictionaries(
            {
                "type": st.just("batch") | _ANY,
                "result": st.fixed_dictionaries(
                    {
                        "step_results": st.lists(_ANY, max_size=6) | _ANY,
                        "step_errors": st.lists(_ANY, max_size=6) | _ANY,
                    }
                )
                | st.fixed_dictionaries({"rows": st.lists(st.lists(_ANY, max_size=2), max_size=2) | _ANY}),
            }
        ),
    },
)
_BODY = (
    st.binary(max_size=40)
    | _ANY.map(orjson.dumps)
    | st.fixed_dictionaries({"results": st.lists(_RESULT, min_size=1, max_size=2)}).map(orjson.dumps)
)


@given(body=_BODY, count=st.integers(1, 3))
def test_answer_of_any_shape_is_an_outcome_and_only_a_commit_is_stored(body: bytes, count: int) -> None:
    outcome = batch_outcome(body, count)
    assert isinstance(outcome, Stored | Retry | Alarm | Poison)
    if isinstance(outcome, Stored):
        responses = [result["response"] for result in orjson.loads(body)["results"]]
        [steps] = [each["result"]["step_results"] for each in responses if each["type"] == "batch"]
        assert isinstance(steps[count + 1], dict)


@given(body=_BODY)
def test_rows_of_any_shape_are_rows_or_a_failure(body: bytes) -> None:
    try:
        rows = rows_of(body)
    except PrimaryError:
        return
    assert all(isinstance(value, int | str | None) for row in rows for value in row)


def test_error_that_is_a_text_keeps_its_words() -> None:
    body = b'{"results": [{"type": "error", "error": "out of order"}]}'
    assert batch_outcome(body, 1) == Retry("out of order")
