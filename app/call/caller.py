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
    STALL_FILL_AFTER_S,
    STALL_FILL_STEP_MS,
    UNANSWERED_AUDIO_MAX_MS,
)


@dataclass(slots=True)
class CallerLine:
    """What the caller's audio is doing."""

    hold_max_ms: int | None
    """While not None, audio is kept here (the newest so much of it) instead of passed on."""
    keeps: bool = True
    """While true, audio that is passed on is kept as well: no backend has answered yet, and another one may have
    to hear it from the beginning."""
    _held: deque[CallerAudio] = field(default_factory=deque)
    _held_bytes: int = 0
    _next_ms: int | None = None
    """Where on the media clock the next frame should begin; None before the first."""
    _last_at: float = 0.0
    _stall_filled_ms: int = 0
    """Silence already made for the hole that is open now."""
    _set_back_ms: int = 0
    """How far the media clock last jumped back. When it jumps forward again by as much, no audio is missing."""

    def passes(self, timestamp_ms: int, audio_bytes: int, now: float) -> bool:
        """The hot path, 50 times a second: True when this frame goes straight to the backend, as it is."""
        next_ms = self._next_ms
        if next_ms is None or self.hold_max_ms is not None or self._stall_filled_ms or self.keeps:
            return False
        if not -GAP_MIN_MS <= timestamp_ms - next_ms <= GAP_MIN_MS:
            return False
        self._next_ms = timestamp_ms + audio_bytes // MULAW_BYTES_PER_MS
        self._last_at = now
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
        if self.keeps:
            self._hold(frame, UNANSWERED_AUDIO_MAX_MS)
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
        self._trim(max_ms)

    def open(self) -> list[PassOn]:
        """Let what was held go, and everything from now on."""
        held = [PassOn(frame.payload) for frame in self._held]
        self.hold_max_ms = None
        if not self.keeps:
            self._drop_held()
        return held

    def stop_keeping(self) -> None:
        """The agent was heard: what the caller said until now needs no other backend."""
        self.keeps = False
        if self.hold_max_ms is None:
            self._drop_held()

    def forget_until(self, timestamp_ms: int) -> None:
        """Keep nothing that began before this instant of the media clock: it is known in words."""
        while self._held and self._held[0].timestamp_ms < timestamp_ms:
            self._held_bytes -= self._held.popleft().audio_bytes

    @property
    def media_ms(self) -> int:
        """Where the media clock is: the end of the last frame."""
        return self._next_ms or 0

    @property
    def held_frames(self) -> int:
        """Frames that are kept here."""
        return len(self._held)

    @property
    def held_ms(self) -> int:
        """How much audio they have."""
        return self._held_bytes // MULAW_BYTES_PER_MS

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    def _hold(self, frame: CallerAudio, max_ms: int) -> None:
        self._held.append(frame)
        self._held_bytes += frame.audio_bytes
        self._trim(max_ms)

    def _trim(self, max_ms: int) -> None:
        while self._held_bytes > max_ms * MULAW_BYTES_PER_MS or len(self._held) > HELD_FRAMES_MAX:
            self._held_bytes -= self._held.popleft().audio_bytes

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
