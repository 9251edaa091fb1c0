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

The rules that cost others dearly stand at the methods that keep them: `_barge_in`, `_speak`, `_tools`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import assert_never

from app.call import events as ev
from app.call import limits
from app.call.caller import CallerLine
from app.call.events import Command, EndReason, ErrorKind, Event, ResponseStatus, Side
from app.call.plan import HANG_UP_TOOL, Plan, Purpose, wording
from app.call.playout import Outcome, Playout
from app.call.records import CallEnded, CallStarted, Happening, Record
from app.call.replies import Replies, Request
from app.call.turns import Turns, Wall
from app.call.watch import Watch


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


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a call when it begins."""

    call_sid: str
    leg: str
    region: str
    backend: str
    caller: str = ""
    called: str = ""


@dataclass(slots=True)
class _Goodbye:
    """An end that was decided and is being spoken."""

    reason: EndReason
    until: float
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
        self.end_reason: EndReason | None = None
        self._wall = wall
        self._since = wall.now
        self._playout = Playout()
        self._turns = Turns(facts.call_sid, facts.leg, facts.backend, wall)
        self._replies = Replies()
        self._line = CallerLine(hold_max_ms=limits.EARLY_AUDIO_MAX_MS)
        self._phone_watch: Watch | None = None
        self._backend_watch: Watch | None = None
        self._started_at: float | None = None
        self._active_at = wall.now
        self._idle_prompts = 0
        self._warned = False
        self._guarded_greeting = False
        self._failed_responses = 0
        self._bad = {Side.PHONE: 0, Side.BACKEND: 0}
        self._tool_calls: list[ev.ToolCalled] = []
        self._tools_running: set[str] = set()
        self._spoke_in: str | None = None
        self._cut_items: deque[str] = deque(maxlen=limits.CUT_ITEMS_REMEMBERED)
        self._goodbye: _Goodbye | None = None
        self._happenings = 0

    # --- The interface -----------------------------------------------------------------------

    def passes(self, timestamp_ms: int, audio_bytes: int, now: float) -> bool:
        """The hot path: True when this caller frame goes straight to the backend, unchanged.

        False: hand it to `handle` as CallerAudio. `now` is in seconds, as everywhere.
        """
        watch = self._phone_watch
        if watch is None or not self._line.passes(timestamp_ms, audio_bytes, now):
            return False
        watch.heard_at = now
        return True

    def handle(self, event: Event, now: float) -> list[Command]:
        """Everything that must be done because of this event, in order."""
        if self.phase is Phase.ENDED:
            return []
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
        times = [
            self._phase_ends_at(),
            self._replies.overdue_at(),
            self._turns.expires_at(),
            self._playout.marks_lost_at(),
            self._line.stall_fill_at() if self.backend is BackendPhase.READY else None,
            self._idle_at(),
            self._warning_at(),
            self._playout.release_at(),
            self._replies.next_take_at() if self._may_ask else None,
        ]
        times += [watch.due_at() for watch in (self._phone_watch, self._backend_watch) if watch is not None]
        return min(time for time in times if time is not None)

    # --- Events ------------------------------------------------------------------------------

    def _handle(self, event: Event, now: float) -> list[Command]:
        self._note_life(event, now)
        match event:
            case ev.CallerAudio():
                return self._caller_audio(event, now)
            case ev.AgentAudio():
                return self._speak(event, now)
            case ev.AgentAudioEnded():
                self._playout.complete(event.item_id)
                return []
            case ev.AgentText():
                if not self._replies.refused(event.response_id):
                    self._turns.agent_text(
                        event.response_id, event.item_id, event.text, final=event.final, now=now
                    )
                return []
            case ev.MarkReturned():
                self._playout.mark_returned(event.name, now)
                return []
            case ev.SpeechStarted():
                return self._barge_in(event, now)
            case ev.SpeechStopped():
                self._replies.caller_stopped()
                self._turns.caller_stopped(event.item_id, now, self.plan.vad_silence_ms)
                return []
            case ev.CallerTurnCommitted():
                self._replies.committed(now)
                return []
            case ev.CallerTranscribed():
                return _remember(self._turns.caller_transcribed(event.item_id, event.text, now))
            case ev.ResponseStarted():
                wanted = self._replies.started(event.response_id)
                return [] if wanted else [ev.CancelResponse()]
            case ev.ResponseEnded():
                return self._response_ended(event, now)
            case ev.ToolCalled():
                if len(self._tool_calls) < limits.TOOL_CALLS_MAX:
                    self._tool_calls.append(event)
                return []
            case ev.ToolFinished():
                return self._tool_finished(event)
            case ev.KeyPressed():
                return self._key(event, now)
            case ev.PhoneConnected() | ev.PhoneStarted() | ev.PhoneStopped():
                return self._phone_moved(event, now)
            case ev.BackendOpened() | ev.BackendConfigured() | ev.BackendUnreachable():
                return self._backend_moved(event, now)
            case ev.BackendFault():
                return self._backend_fault(event, now)
            case ev.BadMessage():
                return self._bad_message(event.side, now)
            case ev.PeerLost():
                return self._peer_lost(event, now)
            case ev.PeerSlow():
                slow = EndReason.PHONE_SLOW if event.side is Side.PHONE else EndReason.BACKEND_SLOW
                return self._end(slow, now)
            case ev.Pong():
                self._pong(event.side, now)
                return []
            case ev.ShutdownRequested():
                return self._end(EndReason.SHUTDOWN, now)
            case ev.HangUpFailed():
                return self._end(self._leaving_reason(), now)
            case ev.Broken():
                return self._end(EndReason.BUG, now)
            case ev.Tick():
                return self._tick(now)
            case _:
                assert_never(event)

    def _note_life(self, event: Event, now: float) -> None:
        match event:
            case ev.CallerAudio() | ev.MarkReturned() | ev.KeyPressed():
                if self._phone_watch is not None:
                    self._phone_watch.heard_at = now
            case (
                ev.AgentAudio()
                | ev.AgentText()
                | ev.SpeechStarted()
                | ev.SpeechStopped()
                | ev.ResponseStarted()
                | ev.ResponseEnded()
            ):
                if self._backend_watch is not None:
                    self._backend_watch.heard_at = now
            case _:
                pass

    # --- The phone ---------------------------------------------------------------------------

    def _phone_moved(
        self, event: ev.PhoneConnected | ev.PhoneStarted | ev.PhoneStopped, now: float
    ) -> list[Command]:
        match event:
            case ev.PhoneConnected() if self.phase is Phase.EXPECTED:
                self._phone_watch = Watch.begin(now)
                self._enter(Phase.ARRIVED, now)
                return []
            case ev.PhoneStarted() if self.phase is Phase.ARRIVED:
                return self._phone_started(event, now)
            case ev.PhoneStopped():
                leaving = self.phase is Phase.LEAVING
                return self._end(self._leaving_reason() if leaving else EndReason.CALLER_HUNG_UP, now)
            case _:
                return self._bad_message(Side.PHONE, now)

    def _phone_started(self, event: ev.PhoneStarted, now: float) -> list[Command]:
        if event.call_sid != self.facts.call_sid:
            return self._end(EndReason.WRONG_CALL, now)
        self._started_at = now
        self._enter(Phase.OPENING, now)
        started = CallStarted(
            call_sid=self.facts.call_sid,
            leg=self.facts.leg,
            tenant=self.plan.tenant,
            zone=self.plan.zone,
            region=self.facts.region,
            backend=self.facts.backend,
            model=self.plan.model,
            stream_sid=event.stream_sid,
            caller=self.facts.caller,
            called=self.facts.called,
            started_ms=self._wall.ms(now),
        )
        return [ev.Remember(started)]

    def _caller_audio(self, frame: ev.CallerAudio, now: float) -> list[Command]:
        if self._started_at is None:
            return self._bad_message(Side.PHONE, now)
        before = self._line.out_of_order
        commands: list[Command] = [*self._line.take(frame, now)]
        if self._line.out_of_order > before:
            return self._bad_message(Side.PHONE, now)
        return commands

    def _key(self, event: ev.KeyPressed, now: float) -> list[Command]:
        if self.phase is not Phase.TALKING:
            return []
        self._caller_is_there(now)
        self._replies.ask(Request(Purpose.KEYS))
        return [
            ev.AddText(f"(The caller pressed the key {event.digit}.)"),
            self._happened("key", "", now),
        ]

    # --- The backend -------------------------------------------------------------------------

    def _backend_moved(
        self, event: ev.BackendOpened | ev.BackendConfigured | ev.BackendUnreachable, now: float
    ) -> list[Command]:
        match event:
            case ev.BackendOpened():
                self._backend_watch = Watch.begin(now)
                self.backend = BackendPhase.CONFIGURING
                return [ev.Configure(self.plan)]
            case ev.BackendConfigured(formats_match=True):
                # Only now: until then the session reads mu-law as PCM, which is noise (realtime.md 1.1).
                if self.backend is BackendPhase.CONFIGURING:
                    self.backend = BackendPhase.READY
                return []
            case ev.BackendConfigured():
                return self._end(EndReason.BACKEND_FORMAT, now)
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

    def _speak(self, event: ev.AgentAudio, now: float) -> list[Command]:
        """Agent audio. Late pieces of what a barge-in cut off are dropped (realtime.md 1.7)."""
        if self.phase is Phase.LEAVING:
            return []
        if self._replies.refused(event.response_id):
            return self._cut_unplayed(event.item_id)
        self._playout.receive(event.item_id, event.payload, event.audio_bytes)
        self._turns.agent_spoke(
            event.response_id, event.item_id, event.audio_bytes / limits.MULAW_BYTES_PER_MS, now
        )
        self._spoke_in = event.response_id
        return self._release(now, event.item_id)

    def _cut_unplayed(self, item_id: str) -> list[Command]:
        """An item of a cut-off response whose audio begins to come only now: nothing of it was heard."""
        if item_id in self._cut_items:
            return []
        self._cut_items.append(item_id)
        return [ev.Truncate(item_id, 0)]

    def _release(self, now: float, item_id: str | None = None) -> list[Command]:
        commands: list[Command] = [*self._playout.release(now)]
        if item_id is not None:
            self._turns.agent_plays(item_id, self._playout.plays_at(item_id))
        return commands

    def _barge_in(self, event: ev.SpeechStarted, now: float) -> list[Command]:
        """The caller speaks: whatever is queued anywhere is thrown away, also when the response is long done.

        Audio is sent faster than it plays, so the response is usually over while the caller still hears it.
        What of each item was heard is told to the backend, or the model believes it was all heard.
        """
        self._caller_is_there(now)
        self._turns.caller_began(event.item_id, now)
        self._replies.caller_began()
        self._replies.forget(Purpose.IDLE)
        commands: list[Command] = []
        if not self._playout.untouched:
            commands.append(ev.SendClear())
            commands += self._settle(self._playout.cut(now), now)
        if self._goodbye is not None and self._may_stay:
            commands += self._stay(self._goodbye, now)
        return commands

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
            self._active_at = now
        return commands

    def _response_ended(self, event: ev.ResponseEnded, now: float) -> list[Command]:
        request = self._replies.active_request
        self._replies.ended(event.response_id)
        self._playout.complete_all()
        commands = _remember(self._turns.response_ended(event.response_id, event.usage, now))
        tool_calls = [call for call in self._tool_calls if call.response_id == event.response_id]
        self._tool_calls.clear()
        self._active_at = now
        match event.status:
            case ResponseStatus.COMPLETED:
                self._failed_responses = 0
                return commands + self._tools(tool_calls, event.response_id, now)
            case ResponseStatus.FAILED:
                return commands + self._response_failed(event, request, now)
            case ResponseStatus.CANCELLED | ResponseStatus.INCOMPLETE:
                return commands

    def _response_failed(self, event: ev.ResponseEnded, request: Request | None, now: float) -> list[Command]:
        noted = self._happened("response_failed", event.error_code, now)
        self._failed_responses += 1
        if event.error is ErrorKind.FATAL:
            return [noted, *self._end(EndReason.BACKEND_REFUSED, now, event.error_code)]
        if self._failed_responses >= limits.FAILED_RESPONSES_MAX:
            return [noted, *self._end(EndReason.BACKEND_FAILING, now, event.error_code)]
        self._replies.retry(request or Request(Purpose.RETRY), now)
        return [noted]

    # --- Tools -------------------------------------------------------------------------------

    def _tools(self, calls: list[ev.ToolCalled], response_id: str, now: float) -> list[Command]:
        """Run what a *completed* response called; one `response.create` follows when all outputs are in."""
        commands: list[Command] = []
        for call in calls:
            commands.append(self._happened("tool", call.name, now))
            if call.name == HANG_UP_TOOL:
                commands += self._goodbye_by_tool(call, spoken=self._spoke_in == response_id, now=now)
            elif any(tool.name == call.name for tool in self.plan.tools):
                self._tools_running.add(call.tool_call_id)
                commands.append(ev.RunTool(call.tool_call_id, call.name, call.arguments))
            else:
                commands.append(ev.AddToolOutput(call.tool_call_id, '{"error":"there is no such tool"}'))
                self._replies.ask(Request(Purpose.TOOL))
        return commands

    def _tool_finished(self, event: ev.ToolFinished) -> list[Command]:
        if event.tool_call_id not in self._tools_running:
            return []
        self._tools_running.discard(event.tool_call_id)
        if not self._tools_running and self.phase is Phase.TALKING:
            self._replies.ask(Request(Purpose.TOOL))
        return [ev.AddToolOutput(event.tool_call_id, event.output)]

    # --- Saying goodbye ----------------------------------------------------------------------

    def _goodbye_by_tool(self, call: ev.ToolCalled, *, spoken: bool, now: float) -> list[Command]:
        if self._goodbye is not None or self.phase is not Phase.TALKING:
            return []
        self._begin_goodbye(EndReason.AGENT_HUNG_UP, now, call.tool_call_id)
        if not spoken:
            self._replies.ask(Request(Purpose.GOODBYE))
        return []

    def _begin_goodbye(self, reason: EndReason, now: float, tool_call_id: str | None = None) -> None:
        self._replies.forget_all()
        self._goodbye = _Goodbye(reason, now + limits.GOODBYE_LIMIT_S, tool_call_id)
        self._enter(Phase.SAYING_GOODBYE, now)

    @property
    def _may_stay(self) -> bool:
        """A caller who cuts into the goodbye keeps the call, unless its longest allowed time is over."""
        too_long = self._goodbye is not None and self._goodbye.reason is EndReason.MAX_LENGTH
        return self.phase is Phase.SAYING_GOODBYE and not too_long

    def _stay(self, goodbye: _Goodbye, now: float) -> list[Command]:
        self._goodbye = None
        self._replies.forget(Purpose.GOODBYE)
        self._enter(Phase.TALKING, now)
        if goodbye.tool_call_id is None:
            return []
        return [ev.AddToolOutput(goodbye.tool_call_id, '{"result":"the caller went on talking; not hung up"}')]

    def _leave(self, now: float) -> list[Command]:
        """The goodbye was heard (or its time is up): hang up. Twilio's `stop` ends the call."""
        self._enter(Phase.LEAVING, now)
        return [ev.HangUp()]

    def _leaving_reason(self) -> EndReason:
        return EndReason.AGENT_HUNG_UP if self._goodbye is None else self._goodbye.reason

    # --- Faults ------------------------------------------------------------------------------

    def _bad_message(self, side: Side, now: float) -> list[Command]:
        self._bad[side] += 1
        if self._bad[side] <= limits.BAD_MESSAGES_MAX:
            return []
        phone = side is Side.PHONE
        return self._end(EndReason.PHONE_MISBEHAVED if phone else EndReason.BACKEND_MISBEHAVED, now)

    def _peer_lost(self, event: ev.PeerLost, now: float) -> list[Command]:
        if event.side is Side.BACKEND:
            self.backend, self._backend_watch = BackendPhase.GONE, None
            self._replies.lost()
            if self.phase in {Phase.SAYING_GOODBYE, Phase.LEAVING}:
                # What it said of the goodbye is at the phone already, and the rest is not worth an apology.
                self._playout.complete_all()
                return []
            return self._end(EndReason.BACKEND_LOST, now, str(event.code))
        self._phone_watch = None
        if self.phase is Phase.LEAVING:
            return self._end(self._leaving_reason(), now)
        return self._end(EndReason.PHONE_LOST, now, str(event.code))

    def _pong(self, side: Side, now: float) -> None:
        watch = self._phone_watch if side is Side.PHONE else self._backend_watch
        if watch is not None:
            watch.pong(now)
            if side is Side.PHONE:
                self._playout.rtt_ms = watch.rtt_ms

    # --- Time --------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Command]:
        ends_at = self._phase_ends_at()
        if ends_at is not None and ends_at <= now:
            commands = self._phase_over(now)
            if commands is not None:
                return commands
        commands = self._watch_peers(now)
        if self.phase is Phase.ENDED:
            return commands
        if self.backend is BackendPhase.READY and self._started_at is not None:
            commands += self._line.fill_stall(now)
        self._playout.lose_marks(now)
        commands += _remember(self._turns.expire(now))
        if self._replies.overdue(now) and self.phase is not Phase.LEAVING:
            return [*commands, *self._end(EndReason.BACKEND_SILENT, now)]
        return commands + self._remind(now)

    def _watch_peers(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for side, watch in ((Side.PHONE, self._phone_watch), (Side.BACKEND, self._backend_watch)):
            if watch is None:
                continue
            if watch.silent(now):
                phone = side is Side.PHONE
                return self._end(EndReason.PHONE_SILENT if phone else EndReason.BACKEND_SILENT, now)
            if watch.ping(now):
                commands.append(ev.Ping(side))
        return commands

    def _phase_ends_at(self) -> float | None:
        match self.phase:
            case Phase.EXPECTED:
                return self._since + limits.STREAM_WAIT_S
            case Phase.ARRIVED:
                return self._since + limits.START_WAIT_S
            case Phase.OPENING:
                return self._since + limits.OPEN_LIMIT_S
            case Phase.TALKING:
                return None if self._started_at is None else self._started_at + self.plan.max_call_s
            case Phase.SAYING_GOODBYE:
                return None if self._goodbye is None else self._goodbye.until
            case Phase.LEAVING:
                return self._since + limits.HANG_UP_GRACE_S
            case Phase.ENDED:
                return None

    def _phase_over(self, now: float) -> list[Command] | None:
        """The phase has lasted as long as it may. None: it goes over into the next one."""
        match self.phase:
            case Phase.EXPECTED:
                return self._end(EndReason.STREAM_NEVER_CAME, now)
            case Phase.ARRIVED:
                return self._end(EndReason.START_NEVER_CAME, now)
            case Phase.OPENING:
                return self._end(EndReason.BACKEND_NOT_READY, now)
            case Phase.TALKING:
                self._begin_goodbye(EndReason.MAX_LENGTH, now)
                self._replies.ask(Request(Purpose.GOODBYE, "The call has reached its longest allowed time."))
                return None
            case Phase.SAYING_GOODBYE:
                return self._leave(now)
            case Phase.LEAVING:
                return self._end(self._leaving_reason(), now)
            case Phase.ENDED:
                return []

    def _remind(self, now: float) -> list[Command]:
        """The warning before the longest allowed time, and the question whether the caller is there."""
        warning_at, idle_at = self._warning_at(), self._idle_at()
        if warning_at is not None and warning_at <= now:
            self._warned = True
            left_s = round(self.plan.max_call_warning_s)
            self._replies.ask(Request(Purpose.WARNING, f"{left_s} seconds" if left_s < 90 else "two minutes"))
        if idle_at is not None and idle_at <= now:
            self._active_at = now
            if self._idle_prompts >= self.plan.idle_prompts_max:
                self._begin_goodbye(EndReason.IDLE, now)
                self._replies.ask(Request(Purpose.GOODBYE, "The caller has not said anything for a while."))
            else:
                self._idle_prompts += 1
                self._replies.ask(Request(Purpose.IDLE))
        return []

    def _warning_at(self) -> float | None:
        if self.phase is not Phase.TALKING or self._warned or self._started_at is None:
            return None
        return self._started_at + self.plan.max_call_s - self.plan.max_call_warning_s

    def _idle_at(self) -> float | None:
        if self.phase is not Phase.TALKING or not self._replies.quiet or self._tools_running:
            return None
        if not self._playout.drained:
            return None
        return self._active_at + self.plan.idle_prompt_s

    def _caller_is_there(self, now: float) -> None:
        self._active_at = now
        self._idle_prompts = 0

    # --- After every event -------------------------------------------------------------------

    def _move_on(self, now: float) -> list[Command]:
        """What has become possible: talk, send ahead, finish turns, let a wish out, hang up."""
        commands: list[Command] = []
        if self.phase is Phase.ENDED:
            return commands
        if self.phase is Phase.OPENING and self.backend is BackendPhase.READY:
            commands += self._begin_talking(now)
        commands += self._release(now)
        commands += self._settle(self._playout.take_heard(now), now)
        if self._guarded_greeting and self._replies.quiet and self._playout.drained:
            self._guarded_greeting = False
            commands += self._line.open()
        request = self._replies.take(now) if self._may_ask else None
        if request is not None:
            instructions = wording(request.purpose, self.plan, request.detail)
            commands.append(ev.CreateResponse(request.purpose, instructions))
        if self.phase is Phase.SAYING_GOODBYE and self._replies.quiet and self._playout.drained:
            commands += self._leave(now)
        return commands

    def _begin_talking(self, now: float) -> list[Command]:
        self._enter(Phase.TALKING, now)
        self._active_at = now
        if not self.plan.greeting:
            return [*self._line.open()]
        self._replies.ask(Request(Purpose.GREETING))
        if self.plan.greeting_interruptible:
            return [*self._line.open()]
        self._guarded_greeting = True
        self._line.hold(limits.GREETING_TAIL_MS)
        return []

    @property
    def _may_ask(self) -> bool:
        """All tool outputs come first, then one `response.create` (realtime.md 1.10)."""
        talking = self.phase in {Phase.TALKING, Phase.SAYING_GOODBYE}
        return talking and self.backend is BackendPhase.READY and not self._tools_running

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase, self._since = phase, now

    # --- The end -----------------------------------------------------------------------------

    def _end(self, reason: EndReason, now: float, detail: str = "") -> list[Command]:
        """The call is over here. When we close the stream, Twilio asks `/twiml/after` what to say."""
        self.end_reason = reason
        commands: list[Command] = []
        if self._started_at is not None:
            commands += self._settle_quietly(now)
            if detail:
                commands.append(self._happened("end", detail, now))
            ended = CallEnded(
                call_sid=self.facts.call_sid,
                leg=self.facts.leg,
                ended_ms=self._wall.ms(now),
                reason=reason.value,
                turns=self._turns.count,
            )
            commands.append(ev.Remember(ended))
        self._enter(Phase.ENDED, now)
        return [ev.ClosePhone(), ev.CloseBackend(), *commands, ev.Ended(reason)]

    def _settle_quietly(self, now: float) -> list[Command]:
        """Finish every open turn; the backend is not told any more."""
        records: list[Record] = []
        for outcome in self._playout.cut(now):
            records += self._turns.agent_heard(outcome.item_id, outcome.heard_ms, cut=outcome.cut, now=now)
        records += self._turns.close(now)
        return _remember(records)

    def _happened(self, kind: str, detail: str, now: float) -> ev.Remember:
        self._happenings += 1
        return ev.Remember(
            Happening(
                call_sid=self.facts.call_sid,
                leg=self.facts.leg,
                seq=self._happenings - 1,
                at_ms=self._wall.ms(now),
                kind=kind,
                detail=detail,
            )
        )


def _remember(records: Sequence[Record]) -> list[Command]:
    return [ev.Remember(record) for record in records]
