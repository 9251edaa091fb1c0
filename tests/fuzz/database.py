"""The primary's answers: what a server, a proxy or a broken database may say to a batch or a question."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import httpx
import orjson

from app.storage.primary import Alarm, Poison, Primary, PrimaryError, Retry, Stored
from app.storage.statement import Statement
from tests.fuzz.engine import FaultError, timed
from tests.fuzz.mutate import Mutator

STATEMENTS: Final = 3

CODES: Final = (
    *("SQLITE_BUSY", "SQLITE_CONSTRAINT", "SQLITE_CORRUPT", "SQL_PARSE_ERROR", "BLOCKED", "STREAM_EXPIRED"),
    *("SQLITE_READONLY", "ARGS_INVALID", "", "\u0663"),
)
STATUSES: Final = (
    200,
    200,
    200,
    200,
    200,
    201,
    204,
    301,
    400,
    401,
    404,
    408,
    413,
    425,
    429,
    500,
    502,
    503,
    504,
    999,
)
ERRORS: Final = ("ReadError", "RemoteProtocolError", "ConnectTimeout", "WriteError", "PoolTimeout")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, to a batch or to a question."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()
    batch: bool = True
    error: str = ""
    """Of httpx, instead of an answer."""


class Database:
    """The target."""

    name = "database"
    share = 10

    def __init__(self) -> None:
        self._answer = Answer(b"")
        self._primary: Primary | None = None

    def draw(self, rng: Random) -> Sequence[Answer]:
        """See Target."""
        return [self._one(Mutator(rng), rng) for _ in range(rng.choice((1, 5, 20)))]

    def _one(self, mutator: Mutator, rng: Random) -> Answer:
        batch = rng.random() < 0.6
        body = orjson.dumps(_batch(rng) if batch else _rows(rng))
        if rng.random() < 0.8:
            body = mutator.message(body)
        headers: list[tuple[bytes, bytes]] = []
        if rng.random() < 0.3:
            after = mutator.text(rng.choice(("1", "30", "9" * 400, "1e9", "-1", "Wed, 21 Oct 2026 07:28:00 GMT")))
            headers.append((b"retry-after", _header(after)))
        if rng.random() < 0.3:
            charset = rng.choice(("utf-8", "utf-16", "hex", "rot13", "idna", "undefined", "no-such", '"', "\x7f"))
            headers.append((b"content-type", _header(f"application/json; charset={charset}")))
        if rng.random() < 0.1:
            headers.append((b"content-encoding", rng.choice((b"gzip", b"deflate", b"br", b"zstd", b"x"))))
        error = rng.choice(ERRORS) if rng.random() < 0.05 else ""
        return Answer(body, rng.choice(STATUSES), tuple(headers), batch, error)

    async def run(self, case: Sequence[Answer]) -> None:
        """See Target."""
        assert self._primary is not None
        for answer in case:
            self._answer = answer
            with timed("an answer of the primary"):
                await (_store(self._primary) if answer.batch else _ask(self._primary))

    def _answered(self, request: httpx.Request) -> httpx.Response:
        answer = self._answer
        if answer.error:
            error: type[httpx.TransportError] = getattr(httpx, answer.error)
            raise error("so it goes", request=request)
        body = httpx.ByteStream(answer.body)
        return httpx.Response(answer.status, headers=list(answer.headers), stream=body, request=request)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """See Target. One client for all cases: to make one takes longer than all else."""
        self._primary = Primary("http://primary", lambda: "a-token", transport=httpx.MockTransport(self._answered))
        try:
            yield
        finally:
            await self._primary.aclose()
            self._primary = None


async def _store(primary: Primary) -> None:
    outcome = await primary.batch([Statement("INSERT INTO t VALUES (?)", (key,)) for key in range(STATEMENTS)])
    match outcome:
        case Stored():
            pass
        case Poison(index=index, why=str(why)):
            if index is not None and not 0 <= index < STATEMENTS:
                raise FaultError(f"statement {index} is none of ours: {why}")
        case Retry(why=str()) | Alarm(why=str()):
            pass
        case _:
            raise FaultError(f"no outcome: {outcome!r}")


async def _ask(primary: Primary) -> None:
    try:
        rows = await primary.query(Statement("SELECT 1", ()))
    except PrimaryError:
        return
    for row in rows:
        for value in row:
            if not (value is None or isinstance(value, int | str)):
                raise FaultError(f"a value of the type {type(value).__name__}")


def _batch(rng: Random) -> dict[str, Any]:
    """The answer to a batch: BEGIN, the statements, COMMIT, ROLLBACK; stored, or failed at one of them."""
    steps = STATEMENTS + 3
    result = {"cols": [], "rows": [], "affected_row_count": 1, "last_insert_rowid": "1"}
    results: list[Any] = [result] * (steps - 1) + [None]
    errors: list[Any] = [None] * steps
    if rng.random() < 0.6:
        at = rng.randrange(steps)
        results = [result] * at + [None] * (steps - at)
        errors[at] = {"code": rng.choice(CODES), "message": rng.choice(("so it says", "no such table: t"))}
    batch = {"type": "batch", "result": {"step_results": results, "step_errors": errors}}
    stored = {"type": "ok", "response": {"type": "store_sql"}}
    failed = {"type": "error", "error": {"code": rng.choice(CODES), "message": "so it says"}}
    answers = [stored, {"type": "ok", "response": batch} if rng.random() < 0.9 else failed]
    return {"baton": None, "base_url": None, "results": [*answers, {"type": "ok", "response": {"type": "close"}}]}


def _rows(rng: Random) -> dict[str, Any]:
    """The answer to a question."""
    values = [
        {"type": "integer", "value": "7"},
        {"type": "text", "value": "words"},
        {"type": "null"},
        {"type": "float", "value": 1.5},
        {"type": "blob", "base64": "AAAA"},
    ]
    rows = [rng.choices(values, (4, 4, 4, 1, 1), k=3) for _ in range(rng.choice((0, 1, 3)))]
    result = {"cols": [{"name": "a", "decltype": None}], "rows": rows, "affected_row_count": 0}
    execute = {"type": "ok", "response": {"type": "execute", "result": result}}
    return {"baton": None, "results": [execute, {"type": "ok", "response": {"type": "close"}}]}


def _header(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")[:500].translate(None, b"\r\n\0")
