"""TOML documents of every shape, with the line on which each value was written."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from app.validation import KeyPath, spelt_text

TEXTS = st.text(
    st.one_of(st.sampled_from("'\"\\\n#=[]{},. \tab-1\x00\x7fé☎"), st.characters(codec="utf-8")), max_size=12
)
KEYS = st.one_of(st.sampled_from(["a", "b", "tenants", "acme", "1-2", "", "a.b", 'q"', "ü", "x\ny", "#"]), TEXTS)
SCALARS = st.one_of(
    TEXTS, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=5)


@dataclass
class Written:
    """A document as some human might have written it."""

    data: st.DataObject
    text: str = ""
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def table(self, path: KeyPath, table: dict[str, Any], dotted: tuple[str, ...] = ()) -> None:
        """The pairs of a table, then the tables below it that have headers of their own."""
        later: list[tuple[str, Any]] = []
        for key, value in table.items():
            style = self._choice(*self._styles(value, headers=not dotted))
            if style == "header":
                later.append((key, value))
            elif style == "dotted":
                self.table((*path, key), value, (*dotted, key))
            else:
                self._pair(path, key, value, dotted)
        for key, value in later:
            for place, each in enumerate(value if isinstance(value, list) else [value]):
                self._headed((*path, key), each, place if isinstance(value, list) else None)

    def _styles(self, value: Any, *, headers: bool) -> list[str]:
        if isinstance(value, dict) and value:
            return ["dotted", "inline", *(["header"] if headers else [])]
        tables = isinstance(value, dict) or (
            isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
        )
        return ["inline", "header"] if tables and headers else ["inline"]

    def _headed(self, path: KeyPath, table: dict[str, Any], place: int | None) -> None:
        self._gap()
        here = path if place is None else (*path, place)
        self._note_all(here)
        names = self._blank() + (self._blank() + "." + self._blank()).join(
            self._key(name) for name in here if isinstance(name, str)
        )
        self.text += f"[{names}{self._blank()}]" if place is None else f"[[{names}]]"
        self._end()
        self.table(here, table)

    def _pair(self, path: KeyPath, key: str, value: Any, dotted: tuple[str, ...]) -> None:
        self._gap()
        self._key_and_value(path, key, value, dotted)
        self._end()

    def _key_and_value(self, path: KeyPath, key: str, value: Any, dotted: tuple[str, ...] = ()) -> None:
        self._note_all((*path, key))
        keys = (self._blank() + "." + self._blank()).join(map(self._key, (*dotted, key)))
        self.text += keys + self._blank() + "=" + self._blank()
        self._value((*path, key), value)

    def _value(self, path: KeyPath, value: Any) -> None:
        match value:
            case bool():
                self.text += str(value).lower()
            case str():
                self.text += self._string(value)
            case dict():
                self.text += "{" + self._blank()
                for place, (key, each) in enumerate(value.items()):
                    self.text += "," + self._blank() if place else ""
                    self._key_and_value(path, key, each)
                self.text += self._blank() + "}"
            case list():
                self.text += "["
                for place, each in enumerate(value):
                    self._gap()
                    self._note_all((*path, place))
                    self._value((*path, place), each)
                    self._gap()
                    self.text += "," if place < len(value) - 1 else self._choice("", ",")
                self._gap()
                self.text += "]"
            case _:
                self.text += repr(value)

    def _string(self, text: str) -> str:
        spellings = [spelt_text(text)]
        if all(char.isprintable() or char == "\t" for char in text) and "'" not in text:
            spellings.append(f"'{text}'")
        if all(char.isprintable() or char in "\t\n" for char in text):
            escaped = text.replace("\\", "\\\\").replace('"""', '""\\"')
            spellings.append(f'"""\n{escaped}"""')
            if "'''" not in text:
                spellings.append(f"'''\n{text}'''")
        return self._choice(*spellings)

    def _key(self, name: str) -> str:
        spellings = [spelt_text(name)]
        if name and all(char.isascii() and (char.isalnum() or char in "-_") for char in name):
            spellings.append(name)
        if "'" not in name and name.isprintable():
            spellings.append(f"'{name}'")
        return self._choice(*spellings)

    def _note_all(self, path: KeyPath) -> None:
        line = 1 + self.text.count("\n")
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def _blank(self) -> str:
        return self._choice("", " ", "\t ")

    def _gap(self) -> None:
        self.text += self._choice("", "\n", "  ", '# a = "b\n', "#]} '''\n\t")

    def _end(self) -> None:
        self.text += self._choice("\n", " # it's\n", "\n\n")

    def _choice(self, *options: str) -> str:
        return self.data.draw(st.sampled_from(options)) if len(options) > 1 else options[0]
