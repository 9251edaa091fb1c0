"""The vocabulary of a call: what it hears (events) and what it asks for (commands).

An event says when it happens and what the call does about it. A command is carried out by the bridge, in the
order given. Audio is base64 text of mu-law: counted, never looked into. No `repr` has what was spoken: not a log.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto

from app.call.ending import EndReason
from app.call.evidence import Route
from app.call.failure import BackendFailure
from app.call.history import History
from app.call.journal import Facts
from app.call.plan import Abilities, Plan, Purpose
from app.call.records import Record, Speaker


class Side(StrEnum):
    """Which of a call's two connections."""

    PHONE = "phone"
    BACKEND = "backend"


# --- Events: the phone -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PhoneConnected:
    """Twilio's WebSocket was accepted. `start` must follow soon."""

    trail: Route | None = None
    """How it came here, for the call's records."""


@dataclass(frozen=True, slots=True)
class PhoneStarted:
    """Twilio's `start`: audio flows from now on. The greeting may begin once the backend is configured."""

    stream_sid: str
    call_sid: str


@dataclass(slots=True)
class CallerAudio:
    """Twilio's `media`, 50 a second: an event only when `Call.passes` does not let it straight through.

    Not frozen: that would double what it costs to make one.
    """

    payload: str = field(repr=False)
    audio_bytes: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class MarkReturned:
    """Twilio's `mark`: the audio before it was played, or thrown away by a `clear` (twilio.md 1.4)."""

    name: str


@dataclass(frozen=True, slots=True)
class KeyPressed:
    """Twilio's `dtmf`: given to the model as text."""

    digit: str


@dataclass(frozen=True, slots=True)
class PhoneStopped:
    """Twilio's `stop`: the caller hung up, or a REST update ended the stream."""


# --- Events: the backend ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BackendOpened:
    """The backend's first message: it may be configured now."""

    ends_unix_ms: int | None = None
    """When the session will end, if the backend says so."""


@dataclass(frozen=True, slots=True)
class BackendConfigured:
    """The backend echoed its session, with these formats. Audio may flow only when they are those we asked for."""

    formats_match: bool
    echoed: str = ""


@dataclass(frozen=True, slots=True)
class BackendUnreachable:
    """Dialling failed: refused, timed out, TLS, or an HTTP status instead of 101."""

    failure: BackendFailure


@dataclass(frozen=True, slots=True)
class BackendFound:
    """The answer to FindBackend when there is one. The call answers with SwitchBackend."""

    plan: Plan
    """The tenant's, as this backend can carry it out."""
    facts: Facts
    abilities: Abilities


@dataclass(frozen=True, slots=True)
class NoBackendLeft:
    """The answer to FindBackend when no other backend may have this call."""


@dataclass(frozen=True, slots=True)
class SpareReady:
    """The answer to OpenSpare: a second session is configured, and waits for SwitchToSpare."""

    found: BackendFound
    ends_unix_ms: int | None = None


@dataclass(frozen=True, slots=True)
class SpareLost:
    """The answer to OpenSpare when there is no second session, or not any more."""

    why: str


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The backend's VAD hears the caller: barge-in, whatever the state of any response."""

    item_id: str


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The backend's VAD heard the caller stop: the latency clock starts."""

    item_id: str


@dataclass(frozen=True, slots=True)
class CallerTurnCommitted:
    """The caller's audio became an item; the backend answers it by itself."""

    item_id: str


@dataclass(frozen=True, slots=True)
class CallerTranscribed:
    """What the caller said; late, not in order, sometimes None because it could not be transcribed."""

    item_id: str
    text: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class ResponseStarted:
    """`response.created`: the one active response."""

    response_id: str


@dataclass(frozen=True, slots=True)
class AgentAudio:
    """A piece of agent speech: faster than real time, of any length."""

    response_id: str
    item_id: str
    payload: str = field(repr=False)
    audio_bytes: int


@dataclass(frozen=True, slots=True)
class AgentAudioEnded:
    """No more audio of this item will come; what came is not played yet."""

    response_id: str
    item_id: str


@dataclass(frozen=True, slots=True)
class AgentText:
    """Transcript of agent speech; runs ahead of the audio. `final` replaces what came before."""

    response_id: str
    item_id: str
    text: str = field(repr=False)
    final: bool = False


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The model wants a tool. Run when its response completes: a cancelled one's arguments may be cut."""

    response_id: str
    tool_call_id: str
    name: str
    arguments: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one response by kind. Input counts include their cached part (realtime.md 1.12)."""

    input_text: int = 0
    input_audio: int = 0
    cached_text: int = 0
    cached_audio: int = 0
    output_text: int = 0
    output_audio: int = 0


class ResponseStatus(StrEnum):
    """`response.done.response.status` (realtime.md 1.6)."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    INCOMPLETE = "incomplete"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ResponseEnded:
    """`response.done`. A failed one may come without any `error` event."""

    response_id: str
    status: ResponseStatus
    error: "ErrorKind | None" = None
    """What the failure means for the call; None unless it failed."""
    failure: BackendFailure | None = None
    """Why it failed; None unless it did."""
    usage: Usage = Usage()


class ErrorKind(StrEnum):
    """What a backend's `error` means for the call."""

    HARMLESS = "harmless"
    """A race or a detail: counted, the call goes on."""
    BUSY = "busy"
    """Our response.create met an active response: wait for its end, then ask again."""
    RETRY = "retry"
    """The response cannot be made now."""
    FATAL = "fatal"
    """Key, quota, billing, expiry: this session will not work again."""
    WARNING = "warning"
    """Nothing was refused: something was understood otherwise than it was said."""


@dataclass(frozen=True, slots=True)
class BackendFault:
    """The backend's `error` event, classified by its wire module. No text in it has personal data."""

    kind: ErrorKind
    failure: BackendFailure
    """What ends the backend's time with this call, if the error does."""
    param: str = ""
    """The field that it was about, such as `session.audio.output.voice`."""
    configuration: bool = False
    """It answers the configuration that we sent: no BackendConfigured will follow."""


# --- Events: both, and none ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BadMessage:
    """A message that could not be understood. Counted; past a small limit the call ends."""

    side: Side
    why: str


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A connection closed without being asked to."""

    side: Side
    code: int
    why: str = ""
    """What the peer did that made us close it; empty when it closed, or the network did."""


@dataclass(frozen=True, slots=True)
class PeerSlow:
    """A peer does not read: our outgoing buffer is over its bound."""

    side: Side


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to our ping."""

    side: Side


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A tool's output, or its failure put in words for the model."""

    tool_call_id: str
    output: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """This process must stop."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A later leg carries the call: this one has nothing to say to the caller any more."""


@dataclass(frozen=True, slots=True)
class HistoryFound:
    """What was said in earlier legs, for a call that was told to wait for it."""

    history: History


@dataclass(frozen=True, slots=True)
class HangUpFailed:
    """Ending the call by REST did not work; closing the stream does it instead."""


@dataclass(frozen=True, slots=True)
class MoveRequested:
    """This machine drains: another one is to go on with the call."""

    by: float
    """The latest instant, by the call's clock."""


class RedirectOutcome(Enum):
    """What came of a redirect."""

    ACCEPTED = auto()
    """Twilio ends this stream, and fetches what comes next."""
    CALL_OVER = auto()
    """The call had ended before."""
    FAILED = auto()
    """Twilio refused, did not answer, or could not be asked. It may have carried it out all the same."""


@dataclass(frozen=True, slots=True)
class RedirectAnswered:
    """A Redirect was tried."""

    outcome: RedirectOutcome
    why: str = ""
    """Why it failed, for the log."""


@dataclass(frozen=True, slots=True)
class Broken:
    """An exception came out of this call: a bug of ours. The call ends, its neighbours do not notice."""


@dataclass(frozen=True, slots=True)
class Tick:
    """`Call.deadline()` has come."""


Event = (
    PhoneConnected
    | PhoneStarted
    | CallerAudio
    | MarkReturned
    | KeyPressed
    | PhoneStopped
    | BackendOpened
    | BackendConfigured
    | BackendUnreachable
    | BackendFound
    | NoBackendLeft
    | SpareReady
    | SpareLost
    | SpeechStarted
    | SpeechStopped
    | CallerTurnCommitted
    | CallerTranscribed
    | ResponseStarted
    | AgentAudio
    | AgentAudioEnded
    | AgentText
    | ToolCalled
    | ResponseEnded
    | BackendFault
    | BadMessage
    | PeerLost
    | PeerSlow
    | Pong
    | ToolFinished
    | ShutdownRequested
    | Superseded
    | HistoryFound
    | HangUpFailed
    | MoveRequested
    | RedirectAnswered
    | Broken
    | Tick
)

# --- Commands --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendAudio:
    """Play this to the caller."""

    payload: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SendMark:
    """Ask to be told when everything before it was played."""

    name: str


@dataclass(frozen=True, slots=True)
class SendClear:
    """Throw away what is not played yet."""


@dataclass(frozen=True, slots=True)
class Configure:
    """Tell the backend formats, voice, instructions, tools."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class PassOn:
    """Caller audio for the backend."""

    payload: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PassSilence:
    """Caller silence for the backend, in place of audio that never came."""

    ms: int


@dataclass(frozen=True, slots=True)
class CreateResponse:
    """Have the agent speak. The core never asks while a response is active."""

    purpose: Purpose
    instructions: str
    words: str = field(default="", repr=False)
    """To be spoken exactly, by a backend that can; the instructions ask for the same."""
    may_call_tools: bool = True
    """False: the model must speak. It has called tools many times in a row, and the caller heard nothing."""


@dataclass(frozen=True, slots=True)
class CancelResponse:
    """Stop this response, and no other that may have become active meanwhile."""

    response_id: str


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tell the backend that of this item only so much was heard."""

    item_id: str
    audio_end_ms: int


@dataclass(frozen=True, slots=True)
class AddTurn:
    """Add a turn to the backend's conversation as text. Nothing is spoken, and no response begins."""

    speaker: Speaker
    text: str = field(repr=False)
    item_id: str = ""
    """A name for it, to be used in `after` and DeleteItem; empty: the backend chooses one."""
    after: str = ""
    """The item behind which it belongs; empty: at the end."""
    audio: tuple[str, ...] = field(default=(), repr=False)
    """Of the caller, in place of the text: what was said and not written down, piece by piece."""


@dataclass(frozen=True, slots=True)
class DeleteItem:
    """Take an item out of the backend's conversation."""

    item_id: str


@dataclass(frozen=True, slots=True)
class AddToolCall:
    """Add a tool call to the conversation of a backend that has not made it."""

    tool_call_id: str
    name: str
    arguments: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AddToolOutput:
    """Give the model a tool's output."""

    tool_call_id: str
    output: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunTool:
    """Run a tenant's tool; answer with ToolFinished."""

    tool_call_id: str
    name: str
    arguments: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ping:
    """Send a WebSocket ping; answer with Pong."""

    side: Side


@dataclass(frozen=True, slots=True)
class Remember:
    """Hand a record to the ledger, without waiting."""

    record: Record


@dataclass(frozen=True, slots=True)
class HangUp:
    """End the phone call by REST, or answer HangUpFailed."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """Have Twilio continue the call at its resume URL, by REST, and answer RedirectAnswered.

    Before that the call's records are stored where another machine reads them, within MOVE_FLUSH_S.
    """


@dataclass(frozen=True, slots=True)
class ClosePhone:
    """Close the media socket. Twilio then asks `/twiml/after` what to do."""


@dataclass(frozen=True, slots=True)
class CloseBackend:
    """Close the backend session (normal close: it stops billing at once)."""


@dataclass(frozen=True, slots=True)
class FindBackend:
    """Look for another backend, because the present one failed: answer BackendFound, or NoBackendLeft."""

    failure: BackendFailure
    excluded: tuple[str, ...]
    """Names of backends that must not be found."""
    only_working: bool
    """True: only one that works, as far as is known."""


@dataclass(frozen=True, slots=True)
class SwitchBackend:
    """Close the present backend, report nothing of it any more, and dial the one that was found last."""


@dataclass(frozen=True, slots=True)
class OpenSpare:
    """Open a second session beside the present one and configure it: answer SpareReady, or SpareLost."""


@dataclass(frozen=True, slots=True)
class SwitchToSpare:
    """Close the present session, report nothing of it any more, and go on with the second one."""


@dataclass(frozen=True, slots=True)
class ReportReady:
    """Report how long the present backend took, from the dialling to its configured session."""

    after_ms: float


@dataclass(frozen=True, slots=True)
class ReportFirstAudio:
    """Report how long the present backend took, from the request for the greeting to its first audio."""

    after_ms: float


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """Report how the present backend did: by what it failed, or None when it served the call well."""

    failure: BackendFailure | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The last command of a call: nothing more will be asked for."""

    reason: EndReason
    failure: BackendFailure | None = field(default=None, compare=False)
    """The backend's failure, when that ended the call."""


Command = (
    SendAudio
    | SendMark
    | SendClear
    | Configure
    | PassOn
    | PassSilence
    | CreateResponse
    | CancelResponse
    | Truncate
    | AddTurn
    | DeleteItem
    | AddToolCall
    | AddToolOutput
    | RunTool
    | Ping
    | Remember
    | HangUp
    | Redirect
    | ClosePhone
    | CloseBackend
    | FindBackend
    | SwitchBackend
    | OpenSpare
    | SwitchToSpare
    | ReportReady
    | ReportFirstAudio
    | ReportOutcome
    | Ended
)
