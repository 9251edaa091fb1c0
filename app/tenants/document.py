"""A TOML file with the line of each value, so that a mistake can be found in an editor.

The standard library's parser reports lines of syntax errors only. So this module parses with it, and then walks
through the text a second time for the line of each key. Refuses to know what the values mean.
"""

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.validation import KeyPath, Mistake, SettingsError


@dataclass(frozen=True, slots=True)
class Document:
    """What is in a file, and on which line."""

    file: str
    values: dict[str, Any]
    lines: Mapping[KeyPath, int]

    def located(self, mistakes: Iterable[Mistake]) -> list[Mistake]:
        """The mistakes with this file and their lines; what is not there has the line of what is around it."""
        return [replace(each, file=self.file, line=self._line(each.path)) for each in mistakes]

    def _line(self, path: KeyPath) -> int:
        around = (path[:length] for length in range(len(path), 0, -1))
        return next((self.lines[each] for each in around if each in self.lines), 1)


def read_document(path: Path) -> Document:
    """Read a TOML file. Raises SettingsError."""
    file = str(path)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise SettingsError([Mistake((), str(error.strerror), file=file)]) from None
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise SettingsError([Mistake((), "The text is not UTF-8", file=file, line=line)]) from None
    return parse_document(text, file)


def parse_document(text: str, file: str) -> Document:
    """As `read_document`, for a file's text."""
    try:
        return Document(file, tomllib.loads(text), key_lines(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([_syntax(str(error), text, file)]) from None
    except RecursionError:
        raise SettingsError([Mistake((), "Lists or tables are nested too deeply", file=file)]) from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise SettingsError([Mistake((), str(error), file=file)]) from None


_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _syntax(said: str, text: str, file: str) -> Mistake:
    at = _AT.search(said)
    if at is None:
        return Mistake((), said, file=file)
    why = said[: at.start()]
    if at[1] is None:
        line = 1 + text.rstrip().count("\n")
        return Mistake((), f"{why}, at the end of the file", file=file, line=line)
    return Mistake((), f"{why}, in column {at[2]}", file=file, line=int(at[1]))


# --- Lines --------------------------------------------------------------------------------------

# No possessive groups: before Python 3.11.5 they match too little when there is a choice in them.
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
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
