"""A TOML file whose values know their lines, so that what is wrong with one can be found in an editor.

The standard library's parser tells lines of syntax errors only. So it parses, and the file is walked a second time
here for the line of each key. Refuses to know what the values mean.
"""

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KeyPath = tuple[str | int, ...]
"""Where a value is: names of tables and keys, places in lists."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in a file, and where."""

    file: str
    line: int | None
    """From 1; None: in the file as a whole."""
    field: str
    """Dotted; empty when it is in no field."""
    why: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(filter(None, (where, self.field, self.why)))


class DocumentError(Exception):
    """A file cannot be used. `problems` has all that is wrong with it, from its beginning to its end."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Document:
    """What is in a file, and on which line."""

    file: str
    values: dict[str, Any]
    lines: Mapping[KeyPath, int]

    def problem(self, path: KeyPath, why: str) -> Problem:
        """Name the line of a value; of what is not there, that of the nearest thing around it."""
        around = (path[:length] for length in range(len(path), 0, -1))
        line = next((self.lines[each] for each in around if each in self.lines), 1)
        names = [spelt_key(each) for each in path if isinstance(each, str)]
        return Problem(self.file, line, ".".join(names), why)


def read_document(path: Path) -> Document:
    """Read a TOML file. Raises DocumentError."""
    file = str(path)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise DocumentError([Problem(file, None, "", str(error.strerror))]) from None
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise DocumentError([Problem(file, line, "", "is not UTF-8")]) from None
    return parse_document(text, file)


def parse_document(text: str, file: str) -> Document:
    """As `read_document`, for a file's text."""
    try:
        return Document(file, tomllib.loads(text), key_lines(text))
    except tomllib.TOMLDecodeError as error:
        raise DocumentError([_syntax(str(error), text, file)]) from None
    except RecursionError:
        raise DocumentError([Problem(file, None, "", "has lists or tables nested too deeply")]) from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise DocumentError([Problem(file, None, "", str(error))]) from None


_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _syntax(said: str, text: str, file: str) -> Problem:
    at = _AT.search(said)
    if at is None:
        return Problem(file, None, "", said)
    if at[1] is None:
        return Problem(file, 1 + text.rstrip().count("\n"), "", f"{said[: at.start()]}, at the end of the file")
    return Problem(file, int(at[1]), "", f"{said[: at.start()]}, in column {at[2]}")


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


# --- Lines --------------------------------------------------------------------------------------

# No possessive groups: before Python 3.11.5 they match too little when there is a choice in them.
_BLANK = re.compile(r"[ \t]*")
_BETWEEN = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}#\n]+")
_STRING = re.compile(
    r'''"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'''
    r"""|'''(?:[^']|'{1,2}(?!'))*'{3,5}"""
    r'''|"(?:[^"\\]|\\.)*"'''
    r"""|'[^']*'""",
    re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line of every key, table and list element of a text that tomllib has found good."""
    return _Walk(text.replace("\r\n", "\n")).document()


class _Walk:
    """Goes through a text once. Each method takes a place in it and returns the place after what it read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[KeyPath, int] = {}
        self._elements: dict[KeyPath, int] = {}
        """How many tables of an array of tables ([[name]]) there have been."""

    def document(self) -> dict[KeyPath, int]:
        at, table = self._skip(_BETWEEN, 0), KeyPath()
        while at < len(self._text):
            if self._text[at] == "[":
                at, table = self._header(at)
            else:
                at = self._pair(at, table)
            at = self._skip(_BETWEEN, at)
        return self._lines

    def _header(self, start: int) -> tuple[int, KeyPath]:
        brackets = 2 if self._text.startswith("[[", start) else 1
        at, names = self._key(start + brackets)
        path = KeyPath()
        for place, name in enumerate(names, 1):
            path = (*path, name)
            if brackets == 2 and place == len(names):
                self._elements[path] = self._elements.get(path, 0) + 1
            self._note(path, start)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
                self._note(path, start)
        return at + brackets, path

    def _pair(self, start: int, table: KeyPath) -> int:
        at, names = self._key(start)
        path = table
        for name in names:
            path = (*path, name)
            self._note(path, start)
        return self._value(self._skip(_BLANK, at + 1), path)  # 1: the equals sign

    def _key(self, start: int) -> tuple[int, list[str]]:
        """A dotted key, and the blanks after it."""
        names: list[str] = []
        at = start
        while True:
            at = self._skip(_BLANK, at)
            end = self._skip(_BARE_KEY if self._text[at] not in "\"'" else _STRING, at)
            # Whatever it is quoted by, tomllib reads it.
            names.extend(tomllib.loads(f"{self._text[at:end]}=0"))
            at = self._skip(_BLANK, end)
            if self._text[at] != ".":
                return at, names
            at += 1

    def _value(self, at: int, path: KeyPath) -> int:
        match self._text[at]:
            case "[":
                return self._list(at, path)
            case "{":
                return self._inline_table(at, path)
            case '"' | "'":
                return self._skip(_STRING, at)
            case _:
                return self._skip(_SCALAR, at)

    def _list(self, at: int, path: KeyPath) -> int:
        at, place = self._skip(_BETWEEN, at + 1), 0
        while self._text[at] != "]":
            self._note((*path, place), at)
            at, place = self._after_comma(self._value(at, (*path, place))), place + 1
        return at + 1

    def _inline_table(self, at: int, path: KeyPath) -> int:
        at = self._skip(_BETWEEN, at + 1)
        while self._text[at] != "}":
            at = self._after_comma(self._pair(at, path))
        return at + 1

    def _after_comma(self, at: int) -> int:
        at = self._skip(_BETWEEN, at)
        return self._skip(_BETWEEN, at + 1) if self._text[at] == "," else at

    def _skip(self, what: re.Pattern[str], at: int) -> int:
        found = what.match(self._text, at)
        assert found is not None, f"nothing like {what.pattern} at {at}"
        return found.end()

    def _note(self, path: KeyPath, at: int) -> None:
        # The first time: of a table that is opened again ([a.b], later [a.c]) the beginning is what one looks for.
        self._lines.setdefault(path, 1 + bisect_right(self._ends, at - 1))
