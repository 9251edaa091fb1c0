"""A call: events in, commands out.

`handle(event, now)` returns what must be done, in order; `deadline()` says when the call next wants a `Tick`.
The same events at the same instants give the same commands, so a logged list of events replays a bad call.
It has no sockets, JSON, tasks or clocks: the bridge feeds it and carries out what it asks.

phases.py has the tables of how far a call and its backend can come. What has a state of its own lives beside this
file: conversation.py (everything that is spoken), agent_session.py (what of that belongs to one backend),
caller.py (the caller's audio), failover.py (which backend follows), patience.py (idle and longest time), peers.py
(are both still there), journal.py (records).
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import assert_never

from app.call import events as ev
from app.call import limits
from app.call.allowance import Allowance
from app.call.caller import CallerLine
from app.call.conversation import NOT_HUNG_UP, Conversation, Decision, Farewell, GiveUp, remember
from app.call.ending import EndReason
from app.call.events import Command, ErrorKind, Event, Side
from app.call.evidence import Route
from app.call.failover import Failover
from app.call.failure import BackendFailure, Remedy, lost, misbehaved, not_ready, silent, slow, wrong_format
from app.call.history import NO_HISTORY, History
from app.call.journal import ROLLOVER, TAKE_OVER, Facts, Journal
from app.call.moving import Move
from app.call.patience import Patience, Reminder
from app.call.peers import Peer
from app.call.phases import (
    BACKEND_TRANSITIONS,
    PHASE_LIMIT_S,
    TRANSITIONS,
    BackendCause,
    BackendPhase,
    Cause,
    Phase,
    following,
)
from app.call.plan import NO_ABILITIES, Abilities, Plan, Purpose
from app.call.records import Record
from app.call.wall import Wall

_GONE = BackendPhase.GONE
_TALKING, _SAYING_GOODBYE, _TAKING_OVER = Phase.TALKING, Phase.SAYING_GOODBYE, Phase.TAKING_OVER
"""A member of an Enum is found in Python at every look, so these are looked up once."""

_TICKS_AT_ONCE_MAX = 16
"""More things than can fall due at one instant. A deadline that does not move would stop every call."""

_FROM_PHONE = frozenset({ev.CallerAudio, ev.MarkReturned, ev.KeyPressed})
_WITHOUT_SESSION = frozenset({ev.MarkReturned, ev.ToolFinished})
"""Events of a conversation that come also while it has no session."""
_FROM_BACKEND = frozenset(
    {
        ev.AgentAudio,
        ev.AgentAudioEnded,
        ev.AgentText,
        ev.BackendConfigured,
        ev.BackendFault,
        ev.CallerTranscribed,
        ev.CallerTurnCommitted,
        ev.ResponseEnded,
        ev.ResponseStarted,
        ev.SpeechStarted,
        ev.SpeechStopped,
        ev.ToolCalled,
    }
)
"""Events that show that a peer is alive."""


@dataclass(frozen=True, slots=True)
class _Goodbye:
    """An end that was decided and is being spoken."""

    reason: EndReason
    tool_call_id: str | None = None
    """The model's own hang_up call, to be answered if the caller talks it out of hanging up."""


@dataclass(frozen=True, slots=True)
class _Loss:
    """A session that was lost, and has no successor yet."""

    backend: str
    failure: BackendFailure
    plays_s: float
    """How long what came of the agent's speech was still to be played then."""
    played_at: float
    """When that is over."""


class Call:
    """One leg of a phone call."""

    def __init__(
        self,
        plan: Plan,
        facts: Facts,
        wall: Wall,
        abilities: Abilities = NO_ABILITIES,
        history: History = NO_HISTORY,
        *,
        awaits_history: bool = False,
    ) -> None:
        """`wall` fixes the call's clock to Unix time; its `now` is the instant at which this leg begins.

        `abilities`: the backend's. `history`: what was said in earlier legs. With one the agent does not greet the
        caller: it is told the history, and then says what it still has to say. `awaits_history`: it comes
        later, as HistoryFound, and nobody talks before.
        """
        self.plan = plan
        self.facts = facts
        self.phase = Phase.EXPECTED
        self.backend = BackendPhase.DIALLING
        self._phase_since = wall.now
        self._journal = Journal(facts, wall)
        self._trail: Route | None = None
        self._started: ev.PhoneStarted | None = None
        self._started_at = 0.0
        self._conversation = Conversation(plan, self._journal, abilities, history)
        self._wall = wall
        self._began_ms = history.began_ms
        self._awaits_history = awaits_history
        self._line = CallerLine(hold_max_ms=limits.EARLY_AUDIO_MAX_MS)
        self._phone_peer = Peer(Side.PHONE)
        self._backend_peer = Peer(Side.BACKEND)
        self._failover = Failover(wall.now)
        self._failover.step_began(wall.now, limits.BACKEND_LATE_S)
        self._unheard = True
        """The caller has heard nothing of the agent: another backend may still take the call unnoticed."""
        self._loss: _Loss | None = None
        """While a session is taken over."""
        self._spare: ev.SpareReady | None = None
        """A second session that is ready."""
        self._spare_at = limits.NEVER
        """When a second session is to be opened next."""
        self._lost_at: deque[float] = deque(maxlen=limits.TAKE_OVERS_MAX)
        """When sessions were lost."""
        self._patience = Patience(plan, began_at=wall.now)
        self._goodbye: _Goodbye | None = None
        self._move: Move | None = None
        """Set once this machine drains."""
        self._guarded_greeting = False
        self._key_pace = Allowance(limits.KEYS_AT_ONCE_MAX, limits.KEYS_PER_S)
        self._keys = 0
        self._catches_up_until = 0.0
        """No peer is judged before this instant; 0.0 when this process keeps its deadlines."""
        self._standstills = 0
        self._deadline = self._next_deadline()

    # --- The interface -----------------------------------------------------------------------

    def passes(self, frame: ev.CallerAudio, now: float) -> bool:
        """The hot path: True when this caller frame goes straight to the backend, unchanged.

        False: hand it to `handle`. `now` is in seconds, as everywhere.
        """
        phase = self.phase
        if phase is not _TALKING and phase is not _SAYING_GOODBYE:
            return False
        if not self._line.passes(frame, now):
            return False
        self._phone_peer.heard_at = now
        return True

    def handle(self, event: Event, now: float) -> list[Command]:
        """Everything that must be done because of this event, in order."""
        kind = type(event)
        if isinstance(event, ev.AgentText) and self._may_ask:
            # Words that run ahead of the audio move nothing: no deadline comes nearer, nothing becomes possible.
            self._backend_peer.heard_at = now
            self._conversation.take_text(event, now)
            return []
        if isinstance(event, ev.AgentAudio) and self._is_steady(now):
            more = self._conversation.more_audio(event, now)
            if more is not None:
                # Whatever else is due, more audio brings it no nearer: a Tick that comes too early does nothing.
                self._backend_peer.heard_at = now
                self._deadline = min(self._deadline, self._conversation.audio_due_at())
                return more
        if now >= self._deadline + limits.STANDSTILL_S:
            self._stood_still(now - self._deadline, now)
        elif now >= self._deadline:
            self._standstills = 0
        if now >= self._catches_up_until:
            self._catches_up_until = 0.0
        if kind in _FROM_BACKEND:
            self._backend_peer.heard_at = now
        elif kind in _FROM_PHONE:
            self._phone_peer.heard_at = now
        commands = self._handle(event, now)
        commands += self._advance(now)
        for _ in range(_TICKS_AT_ONCE_MAX):
            # Something fell due while this event was on its way: a deadline is never left in the past.
            self._deadline = self._next_deadline()
            if self._deadline > now:
                return commands
            commands += self._tick(now)
            commands += self._advance(now)
        raise AssertionError(f"the deadline does not move in {self.phase}")

    @property
    def phone_heard_at(self) -> float:
        """When the phone side last sent something."""
        return self._phone_peer.heard_at

    def _is_steady(self, now: float) -> bool:
        """True while both sides talk, nothing is due, and nothing that happens to the call is under way."""
        talking = self.phase is _TALKING and not self._line.keeps and self._move is None
        return talking and now < self._deadline and not self._catches_up_until

    @property
    def phone_rtt_ms(self) -> float:
        """The round trip to the phone side; 0 until it is measured."""
        return self._phone_peer.rtt_ms

    @property
    def fill(self) -> dict[str, int]:
        """How much of everything bounded the call holds at the moment, by name."""
        return self._conversation.fill | {"held_frames": self._line.held_frames, "held_ms": self._line.held_ms}

    def deadline(self) -> float | None:
        """When the call next wants a Tick; None once it has ended.

        `passes` may move it further away: a Tick that comes before it is due does nothing.
        """
        return None if self.phase is Phase.ENDED else self._deadline

    def _next_deadline(self) -> float:
        plays = self._plays
        if not plays and self.phase is Phase.ENDED:
            return limits.NEVER
        if self._catches_up_until:
            return self._catches_up_until
        if not plays and (self.phase is Phase.LEAVING or self.phase is Phase.MOVING):
            return self._phase_ends_at()
        due_at = min(self._phone_peer.due_at(), self._backend_peer.due_at())
        if self._spoken and self._failover.seeking:
            # The answer to FindBackend comes first: a goodbye cannot begin without a backend.
            return due_at
        due_at = min(due_at, self._phase_ends_at(), self._move_due_at())
        if self._may_replace_late:
            due_at = min(due_at, self._failover.due_at())
        if not plays:
            return due_at
        if self._spare_at < due_at and self._spoken:
            due_at = self._spare_at
        return min(due_at, self._conversation.due_at(may_ask=self._may_ask), self._line.stall_fill_at())

    # --- Events ------------------------------------------------------------------------------

    def _handle(self, event: Event, now: float) -> list[Command]:
        if not self._plays:
            if self.phase is Phase.ENDED:
                return []
            if self.phase is Phase.LEAVING:
                return self._leaving(event, now)
            if self.phase is Phase.MOVING and self._move is not None:
                return self._moving(event, self._move, now)
        if self.backend is _GONE and type(event) in _FROM_BACKEND:
            return []
        match event:
            case ev.CallerAudio():
                return self._caller_audio(event, now)
            case (
                ev.AgentAudio()
                | ev.AgentAudioEnded()
                | ev.MarkReturned()
                | ev.CallerTurnCommitted()
                | ev.ResponseStarted()
                | ev.ResponseEnded()
                | ev.ToolCalled()
                | ev.ToolFinished()
            ):
                # What a backend says before the stream has begun cannot be heard.
                if not self._spoken and not (self.phase is _TAKING_OVER and type(event) in _WITHOUT_SESSION):
                    return []
                commands, decision = self._conversation.handle(event, now)
                if isinstance(event, ev.ResponseEnded):
                    commands += _limit_reported(event.failure)
                return commands if decision is None else commands + self._obey(decision, now)
            case ev.SpeechStarted():
                return self._caller_speaks(event, now) if self._spoken else []
            case ev.SpeechStopped() | ev.CallerTranscribed():
                return self._caller_spoke(event, now) if self._spoken else []
            case ev.PhoneConnected() | ev.PhoneStarted() | ev.PhoneStopped() | ev.KeyPressed():
                return self._on_phone_event(event, now)
            case ev.BackendOpened() | ev.BackendConfigured() | ev.BackendUnreachable() | ev.BackendFault():
                return self._on_backend_event(event, now)
            case ev.BackendFound():
                return self._switch_backend(event, now)
            case ev.NoBackendLeft():
                return self._no_backend_left(now)
            case ev.SpareReady():
                self._spare = event
                return []
            case ev.SpareLost():
                self._spare, self._spare_at = None, now + limits.SPARE_AGAIN_S
                return []
            case ev.BadMessage() | ev.PeerLost() | ev.PeerSlow() | ev.Pong():
                return self._on_peer_event(event, now)
            case ev.ShutdownRequested():
                return self._end(EndReason.SHUTDOWN, now)
            case ev.MoveRequested():
                self._move = self._move or Move(event.by)
                return []
            case ev.Superseded():
                return self._end(EndReason.SUPERSEDED, now)
            case ev.HistoryFound():
                return self._recall(event.history)
            case ev.Broken():
                return self._end(EndReason.BUG, now)
            case ev.RedirectAnswered() | ev.HangUpFailed() | ev.Tick() | ev.AgentText():
                return []
            case _:
                assert_never(event)

    def _recall(self, history: History) -> list[Command]:
        """What was said in earlier legs is known now."""
        if self._awaits_history:
            self._awaits_history = False
            self._conversation.recall(history)
        return []

    def _leaving(self, event: Event, now: float) -> list[Command]:
        """The goodbye was heard and the hang-up asked for: late words are kept, the rest does not matter."""
        match event:
            case ev.PhoneStopped() | ev.HangUpFailed() | ev.ShutdownRequested() | ev.PeerLost(side=Side.PHONE):
                return self._end(self._leaving_reason, now)
            case ev.Superseded():
                return self._end(EndReason.SUPERSEDED, now)
            case ev.Broken():
                return self._end(EndReason.BUG, now)
            case ev.CallerTranscribed():
                return self._conversation.handle(event, now)[0]
            case _:
                return []

    # --- Moving to another machine -------------------------------------------------------------

    def _move_due_at(self) -> float:
        """When the call leaves this machine: when nobody speaks, at the latest when it has to.

        A call whose stream has not begun has nothing to move, and a goodbye is not worth it: it is cut short.
        """
        if self._move is None:
            return limits.NEVER
        match self.phase:
            case Phase.TALKING:
                return min(self._move.by, self._move.quiet_since + limits.MOVE_QUIET_S)
            case Phase.OPENING | Phase.TAKING_OVER | Phase.SAYING_GOODBYE:
                return self._move.by
            case _:
                return limits.NEVER

    def _begin_move(self, now: float) -> list[Command]:
        """Record the whole leg, its ending too, then have Twilio fetch what comes next.

        The machine that goes on reads the records: without an ending it would ask here how the leg ended.
        Speech that is cut off is cleared at once: what the caller hears after its turn is recorded is said again.
        """
        cut_off = [] if self._conversation.quiet else [ev.SendClear()]
        self._enter(Cause.MOVE_DUE, now)
        beginning = self._beginning()
        turns, count = self._conversation.close(now)
        ending = self._journal.ended(EndReason.MOVED, "", count, now)
        return [*cut_off, *remember([*beginning, *turns, *ending]), ev.CloseBackend(), ev.Redirect()]

    def _moving(self, event: Event, move: Move, now: float) -> list[Command]:
        """The redirect is asked for. Twilio's `stop` looks the same when it follows and when the caller hangs up.

        So the answer decides. Without a clear one the leg counts as moved: when the caller is still there another
        leg goes on, and when not nobody asks for one. Its records say that it moved in any case.
        """
        match event:
            case ev.RedirectAnswered(outcome=ev.RedirectOutcome.CALL_OVER):
                return self._end(EndReason.CALLER_HUNG_UP, now)
            case ev.RedirectAnswered(outcome=ev.RedirectOutcome.FAILED):
                # Closing the stream has Twilio ask `/twiml/after`, which another machine answers.
                return self._end(EndReason.MOVED, now)
            case ev.RedirectAnswered():
                move.accepted, move.stop_by = True, now + limits.STOP_WAIT_S
            case ev.PhoneStopped() | ev.PeerLost(side=Side.PHONE):
                move.phone_gone = True
            case ev.ShutdownRequested():
                return self._end(EndReason.MOVED, now)
            case ev.Superseded():
                return self._end(EndReason.SUPERSEDED, now)
            case ev.Broken():
                return self._end(EndReason.BUG, now)
            case _:
                return []
        return self._end(EndReason.MOVED, now) if move.accepted and move.phone_gone else []

    # --- The phone ---------------------------------------------------------------------------

    def _on_phone_event(
        self, event: ev.PhoneConnected | ev.PhoneStarted | ev.PhoneStopped | ev.KeyPressed, now: float
    ) -> list[Command]:
        match event:
            case ev.PhoneConnected() if self.phase is Phase.EXPECTED:
                self._phone_peer.connected(now)
                self._trail = event.trail
                self._enter(Cause.STREAM_CONNECTED, now)
                return []
            case ev.PhoneStarted() if self.phase is Phase.ARRIVED:
                if event.call_sid != self.facts.call_sid:
                    return self._end(EndReason.WRONG_CALL, now)
                began_at = now if self._began_ms is None else self._wall.at(self._began_ms)
                self._patience = Patience(self.plan, began_at)
                self._started, self._started_at = event, now
                self._enter(Cause.STREAM_STARTED, now)
                return []
            case ev.PhoneStopped():
                return self._end(EndReason.CALLER_HUNG_UP, now)
            case ev.KeyPressed() if self.phase is _TALKING or self.phase is _TAKING_OVER:
                self._patience.caller_is_there(now)
                return self._key(event.digit, now)
            case ev.KeyPressed():
                return []
            case _:
                return self._bad_message(Side.PHONE, now)

    def _key(self, digit: str, now: float) -> list[Command]:
        if self._keys >= limits.KEYS_MAX or not self._key_pace.take(now):
            self._journal.leave_out("keys")
            return []
        self._keys += 1
        return self._conversation.key(digit, now)

    def _caller_audio(self, frame: ev.CallerAudio, now: float) -> list[Command]:
        if self.phase in {Phase.EXPECTED, Phase.ARRIVED}:
            return self._bad_message(Side.PHONE, now)
        return [*self._line.take(frame, now)]

    def _caller_speaks(self, event: ev.SpeechStarted, now: float) -> list[Command]:
        # The greeting gives way to what the caller says.
        self._failover.step_ended()
        self._patience.caller_is_there(now)
        self._line.keep()
        commands, decision = self._conversation.handle(event, now)
        if self._goodbye is not None:
            commands += self._stay(self._goodbye, now)
        return commands if decision is None else commands + self._obey(decision, now)

    def _caller_spoke(self, event: ev.SpeechStopped | ev.CallerTranscribed, now: float) -> list[Command]:
        """Keep what a next backend will have to know: what the caller said, in words where there are some."""
        if isinstance(event, ev.SpeechStopped):
            self._line.turn_ended(event.item_id)
        elif event.text:
            self._line.turn_known(event.item_id)
        commands, _ = self._conversation.handle(event, now)
        return commands

    # --- The backend -------------------------------------------------------------------------

    def _on_backend_event(
        self, event: ev.BackendOpened | ev.BackendConfigured | ev.BackendUnreachable | ev.BackendFault, now: float
    ) -> list[Command]:
        match event:
            case ev.BackendOpened() if self.backend is BackendPhase.DIALLING:
                self._backend_peer.connected(now)
                self._session_opened(event.ends_unix_ms, now)
                self._backend_enter(BackendCause.OPENED)
                self._failover.step_began(now, limits.BACKEND_LATE_S)
                return [ev.Configure(self.plan)]
            case ev.BackendConfigured() if not event.formats_match:
                return self._backend_failed(wrong_format(event.echoed), now)
            case ev.BackendConfigured() if self.backend is BackendPhase.CONFIGURING:
                # Only now: until then the session reads mu-law as PCM, which is noise (realtime.md 1.1).
                self._backend_enter(BackendCause.CONFIGURED)
                self._failover.step_ended()
                return [ev.ReportReady(self._failover.ready_after_ms(now))]
            case ev.BackendUnreachable():
                return self._backend_failed(event.failure, now)
            case ev.BackendFault():
                return [*_limit_reported(event.failure), *self._backend_fault(event, now)]
            case ev.BackendOpened() | ev.BackendConfigured():
                return []

    def _backend_fault(self, fault: ev.BackendFault, now: float) -> list[Command]:
        """The one place that decides what a backend's error means in the present phase."""
        if fault.kind is ErrorKind.WARNING:
            return remember(self._journal.happened("backend_warning", fault.failure.text, now))
        if fault.configuration and self.backend is not BackendPhase.READY:
            # No BackendConfigured will follow.
            return self._backend_failed(fault.failure, now)
        if self._spoken and fault.kind is not ErrorKind.FATAL:
            commands, decision = self._conversation.fault(fault, now)
            return commands if decision is None else commands + self._obey(decision, now)
        if fault.kind is ErrorKind.FATAL and not self._spoken:
            return self._backend_failed(fault.failure, now)
        noted = remember(self._journal.happened("backend_fault", fault.failure.text, now))
        if fault.kind is ErrorKind.FATAL:
            return noted + self._backend_failed(fault.failure, now)
        # Some servers complain of something else first, such as a deprecated field, and go on.
        return noted

    def _backend_failed(self, failure: BackendFailure, now: float) -> list[Command]:
        """Let another backend take the call, or another session go on with it; end it when neither may."""
        if self.backend is BackendPhase.GONE:
            # It may send an error, and close the connection after that.
            return []
        if self._spoken and not self._unheard:
            return self._lose_session(failure, now)
        if not self._spoken and self._phase_ends_at() <= now:
            return self._give_up(failure, now)
        if self.phase is _SAYING_GOODBYE:
            return self._lose_backend(now)
        return [*self._failover.seek(self.facts.backend, failure)]

    def _no_backend_left(self, now: float) -> list[Command]:
        match self._failover.found_none():
            case None:
                return []
            case BackendFailure() as failure:
                return self._give_up(failure, now)
            case search:
                return [*search]

    def _give_up(self, failure: BackendFailure, now: float) -> list[Command]:
        """No backend is left. What came of a goodbye is at the phone, and the rest is not worth an apology."""
        if self._goodbye is None:
            return self._end_failed(failure, now)
        if self.phase is _TAKING_OVER:
            self._loss = None
            self._enter(Cause.GOODBYE_BEGUN, now)
        return [*self._failover.blame(failure, now), *self._lose_backend(now)]

    def _lose_backend(self, now: float) -> list[Command]:
        """The goodbye goes on without a backend, as far as it came."""
        self._backend_enter(BackendCause.LOST)
        self._backend_peer.gone()
        commands, _ = self._conversation.lose_session({}, now, plays_on=True)
        self._conversation.wind_up(None)
        return [ev.CloseBackend(), *commands]

    def _switch_backend(self, found: ev.BackendFound, now: float) -> list[Command]:
        """Dial another backend. What the caller says meanwhile, and has said without an answer, is kept."""
        search = self._failover
        failure = search.failure
        commands: list[Command] = [*search.blame(failure, now), ev.SwitchBackend()]
        search.found(now)
        # The first one that is dialled after a loss is told of when it is ready, with the length of the pause.
        why = "" if self._loss is not None and failure is self._loss.failure else str(failure)
        commands += remember(self._journal.switched(found.facts, why, now))
        self.plan, self.facts = found.plan, found.facts
        commands += self._conversation.replace_backend(found.plan, found.abilities, now)
        self._backend_enter(BackendCause.REPLACED)
        self._backend_peer = Peer(Side.BACKEND)
        if self._spoken:
            self._enter(Cause.BACKEND_REPLACED, now)
            self._guarded_greeting = False
            self._line.hold(limits.UNANSWERED_AUDIO_MAX_MS)
        return commands

    # --- Taking over -------------------------------------------------------------------------

    def _lose_session(self, failure: BackendFailure, now: float) -> list[Command]:
        """The caller has heard this session: another one goes on with the conversation."""
        lately = [at for at in self._lost_at if now - at < limits.TAKE_OVERS_LATELY_S]
        if len(lately) >= limits.TAKE_OVERS_MAX:
            if self.phase is _SAYING_GOODBYE:
                return self._lose_backend(now)
            return self._end_failed(failure, now)
        self._lost_at.append(now)
        self._enter(Cause.SESSION_LOST, now)
        self._backend_peer.gone()
        self._line.keep()
        self._line.hold(limits.UNANSWERED_AUDIO_MAX_MS)
        self._failover = Failover(now, forgiving=True)
        # A backend that sends audio without end is not heard to its end.
        plays_on = failure.reason is not EndReason.BACKEND_MISBEHAVED
        unanswered = self._line.has_unanswered_turn
        lost, plays_s = self._conversation.lose_session(
            self._line.take_answered(), now, plays_on=plays_on, hears_again=unanswered
        )
        self._loss = _Loss(self.facts.backend, failure, plays_s, now + plays_s)
        if self._spare is not None:
            return [*lost, *self._failover.blame(failure, now), *self._use_spare(self._spare, now)]
        return [*lost, *self._failover.seek_after_loss(self.facts.backend, failure, again=bool(lately))]

    def _go_on(self, loss: _Loss, now: float) -> list[Command]:
        """The next session is ready: tell it what was said, and let it hear what it missed."""
        self._loss = None
        self._enter(Cause.BACKEND_READY, now)
        self._patience.reset_idle(now)
        pause_ms = max(0.0, now - loss.played_at) * 1000
        detail = f"{loss.backend} {loss.failure} next={self.facts.backend} pause_ms={pause_ms:.0f}"
        commands = remember(self._journal.happened(TAKE_OVER, detail, now))
        commands += self._conversation.seed(now)
        if self._guarded_greeting:
            self._line.hold(limits.GREETING_TAIL_MS)
        else:
            commands += self._line.open()
        if self._goodbye is not None:
            # The call of its tool belonged to the session that was lost.
            self._goodbye = replace(self._goodbye, tool_call_id=None)
            self._enter(Cause.GOODBYE_BEGUN, now)
        return commands

    # --- Rolling over ------------------------------------------------------------------------

    def _session_opened(self, ends_unix_ms: int | None, now: float) -> None:
        ends_at = limits.NEVER if ends_unix_ms is None else self._wall.at(ends_unix_ms)
        if not now < ends_at < now + limits.SESSION_MAX_S:
            # It does not say, or its clock is another one.
            ends_at = now + limits.SESSION_MAX_S
        # A session that lasts for a few minutes is used for half of them at least.
        self._spare_at = max(ends_at - limits.ROLLOVER_BEFORE_S, (now + ends_at) / 2)
        self._spare = None

    def _open_spare(self) -> list[Command]:
        """The session will end soon: have another one ready."""
        self._spare_at = limits.NEVER
        return [ev.OpenSpare()]

    def _roll_over(self, spare: ev.SpareReady, now: float) -> list[Command]:
        """Nobody speaks and nothing is owed: the next session goes on, and the caller notices nothing."""
        before = self.facts.backend
        lost, _ = self._conversation.lose_session(self._line.take_answered(), now, plays_on=True)
        commands = [*lost, ev.ReportOutcome(None), *self._use_spare(spare, now)]
        commands += remember(self._journal.happened(ROLLOVER, f"{before} next={self.facts.backend}", now))
        return [*commands, *self._conversation.seed(now), *self._line.open()]

    def _use_spare(self, spare: ev.SpareReady, now: float) -> list[Command]:
        found = spare.found
        commands: list[Command] = [ev.SwitchToSpare()]
        commands += remember(self._journal.switched(found.facts, "", now))
        self.plan, self.facts = found.plan, found.facts
        self._backend_peer = Peer(Side.BACKEND)
        self._backend_peer.connected(now)
        self._session_opened(spare.ends_unix_ms, now)
        return [*commands, *self._conversation.replace_backend(found.plan, found.abilities, now)]

    # --- Saying goodbye ----------------------------------------------------------------------

    def _begin_goodbye(self, goodbye: _Goodbye, now: float, why: str | None) -> None:
        """`why`: what the agent's goodbye is to tell; None when it has said its goodbye already."""
        self._goodbye = goodbye
        self._failover.step_ended()
        self._conversation.wind_up(why)
        self._enter(Cause.GOODBYE_BEGUN, now)

    def _stay(self, goodbye: _Goodbye, now: float) -> list[Command]:
        """The caller cuts into the goodbye: the call goes on, unless its longest allowed time is over."""
        if goodbye.reason is EndReason.MAX_LENGTH:
            return []
        self._goodbye = None
        self._conversation.forget_requests()
        self._enter(Cause.CALLER_CUT_IN, now)
        if goodbye.tool_call_id is None:
            return []
        return [ev.AddToolOutput(goodbye.tool_call_id, NOT_HUNG_UP)]

    def _leave(self, now: float) -> list[Command]:
        """The goodbye was heard (or its time is up): hang up. Twilio's `stop` ends the call."""
        self._enter(Cause.GOODBYE_HEARD, now)
        # A backend session is paid for as long as it is open.
        return [ev.HangUp()] if self._conversation.awaits_words else [ev.HangUp(), ev.CloseBackend()]

    @property
    def _leaving_reason(self) -> EndReason:
        assert self._goodbye is not None, "LEAVING follows SAYING_GOODBYE"
        return self._goodbye.reason

    @property
    def _spoken(self) -> bool:
        """Both sides are up and talk. Compared by identity: a set of Enums hashes them in Python."""
        return self.phase is _TALKING or self.phase is _SAYING_GOODBYE

    @property
    def _plays(self) -> bool:
        """What came of the agent's speech goes to the phone, with a session or without."""
        return self.phase is _TALKING or self.phase is _SAYING_GOODBYE or self.phase is _TAKING_OVER

    @property
    def _may_replace_late(self) -> bool:
        """A backend that is late is replaced while the caller waits for the first one, or for the next session."""
        return self._unheard or self.phase is _TAKING_OVER

    # --- The peers ---------------------------------------------------------------------------

    def _on_peer_event(
        self, event: ev.BadMessage | ev.PeerLost | ev.PeerSlow | ev.Pong, now: float
    ) -> list[Command]:
        phone = event.side is Side.PHONE
        match event:
            case ev.BadMessage():
                return self._bad_message(event.side, now)
            case ev.PeerSlow():
                if phone:
                    return self._end(EndReason.PHONE_SLOW, now)
                return self._backend_failed(slow(), now)
            case ev.Pong():
                self._peer(event.side).pong(now)
                self._conversation.rtt_changed(self._phone_peer.rtt_ms)
                return []
            case ev.PeerLost() if phone:
                reason = EndReason.PHONE_MISBEHAVED if event.why else EndReason.PHONE_LOST
                return self._end(reason, now, event.why or str(event.code))
            case ev.PeerLost():
                return self._backend_failed(misbehaved(event.why) if event.why else lost(event.code), now)

    def _peer(self, side: Side) -> Peer:
        return self._phone_peer if side is Side.PHONE else self._backend_peer

    def _bad_message(self, side: Side, now: float) -> list[Command]:
        if not self._peer(side).bad_message(now):
            return []
        if side is Side.PHONE:
            return self._end(EndReason.PHONE_MISBEHAVED, now)
        return self._backend_failed(misbehaved(), now)

    # --- Time --------------------------------------------------------------------------------

    def _stood_still(self, for_s: float, now: float) -> None:
        """This process did nothing, for at least so long, while its peers went on: read first, judge later.

        The one place that knows of it: until the call has caught up nothing falls due, whatever it is, and what is
        still awaited then has so much longer. Only the longest allowed time of a call goes on.
        """
        if self._standstills >= limits.STANDSTILLS_MAX:
            return
        self._standstills += 1
        self._catches_up_until = now + limits.CATCH_UP_S
        self._phase_since += for_s
        self._failover.stood_still(for_s)
        self._conversation.stood_still(for_s)
        self._phone_peer.stood_still(for_s)
        self._backend_peer.stood_still(for_s)
        self._patience.stood_still(for_s)

    def _tick(self, now: float) -> list[Command]:
        """Whatever has fallen due."""
        if self._move is not None and self._move_due_at() <= now:
            return self._leave(now) if self.phase is _SAYING_GOODBYE else self._begin_move(now)
        if not self._spoken and self._phase_ends_at() <= now:
            return self._phase_due(now)
        if self.phase is Phase.LEAVING or self.phase is Phase.MOVING:
            return []
        if self._phone_peer.silent(now):
            return self._end(EndReason.PHONE_SILENT, now)
        if self._phone_unread(now):
            return self._end(EndReason.PHONE_SLOW, now, "does not read")
        if self._backend_peer.silent(now):
            self._backend_peer.gone()
            return self._backend_failed(silent(), now)
        if self._backend_peer.unread(now):
            self._backend_peer.gone()
            return self._backend_failed(slow("does not read"), now)
        peers = (self._phone_peer, self._backend_peer)
        commands: list[Command] = [ev.Ping(peer.side) for peer in peers if peer.ping_due(now)]
        if self._may_replace_late and self._failover.late(now):
            step = "greeting" if self._spoken else self.backend.name.lower()
            commands += self._backend_failed(not_ready(step), now)
        if not self._plays or (self._spoken and self._failover.seeking):
            return commands
        if self._spare_at <= now and self._spoken:
            commands += self._open_spare()
        due, decision = self._conversation.tick(now)
        commands += due
        commands += self._line.fill_stall(now)
        if self._spoken and self._phase_ends_at() <= now:
            commands += self._phase_due(now)
        return commands if decision is None else commands + self._obey(decision, now)

    def _phone_unread(self, now: float) -> bool:
        """It sends, and does not read what we send: neither pongs nor marks come back."""
        lost = self._conversation.marks_lost
        if self._phone_peer.answers_pings:
            return lost >= limits.UNREAD_MARKS_MIN and self._phone_peer.unread(now)
        return lost >= limits.UNREAD_MARKS_MAX

    def _phase_ends_at(self) -> float:
        if self.phase is Phase.TALKING:
            return self._patience.due_at(quiet=self._conversation.quiet)
        if self._move is not None and self.phase is Phase.MOVING:
            return min(self._phase_since + PHASE_LIMIT_S[self.phase], self._move.stop_by)
        if self._loss is not None:
            # While the agent is still heard nobody waits.
            return self._phase_since + PHASE_LIMIT_S[self.phase] + self._loss.plays_s
        return self._phase_since + PHASE_LIMIT_S[self.phase]

    def _phase_due(self, now: float) -> list[Command]:
        match self.phase:
            case Phase.EXPECTED:
                return self._end(EndReason.STREAM_NEVER_CAME, now)
            case Phase.ARRIVED:
                return self._end(EndReason.START_NEVER_CAME, now)
            case Phase.OPENING | Phase.TAKING_OVER:
                return self._give_up(not_ready(self.backend.name.lower()), now)
            case Phase.TALKING:
                self._remind(now)
                return []
            case Phase.SAYING_GOODBYE:
                return self._leave(now)
            case Phase.LEAVING:
                return self._end(self._leaving_reason, now)
            case Phase.MOVING:
                return self._end(EndReason.MOVED, now)
            case Phase.ENDED:
                return []

    def _remind(self, now: float) -> None:
        match self._patience.due(now, quiet=self._conversation.quiet):
            case Reminder.WARN:
                self._conversation.ask(Purpose.WARNING, f"{self.plan.max_call_warning_s:.0f} seconds")
            case Reminder.ASK:
                self._conversation.ask(Purpose.IDLE)
            case Reminder.GIVE_UP:
                why = "The caller has not said anything for a while."
                self._begin_goodbye(_Goodbye(EndReason.IDLE), now, why)
            case Reminder.TIME_IS_UP:
                why = "The call has reached its longest allowed time."
                self._begin_goodbye(_Goodbye(EndReason.MAX_LENGTH), now, why)
            case None:
                pass

    # --- After every event -------------------------------------------------------------------

    def _advance(self, now: float) -> list[Command]:
        """Do what has become possible: begin to talk, let things out, hang up."""
        commands: list[Command] = []
        if not self._spoken and self.backend is BackendPhase.READY:
            if self.phase is Phase.OPENING and not self._awaits_history:
                commands += self._begin_talking(now)
            elif self.phase is _TAKING_OVER and self._loss is not None and not self._failover.seeking:
                commands += self._go_on(self._loss, now)
        if not self._plays:
            return commands
        self._note_heard()
        if self._conversation.agent_was_heard:
            commands += self._failover.greeting_heard(now)
        if self._failover.seeking and self._spoken:
            return commands
        commands += self._conversation.advance(now, may_ask=self._may_ask)
        if not self._spoken:
            return commands
        if self._move is not None:
            self._move.note(now, quiet=self._conversation.quiet and not self._conversation.awaits_words)
        if not self._conversation.quiet:
            self._patience.reset_idle(now)
        elif self.phase is _SAYING_GOODBYE:
            commands += self._leave(now)
        elif self._guarded_greeting:
            self._guarded_greeting = False
            commands += self._line.open()
        elif self._spare is not None and self._move is None and not self._conversation.awaits_words:
            commands += self._roll_over(self._spare, now)
        return commands

    def _note_heard(self) -> None:
        """From the agent's first sound on no other backend can take the call unnoticed."""
        if self._line.keeps and self._conversation.caller_was_answered:
            self._unheard = False
            self._line.stop_keeping()

    def _obey(self, decision: Decision, now: float) -> list[Command]:
        """Do what the conversation has decided about its end."""
        self._note_heard()
        if not self._spoken or self._failover.seeking:
            return []
        match decision:
            case GiveUp():
                return self._backend_failed(decision.failure, now)
            case Farewell() if self.phase is _TALKING:
                goodbye = _Goodbye(EndReason.AGENT_HUNG_UP, decision.tool_call_id)
                self._begin_goodbye(goodbye, now, None if decision.spoken else "")
            case Farewell():
                pass
        return []

    @property
    def _may_ask(self) -> bool:
        return self.backend is BackendPhase.READY and self._spoken

    def _begin_talking(self, now: float) -> list[Command]:
        self._enter(Cause.BACKEND_READY, now)
        self._patience.reset_idle(now)
        commands = remember(self._beginning())
        seeds = self._conversation.seed(now)
        if seeds or self._conversation.asks_to_repeat:
            # In an earlier leg, or to a backend that failed: whoever has talked to us is not greeted any more.
            return [*commands, *seeds, *self._line.open()]
        if self.plan.greeting:
            self._failover.greeting_asked(now)
            self._conversation.ask(Purpose.GREETING)
        if self.plan.greeting and not self.plan.greeting_interruptible:
            self._guarded_greeting = True
            self._line.hold(limits.GREETING_TAIL_MS)
            return commands
        return [*commands, *self._line.open()]

    def _beginning(self) -> list[Record]:
        """The leg's first records. Not at the stream's start: only now is it known whose call it is."""
        if self._started is None:
            return []
        started, self._started = self._started, None
        return self._journal.started(self.plan, started.stream_sid, self._trail, self._started_at)

    def _enter(self, cause: Cause, now: float) -> None:
        self.phase, self._phase_since = following(TRANSITIONS, self.phase, cause), now

    def _backend_enter(self, cause: BackendCause) -> None:
        self.backend = following(BACKEND_TRANSITIONS, self.backend, cause)

    # --- The end -----------------------------------------------------------------------------

    def _end_failed(self, failure: BackendFailure, now: float) -> list[Command]:
        """The backend ends the call."""
        outcome = self._failover.blame(failure, now)
        return self._over(failure.reason, failure.text, [*outcome, ev.Ended(failure.reason, failure)], now)

    def _end(self, reason: EndReason, now: float, detail: str = "") -> list[Command]:
        """Something else than the backend ends the call. `detail` is for the records."""
        # A caller who hangs up on a silent backend has not been served well.
        served = [ev.ReportOutcome(None)] if self._conversation.agent_was_heard else []
        return self._over(reason, detail, [*served, ev.Ended(reason)], now)

    def _over(self, reason: EndReason, detail: str, last: list[Command], now: float) -> list[Command]:
        """The call is over here. When we close the stream, Twilio asks `/twiml/after` what to say."""
        recorded = self.phase is Phase.MOVING
        self._enter(Cause.OVER, now)
        if recorded:
            return [ev.ClosePhone(), ev.CloseBackend(), *last]
        beginning = self._beginning()
        records, turns = self._conversation.close(now)
        if not self._journal.begun:
            records = self._journal.never_talked(self.plan, self._trail, reason, detail, now)
        else:
            records += self._journal.ended(reason, detail, turns, now)
        return [ev.ClosePhone(), ev.CloseBackend(), *remember([*beginning, *records]), *last]


def _limit_reported(failure: BackendFailure | None) -> list[Command]:
    """Report that the backend gets too many requests. The call asks again and may succeed; others need not try."""
    limited = failure is not None and failure.remedy is Remedy.RATE_LIMIT
    return [ev.ReportOutcome(failure)] if limited else []
