"""`nearcall calls`: what was said on the phone, from this machine's copy of the ledger.

Works beside a running server and without one. Reads files only: no question of an operator reaches a primary.
"""

import asyncio
import csv
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from app.cli import ledger_view as view
from app.cli.shared import EnvFile, Json, ZoneName, fail, instant, readable, record_settings, run
from app.cli.when import LOOKS_LIKE
from app.config import RecordSettings
from app.ledger.queries import BEFORE_ALL, END_OF_TIME_MS, CallTurn, Queries
from app.storage.errors import StorageError

PAGE = 1_000
"""Turns in one question: half a megabyte."""
LOOK_EVERY_S = 2.0
LOOK_BACK_MS = 60_000
"""A turn is written when it is over, and takes a moment to come here: `tail` looks so far back for new ones.

Each look reads all turns of that span: at 100 turns a second 6,000 rows, beside the calls of the same machine.
"""

app = typer.Typer(help="Show calls and what was said: list, show, tail, export.", no_args_is_help=True)

Since = Annotated[str | None, typer.Option(help=f"Only since then: {LOOKS_LIKE}.")]
Until = Annotated[str | None, typer.Option(help="Only before then; as --since.")]


class Format(StrEnum):
    """How turns are exported."""

    JSONL = "jsonl"
    CSV = "csv"


@app.command("list")
def list_calls(
    limit: Annotated[int, typer.Option(help="Show at most this many.", min=1, max=1_000)] = 20,
    since: Since = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only calls that were not taken, or ended abnormally.")
    ] = False,
    zone: ZoneName = "global",
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """List the latest calls, newest first, including those that were not answered."""
    settings = record_settings(env_file)
    since_ms = instant("--since", since, 0)

    async def ask(queries: Queries) -> None:
        calls = await queries.recent_calls(limit, since_ms, failed=failed)
        for line in map(view.json_text, calls) if json else view.call_table(calls):
            print(line)

    _answer(settings, zone, ask)


@app.command()
def show(
    call_sid: Annotated[str, typer.Argument(help="Twilio's id of the call: CA...", metavar="CALL")],
    zone: ZoneName = "global",
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Show everything about one call: who said what, what was heard, what went wrong, what it cost."""
    settings = record_settings(env_file)

    async def ask(queries: Queries) -> None:
        history = await queries.call(call_sid)
        if history is None:
            fail(f"The ledger has no call {call_sid} in zone {zone}.")
        print(view.json_text(history) if json else "\n".join(view.call_page(history)))

    _answer(settings, zone, ask)


@app.command()
def tail(
    call_sid: Annotated[str | None, typer.Argument(help="Only this call: CA...", metavar="[CALL]")] = None,
    zone: ZoneName = "global",
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Print turns as they are recorded, until Ctrl-C.

    Checks for new turns every two seconds. A turn that arrives more than a minute after it began, because it was
    that long or the database was unreachable, is not shown; `calls show` and `calls export` include it.
    """
    settings = record_settings(env_file)

    async def ask(queries: Queries) -> None:
        async for turn in _new_turns(queries):
            if call_sid in {None, turn.turn.call_sid}:
                print(view.json_text(view.flat(turn)) if json else view.tail_line(turn), flush=True)

    _answer(settings, zone, ask)


@app.command()
def export(
    since: Since = None,
    until: Until = None,
    format_: Annotated[Format, typer.Option("--format", help="JSON lines, or CSV with a header.")] = Format.JSONL,
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
    zone: ZoneName = "global",
    env_file: EnvFile = Path(".env"),
) -> None:
    """Export all turns that began in a period, oldest first, with their calls.

    An existing file is replaced once the export is complete. In CSV, a text that a spreadsheet would run as a
    formula (because it begins with =, +, -, @, a tab or a carriage return) gets an apostrophe in front: '=1+1.
    Numbers and phone numbers get none. JSON lines have every text unchanged.
    """
    settings = record_settings(env_file)
    since_ms, until_ms = instant("--since", since, 0), instant("--until", until, END_OF_TIME_MS)

    async def ask(queries: Queries) -> None:
        with _opened(output) as stream:
            write = _writer(stream, format_)
            count = 0
            async for turn in _turns(queries, since_ms, until_ms):
                write(turn)
                count += 1
        if output is not None:
            print(f"{count} turns written to {output}", file=sys.stderr)

    try:
        _answer(settings, zone, ask)
    except OSError as error:
        if output is None:
            raise
        fail(f"Cannot write {output}: {error.strerror}.")


# --- Inside ------------------------------------------------------------------------------------


def _answer(settings: RecordSettings, zone: str, ask: Callable[[Queries], Coroutine[Any, Any, None]]) -> None:
    async def asked() -> None:
        queries = Queries(readable(settings, zone))
        try:
            await ask(queries)
        finally:
            await queries.close()

    try:
        run(asked())
    except StorageError as error:
        fail(str(error))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _turns(queries: Queries, since_ms: int, until_ms: int) -> AsyncIterator[CallTurn]:
    after = BEFORE_ALL
    while page := await queries.turns_between(since_ms, until_ms, PAGE, after):
        for turn in page:
            yield turn
        after = page[-1].key


async def _new_turns(queries: Queries) -> AsyncIterator[CallTurn]:
    """Turns that were not there at the start, as they come."""
    seen = {turn.key async for turn in _turns(queries, now_ms() - LOOK_BACK_MS, END_OF_TIME_MS)}
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        since_ms = now_ms() - LOOK_BACK_MS
        try:
            found = [turn async for turn in _turns(queries, since_ms, END_OF_TIME_MS)]
        except StorageError as error:
            # The copy is being made anew: it will be back.
            print(f"nearcall: {error}", file=sys.stderr)
            continue
        for turn in found:
            if turn.key not in seen:
                yield turn
        seen = {turn.key for turn in found}


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that takes the place of an older one only when it is whole."""
    if output is None:
        yield sys.stdout
        return
    part = Path(f"{output}.part")
    # What was said is for its owner alone, as in the ledger's own files.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            yield stream
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _writer(stream: TextIO, format_: Format) -> Callable[[CallTurn], object]:
    match format_:
        case Format.JSONL:
            return lambda turn: stream.write(view.json_text(view.flat(turn)) + "\n")
        case Format.CSV:
            rows = csv.DictWriter(stream, view.TURN_COLUMNS, lineterminator="\n")
            rows.writeheader()
            return lambda turn: rows.writerow(view.without_formulas(view.flat(turn)))
