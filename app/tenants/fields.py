"""The fields that a tenant may set, each with what it may be: the one way to check a plan, wherever it comes from.

Refuses to know files, lines and tables.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields

from app.call.plan import BUSY, PAUSES, SORRY, Plan
from app.suggestions import close_to
from app.validation import (
    Field,
    Fields,
    Mistake,
    WrongValueError,
    choice,
    fields_by_name,
    list_of,
    one_of,
    read_table,
    switch,
)

MAX_CALL_LIMIT_S = 14_400
"""Four hours: a longer call is one that was forgotten. Backend sessions are shorter, and follow one another."""

TEXT_MAX_CHARS = 50_000
"""Of one field. No model follows a longer text, and it is sent at the start of each call."""

Value = str | bool | int | float | tuple[str, ...]

KINDS: tuple[str, ...] = tuple(field.name for field in fields(Plan) if field.name not in {"tenant", "tools"})
"""Every field that can be set, in the order of a plan."""


@dataclass(frozen=True, slots=True)
class Known:
    """The names that a tenant may refer to."""

    zones: Collection[str]
    backends: Collection[str]


def plan_fields(known: Known, names: Collection[str] = KINDS) -> Fields:
    """The declarations of the fields with these names."""
    declared = {
        **_FIELDS,
        "zone": _field("zone", _name_of(known.zones), choice(sorted(known.zones))),
        "backends": _field(
            "backends",
            list_of(_name_of(known.backends), unique=True),
            _listed(known.backends),
        ),
    }
    return {name: declared[name] for name in names}


def checked(
    table: Mapping[str, object], known: Known, names: Collection[str] = KINDS
) -> tuple[dict[str, Value], list[Mistake]]:
    """The good fields of a table, and what is wrong with the others. `names`: the fields that it may set."""
    mistakes: list[Mistake] = []
    values: dict[str, Value] = read_table((), table, plan_fields(known, names), mistakes)
    if not {each.path[0] for each in mistakes} & {"max_call_s", "max_call_warning_s"}:
        mistakes += _together(values)
    return values, mistakes


def _together(values: Mapping[str, Value]) -> list[Mistake]:
    """What is wrong with fields that are good each by itself."""
    longest_s, warning_s = (
        values.get(name, getattr(Plan(), name)) for name in ("max_call_s", "max_call_warning_s")
    )
    if warning_s <= longest_s:
        return []
    found = f"is {warning_s:g}" if "max_call_warning_s" in values else f"is left out, which means {warning_s:g}"
    return [Mistake(("max_call_warning_s",), found, f"a number from 0 to {longest_s:g}, which is max_call_s")]


# --- Values -------------------------------------------------------------------------------------


def _field(name: str, parse: Callable[[object], Value], expected: str) -> Field[Value]:
    return Field(name, parse, expected, getattr(Plan(), name))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise WrongValueError
    if len(value) > TEXT_MAX_CHARS:
        raise WrongValueError(expected=f"a text of {TEXT_MAX_CHARS} characters at most")
    return value


def _full_text(value: object) -> str:
    if not _text(value).strip():
        raise WrongValueError
    return _text(value)


def _whole(least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise WrongValueError
        return value

    return parse


def _seconds(least: int, most: int) -> Callable[[object], float]:
    def parse(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise WrongValueError
        return float(value)

    return parse


def _name_of(names: Collection[str]) -> Callable[[object], str]:
    """Read a name; one that is close to a known one is probably that one, misspelt."""

    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise WrongValueError
        if value not in names:
            raise WrongValueError(suggestion=close_to(value, sorted(names)))
        return value

    return parse


def _listed(names: Collection[str]) -> str:
    return f"a list of names, each {choice(sorted(names))}" if names else choice(names)


def number(value: object) -> str:
    """Read a phone number as Twilio writes it."""
    if not isinstance(value, str):
        raise WrongValueError(expected='a text in quotes, such as "+4930123456"')
    bare = re.sub(r"[\s()./-]", "", value)
    if re.fullmatch(r"\+[1-9]\d{4,14}", bare, re.ASCII) is None:
        raise WrongValueError(expected="a phone number with its country, such as +4930123456")
    if bare != value:
        raise WrongValueError(expected=f"written {bare}")
    return value


def _fallback_number(value: object) -> str:
    return value if value == "" else number(_text(value))


_A_TEXT = "a text that is not empty"
_FIELDS = fields_by_name(
    _field("language", _full_text, _A_TEXT),
    _field("instructions", _full_text, _A_TEXT),
    _field("greeting", _text, "a text"),
    _field("greeting_interruptible", switch, "true or false"),
    _field("voice", _full_text, _A_TEXT),
    _field("model", _full_text, _A_TEXT),
    _field("transcription_model", _full_text, _A_TEXT),
    _field("vad_silence_ms", _whole(100, 5_000), "a whole number from 100 to 5000"),
    _field("idle_prompt_s", _seconds(3, 600), "a number of seconds from 3 to 600"),
    _field("idle_prompts_max", _whole(0, 100), "a whole number from 0 to 100"),
    _field("max_call_s", _seconds(30, MAX_CALL_LIMIT_S), f"a number of seconds from 30 to {MAX_CALL_LIMIT_S}"),
    _field(
        "max_call_warning_s", _seconds(0, MAX_CALL_LIMIT_S), f"a number of seconds from 0 to {MAX_CALL_LIMIT_S}"
    ),
    _field("sorry", _full_text, _A_TEXT),
    _field("pause", one_of(PAUSES), choice(PAUSES)),
    _field("fallback_number", _fallback_number, "a phone number in quotes, or empty"),
    _field("max_calls", _whole(0, 100_000), "a whole number from 0 to 100000"),
    _field("max_calls_everywhere", _whole(0, 100_000), "a whole number from 0 to 100000"),
    _field("when_full", one_of((BUSY, SORRY)), choice((BUSY, SORRY))),
)


# --- Names --------------------------------------------------------------------------------------

NAME_MAX = 40
DEFAULT = "default"


def check_name(name: str) -> None:
    """Raise WrongValueError for a name that no tenant can have. Tickets and log lines have the name in them."""
    if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) is None or len(name) > NAME_MAX:
        raise WrongValueError(
            "is not the name of a tenant",
            expected=f"lower-case letters, digits and single dashes, {NAME_MAX} characters at most",
        )
    if name == DEFAULT:
        raise WrongValueError(
            "is the built-in tenant, which the file of NEARCALL_CONFIG sets", expected="another name"
        )
