"""Prints a call as the caller hears it, and turns as they are recorded.

It only prints; it does not know where the call runs.
"""

from dataclasses import asdict

import orjson
from rich.console import Console
from rich.text import Text

from app.call.limits import MULAW_BYTES_PER_MS
from app.call.records import Record, Speaker, Turn
from app.sim.phone import events as pe
from app.sim.phone.judging import Report, dialled


class CallView:
    """Prints a call as the simulated phone sees it: as readable text, or as one JSON object per line."""

    def __init__(self, console: Console, *, json_lines: bool) -> None:
        self._console = console
        self._json_lines = json_lines
        self._began_at: float | None = None
        self._streams = 0
        self._closed_at: float | None = None
        """When the last stream closed."""

    def show(self, event: pe.PhoneEvent) -> None:
        """Print one event. Audio and marks are left out, since they come 50 times a second."""
        if self._began_at is None:
            self._began_at = dialled([event])
        at_s = event.at - self._began_at
        if isinstance(
            event, pe.AudioReceived | pe.MarkReceived | pe.MarkEchoed | pe.CallbackSent | pe.DocumentRead
        ):
            return
        if self._json_lines:
            fields = {k: v for k, v in asdict(event).items() if k not in {"at", "started_at"}}
            self._print_json({"event": type(event).__name__, "at_ms": round(at_s * 1000), **fields})
            return
        text = self._resumed(event) or _words(event)
        if text is not None:
            style = "red" if isinstance(event, pe.Problem | pe.Violation) else ""
            self._console.print(Text.assemble((f"{at_s:7.2f} s  ", "dim"), (text, style)), soft_wrap=True)

    def _resumed(self, event: pe.PhoneEvent) -> str | None:
        """What a later stream of the call means to the caller: the call goes on after a pause."""
        match event:
            case pe.StreamClosed():
                self._closed_at = event.at
            case pe.StreamOpened():
                self._streams += 1
                if self._closed_at is not None:
                    opened = f"stream {self._streams} opened{_by(event)}"
                    return f"call resumed: {opened} after a pause of {event.at - self._closed_at:.2f} s"
        return None

    def report(self, report: Report) -> None:
        """Print how the call went."""
        if self._json_lines:
            self._print_json({"event": "Report", **asdict(report), "good": report.good, "faults": report.faults})
            return
        self._console.print()
        for label, value in _summary(report):
            self._console.print(Text.assemble((f"{label:<34}", "dim"), value), soft_wrap=True)
        for fault in report.faults:
            self._console.print(Text(fault, "red"), soft_wrap=True)

    def _print_json(self, values: dict[str, object]) -> None:
        self._console.out(orjson.dumps(values, default=str).decode(), highlight=False)


def show_turn(console: Console, record: Record) -> None:
    """Print a turn as the ledger receives it."""
    if not isinstance(record, Turn):
        return
    who, style = ("caller", "cyan") if record.speaker is Speaker.CALLER else ("agent", "green")
    words = record.said or "(no transcript)"
    length = f"  {record.said_ms / 1000:.1f} s"
    if record.interrupted:
        length = f"  {record.heard_ms / 1000:.1f} of {record.said_ms / 1000:.1f} s heard, then interrupted"
    console.print(Text.assemble((f"{who:>8}: ", f"bold {style}"), words, (length, "dim")), soft_wrap=True)


def _words(event: pe.PhoneEvent) -> str | None:
    match event:
        case pe.WebhookAnswered():
            return f"webhook {event.purpose} answered{_by(event)}: {event.status} in {event.took_ms:.0f} ms"
        case pe.StreamOpened():
            return f"stream opened{_by(event)} in {event.took_ms:.0f} ms"
        case pe.StreamStarted():
            return "the caller is connected"
        case pe.AgentSpoke():
            return f"agent spoke for {event.ms / 1000:.1f} s"
        case pe.ClearReceived() if event.discarded_bytes:
            return (
                f"agent stopped: {event.discarded_bytes / MULAW_BYTES_PER_MS / 1000:.1f} s of its speech discarded"
            )
        case pe.SayHeard():
            return f'Twilio says: "{event.text}"'
        case pe.Dialled():
            return f"dialled {', '.join(event.numbers)}"
        case pe.StreamClosed():
            return f"stream closed by {event.by}" + (f", code {event.code}" if event.code else "")
        case pe.Problem() if event.code is not None:
            return f"Twilio error {event.code}: {event.text}"
        case pe.Problem():
            return event.text
        case pe.Violation():
            return f"invalid message from the server: {event.why}"
        case pe.HungUp():
            return f"call ended: {event.reason.value}"
        case _:
            return None


def _by(event: pe.WebhookAnswered | pe.StreamOpened) -> str:
    return f" by {event.region}" if event.region else ""


def _summary(report: Report) -> list[tuple[str, str]]:
    rows = [("greeted after", _seconds(report.greeted_after_s))]
    for number, said in enumerate(report.said, 1):
        if said.interrupted:
            rows.append((f"line {number} interrupted: agent stopped", _seconds(said.obeyed_after_s)))
        rows.append((f"line {number} answered after", _seconds(said.answered_after_s)))
    answered_by = [region for region in (report.webhook_region, report.stream_region) if region]
    if answered_by:
        rows.append(("answered by", " and ".join(dict.fromkeys(answered_by))))
    return rows


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"
