"""The caller's side of the line: its media clock, audio that is held back, and holes filled with silence.

Twilio's timestamp, not the arrival time, is the media clock (twilio.md 1.2). A backend's VAD runs on audio
that was written to it, so a hole in the caller's audio must become silence or the caller's turn never ends.
What is said is not looked at here.
"""

from collections import deque
from dataclasses import dataclass, field

from app.call.events import CallerAudio, PassOn, PassSilence
from app.call.limits import (
    GAP_FILL_MAX_MS,
    GAP_MIN_MS,
    HELD_FRAMES_MAX,
    MULAW_BYTES_PER_MS,
    NEVER,
    OPEN_TURNS_MAX,
    PRE_ROLL_FRAMES,
    STALL_FILL_AFTER_S,
    STALL_FILL_STEP_MS,
)

NEVER_BEGAN_MS = float("-inf")
"""Before everything on the media clock."""


@dataclass(slots=True)
class CallerLine:
    """What the caller's audio is doing.

    What the agent has not answered is kept here after it was passed on, for a backend that may have to hear it
    again. The last PRE_ROLL_FRAMES always are, because the caller begins to speak before the backend notices.
    """

    hold_max_ms: int | None
    """While not None, audio is kept here (the newest so much of it) instead of passed on."""
    keeps: bool = True
    """True from the caller's first word, or the beginning of the call, until the agent has answered."""
    _kept: deque[CallerAudio] = field(default_factory=lambda: deque(maxlen=HELD_FRAMES_MAX))
    _held_bytes: int = 0
    """Of what is kept, while it is held back."""
    _turn_ends: dict[str, int] = field(default_factory=dict)
    """Where on the media clock the turns end that are not known in words, by their item."""
    _answered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The last turn that was answered before its words came: its audio, by its item."""
    _next_ms: int | None = None
    """Where on the media clock the next frame should begin; None before the first."""
    _last_at: float = 0.0
    _stall_filled_ms: int = 0
    """Silence already made for the hole that is open now."""
    _set_back_ms: int = 0
    """How far the media clock last jumped back. When it jumps forward again by as much, no audio is missing."""

    def passes(self, frame: CallerAudio, now: float) -> bool:
        """The hot path, 50 times a second: True when this frame goes straight to the backend, as it is."""
        next_ms = self._next_ms
        if next_ms is None or self.hold_max_ms is not None or self._stall_filled_ms:
            return False
        timestamp_ms = frame.timestamp_ms
        if not -GAP_MIN_MS <= timestamp_ms - next_ms <= GAP_MIN_MS:
            return False
        self._next_ms = timestamp_ms + frame.audio_bytes // MULAW_BYTES_PER_MS
        self._last_at = now
        self._kept.append(frame)
        return True

    def take(self, frame: CallerAudio, now: float) -> list[PassOn | PassSilence]:
        """A frame that did not pass straight: held back, or passed on with the hole before it filled.

        The stream is a TCP connection: frames come in order, and a media clock that jumps back has been reset.
        """
        fill_ms = min(self._gap_ms(frame.timestamp_ms), GAP_FILL_MAX_MS) - self._stall_filled_ms
        self._stall_filled_ms = 0
        self._next_ms = frame.timestamp_ms + frame.audio_bytes // MULAW_BYTES_PER_MS
        self._last_at = now
        if self.hold_max_ms is not None:
            self._hold(frame, self.hold_max_ms)
            return []
        self._kept.append(frame)
        silence = [PassSilence(fill_ms)] if fill_ms > GAP_MIN_MS else []
        return [*silence, PassOn(frame.payload)]

    def _gap_ms(self, timestamp_ms: int) -> int:
        """How much audio is missing before a frame that begins there."""
        gap_ms = 0 if self._next_ms is None else timestamp_ms - self._next_ms
        if gap_ms < -GAP_MIN_MS:
            self._set_back_ms = -gap_ms
            return 0
        if gap_ms > GAP_MIN_MS and self._set_back_ms:
            returned = abs(gap_ms - self._set_back_ms) <= GAP_MIN_MS
            self._set_back_ms = 0
            return 0 if returned else gap_ms
        return gap_ms

    def hold(self, max_ms: int) -> None:
        """Keep the newest `max_ms` of what the caller says back from now on."""
        self.hold_max_ms = max_ms
        self._keep_newest(HELD_FRAMES_MAX)
        self._trim(max_ms)

    def open(self) -> list[PassOn]:
        """Let what was kept go, and everything from now on."""
        kept = [PassOn(frame.payload) for frame in self._kept]
        self.hold_max_ms = None
        if not self.keeps:
            self._keep_newest(PRE_ROLL_FRAMES)
        return kept

    def keep(self) -> None:
        """The caller begins to speak: keep everything until `stop_keeping`."""
        if not self.keeps:
            self.keeps = True
            self._keep_newest(HELD_FRAMES_MAX)

    def stop_keeping(self) -> None:
        """The agent has answered: what the caller said until then needs no other backend."""
        self.keeps = False
        self._keep_answered()
        self._forget(NEVER_BEGAN_MS, max(self._turn_ends.values(), default=NEVER_BEGAN_MS))
        self._turn_ends.clear()
        if self.hold_max_ms is None:
            self._keep_newest(PRE_ROLL_FRAMES)

    def turn_ended(self, item_id: str) -> None:
        """The backend heard the end of a turn of the caller."""
        self._turn_ends[item_id] = self.media_ms
        if len(self._turn_ends) > OPEN_TURNS_MAX:
            del self._turn_ends[next(iter(self._turn_ends))]

    def turn_known(self, item_id: str) -> None:
        """The words of a turn have come: a later backend is told them, and does not have to hear them."""
        self._answered.pop(item_id, None)
        end_ms = self._turn_ends.pop(item_id, None)
        if end_ms is not None:
            self._forget(self._turn_began_ms(end_ms), end_ms)

    @property
    def has_unanswered_turn(self) -> bool:
        """True when a turn is kept here that the agent has not answered, and that is not known in words."""
        return bool(self._turn_ends)

    def take_answered(self) -> dict[str, tuple[str, ...]]:
        """The session that named the turns is gone: the audio of those that were answered, and have no words."""
        self._turn_ends.clear()
        answered, self._answered = self._answered, {}
        return answered

    def _turn_began_ms(self, end_ms: float) -> float:
        """Behind the turn before it, if that is still without words."""
        return max((each for each in self._turn_ends.values() if each < end_ms), default=NEVER_BEGAN_MS)

    def _keep_answered(self) -> None:
        if self._turn_ends:
            item_id, end_ms = list(self._turn_ends.items())[-1]
            began_ms = self._turn_began_ms(end_ms)
            frames = tuple(frame.payload for frame in self._kept if began_ms <= frame.timestamp_ms < end_ms)
            self._answered = {item_id: frames}

    def _forget(self, since_ms: float, until_ms: float) -> None:
        """Keep no frame that began in this span of the media clock."""
        frames = (frame for frame in self._kept if not since_ms <= frame.timestamp_ms < until_ms)
        self._kept = deque(frames, self._kept.maxlen)
        self._count()

    def _keep_newest(self, frames_max: int) -> None:
        self._kept = deque(self._kept, frames_max)
        self._count()

    def _count(self) -> None:
        self._held_bytes = sum(frame.audio_bytes for frame in self._kept)

    @property
    def media_ms(self) -> int:
        """Where the media clock is: the end of the last frame."""
        return self._next_ms or 0

    @property
    def held_frames(self) -> int:
        """Frames that are kept here."""
        return len(self._kept)

    @property
    def held_ms(self) -> int:
        """How much audio they have."""
        return sum(frame.audio_bytes for frame in self._kept) // MULAW_BYTES_PER_MS

    def _hold(self, frame: CallerAudio, max_ms: int) -> None:
        if len(self._kept) == HELD_FRAMES_MAX:
            self._held_bytes -= self._kept.popleft().audio_bytes
        self._kept.append(frame)
        self._held_bytes += frame.audio_bytes
        self._trim(max_ms)

    def _trim(self, max_ms: int) -> None:
        while self._held_bytes > max_ms * MULAW_BYTES_PER_MS:
            self._held_bytes -= self._kept.popleft().audio_bytes

    def stall_fill_at(self) -> float:
        """When silence must be made because no frame has come."""
        if self._next_ms is None or self.hold_max_ms is not None or self._stall_filled_ms >= GAP_FILL_MAX_MS:
            return NEVER
        return self._last_at + STALL_FILL_AFTER_S + self._stall_filled_ms / 1000

    def fill_stall(self, now: float) -> list[PassSilence]:
        """The silence that is due now."""
        before_ms = self._stall_filled_ms
        while self.stall_fill_at() <= now:
            self._stall_filled_ms += STALL_FILL_STEP_MS
        due_ms = self._stall_filled_ms - before_ms
        return [PassSilence(due_ms)] if due_ms else []
