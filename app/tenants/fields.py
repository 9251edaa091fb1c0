"""What a tenant may set, and what each field may be: the one way to check a plan, wherever it comes from.

Every fault is found, not only the first. Refuses to know files, lines and tables.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from app.call.plan import Plan
from app.suggestions import instead

MAX_CALL_LIMIT_S = 3_500
"""A backend session ends at 60 minutes (realtime.md 1.2)."""

TEXT_MAX_CHARS = 50_000
"""Of one field. No model follows as much, and it is sent at the start of each call."""

Value = str | bool | int | float | tuple[str, ...]

KINDS: Mapping[str, type] = MappingProxyType(
    {field.name: type(field.default) for field in fields(Plan) if field.name not in {"tenant", "tools"}}
)
"""Every field that can be set, and its type."""

_KIND_WORDS: Mapping[type, str] = MappingProxyType(
    {
        str: "a text",
        bool: "true or false",
        int: "a whole number",
        float: "a number of seconds",
        tuple: "a list of texts",
    }
)
_BOUNDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "vad_silence_ms": (100, 5_000),
        "idle_prompt_s": (3, 600),
        "idle_prompts_max": (0, 100),
        "max_call_s": (30, MAX_CALL_LIMIT_S),
        "max_call_warning_s": (0, MAX_CALL_LIMIT_S),
        "max_calls": (0, 100_000),
    }
)
_NEVER_EMPTY = frozenset({"language", "instructions", "voice", "model", "transcription_model", "sorry"})


@dataclass(frozen=True, slots=True)
class Known:
    """What a tenant may refer to by name."""

    zones: Collection[str]
    backends: Collection[str]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one field."""

    field: str
    why: str


def checked(
    table: Mapping[str, object], known: Known, names: Collection[str] = KINDS
) -> tuple[dict[str, Value], list[Fault]]:
    """The fields of a table that are in order, and what is wrong with the others. `names`: what it may set."""
    values: dict[str, Value] = {}
    faults: list[Fault] = []
    for name, value in table.items():
        try:
            values[name] = _value(name, value, known, names)
        except ValueError as error:
            faults.append(Fault(name, str(error)))
    if not {fault.field for fault in faults} & {"max_call_s", "max_call_warning_s"}:
        faults += _together(values)
    return values, faults


def _value(name: str, value: object, known: Known, names: Collection[str]) -> Value:
    """The value as a plan has it. Raises ValueError."""
    if name not in names:
        raise ValueError(f"there is no such field{instead(name, names)}")
    kind = KINDS[name]
    if kind is tuple:
        return _backends(value, known.backends)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"should be {_KIND_WORDS[kind]}")
    if isinstance(value, str):
        return _text(name, value, known.zones)
    assert isinstance(value, bool | int | float)
    if name in _BOUNDS:
        least, most = _BOUNDS[name]
        if not least <= value <= most:
            raise ValueError(f"should be from {least} to {most}")
    return float(value) if kind is float else value


def _text(name: str, value: str, zones: Collection[str]) -> str:
    if len(value) > TEXT_MAX_CHARS:
        raise ValueError(f"should have {TEXT_MAX_CHARS} characters at most, and has {len(value)}")
    if name in _NEVER_EMPTY and not value.strip():
        raise ValueError("should not be empty")
    if name == "zone" and value not in zones:
        raise ValueError(f"there is no zone {value!r}{instead(value, sorted(zones))}")
    if name == "fallback_number" and value:
        check_number(value)
    return value


def _backends(value: object, backends: Collection[str]) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"should be {_KIND_WORDS[tuple]}")
    names = tuple(value)
    if len(set(names)) < len(names):
        raise ValueError("names a backend twice")
    for name in names:
        if name not in backends:
            raise ValueError(f"there is no backend {name!r}{instead(name, sorted(backends))}")
    return names


def _together(values: Mapping[str, Value]) -> list[Fault]:
    """What is wrong with fields that are in order each by itself."""
    longest_s, warning_s = (
        values.get(name, getattr(Plan(), name)) for name in ("max_call_s", "max_call_warning_s")
    )
    if warning_s <= longest_s:
        return []
    unset = "" if "max_call_warning_s" in values else f"; left out, it is {warning_s:g}"
    return [Fault("max_call_warning_s", f"should be from 0 to {longest_s:g}, which is max_call_s{unset}")]


def check_number(text: str) -> None:
    """Raises ValueError for what is no phone number as Twilio spells it."""
    bare = re.sub(r"[\s()./-]", "", text)
    if re.fullmatch(r"\+[1-9]\d{4,14}", bare, re.ASCII) is None:
        raise ValueError(f"{text!r} should be a number with its country, such as +4930123456")
    if bare != text:
        raise ValueError(f"{text!r} should be written {bare}")


NAME_MAX = 40
DEFAULT = "default"


def check_name(name: str) -> None:
    """Raises ValueError for a name that no tenant can have: it travels in tickets and log lines."""
    if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) is None or len(name) > NAME_MAX:
        raise ValueError(f"a name should be lower-case letters, digits and single dashes, {NAME_MAX} at most")
    if name == DEFAULT:
        raise ValueError("this name is the built-in tenant's, which NEARCALL_CONFIG sets: choose another one")
