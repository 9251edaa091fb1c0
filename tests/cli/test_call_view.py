"""What a person reads of a call in a terminal, and what a machine reads."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from app.call.records import CallEnded, Record, Speaker, Turn
from app.cli.call_view import CallView, show_turn
from app.sim.phone import events as pe
from app.sim.phone.judging import LineResult, Report

BEGIN = pe.WebhookAnswered(10.5, "voice", "http://h/twiml/voice", 200, 500.0)

READABLE = [
    (BEGIN, "   0.50 s  webhook voice answered: 200 in 500 ms"),
    (pe.StreamOpened(11.0, "ws://h/media/t", 12.4), "   1.00 s  stream opened in 12 ms"),
    (
        pe.WebhookAnswered(10.6, "action", "http://h/twiml/after", 200, 20.0, "fra"),
        "   0.60 s  webhook action answered by fra: 200 in 20 ms",
    ),
    (pe.StreamOpened(11.0, "ws://h/media/t", 12.4, "fra"), "   1.00 s  stream opened by fra in 12 ms"),
    (pe.StreamStarted(11.1, "MZ1"), "   1.10 s  the caller is connected"),
    (pe.AgentSpoke(14.0, 12.0, 1950), "   4.00 s  agent spoke for 1.9 s"),
    (pe.ClearReceived(15.0, 0, 12_000), "   5.00 s  agent stopped: 1.5 s of its speech discarded"),
    (pe.SayHeard(16.0, "We are sorry.", "en-US", "v"), '   6.00 s  Twilio says: "We are sorry."'),
    (pe.Dialled(16.0, ("+49301", "+49302"), None), "   6.00 s  dialled +49301, +49302"),
    (pe.StreamClosed(17.0, "server", 1000, ""), "   7.00 s  stream closed by server, code 1000"),
    (pe.StreamClosed(17.0, "caller", None, ""), "   7.00 s  stream closed by caller"),
    (pe.Problem(18.0, 31921, "closed by the server"), "   8.00 s  Twilio error 31921: closed by the server"),
    (pe.Problem(18.0, None, "cannot play this"), "   8.00 s  cannot play this"),
    (pe.Violation(18.0, 31951, "no payload", "{}"), "   8.00 s  invalid message from the server: no payload"),
    (pe.HungUp(110.0, pe.EndReason.CALLER), " 100.00 s  call ended: the caller hung up"),
]

UNSEEN: list[pe.PhoneEvent] = [
    pe.AudioReceived(11.0, 0, 160),
    pe.MarkReceived(11.0, "m", 160),
    pe.MarkEchoed(11.0, "m", 160, heard=True),
    pe.CallbackSent(11.0, "completed", "http://h/twiml/status", 204),
    pe.DocumentRead(11.0, "http://h/twiml/voice", ("Connect",)),
]


class Screen:
    """A terminal 40 columns wide, without colours."""

    def __init__(self, *, json_lines: bool = False) -> None:
        self._file = io.StringIO()
        self.console = Console(file=self._file, width=40, highlight=False)
        self.view = CallView(self.console, json_lines=json_lines)

    @property
    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.mark.parametrize(("event", "line"), READABLE)
def test_event_is_one_line_with_the_time_since_the_call_was_dialled(event: pe.PhoneEvent, line: str) -> None:
    screen = Screen()
    screen.view.show(BEGIN)
    screen.view.show(event)
    assert screen.lines[-1] == line


@pytest.mark.parametrize("json_lines", [False, True])
@pytest.mark.parametrize("event", UNSEEN)
def test_what_comes_many_times_a_second_is_left_out(event: pe.PhoneEvent, json_lines: bool) -> None:
    screen = Screen(json_lines=json_lines)
    screen.view.show(event)
    assert screen.lines == []


@pytest.mark.parametrize(("event", "_line"), READABLE)
def test_event_is_one_json_object_on_one_line(event: pe.PhoneEvent, _line: str) -> None:
    screen = Screen(json_lines=True)
    screen.view.show(BEGIN)
    screen.view.show(event)
    assert len(screen.lines) == 2
    last = screen.objects[-1]
    assert last["event"] == type(event).__name__
    assert last["at_ms"] == round((event.at - 10.0) * 1000)
    assert not {"at", "started_at"} & set(last)


def test_event_as_json_has_its_fields() -> None:
    screen = Screen(json_lines=True)
    screen.view.show(pe.SayHeard(3.0, "Es tut uns leid \N{EM DASH} [bold]x[/]", "de-DE", "Polly.Vicki-Neural"))
    assert screen.objects == [
        {
            "event": "SayHeard",
            "at_ms": 0,
            "text": "Es tut uns leid \N{EM DASH} [bold]x[/]",
            "language": "de-DE",
            "voice": "Polly.Vicki-Neural",
        }
    ]


def test_later_stream_of_a_call_is_shown_as_a_resume() -> None:
    screen = Screen()
    for event in (
        BEGIN,
        pe.StreamOpened(11.0, "ws://h/media/t", 12.4, "fra"),
        pe.StreamClosed(17.0, "network", None, ""),
        pe.StreamOpened(17.75, "ws://h/media/u", 12.4, "cdg"),
    ):
        screen.view.show(event)
    assert screen.lines[-1] == "   7.75 s  call resumed: stream 2 opened by cdg after a pause of 0.75 s"


def test_words_of_the_application_are_text_and_not_markup() -> None:
    screen = Screen()
    screen.view.show(pe.SayHeard(3.0, "[red]press [1] now[/red]", "en-US", "v"))
    assert screen.lines == ['   0.00 s  Twilio says: "[red]press [1] now[/red]"']


REPORT = Report(
    0.75,
    (LineResult(1.0, 2.0, False, None, 0.5), LineResult(4.0, 5.0, True, 0.25, None)),
    unsaid=0,
    not_interrupted=0,
    ended="the caller hung up",
    violations=2,
)


def test_report_is_read_as_a_table() -> None:
    screen = Screen()
    screen.view.report(REPORT)
    assert screen.lines == [
        "",
        "greeted after                     0.75 s",
        "line 1 answered after             0.50 s",
        "line 2 interrupted: agent stopped 0.25 s",
        "line 2 answered after             never",
        "Line 2 got no answer.",
        "The server sent 2 messages that Twilio would refuse.",
    ]


@pytest.mark.parametrize(
    ("webhook", "stream", "told"),
    [("fra", "fra", ["fra"]), ("fra", "iad", ["fra and iad"]), ("fra", None, ["fra"]), (None, None, [])],
)
def test_report_says_which_regions_answered(webhook: str | None, stream: str | None, told: list[str]) -> None:
    screen = Screen()
    screen.view.report(replace(REPORT, webhook_region=webhook, stream_region=stream))
    assert [
        line.removeprefix("answered by").strip() for line in screen.lines if line.startswith("answered by")
    ] == told


def test_report_as_json_is_the_last_object() -> None:
    screen = Screen(json_lines=True)
    screen.view.report(REPORT)
    (told,) = screen.objects
    assert (told["event"], told["greeted_after_s"], told["ended"]) == ("Report", 0.75, "the caller hung up")
    assert told["good"] is False
    assert told["faults"] == [
        "Line 2 got no answer.",
        "The server sent 2 messages that Twilio would refuse.",
    ]
    assert [said["interrupted"] for said in told["said"]] == [False, True]


def turn(speaker: Speaker, **more: Any) -> Turn:
    values: dict[str, Any] = {"said": "Hello [there].", "heard": "Hello", "said_ms": 2_000, **more}
    return Turn("CA1", "leg", 0, speaker, started_ms=0, ended_ms=0, backend="openai", **values)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (turn(Speaker.CALLER), "  caller: Hello [there].  2.0 s"),
        (turn(Speaker.AGENT, heard_ms=2_000), "   agent: Hello [there].  2.0 s"),
        (
            turn(Speaker.AGENT, heard_ms=500, interrupted=True),
            "   agent: Hello [there].  0.5 of 2.0 s heard, then interrupted",
        ),
        (turn(Speaker.CALLER, said=None), "  caller: (no transcript)  2.0 s"),
    ],
)
def test_turn_is_one_line(record: Record, line: str) -> None:
    screen = Screen()
    show_turn(screen.console, record)
    assert screen.lines == [line]


def test_record_that_is_no_turn_is_not_shown() -> None:
    screen = Screen()
    show_turn(screen.console, CallEnded("CA1", "leg", 0, "idle", 1))
    assert screen.lines == []
