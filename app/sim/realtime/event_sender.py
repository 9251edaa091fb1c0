"""Sends the events of a simulated session: numbers and records them, and plays the configured faults.

This module knows what an event looks like on the wire and how a connection ends, but not why an event is sent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from app.sim.realtime.faults import End, Faults, error_by_code
from app.sim.realtime.schema import Refusal

Json = dict[str, Any]

_UNKNOWN_EVENT: Final = "response.output_hologram.delta"
"""A type that the service does not have today: clients must ignore unknown types."""

_WARNING: Final = {
    "message": "The parameter is ignored for this model.",
    "code": "parameter_ignored",
    "param": "session.temperature",
}
"""A warning is not fatal (realtime.md 2.4). The service's codes are not published: this text is made up."""


class Connection(Protocol):
    """The connection of a session. Every method returns at once and may be called after the close."""

    def send(self, message: bytes) -> None: ...
    def close(self, code: int, reason: str) -> None: ...
    def abort(self) -> None: ...
    def reset(self) -> None: ...
    def stall(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """One event, sent or received, and its time in the event loop's seconds."""

    at: float
    event: Json

    @property
    def type(self) -> str:
        return str(self.event.get("type"))


class Ids:
    """Makes the ids of one session. Two sessions never share an id, so a test notices a stale one."""

    def __init__(self, session_number: int) -> None:
        self.session = session_number
        self._last = 0

    def new(self, kind: str) -> str:
        self._last += 1
        return f"{kind}_{self.session:04x}{self._last:08x}"


class EventSender:
    """Sends events while the session is open. After its end it drops them, as a dead peer would."""

    def __init__(
        self,
        *,
        connection: Connection,
        ids: Ids,
        faults: Faults,
        now: Callable[[], float],
        sent: list[Recorded] | None,
        on_sent: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._ids = ids
        self._faults = faults
        self._now = now
        self._sent = sent  # None: keep no record
        self._on_sent = on_sent
        self.fault_at: float | None = None  # when a configured fault ended the connection, or sent its error
        self._open = True
        self._error_due = faults.error_code is not None
        self._count = 0  # events sent
        self._sent_count = 0  # events sent of type `end_after`
        self._received_count = 0  # events received of type `end_before`

    @property
    def is_open(self) -> bool:
        return self._open

    def ends_before(self, event: Json) -> bool:
        """True when the fault strikes at this event of the client: the connection has ended then."""
        faults = self._faults
        if not faults.end or not faults.end_before:
            return False
        if faults.end_before not in (event.get("type"), _item_type(event)):
            return False
        self._received_count += 1
        if self._received_count != faults.end_before_count:
            return False
        self._end(faults.end)
        return True

    def emit(self, kind: str, **members: Any) -> None:
        """Sends one event with a new `event_id`."""
        self.send({"type": kind, "event_id": self._ids.new("event"), **members})
        if self._open:
            self._play_faults(kind)

    def send(self, event: Json) -> None:
        """Sends exactly this."""
        if not self._open:
            return
        message = orjson.dumps(_with_extras(event) if self._faults.extra_fields else event)
        if self._sent is not None:
            # Read back from the wire form: the objects inside go on changing.
            self._sent.append(Recorded(self._now(), orjson.loads(message)))
        self._connection.send(message)
        self._on_sent()

    def refuse(self, refusal: Refusal, event_id: str | None = None) -> None:
        """Answers with an `error` event (realtime.md 1.9)."""
        error = {
            "type": refusal.kind,
            "code": refusal.code,
            "message": refusal.message,
            "param": refusal.param,
            "event_id": event_id,
        }
        self.emit("error", error=error)

    def expire(self) -> None:
        """The end of the 60 minutes: an error event, then close 1001 with the same text (realtime.md 1.2)."""
        refusal = error_by_code("session_expired")
        self.refuse(refusal)
        self.close(1001, refusal.message)

    def close(self, code: int, reason: str = "") -> None:
        """Closes properly, with a closing handshake."""
        if self._open:
            self._open = False
            self._connection.close(code, reason)

    def abort(self) -> None:
        """Drops the TCP connection without a close frame; the client sees 1006."""
        self._open = False
        self._connection.abort()

    def reset(self) -> None:
        """Drops the TCP connection with an RST, as when the host of the service dies."""
        self._open = False
        self._connection.reset()

    def stall(self) -> None:
        """Stops sending and reading without closing, so pings go unanswered too."""
        self._open = False
        self._connection.stall()

    def shut(self) -> None:
        """Sends nothing more: the connection has ended."""
        self._open = False

    def _play_faults(self, kind: str) -> None:
        faults = self._faults
        self._count += 1
        if faults.unknown_event_every and self._count % faults.unknown_event_every == 0:
            self.send({"type": _UNKNOWN_EVENT, "event_id": self._ids.new("event"), "delta": "~"})
        if faults.warning_every and self._count % faults.warning_every == 0:
            self.send({"type": "warning", "event_id": self._ids.new("event"), "warning": _WARNING})
        if self._error_due and faults.error_code and kind == faults.error_after:
            self._error_due = False
            self.fault_at = self._now()
            self.refuse(error_by_code(faults.error_code))
        if faults.end and faults.end_before is None and kind == faults.end_after:
            self._sent_count += 1
            if self._sent_count == faults.end_after_count:
                self._end(faults.end)

    def _end(self, how: End) -> None:
        self.fault_at = self._now()
        match how:
            case "abort":
                self.abort()
            case "reset":
                self.reset()
            case "internal_error":
                self.close(1011, "internal error")
            case "clean":
                self.close(1000)
            case "stall":
                self.stall()
            case "expire":
                self.expire()


def _item_type(event: Json) -> Any:
    """The type of the item that a `conversation.item.create` holds; None for any other event."""
    item = event.get("item")
    return item.get("type") if isinstance(item, dict) else None


def _with_extras(value: Any) -> Any:
    """The same event with an unknown member in each of its objects."""
    match value:
        case dict():
            return {**{name: _with_extras(inner) for name, inner in value.items()}, "x_new_field": 1}
        case list():
            return [_with_extras(inner) for inner in value]
        case _:
            return value
