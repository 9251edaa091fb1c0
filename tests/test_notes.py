"""Comments cite our notes on the outside world by section, as "twilio.md 1.4": each citation leads to a section.

A citation is a note's name and numbers behind it: "fly.md 4 to 9, 11", "realtime.md 2.8 (October 2026) and 2.9",
"fly.md 19 rules 9 to 11". A list of numbers may go on in the next line of a comment.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTES = {
    path.name: path
    for path in (
        ROOT / "app/wire/twilio.md",
        ROOT / "app/wire/realtime.md",
        ROOT / "app/regions/fly.md",
        ROOT / "app/ledger/libsql.md",
    )
}
FOLDERS = ("app", "twiml", "tests", "scripts", "migrations")
FILES = ("Dockerfile", "fly.toml", "README.md")
NOT_TEXT = {".pyc", ".wav", ".md"}

NUMBER = re.compile(r"\d+(?:\.\d+)*")
WORD = re.compile(rf"\([^()]*\)|{NUMBER.pattern}|(?:to|rules?|points?)\b")
CITATION = re.compile(
    rf"\b(?P<note>{'|'.join(path.stem for path in NOTES.values())})\.md\b(?P<list>(?:[\s,]|and\b|{WORD.pattern})*)"
)
CONTINUED = re.compile(r"\n[ \t]*(?:#|--)?[ \t]*")
HEADING = re.compile(rf"^(?P<level>##+) (?P<number>{NUMBER.pattern}) \S.*$", re.MULTILINE)
POINT = re.compile(r"^- (?:Rule|Point) (\d+): ", re.MULTILINE)

Cited = tuple[str, str]
"""A note's name and a section's number, or "19 rule 9"."""


def between(first: str, last: str) -> list[str]:
    """The numbers of "2.1 to 2.3". Raises ValueError when that is no range."""
    chapter, _, start = first.rpartition(".")
    other, _, end = last.rpartition(".")
    if chapter != other or int(start) >= int(end):
        raise ValueError(f"{first} to {last} is no range")
    return [f"{chapter}.{each}" if chapter else str(each) for each in range(int(start) + 1, int(end) + 1)]


def citations(text: str) -> Iterator[Cited]:
    """Every section, rule and point that a text cites; a range stands for each of its members."""
    for match in CITATION.finditer(CONTINUED.sub(" ", text)):
        section = kind = previous = ""
        ranged = False
        for word in WORD.findall(match["list"]):
            if word == "to":
                ranged = previous != ""
            elif word[0] in "rp":
                kind, previous = word.rstrip("s"), ""
            elif word[0] != "(":
                numbers = between(previous, word) if ranged else [word]
                yield from (
                    (f"{match['note']}.md", f"{section} {kind} {each}" if kind else each) for each in numbers
                )
                previous, ranged = word, False
                section = section if kind else word


def headings(text: str) -> list[str]:
    """The sections of a note in order."""
    return [match["number"] for match in HEADING.finditer(text)]


def places(text: str) -> set[str]:
    """All that can be cited in a note: its sections, and their rules and points."""
    found: set[str] = set()
    for match in HEADING.finditer(text):
        following = HEADING.search(text, match.end())
        body = text[match.end() : following.start() if following else None]
        kind = "rule" if "\n- Rule " in body else "point"
        found |= {match["number"], *(f"{match['number']} {kind} {each}" for each in POINT.findall(body))}
    return found


def sources() -> Mapping[str, str]:
    """What may cite: path and text."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted = [path for path in found if path.suffix not in NOT_TEXT and path != Path(__file__)]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted([*wanted, *(ROOT / name for name in FILES)])
    }


def dangling(texts: Mapping[str, str], notes: Mapping[str, str]) -> list[str]:
    """Citations of what is not in the notes."""
    there = {name: places(text) for name, text in notes.items()}
    return [
        f"{path} cites {note} {number}, which is not there"
        for path, text in texts.items()
        for note, number in citations(text)
        if number not in there[note]
    ]


def uncited(texts: Mapping[str, str], notes: Mapping[str, str]) -> list[str]:
    """Sections that nothing cites, themselves or a section in them."""
    used = {cited for text in texts.values() for cited in citations(text)}
    return [
        f"{name} {section}: no comment cites it; cite it where the code relies on it, or delete it"
        for name, text in notes.items()
        for section in headings(text)
        if not any(note == name and f"{number}.".startswith(f"{section}.") for note, number in used)
    ]


def flaws(text: str) -> Iterator[str]:
    """What is wrong with a note by itself."""
    numbers = headings(text)
    yield from (f"{each} is there twice" for each in sorted({each for each in numbers if numbers.count(each) > 1}))
    if numbers != sorted(numbers, key=lambda each: [int(part) for part in each.split(".")]):
        yield "the sections are not in order"
    if "\n## Found out since\n" not in text.partition("\n## 0")[0] or "win over" not in text:
        yield "the corrections are missing, and that they win"
    parts = re.split(r"^##+ ", text, flags=re.MULTILINE)[1:]
    for part in parts:
        title, _, body = part.partition("\n")
        chapter = bool(NUMBER.match(title)) and not body.strip()
        if NUMBER.match(title) and not chapter and not re.search(r"^Source: .", body, re.MULTILINE):
            yield f"{title}: names no source"


def read_notes() -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in NOTES.items()}


def test_every_citation_leads_to_a_section() -> None:
    assert dangling(sources(), read_notes()) == []


def test_every_section_is_cited() -> None:
    assert uncited(sources(), read_notes()) == []


@pytest.mark.parametrize("name", NOTES)
def test_note_has_sources_and_is_in_order(name: str) -> None:
    assert list(flaws(NOTES[name].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"""Bytes (twilio.md 1.4)."""', ["1.4"]),
        ("# realtime.md 1.3 and 2.2 into that", ["1.3", "2.2"]),
        ("twilio.md 2.1 to 2.3, and 1.7 for the URL.", ["2.1", "2.2", "2.3", "1.7"]),
        ("fly.md 4 to 6, 11, 19.", ["4", "5", "6", "11", "19"]),
        ("realtime.md 2.8 (October 2026) and the map.", ["2.8"]),
        ("fly.md 11 and 18, PR01", ["11", "18"]),
        (
            "fly.md 4 (choice, limits), 19\n    # rules 2, 5 to 7.",
            ["4", "19", *(f"19 rule {each}" for each in (2, 5, 6, 7))],
        ),
        ("libsql.md 1, point 9", ["1", "1 point 9"]),
        ("twilio.md 2.2, warning 13521", ["2.2"]),
        ("Every trap of fly.md that 3 files have", []),
        ("N = 60_000  # realtime.md 1.12\nM = 50", ["1.12"]),
    ],
)
def test_citation_is_read(text: str, found: list[str]) -> None:
    assert [number for _, number in citations(text)] == found


NOTE = """# Notes

## Found out since

These win over the sections.

## 1 First

### 1.1 Inner

Source: a page.

### 1.2 Other

- Rule 1: first.
- Rule 2: second.

Source: a page.
"""


@pytest.mark.parametrize(
    "number", ["2", "1.3", "1.1.1", "1.1 to 1.3", "1.2 rule 3", "1.2 rules 1 to 3", "1.2, point 1"]
)
def test_citation_of_what_is_not_there_is_found(number: str) -> None:
    assert dangling({"app/x.py": f"# fly.md {number}"}, {"fly.md": NOTE}) != []


def test_citation_of_what_is_there_is_not() -> None:
    assert dangling({"app/x.py": "# fly.md 1, 1.1 to 1.2 rules 1 and 2"}, {"fly.md": NOTE}) == []


def test_section_that_nothing_cites_is_found() -> None:
    """A citation of the whole chapter does not count for what is in it, one of 1.1 counts for its chapter."""
    note = {"fly.md": NOTE}
    assert [line.partition(":")[0] for line in uncited({"x": "# fly.md 1"}, note)] == ["fly.md 1.1", "fly.md 1.2"]
    assert [line.partition(":")[0] for line in uncited({"x": "# fly.md 1.1, twilio.md 1.2"}, note)] == [
        "fly.md 1.2"
    ]
    assert uncited({"x": "# fly.md 1.1 to 1.2"}, note) == []


@pytest.mark.parametrize(
    ("there", "instead", "flaw"),
    [
        ("## 1 First", "## 1.1 First", "1.1 is there twice"),
        ("### 1.1 Inner", "### 1.3 Inner", "the sections are not in order"),
        ("win over", "go with", "the corrections are missing, and that they win"),
        ("Inner\n\nSource: a page.", "Inner\n\nA fact.", "1.1 Inner: names no source"),
    ],
)
def test_note_with_a_flaw_is_found(there: str, instead: str, flaw: str) -> None:
    assert there in NOTE
    assert flaw in list(flaws(NOTE.replace(there, instead)))


def test_note_without_a_flaw_is_not() -> None:
    assert list(flaws(NOTE)) == []


# --- Links within README and CONTRIBUTING ------------------------------------------------------------

LINK = re.compile(r"\]\((?P<file>[\w./-]*)(?:#(?P<anchor>[\w-]+))?\)")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(pages: Mapping[str, str]) -> list[str]:
    """Links of pages that lead to no page, or to no heading of it."""
    return [
        f"{name}: {match[0]}"
        for name, text in pages.items()
        for match in LINK.finditer(text)
        if (page := pages.get(match["file"] or name)) is None
        or (match["anchor"] and match["anchor"] not in anchors(page))
    ]


def test_links_of_readme_and_contributing_lead_somewhere() -> None:
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
    assert LINK.search(pages["README.md"])
    assert broken_links(pages) == []


def test_link_to_what_is_not_there_is_found() -> None:
    pages = {"a.md": "## On Fly.io: now\n[x](#on-flyio-now) [y](#gone) [z](b.md) [w](c.md)", "b.md": "text"}
    assert broken_links(pages) == ["a.md: ](#gone)", "a.md: ](c.md)"]
