"""What must hold in every call, whatever happens in it: watches a call from outside and complains.

Knows the core's events and commands, and of its inside only the queues whose bounds it checks.
"""

from dataclasses import dataclass, field

from app.call import limits
from app.call.call import Call
from app.call.events import (
    AddToolCall,
    AddToolOutput,
    AddTurn,
    AgentAudio,
    BackendConfigured,
    BackendFault,
    BackendFound,
    CallerTurnCommitted,
    CloseBackend,
    ClosePhone,
    Command,
    CreateResponse,
    Ended,
    ErrorKind,
    Event,
    HangUp,
    PassOn,
    PassSilence,
    Redirect,
    Remember,
    ReportOutcome,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    RunTool,
    SendAudio,
    SendClear,
    SendMark,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
    Truncate,
)
from app.call.pause import TONE
from app.call.phases import Phase
from app.call.plan import Plan, Purpose
from app.call.records import CallEnded, CallEvent, CallStarted, Speaker, Turn
from tests.call.phone_model import length_ms

MOST = {
    "agent_audio_ms": limits.AGENT_AUDIO_WAITING_MAX_MS,
    "agent_pieces": limits.AGENT_PIECES_WAITING_MAX,
    "wishes": len(Purpose),
    "caller_turns": limits.OPEN_TURNS_MAX,
    "agent_turns": limits.OPEN_TURNS_MAX,
    "tool_calls": limits.TOOL_CALLS_MAX,
    "held_frames": limits.HELD_FRAMES_MAX,
    "held_ms": limits.UNANSWERED_AUDIO_MAX_MS,
}
"""The bound of everything that `Call.fill` tells."""

CLOSING = (Remember, ReportOutcome, ClosePhone, CloseBackend, Ended)


@dataclass(slots=True)
class Watcher:
    """Fed with every event and what came of it. Audio names its response by its first letter."""

    call: Call
    configured: bool = False
    backends: int = 1
    """So many have had the call."""
    hung_up: bool = False
    moves: bool = False
    caller_speaking: bool = False
    speaking_since: float = 0.0
    active: str | None = None
    asked: bool = False
    ends: list[Ended] = field(default_factory=list)
    records: list[CallStarted | Turn | CallEvent | CallEnded] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    """Letters of responses that the caller cut off."""
    tools: dict[str, set[str]] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)
    """Tool calls that were run, by any session's wish."""
    known_calls: set[str] = field(default_factory=set)
    """Tool calls that the present session has made, or was told of."""
    received_ms: dict[str, float] = field(default_factory=dict)
    sent_ms: float = 0.0
    now: float = 0.0

    def saw(self, event: Event, now: float, commands: list[Command]) -> None:
        """Check what one event led to."""
        over = bool(self.ends)
        self.now = now
        self._take_in(event)
        for command in commands:
            assert not over, f"{command} after Ended"
            assert not (self.hung_up or self.moves) or isinstance(command, CLOSING), f"{command} after the end"
            self._check(command)
            over = over or isinstance(command, Ended)
        self._check_bounds()
        deadline = self.call.deadline()
        assert (deadline is None) == over, "a call wants a tick exactly until it has ended"
        assert deadline is None or deadline > now, f"deadline {deadline} is not after {now}"

    def _take_in(self, event: Event) -> None:
        if self.call.phase is Phase.TAKING_OVER and isinstance(
            event, SpeechStarted | ResponseStarted | ToolCalled
        ):
            # There is no session, so that nobody says this.
            return
        match event:
            case BackendConfigured(formats_match=True):
                self.configured = True
            case BackendFound():
                self.configured = self.asked = self.caller_speaking = False
                self.active = None
                self.dead.clear()
                self.known_calls.clear()
                self.backends += 1
            case AgentAudio():
                before = self.received_ms.get(event.item_id, 0.0)
                self.received_ms[event.item_id] = before + event.audio_bytes / 8
            case SpeechStarted():
                if not self.caller_speaking:
                    self.speaking_since = self.now
                self.caller_speaking = True
                if self.active is not None:
                    self.dead.add(self.active[-1])
            case SpeechStopped() | CallerTurnCommitted():
                self.caller_speaking = False
            case ResponseStarted():
                self.active, self.asked = event.response_id, False
                if self.caller_speaking and not any(
                    i.startswith(f"item_{event.response_id}") for i in self.received_ms
                ):
                    # Audio that comes before its response is announced is nothing that a backend does.
                    self.dead.add(event.response_id[-1])
            case ResponseEnded():
                if self.active is None and event.status is ResponseStatus.FAILED:
                    # Of a response that was never announced: it can only be the one that was asked for.
                    self.asked = False
                if self.active == event.response_id:
                    self.active = None
                if event.status is not ResponseStatus.COMPLETED:
                    self.tools.pop(event.response_id, None)
            case BackendFault(ErrorKind.BUSY | ErrorKind.RETRY):
                self.asked = False
            case ToolCalled():
                self.known_calls.add(event.tool_call_id)
                self.tools.setdefault(event.response_id, set()).add(event.tool_call_id)
            case _:
                pass

    def _check(self, command: Command) -> None:
        match command:
            case PassOn() | PassSilence():
                assert self.configured, "caller audio before the backend was configured"
            case SendAudio():
                if command.payload == TONE:
                    return
                assert command.payload[0] not in self.dead, "audio of a response that was cut off"
                self.sent_ms += length_ms(command.payload)
                assert self.sent_ms <= sum(self.received_ms.values()), "more sent than received"
            case SendMark():
                assert command.name not in self.marks, "mark name used twice"
                self.marks.add(command.name)
            case CreateResponse():
                assert self.active is None, "response asked for while one is active"
                assert not self.asked, "response asked for while one is asked for"
                stuck = self.now - self.speaking_since >= limits.CALLER_SPEAKS_MAX_S
                assert stuck or not self.caller_speaking, "response asked for while the caller speaks"
                self.asked = True
            case RunTool():
                assert any(command.tool_call_id in calls for calls in self.tools.values()), (
                    "tool of a cut response"
                )
                assert command.tool_call_id not in self.ran, "a tool was run twice"
                self.ran.add(command.tool_call_id)
            case AddToolCall():
                assert self.configured, "a session was told of a tool before it was configured"
                assert command.tool_call_id not in self.known_calls, "a session was told of its own tool call"
                self.known_calls.add(command.tool_call_id)
            case AddToolOutput():
                assert command.tool_call_id in self.known_calls, "output of a call that this session does not know"
            case AddTurn():
                assert self.configured, "a session was told of a turn before it was configured"
            case Truncate():
                received_ms = self.received_ms.get(command.item_id, 0.0)
                assert 0 <= command.audio_end_ms <= received_ms, "truncated beyond the audio that was received"
            case HangUp():
                self.hung_up = True
            case Redirect():
                self.moves = True
            case Remember():
                self._check_record(command.record)
            case Ended():
                assert not self.ends
                self.ends.append(command)
            case SendClear():
                pass
            case _:
                pass

    def _check_record(self, record: CallStarted | Turn | CallEvent | CallEnded) -> None:
        assert self.records or isinstance(record, CallStarted), "a record before the call began"
        assert not (self.records and isinstance(record, CallStarted)), "the call began twice"
        assert not any(isinstance(earlier, CallEnded) for earlier in self.records), "a record after the last one"
        if isinstance(record, Turn):
            assert 0 <= record.heard_ms <= record.said_ms, "more heard than said"
            assert record.speaker is Speaker.CALLER or len(record.heard or "") <= len(record.said or "")
            assert record.started_ms <= record.ended_ms
        self.records.append(record)

    def _check_bounds(self) -> None:
        fill = self.call.fill
        over = {name: fill[name] for name, most in MOST.items() if fill[name] > most}
        assert fill.keys() == MOST.keys()
        assert over == {}, "beyond its bound"
        assert (
            len([record for record in self.records if isinstance(record, CallEvent)]) <= limits.CALL_EVENTS_MAX + 2
        )

    def check_end(self) -> None:
        """The call is over: what it left behind is whole."""
        assert len(self.ends) == 1, "a call ends once"
        turns = [record for record in self.records if isinstance(record, Turn)]
        assert sorted(turn.seq for turn in turns) == list(range(len(turns))), "turns recorded once, without holes"
        if self.records:
            ending = self.records[-1]
            assert isinstance(ending, CallEnded)
            assert ending.turns == len(turns)
            assert ending.reason == ("moved" if self.moves else self.ends[0].reason.value)


def longest_s(plan: Plan) -> float:
    """From its beginning no call lasts longer than this, whatever its peers do."""
    to_talk = limits.STREAM_WAIT_S + limits.START_WAIT_S + limits.OPEN_LIMIT_S
    to_end = limits.GOODBYE_LIMIT_S + limits.HANG_UP_GRACE_S
    return to_talk + plan.max_call_s + to_end + limits.STANDSTILLS_MAX * limits.CATCH_UP_S
