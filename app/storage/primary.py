"""A zone's database across the network: one batch is one HTTP pipeline, one transaction, one round trip.

Says what became of a batch in four words, because there are four things to do about it: nothing (`Stored`), the
same again (`Retry`), call a human (`Alarm`), or take one statement out (`Poison`). Only the result of the COMMIT
step counts as stored; whatever else happens to a request, the answer is `Retry`, and rows that may be written
twice make that harmless. The wire is libsql.md 8. Does not know what the statements are about, and when to try
again.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import orjson

from app.storage.database import out_of_descriptors
from app.storage.errors import StorageError
from app.storage.statement import Row, Statement, Value
from app.storage.thread import OwnThread

TIMEOUT_S = 10.0
"""For a whole request. A write may wait 5 s for another one's transaction (libsql.md 6)."""
KEEPALIVE_S = 60.0
"""An idle connection stays open: a new one costs three round trips more. Heartbeats come more often than that."""
WHY_MAX = 300
"""Characters of a server's own words that are kept."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The transaction is on the primary."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not stored, or the outcome is unknown: send the same again, later."""

    why: str
    after_s: float | None = None
    """How long the primary asked us to wait."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Refused until somebody changes something: the token, the address, the schema, the plan."""

    why: str
    schema: bool = False
    """It is the schema that does not fit."""


@dataclass(frozen=True, slots=True)
class Poison:
    """Nothing was stored, and will not be while this statement is among them: the fault is its own."""

    index: int | None
    """Which of the statements; None: one of them, or all together are too much."""
    why: str


Outcome = Stored | Retry | Alarm | Poison
Failure = Retry | Alarm | Poison


class PrimaryError(StorageError):
    """A question that the primary did not answer. `failure` says what can be done about it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.why)
        self.failure = failure


class Primary:
    """One database. Use it from one event loop; several requests may be under way at a time.

    `token` is asked before each request, in a thread because it may read a file, so that a token may be replaced
    while the program runs. It raises ValueError when there is none, which is an Alarm.
    """

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        *,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`transport` carries the requests; without one they go over the network."""
        self._url = f"{url.rstrip('/')}/v2/pipeline"
        self._host = url.partition("://")[2] or url
        self._token = token
        self._timeout_s = timeout_s
        # trust_env: no proxy and no certificates from the environment.
        self._http = httpx.AsyncClient(
            trust_env=False,
            timeout=httpx.Timeout(None),  # ours is for the whole request
            limits=httpx.Limits(keepalive_expiry=KEEPALIVE_S),
            transport=transport,
        )
        self._thread = OwnThread("ledger-primary")
        self._round_trip_ms: float | None = None

    async def aclose(self) -> None:
        """Close the connections. Requests under way fail."""
        self._thread.close()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def round_trip_ms(self) -> float | None:
        """How long the last request took that was answered; None before the first."""
        return self._round_trip_ms

    async def batch(self, steps: Sequence[Statement]) -> Outcome:
        """Run all statements in one transaction, or none. Never raises but for cancellation and bugs."""
        match await self._send(lambda: _transaction(steps)):
            case bytes(body):
                return batch_outcome(body, len(steps))
            case failure:
                return failure

    async def query(self, statement: Statement) -> list[Row]:
        """Run one statement outside a transaction and return all its rows. Raises PrimaryError."""
        match await self._send(lambda: _question(statement)):
            case bytes(body):
                return rows_of(body)
            case failure:
                raise PrimaryError(failure)

    async def _send(self, pipeline: Callable[[], dict[str, Any] | Poison]) -> bytes | Failure:
        """The body of a 200 answer, or why there is none."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                # In a thread: to spell a large batch takes 10 ms, and a token may be in a file.
                content, token = await self._thread.run(lambda: (_spelt(pipeline), self._token()))
                if isinstance(content, Poison):
                    return content
                headers = {"content-type": "application/json"}
                if token:  # a database on this machine may do without
                    headers["authorization"] = f"Bearer {token}"
                answer = await self._http.post(self._url, content=content, headers=headers)
        except TimeoutError:
            return Retry(f"no answer from {self._host} within {self._timeout_s:g} s")
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
            return Alarm(f"cannot ask {self._host}: {error}")
        except httpx.HTTPError as error:
            why = out_of_descriptors() or f"{type(error).__name__}: {error}"
            return Retry(_said(f"cannot reach {self._host}: {why}"))
        except ValueError as error:
            return Alarm(f"there is no usable token: {error}")
        if answer.status_code != httpx.codes.OK:
            # As UTF-8 whatever its header says: Python has encodings that make something else of bytes than text.
            text = answer.content.decode(errors="replace")
            # A token that was replaced since the start is not known to who keeps secrets out of the log.
            return _http_failure(answer, text.replace(token, _NO_TOKEN) if token else text)
        self._round_trip_ms = 1_000 * (time.monotonic() - began)
        return answer.content


# --- How a batch is asked -------------------------------------------------------------------------

_CLOSE = {"type": "close"}
_NULL = {"type": "null"}


def _spelt(pipeline: Callable[[], dict[str, Any] | Poison]) -> bytes | Poison:
    content = pipeline()
    return content if isinstance(content, Poison) else orjson.dumps(content)


def _question(statement: Statement) -> dict[str, Any] | Poison:
    if (why := _unspeakable(statement)) is not None:
        return Poison(0, why)
    stmt = {"sql": statement.sql, "args": _args(statement.values), "want_rows": True}
    return {"requests": [{"type": "execute", "stmt": stmt}, _CLOSE]}


def _transaction(steps: Sequence[Statement]) -> dict[str, Any] | Poison:
    """BEGIN, each statement if the one before it worked, COMMIT if the last one did, ROLLBACK if that did not."""
    ids: dict[str, int] = {}
    for index, step in enumerate(steps):
        if (why := _unspeakable(step)) is not None:
            return Poison(index, why)
        ids.setdefault(step.sql, len(ids))
    stmts: list[dict[str, Any]] = [{"sql": "BEGIN IMMEDIATE"}]
    stmts += [{"sql_id": ids[step.sql], "args": _args(step.values), "want_rows": False} for step in steps]
    stmts.append({"sql": "COMMIT"})
    batch: list[dict[str, Any]] = [{"stmt": stmts[0]}]
    batch += [{"condition": {"type": "ok", "step": before}, "stmt": stmt} for before, stmt in enumerate(stmts[1:])]
    batch.append(
        {
            "condition": {"type": "not", "cond": {"type": "ok", "step": len(steps) + 1}},
            "stmt": {"sql": "ROLLBACK"},
        }
    )
    # Each text once, under a number: of a batch of turns it would be the greater part.
    texts = [{"type": "store_sql", "sql_id": number, "sql": sql} for sql, number in ids.items()]
    return {"requests": [*texts, {"type": "batch", "batch": {"steps": batch}}, _CLOSE]}


def _args(values: Row) -> list[dict[str, str]]:
    return [_arg(value) for value in values]


def _arg(value: Value) -> dict[str, str]:
    if value is None:
        return _NULL
    if isinstance(value, str):
        return {"type": "text", "value": value}
    # A string: 64 bits do not fit a JSON number (libsql.md 8).
    return {"type": "integer", "value": str(int(value))}


def _unspeakable(statement: Statement) -> str | None:
    """Why a statement cannot even be written down; the server would refuse the whole request."""
    for value in statement.values:
        if isinstance(value, str):
            if not (value.isascii() or _is_unicode(value)):
                return "a text has half a surrogate pair"
        elif value is None:
            continue
        elif type(value) not in (int, bool):
            # A record is packed as it is, whatever its fields say they hold; a table would refuse it.
            return f"a value is of the type {type(value).__name__}"
        elif not -(2**63) <= value < 2**63:
            return "an integer is too large for 64 bits"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- What an answer means -------------------------------------------------------------------------

_NO_SUCH = re.compile(r"no such (?:table|column|index)|has no column named|has \d+ columns but", re.IGNORECASE)
_FOR_NOW = ("BUSY", "LOCKED", "FULL", "IOERR", "NOMEM", "TIMEOUT", "INTERRUPT", "EXPIRED", "CANTOPEN", "PROTOCOL")
_ITS_OWN_FAULT = (
    "SQLITE_CONSTRAINT",
    "SQLITE_MISMATCH",
    "SQLITE_TOOBIG",
    "SQLITE_RANGE",
    "SQL_PARSE",
    "SQL_INPUT",
    "ARGS_",
)
"""Begins every code that no well primary gives to a good statement. A record is set aside for good: when in doubt
the fault is the primary's, and the record waits."""


_NO_TOKEN = "[token]"  # noqa: S105  what stands in its place


def _http_failure(answer: httpx.Response, text: str) -> Failure:
    said = _said(f"HTTP {answer.status_code}: {text}")
    match answer.status_code:
        case httpx.codes.UNAUTHORIZED | httpx.codes.FORBIDDEN:
            return Alarm(f"the primary refuses the token: {said}")
        case httpx.codes.BAD_REQUEST | httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            return Poison(None, said)
        case httpx.codes.REQUEST_TIMEOUT | httpx.codes.TOO_EARLY | httpx.codes.TOO_MANY_REQUESTS:
            return Retry(said, _retry_after_s(answer))
        case status if status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return Retry(said, _retry_after_s(answer))
        case _:
            return Alarm(f"there is no such database: {said}")


def _retry_after_s(answer: httpx.Response) -> float | None:
    """Its header in seconds; as a date, which nobody sends here, it counts as absent."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None


def batch_outcome(body: bytes, count: int) -> Outcome:
    """Read the answer to `_transaction` of `count` statements. What is not such an answer is a Retry."""
    try:
        results = orjson.loads(body)["results"]
        for result in results:
            if result["type"] != "ok":
                return _sql_failure(None, result["error"])
        [batch] = [result["response"] for result in results if result["response"]["type"] == "batch"]
        answers, errors = batch["result"]["step_results"], batch["result"]["step_errors"]
        # BEGIN is step 0, COMMIT the one after the statements.
        if not isinstance(answers, list) or len(answers) <= count + 1:
            return _foreign(body)
        match answers[count + 1]:
            case dict():
                return Stored()
            case None:
                index, error = next((index, error) for index, error in enumerate(errors) if error is not None)
                return _sql_failure(index - 1 if 1 <= index <= count else None, error)
            case _:
                return _foreign(body)
    except (ValueError, LookupError, TypeError, StopIteration):
        return _foreign(body)


def _foreign(body: bytes) -> Retry:
    """For an answer that no libSQL server gives: a proxy's, or half of one."""
    return Retry(_said(f"the answer is not one of a libSQL server: {body.decode(errors='replace')}"))


def rows_of(body: bytes) -> list[Row]:
    """Read the answer to one statement. Raises PrimaryError."""
    try:
        result = orjson.loads(body)["results"][0]
        if result["type"] == "ok":
            return [tuple(map(_value, row)) for row in result["response"]["result"]["rows"]]
        failure = _sql_failure(0, result["error"])
    except (ValueError, LookupError, TypeError) as error:
        raise PrimaryError(_foreign(body)) from error
    raise PrimaryError(failure)


def _value(value: object) -> Value:
    """Raises ValueError for anything but the types that our schema has."""
    match value:
        case {"type": "null"}:
            return None
        case {"type": "integer", "value": str(text)}:
            return int(text)
        case {"type": "text", "value": str(text)}:
            return text
    raise ValueError("a value of a type that the schema does not have")


def _sql_failure(index: int | None, error: object) -> Failure:
    """What an error of SQL means; `index` is the statement that met it, None when it is none of ours.

    A libSQL server sends {"message": ..., "code": ...}. From anything else only the words are taken.
    """
    match error:
        case {"message": message, **others}:
            code, message = str(others.get("code") or ""), str(message)
        case str(message):
            code = ""
        case _:
            code, message = "", f"an error in no known form: {error}"
    why = _said(f"{code}: {message}" if code else message)
    if _NO_SUCH.search(message):
        return Alarm(f"the schema does not fit: {why}", schema=True)
    if "BLOCKED" in code or "blocked" in message:
        return Alarm(f"the primary refuses to work: {why}")
    if any(word in code for word in _FOR_NOW) or "database is locked" in message:
        return Retry(why)
    if index is None:
        return Poison(None, why) if code.startswith(("SQL_PARSE", "SQL_INPUT")) else Retry(why)
    return Poison(index, why) if code.startswith(_ITS_OWN_FAULT) else Alarm(f"the primary fails: {why}")


def _said(text: str) -> str:
    """Somebody else's words, on one line and not too many."""
    return " ".join(text.split())[:WHY_MAX]
