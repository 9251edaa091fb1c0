"""Log lines: one JSON object each for machines, aligned text for a terminal.

A log call puts a record into a bounded queue and returns; a thread formats and writes it. So a slow terminal, a
full pipe or a long traceback never makes a call wait. When the queue is full a line is dropped and counted, and
the count is logged as soon as there is room.

A message is the name of an event in snake_case, constant text; details are fields:
`log.warning("backend_lost", code=1006)`. Modules without a call use the standard library and a logger named after
their room: `logging.getLogger("nearcall.ledger").info("ledger_migrated", extra={"path": path})`.

uvicorn must leave logging alone: `uvicorn.Config(..., log_config=None, access_log=False)`.
"""

import json
import logging
import math
import re
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TextIO
from urllib.parse import quote

Field = str | int | float | bool | None

MSG_WIDTH = 32
"""Longer than our event names, so that the fields of most lines begin in one column."""

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_VERBOSE = ("httpx", "httpcore", "websockets", "picows", "twilio")
"""They log a line or more for each request or connection at INFO; Twilio's has phone numbers in it."""
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.asgi")
_OWN = "nearcall"
"""Our own loggers begin with it; a terminal shows the names of all others."""
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",  # from Python 3.12 on
    "fields",  # CallLog's own
    "color_message",  # uvicorn repeats the message here
}
_RESERVED = ("ts", "level", "logger", "msg", "exception")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the log may hold and how long it may take."""

    lines_max: int = 10_000
    """Lines waiting to be written: about 10 MB, and more than a busy machine logs in a minute."""
    close_s: float = 2.0
    """How long closing waits for a stream that does not take its lines."""
    drop_report_s: float = 1.0
    """How often the count of dropped lines is logged in a steady flood."""


def setup_logs(
    level: str,
    json_lines: bool | None,
    region: str,
    secrets: tuple[str, ...] = (),
    stream: TextIO | None = None,
    limits: Limits = Limits(),
) -> "Logs":
    """Route every logger of the process to `stream` (standard error), until the result is closed.

    `json_lines` None means JSON unless the stream is a terminal. `region` is on each JSON line; empty is left out.
    None of `secrets` appears in any line. Raises ValueError for a level that is not one of Python's five.
    """
    if level.upper() not in _LEVELS:
        raise ValueError(f"log level should be one of {', '.join(_LEVELS)}, and is {level!r}")
    stream = sys.stderr if stream is None else stream
    json_lines = not stream.isatty() if json_lines is None else json_lines
    return Logs(level.upper(), _Style(json_lines, region, _Redactor(secrets)), stream, limits)


class CallLog:
    """The log of one leg of a call. Every line has its ids."""

    def __init__(self, name: str, call_sid: str, tenant: str, region: str) -> None:
        self._logger = logging.getLogger(name)
        self._ids: dict[str, object] = {"call_sid": call_sid, "tenant": tenant, "region": region}
        self._stream_sid: str | None = None

    @property
    def stream_sid(self) -> str | None:
        """On every line from when it is set. A leg has one stream, so setting another is a bug."""
        return self._stream_sid

    @stream_sid.setter
    def stream_sid(self, stream_sid: str) -> None:
        assert self._stream_sid in (None, stream_sid), "a leg of a call has one stream"
        self._stream_sid = stream_sid
        self._ids["stream_sid"] = stream_sid

    def debug(self, event: str, /, **fields: object) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """As `error`, with the exception being handled."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def _log(self, level: int, event: str, fields: Mapping[str, object], *, exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            # Under one key: any other could be one that logging keeps for itself, such as `name`, and raise.
            self._logger.log(level, event, exc_info=exc_info, extra={"fields": {**self._ids, **fields}})


class Logs:
    """The running log. Close it, or leave its `with` block, to have everything written and logging as it was."""

    def __init__(self, level: str, style: "_Style", stream: TextIO, limits: Limits) -> None:
        self._close_s = limits.close_s
        self._handoff = _Handoff(limits.lines_max)
        self._writer = _Writer(self._handoff, style, stream, limits.drop_report_s)
        self._before = _Before()
        root = logging.getLogger()
        root.handlers = [self._handoff]
        root.setLevel(level)
        for name in _UVICORN:
            _reset(logging.getLogger(name), max(logging.WARNING, root.level))
        for name in _VERBOSE:
            _reset(logging.getLogger(name), max(logging.WARNING, root.level))
        _reset(logging.getLogger("uvicorn.access"), logging.CRITICAL + 1)
        self._writer.start()

    @property
    def dropped(self) -> int:
        """Lines lost since the start: the queue was full, or the stream refused them."""
        return self._handoff.dropped + self._writer.unwritten

    def close(self) -> None:
        """Write what was logged until now, within `Limits.close_s`, and put logging back. Twice is harmless."""
        if self._handoff in logging.getLogger().handlers:
            self._before.restore()
            self._handoff.lines.put(None)
            self._writer.join(self._close_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reset(logger: logging.Logger, level: int) -> None:
    logger.handlers = []
    logger.propagate = True
    logger.setLevel(level)


class _Before:
    """The state of the loggers that we change, to put it back."""

    def __init__(self) -> None:
        loggers = [logging.getLogger(), *map(logging.getLogger, (*_UVICORN, *_VERBOSE, "uvicorn.access"))]
        self._states = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]

    def restore(self) -> None:
        for logger, handlers, propagate, level in self._states:
            logger.handlers = handlers
            logger.propagate = propagate
            logger.setLevel(level)


class _Handoff(logging.Handler):
    """Puts records into the queue. Never waits for the writer."""

    def __init__(self, lines_max: int) -> None:
        super().__init__()
        self._lines_max = lines_max
        self.lines: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        # logging calls this under the handler's lock, so the count is right for any number of threads.
        if self.lines.qsize() >= self._lines_max:
            self.dropped += 1
            return
        # Values become text now, because they may change before the line is written. The writer formats
        # tracebacks: that reads source files.
        try:
            record.msg = record.getMessage()
            fields = {key: _plain(value) for key, value in _fields_of(record).items()}
        except Exception as error:  # noqa: BLE001 - any __str__ may run here, and a log line must not end a call
            record.msg = f"{record.msg} (cannot be formatted: {type(error).__name__})"
            fields = {}
        record.args = None
        record.fields = fields
        self.lines.put(record)


class _Writer(threading.Thread):
    """Takes records from the queue and writes them to the stream."""

    def __init__(self, handoff: _Handoff, style: "_Style", stream: TextIO, drop_report_s: float) -> None:
        # A daemon: a stream that hangs must not keep the process alive.
        super().__init__(name="logs", daemon=True)
        self._handoff = handoff
        self._style = style
        self._stream = stream
        self._drop_report_s = drop_report_s
        self._reported = 0
        self._reported_at = time.monotonic()
        self.unwritten = 0

    def run(self) -> None:
        while (record := self._handoff.lines.get()) is not None:
            self._write(self._style.line(record))
            if self._handoff.lines.empty():
                self._report_drops()
                self._flush()
            elif time.monotonic() - self._reported_at >= self._drop_report_s:
                self._report_drops()
        self._report_drops()
        self._flush()

    def _report_drops(self) -> None:
        dropped = self._handoff.dropped + self.unwritten
        self._reported_at = time.monotonic()
        if dropped > self._reported:
            count, self._reported = dropped - self._reported, dropped
            report = logging.makeLogRecord(
                {
                    "name": "nearcall.logs",
                    "levelno": logging.WARNING,
                    "levelname": "WARNING",
                    "msg": "log_lines_dropped",
                    "fields": {"count": count, "total": dropped},
                }
            )
            self._write(self._style.line(report))

    def _write(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
        except (OSError, ValueError):  # a full disk, a broken pipe, a closed stream: only a count can say so
            self.unwritten += 1

    def _flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.unwritten += 1


class _Redactor:
    """Replaces secrets in text, also as repr(), JSON and URLs spell them."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        spellings = {
            spelling
            for secret in secrets
            if secret
            for spelling in (
                secret,
                repr(secret)[1:-1],
                json.dumps(secret)[1:-1],
                json.dumps(secret, ensure_ascii=False)[1:-1],
                quote(secret, safe="", errors="replace"),
            )
        }
        # The longest first: a secret may begin with another.
        self._pattern = re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or r"(?!)")

    def __call__(self, text: str) -> str:
        return self._pattern.sub("***", text)


@dataclass(frozen=True, slots=True)
class _Style:
    """How a record becomes a line. Secrets go before anything is encoded, so no escape can hide one."""

    json_lines: bool
    region: str
    redact: _Redactor

    def line(self, record: logging.LogRecord) -> str:
        try:
            return self._json(record) if self.json_lines else self._readable(record)
        except Exception as error:  # noqa: BLE001 - top of the thread: an odd record must not end the log
            odd = {"name": record.name, "levelno": logging.ERROR, "levelname": "ERROR"}
            odd |= {"msg": "log_line_broken", "fields": {"error": type(error).__name__}}
            return self.line(logging.makeLogRecord(odd))

    def _json(self, record: logging.LogRecord) -> str:
        line: dict[str, Field] = {
            "ts": _instant(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "msg": self.redact(str(record.msg)),
        }
        if self.region:
            line["region"] = self.region
        line |= self._fields(record)
        if trace := self._trace(record):
            line["exception"] = trace
        # ASCII only: whatever the stream's encoding, and however broken the text, the line stays valid.
        return json.dumps(line, allow_nan=False)

    def _readable(self, record: logging.LogRecord) -> str:
        fields = self._fields(record)
        fields.pop("region", None)  # the same on every line of a terminal
        if record.name.partition(".")[0] != _OWN:
            fields["logger"] = record.name
        clock = f"{_instant(record):%H:%M:%S.%f}"[:-3]
        msg = printable(self.redact(str(record.msg)))
        pairs = " ".join(f"{printable(key)}={_shown(value)}" for key, value in fields.items())
        line = f"{clock} {record.levelname:<8} {msg:<{MSG_WIDTH}} {pairs}".rstrip()
        trace = self._trace(record)
        return "\n    ".join([line, *map(printable, trace.splitlines())])

    def _fields(self, record: logging.LogRecord) -> dict[str, Field]:
        fields: dict[str, Field] = record.__dict__["fields"]
        return {
            self.redact(f"{key}_" if key in _RESERVED else key): self.redact(value)
            if isinstance(value, str)
            else value
            for key, value in fields.items()
        }

    def _trace(self, record: logging.LogRecord) -> str:
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        return self.redact("\n".join(filter(None, (trace.rstrip(), record.stack_info))))


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The fields of a record: those given to a CallLog, or as `extra`."""
    fields: dict[str, object] = record.__dict__.get("fields", {})
    return fields | {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


def _plain(value: object) -> Field:
    match value:
        case None | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case _:
            return str(value)


def _instant(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _shown(value: Field) -> str:
    """A value on a terminal: bare when it is unambiguous, else quoted."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if re.fullmatch(r"[^\s\"'=\\]+", text) and text.isprintable() else json.dumps(text)


def printable(text: str) -> str:
    """Escape what a terminal would obey: text from outside may hold control codes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
