"""Calls and turns of the ledger for a person in a terminal, and for a machine. Only spells; asks nothing."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, assert_never

import orjson

from app.call.evidence import BackendChoice, Evidence, Route
from app.call.records import CallEnded, CallEvent, CallStarted, Record, Speaker, Turn
from app.cli.when import shown, span_shown
from app.ledger.queries import CallHistory, CallSummary, CallTurn
from app.logs import printable

WHOSE = ("tenant", "zone", "region", "caller", "called")
TURN_COLUMNS = (*WHOSE, *(field.name for field in fields(Turn)))
"""What an exported turn has, in this order."""


def json_text(value: object) -> str:
    """One JSON value on one line."""
    return orjson.dumps(value).decode()


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns, nothing cut off: lines are for grep and awk as well."""
    cells = [tuple(header), *(tuple(map(printable, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def dollars(cost_microusd: int | None) -> str:
    """A cost for a person."""
    return "unknown" if cost_microusd is None else f"${cost_microusd / 1_000_000:.4f}"


# --- Many calls ------------------------------------------------------------------------------


def call_table(calls: Sequence[CallSummary]) -> list[str]:
    """One line for each call."""
    header = ("started (UTC)", "call", "from", "to", "region", "length", "turns", "cost", "ended")
    return table(header, map(_call_row, calls))


def _call_row(call: CallSummary) -> tuple[str, ...]:
    length = "" if call.ended_ms is None else span_shown(call.ended_ms - call.started_ms)
    return (
        shown(call.started_ms),
        call.call_sid,
        call.caller,
        call.called,
        call.region,
        length,
        str(call.turns),
        dollars(call.cost_microusd),
        call.end_reason or "not yet",
    )


# --- One call --------------------------------------------------------------------------------


def call_page(history: CallHistory) -> list[str]:
    """Everything about a call, as it went."""
    lines = [f"call {history.call_sid}"]
    if history.legs:
        first = history.legs[0]
        lines.append(f"from {first.caller} to {first.called}, tenant {first.tenant}, zone {first.zone}")
    lines += [_leg_line(leg, history.endings) for leg in history.legs]
    lines.append("")
    records: list[Record] = [*history.legs, *history.turns, *history.events, *history.endings]
    began_ms = min(map(_instant, records))
    moments: list[Turn | CallEvent] = sorted([*history.turns, *history.events], key=_instant)
    lines += [f"{(_instant(moment) - began_ms) / 1_000:8.1f} s  {_moment_line(moment)}" for moment in moments]
    lines += ["", f"{len(history.turns)} turns, cost {dollars(_sum(history.turns))}"]
    return [printable(line) for line in lines]


def _leg_line(leg: CallStarted, endings: Sequence[CallEnded]) -> str:
    line = f"{shown(leg.started_ms)} UTC in {leg.region}, backend {leg.backend}, model {leg.model}"
    for ending in endings:
        if ending.leg == leg.leg and not leg.stream_sid:
            where = f"backend {leg.backend}" if leg.backend else "no backend was asked"
            return f"{shown(leg.started_ms)} UTC in {leg.region}, nobody talked, {where}: {ending.reason}"
        if ending.leg == leg.leg:
            return f"{line}: {ending.reason} after {span_shown(ending.ended_ms - leg.started_ms)}"
    return f"{line}: has not ended, or its machine died"


def _instant(record: Record) -> int:
    match record:
        case CallStarted() | Turn():
            return record.started_ms
        case CallEvent():
            return record.at_ms
        case CallEnded():
            return record.ended_ms


def _moment_line(moment: Turn | CallEvent) -> str:
    if isinstance(moment, CallEvent):
        return f"      * {moment.kind} {_evidence_words(moment.evidence) or moment.detail}".rstrip()
    line = _turn_line(moment)
    if moment.answer_heard_ms is not None:
        line += f", answered after {moment.answer_heard_ms / 1_000:.2f} s"
    return line


def _evidence_words(evidence: Evidence | None) -> str:
    match evidence:
        case None:
            return ""
        case Route(edge, machine, twilio, sent_on_by):
            by = ">".join(sent_on_by) or "none"
            return f"edge={_word(edge or 'none')} machine={machine} twilio={twilio or 'unknown'} by={by}"
        case BackendChoice(name, voice, residency, because):
            promises = ",".join(residency) or "none"
            return f"{name} voice={_word(voice or 'unknown')} residency={promises} because={because}"
    assert_never(evidence)


def _word(text: str) -> str:
    """A text that somebody else chose, so that it cannot be taken for the words around it."""
    return text if re.fullmatch(r"[\w.:+-]+", text) else json_text(text)


def _turn_line(turn: Turn) -> str:
    who = "caller" if turn.speaker is Speaker.CALLER else " agent"
    words = "(no transcript)" if turn.said is None else turn.said
    length = f"{turn.said_ms / 1_000:.1f} s"
    if not turn.interrupted:
        return f" {who}: {words}  [{length}]"
    heard = f", up to: {turn.heard}" if turn.heard else ""
    return f" {who}: {words}  [{turn.heard_ms / 1_000:.1f} of {length} heard, then interrupted{heard}]"


def _sum(turns: Sequence[Turn]) -> int | None:
    costs = [turn.cost_microusd for turn in turns]
    return None if None in costs else sum(cost for cost in costs if cost is not None)


# --- Turns, one after the other --------------------------------------------------------------


def tail_line(turn: CallTurn) -> str:
    """A turn among those of other calls."""
    return printable(f"{shown(turn.turn.started_ms)}  {turn.turn.call_sid} {_turn_line(turn.turn)}")


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_PHONE_NUMBER = re.compile(r"\+\d{5,15}", re.ASCII)


def without_formulas(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a spreadsheet, which runs what looks like a formula (OWASP, "CSV Injection").

    Numbers stay as they are, and so do phone numbers, which compute nothing. What a caller says becomes text here:
    `=HYPERLINK(...)` must not become a link.
    """
    return {
        name: f"'{value}" if isinstance(value, str) and _is_formula(value) else value
        for name, value in row.items()
    }


def _is_formula(text: str) -> bool:
    return text.startswith(_FORMULA) and _PHONE_NUMBER.fullmatch(text) is None


def flat(turn: CallTurn) -> dict[str, Any]:
    """A turn with TURN_COLUMNS as its keys."""
    return {**{name: getattr(turn, name) for name in WHOSE}, **asdict(turn.turn)}
