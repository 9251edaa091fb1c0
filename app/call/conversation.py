"""The conversation in a call: responses, barge-in, tools, turns, and what of it all the caller heard.

It covers the time from the moment when both sides are up to the moment when the call is to end. A method returns
what must be done and, when the conversation cannot or should not go on, a `Decision`; phases, peers and time
limits are call.py's. The rules that have cost others dearly stand at the methods that keep them: `_barge_in`,
`_speak`, `_run_tools`.

A conversation belongs to the phone and to the leg: its playout, its turns and the caller's patience go on when
another backend takes the call. What belongs to one backend's session is in agent_session.py and is replaced then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from app.call import events as ev
from app.call import limits
from app.call.agent_session import AgentSession
from app.call.events import Command, ErrorKind, ResponseStatus
from app.call.failure import DEAD_AIR, NO_AUDIO, BackendFailure, failing, misbehaved, no_response, silent
from app.call.history import History, Memory, Owed, Said, ToolUse
from app.call.journal import RESPONSE_FAILED, TOOL_LOOP, Journal
from app.call.pause import TONE, TONE_BYTES
from app.call.plan import HANG_UP_TOOL, TONE_PAUSE, Abilities, Plan, Purpose
from app.call.playout import Outcome, Playout
from app.call.records import Record, Speaker, Turn
from app.call.replies import Request
from app.call.turns import Turns

Event = (
    ev.AgentAudio
    | ev.AgentAudioEnded
    | ev.MarkReturned
    | ev.SpeechStarted
    | ev.SpeechStopped
    | ev.CallerTurnCommitted
    | ev.CallerTranscribed
    | ev.ResponseStarted
    | ev.ResponseEnded
    | ev.ToolCalled
    | ev.ToolFinished
)
"""What belongs to the conversation, but for AgentText and BackendFault, which have methods of their own."""

NO_OUTPUT = '{"error":"the tool did not answer"}'
"""What the model is told of a tool that was given up."""

NO_SUCH_TOOL = '{"error":"there is no such tool"}'
"""The output of a tool that only the model knows of."""

NOT_HUNG_UP = '{"result":"the caller went on talking; not hung up"}'
"""The output of a hang_up call that the caller talked the model out of."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """The model wants to hang up."""

    tool_call_id: str
    spoken: bool
    """It said something in the same response; else it has to be asked for a goodbye."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The backend cannot go on."""

    failure: BackendFailure


Decision = Farewell | GiveUp
"""How the conversation wants to end."""

Step = tuple[list[Command], Decision | None]
"""What must be done, and what was decided."""


class Conversation:
    """One call's conversation."""

    def __init__(self, plan: Plan, journal: Journal, abilities: Abilities, history: History) -> None:
        self._memory = Memory(history.entries)
        self._owed = history.owed
        """What the agent had to say when this leg began."""
        self._playout = Playout()
        self._session = AgentSession(plan, abilities)
        self._journal = journal
        facts = journal.facts
        self._turns = Turns(
            facts.call_sid, facts.leg, facts.backend, plan.model, plan.transcription_model, journal.wall
        )
        self._silent_since = limits.NEVER
        """Since when the caller waits to hear the agent, as far as everything that came was played by then."""
        self._waited_s = 0.0
        """How long the caller had waited before, speaking in between, without hearing the agent."""
        self.caller_was_answered = False
        """The agent was heard since the caller last began to speak."""
        self._has_session = True
        """False between two sessions: nothing can be sent."""
        self._sessions_lost = 0
        self._hears_again = False
        """The new session is to hear a turn of the caller once more, and answers it by itself."""
        self._not_its_items: set[str] = set()
        """Items that are played and unknown to the present session: those of an earlier one, and tones."""
        self._told: dict[int, tuple[str, str]] = {}
        """Turns that were still being played when the present session was told of them: by number, the item and
        the words that it was given."""
        self._tone_at = limits.NEVER
        """When a caller who waits for a new session hears a tone, unless the agent is still being heard then."""
        self._tones = 0

    # --- What the call asks -------------------------------------------------------------------

    @property
    def agent_was_heard(self) -> bool:
        """True once the present backend's audio has gone to the caller."""
        return self._session.spoke_in is not None

    @property
    def quiet(self) -> bool:
        """Nobody speaks, and nothing is on its way to be spoken."""
        session = self._session
        return session.replies.quiet and self._playout.drained and not session.tools.running

    @property
    def awaits_words(self) -> bool:
        """True while the backend has not sent everything that the caller said."""
        return self._turns.awaits_words

    @property
    def marks_lost(self) -> int:
        """Marks that did not come back, one after the other, since one did."""
        return self._playout.marks_lost

    @property
    def fill(self) -> dict[str, int]:
        """How much of everything bounded there is at the moment."""
        return {
            "agent_audio_ms": self._playout.waiting_ms,
            "agent_pieces": self._playout.waiting_pieces,
            "wishes": self._session.replies.waiting,
            "caller_turns": self._turns.open_caller,
            "agent_turns": self._turns.open_agent,
            "tool_calls": self._session.tools.collected,
        }

    # --- What the call tells ------------------------------------------------------------------

    def ask(self, purpose: Purpose, detail: str = "") -> None:
        """Have the agent speak when it may."""
        self._session.replies.ask(Request(purpose, detail))

    def forget_requests(self) -> None:
        """Nothing that waits to be said is to be said."""
        self._session.replies.forget_all()

    def rtt_changed(self, rtt_ms: float) -> None:
        """The round trip to the phone side was measured."""
        self._playout.rtt_ms = rtt_ms

    def handle(self, event: Event, now: float) -> Step:
        """What follows from an event."""
        match event:
            case ev.AgentAudio():
                return self._speak(event, now)
            case ev.MarkReturned():
                self._playout.mark_returned(event.name, now)
                return [], None
            case ev.AgentAudioEnded() | ev.ToolCalled() | ev.ResponseStarted():
                return self._response_goes_on(event, now), None
            case ev.ResponseEnded():
                return self._response_ended(event, now)
            case ev.SpeechStarted():
                return self._barge_in(event, now)
            case ev.SpeechStopped():
                self._session.replies.caller_stopped(now)
                self._turns.caller_stopped(event.item_id, now, self._session.plan.vad_silence_ms)
                return [], None
            case ev.CallerTurnCommitted():
                self._session.replies.caller_stopped(now)
                return [], None
            case ev.CallerTranscribed():
                return self._finished(self._turns.caller_transcribed(event.item_id, event.text, now)), None
            case ev.ToolFinished():
                return self._tool_finished(event.tool_call_id, event.output, now), None
            case _:
                assert_never(event)

    def more_audio(self, event: ev.AgentAudio, now: float) -> list[Command] | None:
        """More audio of the reply that is being spoken, by far the most frequent event of a backend.

        Does what `handle` and `advance` do, as far as they have anything to do then. None, and nothing was done:
        it is not that reply, or there is too much of it.
        """
        replies, response_id = self._session.replies, event.response_id
        if response_id != replies.active or response_id != self._session.spoke_in or replies.caller_speaking:
            return None
        if replies.refused(response_id) or not self._turns.is_spoken(event.item_id):
            return None
        if not self._playout.receive(event.item_id, event.payload, event.audio_bytes):
            return None
        replies.alive(response_id, now)
        self._turns.agent_spoke(response_id, event.item_id, event.audio_bytes / limits.MULAW_BYTES_PER_MS, now)
        # The answer goes on: from now on it is awaited again.
        self._silent_since, self._waited_s, self._tone_at = now, 0.0, limits.NEVER
        commands: list[Command] = [*self._playout.release(now)]
        heard = self._playout.take_heard(now)
        if heard:
            commands += self._settle(heard, now)
        return commands

    def audio_due_at(self) -> float:
        """When more audio may go to the phone, or a mark is missed."""
        return min(self._playout.release_at(), self._playout.marks_lost_at())

    def take_text(self, event: ev.AgentText, now: float) -> None:
        """More of the transcript of what the agent says. Nothing follows from it."""
        replies = self._session.replies
        replies.alive(event.response_id, now)
        if not replies.refused(event.response_id):
            self._turns.agent_text(event.response_id, event.item_id, event.text, final=event.final, now=now)

    def fault(self, event: ev.BackendFault, now: float) -> Step:
        """An error that does not end the session by itself: it may be about what we asked for last."""
        session = self._session
        replies = session.replies
        decision: Decision | None = None
        # It does not take what we asked with: no response will begin.
        refuses_request = event.kind is ErrorKind.HARMLESS and event.param.startswith("response.")
        if event.kind is ErrorKind.BUSY:
            decision = None if replies.busy(now) else GiveUp(failing(event.failure))
        elif replies.asked is not None and (event.kind is ErrorKind.RETRY or refuses_request):
            return self._failed(ErrorKind.RETRY, event.failure, replies.asked, now)
        return remember(self._journal.happened("backend_fault", event.failure.text, now)), decision

    def advance(self, now: float, *, may_ask: bool) -> list[Command]:
        """What has become possible: send ahead, finish turns, let a wish out."""
        session = self._session
        replies = session.replies
        commands: list[Command] = [*self._playout.release(now)]
        heard = self._playout.take_heard(now)
        if heard:
            commands += self._settle(heard, now)
        # All tool outputs come first, then one response.create (realtime.md 1.10).
        request = replies.take(now) if may_ask and not session.tools.running else None
        if request is not None:
            commands.append(session.create(request))
        if self._silent_since == limits.NEVER and replies.answer_is_due:
            self._silent_since = now
        return commands

    def tick(self, now: float) -> Step:
        """Time has passed."""
        session = self._session
        replies = session.replies
        self._playout.lose_marks(now)
        if self._tone_at <= now:
            self._fill_pause(now)
        # Until the agent is heard another backend may take the call, and write the caller's words down.
        commands = self._finished(self._turns.expire(now)) if self.agent_was_heard else []
        uncancelled = replies.take_uncancelled(now)
        if uncancelled is not None:
            session.cut_while_made = uncancelled
            commands.append(ev.CancelResponse(uncancelled))
        for tool_call_id in session.tools.expired(now):
            commands += self._tool_finished(tool_call_id, NO_OUTPUT, now)
        replies.lose_end_of_speech(now)
        decision: Decision | None = None
        if replies.overdue_at(heard=self.agent_was_heard) <= now:
            overdue, decision = self._overdue(now)
            commands += overdue
        if self._dead_air_at() <= now:
            decision = decision or self._dead_air(now)
        return commands, decision

    def due_at(self, *, may_ask: bool) -> float:
        """When `tick` or `advance` will have something to do."""
        session = self._session
        replies, heard = session.replies, session.spoke_in is not None
        return min(
            self._playout.release_at(),
            self._playout.marks_lost_at(),
            self._turns.expires_at() if heard else limits.NEVER,
            session.tools.expires_at(),
            replies.overdue_at(heard=heard),
            replies.uncancelled_at(),
            replies.end_of_speech_lost_at(),
            self._dead_air_at(),
            self._tone_at,
            replies.next_take_at() if may_ask and not session.tools.running else limits.NEVER,
        )

    def key(self, digit: str, now: float) -> list[Command]:
        """The caller pressed a key: the model is told, and answers when no more keys follow."""
        told = f"(The caller pressed the key {digit}.)"
        self._memory.caller_did(self._turns.count, told)
        self._session.replies.ask(Request(Purpose.KEYS))
        self._session.replies.hold(now + limits.KEYS_WAIT_S)
        noted = remember(self._journal.happened("key", "", now))
        return [ev.AddTurn(Speaker.CALLER, told), *noted] if self._has_session else noted

    def stood_still(self, for_s: float) -> None:
        """This process has done nothing for so long. What the backend sent meanwhile is still to be read."""
        self._silent_since += for_s
        self._tone_at += for_s

    # --- How it ends, and goes on --------------------------------------------------------------

    def wind_up(self, goodbye: str | None) -> None:
        """The call is to end: nothing is said but a goodbye for this reason; None: nothing at all."""
        session = self._session
        session.replies.forget_all()
        session.tools.forget()
        self._silent_since = self._tone_at = limits.NEVER
        self._waited_s = 0.0
        if goodbye is not None:
            self.ask(Purpose.GOODBYE, goodbye)

    def replace_backend(self, plan: Plan, abilities: Abilities, now: float) -> list[Command]:
        """Another backend goes on, and will hear what the caller said last. The journal knows it already.

        When the session before it was not lost but is left unnoticed, turns are finished as they stand.
        """
        commands: list[Command] = []
        if self._has_session:
            self._turns.forget_unanswered()
            commands = self._finished(self._turns.close(now))
            self._waited_s, self._silent_since = self._waited_so_far_s(now), limits.NEVER
            self._session = AgentSession(plan, abilities)
        self._session.plan, self._session.abilities = plan, abilities
        self._turns.change_speaker(self._journal.facts.backend, plan.model, plan.transcription_model)
        return commands

    def lose_session(
        self, answered: Mapping[str, tuple[str, ...]], now: float, *, plays_on: bool, hears_again: bool = False
    ) -> tuple[list[Command], float]:
        """The backend's session is gone in the middle of the conversation: another one will go on with it.

        What came of the agent's speech is played to its end, if it `plays_on`. What it had still to say, and what
        the caller said last, waits for `replace_backend` and `seed`. `answered`: by item, the audio of turns that
        were answered. `hears_again`: the next session gets the audio of one that was not, whose words may have
        been given up here. Returns also for how many seconds the agent will still be heard.
        """
        old = self._session
        unsaid = self._unsaid(plays_on=plays_on)
        self._hears_again = self._turns.forget_unanswered() or hears_again
        waits = unsaid is not None or self._hears_again or old.replies.caller_speaking
        self._session = AgentSession(old.plan, old.abilities, tools=old.tools, tools_began_at=old.tools_began_at)
        old.tools.lose_session()
        for request in self._left_to_ask(unsaid, old.replies.requests):
            self._session.replies.ask(request)
        self._has_session = self.caller_was_answered = False
        self._sessions_lost += 1
        self._told.clear()
        commands: list[Command] = []
        if not plays_on and not self._playout.untouched:
            commands.append(ev.SendClear())
            self._not_its_items |= set(self._playout.item_ids)
            commands += self._settle(self._playout.cut(now), now)
        unwritten = [(seq, answered[item]) for item, seq in self._turns.unwritten.items() if item in answered]
        records = self._turns.lose_session(self._renamed, now)
        self._playout.lose_session(self._renamed)
        self._not_its_items = set(self._playout.item_ids)
        self._waited_s, self._silent_since = self._waited_so_far_s(now), limits.NEVER
        self._tone_at = now + limits.PAUSE_MAX_S if waits and old.plan.pause == TONE_PAUSE else limits.NEVER
        commands += self._finished(records)
        for seq, audio in unwritten:
            self._memory.sound(seq, audio)
        for seq, text in self._turns.in_play:
            self._memory.turn(seq, Speaker.AGENT, text)
        return commands, self._playout.unplayed_ms(now) / 1000

    def _renamed(self, item_id: str) -> str:
        return item_id if item_id in self._not_its_items else f"{item_id} of session {self._sessions_lost}"

    def _unsaid(self, *, plays_on: bool) -> Request | None:
        """What the session has not said to its end, or what of it is not to be heard."""
        session = self._session
        replies, active = session.replies, session.replies.active
        if not replies.answer_is_due:
            return None
        if active is not None and active == session.said_by:
            return None
        if active is None or replies.refused(active):
            return replies.asked or Request(Purpose.RETRY)
        if session.spoke_in != active or not plays_on:
            return replies.active_request or Request(Purpose.RETRY)
        if self._playout.complete_so_far and not session.tools.collected:
            # Its end was not announced yet. What was to follow it, if anything, nobody knows.
            return None
        words, audio_ms = self._turns.words_that_came(active)
        if not words and audio_ms < limits.UNHEARD_MS:
            return replies.active_request or Request(Purpose.RETRY)
        return Request(Purpose.CONTINUE, last_words(words))

    @staticmethod
    def _left_to_ask(unsaid: Request | None, waiting: Sequence[Request]) -> list[Request]:
        if unsaid is None or (unsaid.purpose is Purpose.RETRY and waiting):
            # Whatever the agent is to say next, it answers the caller with it.
            return [*waiting]
        return [unsaid, *waiting]

    def close(self, now: float) -> tuple[list[Record], int]:
        """The call is over: every open turn as it stands, and how many turns there were."""
        records: list[Record] = []
        for outcome in self._playout.cut(now):
            records += self._turns.agent_heard(outcome, now)
        records += self._turns.close(now)
        self._journal.leave_out("turns", self._turns.left_out)
        return records, self._turns.count

    def _finished(self, turns: list[Turn]) -> list[Command]:
        """Turns are finished: keep them in mind for the next session, and record them."""
        commands = remember(turns)
        for turn in turns:
            self._memory.turn(turn.seq, turn.speaker, turn.heard)
            commands += self._correct(turn)
        return commands

    def _correct(self, turn: Turn) -> list[Command]:
        """The session was told of a turn before it was played to its end, and less of it was heard."""
        item_id, text = self._told.pop(turn.seq, ("", ""))
        heard = turn.heard or ""
        if not item_id or heard == text:
            return []
        instead = [ev.AddTurn(turn.speaker, heard, after=item_id)] if heard else []
        return [*instead, ev.DeleteItem(item_id)]

    # --- What a new session has to know -------------------------------------------------------

    def seed(self, now: float) -> list[Command]:
        """Tell a session what was said before it."""
        self._has_session = True
        in_play = dict(self._turns.in_play)
        commands: list[Command] = []
        for seq, entry in self._memory.numbered:
            match entry:
                case Said() if seq is not None and seq in in_play:
                    item_id = f"nearcall-{self._sessions_lost}-{seq}"
                    self._told[seq] = item_id, entry.text
                    commands.append(ev.AddTurn(entry.speaker, entry.text, item_id))
                case Said():
                    commands.append(ev.AddTurn(entry.speaker, entry.text, audio=entry.audio))
                case ToolUse():
                    commands.append(ev.AddToolCall(entry.tool_call_id, entry.name, entry.arguments))
                    if not self._session.tools.runs(entry.tool_call_id):
                        commands.append(ev.AddToolOutput(entry.tool_call_id, entry.output or NO_OUTPUT))
        if self._hears_again:
            # It answers by itself what it hears. If it hears nothing in it, it has to be asked.
            self._hears_again = False
            self.ask(Purpose.RETRY)
            self._session.replies.hold(now + limits.TURN_WAIT_S)
        if not self._sessions_lost or self.asks_to_repeat:
            self._ask_for_what_is_owed()
        return commands

    def recall(self, history: History) -> None:
        """Take over what was said in earlier legs, before anything was said in this one."""
        self._memory = Memory(history.entries)
        self._owed = history.owed

    @property
    def asks_to_repeat(self) -> bool:
        """True while the agent has to ask the caller to say again what is not known."""
        return self._owed is Owed.REPETITION and not self.agent_was_heard

    def _ask_for_what_is_owed(self) -> None:
        """This leg's first session knows what was said before: it may have to answer it, or to go on with it."""
        if self.asks_to_repeat:
            self.ask(Purpose.REPEAT)
            return
        last = next((each for each in reversed(self._memory.entries) if isinstance(each, Said)), None)
        if last is None:
            return
        if last.speaker is Speaker.CALLER or self._owed is Owed.ANSWER:
            self.ask(Purpose.RETRY)
        elif self._owed is Owed.CONTINUATION:
            self.ask(Purpose.CONTINUE, last_words(last.text))

    # --- Silence ------------------------------------------------------------------------------

    def _dead_air_at(self) -> float:
        if self._session.tools.running:
            return limits.NEVER
        return self._silent_since + max(limits.DEAD_AIR_MAX_S - self._waited_s, limits.ANSWER_LATE_S)

    def _waited_so_far_s(self, now: float) -> float:
        """How long the caller has waited in silence."""
        return self._waited_s + max(now - self._silent_since, 0.0)

    def _dead_air(self, now: float) -> Decision | None:
        """The caller has waited too long, unless what came before the wait is still being played."""
        unplayed_ms = self._playout.unplayed_ms(now)
        if unplayed_ms > 0:
            self._silent_since = now + unplayed_ms / 1000
            return None
        self._waited_s, self._silent_since = self._waited_so_far_s(now), limits.NEVER
        return GiveUp(silent(DEAD_AIR))

    def _overdue(self, now: float) -> Step:
        """A response, or the rest of one, has not come: it is asked for once more before the call is given up.

        Not one that we asked for: it may still begin, and there would be two.
        """
        session = self._session
        replies = session.replies
        if session.failed_responses or replies.asked is not None:
            return [], GiveUp(silent())
        stalled = replies.active
        if stalled is None:
            return self._failed(ErrorKind.RETRY, no_response("unanswered"), None, now)
        failure = no_response("stalled")
        unsaid = self._unsaid(plays_on=True)
        if unsaid is None:
            # Its audio is complete and is played to the end. Only its end was not announced.
            session.failed_responses += 1
            session.said_by = stalled
            noted, decision = remember(self._journal.happened(RESPONSE_FAILED, failure.text, now)), None
        else:
            noted, decision = self._failed(ErrorKind.RETRY, failure, unsaid, now)
        replies.refuse(stalled)
        replies.alive(stalled, now)
        return [session.cancel(stalled), *noted], decision

    # --- A pause ------------------------------------------------------------------------------

    def _fill_pause(self, now: float) -> None:
        """The caller waits for the next session and hears nothing, unless what came is still being played."""
        unplayed_ms = self._playout.unplayed_ms(now)
        self._tone_at = now + unplayed_ms / 1000 + limits.PAUSE_MAX_S
        if unplayed_ms > 0:
            return
        self._tones += 1
        item_id = f"tone {self._tones}"
        self._not_its_items.add(item_id)
        self._playout.receive(item_id, TONE, TONE_BYTES)
        self._playout.complete(item_id)

    # --- The agent speaks ---------------------------------------------------------------------

    def _speak(self, event: ev.AgentAudio, now: float) -> Step:
        """Agent audio. Late pieces of what a barge-in cut off are dropped (realtime.md 1.7)."""
        session = self._session
        replies, response_id = session.replies, event.response_id
        if replies.caller_speaking:
            replies.refuse(response_id)
        if replies.refused(response_id):
            return self._cut_unplayed(event.item_id), None
        replies.alive(response_id, now)
        audio_ms = event.audio_bytes / limits.MULAW_BYTES_PER_MS
        taken = self._playout.receive(event.item_id, event.payload, event.audio_bytes)
        session.spoke_in = response_id
        self._silent_since, self._waited_s, self._tone_at = limits.NEVER, 0.0, limits.NEVER
        self.caller_was_answered = True
        if not taken or not self._turns.agent_spoke(response_id, event.item_id, audio_ms, now):
            return [], GiveUp(misbehaved("audio without end"))
        return [], None

    def _cut_unplayed(self, item_id: str) -> list[Command]:
        """An item of a cut-off response whose audio goes on, or begins to come only now: nothing more is heard."""
        if self._session.was_truncated(item_id):
            return []
        return [*self._session.truncate(item_id, self._playout.received_ms(item_id))]

    def _response_goes_on(
        self, event: ev.AgentAudioEnded | ev.ToolCalled | ev.ResponseStarted, now: float
    ) -> list[Command]:
        session = self._session
        session.replies.alive(event.response_id, now)
        match event:
            case ev.AgentAudioEnded():
                self._playout.complete(event.item_id)
                self._turns.agent_complete(event.item_id)
            case ev.ToolCalled():
                if not session.tools.called(event):
                    return [ev.AddToolOutput(event.tool_call_id, '{"error":"too many tool calls at once"}')]
            case ev.ResponseStarted():
                self._tone_at = limits.NEVER
                if not session.replies.started(event.response_id, now):
                    return [session.cancel(event.response_id)]
        return []

    def _response_ended(self, event: ev.ResponseEnded, now: float) -> Step:
        session = self._session
        replies = session.replies
        request = replies.active_request or replies.asked
        announced = event.response_id == replies.active
        replies.ended(event.response_id)
        self._playout.complete_all()
        called = session.tools.take(event.response_id)
        cut = replies.refused(event.response_id)
        ended_early = cut or event.status is ResponseStatus.CANCELLED
        commands = self._finished(self._turns.response_ended(event.response_id, event.usage, now, cut=ended_early))
        commands += session.repeat_cuts(event)
        if event.status is ResponseStatus.FAILED:
            failure = event.failure or no_response(event.status.value)
            failed, decision = self._failed(event.error, failure, request, now)
            return commands + failed, decision
        spoke = session.spoke_in == event.response_id
        if spoke:
            session.tool_rounds = 0
            session.tools_exhausted = False
            self._silent_since = limits.NEVER
        completed = event.status is ResponseStatus.COMPLETED
        if announced and not (spoke or cut or (completed and called)):
            # Text alone, a content filter, an empty output, audio under a name that we do not know, a backend that
            # cancels what nobody interrupted: the caller has heard nothing, and nothing more will come.
            failed, decision = self._failed(ErrorKind.RETRY, no_response(NO_AUDIO), request, now)
            return commands + failed, decision
        if not completed:
            return commands, None
        session.failed_responses = 0
        counted, too_often = self._count_tool_round(now) if called and not spoke else ([], None)
        ran, farewell = self._run_tools(called, event.response_id, now)
        # A backend that cannot go on outweighs a model that wants to say goodbye.
        return commands + counted + ran, too_often or farewell

    def _failed(
        self, kind: ErrorKind | None, failure: BackendFailure, request: Request | None, now: float
    ) -> Step:
        """A response could not be made: one more try, then no more."""
        session = self._session
        session.failed_responses += 1
        decision: Decision | None = None
        if kind is ErrorKind.FATAL:
            decision = GiveUp(failure)
        elif session.failed_responses >= limits.FAILED_RESPONSES_MAX:
            decision = GiveUp(failing(failure))
        else:
            session.replies.retry(request, now)
        return remember(self._journal.happened(RESPONSE_FAILED, failure.text, now)), decision

    # --- The caller speaks --------------------------------------------------------------------

    def _barge_in(self, event: ev.SpeechStarted, now: float) -> Step:
        """The caller speaks: whatever is queued anywhere is thrown away, also when the response is long done.

        Audio is sent faster than it plays, so the response is usually over while the caller still hears it.
        What of each item was heard is told to the backend, or the model believes it was all heard.
        """
        self._session.caller_began(now)
        # Neither a greeting nor the question whether anybody is there has a point any more.
        self._session.replies.forget(Purpose.IDLE, Purpose.GREETING)
        if now - self._silent_since >= limits.ANSWER_LATE_S:
            self._waited_s += now - self._silent_since
        self._silent_since = self._tone_at = limits.NEVER
        self.caller_was_answered = False
        commands: list[Command] = []
        if not self._playout.untouched:
            commands.append(ev.SendClear())
            commands += self._settle(self._playout.cut(now), now)
        commands += self._finished(self._turns.caller_began(event.item_id, now))
        endless = self._turns.count + self._turns.left_out > limits.TURNS_ABSURD
        return commands, GiveUp(misbehaved("turns without end")) if endless else None

    def _settle(self, outcomes: list[Outcome], now: float) -> list[Command]:
        """Items ended at the phone: truncate those that were cut, finish the turns of all."""
        commands: list[Command] = []
        for outcome in outcomes:
            if outcome.item_id in self._not_its_items:
                self._not_its_items.discard(outcome.item_id)
            elif outcome.cut:
                commands += self._session.truncate(outcome.item_id, outcome.heard_ms)
            commands += self._finished(self._turns.agent_heard(outcome, now))
        return commands

    # --- Tools --------------------------------------------------------------------------------

    def _count_tool_round(self, now: float) -> Step:
        """The response only called tools, and the caller heard nothing: bound how often that goes on."""
        session = self._session
        session.tool_rounds += 1
        if not session.tools_exhausted and self._may_call_no_more(now):
            session.tools_exhausted = True
            return remember(self._journal.happened(TOOL_LOOP, f"{session.tool_rounds} responses", now)), None
        if session.tool_rounds > limits.TOOL_ROUNDS_MAX + 1:
            return [], GiveUp(misbehaved(TOOL_LOOP))
        if session.tool_rounds > limits.TOOL_ROUNDS_FREE:
            doubled = 2 ** (session.tool_rounds - limits.TOOL_ROUNDS_FREE - 1)
            session.replies.hold(now + min(limits.TOOL_PAUSE_S * doubled, limits.TOOL_PAUSE_MAX_S))
        return [], None

    def _may_call_no_more(self, now: float) -> bool:
        too_long = now - self._silent_since >= limits.TOOL_ROUNDS_MAX_S
        return self._session.tool_rounds >= limits.TOOL_ROUNDS_MAX or too_long

    def _run_tools(
        self, calls: list[ev.ToolCalled], response_id: str, now: float
    ) -> tuple[list[Command], Farewell | None]:
        """Run what a *completed* response called: the arguments of a cancelled one may be cut off."""
        session = self._session
        commands: list[Command] = []
        farewell: Farewell | None = None
        for call in calls:
            commands += remember(self._journal.happened("tool", call.name, now))
            if call.name == HANG_UP_TOOL and session.replies.refused(response_id):
                # The caller has cut into it: what is said now is to be answered.
                commands.append(ev.AddToolOutput(call.tool_call_id, NOT_HUNG_UP))
            elif call.name == HANG_UP_TOOL:
                farewell = Farewell(call.tool_call_id, spoken=session.spoke_in == response_id)
            elif any(tool.name == call.name for tool in session.plan.tools):
                if not session.tools.running:
                    session.tools_began_at = now
                session.tools.started(call.tool_call_id, now)
                self._memory.tool_called(self._turns.count, call.tool_call_id, call.name, call.arguments)
                commands.append(ev.RunTool(call.tool_call_id, call.name, call.arguments))
            else:
                self._memory.tool_called(self._turns.count, call.tool_call_id, call.name, call.arguments)
                self._memory.tool_finished(call.tool_call_id, NO_SUCH_TOOL)
                commands.append(ev.AddToolOutput(call.tool_call_id, NO_SUCH_TOOL))
                session.ask_after_tools()
        return commands, farewell

    def _tool_finished(self, tool_call_id: str, output: str, now: float) -> list[Command]:
        session = self._session
        if not session.tools.finished(tool_call_id):
            return []
        if not session.tools.running:
            self._silent_since += now - session.tools_began_at
            session.ask_after_tools()
        self._memory.tool_finished(tool_call_id, output)
        return [ev.AddToolOutput(tool_call_id, output)] if self._has_session else []


def remember(records: Sequence[Record]) -> list[Command]:
    """The commands that hand records to the ledger."""
    return [ev.Remember(record) for record in records]


def last_words(text: str) -> str:
    """The end of a text, long enough to be recognised by whoever has said it."""
    if len(text) <= limits.LAST_WORDS_CHARS:
        return text
    return text[-limits.LAST_WORDS_CHARS :].partition(" ")[2] or text[-limits.LAST_WORDS_CHARS :]
