"""What was said in a call so far, in the words that were heard: all that a new backend session knows of it.

A backend session cannot be resumed (realtime.md 1.14). When one is lost, the next one is given this history as
text: the turns of the caller, of the agent's turns only the part that the caller heard, and the tool calls with
their outputs. A call that was cut off on another machine begins with the history that the ledger kept of it.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from app.call.limits import HISTORY_MAX_CHARS
from app.call.records import Speaker


class Owed(StrEnum):
    """What the agent still has to say when a history ends."""

    NOTHING = "nothing"
    """It is the caller's turn, or nobody's."""
    ANSWER = "answer"
    """The caller has said something that has no answer."""
    CONTINUATION = "continuation"
    """The agent's last turn was cut off by a fault, and not by the caller."""
    REPETITION = "repetition"
    """What was said last is not known: the agent asks the caller to say it again."""


@dataclass(frozen=True, slots=True)
class Said:
    """One turn, or a key that the caller pressed."""

    speaker: Speaker
    text: str = field(repr=False)
    """Of the agent, the words that the caller heard. Empty only of a turn that has `audio`."""
    audio: tuple[str, ...] = field(default=(), repr=False)
    """Of the caller: what was said, when nobody has written it down. Base64 of mu-law, piece by piece."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool that the model called."""

    tool_call_id: str
    name: str
    arguments: str = field(repr=False)
    output: str | None = field(default=None, repr=False)
    """None while it runs."""


Entry = Said | ToolUse


@dataclass(frozen=True, slots=True)
class History:
    """A call before its present leg."""

    entries: tuple[Entry, ...] = ()
    """Oldest first."""
    owed: Owed = Owed.NOTHING
    began_ms: int | None = None
    """When its first leg began, in Unix ms: the longest allowed time of the call counts from then. None: with this
    leg."""


NO_HISTORY = History()
"""A call that begins."""


_Place = tuple[int, int, int]
"""Where an entry stands: the number of a turn, whether it follows that turn, and when it came among its like."""


class Memory:
    """The history of a call while it goes on. Of a long call it has the newest HISTORY_MAX_CHARS."""

    def __init__(self, before: tuple[Entry, ...] = ()) -> None:
        self._entries: list[tuple[_Place, Entry]] = []
        self._chars = 0
        self._added = 0
        for entry in before:
            self._add(-1, entry)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Oldest first."""
        return tuple(entry for _, entry in self._entries)

    @property
    def numbered(self) -> Iterator[tuple[int | None, Entry]]:
        """Oldest first, with the numbers of the turns that are this leg's own."""
        for (seq, follows, _), entry in self._entries:
            yield (None if follows else seq), entry

    @property
    def chars(self) -> int:
        """How long all texts are together."""
        return self._chars

    def turn(self, seq: int, speaker: Speaker, heard: str | None) -> None:
        """What was heard of a turn, as far as it is known. Turns may finish in any order."""
        number = bisect_left(self._entries, (seq, 0, 0), key=lambda each: each[0])
        if number < len(self._entries) and self._entries[number][0][:2] == (seq, 0):
            self._chars -= _length(self._entries.pop(number)[1])
        if heard:
            self._add(seq, Said(speaker, heard), follows=False)

    def sound(self, seq: int, audio: tuple[str, ...]) -> None:
        """A turn of the caller was answered and not written down. Audio is kept of the last such turn alone."""
        self._entries = [each for each in self._entries if not (isinstance(each[1], Said) and each[1].audio)]
        self._add(seq, Said(Speaker.CALLER, "", audio), follows=False)

    def caller_did(self, turns: int, text: str) -> None:
        """The caller pressed a key. `turns`: so many of this leg had begun."""
        self._add(turns - 1, Said(Speaker.CALLER, text))

    def tool_called(self, turns: int, tool_call_id: str, name: str, arguments: str) -> None:
        """A tool runs. `turns`: so many of this leg had begun."""
        self._add(turns - 1, ToolUse(tool_call_id, name, arguments))

    def tool_finished(self, tool_call_id: str, output: str) -> None:
        """A tool has an output."""
        for number in range(len(self._entries) - 1, -1, -1):
            place, entry = self._entries[number]
            if isinstance(entry, ToolUse) and entry.tool_call_id == tool_call_id and entry.output is None:
                self._entries[number] = place, replace(entry, output=output)
                self._chars += len(output)
                self._forget_oldest()
                return

    def _add(self, turn: int, entry: Entry, *, follows: bool = True) -> None:
        self._added += 1
        insort(self._entries, ((turn, int(follows), self._added), entry), key=lambda each: each[0])
        self._chars += _length(entry)
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        while self._chars > HISTORY_MAX_CHARS and len(self._entries) > 1:
            _, entry = self._entries.pop(0)
            self._chars -= _length(entry)


def _length(entry: Entry) -> int:
    match entry:
        case Said():
            return len(entry.text)
        case ToolUse():
            return len(entry.name) + len(entry.arguments) + len(entry.output or "")
