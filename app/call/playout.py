"""What was sent to the phone, what of it was played, and what the caller therefore heard.

Twilio buffers up to ten minutes and tells us one thing: a mark, echoed when the audio before it was played
(or at once, when a `clear` threw it away). From the marks, the clock and the round trip this module keeps a
playhead. Positions are milliseconds on the timeline of one *generation*; a barge-in ends the generation.

The playhead is where playback will be when a message sent now arrives at Twilio, because that is where a
`clear` cuts. With a one-way delay d, audio sent to an empty buffer at t0 is at (now - t0) then; a mark at
position p echoed at t was played at t - d, so playback is at p + (now - t) + 2d. Both rules agree.

    position = anchor + elapsed,  never past what was sent,
               never further than the clock since playback last began again,
               never past the first mark still out (+ round trip + slack): playback may stall unseen.

Turns, responses and the wire are not known here.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from app.call.events import SendAudio, SendMark
from app.call.limits import (
    AGENT_AUDIO_WAITING_MAX_MS,
    AGENT_PIECES_WAITING_MAX,
    LEAD_MAX_MS,
    LEAD_REFILL_MS,
    MARK_EVERY_MS,
    MARK_LOST_S,
    MARK_SLACK_MS,
    MULAW_BYTES_PER_MS,
    NEVER,
    PIECE_MAX_MS,
)

_PIECE_CHARS = PIECE_MAX_MS * MULAW_BYTES_PER_MS // 3 * 4
"""Base64 may be cut wherever 3 bytes end, that is every 4 characters, without decoding it."""
_PIECE_BYTES = PIECE_MAX_MS * MULAW_BYTES_PER_MS
_WAITING_MAX_BYTES = AGENT_AUDIO_WAITING_MAX_MS * MULAW_BYTES_PER_MS
_MARK_EVERY_BYTES = MARK_EVERY_MS * MULAW_BYTES_PER_MS


@dataclass(slots=True)
class _Item:
    """Audio of one backend item."""

    item_id: str
    number: int
    received_bytes: int = 0
    sent_bytes: int = 0
    start_ms: float = 0.0
    """Where on the timeline its first byte lies; set when that byte is sent."""
    plays_at: float | None = None
    """When its first byte is (or was) played, in seconds."""
    complete: bool = False
    """The backend will send no more of it."""

    @property
    def received_ms(self) -> float:
        return self.received_bytes / MULAW_BYTES_PER_MS

    def heard_ms(self, position_ms: float) -> int:
        """Milliseconds played, floored: truncating beyond the item's audio is an error (realtime.md 1.8)."""
        if self.sent_bytes == 0:
            return 0
        played = min(position_ms - self.start_ms, self.sent_bytes / MULAW_BYTES_PER_MS)
        return max(0, int(played))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an item ended at the phone."""

    item_id: str
    heard_ms: int
    played_at: float | None
    """When its first byte reached the caller's side; None when none was sent."""
    cut: bool
    """True when a barge-in took the rest of it away."""


@dataclass(slots=True)
class Playout:
    """The send-ahead schedule and the playhead of one call."""

    generation: int = 0
    rtt_ms: float = 0.0
    """Measured round trip to the phone side; 0 until the first pong."""
    _items: dict[str, _Item] = field(default_factory=dict)
    _waiting: deque[tuple[_Item, str, int]] = field(default_factory=deque)
    _marks: deque[tuple[str, float]] = field(default_factory=deque)
    _sent_bytes: int = 0
    _waiting_bytes: int = 0
    _unmarked_bytes: int = 0
    _anchor_ms: float = 0.0
    _anchor_at: float = 0.0
    _restart_ms: float = 0.0
    _restart_at: float = 0.0
    """Where and when playback last began after standing still. It cannot have gone faster than the clock since."""
    _items_seen: int = 0
    _marks_seen: int = 0
    marks_lost: int = 0
    """One after the other, since one came back."""

    # --- Taking audio in and letting it out ---------------------------------------------------

    def receive(self, item_id: str, payload: str, audio_bytes: int) -> bool:
        """Take a piece of an item in; `release` lets it out when its time has come.

        False: more would wait than may, and nothing was taken.
        """
        pieces = -(-audio_bytes // _PIECE_BYTES)
        if (
            self._waiting_bytes + audio_bytes > _WAITING_MAX_BYTES
            or len(self._waiting) + pieces > AGENT_PIECES_WAITING_MAX
        ):
            return False
        item = self._items.get(item_id)
        if item is None:
            self._items_seen += 1
            item = self._items[item_id] = _Item(item_id, self._items_seen)
        item.received_bytes += audio_bytes
        self._waiting_bytes += audio_bytes
        if pieces <= 1:
            self._waiting.append((item, payload, audio_bytes))
            return True
        # By position: cutting the front off again and again would copy a long payload once for every piece.
        for at in range(pieces):
            piece = payload[at * _PIECE_CHARS : (at + 1) * _PIECE_CHARS]
            self._waiting.append((item, piece, min(_PIECE_BYTES, audio_bytes - at * _PIECE_BYTES)))
        return True

    def complete(self, item_id: str) -> None:
        """No more audio of this item will come."""
        item = self._items.get(item_id)
        if item is not None:
            item.complete = True

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items that are played, or will be."""
        return tuple(self._items)

    @property
    def complete_so_far(self) -> bool:
        """True when no item that is here waits for more audio."""
        return all(item.complete for item in self._items.values())

    def lose_session(self, renamed: Callable[[str], str]) -> None:
        """No more audio will come of what is here, and another session may use the same names for its items."""
        for item in self._items.values():
            item.complete = True
            item.item_id = renamed(item.item_id)
        self._items = {item.item_id: item for item in self._items.values()}

    def complete_all(self) -> None:
        """The response is over: no more audio of any item will come."""
        for item in self._items.values():
            item.complete = True

    def release(self, now: float) -> list[SendAudio | SendMark]:
        """Everything that may go to the phone now: as long as the lead stays under its bound."""
        out: list[SendAudio | SendMark] = []
        if not self._waiting and not self._unmarked_bytes:
            return out
        while self._waiting and self.lead_ms(now) < LEAD_MAX_MS:
            item, payload, audio_bytes = self._waiting.popleft()
            self._note_sent(item, audio_bytes, now)
            out.append(SendAudio(payload))
            if self._unmarked_bytes >= _MARK_EVERY_BYTES:
                out.append(self._mark(item))
        if not self._waiting and self._unmarked_bytes:
            last = next(reversed(self._items.values()))
            if last.complete:
                out.append(self._mark(last))
        return out

    def _note_sent(self, item: _Item, audio_bytes: int, now: float) -> None:
        sent_ms = self.sent_ms
        position_ms = self.position_ms(now)
        if position_ms >= sent_ms:
            # Everything sent was played: playback stands still and starts again with these bytes.
            self._anchor_ms = self._restart_ms = sent_ms
            self._anchor_at = self._restart_at = now
        if item.plays_at is None:
            item.start_ms = sent_ms
            item.plays_at = now + (sent_ms - position_ms + self.rtt_ms / 2) / 1000
        item.sent_bytes += audio_bytes
        self._waiting_bytes -= audio_bytes
        self._sent_bytes += audio_bytes
        self._unmarked_bytes += audio_bytes

    def _mark(self, item: _Item) -> SendMark:
        self._marks_seen += 1
        self._unmarked_bytes = 0
        # Unique in a call by its last part; the others help the reader of a trace.
        name = f"{self.generation}-{item.number}-{self._marks_seen}"
        self._marks.append((name, self.sent_ms))
        return SendMark(name)

    # --- Where playback is -------------------------------------------------------------------

    @property
    def sent_ms(self) -> float:
        """Audio sent in this generation."""
        return self._sent_bytes / MULAW_BYTES_PER_MS

    def received_ms(self, item_id: str) -> int:
        """Audio of an item that came and is, or will be, played; floored. 0 after a cut."""
        item = self._items.get(item_id)
        return 0 if item is None else int(item.received_ms)

    @property
    def untouched(self) -> bool:
        """True when nothing of this generation exists anywhere: there is nothing to clear."""
        return self._sent_bytes == 0 and not self._waiting

    def position_ms(self, now: float) -> float:
        """Where playback will be when a message sent now arrives at the phone side."""
        bound_ms = self._sent_bytes / MULAW_BYTES_PER_MS
        if self._marks:
            bound_ms = min(bound_ms, self._marks[0][1] + self.rtt_ms + MARK_SLACK_MS)
        return min(self._anchor_ms + (now - self._anchor_at) * 1000, bound_ms)

    def lead_ms(self, now: float) -> float:
        """Audio at the phone side that is not played yet."""
        return self.sent_ms - self.position_ms(now)

    def unplayed_ms(self, now: float) -> float:
        """Audio that came and is not played yet, here and at the phone side."""
        return self._waiting_bytes / MULAW_BYTES_PER_MS + self.lead_ms(now)

    def mark_returned(self, name: str, now: float) -> None:
        """Move the playhead to an echoed mark. One that is unknown, or was sent before a clear, says nothing."""
        if all(name != waiting for waiting, _ in self._marks):
            return
        while True:
            passed, at_ms = self._marks.popleft()
            if passed == name:
                break
        self.marks_lost = 0
        since_restart_ms = self._restart_ms + (now - self._restart_at) * 1000
        # What the mark says was played, was played, whatever the clock makes of it in its last digit.
        self._anchor_ms, self._anchor_at = max(at_ms, min(at_ms + self.rtt_ms, since_restart_ms)), now

    @property
    def waiting_ms(self) -> int:
        """Audio that came and was not sent yet."""
        return self._waiting_bytes // MULAW_BYTES_PER_MS

    @property
    def waiting_pieces(self) -> int:
        """Of how many pieces that is."""
        return len(self._waiting)

    @property
    def drained(self) -> bool:
        """True when everything that came was sent, and every mark behind it has come back."""
        return not self._waiting and not self._marks and not self._unmarked_bytes

    def release_at(self) -> float:
        """When `release` will have something to send by the clock alone."""
        if not self._waiting:
            return NEVER
        needed_ms = self.sent_ms - LEAD_REFILL_MS
        if self._marks and self._marks[0][1] + self.rtt_ms + MARK_SLACK_MS < needed_ms:
            return NEVER
        return self._anchor_at + (needed_ms - self._anchor_ms) / 1000

    # --- How items end -----------------------------------------------------------------------

    def take_heard(self, now: float) -> list[Outcome]:
        """The complete items that were played to their end since the last call."""
        if not self._items:
            return []
        heard: list[Outcome] = []
        for item in list(self._items.values()):
            waiting = item.sent_bytes < item.received_bytes
            if not item.complete or waiting or item.start_ms + item.received_ms > self.position_ms(now):
                break
            del self._items[item.item_id]
            heard.append(Outcome(item.item_id, int(item.received_ms), item.plays_at, cut=False))
        return heard

    def marks_lost_at(self) -> float:
        """When the first mark that is still out counts as lost."""
        if not self._marks:
            return NEVER
        return self._anchor_at + (self._marks[0][1] - self._anchor_ms) / 1000 + MARK_LOST_S

    def lose_marks(self, now: float) -> None:
        """Stop waiting for marks that are overdue: from here the clock alone tells."""
        while self.marks_lost_at() <= now:
            self._marks.popleft()
            self.marks_lost += 1

    def cut(self, now: float) -> list[Outcome]:
        """A barge-in: everything unplayed is gone. Starts a new generation.

        Returns every item of the old one, in order, with what of it was heard. Who calls this must send a
        `clear` and truncate the items that were cut.
        """
        position_ms = self.position_ms(now)
        outcomes: list[Outcome] = []
        for item in self._items.values():
            heard_ms = item.heard_ms(position_ms)
            to_the_end = item.complete and heard_ms >= int(item.received_ms)
            outcomes.append(Outcome(item.item_id, heard_ms, item.plays_at, cut=not to_the_end))
        self.generation += 1
        self._items.clear()
        self._waiting.clear()
        self._marks.clear()
        self._sent_bytes = self._waiting_bytes = self._unmarked_bytes = 0
        self._anchor_ms = self._anchor_at = self._restart_ms = self._restart_at = 0.0
        return outcomes
