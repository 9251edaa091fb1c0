"""The conversation in a call: responses, barge-in, tools, turns, and what of it all the caller heard.

Everything between the moment when both sides are up and the moment when the call is to end. It asks for the end
(`Farewell`, `GiveUp`) but does not end anything: phases, peers and time limits are call.py's. The rules that cost
others dearly stand at the methods that keep them: `_barge_in`, `_speak`, `_run_tools`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from app.call import events as ev
from app.call import limits
from app.call.events import Command, ErrorKind, ResponseStatus
from app.call.failure import (
    DEAD_AIR,
    NO_AUDIO,
    BackendFailure,
    failing,
    misbehaved,
    no_response,
    refused,
    silent,
)
from app.call.journal import RESPONSE_FAILED, TOOL_LOOP, Journal
from app.call.plan import HANG_UP_TOOL, Abilities, Plan, Purpose, wording
from app.call.playout import Outcome, Playout
from app.call.records import Record
from app.call.replies import Replies, Request
from app.call.tools import Tools
from app.call.turns import Turns

Event = (
    ev.AgentAudio
    | ev.AgentAudioEnded
    | ev.AgentText
    | ev.MarkReturned
    | ev.SpeechStarted
    | ev.SpeechStopped
    | ev.CallerTurnCommitted
    | ev.CallerTranscribed
    | ev.ResponseStarted
    | ev.ResponseEnded
    | ev.ToolCalled
    | ev.ToolFinished
    | ev.BackendFault
)
"""What belongs to the conversation."""

NOT_HUNG_UP = '{"result":"the caller went on talking; not hung up"}'
"""What the model is told of a hang-up that the caller talked it out of."""


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


class Conversation:
    """One call's conversation."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        abilities: Abilities,
        turns_before: int = 0,
        waited_s: float = 0.0,
    ) -> None:
        """`turns_before`: turns of this leg that another backend has had. `waited_s`: for it, in silence."""
        self.playout = Playout()
        self.replies = Replies()
        self.verdict: Farewell | GiveUp | None = None
        """How the conversation wants to end; call.py takes it away after every event. See `_decide`."""
        self._plan = plan
        self._abilities = abilities
        self._journal = journal
        facts = journal.facts
        self._turns = Turns(
            facts.call_sid,
            facts.leg,
            facts.backend,
            plan.model,
            plan.transcription_model,
            journal.wall,
            turns_before,
        )
        self._tools = Tools()
        self._failed_responses = 0
        self._tool_rounds = 0
        """Responses in a row that only called tools."""
        self._tools_exhausted = False
        """They were too many: the model must speak."""
        self._spoke_in: str | None = None
        """The last response that had audio."""
        self._cut_items: deque[str] = deque(maxlen=limits.CUT_ITEMS_REMEMBERED)
        self._cuts: deque[ev.Truncate] = deque(maxlen=limits.CUT_ITEMS_REMEMBERED)
        """What was cut since the caller last interrupted, or a response was last cancelled."""
        self._silent_since = limits.NEVER
        """Since when the caller waits to hear the agent, as far as everything that came was played by then."""
        self._waited_s = waited_s
        """How long the caller had waited before, speaking in between, without hearing the agent."""
        self._tools_began_at = 0.0
        self._cut_while_made: str | None = None
        """A response that goes on until it is cancelled: what comes meanwhile is in its items, behind the cuts."""

    # --- The interface -----------------------------------------------------------------------

    @property
    def agent_was_heard(self) -> bool:
        """True once this backend's audio has gone to the caller."""
        return self._spoke_in is not None

    @property
    def quiet(self) -> bool:
        """Nobody speaks, and nothing is on its way to be spoken."""
        return self.replies.quiet and self.playout.drained and not self._tools.running

    def handle(self, event: Event, now: float) -> list[Command]:
        """What follows from an event."""
        match event:
            case ev.AgentAudio():
                return self._speak(event, now)
            case ev.MarkReturned():
                self.playout.mark_returned(event.name, now)
                return []
            case ev.AgentText() | ev.AgentAudioEnded() | ev.ToolCalled() | ev.ResponseStarted():
                return self._response_goes_on(event, now)
            case ev.ResponseEnded():
                return self._response_ended(event, now)
            case ev.SpeechStarted():
                return self._barge_in(event, now)
            case ev.SpeechStopped():
                self.replies.caller_stopped(now)
                self._turns.caller_stopped(event.item_id, now, self._plan.vad_silence_ms)
                return []
            case ev.CallerTurnCommitted():
                self.replies.caller_stopped(now)
                return []
            case ev.CallerTranscribed():
                return remember(self._turns.caller_transcribed(event.item_id, event.text, now))
            case ev.ToolFinished():
                return self._tool_finished(event.tool_call_id, event.output, now)
            case ev.BackendFault():
                return self._fault(event, now)
            case _:
                assert_never(event)

    def advance(self, now: float, *, may_ask: bool) -> list[Command]:
        """What has become possible: send ahead, finish turns, let a wish out."""
        commands: list[Command] = [*self.playout.release(now)]
        heard = self.playout.take_heard(now)
        if heard:
            commands += self._settle(heard, now)
        # All tool outputs come first, then one response.create (realtime.md 1.10).
        request = self.replies.take(now) if may_ask and not self._tools.running else None
        if request is not None:
            commands.append(self._create(request))
        if self._silent_since == limits.NEVER and self.replies.answer_is_due:
            self._silent_since = now
        return commands

    def _create(self, request: Request) -> ev.CreateResponse:
        """Asks for exact words only once: a backend that failed at them may still follow instructions."""
        exact = request.purpose is Purpose.GREETING and not self._failed_responses
        instructions = wording(request.purpose, self._plan, request.detail)
        words = self._plan.greeting if exact else ""
        may_call_tools = request.purpose is not Purpose.WITHOUT_TOOLS
        return ev.CreateResponse(request.purpose, instructions, words, may_call_tools)

    def tick(self, now: float) -> list[Command]:
        """Time has passed."""
        self.playout.lose_marks(now)
        # Until the agent is heard another backend may take the call, and write the caller's words down.
        commands = remember(self._turns.expire(now)) if self.agent_was_heard else []
        uncancelled = self.replies.take_uncancelled(now)
        if uncancelled is not None:
            self._cut_while_made = uncancelled
            commands.append(ev.CancelResponse(uncancelled))
        for tool_call_id in self._tools.expired(now):
            commands += self._tool_finished(tool_call_id, '{"error":"the tool did not answer"}', now)
        self.replies.lose_end_of_speech(now)
        if self.replies.overdue_at(heard=self.agent_was_heard) <= now:
            commands += self._overdue(now)
        if self._dead_air_at() <= now:
            self._dead_air(now)
        return commands

    def _dead_air_at(self) -> float:
        if self._tools.running:
            return limits.NEVER
        return self._silent_since + max(limits.DEAD_AIR_MAX_S - self._waited_s, limits.ANSWER_LATE_S)

    def waited_s(self, now: float) -> float:
        """How long the caller has waited in silence."""
        return self._waited_s + max(now - self._silent_since, 0.0)

    def _dead_air(self, now: float) -> None:
        """The caller has waited too long, unless what came before the wait is still being played."""
        unplayed_ms = self.playout.unplayed_ms(now)
        if unplayed_ms > 0:
            self._silent_since = now + unplayed_ms / 1000
        else:
            self._waited_s, self._silent_since = self.waited_s(now), limits.NEVER
            self._decide(GiveUp(silent(DEAD_AIR)))

    def stood_still(self, for_s: float) -> None:
        """This process has done nothing for so long. What the backend sent meanwhile is still to be read."""
        self._silent_since += for_s

    def _overdue(self, now: float) -> list[Command]:
        """A response, or the rest of one, has not come: it is asked for once more before the call is given up.

        Not one that we asked for: it may still begin, and there would be two.
        """
        if self._failed_responses or self.replies.asked is not None:
            self._decide(GiveUp(silent()))
            return []
        stalled = self.replies.active
        what = "unanswered" if stalled is None else "stalled"
        noted = self._failed(ErrorKind.RETRY, no_response(what), self.replies.active_request, now)
        if stalled is None:
            return noted
        self.replies.refuse(stalled)
        self.replies.alive(stalled, now)
        return [self._cancel(stalled), *noted]

    def _cancel(self, response_id: str) -> ev.CancelResponse:
        """Of a response that nothing was cut of so far."""
        self._cuts.clear()
        self._cut_while_made = response_id
        return ev.CancelResponse(response_id)

    def due_at(self, *, may_ask: bool) -> float:
        """When `tick` or `advance` will have something to do."""
        return min(
            self.playout.release_at(),
            self.playout.marks_lost_at(),
            self._turns.expires_at() if self.agent_was_heard else limits.NEVER,
            self._tools.expires_at(),
            self.replies.overdue_at(heard=self._spoke_in is not None),
            self.replies.uncancelled_at(),
            self.replies.end_of_speech_lost_at(),
            self._dead_air_at(),
            self.replies.next_take_at() if may_ask and not self._tools.running else limits.NEVER,
        )

    def key(self, digit: str, now: float) -> list[Command]:
        """The caller pressed a key: the model is told, and answers when no more keys follow."""
        self.replies.ask(Request(Purpose.KEYS))
        self.replies.hold(now + limits.KEYS_WAIT_S)
        return [
            ev.AddText(f"(The caller pressed the key {digit}.)"),
            *remember(self._journal.happened("key", "", now)),
        ]

    def wind_up(self, request: Request | None) -> None:
        """The call is to end: nothing else is said but this; None when the goodbye was said already."""
        self.replies.forget_all()
        self._tools.forget()
        self._silent_since, self._waited_s = limits.NEVER, 0.0
        if request is not None:
            self.replies.ask(request)

    @property
    def awaits_words(self) -> bool:
        """True while the backend still owes what the caller said."""
        return self._turns.awaits_words

    def stop(self) -> None:
        """The backend is gone: what it has said is all that will be said."""
        self.replies.stop()
        self.playout.complete_all()
        self._silent_since = limits.NEVER

    def hand_over(self, now: float) -> tuple[list[Record], int]:
        """Another backend goes on, and hears what the caller said last: as `close`."""
        self._turns.forget_unanswered()
        return self.close(now)

    def close(self, now: float) -> tuple[list[Record], int]:
        """The call is over: every open turn as it stands, and how many turns there were."""
        records: list[Record] = []
        for outcome in self.playout.cut(now):
            records += self._turns.agent_heard(outcome, now)
        records += self._turns.close(now)
        self._journal.leave_out("turns", self._turns.left_out)
        return records, self._turns.count

    def _decide(self, verdict: Farewell | GiveUp) -> None:
        """A backend that cannot go on outweighs a model that wants to say goodbye."""
        if not isinstance(self.verdict, GiveUp):
            self.verdict = verdict

    # --- The agent speaks --------------------------------------------------------------------

    def _speak(self, event: ev.AgentAudio, now: float) -> list[Command]:
        """Agent audio. Late pieces of what a barge-in cut off are dropped (realtime.md 1.7)."""
        if self.replies.caller_speaking:
            self.replies.refuse(event.response_id)
        if self.replies.refused(event.response_id):
            return self._cut_unplayed(event.item_id)
        self.replies.alive(event.response_id, now)
        audio_ms = event.audio_bytes / limits.MULAW_BYTES_PER_MS
        taken = self.playout.receive(event.item_id, event.payload, event.audio_bytes)
        if not taken or not self._turns.agent_spoke(event.response_id, event.item_id, audio_ms, now):
            self._decide(GiveUp(misbehaved("audio without end")))
        self._spoke_in = event.response_id
        self._silent_since, self._waited_s = limits.NEVER, 0.0
        return []

    def _cut_unplayed(self, item_id: str) -> list[Command]:
        """An item of a cut-off response whose audio goes on, or begins to come only now: nothing more is heard."""
        if item_id in self._cut_items:
            return []
        return self._truncate(item_id, self.playout.received_ms(item_id))

    def _truncate(self, item_id: str, heard_ms: int) -> list[Command]:
        self._cut_items.append(item_id)
        if self._abilities.truncates:
            return []
        cut = ev.Truncate(item_id, heard_ms)
        self._cuts.append(cut)
        return [cut]

    def _response_goes_on(
        self, event: ev.AgentText | ev.AgentAudioEnded | ev.ToolCalled | ev.ResponseStarted, now: float
    ) -> list[Command]:
        self.replies.alive(event.response_id, now)
        match event:
            case ev.AgentText():
                if not self.replies.refused(event.response_id):
                    self._turns.agent_text(
                        event.response_id, event.item_id, event.text, final=event.final, now=now
                    )
            case ev.AgentAudioEnded():
                self.playout.complete(event.item_id)
            case ev.ToolCalled():
                if not self._tools.called(event):
                    return [ev.AddToolOutput(event.tool_call_id, '{"error":"too many tool calls at once"}')]
            case ev.ResponseStarted():
                if not self.replies.started(event.response_id, now):
                    return [self._cancel(event.response_id)]
        return []

    def _response_ended(self, event: ev.ResponseEnded, now: float) -> list[Command]:
        request = self.replies.active_request or self.replies.asked
        announced = event.response_id == self.replies.active
        self.replies.ended(event.response_id)
        self.playout.complete_all()
        called = self._tools.take(event.response_id)
        cut = self.replies.refused(event.response_id)
        ended_early = cut or event.status is ResponseStatus.CANCELLED
        commands = remember(self._turns.response_ended(event.response_id, event.usage, now, cut=ended_early))
        if event.response_id == self._cut_while_made or self._went_on(event):
            self._cut_while_made = None
            commands += self._cuts
        if event.status is ResponseStatus.FAILED:
            failure = event.failure or no_response(event.status.value)
            return commands + self._failed(event.error, failure, request, now)
        spoke = self._spoke_in == event.response_id
        if spoke:
            self._tool_rounds = 0
            self._tools_exhausted = False
            self._silent_since = limits.NEVER
        completed = event.status is ResponseStatus.COMPLETED
        if announced and not (spoke or cut or (completed and called)):
            # Text alone, a content filter, an empty output, audio under a name that we do not know, a backend that
            # cancels what nobody interrupted: the caller has heard nothing, and nothing more will come.
            return commands + self._failed(ErrorKind.RETRY, no_response(NO_AUDIO), request, now)
        if not completed:
            return commands
        self._failed_responses = 0
        if called and not spoke:
            commands += self._count_tool_round(now)
        return commands + self._run_tools(called, event.response_id, now)

    def _count_tool_round(self, now: float) -> list[Command]:
        """The response only called tools, and the caller heard nothing: bound how often that goes on."""
        self._tool_rounds += 1
        if not self._tools_exhausted and self._may_call_no_more(now):
            self._tools_exhausted = True
            return remember(self._journal.happened(TOOL_LOOP, f"{self._tool_rounds} responses", now))
        if self._tool_rounds > limits.TOOL_ROUNDS_MAX + 1:
            self._decide(GiveUp(misbehaved(TOOL_LOOP)))
        elif self._tool_rounds > limits.TOOL_ROUNDS_FREE:
            doubled = 2 ** (self._tool_rounds - limits.TOOL_ROUNDS_FREE - 1)
            self.replies.hold(now + min(limits.TOOL_PAUSE_S * doubled, limits.TOOL_PAUSE_MAX_S))
        return []

    def _ask_after_tools(self) -> None:
        """Every output is in: the model goes on, and must speak when it has called tools too often."""
        self.replies.ask(Request(Purpose.WITHOUT_TOOLS if self._tools_exhausted else Purpose.TOOL))

    def _may_call_no_more(self, now: float) -> bool:
        too_long = now - self._silent_since >= limits.TOOL_ROUNDS_MAX_S
        return self._tool_rounds >= limits.TOOL_ROUNDS_MAX or too_long

    def _went_on(self, event: ev.ResponseEnded) -> bool:
        """True for a response that the caller interrupted, and that was over before anybody cancelled it."""
        return event.status is not ResponseStatus.CANCELLED and self.replies.refused(event.response_id)

    def _failed(
        self, kind: ErrorKind | None, failure: BackendFailure, request: Request | None, now: float
    ) -> list[Command]:
        """A response could not be made: one more try, then no more."""
        self._failed_responses += 1
        if kind is ErrorKind.FATAL:
            self._decide(GiveUp(refused(failure)))
        elif self._failed_responses >= limits.FAILED_RESPONSES_MAX:
            self._decide(GiveUp(failing(failure)))
        else:
            self.replies.retry(request, now)
        return remember(self._journal.happened(RESPONSE_FAILED, failure.text, now))

    def _fault(self, event: ev.BackendFault, now: float) -> list[Command]:
        match event.kind:
            case ErrorKind.FATAL:
                self._decide(GiveUp(refused(event.failure)))
            case ErrorKind.BUSY:
                if not self.replies.busy(now):
                    self._decide(GiveUp(failing(event.failure)))
            case ErrorKind.RETRY if self.replies.asked is not None:
                return self._failed(event.kind, event.failure, self.replies.asked, now)
            case ErrorKind.HARMLESS if self.replies.asked is not None and event.param.startswith("response."):
                # It does not take what we asked with: no response will begin.
                return self._failed(ErrorKind.RETRY, event.failure, self.replies.asked, now)
            case ErrorKind.WARNING:
                return remember(self._journal.happened("backend_warning", event.failure.text, now))
            case ErrorKind.RETRY | ErrorKind.HARMLESS:
                pass
        return remember(self._journal.happened("backend_fault", event.failure.text, now))

    # --- The caller speaks -------------------------------------------------------------------

    def _barge_in(self, event: ev.SpeechStarted, now: float) -> list[Command]:
        """The caller speaks: whatever is queued anywhere is thrown away, also when the response is long done.

        Audio is sent faster than it plays, so the response is usually over while the caller still hears it.
        What of each item was heard is told to the backend, or the model believes it was all heard.
        """
        if self.replies.active is None or not self.replies.refused(self.replies.active):
            self._cuts.clear()
        self.replies.caller_began(now)
        if now - self._silent_since >= limits.ANSWER_LATE_S:
            self._waited_s += now - self._silent_since
        self._silent_since = limits.NEVER
        commands: list[Command] = []
        if not self.playout.untouched:
            commands.append(ev.SendClear())
            commands += self._settle(self.playout.cut(now), now)
        commands += remember(self._turns.caller_began(event.item_id, now))
        if self._turns.count + self._turns.left_out > limits.TURNS_ABSURD:
            self._decide(GiveUp(misbehaved("turns without end")))
        return commands

    def _settle(self, outcomes: list[Outcome], now: float) -> list[Command]:
        """Items ended at the phone: truncate those that were cut, finish the turns of all."""
        commands: list[Command] = []
        for outcome in outcomes:
            if outcome.cut:
                commands += self._truncate(outcome.item_id, outcome.heard_ms)
            commands += remember(self._turns.agent_heard(outcome, now))
        return commands

    # --- Tools -------------------------------------------------------------------------------

    def _run_tools(self, calls: list[ev.ToolCalled], response_id: str, now: float) -> list[Command]:
        """Run what a *completed* response called: the arguments of a cancelled one may be cut off."""
        commands: list[Command] = []
        for call in calls:
            commands += remember(self._journal.happened("tool", call.name, now))
            if call.name == HANG_UP_TOOL and self.replies.refused(response_id):
                # The caller has cut into it: what is said now is to be answered.
                commands.append(ev.AddToolOutput(call.tool_call_id, NOT_HUNG_UP))
            elif call.name == HANG_UP_TOOL:
                self._decide(Farewell(call.tool_call_id, spoken=self._spoke_in == response_id))
            elif any(tool.name == call.name for tool in self._plan.tools):
                if not self._tools.running:
                    self._tools_began_at = now
                self._tools.started(call.tool_call_id, now)
                commands.append(ev.RunTool(call.tool_call_id, call.name, call.arguments))
            else:
                commands.append(ev.AddToolOutput(call.tool_call_id, '{"error":"there is no such tool"}'))
                self._ask_after_tools()
        return commands

    def _tool_finished(self, tool_call_id: str, output: str, now: float) -> list[Command]:
        if not self._tools.finished(tool_call_id):
            return []
        if not self._tools.running:
            self._silent_since += now - self._tools_began_at
            self._ask_after_tools()
        return [ev.AddToolOutput(tool_call_id, output)]


def remember(records: Sequence[Record]) -> list[Command]:
    """The commands that hand records to the ledger."""
    return [ev.Remember(record) for record in records]
