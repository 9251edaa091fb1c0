"""Checks the client's events strictly: a checker for each shape, and the Refusal for a wrong one.

The real service refuses unknown fields (realtime.md 1.9, 1.11), so beta fields and misspelt names must fail here
too. The texts of refusals follow the service's style; only those quoted in realtime.md 1.9 are known exactly.
"""

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], None]
"""Looks at a value found at a dotted path; returns, or raises Refusal."""


class Refusal(Exception):  # noqa: N818 - not a fault of ours: it is the answer the client gets
    """The content of an `error` event: the client's request is refused and changes nothing."""

    def __init__(
        self, code: str | None, message: str, param: str | None = None, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind


def invalid_value(message: str, param: str | None = None) -> Refusal:
    return Refusal("invalid_value", message, param)


def invalid_type(path: str, wanted: str, found: Any) -> Refusal:
    message = f"Invalid type for '{path}': expected {wanted}, but got {_name_of(found)} instead."
    return Refusal("invalid_type", message, path)


def fields(required: Mapping[str, Check] | None = None, optional: Mapping[str, Check] | None = None) -> Check:
    """An object with these fields and no others."""
    must = required or {}
    known = {**must, **(optional or {})}

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise invalid_type(path, "an object", value)
        for name in must:
            if name not in value:
                full = _join(path, name)
                raise Refusal("missing_required_parameter", f"Missing required parameter: '{full}'.", full)
        for name, inner in value.items():
            full = _join(path, name)
            if name not in known:
                raise Refusal("unknown_parameter", f"Unknown parameter: '{full}'.", full)
            known[name](inner, full)

    return check


def chosen_by(key: str, shapes: Mapping[str, Check]) -> Check:
    """An object whose field `key` says which of the shapes it has."""
    choice = literal(*shapes)

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise invalid_type(path, "an object", value)
        full = _join(path, key)
        if key not in value:
            raise Refusal("missing_required_parameter", f"Missing required parameter: '{full}'.", full)
        choice(value[key], full)
        shapes[value[key]](value, path)

    return check


def literal(*values: str) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or value not in values:
            supported = ", ".join(f"'{each}'" for each in values)
            raise invalid_value(f"Invalid value: '{value}'. Supported values are: {supported}.", path)

    return check


def text(longest: int | None = None) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, str):
            raise invalid_type(path, "a string", value)
        if longest is not None and len(value) > longest:
            message = f"Invalid '{path}': string too long. Expected at most {longest} characters."
            raise Refusal("string_above_max_length", message, path)

    return check


def boolean(value: Any, path: str) -> None:
    if not isinstance(value, bool):
        raise invalid_type(path, "a boolean", value)


def integer(least: int | None = None, most: int | None = None) -> Check:
    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid_type(path, "an integer", value)
        _in_range("integer", value, path, least, most)

    return check


def number(least: float | None = None, most: float | None = None) -> Check:
    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid_type(path, "a decimal", value)
        _in_range("decimal", value, path, least, most)

    return check


def nullable(inner: Check) -> Check:
    def check(value: Any, path: str) -> None:
        if value is not None:
            inner(value, path)

    return check


def list_of(inner: Check) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise invalid_type(path, "an array", value)
        for index, each in enumerate(value):
            inner(each, f"{path}[{index}]")

    return check


def either(of_string: Check, otherwise: Check) -> Check:
    """One shape when the value is a string, another when it is not."""

    def check(value: Any, path: str) -> None:
        (of_string if isinstance(value, str) else otherwise)(value, path)

    return check


def mapping(value: Any, path: str) -> None:
    """Accepts any object, since its content is the client's own (JSON Schema, prompt variables)."""
    if not isinstance(value, dict):
        raise invalid_type(path, "an object", value)


def anything(value: Any, path: str) -> None:
    """Accepts any value."""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _in_range(kind: str, value: float, path: str, least: float | None, most: float | None) -> None:
    if least is not None and value < least:
        message = (
            f"Invalid '{path}': {kind} below minimum value. Expected a value >= {least}, but got {value} instead."
        )
        raise Refusal(f"{kind}_below_min_value", message, path)
    if most is not None and value > most:
        message = (
            f"Invalid '{path}': {kind} above maximum value. Expected a value <= {most}, but got {value} instead."
        )
        raise Refusal(f"{kind}_above_max_value", message, path)


def _name_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
