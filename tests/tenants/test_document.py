"""Every value of a TOML file knows its line, however the file is written."""

import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tenants.document import (
    Document,
    key_lines,
    parse_document,
    read_document,
)
from app.validation import KeyPath, Mistake, SettingsError, spelt_key, spelt_text
from tests.tenants.toml_texts import TABLES, TEXTS, Written


def paths(value: Any, at: KeyPath = ()) -> Iterator[KeyPath]:
    """Every place of a parsed document."""
    inner: list[tuple[str | int, Any]] = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    for key, each in inner:
        yield (*at, key)
        yield from paths(each, (*at, key))


@given(table=TABLES, data=st.data(), windows=st.booleans())
def test_every_value_has_the_line_on_which_it_was_written(
    table: dict[str, Any], data: st.DataObject, windows: bool
) -> None:
    written = Written(data)
    written.table((), table)
    text = written.text.replace("\n", "\r\n") if windows else written.text
    assert tomllib.loads(text) == table
    assert key_lines(text) == written.lines


@given(
    table=TABLES,
    data=st.data(),
    piece=st.sampled_from(['"', "'", '"""', "'''", "[", "]", "{", "}", "=", ".", ",", "\\", "\n", "#", "a", "1"]),
)
def test_file_with_a_slip_is_refused_or_read_whole(table: dict[str, Any], data: st.DataObject, piece: str) -> None:
    written = Written(data)
    written.table((), table)
    at = data.draw(st.integers(0, len(written.text)))
    cut = data.draw(st.integers(0, 2))
    document = Document("t.toml", {}, {})
    with suppress(SettingsError):
        document = parse_document(written.text[:at] + piece + written.text[at + cut :], "t.toml")
    assert set(paths(document.values)) <= document.lines.keys()


BY_HAND = '''\
# "acme" = 1
[tenants.acme]                      # [tenants.beta]
numbers = [
  "+4930123456",  # first, "quoted
  "+4930123457",
]
instructions = """
zone = "no"
\\"""
[not.a.table]
"""
voice = \'\'\'
[nor.this]\'\'\'
  'zone'="eu"
at = 1979-05-27 07:32:00  # a date with a blank

[tenants]
beta.numbers = [[1, 2],
  [3]]
gamma = { zone = "eu", "vo\\u0069ce" = "x" }
[[tenants.list]]
a = 1
[[tenants.list]]
[tenants.list.b]
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("tenants",), 2),
        (("tenants", "acme"), 2),
        (("tenants", "acme", "numbers"), 3),
        (("tenants", "acme", "numbers", 0), 4),
        (("tenants", "acme", "numbers", 1), 5),
        (("tenants", "acme", "instructions"), 7),
        (("tenants", "acme", "voice"), 12),
        (("tenants", "acme", "zone"), 14),
        (("tenants", "acme", "at"), 15),
        (("tenants", "beta"), 18),
        (("tenants", "beta", "numbers", 0, 1), 18),
        (("tenants", "beta", "numbers", 1), 19),
        (("tenants", "gamma", "voice"), 20),
        (("tenants", "list", 0, "a"), 22),
        (("tenants", "list", 1), 23),
        (("tenants", "list", 1, "b"), 24),
    ],
)
def test_line_in_a_file_written_by_hand(path: KeyPath, line: int) -> None:
    assert key_lines(BY_HAND)[path] == line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[a\n", "t.toml:1: Expected ']' at the end of a table declaration, in column 3"),
        ("a = 1\n\nb =\n", "t.toml:3: Invalid value, in column 4"),
        ("a = 1\nb = [", "t.toml:2: Invalid value, at the end of the file"),
        ('a = 1\nb = """x\n\n', "t.toml:2: Unterminated string, at the end of the file"),
        ("a = " + "[" * 50_000, "t.toml: Lists or tables are nested too deeply"),
        ("a = " + "9" * 5_000, "t.toml: Exceeds the limit (4300 digits) for integer string conversion"),
    ],
)
def test_syntax_error_has_its_line(text: str, told: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_document(text, "t.toml")
    assert str(error.value).startswith(told)


def test_text_that_is_not_utf8_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(SettingsError, match=r"t\.toml:2: The text is not UTF-8\.$"):
        read_document(file)


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml: No such file or directory\.$"):
        read_document(tmp_path / "nowhere.toml")


def test_what_is_not_there_has_the_line_of_what_is_around_it() -> None:
    document = Document("t.toml", {}, {("a",): 3, ("a", "b c"): 7})
    paths: list[KeyPath] = [("a", "b c", "numbers", 2), ("a", "z"), ("z",)]
    located = document.located(Mistake(path, "is bad") for path in paths)
    assert [str(each) for each in located] == [
        't.toml:7: a."b c".numbers is bad.',
        "t.toml:3: a.z is bad.",
        "t.toml:1: z is bad.",
    ]


@given(TEXTS)
def test_what_we_spell_is_read_back_and_stays_on_its_line(text: str) -> None:
    assert tomllib.loads(f"{spelt_key(text)} = {spelt_text(text)}") == {text: text}
    assert not {"\n", "\x1b", "\x9b"} & set(spelt_text(text))
