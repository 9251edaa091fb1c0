"""How the evidence of where a call was handled is kept: as a JSON object in a column of its own.

Versions before migration 0005 wrote it as text into the event's `detail`; such rows are read by `_from_old_text`.
"""

import json
import re
from dataclasses import asdict

from app.call.evidence import BackendChoice, Evidence, Route
from app.call.journal import BACKEND, HANDLED
from app.call.texts import CUT_MARK


def to_json(evidence: Evidence) -> str:
    """The JSON object."""
    return json.dumps(asdict(evidence), ensure_ascii=False)


def from_row(kind: str, detail: str, text: str | None) -> Evidence | None:
    """The evidence of an event; None when the event has none, or none that this program can read."""
    if kind not in {HANDLED, BACKEND}:
        return None
    if text is None:
        return _from_old_text(kind, detail)
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    return _route(fields) if kind == HANDLED else _choice(fields)


def _route(fields: object) -> Route | None:
    match fields:
        case {
            "edge": str() | None as edge,
            "machine": str(machine),
            "twilio": str() | None as twilio,
            "sent_on_by": [*regions],
        }:
            return Route(edge, machine, twilio, tuple(map(str, regions)))
    return None


def _choice(fields: object) -> BackendChoice | None:
    match fields:
        case {
            "name": str(name),
            "voice": str(voice),
            "residency": [*promises],
            "because": str(because),
        }:
            return BackendChoice(name, voice, tuple(map(str, promises)), because)
    return None


# --- Rows from before migration 0005 ---------------------------------------------------------------

_OLD_ROUTE = re.compile(r"edge=(.*) machine=(\S+) twilio=(\S+) by=(\S+)", re.DOTALL)
_OLD_CHOICE = re.compile(r"(\S+)(?: voice=(.*))? residency=(\S+) because=(.*)", re.DOTALL)
"""A tenant chose the voice, which may itself have `residency=eu` in it: what the program wrote comes last."""


def _from_old_text(kind: str, detail: str) -> Evidence | None:
    # The end of a text that was cut is missing, and its beginning is not the program's own.
    if detail.endswith(CUT_MARK):
        return None
    if kind == HANDLED and (found := _OLD_ROUTE.fullmatch(detail)):
        edge, machine, twilio, by = found.groups()
        sent_on_by = () if by == "none" else tuple(by.split(">"))
        return Route(_unless("none", edge), machine, _unless("unknown", twilio), sent_on_by)
    if kind == BACKEND and (found := _OLD_CHOICE.fullmatch(detail)):
        name, voice, residency, because = found.groups()
        promises = () if residency == "none" else tuple(residency.split(","))
        return BackendChoice(name, voice or "", promises, because)
    return None


def _unless(nothing: str, text: str) -> str | None:
    return None if text == nothing else text
