"""A call: events in, commands out.

`handle(event, now)` returns what must be done, in order; `deadline()` says when the call next wants a `Tick`.
The same events at the same instants give the same commands, so a logged list of events replays a bad call.
Knows nothing of sockets, JSON, tasks or clocks; the bridge feeds it and carries out what it asks.

The phases, and what moves a call on:

    EXPECTED ──PhoneConnected──> ARRIVED ──PhoneStarted──> OPENING ──backend configured──> TALKING
        │                           │                         │                              │
        │ 15 s                      │ 5 s                     │ 5 s                 goodbye  │
        v                           v                         v                              v
      ENDED <───────────────────────┴─── any fault, stop ─────┴──── LEAVING <──heard── SAYING_GOODBYE

The backend opens in parallel (at the webhook, before Twilio's stream): DIALLING, CONFIGURING, READY, GONE.
TALKING needs both the phone's `start` and READY. In LEAVING the hang-up was asked for by REST, and we wait
for Twilio's `stop`. After ENDED every event is ignored.

The rules that cost others dearly stand at the methods that keep them: `_barge_in`, `_speak`, `_run_tools`.
What has a state of its own lives beside this file: playout.py (what was heard), turns.py (who said what),
replies.py (the one writer of `response.create`), caller.py (the caller's audio), tools.py, patience.py (idle and
longest time), peers.py (are both still there), journal.py (records). This file moves a call through its phases.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import assert_never

from app.call import events as ev
from app.call import limits
from app.call.caller import CallerLine
from app.call.events import Command, EndReason, ErrorKind, Event, ResponseStatus, Side
from app.call.journal import Facts, Journal
from app.call.patience import Patience, Reminder
from app.call.peers import Peers
from app.call.plan import HANG_UP_TOOL, Plan, Purpose, wording
from app.call.playout import Outcome, Playout
from app.call.records import Record
from app.call.replies import Replies, Request
from app.call.tools import Tools
from app.call.turns import Turns
from app.call.wall import Wall


class Phase(Enum):
    """How far the call has come; see the diagram above."""

    EXPECTED = auto()
    ARRIVED = auto()
    OPENING = auto()
    TALKING = auto()
    SAYING_GOODBYE = auto()
    LEAVING = auto()
    ENDED = auto()


class BackendPhase(Enum):
    """How far the backend has come."""

    DIALLING = auto()
    CONFIGURING = auto()
    READY = auto()
    GONE = auto()


_PHASE_LIMIT_S = {
    Phase.EXPECTED: limits.STREAM_WAIT_S,
    Phase.ARRIVED: limits.START_WAIT_S,
    Phase.OPENING: limits.OPEN_LIMIT_S,
    Phase.SAYING_GOODBYE: limits.GOODBYE_LIMIT_S,
    Phase.LEAVING: limits.HANG_UP_GRACE_S,
}

_SPOKEN_PHASES = frozenset({Phase.TALKING, Phase.SAYING_GOODBYE})

_SENDER: Mapping[type[Event], Side] = MappingProxyType(
    {
        ev.CallerAudio: Side.PHONE,
        ev.MarkReturned: Side.PHONE,
        ev.KeyPressed: Side.PHONE,
        ev.AgentAudio: Side.BACKEND,
        ev.AgentText: Side.BACKEND,
        ev.SpeechStarted: Side.BACKEND,
        ev.SpeechStopped: Side.BACKEND,
        ev.ResponseStarted: Side.BACKEND,
        ev.ResponseEnded: Side.BACKEND,
    }
)
"""Events that show that a peer is alive."""


@dataclass(frozen=True, slots=True)
class _Goodbye:
    """An end that was decided and is being spoken."""

    reason: EndReason
    tool_call_id: str | None = None
    """The model's own hang_up call, to be answered if the caller talks it out of hanging up."""


class Call:
    """One leg of one phone call."""

    def __init__(self, plan: Plan, facts: Facts, wall: Wall) -> None:
        """`wall` fixes the call's clock to Unix time; its `now` is the instant at which the call begins."""
        self.plan = plan
        self.facts = facts
        self.phase = Phase.EXPECTED
        self.backend = BackendPhase.DIALLING
        self._phase_since = wall.now
        self._journal = Journal(facts, wall)
        self._turns = Turns(facts.call_sid, facts.leg, facts.backend, wall)
        self._playout = Playout()
        self._replies = Replies()
        self._line = CallerLine(hold_max_ms=limits.EARLY_AUDIO_MAX_MS)
        self._tools = Tools()
        self._peers = Peers()
        self._patience: Patience | None = None
        """From Twilio's `start` on."""
        self._goodbye: _Goodbye | None = None
        self._guarded_greeting = False
        self._failed_responses = 0
        self._spoke_in: str | None = None
        """The last response that had audio."""
        self._cut_items: deque[str] = deque(maxlen=limits.CUT_ITEMS_REMEMBERED)

    # --- The interface -----------------------------------------------------------------------

    def passes(self, timestamp_ms: int, audio_bytes: int, now: float) -> bool:
        """The hot path: True when this caller frame goes straight to the backend, unchanged.

        False: hand it to `handle` as CallerAudio. `now` is in seconds, as everywhere.
        """
        if self.phase is Phase.ENDED or not self._line.passes(timestamp_ms, audio_bytes, now):
            return False
        self._peers.heard(Side.PHONE, now)
        return True

    def handle(self, event: Event, now: float) -> list[Command]:
        """Everything that must be done because of this event, in order."""
        if self.phase is Phase.ENDED:
            return []
        sender = _SENDER.get(type(event))
        if sender is not None:
            self._peers.heard(sender, now)
        commands = self._handle(event, now)
        commands += self._move_on(now)
        deadline = self.deadline()
        if deadline is not None and deadline <= now and not isinstance(event, ev.Tick):
            # Something fell due while this event was on its way: a deadline is never left in the past.
            commands += self.handle(ev.Tick(), now)
        return commands

    def deadline(self) -> float | None:
        """When the call next wants a Tick; None once it has ended.

        `passes` may move it further away: a Tick that comes before it is due does nothing.
        """
        if self.phase is Phase.ENDED:
            return None
        times = (
            self._phase_ends_at(),
            self._peers.due_at(),
            self._replies.overdue_at(),
            self._turns.expires_at(),
            self._playout.release_at(),
            self._playout.marks_lost_at(),
            self._line.stall_fill_at() if self.backend is BackendPhase.READY else None,
            self._replies.next_take_at() if self._may_ask else None,
        )
        return min(time for time in times if time is not None)

    # --- Events ------------------------------------------------------------------------------

    def _handle(self, event: Event, now: float) -> list[Command]:
        match event:
            case ev.CallerAudio():
                return self._caller_audio(event, now)
            case ev.AgentAudio():
                return self._speak(event, now)
            case ev.MarkReturned():
                self._playout.mark_returned(event.name, now)
                return []
            case ev.AgentText() | ev.AgentAudioEnded() | ev.ToolCalled() | ev.ResponseStarted():
                return self._response_goes_on(event, now)
            case ev.ResponseEnded():
                return self._response_ended(event, now)
            case ev.SpeechStarted():
                return self._barge_in(event, now)
            case ev.SpeechStopped() | ev.CallerTurnCommitted() | ev.CallerTranscribed():
                return self._caller_turn(event, now)
            case ev.PhoneConnected() | ev.PhoneStarted() | ev.PhoneStopped() | ev.KeyPressed():
                return self._phone_moved(event, now)
            case ev.BackendOpened() | ev.BackendConfigured() | ev.BackendUnreachable():
                return self._backend_moved(event, now)
            case ev.BackendFault():
                return self._backend_fault(event, now)
            case ev.ToolFinished():
                return self._tool_finished(event)
            case ev.BadMessage() | ev.PeerLost() | ev.PeerSlow() | ev.Pong():
                return self._peer_moved(event, now)
            case ev.ShutdownRequested():
                return self._end(EndReason.SHUTDOWN, now)
            case ev.HangUpFailed():
                return self._end(self._leaving_reason, now) if self.phase is Phase.LEAVING else []
            case ev.Broken():
                return self._end(EndReason.BUG, now)
            case ev.Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    # --- The phone ---------------------------------------------------------------------------

    def _phone_moved(
        self, event: ev.PhoneConnected | ev.PhoneStarted | ev.PhoneStopped | ev.KeyPressed, now: float
    ) -> list[Command]:
        match event:
            case ev.PhoneConnected() if self.phase is Phase.EXPECTED:
                self._peers.connected(Side.PHONE, now)
                self._enter(Phase.ARRIVED, now)
                return []
            case ev.PhoneStarted() if self.phase is Phase.ARRIVED:
                if event.call_sid != self.facts.call_sid:
                    return self._end(EndReason.WRONG_CALL, now)
                self._patience = Patience(self.plan, began_at=now)
                self._enter(Phase.OPENING, now)
                return _remember([self._journal.started(self.plan, event.stream_sid, now)])
            case ev.PhoneStopped():
                leaving = self.phase is Phase.LEAVING
                return self._end(self._leaving_reason if leaving else EndReason.CALLER_HUNG_UP, now)
            case ev.KeyPressed():
                return self._key(event, now)
            case _:
                return self._bad_message(Side.PHONE, now)

    def _caller_audio(self, frame: ev.CallerAudio, now: float) -> list[Command]:
        if self._patience is None:
            return self._bad_message(Side.PHONE, now)
        passed = self._line.take(frame, now)
        return self._bad_message(Side.PHONE, now) if passed is None else [*passed]

    def _key(self, event: ev.KeyPressed, now: float) -> list[Command]:
        if self.phase is not Phase.TALKING or self._patience is None:
            return []
        self._patience.caller_is_there(now)
        self._replies.ask(Request(Purpose.KEYS))
        return [ev.AddText(f"(The caller pressed the key {event.digit}.)"), self._happened("key", "", now)]

    # --- The backend -------------------------------------------------------------------------

    def _backend_moved(
        self, event: ev.BackendOpened | ev.BackendConfigured | ev.BackendUnreachable, now: float
    ) -> list[Command]:
        match event:
            case ev.BackendOpened():
                self._peers.connected(Side.BACKEND, now)
                self.backend = BackendPhase.CONFIGURING
                return [ev.Configure(self.plan)]
            case ev.BackendConfigured(formats_match=True):
                # Only now: until then the session reads mu-law as PCM, which is noise (realtime.md 1.1).
                if self.backend is BackendPhase.CONFIGURING:
                    self.backend = BackendPhase.READY
                return []
            case ev.BackendConfigured():
                return self._end(EndReason.BACKEND_FORMAT, now, event.echoed)
            case ev.BackendUnreachable():
                self.backend = BackendPhase.GONE
                return self._end(EndReason.BACKEND_UNREACHABLE, now, event.why)

    def _backend_fault(self, event: ev.BackendFault, now: float) -> list[Command]:
        noted = self._happened("backend_fault", event.code, now)
        if event.kind is ErrorKind.FATAL or self.backend is not BackendPhase.READY:
            # Before READY the error answers our configuration: no session.updated will follow.
            return [noted, *self._end(EndReason.BACKEND_REFUSED, now, event.code)]
        if event.kind in {ErrorKind.BUSY, ErrorKind.RETRY}:
            self._replies.busy(now)
        return [noted]

    def _response_goes_on(
        self, event: ev.AgentText | ev.AgentAudioEnded | ev.ToolCalled | ev.ResponseStarted, now: float
    ) -> list[Command]:
        match event:
            case ev.AgentText():
                if not self._replies.refused(event.response_id):
                    self._turns.agent_text(
                        event.response_id, event.item_id, event.text, final=event.final, now=now
                    )
            case ev.AgentAudioEnded():
                self._playout.complete(event.item_id)
            case ev.ToolCalled():
                self._tools.called(event)
            case ev.ResponseStarted():
                wanted = self._replies.started(event.response_id)
                return [] if wanted else [ev.CancelResponse()]
        return []

    def _speak(self, event: ev.AgentAudio, now: float) -> list[Command]:
        """Agent audio. Late pieces of what a barge-in cut off are dropped (realtime.md 1.7)."""
        if self.phase is Phase.LEAVING:
            return []
        if self._replies.refused(event.response_id):
            return self._cut_unplayed(event.item_id)
        self._playout.receive(event.item_id, event.payload, event.audio_bytes)
        audio_ms = event.audio_bytes / limits.MULAW_BYTES_PER_MS
        self._turns.agent_spoke(event.response_id, event.item_id, audio_ms, now)
        self._spoke_in = event.response_id
        commands: list[Command] = [*self._playout.release(now)]
        self._turns.agent_plays(event.item_id, self._playout.plays_at(event.item_id))
        return commands

    def _cut_unplayed(self, item_id: str) -> list[Command]:
        """An item of a cut-off response whose audio begins to come only now: nothing of it was heard."""
        if item_id in self._cut_items:
            return []
        self._cut_items.append(item_id)
        return [ev.Truncate(item_id, 0)]

    def _response_ended(self, event: ev.ResponseEnded, now: float) -> list[Command]:
        request = self._replies.active_request
        self._replies.ended(event.response_id)
        self._playout.complete_all()
        called = self._tools.take(event.response_id)
        commands = _remember(self._turns.response_ended(event.response_id, event.usage, now))
        self._stirred(now)
        match event.status:
            case ResponseStatus.COMPLETED:
                self._failed_responses = 0
                return commands + self._run_tools(called, event.response_id, now)
            case ResponseStatus.FAILED:
                return commands + self._response_failed(event, request or Request(Purpose.RETRY), now)
            case ResponseStatus.CANCELLED | ResponseStatus.INCOMPLETE:
                return commands

    def _response_failed(self, event: ev.ResponseEnded, request: Request, now: float) -> list[Command]:
        noted = self._happened("response_failed", event.error_code, now)
        self._failed_responses += 1
        if event.error is ErrorKind.FATAL:
            return [noted, *self._end(EndReason.BACKEND_REFUSED, now, event.error_code)]
        if self._failed_responses >= limits.FAILED_RESPONSES_MAX:
            return [noted, *self._end(EndReason.BACKEND_FAILING, now, event.error_code)]
        self._replies.retry(request, now)
        return [noted]

    # --- The caller speaks -------------------------------------------------------------------

    def _barge_in(self, event: ev.SpeechStarted, now: float) -> list[Command]:
        """The caller speaks: whatever is queued anywhere is thrown away, also when the response is long done.

        Audio is sent faster than it plays, so the response is usually over while the caller still hears it.
        What of each item was heard is told to the backend, or the model believes it was all heard.
        """
        if self._patience is not None:
            self._patience.caller_is_there(now)
        self._turns.caller_began(event.item_id, now)
        self._replies.caller_began()
        commands: list[Command] = []
        if not self._playout.untouched:
            commands.append(ev.SendClear())
            commands += self._settle(self._playout.cut(now), now)
        if self.phase is Phase.SAYING_GOODBYE and self._goodbye is not None:
            commands += self._stay(self._goodbye, now)
        return commands

    def _caller_turn(
        self, event: ev.SpeechStopped | ev.CallerTurnCommitted | ev.CallerTranscribed, now: float
    ) -> list[Command]:
        match event:
            case ev.SpeechStopped():
                self._replies.caller_stopped()
                self._turns.caller_stopped(event.item_id, now, self.plan.vad_silence_ms)
                return []
            case ev.CallerTurnCommitted():
                self._replies.committed(now)
                return []
            case ev.CallerTranscribed():
                return _remember(self._turns.caller_transcribed(event.item_id, event.text, now))

    def _settle(self, outcomes: list[Outcome], now: float) -> list[Command]:
        """Items ended at the phone: truncate those that were cut, finish the turns of all."""
        commands: list[Command] = []
        for outcome in outcomes:
            if outcome.cut:
                self._cut_items.append(outcome.item_id)
                commands.append(ev.Truncate(outcome.item_id, outcome.heard_ms))
            commands += _remember(
                self._turns.agent_heard(outcome.item_id, outcome.heard_ms, cut=outcome.cut, now=now)
            )
        if outcomes:
            self._stirred(now)
        return commands

    # --- Tools -------------------------------------------------------------------------------

    def _run_tools(self, calls: list[ev.ToolCalled], response_id: str, now: float) -> list[Command]:
        """Run what a *completed* response called; one `response.create` follows when all outputs are in."""
        commands: list[Command] = []
        for call in calls:
            commands.append(self._happened("tool", call.name, now))
            if call.name == HANG_UP_TOOL:
                self._hang_up_by_tool(call, spoken=self._spoke_in == response_id, now=now)
            elif any(tool.name == call.name for tool in self.plan.tools):
                self._tools.started(call.tool_call_id)
                commands.append(ev.RunTool(call.tool_call_id, call.name, call.arguments))
            else:
                commands.append(ev.AddToolOutput(call.tool_call_id, '{"error":"there is no such tool"}'))
                self._replies.ask(Request(Purpose.TOOL))
        return commands

    def _tool_finished(self, event: ev.ToolFinished) -> list[Command]:
        if not self._tools.finished(event.tool_call_id):
            return []
        if not self._tools.running and self.phase is Phase.TALKING:
            self._replies.ask(Request(Purpose.TOOL))
        return [ev.AddToolOutput(event.tool_call_id, event.output)]

    # --- Saying goodbye ----------------------------------------------------------------------

    def _hang_up_by_tool(self, call: ev.ToolCalled, *, spoken: bool, now: float) -> None:
        """The model hangs up. What it said in the same response is its goodbye; else it is asked for one."""
        if self.phase is not Phase.TALKING:
            return
        self._begin_goodbye(_Goodbye(EndReason.AGENT_HUNG_UP, call.tool_call_id), now)
        if not spoken:
            self._replies.ask(Request(Purpose.GOODBYE))

    def _begin_goodbye(self, goodbye: _Goodbye, now: float) -> None:
        self._goodbye = goodbye
        self._replies.forget_all()
        self._enter(Phase.SAYING_GOODBYE, now)

    def _stay(self, goodbye: _Goodbye, now: float) -> list[Command]:
        """The caller cuts into the goodbye: the call goes on, unless its longest allowed time is over."""
        if goodbye.reason is EndReason.MAX_LENGTH:
            return []
        self._goodbye = None
        self._replies.forget_all()
        self._enter(Phase.TALKING, now)
        if goodbye.tool_call_id is None:
            return []
        return [ev.AddToolOutput(goodbye.tool_call_id, '{"result":"the caller went on talking; not hung up"}')]

    def _leave(self, now: float) -> list[Command]:
        """The goodbye was heard (or its time is up): hang up. Twilio's `stop` ends the call."""
        self._enter(Phase.LEAVING, now)
        return [ev.HangUp()]

    @property
    def _leaving_reason(self) -> EndReason:
        return EndReason.AGENT_HUNG_UP if self._goodbye is None else self._goodbye.reason

    # --- The peers ---------------------------------------------------------------------------

    def _peer_moved(self, event: ev.BadMessage | ev.PeerLost | ev.PeerSlow | ev.Pong, now: float) -> list[Command]:
        phone = event.side is Side.PHONE
        match event:
            case ev.BadMessage():
                return self._bad_message(event.side, now)
            case ev.PeerSlow():
                return self._end(EndReason.PHONE_SLOW if phone else EndReason.BACKEND_SLOW, now)
            case ev.Pong():
                rtt_ms = self._peers.pong(event.side, now)
                if phone:
                    self._playout.rtt_ms = rtt_ms
                return []
            case ev.PeerLost():
                self._peers.gone(event.side)
                if not phone:
                    return self._backend_lost(event, now)
                leaving = self.phase is Phase.LEAVING
                return self._end(self._leaving_reason if leaving else EndReason.PHONE_LOST, now, str(event.code))

    def _bad_message(self, side: Side, now: float) -> list[Command]:
        if not self._peers.bad_message(side):
            return []
        phone = side is Side.PHONE
        return self._end(EndReason.PHONE_MISBEHAVED if phone else EndReason.BACKEND_MISBEHAVED, now)

    def _backend_lost(self, event: ev.PeerLost, now: float) -> list[Command]:
        self.backend = BackendPhase.GONE
        if self.phase not in {Phase.SAYING_GOODBYE, Phase.LEAVING}:
            return self._end(EndReason.BACKEND_LOST, now, str(event.code))
        # What it said of the goodbye is at the phone already, and the rest is not worth an apology.
        self._replies.lost()
        self._playout.complete_all()
        return []

    # --- Time --------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Command]:
        silent = self._peers.silent(now)
        if silent is not None:
            return self._end(EndReason.PHONE_SILENT if silent is Side.PHONE else EndReason.BACKEND_SILENT, now)
        if self._replies.overdue(now) and self.phase in _SPOKEN_PHASES:
            return self._end(EndReason.BACKEND_SILENT, now)
        commands: list[Command] = [ev.Ping(side) for side in self._peers.pings_due(now)]
        if self.backend is BackendPhase.READY:
            commands += self._line.fill_stall(now)
        self._playout.lose_marks(now)
        commands += _remember(self._turns.expire(now))
        ends_at = self._phase_ends_at()
        if ends_at is not None and ends_at <= now:
            commands += self._phase_due(now)
        return commands

    def _phase_ends_at(self) -> float | None:
        if self.phase is Phase.TALKING and self._patience is not None:
            return self._patience.due_at(quiet=self._quiet)
        return self._phase_since + _PHASE_LIMIT_S[self.phase]

    def _phase_due(self, now: float) -> list[Command]:
        match self.phase:
            case Phase.EXPECTED:
                return self._end(EndReason.STREAM_NEVER_CAME, now)
            case Phase.ARRIVED:
                return self._end(EndReason.START_NEVER_CAME, now)
            case Phase.OPENING:
                return self._end(EndReason.BACKEND_NOT_READY, now)
            case Phase.TALKING:
                self._remind(now)
                return []
            case Phase.SAYING_GOODBYE:
                return self._leave(now)
            case Phase.LEAVING:
                return self._end(self._leaving_reason, now)
            case Phase.ENDED:
                return []

    def _remind(self, now: float) -> None:
        reminder = None if self._patience is None else self._patience.due(now, quiet=self._quiet)
        match reminder:
            case Reminder.WARN:
                self._replies.ask(Request(Purpose.WARNING, f"{self.plan.max_call_warning_s:.0f} seconds"))
            case Reminder.TIME_IS_UP:
                self._begin_goodbye(_Goodbye(EndReason.MAX_LENGTH), now)
                self._replies.ask(Request(Purpose.GOODBYE, "The call has reached its longest allowed time."))
            case Reminder.ASK:
                self._replies.ask(Request(Purpose.IDLE))
            case Reminder.GIVE_UP:
                self._begin_goodbye(_Goodbye(EndReason.IDLE), now)
                self._replies.ask(Request(Purpose.GOODBYE, "The caller has not said anything for a while."))
            case None:
                pass

    @property
    def _quiet(self) -> bool:
        """Nobody speaks, and nothing is on its way to be spoken."""
        return self._replies.quiet and self._playout.drained and not self._tools.running

    def _stirred(self, now: float) -> None:
        if self._patience is not None:
            self._patience.stirred(now)

    # --- After every event -------------------------------------------------------------------

    def _move_on(self, now: float) -> list[Command]:
        """What has become possible: talk, send ahead, finish turns, let a wish out, hang up."""
        if self.phase is Phase.ENDED:
            return []
        commands: list[Command] = []
        if self.phase is Phase.OPENING and self.backend is BackendPhase.READY:
            commands += self._begin_talking(now)
        commands += self._playout.release(now)
        commands += self._settle(self._playout.take_heard(now), now)
        if self._guarded_greeting and self._quiet:
            self._guarded_greeting = False
            commands += self._line.open()
        request = self._replies.take(now) if self._may_ask else None
        if request is not None:
            instructions = wording(request.purpose, self.plan, request.detail)
            commands.append(ev.CreateResponse(request.purpose, instructions))
        if self.phase is Phase.SAYING_GOODBYE and self._quiet:
            commands += self._leave(now)
        return commands

    @property
    def _may_ask(self) -> bool:
        """All tool outputs come first, then one `response.create` (realtime.md 1.10)."""
        ready = self.backend is BackendPhase.READY
        return ready and self.phase in _SPOKEN_PHASES and not self._tools.running

    def _begin_talking(self, now: float) -> list[Command]:
        self._enter(Phase.TALKING, now)
        self._stirred(now)
        if self.plan.greeting:
            self._replies.ask(Request(Purpose.GREETING))
        if self.plan.greeting and not self.plan.greeting_interruptible:
            self._guarded_greeting = True
            self._line.hold(limits.GREETING_TAIL_MS)
            return []
        return [*self._line.open()]

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase, self._phase_since = phase, now

    # --- The end -----------------------------------------------------------------------------

    def _end(self, reason: EndReason, now: float, detail: str = "") -> list[Command]:
        """The call is over here. When we close the stream, Twilio asks `/twiml/after` what to say."""
        self._enter(Phase.ENDED, now)
        return [ev.ClosePhone(), ev.CloseBackend(), *self._last_records(reason, now, detail), ev.Ended(reason)]

    def _last_records(self, reason: EndReason, now: float, detail: str) -> list[Command]:
        """Every open turn as it stands, and the ending; nothing of a call whose stream never began."""
        if self._patience is None:
            return []
        records: list[Record] = []
        for outcome in self._playout.cut(now):
            records += self._turns.agent_heard(outcome.item_id, outcome.heard_ms, cut=outcome.cut, now=now)
        records += self._turns.close(now)
        if detail:
            records.append(self._journal.happened("end", detail, now))
        records.append(self._journal.ended(reason, self._turns.count, now))
        return _remember(records)

    def _happened(self, kind: str, detail: str, now: float) -> ev.Remember:
        return ev.Remember(self._journal.happened(kind, detail, now))


def _remember(records: Sequence[Record]) -> list[Command]:
    return [ev.Remember(record) for record in records]
