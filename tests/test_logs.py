"""Log lines are valid, complete and free of secrets, and logging never waits."""

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.logs import CallLog, Limits, setup_logs

LINES_MAX = 20
"""In these tests."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class BlockedStream(io.StringIO):
    """Takes nothing until `go` is set, as a terminal on hold does."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.go.wait(10)
        return super().write(text)


class BrokenStream(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def logged(
    act: Callable[[], object], *, secrets: tuple[str, ...] = (), level: str = "INFO"
) -> list[dict[str, Any]]:
    """The JSON lines that `act` makes."""
    stream = io.StringIO()
    with setup_logs(level, None, "fra", secrets, stream):
        act()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def shown(act: Callable[[], object], *, secrets: tuple[str, ...] = ()) -> str:
    """What `act` shows on a terminal."""
    stream = Terminal()
    with setup_logs("INFO", None, "fra", secrets, stream):
        act()
    return stream.getvalue()


@pytest.fixture
def call() -> CallLog:
    return CallLog("nearcall.call", "CA1", "acme", "fra")


@pytest.fixture
def other() -> logging.Logger:
    return logging.getLogger("nearcall.somewhere")


def fail_with(error: Exception) -> Callable[[], None]:
    """Logs an exception, as the top of a call does."""

    def act() -> None:
        try:
            raise error
        except type(error):
            CallLog("nearcall.call", "CA1", "acme", "fra").exception("call_broke")

    return act


# --- Content --------------------------------------------------------------------------------------


def test_line_has_instant_level_logger_message_region_and_extra_fields(other: logging.Logger) -> None:
    [line] = logged(lambda: other.info("ledger migrated", extra={"path": "/data", "count": 3}))
    instant = line.pop("ts")
    assert line == {
        "level": "INFO",
        "logger": "nearcall.somewhere",
        "msg": "ledger migrated",
        "region": "fra",
        "path": "/data",
        "count": 3,
    }
    assert len(instant) == len("2026-11-20T09:53:15.123Z")
    assert instant.endswith("Z")


def test_call_line_has_the_ids_of_the_call_and_the_stream_once_it_is_known(call: CallLog) -> None:
    def act() -> None:
        call.info("answered", attempt=1)
        call.stream_sid = "MZ1"
        call.warning("backend_lost", code=1006)

    first, second = logged(act)
    assert {"call_sid": "CA1", "tenant": "acme", "region": "fra", "attempt": 1}.items() <= first.items()
    assert "stream_sid" not in first
    assert {"call_sid": "CA1", "stream_sid": "MZ1", "level": "WARNING", "code": 1006}.items() <= second.items()


def test_second_stream_of_a_leg_is_a_bug(call: CallLog) -> None:
    call.stream_sid = "MZ1"
    call.stream_sid = "MZ1"
    with pytest.raises(AssertionError, match="one stream"):
        call.stream_sid = "MZ2"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", ""),
        ("two\nlines\r\n\tand \x00\x1b[31m", "two\nlines\r\n\tand \x00\x1b[31m"),
        ("日本語 😀 ü", "日本語 😀 ü"),
        ("half \ud83d a pair", "half \ud83d a pair"),
        ("\u2028 \x85", "\u2028 \x85"),
        (True, True),
        (None, None),
        (2**70, 2**70),
        (0.25, 0.25),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (b"\xff", "b'\\xff'"),
        (["a", 1], "['a', 1]"),
    ],
)
def test_any_value_makes_one_valid_line(call: CallLog, value: object, shown: object) -> None:
    [line] = logged(lambda: call.info("event", value=value))
    assert line["value"] == shown


@given(msg=st.text(), fields=st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.floats()))
@settings(max_examples=100, deadline=None)
def test_any_text_makes_one_valid_line(msg: str, fields: dict[str, object]) -> None:
    [line] = logged(lambda: CallLog("nearcall.call", "CA1", "acme", "fra").info(msg, **fields))
    assert line["msg"] == msg
    assert len(line) >= len(fields)


@pytest.mark.parametrize("name", ["msg", "level", "ts", "logger", "exception"])
def test_field_named_like_a_part_of_the_line_does_not_replace_it(call: CallLog, name: str) -> None:
    [line] = logged(lambda: call.info("event", **{name: "mine"}))
    assert (line["msg"], line[f"{name}_"]) == ("event", "mine")


def test_field_that_logging_keeps_for_itself_does_not_raise(call: CallLog) -> None:
    [line] = logged(lambda: call.info("event", name="weather", args="none", module="tool"))
    assert (line["name"], line["args"], line["module"]) == ("weather", "none", "tool")


def test_exception_is_one_field_with_its_traceback() -> None:
    [line] = logged(fail_with(ValueError("no\nsuch thing")))
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: no\nsuch thing")
    assert (line["msg"], line["level"]) == ("call_broke", "ERROR")


def test_value_that_changes_later_is_logged_as_it_was(other: logging.Logger) -> None:
    stream = BlockedStream()
    value = ["before"]
    with setup_logs("INFO", True, "", (), stream):
        other.info("first")
        assert stream.reached.wait(10)
        other.info("now %s", value, extra={"value": value})
        value.append("after")
        stream.go.set()
    line = json.loads(stream.getvalue().splitlines()[1])
    assert (line["msg"], line["value"]) == ("now ['before']", "['before']")


def test_other_handlers_can_still_read_the_record(other: logging.Logger) -> None:
    beside = io.StringIO()

    def act() -> None:
        logging.getLogger().addHandler(logging.StreamHandler(beside))
        other.info("%d%% of %s", 5, "calls")

    logged(act)
    assert beside.getvalue() == "5% of calls\n"


class Grumpy:
    def __str__(self) -> str:
        raise RuntimeError("leave me alone")


def test_value_that_cannot_be_formatted_costs_its_line_and_not_the_call(call: CallLog) -> None:
    [line] = logged(lambda: call.info("event", value=Grumpy()))
    assert line["msg"] == "event (cannot be formatted: RuntimeError)"


def test_arguments_that_do_not_fit_cost_their_line_and_not_the_call(other: logging.Logger) -> None:
    [line] = logged(lambda: other.info("%d calls", "many"))
    assert line["msg"] == "%d calls (cannot be formatted: TypeError)"


def test_record_that_cannot_be_formatted_does_not_end_the_log(other: logging.Logger) -> None:
    odd = logging.makeLogRecord({"name": "nearcall.odd", "levelno": logging.INFO, "msg": "x", "created": 1e300})

    def act() -> None:
        other.handle(odd)
        other.info("next")

    broken, following = logged(act)
    assert (broken["msg"], broken["logger"], following["msg"]) == ("log_line_broken", "nearcall.odd", "next")


# --- On a terminal --------------------------------------------------------------------------------


def test_terminal_gets_aligned_text(call: CallLog, other: logging.Logger) -> None:
    def act() -> None:
        call.info("answered", why="it rang", code=1, empty="")
        other.warning("slow")
        logging.getLogger("uvicorn.error").warning("Invalid %s", "request")

    text = shown(act).splitlines()
    assert [line[12:] for line in text] == [
        ' INFO     answered                         call_sid=CA1 tenant=acme why="it rang" code=1 empty=""',
        " WARNING  slow",
        " WARNING  Invalid request                  logger=uvicorn.error",
    ]
    assert text[0][2] == text[0][5] == ":"


def test_terminal_gets_a_traceback_indented_below_its_line() -> None:
    first, *trace = shown(fail_with(ValueError("no"))).splitlines()
    assert "call_broke" in first
    assert trace[0] == "    Traceback (most recent call last):"
    assert trace[-1] == "    ValueError: no"
    assert all(line.startswith("    ") for line in trace)


def test_terminal_does_not_obey_text_from_outside(call: CallLog) -> None:
    text = shown(lambda: call.info("\x1b[2Jevent\n", value="\x1b]0;title\x07", **{"k\x1b": "\u202e"}))
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()


@pytest.mark.parametrize(("stream", "json_lines"), [(io.StringIO, False), (Terminal, True)])
def test_asked_for_style_wins_over_the_stream(
    other: logging.Logger, stream: type[io.StringIO], json_lines: bool
) -> None:
    out = stream()
    with setup_logs("INFO", json_lines, "", (), out):
        other.info("event")
    assert out.getvalue().startswith("{") is json_lines


# --- Secrets --------------------------------------------------------------------------------------

SECRETS = ("sk-live-1234567890", 'odd"quote\\and\nline', "schlüssel geheim/ganz", "sk-live-1234567890-longer")
SECRET_PARTS = ("1234567890", "longer", "odd", "quote", "geheim")
"""What would be left over if one were hidden only in part."""


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "act",
    [
        lambda secret: logging.getLogger("nearcall.x").info(secret),
        lambda secret: logging.getLogger("nearcall.x").info("key=%s", secret),
        lambda secret: logging.getLogger("nearcall.x").info("event", extra={"key": f"Bearer {secret}"}),
        lambda secret: logging.getLogger("nearcall.x").info("event", extra={"fields": {secret: 1}}),
        lambda secret: logging.getLogger("nearcall.x").info("event", extra={"headers": {"key": secret}}),
        lambda secret: CallLog("nearcall.call", secret, secret, "fra").error("event", key=secret),
        lambda secret: fail_with(ValueError(secret))(),
        lambda secret: fail_with(KeyError(secret))(),
        lambda secret: logging.getLogger("nearcall.x").info(json.dumps({"key": secret})),
        lambda secret: logging.getLogger("nearcall.x").info("https://host/?key=%s", quote(secret, safe="")),
    ],
    ids=["message", "argument", "extra", "key", "nested", "call", "traceback", "repr", "json", "url"],
)
@pytest.mark.parametrize(
    "show", [lambda act: json.dumps(logged(act, secrets=SECRETS)), None], ids=["json", "text"]
)
def test_secret_never_appears(secret: str, act: Callable[[str], None], show: Callable[..., str] | None) -> None:
    text = show(lambda: act(secret)) if show else shown(lambda: act(secret), secrets=SECRETS)
    assert "***" in text
    assert secret not in text
    assert [part for part in SECRET_PARTS if part in text] == []


def test_empty_secret_hides_nothing(other: logging.Logger) -> None:
    [line] = logged(lambda: other.info("event"), secrets=("",))
    assert line["msg"] == "event"


# --- Logging never waits -----------------------------------------------------------------------------


def test_full_queue_drops_lines_without_waiting_and_reports_how_many(other: logging.Logger) -> None:
    stream = BlockedStream()
    with setup_logs("INFO", True, "", (), stream, Limits(lines_max=LINES_MAX)) as running:
        other.info("first")
        assert stream.reached.wait(10)  # the writer holds it, and the queue is empty
        for number in range(LINES_MAX + 7):
            other.info("line", extra={"number": number})
        assert running.dropped == 7
        stream.go.set()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("number") for line in lines] == [None, *range(LINES_MAX), None]
    assert (lines[-1]["msg"], lines[-1]["level"], lines[-1]["count"]) == ("log_lines_dropped", "WARNING", 7)


def test_drops_are_reported_during_a_flood_too(other: logging.Logger) -> None:
    stream = BlockedStream()
    with setup_logs("INFO", True, "", (), stream, Limits(lines_max=LINES_MAX, drop_report_s=0.0)):
        other.info("first")
        assert stream.reached.wait(10)
        for _ in range(LINES_MAX + 7):
            other.info("line")
        stream.go.set()
    assert json.loads(stream.getvalue().splitlines()[1])["msg"] == "log_lines_dropped"


def test_closing_writes_everything(other: logging.Logger) -> None:
    def act() -> None:
        for number in range(1_000):
            other.info("line", extra={"number": number})

    lines = logged(act)
    assert [line["number"] for line in lines] == list(range(1_000))


def test_closing_does_not_wait_for_ever(other: logging.Logger) -> None:
    stream = BlockedStream()
    running = setup_logs("INFO", True, "", (), stream, Limits(close_s=0.02))
    other.info("stuck")
    running.close()
    running.close()
    assert stream.getvalue() == ""
    stream.go.set()


def test_stream_that_refuses_lines_is_counted_and_does_not_raise(other: logging.Logger) -> None:
    with setup_logs("INFO", True, "", (), BrokenStream()) as running:
        other.info("event")
        other.info("event")
    assert running.dropped >= 2


def test_threads_at_once_lose_nothing(other: logging.Logger) -> None:
    def chatter() -> None:
        for _ in range(200):
            other.info("line")

    def act() -> None:
        threads = [threading.Thread(target=chatter) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)

    assert len(logged(act)) == 800


# --- Loggers --------------------------------------------------------------------------------------


@pytest.fixture
def uvicorn_as_it_comes() -> Iterator[logging.Logger]:
    """With handlers of its own, as after uvicorn.Config(...)."""
    logger = logging.getLogger("uvicorn")
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [logging.StreamHandler(io.StringIO())], False
    yield logger
    logger.handlers, logger.propagate = before


def test_uvicorn_is_routed_here(uvicorn_as_it_comes: logging.Logger) -> None:
    def act() -> None:
        uvicorn_as_it_comes.info("started")
        uvicorn_as_it_comes.warning("invalid request")

    assert [line["msg"] for line in logged(act)] == ["invalid request"]


def test_closing_puts_loggers_back(uvicorn_as_it_comes: logging.Logger) -> None:
    root = logging.getLogger()
    before = (root.handlers, root.level, uvicorn_as_it_comes.handlers, logging.getLogger("httpx").level)
    logged(lambda: None, level="DEBUG")
    assert (root.handlers, root.level, uvicorn_as_it_comes.handlers, logging.getLogger("httpx").level) == before


@pytest.mark.parametrize(
    "name", ["httpx", "httpcore.connection", "websockets.client", "picows", "twilio.http_client"]
)
def test_talkative_library_is_heard_from_warning_on(name: str) -> None:
    def act() -> None:
        logging.getLogger(name).info("request")
        logging.getLogger(name).warning("trouble")

    assert [line["msg"] for line in logged(act, level="DEBUG")] == ["trouble"]


def test_uvicorn_access_log_is_off() -> None:
    assert logged(lambda: logging.getLogger("uvicorn.access").critical("GET /"), level="DEBUG") == []


@pytest.mark.parametrize(("level", "heard"), [("debug", 2), ("INFO", 1), ("warning", 0)])
def test_level_decides_what_is_heard(call: CallLog, level: str, heard: int) -> None:
    def act() -> None:
        call.debug("detail")
        call.info("event")

    assert len(logged(act, level=level)) == heard


def test_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match="one of DEBUG, INFO, WARNING, ERROR, CRITICAL, and is 'loud'"):
        setup_logs("loud", None, "fra")


def test_lines_go_to_standard_error_by_default(other: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    with setup_logs("INFO", True, ""):
        other.info("event")
    captured = capsys.readouterr()
    assert (captured.out, json.loads(captured.err)["msg"]) == ("", "event")
