"""Checks Realtime events against the vendor's own types, and what the types leave open against our notes.

Used on every message that we send and that our simulator sends. The union of the SDK is not tagged, so the class
is chosen by `type` first; extra members pass pydantic and are looked for by hand (realtime.md 7).
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent
from pydantic import BaseModel, ValidationError

Json = Mapping[str, Any]
Checked = tuple[str, type[BaseModel], Json]

_SESSION_EXTRAS = frozenset({"id", "object", "expires_at", "include"})
_ITEM_EXTRAS = frozenset({"phase"})


def check_client_event(event: Json) -> None:
    """Raises AssertionError with a short text when the service would not take this event."""
    model = _check(event, _classes(RealtimeClientEvent))
    extras = sorted(path for path, _ in _extras(model))
    assert not extras, f"{event['type']}: unknown member {', '.join(extras)}"
    if event["type"] == "session.update":
        _check_ranges(event["session"], event["type"])
    if event["type"] == "response.create":
        _check_ranges(event.get("response") or {}, event["type"])
    assert len(event.get("event_id") or "") <= 512, f"{event['type']}: event_id over 512 characters"


def check_server_event(event: Json) -> None:
    """Raises AssertionError with a short text when the service would not send this event."""
    model = _check(event, _classes(RealtimeServerEvent))
    extras = sorted(path for path, allowed in _extras(model) if not allowed)
    assert not extras, f"{event['type']}: unknown member {', '.join(extras)}"
    if event["type"] in ("session.created", "session.updated"):
        _check_ranges(event["session"], event["type"])


def _check(event: Json, classes: Mapping[str, type[BaseModel]]) -> BaseModel:
    kind = str(event.get("type"))
    assert kind in classes, f"{kind}: no such event"
    try:
        return classes[kind].model_validate(event)
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(str(step) for step in each['loc'])}: {each['msg']}" for each in error.errors()[:4]
        )
        raise AssertionError(f"{kind}: {found}") from None


@cache
def _classes(union: Any) -> dict[str, type[BaseModel]]:
    """The class of each event by its `type`."""
    members = get_args(get_args(union)[0])
    return {get_args(member.model_fields["type"].annotation)[0]: member for member in members}


def _extras(value: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """Members that no class knows, and whether our notes say that the service has them all the same."""
    match value:
        case BaseModel():
            name = type(value).__name__
            for extra in value.model_extra or {}:
                allowed = _SESSION_EXTRAS if "Session" in name else _ITEM_EXTRAS if "Item" in name else ()
                yield f"{path}{extra}", extra in allowed
            for field in value.model_fields_set & type(value).model_fields.keys():
                yield from _extras(getattr(value, field), f"{path}{field}.")
        case list():
            for index, each in enumerate(value):
                yield from _extras(each, f"{path}{index}.")


def _check_ranges(body: Json, kind: str) -> None:
    """Values that the SDK's types take and the service does not (realtime.md 1.3)."""
    assert len(body.get("output_modalities") or ["audio"]) == 1, f"{kind}: both modalities at once"
    most = body.get("max_output_tokens")
    assert most in (None, "inf") or 1 <= most <= 4096, f"{kind}: max_output_tokens {most} not in 1..4096"
    audio = body.get("audio") or {}
    speed = (audio.get("output") or {}).get("speed") or 1.0
    assert 0.25 <= speed <= 1.5, f"{kind}: speed {speed} not in 0.25..1.5"
    detection = (audio.get("input") or {}).get("turn_detection") or {}
    threshold = detection.get("threshold") or 0.0
    assert 0 <= threshold <= 1, f"{kind}: threshold {threshold} not in 0..1"
    idle_ms = detection.get("idle_timeout_ms")
    assert idle_ms is None or 5000 <= idle_ms <= 30000, f"{kind}: idle_timeout_ms {idle_ms} not in 5000..30000"
    pairs = body.get("metadata") or {}
    assert len(pairs) <= 16, f"{kind}: metadata over 16 pairs"
