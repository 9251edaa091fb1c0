"""One session of a simulated Realtime backend: the client's events in, the service's events out.

It reads each event (realtime.md 1.3 to 1.10, 2.2 to 2.4), lets its Service check it, and dispatches it. turns.py
handles the caller's turns and responses.py the answers; sockets, upgrades and close codes are in server.py. Each
message is handled synchronously, and time comes only from the loop's timers.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from app.sim.notifier import Notifier
from app.sim.realtime.event_sender import Connection, EventSender, Ids, Recorded
from app.sim.realtime.faults import Faults
from app.sim.realtime.items import Conversation, client_item, decoded_audio
from app.sim.realtime.record import Record
from app.sim.realtime.responses import Responses
from app.sim.realtime.schema import Refusal, invalid_value
from app.sim.realtime.service import Service, SessionSettings
from app.sim.realtime.state import Behaviour, Clock, SessionState
from app.sim.realtime.turns import Turns

Json = dict[str, Any]

_MAX_APPEND_BYTES: Final = 15 * 1024 * 1024  # realtime.md 1.4


class LiveSession:
    """The session of one connection, from `session.created` to the close. Tests control and inspect it."""

    def __init__(
        self,
        *,
        number: int,
        model: str,
        headers: Mapping[str, str],
        service: Service,
        connection: Connection,
        behaviour: Behaviour,
        notifier: Notifier,
        expires_at: int,
        record: bool,
    ) -> None:
        self.number = number  # from 0, in order of arrival
        self.headers = headers  # of the upgrade request, names in lower case
        self.record = Record(keep=record)
        self.close_code: int | None = None  # as the client's library saw it or sent it; set once it is over
        self._behaviour = behaviour
        self._notifier = notifier
        ids = Ids(number)
        self._events_out = EventSender(
            connection=connection,
            ids=ids,
            faults=behaviour.faults,
            now=asyncio.get_running_loop().time,
            sent=self.record.sent if record else None,
            on_sent=notifier.changed,
        )
        self._clock = Clock(behaviour.timing.clock_rate, self._fail)
        config = service.new_session(ids.new("sess"), model, expires_at)
        self._state = SessionState(
            service=service,
            behaviour=behaviour,
            ids=ids,
            events_out=self._events_out,
            clock=self._clock,
            config=config,
            settings=service.settings(config),
        )
        self._responses = Responses(self._state)
        self._turns = Turns(self._state, self._responses)

    # For the assertions of tests.

    @property
    def model(self) -> str:
        return str(self._state.config["model"])

    @property
    def config(self) -> Json:
        """The session as `session.updated` shows it."""
        return self._state.config

    @property
    def settings(self) -> SessionSettings:
        """The session's settings, independent of the names that its service uses."""
        return self._state.settings

    @property
    def conversation(self) -> Conversation:
        return self._state.conversation

    @property
    def received(self) -> list[Recorded]:
        """Every client event, when recording."""
        return self.record.received

    @property
    def sent(self) -> list[Recorded]:
        """Every server event, when recording."""
        return self.record.sent

    @property
    def input_bytes(self) -> int:
        """Audio received, in the session's format."""
        return self.record.input_bytes

    @property
    def input_audio(self) -> bytearray:
        """The same audio, when recording."""
        return self.record.input_audio

    @property
    def timers(self) -> tuple[asyncio.TimerHandle, ...]:
        """The timers that are set: of the idle time and of the session's end."""
        return self._clock.timers

    @property
    def faults(self) -> Faults:
        """The faults that were set when it was opened."""
        return self._behaviour.faults

    @property
    def fault_at(self) -> float | None:
        """When one of them ended the connection, or sent its error, in the loop's seconds; None: not yet."""
        return self._events_out.fault_at

    @property
    def idle_in_s(self) -> float | None:
        """Loop seconds until the idle timeout, or None when it is not running."""
        return None if self._turns.idle_at is None else self._turns.idle_at - self._clock.now_s

    def produced_ms(self, item_id: str) -> int:
        """Returns how much audio of an agent's item was sent, before any truncation; 0 for an unknown item."""
        item = self.conversation.find(item_id)
        return item.produced_ms if item else 0

    def events(self, kind: str) -> list[Json]:
        """Returns the client's events of a type so far. Needs recording."""
        return self.record.events(kind)

    async def event(self, kind: str, count: int = 1) -> Json:
        """Waits for the `count`-th event of a type from the client and returns it. Needs recording."""

        def look() -> Json | None:
            found = self.events(kind)
            return found[count - 1] if len(found) >= count else None

        return await self._notifier.until(look)

    async def wait_for(self, look: "Callable[[LiveSession], bool]") -> None:
        """Waits until `look` returns True for this session."""
        await self._notifier.until(lambda: look(self) or None)

    # For tests that interfere.

    def send(self, event: Json) -> None:
        """Sends exactly this to the client, true to the protocol or not."""
        self._events_out.send(event)

    def release(self) -> None:
        """Resumes responses that hold after some deltas."""
        self._responses.release()

    def abort(self) -> None:
        """Drops the connection: the client sees 1006."""
        self._events_out.abort()

    def stall(self) -> None:
        """Stops sending and reading without closing; pings go unanswered."""
        self._events_out.stall()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes the connection with a closing handshake."""
        self._events_out.close(code, reason)

    def expire(self) -> None:
        """Expires the session now, as at the end of the 60 minutes."""
        self._events_out.expire()

    # For the server.

    def begin(self) -> None:
        """Sends `session.created`, unless a fault forbids it, and starts the session's life time."""
        if not self._behaviour.faults.never_greet:
            self._events_out.emit("session.created", session=self.config)
        self._clock.later(self._behaviour.timing.session_life_s, self.expire)

    def receive(self, message: str | bytes) -> None:
        """Handles one message of the client. A wrong one is answered with an `error` event, never raised."""
        if not self._events_out.is_open:
            return
        event_id: str | None = None
        try:
            event = _parsed(message)
            self.record.note(self._clock.now_s, event)
            if self._events_out.ends_before(event):
                self._notifier.changed()
                return
            # Read before the check, since a refusal names the event that it refuses.
            event_id = event.get("event_id") if isinstance(event.get("event_id"), str) else None
            if self._behaviour.faults.ignore_formats and event.get("type") == "session.update":
                event = self._state.service.without_formats(event)
            self._state.service.check(event)
            self._act(event)
        except Refusal as refusal:
            self._events_out.refuse(refusal, event_id)
        self._notifier.changed()

    async def end(self, close_code: int | None) -> None:
        """Stops every timer and task: the connection has ended."""
        self.close_code = close_code
        self._events_out.shut()
        await self._clock.stop()
        self._notifier.changed()

    # One method for each kind of client event.

    def _act(self, event: Json) -> None:
        match event["type"]:
            case "input_audio_buffer.append":
                self._append(event["audio"])
            case "session.update":
                self._update(event["session"])
            case "input_audio_buffer.commit":
                self._turns.commit()
            case "input_audio_buffer.clear":
                self._turns.clear()
            case "conversation.item.create":
                self._create_item(event["item"], event.get("previous_item_id"))
            case "conversation.item.truncate":
                self._state.truncate(event["item_id"], event["content_index"], event["audio_end_ms"])
            case "conversation.item.delete":
                self.conversation.delete(event["item_id"])
                self._events_out.emit("conversation.item.deleted", item_id=event["item_id"])
            case "conversation.item.retrieve":
                self._retrieve(event["item_id"])
            case "response.create":
                self._responses.create("client", event.get("response") or {})
            case "response.cancel":
                self._responses.cancel(event.get("response_id"))
            case other:
                raise AssertionError(f"the service accepts '{other}', which no handler takes")

    def _append(self, encoded: str) -> None:
        data = decoded_audio(encoded, "audio")
        if len(data) > _MAX_APPEND_BYTES:
            raise invalid_value(f"Invalid 'audio': at most {_MAX_APPEND_BYTES} bytes at a time.", "audio")
        self.record.note_audio(data)
        self._turns.write(data)

    def _update(self, change: Json) -> None:
        state, before = self._state, self._state.settings
        after = state.service.updated(
            state.config,
            change,
            has_spoken=self._responses.has_spoken,
            is_speaking=bool(self._responses.now),
        )
        if forced := self._behaviour.faults.echo_format:
            after = state.service.with_format(after, forced)
        state.config, state.settings = after, state.service.settings(after)
        self._turns.configured(before)
        self._events_out.emit("session.updated", session=after)

    def _create_item(self, body: Json, after: str | None) -> None:
        state = self._state
        wire = state.service.item(body, state.ids.new("item"))
        item = client_item(wire, body, state.settings.input_format)
        state.announce(item, state.conversation.insert(item, after))

    def _retrieve(self, item_id: str) -> None:
        settings = self._state.settings
        agent = settings.output_format if self._state.service.returns_agent_audio else None
        item = self.conversation.retrieved(item_id, settings.input_format, agent)
        self._events_out.emit("conversation.item.retrieved", item=item)

    def _fail(self) -> None:
        self._events_out.close(1011, "internal error")


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
