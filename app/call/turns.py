"""Who said what, and what of it was heard. A turn becomes a record exactly once.

A caller's turn is finished when its transcript has come (or will not); an agent's when its audio was heard to
the end or cut, and its response is over (the tokens are known then). Turns are numbered as they begin and may
finish in another order. Sockets, marks and the schedule are not known here.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from app.call.events import Usage
from app.call.limits import NEVER, OPEN_TURNS_MAX, TRANSCRIPT_MAX_CHARS, TRANSCRIPT_WAIT_S, TURNS_MAX
from app.call.playout import Outcome
from app.call.records import Speaker, Turn
from app.call.texts import CUT_MARK, cut
from app.call.wall import Wall

USUAL_PACE = 0.015
"""Letters a ms: 160 English words a minute."""
PACE_MIN_MS = 1_000
"""A shorter turn tells nothing about the pace."""


@dataclass(slots=True)
class _CallerTurn:
    seq: int
    started_at: float
    ended_at: float | None = None
    said_ms: int = 0


@dataclass(slots=True)
class _AgentTurn:
    seq: int
    response_id: str
    started_at: float
    answers_at: float | None
    """When the caller's speech that it answers ended."""
    text: str = ""
    sent_at: float | None = None
    """When its first audio came; words run ahead of it."""
    received_ms: float = 0.0
    played_at: float | None = None
    heard_ms: int | None = None
    """None while it is being played."""
    cut: bool = False
    ended_at: float = 0.0
    usage: Usage | None = None
    """None while its response is still active."""
    complete: bool = False
    """All of its audio has come."""
    broken_off: bool = False
    """The rest of it was lost with its session."""
    backend: str = ""
    model: str = ""


@dataclass(slots=True)
class Turns:
    """The turns of one leg of a call, open ones only; finished ones are returned as records."""

    call_sid: str
    leg: str
    backend: str
    model: str
    transcription_model: str
    wall: Wall
    count: int = 0
    """Turns that have a record, or will."""
    left_out: int = 0
    """Turns beyond TURNS_MAX, which have none."""
    _left_out_item: str = ""
    """The agent's last one."""
    _caller: dict[str, _CallerTurn] = field(default_factory=dict)
    _agent: dict[str, _AgentTurn] = field(default_factory=dict)
    _heard_again: deque[_CallerTurn] = field(default_factory=deque)
    """Turns that the next backend is to hear once more: when they were spoken is known."""
    _speech_ended_at: float | None = None
    _pace: float = USUAL_PACE
    """How fast the agent speaks, by the last turn that tells: units of `spoken_length` a ms."""
    _unclaimed: Usage = field(default_factory=Usage)
    """Tokens of responses that made no speech (tool calls, cancelled early): billed to the next turn."""

    def change_speaker(self, backend: str, model: str, transcription_model: str) -> None:
        """Turns that begin from now on are those of this backend. Close the open ones first."""
        self.backend, self.model, self.transcription_model = backend, model, transcription_model
        self._speech_ended_at = None
        self._left_out_item = ""

    @property
    def open_caller(self) -> int:
        """Turns of the caller that are not finished."""
        return len(self._caller)

    @property
    def open_agent(self) -> int:
        """Turns of the agent that are not finished."""
        return len(self._agent)

    # --- The caller --------------------------------------------------------------------------

    def caller_began(self, item_id: str, now: float) -> list[Turn]:
        """The VAD heard the caller."""
        if item_id in self._caller:
            return []
        if self.count >= TURNS_MAX:
            self.left_out += 1
            return []
        turn = self._heard_again.popleft() if self._heard_again else _CallerTurn(0, now)
        turn.seq = self._next_seq()
        self._caller[item_id] = turn
        if len(self._caller) <= OPEN_TURNS_MAX:
            return []
        return [self._caller_record(self._caller.pop(next(iter(self._caller))), None, now)]

    def caller_stopped(self, item_id: str, now: float, silence_ms: int) -> None:
        """The VAD heard `silence_ms` of silence: the speech itself ended that long ago."""
        turn = self._caller.get(item_id)
        if turn is not None and turn.ended_at is not None:
            # An earlier session has heard its end, when it was spoken.
            self._speech_ended_at = turn.ended_at
            return
        spoken_until = now - silence_ms / 1000
        self._speech_ended_at = spoken_until
        if turn is not None:
            turn.ended_at = max(spoken_until, turn.started_at)
            turn.said_ms = round((turn.ended_at - turn.started_at) * 1000)

    def caller_transcribed(self, item_id: str, text: str | None, now: float) -> list[Turn]:
        """The transcript came, or failed: the turn is finished."""
        turn = self._caller.pop(item_id, None)
        return [] if turn is None else [self._caller_record(turn, text, now)]

    def expire(self, now: float) -> list[Turn]:
        """Caller turns whose transcript will not come any more."""
        late = [
            item_id
            for item_id, turn in self._caller.items()
            if turn.ended_at is not None and turn.ended_at + TRANSCRIPT_WAIT_S <= now
        ]
        return [self._caller_record(self._caller.pop(item_id), None, now) for item_id in late]

    def expires_at(self) -> float:
        """When `expire` will have something to do."""
        if not self._caller:
            return NEVER
        ends = (NEVER if turn.ended_at is None else turn.ended_at for turn in self._caller.values())
        return min(ends) + TRANSCRIPT_WAIT_S

    # --- The agent ---------------------------------------------------------------------------

    def agent_spoke(self, response_id: str, item_id: str, audio_ms: float, now: float) -> bool:
        """Audio of an agent's item came. False: there are too many items at once."""
        if item_id not in self._agent and len(self._agent) >= OPEN_TURNS_MAX:
            return False
        if self._is_left_out(item_id):
            return True
        turn = self._agent_turn(response_id, item_id, now)
        turn.received_ms += audio_ms
        if turn.sent_at is None:
            turn.sent_at = now
        return True

    def is_spoken(self, item_id: str) -> bool:
        """True for an agent's item of which audio has come, and whose turn has no record yet."""
        turn = self._agent.get(item_id)
        return turn is not None and turn.sent_at is not None

    def agent_text(self, response_id: str, item_id: str, text: str, *, final: bool, now: float) -> None:
        """Transcript of an agent's item came."""
        if item_id not in self._agent and len(self._agent) >= OPEN_TURNS_MAX:
            return
        if self._is_left_out(item_id):
            return
        turn = self._agent_turn(response_id, item_id, now)
        if final:
            turn.text = cut(text, TRANSCRIPT_MAX_CHARS)
        elif not turn.text.endswith(CUT_MARK):
            turn.text = cut(turn.text + text, TRANSCRIPT_MAX_CHARS)

    def agent_heard(self, outcome: Outcome, now: float) -> list[Turn]:
        """The item was played to its end, or cut."""
        turn = self._agent.get(outcome.item_id)
        if turn is None or turn.heard_ms is not None:
            return []
        # An item may go on after its turn was recorded: the turn that it then begins has only the rest of it.
        turn.heard_ms = min(outcome.heard_ms, int(turn.received_ms))
        turn.cut, turn.ended_at = outcome.cut, now
        turn.played_at = outcome.played_at
        return self._finish_agent(outcome.item_id)

    def response_ended(self, response_id: str, usage: Usage, now: float, *, cut: bool) -> list[Turn]:
        """The response is over: its items get its tokens (the last of them all). `cut`: before its end."""
        items = [i for i, t in self._agent.items() if t.response_id == response_id and t.usage is None]
        if not items:
            self._unclaimed = add(self._unclaimed, usage)
            return []
        for item_id in items:
            turn = self._agent[item_id]
            turn.usage = Usage()
            if turn.received_ms == 0:
                # Its words ran ahead of its audio and a barge-in came first, or the model wrote and did not speak.
                turn.heard_ms, turn.cut, turn.ended_at = 0, cut, now
        last = self._agent[items[-1]]
        last.usage = add(self._unclaimed, usage)
        self._unclaimed = Usage()
        return [record for item_id in items for record in self._finish_agent(item_id)]

    def _is_left_out(self, item_id: str) -> bool:
        """True for an agent's item that is played and has no record."""
        if item_id in self._agent or self.count < TURNS_MAX:
            return False
        if item_id != self._left_out_item:
            self._left_out_item = item_id
            self.left_out += 1
        return True

    # --- The end -----------------------------------------------------------------------------

    @property
    def awaits_words(self) -> bool:
        """True while a caller's turn waits for its transcript."""
        return bool(self._caller)

    def _bill_leftover(self, now: float) -> None:
        """Give the tokens that no turn has claimed to the last one that is open, or to a turn without words.

        They cost money: a call in which the model only called tools would look free otherwise.
        """
        leftover, self._unclaimed = self._unclaimed, Usage()
        if leftover == Usage():
            return
        if not self._agent:
            turn = self._agent_turn("", "", now)
            turn.heard_ms, turn.answers_at, turn.ended_at = 0, None, now
        last = next(reversed(self._agent.values()))
        last.usage = add(last.usage or Usage(), leftover)

    def forget_unanswered(self) -> bool:
        """Forget the newest turns that nobody has heard or written down: the next backend will hear them.

        True when one of them was the caller's.
        """
        before = len(self._caller)
        while (item_id := self._newest_unheard()) is not None:
            forgotten = self._caller.pop(item_id, None)
            if forgotten is not None:
                self._heard_again.appendleft(forgotten)
            self._agent.pop(item_id, None)
            self.count -= 1
        return len(self._caller) < before

    def _newest_unheard(self) -> str | None:
        newest = self.count - 1
        for item_id, turn in self._caller.items():
            if turn.seq == newest:
                return item_id
        for item_id, agent_turn in self._agent.items():
            if agent_turn.seq == newest and not agent_turn.received_ms:
                return item_id
        return None

    def lose_session(self, renamed: Callable[[str], str], now: float) -> list[Turn]:
        """The session is gone in the middle of the call: no more words, audio or tokens of its turns will come.

        What came of the agent's audio is still played. `renamed`: the items' names from now on.
        """
        records = [self._caller_record(turn, None, now) for turn in self._caller.values()]
        self._caller.clear()
        self._agent = {renamed(item_id): turn for item_id, turn in self._agent.items()}
        for item_id, turn in list(self._agent.items()):
            if turn.usage is None:
                turn.usage = Usage()
                turn.text, turn.broken_off = self._words_that_came(turn), not turn.complete
            if turn.received_ms == 0:
                turn.heard_ms, turn.cut, turn.ended_at = 0, True, now
            records += self._finish_agent(item_id)
        return sorted(records, key=lambda record: record.seq)

    @property
    def unwritten(self) -> dict[str, int]:
        """The caller's turns whose words have not come: their numbers, by their items."""
        return {item_id: turn.seq for item_id, turn in self._caller.items()}

    @property
    def in_play(self) -> list[tuple[int, str]]:
        """The agent's turns of which audio is still to be played: their numbers, and all their words so far."""
        return [(turn.seq, turn.text) for turn in self._agent.values() if turn.heard_ms is None]

    def words_that_came(self, response_id: str) -> tuple[str, float]:
        """The words, and the length in ms, of the audio that came of the last item of a response."""
        turns = [turn for turn in self._agent.values() if turn.response_id == response_id]
        return (self._words_that_came(turns[-1]), turns[-1].received_ms) if turns else ("", 0.0)

    def _words_that_came(self, turn: _AgentTurn) -> str:
        """Words run ahead of their audio (realtime.md 1.5): of an unfinished turn, those that fit into it."""
        return turn.text if turn.complete else words_within(turn.text, turn.received_ms, self._pace)

    def agent_complete(self, item_id: str) -> None:
        """All audio of an agent's item has come."""
        turn = self._agent.get(item_id)
        if turn is not None:
            turn.complete = True

    def close(self, now: float) -> list[Turn]:
        """The call is over: every open turn is finished as it stands. Cut the playout first."""
        records = [self._caller_record(turn, None, now) for turn in self._caller.values()]
        self._caller.clear()
        self._bill_leftover(now)
        for item_id, turn in list(self._agent.items()):
            turn.usage = turn.usage or Usage()
            if turn.heard_ms is None:
                turn.heard_ms, turn.cut, turn.ended_at = 0, True, now
            records += self._finish_agent(item_id)
        return sorted(records, key=lambda record: record.seq)

    # --- Inside ------------------------------------------------------------------------------

    def _next_seq(self) -> int:
        self.count += 1
        return self.count - 1

    def _agent_turn(self, response_id: str, item_id: str, now: float) -> _AgentTurn:
        turn = self._agent.get(item_id)
        if turn is None:
            turn = _AgentTurn(
                self._next_seq(), response_id, now, self._speech_ended_at, backend=self.backend, model=self.model
            )
            self._agent[item_id] = turn
            self._speech_ended_at = None
            self._heard_again.clear()
        return turn

    def _finish_agent(self, item_id: str) -> list[Turn]:
        turn = self._agent[item_id]
        if turn.heard_ms is None or turn.usage is None:
            return []
        del self._agent[item_id]
        said_ms = int(turn.received_ms)
        if turn.complete and said_ms >= PACE_MIN_MS and turn.text:
            self._pace = spoken_length(turn.text) / said_ms
        return [
            Turn(
                call_sid=self.call_sid,
                leg=self.leg,
                seq=turn.seq,
                speaker=Speaker.AGENT,
                said=turn.text or None,
                heard=words_heard(turn.text, turn.heard_ms, said_ms)
                if turn.cut or not said_ms
                else turn.text or None,
                started_ms=self.wall.ms(turn.started_at),
                ended_ms=self.wall.ms(turn.ended_at),
                backend=turn.backend,
                interrupted=turn.cut or turn.broken_off,
                said_ms=said_ms,
                heard_ms=turn.heard_ms,
                answer_sent_ms=_since(turn.answers_at, turn.sent_at),
                answer_heard_ms=_since(turn.answers_at, turn.played_at) if turn.heard_ms else None,
                input_text_tokens=turn.usage.input_text,
                input_audio_tokens=turn.usage.input_audio,
                cached_text_tokens=turn.usage.cached_text,
                cached_audio_tokens=turn.usage.cached_audio,
                output_text_tokens=turn.usage.output_text,
                output_audio_tokens=turn.usage.output_audio,
                model=turn.model,
            )
        ]

    def _caller_record(self, turn: _CallerTurn, text: str | None, now: float) -> Turn:
        said = None if text is None else cut(text, TRANSCRIPT_MAX_CHARS)
        return Turn(
            call_sid=self.call_sid,
            leg=self.leg,
            seq=turn.seq,
            speaker=Speaker.CALLER,
            said=said,
            heard=said,
            started_ms=self.wall.ms(turn.started_at),
            ended_ms=self.wall.ms(now if turn.ended_at is None else turn.ended_at),
            backend=self.backend,
            said_ms=turn.said_ms,
            heard_ms=turn.said_ms,
            model=self.transcription_model,
        )


def _since(start: float | None, end: float | None) -> int | None:
    return None if start is None or end is None else round((end - start) * 1000)


def add(one: Usage, other: Usage) -> Usage:
    """The sum of two token counts, kind by kind."""
    return Usage(
        one.input_text + other.input_text,
        one.input_audio + other.input_audio,
        one.cached_text + other.cached_text,
        one.cached_audio + other.cached_audio,
        one.output_text + other.output_text,
        one.output_audio + other.output_audio,
    )


def words_heard(text: str, heard_ms: int, said_ms: int) -> str | None:
    """The words of `text` that fit into the heard part of its audio; a word that was cut is left out.

    Speech runs at an even pace within a sentence, so the share of the characters stands for the share of the
    time. None when there was no text.
    """
    if not text:
        return None
    if said_ms <= 0 or heard_ms <= 0:
        return ""
    if heard_ms >= said_ms:
        return text
    end = len(text) * heard_ms // said_ms
    while 0 < end < len(text) and _inside_a_word(text, end):
        end -= 1
    return text[:end].rstrip()


def spoken_length(text: str) -> float:
    """How long a text takes to speak, in letters: a Japanese, Chinese or Thai character takes longer."""
    return sum(_SYLLABLE if _stands_alone(character) else 1.0 for character in text)


_SYLLABLE = 2.5


def words_within(text: str, audio_ms: float, pace: float) -> str:
    """The words that are spoken in so much audio at this pace; a word that does not fit whole is left out."""
    room = audio_ms * pace
    for at, character in enumerate(text):
        room -= _SYLLABLE if _stands_alone(character) else 1.0
        if room < 0:
            while at and _inside_a_word(text, at):
                at -= 1  # noqa: PLW2901
            return text[:at].rstrip()
    return text


def _inside_a_word(text: str, at: int) -> bool:
    """True when cutting before `text[at]` would leave a part of a word.

    Japanese, Chinese and Thai are written without spaces: there every character stands for itself.
    """
    before, after = text[at - 1], text[at]
    if before.isspace() or after.isspace():
        return False
    return not (_stands_alone(before) or _stands_alone(after))


def _stands_alone(character: str) -> bool:
    return character >= "\u2e80" or "\u0e00" <= character <= "\u0e7f"
