"""Settings are declared and checked here, in the same way for a TOML table and for the environment.

A `Field` declares one setting: its name, how it is read, what it should be, its default. A `Mistake` is one thing
that is wrong, with its place. Readers collect mistakes and go on, so that all of them are reported at once.
Refuses to know which settings there are, and how a file is read.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from app.suggestions import LISTED_MAX, close_to

T = TypeVar("T")

KeyPath = tuple[str | int, ...]
"""Where a value is: names of tables and keys, places in lists."""

REQUIRED: Any = object()
"""The default of a field that must be set."""
OPTIONAL: Any = object()
"""The default of a field that may be left out of a table, which is then read without it."""

SHOWN_MAX_CHARS = 60
"""A longer text would hide what is said about it."""


# --- Mistakes -----------------------------------------------------------------------------------


MISSING = "is missing"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong with the settings."""

    path: KeyPath
    """From the outermost table to the value; of a variable its name alone; empty: a file as a whole."""
    found: str
    """What is there, as the rest of a sentence: `is missing`, `is "mars"`."""
    expected: str = ""
    """What it should be. Empty: `found` and `advice` say enough."""
    suggestion: str = ""
    """The name that was probably meant."""
    advice: str = ""
    """What to do, in sentences of its own."""
    file: str = ""
    """Empty: the mistake is in the environment."""
    line: int | None = None
    """From 1; None: in the file as a whole."""
    variable: str = ""
    """The variable that names the file."""

    @property
    def field(self) -> str:
        """The dotted name of the field."""
        return ".".join(spelt_key(each) for each in self.path if isinstance(each, str))

    @property
    def sentence(self) -> str:
        """What is wrong, without the file and the line."""
        sentences = [f"{self.field} {self.found}.".lstrip()]
        if self.expected:
            sentences.append(f"It should be {self.expected}.")
        if self.suggestion:
            sentences.append(f"Did you mean {self.suggestion}?")
        if self.advice:
            sentences.append(self.advice)
        return " ".join(sentences)

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(filter(None, (self.variable, where, self.sentence)))


class SettingsError(ValueError):
    """Settings cannot be used. `mistakes` has everything that is wrong, those of a file from its top."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = in_order(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


def in_order(mistakes: Iterable[Mistake]) -> tuple[Mistake, ...]:
    """Each mistake once, those of a file together and from its top."""
    every = list(dict.fromkeys(mistakes))
    files = list(dict.fromkeys(each.file for each in every))
    return tuple(sorted(every, key=lambda each: (files.index(each.file), each.line or 0)))


def refuse(mistakes: Sequence[Mistake]) -> None:
    """Raise SettingsError if there are any mistakes."""
    if mistakes:
        raise SettingsError(mistakes)


def unknown(path: KeyPath, names: Iterable[str], what: str = "field") -> Mistake:
    """The mistake of a name that nothing has."""
    known = list(names)
    close = close_to(str(path[-1]), known)
    listed = "" if close or not 0 < len(known) <= LISTED_MAX else choice(known)
    return Mistake(path, f"is not a known {what}", expected=listed, suggestion=close)


def choice(names: Iterable[str]) -> str:
    """What one of several names should be, in words."""
    there = list(names)
    match len(there):
        case 0:
            return "left out, because none is known"
        case 1:
            return there[0]
    return f"one of {', '.join(there)}"


# --- Values -------------------------------------------------------------------------------------


class WrongValueError(ValueError):
    """A value cannot be used. `str()` says why, if what it should be does not, and never repeats a secret."""

    def __init__(
        self, why: str = "", *, expected: str | None = None, suggestion: str = "", at: KeyPath = ()
    ) -> None:
        super().__init__(why)
        self.expected = expected
        """In place of what the field says."""
        self.suggestion = suggestion
        self.at = at
        """Where in the value, if it is a list."""


class PlaceholderError(WrongValueError):
    """A value is the documentation's, which nobody has replaced with one of their own."""


class WrongElementsError(ValueError):
    """Several elements of a list cannot be used."""

    def __init__(self, errors: Sequence[WrongValueError]) -> None:
        super().__init__()
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Field(Generic[T]):
    """The declaration of one setting."""

    name: str
    """A key of a TOML table, or an environment variable."""
    parse: Callable[[Any], T]
    """Takes the text or the TOML value. Raises WrongValueError or WrongElementsError."""
    expected: str
    """What it should be, in words: the end of `It should be ...`."""
    default: T = REQUIRED
    hidden: bool = False
    """The value may be a secret: no mistake repeats it."""


Fields = Mapping[str, Field[Any]]


def fields_by_name(*fields: Field[Any]) -> Fields:
    """The fields of a table."""
    return MappingProxyType({field.name: field for field in fields})


def read_value(field: Field[T], value: object, path: KeyPath, mistakes: list[Mistake]) -> tuple[T, ...]:
    """The value of a field, alone in a tuple; nothing, and more mistakes, if it is wrong."""
    try:
        return (field.parse(value),)
    except WrongValueError as error:
        mistakes.append(_wrong(field, value, path, error))
    except WrongElementsError as several:
        mistakes += [_wrong(field, value, path, error) for error in several.errors]
    return ()


def _wrong(field: Field[T], value: Any, path: KeyPath, error: WrongValueError) -> Mistake:
    expected = field.expected if error.expected is None else error.expected
    return Mistake((*path, *error.at), _found(field, value, error), expected, error.suggestion)


def _found(field: Field[T], value: Any, error: WrongValueError) -> str:
    if isinstance(error, PlaceholderError):
        return "still has the placeholder of the documentation"
    why = str(error)
    if field.hidden:
        return f"is malformed ({why})" if why else "is malformed"
    for place in error.at:
        value = value[place]
    found = f"{'contains' if error.at else 'is'} {shown(value)}"
    return f"{found}, {why}" if why else found


def shown(value: object) -> str:
    """A value as an error shows it: short, and on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return spelt_text(value) if len(value) <= SHOWN_MAX_CHARS else f"a text of {len(value)} characters"
        case int() | float():
            digits = repr(value)
            return digits if len(digits) <= SHOWN_MAX_CHARS else f"a number of {len(digits)} digits"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case dict():
            return "a table"
        case None:
            return "null"
        case _:
            return "a date or time"


# --- A TOML table -------------------------------------------------------------------------------


def read_table(
    path: KeyPath, table: object, fields: Fields, mistakes: list[Mistake], *, partial: bool = False
) -> dict[str, Any]:
    """The good values of the table at `path`. Adds a mistake for all that is unknown, missing or wrong.

    `partial`: the table changes something that is there, so nothing is missing.
    """
    if not isinstance(table, dict):
        spelt = ".".join(spelt_key(each) for each in path if isinstance(each, str))
        mistakes.append(Mistake(path, f"is {shown(table)}", f"a table, [{spelt}]"))
        return {}
    if not partial:
        mistakes += [
            Mistake((*path, field.name), MISSING, field.expected)
            for field in fields.values()
            if field.default is REQUIRED and field.name not in table
        ]
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in fields:
            mistakes.append(unknown((*path, name), fields))
        else:
            for good in read_value(fields[name], value, (*path, name), mistakes):
                values[name] = good
    return values


def read_each(tables: Mapping[str, Any], read: Callable[[str, Any], T], mistakes: list[Mistake]) -> dict[str, T]:
    """The good ones of several tables, by name. `read` raises SettingsError."""
    found: dict[str, T] = {}
    for name, table in tables.items():
        try:
            found[name] = read(name, table)
        except SettingsError as error:
            mistakes += error.mistakes
    return found


# --- The environment ----------------------------------------------------------------------------


class Variables:
    """Reads declared variables from an environment and collects mistakes. No mistake repeats a value."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._asked: set[str] = set()
        self.mistakes: list[Mistake] = []

    def text(self, name: str) -> str:
        """What the variable has; an empty one is a missing one."""
        self._asked.add(name)
        return self._environ.get(name, "").strip()

    def is_set(self, *names: str) -> bool:
        """True if any of the variables has a value."""
        self._asked.update(names)
        return any(self.text(name) for name in names)

    def take(self, field: Field[T]) -> T:
        """The value of a variable, or its default.

        After a mistake the result is None: callers raise SettingsError before anybody uses it.
        """
        text = self.text(field.name)
        if not text:
            if field.default is REQUIRED:
                self.add_missing(field)
            return None if field.default is REQUIRED else field.default  # type: ignore[return-value]  # see above
        hidden: Field[T] = replace(field, parse=lambda text: _without_placeholder(field, text), hidden=True)
        for value in read_value(hidden, text, (field.name,), self.mistakes):
            return value
        return None  # type: ignore[return-value]  # see above

    def add_missing(self, field: Field[Any]) -> None:
        """Add the mistake that a variable is missing."""
        self.mistakes.append(Mistake((field.name,), MISSING, field.expected))

    def add(self, name: str, found: str, advice: str = "") -> None:
        """Add a mistake about a variable."""
        self.mistakes.append(Mistake((name,), found, advice=advice))

    def suggest(self) -> None:
        """Name, for each missing variable, the misspelt one that is there instead.

        Call it last: a variable that was asked for is no misspelt one.
        """
        others = [name for name in self._environ if name not in self._asked]
        self.mistakes = [
            replace(each, advice=f"{close} is set, which looks like a misspelling of it.") if close else each
            for each in self.mistakes
            for close in [close_to(each.field, others, MISSPELT) if each.found == MISSING else ""]
        ]


MISSPELT = 0.9
"""How similar two variables are of which one is probably the other, misspelt: one or two letters of fifteen."""


def _without_placeholder(field: Field[T], text: str) -> T:
    """Refuse what the README shows in the place of a value: `...`, `sk-...`, `<your key>`."""
    refuse_placeholder(text)
    return field.parse(text)


def refuse_placeholder(text: str) -> None:
    """Raise PlaceholderError for a text that stands in the documentation for something else."""
    if "..." in text or "…" in text or (text.startswith("<") and text.endswith(">")):
        raise PlaceholderError


# --- Parsers ------------------------------------------------------------------------------------


def switch(value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise WrongValueError
    return value


def matching(pattern: re.Pattern[str]) -> Callable[[object], str]:
    """Read a text of a certain form."""

    def parse(value: object) -> str:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise WrongValueError
        return value

    return parse


def one_of(names: Collection[str]) -> Callable[[object], str]:
    """Read one of several names."""

    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise WrongValueError
        if value not in names:
            raise WrongValueError(suggestion=close_to(value, names))
        return value

    return parse


def list_of(
    item: Callable[[object], T], *, empty: bool = True, unique: bool = False
) -> Callable[[object], tuple[T, ...]]:
    """Read a list. `empty`: it may have nothing in it. `unique`: an element may not be there twice."""

    def parse(value: object) -> tuple[T, ...]:
        if not isinstance(value, list | tuple) or not (value or empty):
            raise WrongValueError
        good: list[T] = []
        errors: list[WrongValueError] = []
        for place, each in enumerate(value):
            try:
                read = item(each)
                if unique and read in good:
                    raise WrongValueError("twice", expected="")  # noqa: TRY301  an element's mistakes are kept in one place
            except WrongValueError as error:
                error.at = (place, *error.at)
                errors.append(error)
            else:
                good.append(read)
        if errors:
            raise WrongElementsError(errors)
        return tuple(good)

    return parse


# --- Spelling -----------------------------------------------------------------------------------

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def spelt_key(name: str) -> str:
    """A key as TOML spells it: quoted unless it is a plain word."""
    return name if _BARE_KEY.fullmatch(name) else spelt_text(name)


def spelt_text(text: str) -> str:
    """A text as TOML spells it, on one line."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    # A terminal obeys some control codes, and TOML takes none of them as they are.
    return f"\\u{ord(char):04x}" if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 else char


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
