"""One session of the simulated Realtime backend: the client's events in, the service's events out.

This is the model side of realtime.md 1.3 to 1.10: configuration, turns, items, one active response. It acts
synchronously on each message and reads the clock only through the loop's timers. Sockets, upgrades and close
codes are app/sim/realtime.py; what is said is a Script.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from app.sim.realtime_audio import BYTES_PER_MS, AudioFormat
from app.sim.realtime_billing import Billing, transcription_usage
from app.sim.realtime_config import (
    PCM_24K,
    input_format,
    new_session,
    turn_detection,
    updated,
    vad_settings,
)
from app.sim.realtime_events import check_event
from app.sim.realtime_faults import Faults, Timing
from app.sim.realtime_input import InputBuffer
from app.sim.realtime_items import (
    Conversation,
    Item,
    client_item,
    decoded_audio,
)
from app.sim.realtime_outlet import Ids, Line, Outlet, Recorded
from app.sim.realtime_reply import ReplyRequest, Script
from app.sim.realtime_response import Response, ResponseSettings
from app.sim.realtime_schema import Refusal, invalid_value
from app.sim.realtime_watch import Watch
from app.sim.vad import SpeechStarted, SpeechStopped

Json = dict[str, Any]

_LOG: Final = logging.getLogger(__name__)

_MAX_APPEND_BYTES: Final = 15 * 1024 * 1024  # realtime.md 1.4


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one session is told to do."""

    script: Script
    hears: Callable[[bytes], str]  # transcript of a caller's turn
    timing: Timing
    faults: Faults


@dataclass(frozen=True, slots=True)
class _Turn:
    """What the caller said and nobody has answered."""

    mulaw: bytes
    words: str


class LiveSession:
    """One connection's session, from `session.created` to the close. Tests act on it and look into it."""

    def __init__(
        self,
        *,
        number: int,
        model: str,
        headers: Mapping[str, str],
        line: Line,
        behaviour: Behaviour,
        watch: Watch,
        expires_at: int,
        record: bool,
    ) -> None:
        self.number = number  # from 0, in order of arrival
        self.headers = headers  # of the upgrade request, names in lower case
        self.received: list[Recorded] = []  # every client event, when recording
        self.sent: list[Recorded] = []  # every server event, when recording
        self.input_bytes = 0  # audio received, in the session's format
        self.input_audio = bytearray()  # the same audio, when recording
        self.close_code: int | None = None  # as the client's library saw it or sent it; set once it is over
        self.conversation = Conversation()
        self._record = record
        self._behaviour = behaviour
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._ids = Ids(number)
        self._outlet = Outlet(
            line=line,
            ids=self._ids,
            faults=behaviour.faults,
            now=self._loop.time,
            sent=self.sent if record else None,
            on_sent=watch.changed,
        )
        self.config = new_session(self._ids.new("sess"), model, expires_at)
        self._conversation_id = self._ids.new("conv")
        self._input = InputBuffer(input_format(self.config), vad_settings(self.config))
        self._turn_item_id = ""  # id that the turn in progress will get
        self._unanswered: _Turn | None = None
        self._active: Response | None = None
        self._beside: dict[str, Response] = {}  # responses with conversation "none"
        self._responses = 0
        self._has_spoken = False
        self._billing = Billing()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._transcripts_due: list[Callable[[], None]] = []  # held back until the next response.done

    @property
    def model(self) -> str:
        return str(self.config["model"])

    @property
    def idle_in_s(self) -> float | None:
        """Loop seconds until the idle timeout, or None when it is not running."""
        return self._idle.when() - self._loop.time() if self._idle else None

    # What tests do.

    async def wait_for(self, look: "Callable[[LiveSession], bool]") -> None:
        """Until `look` finds the session as it should be."""
        await self._watch.until(lambda: look(self) or None)

    async def event(self, kind: str, count: int = 1) -> Json:
        """The `count`-th event of a type that the client sends, as soon as it is there. Needs recording."""

        def look() -> Json | None:
            found = self.events(kind)
            return found[count - 1] if len(found) >= count else None

        return await self._watch.until(look)

    def events(self, kind: str) -> list[Json]:
        """The client's events of a type so far. Needs recording."""
        return [each.event for each in self.received if each.type == kind]

    def send(self, event: Json) -> None:
        """Sends exactly this to the client, true to the protocol or not."""
        self._outlet.send(event)

    def release(self) -> None:
        """Lets responses go on that hold after some deltas."""
        for response in self._responses_now():
            response.release()

    def abort(self) -> None:
        """Drops the connection: the client sees 1006."""
        self._outlet.abort()

    def stall(self) -> None:
        """Falls silent without closing; pings go unanswered."""
        self._outlet.stall()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes the connection with a closing handshake."""
        self._outlet.close(code, reason)

    def expire(self) -> None:
        """Reaches the end of the 60 minutes now."""
        self._outlet.expire()

    # What the server does.

    def begin(self) -> None:
        """Greets the client, unless a fault forbids it, and starts the session's clock."""
        if not self._behaviour.faults.never_greet:
            self._outlet.emit("session.created", session=self.config)
        self._later(self._behaviour.timing.session_life_s, self.expire)

    def receive(self, message: str | bytes) -> None:
        """Takes one message of the client. A wrong one is answered with an `error` event, never raised."""
        if not self._outlet.is_open:
            return
        event_id: str | None = None
        try:
            event = _parsed(message)
            self._note(event)
            # Told before the check: a refusal names the event it refuses.
            event_id = event.get("event_id") if isinstance(event.get("event_id"), str) else None
            check_event(event)
            self._act(event)
        except Refusal as refusal:
            self._outlet.refuse(refusal, event_id)
        self._watch.changed()

    async def end(self, close_code: int | None) -> None:
        """The connection is gone: stops every timer and task."""
        self.close_code = close_code
        self._outlet.shut()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._watch.changed()

    # One method for each thing a client asks.

    def _act(self, event: Json) -> None:
        match event["type"]:
            case "input_audio_buffer.append":
                self._append(event["audio"])
            case "session.update":
                self._update(event["session"])
            case "input_audio_buffer.commit":
                self._commit_input()
            case "input_audio_buffer.clear":
                self._input.clear()
                self._outlet.emit("input_audio_buffer.cleared")
            case "conversation.item.create":
                self._create_item(event["item"], event.get("previous_item_id"))
            case "conversation.item.truncate":
                self._truncate(event["item_id"], event["content_index"], event["audio_end_ms"])
            case "conversation.item.delete":
                self.conversation.delete(event["item_id"])
                self._outlet.emit("conversation.item.deleted", item_id=event["item_id"])
            case "conversation.item.retrieve":
                self._retrieve(event["item_id"])
            case "response.create":
                self._respond("client", event.get("response") or {})
            case "response.cancel":
                self._cancel(event.get("response_id"))
            case other:
                raise invalid_value(f"'{other}' is for WebRTC and SIP sessions only.", "type")

    def _append(self, encoded: str) -> None:
        data = decoded_audio(encoded, "audio")
        if len(data) > _MAX_APPEND_BYTES:
            raise invalid_value(f"Invalid 'audio': at most {_MAX_APPEND_BYTES} bytes at a time.", "audio")
        self.input_bytes += len(data)
        if self._record:
            self.input_audio += data
        for heard in self._input.write(data):
            match heard:
                case SpeechStarted():
                    self._speech_started(heard)
                case SpeechStopped():
                    self._speech_stopped(heard)

    def _update(self, change: Json) -> None:
        before = self.config
        after = updated(before, change, has_spoken=self._has_spoken, is_speaking=bool(self._responses_now()))
        if forced := self._behaviour.faults.echo_format:
            wire = dict(PCM_24K) if forced == "audio/pcm" else {"type": forced}
            after["audio"] = {side: {**audio, "format": wire} for side, audio in after["audio"].items()}
        self.config = after
        if input_format(after) != input_format(before):
            self._input.read_as(input_format(after))
        if turn_detection(after) != turn_detection(before):
            self._input.detect(vad_settings(after))
            self._disarm_idle()
        self._outlet.emit("session.updated", session=after)

    def _create_item(self, body: Json, after: str | None) -> None:
        item = client_item(body, self._ids.new("item"), input_format(self.config))
        previous = self.conversation.insert(item, after)
        self._outlet.emit("conversation.item.added", previous_item_id=previous, item=item.wire)
        self._outlet.emit("conversation.item.done", previous_item_id=previous, item=item.wire)

    def _truncate(self, item_id: str, content_index: int, audio_end_ms: int) -> None:
        self.conversation.truncate(item_id, content_index, audio_end_ms)
        self._outlet.emit(
            "conversation.item.truncated",
            item_id=item_id,
            content_index=content_index,
            audio_end_ms=audio_end_ms,
        )

    def _retrieve(self, item_id: str) -> None:
        agent = AudioFormat(self.config["audio"]["output"]["format"]["type"])
        item = self.conversation.retrieved(item_id, input_format(self.config), agent)
        self._outlet.emit("conversation.item.retrieved", item=item)

    def _cancel(self, response_id: str | None) -> None:
        found = self._beside.get(response_id or "") or self._active
        if found is None or response_id not in (None, found.id):
            raise Refusal("response_cancel_not_active", "Cancellation failed: no active response found")
        found.cancel("client_cancelled")

    # Turns.

    def _speech_started(self, heard: SpeechStarted) -> None:
        self._disarm_idle()
        self._input.begin_turn(heard.start_ms)
        self._turn_item_id = self._ids.new("item")
        self._outlet.emit(
            "input_audio_buffer.speech_started",
            audio_start_ms=heard.start_ms,
            item_id=self._turn_item_id,
        )
        if self._active and self._turn_detection()["interrupt_response"]:
            self._active.cancel("turn_detected")

    def _speech_stopped(self, heard: SpeechStopped) -> None:
        self._outlet.emit(
            "input_audio_buffer.speech_stopped", audio_end_ms=heard.end_ms, item_id=self._turn_item_id
        )
        mulaw = self._input.end_turn(heard.end_ms)
        settings = vad_settings(self.config)
        silence_ms = settings.silence_duration_ms if settings else 0
        spoken = mulaw[: max(0, len(mulaw) - silence_ms * BYTES_PER_MS)]
        self._commit(Item(_caller_wire(self._turn_item_id), len(mulaw), mulaw), spoken)
        if self._turn_detection()["create_response"]:
            self._respond_by_itself("turn")

    def _commit_input(self) -> None:
        mulaw = self._input.commit()
        self._commit(Item(_caller_wire(self._ids.new("item")), len(mulaw), mulaw), mulaw)

    def _commit(self, item: Item, spoken: bytes) -> None:
        previous = self.conversation.append(item)
        self._outlet.emit("input_audio_buffer.committed", previous_item_id=previous, item_id=item.id)
        self._outlet.emit("conversation.item.added", previous_item_id=previous, item=item.wire)
        self._outlet.emit("conversation.item.done", previous_item_id=previous, item=item.wire)
        if spoken:
            self._unanswered = _Turn(spoken, self._behaviour.hears(spoken))
            self._transcribe(item, self._unanswered.words)

    def _turn_detection(self) -> Json:
        found = turn_detection(self.config)
        assert found is not None, "a turn is detected only when turn detection is on"
        return found

    # The caller's transcript comes from another model, at its own time (realtime.md 1.5).

    def _transcribe(self, item: Item, words: str) -> None:
        config = self.config["audio"]["input"]["transcription"]
        when = self._behaviour.faults.transcription
        if config is None or when == "never":
            return
        where = {"item_id": item.id, "content_index": 0}

        def complete() -> None:
            item.wire["content"][0]["transcript"] = words
            kind = "conversation.item.input_audio_transcription"
            self._outlet.emit(f"{kind}.delta", **where, delta=words)
            usage = transcription_usage(config["model"], item.audio_ms, words)
            self._outlet.emit(f"{kind}.completed", **where, transcript=words, usage=usage)

        def fail() -> None:
            error = {
                "type": "transcription_error",
                "code": "audio_unintelligible",
                "message": "The audio could not be transcribed.",
                "param": None,
            }
            self._outlet.emit("conversation.item.input_audio_transcription.failed", **where, error=error)

        tell = fail if when == "failed" else complete
        if when == "after_response":
            self._transcripts_due.append(tell)
        else:
            self._later(self._behaviour.timing.transcription_ms / 1000, tell)

    # Responses.

    def _respond_by_itself(self, cause: Literal["turn", "idle"]) -> None:
        """A response that no client event asked for; when it may not start, that too is an `error` event."""
        try:
            self._respond(cause, {})
        except Refusal as refusal:
            self._outlet.refuse(refusal)

    def _respond(self, cause: Literal["client", "turn", "idle"], params: Json) -> None:
        in_band = params.get("conversation", "auto") == "auto"
        if in_band and self._active:
            raise Refusal(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {self._active.id}. "
                "Wait until the response is finished before creating a new one.",
            )
        settings = self._response_settings(params, in_band=in_band)
        request = self._reply_request(cause, params, in_band=in_band)
        response = Response(
            self._behaviour.script(request),
            settings=settings,
            tokens=self._billing.input_tokens(self.config, params, self.conversation),
            timing=self._behaviour.timing,
            conversation=self.conversation if in_band else None,
            outlet=self._outlet,
            ids=self._ids,
            on_done=self._response_done,
        )
        if in_band:
            self._active = response
            self._disarm_idle()
        else:
            self._beside[response.id] = response
        self._has_spoken = self._has_spoken or settings.modality == "audio"
        self._watch_task(response.begin())
        self._tell_rate_limits()

    def _response_settings(self, params: Json, *, in_band: bool) -> ResponseSettings:
        output = {**self.config["audio"]["output"], **params.get("audio", {}).get("output", {})}
        if self._has_spoken and output["voice"] != self.config["audio"]["output"]["voice"]:
            message = "Cannot update a conversation's voice if assistant audio is present."
            raise Refusal("cannot_update_voice", message, "response.audio.output.voice")
        chosen = {**self.config, **params}
        voice = output["voice"]
        return ResponseSettings(
            output_format=output["format"],
            voice=voice if isinstance(voice, str) else voice["id"],
            modality=chosen["output_modalities"][0],
            max_output_tokens=chosen["max_output_tokens"],
            metadata=params.get("metadata"),
            conversation_id=self._conversation_id if in_band else None,
        )

    def _reply_request(
        self, cause: Literal["client", "turn", "idle"], params: Json, *, in_band: bool
    ) -> ReplyRequest:
        self._responses += 1
        tools = {**self.config, **params}["tools"]
        turn = self._unanswered if in_band else None
        return ReplyRequest(
            number=self._responses,
            cause=cause,
            instructions=params.get("instructions"),
            metadata=params.get("metadata") or {},
            tools=tuple(tool["name"] for tool in tools if tool["type"] == "function"),
            caller_mulaw=turn.mulaw if turn else b"",
            caller_words=turn.words if turn else "",
            params=params,
            history=tuple(item.wire for item in self.conversation),
        )

    def _response_done(self, response: Response) -> None:
        if response is self._active:
            self._active = None
            if response.status != "failed":
                self._unanswered = None
            self._arm_idle(response.audio_ms)
        else:
            self._beside.pop(response.id, None)
        self._tell_rate_limits()
        due, self._transcripts_due = self._transcripts_due, []
        for tell in due:
            tell()

    def _responses_now(self) -> list[Response]:
        return [*self._beside.values(), *([self._active] if self._active else [])]

    def _tell_rate_limits(self) -> None:
        limits = self._billing.rate_limits(len(self._responses_now()), is_active=self._active is not None)
        self._outlet.emit("rate_limits.updated", rate_limits=limits)

    # Time.

    def _arm_idle(self, playing_ms: int) -> None:
        """The idle timeout counts from response.done plus the playing time of its audio (realtime.md 1.3)."""
        self._disarm_idle()
        idle_ms = (turn_detection(self.config) or {}).get("idle_timeout_ms")
        if idle_ms is not None and not self._input.is_speaking:
            self._idle = self._later((playing_ms + idle_ms) / 1000, self._idle_for(idle_ms))

    def _disarm_idle(self) -> None:
        if self._idle:
            self._idle.cancel()
            self._timers.discard(self._idle)
            self._idle = None

    def _idle_for(self, idle_ms: int) -> Callable[[], None]:
        def expired() -> None:
            self._idle = None
            end_ms = self._input.clock_ms
            start_ms = max(0, end_ms - idle_ms)
            item = Item(_caller_wire(self._ids.new("item")), (end_ms - start_ms) * BYTES_PER_MS)
            self._input.clear()
            self._outlet.emit(
                "input_audio_buffer.timeout_triggered",
                audio_start_ms=start_ms,
                audio_end_ms=end_ms,
                item_id=item.id,
            )
            self._commit(item, b"")
            self._respond_by_itself("idle")

        return expired

    def _later(self, delay_s: float, act: Callable[[], None]) -> asyncio.TimerHandle:
        def fire() -> None:
            self._timers.discard(handle)
            act()

        handle = self._loop.call_later(delay_s / self._behaviour.timing.clock_rate, fire)
        self._timers.add(handle)
        return handle

    def _watch_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()):
            _LOG.error("simulated response failed", exc_info=failure)
            self._outlet.close(1011, "internal error")

    def _note(self, event: Json) -> None:
        if self._record:
            self.received.append(Recorded(self._loop.time(), event))


def _parsed(message: str | bytes) -> Json:
    if isinstance(message, bytes):
        raise Refusal("invalid_event", "Binary frames are not supported: send JSON in text frames.")
    try:
        event = orjson.loads(message)
    except orjson.JSONDecodeError as error:
        raise Refusal("invalid_event", f"Invalid JSON: {error}.") from None
    if not isinstance(event, dict):
        raise Refusal("invalid_event", "An event is a JSON object.")
    return event


def _caller_wire(item_id: str) -> Json:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }
