"""The events of a simulated call: `Phone.timeline` is a list of them, in order.

`at` is always the event loop's time in seconds. Positions count bytes of the stream's playout
(app/sim/phone/playout.py).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from app.sim.phone.playout import BYTES_PER_MS


class EndReason(StrEnum):
    """Why the call is over."""

    CALLER = "the caller hung up"
    HANGUP = "the document hung up"
    DOCUMENT_END = "the document came to its end"
    REJECTED = "the call was rejected"
    REST = "the call was completed by REST"
    APPLICATION_ERROR = "Twilio gave up: application error"


Purpose = Literal["voice", "action", "redirect", "rest"]
ClosedBy = Literal["caller", "rest", "server", "network", "refused"]


@dataclass(frozen=True, slots=True)
class WebhookAnswered:
    at: float
    purpose: Purpose
    url: str
    status: int
    took_ms: float
    region: str | None = None
    """Where it was answered, if the application says so."""


@dataclass(frozen=True, slots=True)
class DocumentRead:
    """TwiML was understood; `verbs` are its top-level element names in order."""

    at: float
    url: str
    verbs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CallAnswered:
    at: float


@dataclass(frozen=True, slots=True)
class CallbackSent:
    """A status callback (call or stream) was answered with `status`; `what` is its CallStatus or StreamEvent."""

    at: float
    what: str
    url: str
    status: int


@dataclass(frozen=True, slots=True)
class SayHeard:
    at: float
    text: str
    language: str
    voice: str


@dataclass(frozen=True, slots=True)
class PauseHeard:
    at: float
    length_s: int


@dataclass(frozen=True, slots=True)
class Dialled:
    """<Dial> was reached. No real call is made."""

    at: float
    numbers: tuple[str, ...]
    caller_id: str | None


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The upgrade was accepted. `url` as in the TwiML."""

    at: float
    url: str
    took_ms: float
    region: str | None = None
    """Where it was answered, if the application says so."""


@dataclass(frozen=True, slots=True)
class StreamStarted:
    """`start` was handed to the socket; audio follows."""

    at: float
    stream_sid: str


@dataclass(frozen=True, slots=True)
class AudioReceived:
    """One media message of the application, now bytes `start` to `end` of the playout."""

    at: float
    start: int
    end: int

    @property
    def ms(self) -> float:
        return (self.end - self.start) / BYTES_PER_MS


@dataclass(frozen=True, slots=True)
class MarkReceived:
    at: float
    name: str
    position: int


@dataclass(frozen=True, slots=True)
class MarkEchoed:
    """`heard`: its audio was played; False: a clear sent it back."""

    at: float
    name: str
    position: int
    heard: bool


@dataclass(frozen=True, slots=True)
class ClearReceived:
    """Playout stopped at `played_to`; the `discarded_bytes` behind it were never heard."""

    at: float
    played_to: int
    discarded_bytes: int


@dataclass(frozen=True, slots=True)
class AgentSpoke:
    """A stretch of speech by the agent is over (recognised by loudness); it began at `started_at`."""

    at: float
    started_at: float
    ms: int


@dataclass(frozen=True, slots=True)
class DtmfSent:
    at: float
    digit: str


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """The stream is over, or never came up ("refused"). `code`: the WebSocket close code, if there was one."""

    at: float
    by: ClosedBy
    code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """An entry Twilio would make in its error log (`code`), or a limit of this phone (None)."""

    at: float
    code: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Violation:
    """A message of the application that is not right; `code` None: Twilio would play it without complaint."""

    at: float
    code: int | None
    why: str
    message: str


@dataclass(frozen=True, slots=True)
class HungUp:
    at: float
    reason: EndReason


PhoneEvent = (
    WebhookAnswered
    | DocumentRead
    | CallAnswered
    | CallbackSent
    | SayHeard
    | PauseHeard
    | Dialled
    | StreamOpened
    | StreamStarted
    | AudioReceived
    | MarkReceived
    | MarkEchoed
    | ClearReceived
    | AgentSpoke
    | DtmfSent
    | StreamClosed
    | Problem
    | Violation
    | HungUp
)
