"""The caller's side of a simulated session: detects turns in the audio, sends transcripts and idle timeouts.

A complete turn is passed to responses.py, which answers it.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from app.sim.realtime.audio import BYTES_PER_MS
from app.sim.realtime.input import InputBuffer
from app.sim.realtime.items import Item
from app.sim.realtime.responses import Responses, Turn
from app.sim.realtime.service import SessionSettings, TurnTaking
from app.sim.realtime.state import SessionState
from app.sim.realtime.vad import SpeechStarted, SpeechStopped, VadSettings

Json = dict[str, Any]


class Turns:
    """The caller's side of one session."""

    def __init__(self, state: SessionState, responses: Responses) -> None:
        self._state = state
        self._responses = responses
        self._input = InputBuffer(state.settings.input_format, _vad(state.settings))
        self._item_id = ""  # that the turn in progress will get
        self._idle: asyncio.TimerHandle | None = None
        self._transcripts_due: list[Callable[[], None]] = []  # held back until the next response.done
        responses.on_start = self._disarm_idle
        responses.on_done = self._response_done

    @property
    def idle_at(self) -> float | None:
        """When the idle timeout expires, in the loop's seconds; None when it is not running."""
        return self._idle.when() if self._idle else None

    def write(self, data: bytes) -> None:
        """Takes audio in the session's format and handles the detector's events."""
        for heard in self._input.write(data):
            match heard:
                case SpeechStarted():
                    self._speech_started(heard)
                case SpeechStopped():
                    self._speech_stopped(heard)

    def configured(self, before: SessionSettings) -> None:
        """Applies new settings of the session."""
        now = self._state.settings
        if now.input_format != before.input_format:
            self._input.read_as(now.input_format)
        if now.turns != before.turns:
            self._input.detect(_vad(now))
            self._disarm_idle()

    def clear(self) -> None:
        self._input.clear()
        self._state.events_out.emit("input_audio_buffer.cleared")

    def commit(self) -> None:
        """The client's commit. Raises Refusal when there is too little audio."""
        mulaw = self._input.commit()
        self._commit(Item(_caller_wire(self._state.ids.new("item")), len(mulaw), mulaw), mulaw)

    def _speech_started(self, heard: SpeechStarted) -> None:
        self._disarm_idle()
        self._input.begin_turn(heard.start_ms)
        self._item_id = self._state.ids.new("item")
        self._state.events_out.emit(
            "input_audio_buffer.speech_started", audio_start_ms=heard.start_ms, item_id=self._item_id
        )
        turns = self._taking()
        if self._state.behaviour.faults.vad_does_not_cancel and turns.by_silence:
            return
        if turns.interrupt_response:
            self._responses.interrupt(truncate=turns.auto_truncate)

    def _speech_stopped(self, heard: SpeechStopped) -> None:
        self._state.events_out.emit(
            "input_audio_buffer.speech_stopped", audio_end_ms=heard.end_ms, item_id=self._item_id
        )
        turns = self._taking()
        mulaw = self._input.end_turn(heard.end_ms)
        spoken = mulaw[: max(0, len(mulaw) - turns.vad.silence_duration_ms * BYTES_PER_MS)]
        self._commit(Item(_caller_wire(self._item_id), len(mulaw), mulaw), spoken)
        if turns.create_response:
            self._responses.create_by_itself("turn")

    def _commit(self, item: Item, spoken: bytes) -> None:
        state = self._state
        previous = state.conversation.append(item)
        state.events_out.emit("input_audio_buffer.committed", previous_item_id=previous, item_id=item.id)
        state.announce(item, previous)
        if spoken:
            turn = Turn(spoken, state.behaviour.hears(spoken))
            self._responses.heard(turn)
            self._transcribe(item, turn.words)

    def _taking(self) -> TurnTaking:
        turns = self._state.settings.turns
        assert turns is not None, "a turn is detected only when turn detection is on"
        return turns

    # The caller's transcript comes from another model, at its own time (realtime.md 1.5).

    def _transcribe(self, item: Item, words: str) -> None:
        state = self._state
        model = state.settings.transcription_model
        when = state.behaviour.faults.transcription
        if model is None or when == "never":
            return
        kind = "conversation.item.input_audio_transcription"
        where = {"item_id": item.id, "content_index": 0}

        def complete() -> None:
            item.wire["content"][0]["transcript"] = words
            state.events_out.emit(f"{kind}.delta", **where, delta=words)
            beside = state.service.transcribed(model, item.audio_ms, words)
            state.events_out.emit(f"{kind}.completed", **where, transcript=words, **beside)

        def fail() -> None:
            error = {
                "type": "transcription_error",
                "code": "audio_unintelligible",
                "message": "The audio could not be transcribed.",
                "param": None,
            }
            state.events_out.emit(f"{kind}.failed", **where, error=error)

        tell = fail if when == "failed" else complete
        if when == "after_response":
            self._transcripts_due.append(tell)
        else:
            state.clock.later(state.behaviour.timing.transcription_ms / 1000, tell)

    # The caller's silence.

    def _response_done(self, playing_ms: int | None) -> None:
        if playing_ms is not None:
            self._arm_idle(playing_ms)
        due, self._transcripts_due = self._transcripts_due, []
        for tell in due:
            tell()

    def _arm_idle(self, playing_ms: int) -> None:
        """The idle timeout counts from response.done plus the playing time of its audio (realtime.md 1.3)."""
        self._disarm_idle()
        turns = self._state.settings.turns
        if turns and turns.idle_timeout_ms is not None and not self._input.is_speaking:
            idle_ms = turns.idle_timeout_ms
            self._idle = self._state.clock.later((playing_ms + idle_ms) / 1000, self._idle_for(idle_ms))

    def _disarm_idle(self) -> None:
        if self._idle:
            self._state.clock.forget(self._idle)
            self._idle = None

    def _idle_for(self, idle_ms: int) -> Callable[[], None]:
        def expired() -> None:
            self._idle = None
            end_ms = self._input.clock_ms
            start_ms = max(0, end_ms - idle_ms)
            item = Item(_caller_wire(self._state.ids.new("item")), (end_ms - start_ms) * BYTES_PER_MS)
            self._input.clear()
            self._state.events_out.emit(
                "input_audio_buffer.timeout_triggered",
                audio_start_ms=start_ms,
                audio_end_ms=end_ms,
                item_id=item.id,
            )
            self._commit(item, b"")
            self._responses.create_by_itself("idle")

        return expired


def _vad(settings: SessionSettings) -> VadSettings | None:
    return settings.turns.vad if settings.turns else None


def _caller_wire(item_id: str) -> Json:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }
