"""Checks Voice Live events against the vendor's own types, and what the types leave open against our notes.

Used on every message that we send and that our simulator sends. The SDK chooses a class by `type` and then checks
nothing (realtime.md 7), so members, their types and enumerations are compared here with what its classes declare.
Where the service is known to differ from the SDK, our notes decide.
"""

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from azure.ai.voicelive import _unions, models
from azure.ai.voicelive.models import ClientEvent, ServerEvent

Json = Mapping[str, Any]

_MORE: Mapping[str, frozenset[str]] = {
    "ServerVad": frozenset({"speech_duration_ms"}),
    "TurnDetection": frozenset({"eagerness", "create_response", "interrupt_response", "auto_truncate"}),
    "AudioInputTranscriptionOptions": frozenset({"prompt"}),
    "ResponseCreateParams": frozenset({"max_response_output_tokens", "conversation"}),
}
"""Members that the service has and the class has not (realtime.md 2.2, 2.3)."""

_LESS: Mapping[str, frozenset[str]] = {
    "InputTokenDetails": frozenset({"image_tokens", "cached_tokens_details"}),
    "RequestAudioContentPart": frozenset({"audio"}),
    "ResponseFailedDetails": frozenset({"error"}),
}
"""Members that the class requires and the service leaves out (realtime.md 2.4)."""

_KINDS_WITHOUT_A_CLASS = frozenset({"semantic_vad"})
_VALUES_WITHOUT_A_NAME = frozenset({"mai-transcribe"})
_CHOSEN_BY: Mapping[str, str] = {"MessageItem": "role", "EouDetection": "model"}  # others by `type`


def check_client_event(event: Json) -> None:
    """Raises AssertionError with a short text when the service would not take this event."""
    _check(event, ClientEvent)
    if event["type"] == "session.update":
        _check_ranges(event["session"], event["type"])
    if event["type"] == "response.create":
        _check_ranges(event.get("response") or {}, event["type"])
    assert len(event.get("event_id") or "") <= 512, f"{event['type']}: event_id over 512 characters"


def check_server_event(event: Json) -> None:
    """Raises AssertionError with a short text when the service would not send this event."""
    _check(event, ServerEvent)
    assert event.get("event_id"), f"{event['type']}: no event_id"
    if event["type"] in ("session.created", "session.updated"):
        _check_ranges(event["session"], event["type"])


def _check(event: Json, base: Any) -> None:
    kind = str(event.get("type"))
    assert kind in base.__mapping__, f"{kind}: no such event"
    found = list(_complaints(base, event, ""))
    assert not found, f"{kind}: {'; '.join(found[:4])}"
    base._deserialize(dict(event), [])  # the vendor's client can read it


def _complaints(declared: Any, value: Any, path: str) -> Iterator[str]:
    """What is wrong with a value that is declared to be of this type."""
    origin, inner = get_origin(declared), get_args(declared)
    if declared is Any:
        return
    if origin is Union:
        yield from _complaints_of_union(inner, value, path)
    elif origin is Literal or (isinstance(declared, type) and issubclass(declared, Enum)):
        known = inner or [each.value for each in declared]
        if value not in known and value not in _VALUES_WITHOUT_A_NAME:
            yield f"{path}: {value!r} is none of {', '.join(map(str, known))}"
    elif origin is list and isinstance(value, list):
        for index, each in enumerate(value):
            yield from _complaints(inner[0], each, f"{path}.{index}")
    elif origin is dict and isinstance(value, Mapping):
        for name, each in value.items():
            yield from _complaints(inner[1], each, f"{path}.{name}")
    elif _is_model(declared) and isinstance(value, Mapping):
        yield from _complaints_of_object(declared, value, path)
    elif not _is_plain(declared, value):
        yield f"{path}: {value!r} is no {getattr(declared, '__name__', declared)}"


def _complaints_of_union(members: tuple[Any, ...], value: Any, path: str) -> Iterator[str]:
    """Those of the member that the value comes nearest to."""
    if value is None and NoneType in members:
        return
    if any(get_origin(each) is Literal or _is_enumeration(each) for each in members):
        members = tuple(each for each in members if each is not str)  # that stands for values to come
    objects = tuple(each for each in members if _is_model(each))
    if isinstance(value, Mapping) and objects:
        members = objects
    yield from min((list(_complaints(each, value, path)) for each in members if each is not NoneType), key=len)


def _complaints_of_object(declared: Any, value: Json, path: str) -> Iterator[str]:
    chosen = _chosen(declared, value)
    if chosen is None:
        yield f"{path}: no such {declared.__name__}: {value.get('type')!r}"
        return
    name, members = chosen.__name__, _members(chosen)
    for each in sorted(value.keys() - members.keys() - _MORE.get(name, frozenset())):
        yield f"unknown member {path}.{each}".replace(" .", " ")
    for each, kind in members.items():
        if each in value:
            yield from _complaints(kind, value[each], f"{path}.{each}".removeprefix("."))
        elif NoneType not in get_args(kind) and each not in _LESS.get(name, frozenset()):
            yield f"missing member {path}.{each}".replace(" .", " ")


def _chosen(declared: Any, value: Json) -> Any:
    """The class that the SDK makes of an object; None when it has none for it."""
    while mapping := vars(declared).get("__mapping__"):
        kind = value.get(_CHOSEN_BY.get(declared.__name__, "type"))
        if kind in _KINDS_WITHOUT_A_CLASS:
            return declared
        if kind not in mapping:
            return None
        declared = mapping[kind]
    return declared


@cache
def _members(declared: Any) -> dict[str, Any]:
    """Each member's declared type, by its name on the wire."""
    declared.__new__(declared)  # the SDK collects its fields with the first instance
    hints = get_type_hints(declared, localns={"_models": models, "_unions": _unions})
    return {field._rest_name: hints[name] for name, field in declared._attr_to_rest_field.items()}


def _is_model(declared: Any) -> bool:
    return hasattr(declared, "_deserialize")


def _is_enumeration(declared: Any) -> bool:
    return isinstance(declared, type) and issubclass(declared, Enum)


def _is_plain(declared: Any, value: Any) -> bool:
    if declared is datetime:
        return isinstance(value, int)  # seconds since 1970
    if declared is bytes:
        return isinstance(value, str) and _is_base64(value)
    if declared is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if declared is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(declared, type) and isinstance(value, declared)


def _is_base64(value: str) -> bool:
    try:
        b64decode(value, validate=True)
    except binascii.Error:
        return False
    return True


def _check_ranges(body: Json, kind: str) -> None:
    """Values that the SDK's types take and the service does not (realtime.md 2.2)."""
    assert sorted(body.get("modalities") or ["text"]) in (["text"], ["audio", "text"]), f"{kind}: audio alone"
    for name in ("max_response_output_tokens", "max_output_tokens"):
        most = body.get(name)
        assert most in (None, "inf") or 1 <= most <= 4096, f"{kind}: {name} {most} not in 1..4096"
    temperature = body.get("temperature") or 0.8
    assert 0.6 <= temperature <= 1.2, f"{kind}: temperature {temperature} not in 0.6..1.2"
    threshold = (body.get("turn_detection") or {}).get("threshold") or 0.0
    assert 0 <= threshold <= 1, f"{kind}: threshold {threshold} not in 0..1"
    rate = body.get("input_audio_sampling_rate")
    rates = (8000,) if str(body.get("input_audio_format")).startswith("g711") else (8000, 16000, 24000)
    assert rate is None or rate in rates, f"{kind}: input_audio_sampling_rate {rate} not in {rates}"
    assert len(body.get("metadata") or {}) <= 16, f"{kind}: metadata over 16 pairs"
