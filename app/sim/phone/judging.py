"""Judges a call from what the caller said and heard, and makes the report of `nearcall call`.

The rules, which `nearcall call --help` tells its users:

- The agent greets, and answers, when it begins to speak within `answer_within_s` of the moment when it could: of
  the stream's start, or of the caller's last word. What it says later, of its own accord, is neither.
- It stopped for an interruption when its `clear` cut off audio within STOPPED_WITHIN_S of the caller's first
  sound, and it did not go on while the caller spoke. Whether a word or the gap between two words was heard at
  that instant does not matter. Where nothing was left to cut off, the interruption proves nothing, and the report
  says so.
"""

from dataclasses import dataclass
from typing import Final

from app.sim.phone.events import (
    ClearReceived,
    Dialled,
    EndReason,
    PhoneEvent,
    SayHeard,
    StreamClosed,
    StreamOpened,
    StreamStarted,
    WebhookAnswered,
)
from app.sim.phone.phone import Phone
from app.sim.phone.recording import Utterance

STOPPED_WITHIN_S: Final = 1.0
"""An agent that talks on for longer than this after the caller's first sound has not stopped."""

_CUT_S: Final = 0.1
"""A clear that follows the last played byte this closely cut the agent off, although nothing was queued: a server
that sends each 20 ms when they are due never has more on the way."""


@dataclass(frozen=True, slots=True)
class SpokenLine:
    """A recording that the caller played into the call. Times are the event loop's."""

    utterances: tuple[Utterance, ...]
    interrupts: bool
    began_at: float
    ended_at: float

    @property
    def first_sound_at(self) -> float:
        """When the caller's speech began."""
        return self.began_at + self.utterances[0].start_s

    @property
    def first_pause_at(self) -> float:
        """From here on an agent may take the caller to have finished."""
        return self.began_at + self.utterances[0].end_s

    @property
    def last_sound_at(self) -> float:
        """When the caller's speech ended; a recording may go on in silence."""
        return self.began_at + self.utterances[-1].end_s

    def in_speech(self, at: float) -> bool:
        """True when the caller was speaking at that time."""
        return any(each.start_s <= at - self.began_at < each.end_s for each in self.utterances)

    def answered_by(self, start: float, end: float) -> bool:
        """True when agent speech from `start` to `end` follows this.

        It may begin in a pause of the caller's, as long as it is heard after the last word.
        """
        return start >= self.first_pause_at and end > self.last_sound_at and not self.in_speech(start)


@dataclass(frozen=True, slots=True)
class LineResult:
    """A line that was said and how the agent reacted. Times are in seconds since the call was dialled."""

    began_at_s: float
    ended_at_s: float
    interrupted: bool
    """The line should interrupt the agent, and the agent had more to say."""
    obeyed_after_s: float | None
    """From the first sound of an interruption to the agent's silence; None: the agent talked on."""
    answered_after_s: float | None
    """From the last sound to the agent's first; None: no answer before the next line or the call's end."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a call went."""

    greeted_after_s: float | None
    """From the stream's start to the agent's first sound; None: it said nothing before the caller did."""
    said: tuple[LineResult, ...]
    unsaid: int
    """How many lines were not said because the call had ended."""
    not_interrupted: int
    """How many lines should interrupt the agent and found it with nothing left to say."""
    ended: str
    violations: int
    """How many messages of the server Twilio would refuse."""
    webhook_region: str | None = None
    """Where the voice webhook was answered; None: the server does not say."""
    stream_region: str | None = None
    """Where the last stream was answered; None: the server does not say, or there was none."""
    broke: str | None = None
    """Why the call broke, in a sentence; None: it did not break."""
    greeting_required: bool = True
    answer_within_s: float = 5.0

    @property
    def greeted(self) -> bool:
        """True when the agent greeted in time, or need not."""
        if self.greeted_after_s is not None and self.greeted_after_s <= self.answer_within_s:
            return True
        return not self.greeting_required and bool(self.said)

    @property
    def answered(self) -> bool:
        """True when every line was said and got an answer in time."""
        return self.unsaid == 0 and all(self.in_time(said) for said in self.said)

    def in_time(self, said: LineResult) -> bool:
        """True when the agent spoke soon enough after a line for that to be the answer."""
        return said.answered_after_s is not None and said.answered_after_s <= self.answer_within_s

    @property
    def obeyed(self) -> bool:
        """True when every interruption took place and silenced the agent."""
        talked_on = any(said.interrupted and said.obeyed_after_s is None for said in self.said)
        return self.not_interrupted == 0 and not talked_on

    @property
    def good(self) -> bool:
        """True when the agent greeted, answered, stopped when interrupted, and sent only valid messages."""
        return not self.faults

    @property
    def faults(self) -> list[str]:
        """The faults of the call, a sentence each."""
        faults = [] if self.broke is None else [self.broke]
        if not self.greeted:
            faults.append(self._no_greeting())
        for number, said in enumerate(self.said, 1):
            if said.interrupted and said.obeyed_after_s is None:
                faults.append(
                    f"The agent did not stop within {STOPPED_WITHIN_S:g} s when line {number} interrupted it."
                )
                if number == 1:
                    faults.append("Line 1 interrupted the greeting, which may be set not to be interruptible.")
            if not self.in_time(said):
                faults.append(self._no_answer(number, said))
        if self.not_interrupted:
            faults.append(
                "The interruption proves nothing: the agent had nothing left to say. Interrupt it earlier, "
                "or have it say more."
            )
        if self.unsaid:
            lines = "1 line was" if self.unsaid == 1 else f"{self.unsaid} lines were"
            faults.append(f"{lines} not said: {self.ended or 'the call was over'}.")
        if self.violations:
            messages = "1 message" if self.violations == 1 else f"{self.violations} messages"
            faults.append(f"The server sent {messages} that Twilio would refuse.")
        return faults

    def _no_greeting(self) -> str:
        if self.greeted_after_s is None:
            return "The agent did not greet the caller."
        limit = f"the limit is {self.answer_within_s:g} s"
        return f"The agent greeted the caller after {self.greeted_after_s:.1f} s; {limit}."

    def _no_answer(self, number: int, said: LineResult) -> str:
        if said.answered_after_s is None:
            return f"Line {number} got no answer."
        return (
            f"Line {number} got no answer within {self.answer_within_s:g} s: the agent spoke only "
            f"{said.answered_after_s:.1f} s after it."
        )


def judge(
    phone: Phone, spoken: list[SpokenLine], *, lines: int, greeting_required: bool, answer_within_s: float
) -> Report:
    """Returns the report of a call that is over, in which the caller should say `lines` lines."""
    started = next((e.at for e in phone.timeline if isinstance(e, StreamStarted)), None)
    first = phone.speech_spans[0].started_at if phone.speech_spans else None
    if first is not None and spoken and first >= spoken[0].first_pause_at:
        first = None  # the agent only answered, and did not greet
    until = [each.began_at for each in spoken[1:]] + [float("inf")]
    said = tuple(_judged(phone, each, next_at) for each, next_at in zip(spoken, until, strict=False))
    return Report(
        greeted_after_s=None if started is None or first is None else first - started,
        said=said,
        unsaid=lines - len(said),
        not_interrupted=sum(
            each.interrupts and not judged.interrupted for each, judged in zip(spoken, said, strict=True)
        ),
        ended="" if phone.ended is None else phone.ended.value,
        violations=len(phone.violations),
        webhook_region=next((e.region for e in phone.timeline if isinstance(e, WebhookAnswered)), None),
        stream_region=next((e.region for e in reversed(phone.timeline) if isinstance(e, StreamOpened)), None),
        broke=_broke(phone, started),
        greeting_required=greeting_required,
        answer_within_s=answer_within_s,
    )


def dialled(timeline: list[PhoneEvent]) -> float:
    """When the call began: its first webhook was sent then."""
    first = timeline[0]
    return first.at - (first.took_ms / 1000 if isinstance(first, WebhookAnswered) else 0.0)


def _judged(phone: Phone, spoken: SpokenLine, next_at: float) -> LineResult:
    dialled_at = dialled(phone.timeline)
    cut = _cut(phone, spoken) if spoken.interrupts else None
    speech_spans = [(span.started_at, span.started_at + span.ms / 1000) for span in phone.speech_spans]
    answer = next(
        (
            start
            for start, end in speech_spans
            if spoken.answered_by(start, end) and start < next_at and (cut is None or start >= cut.at)
        ),
        None,
    )
    went_on = cut is not None and any(cut.at <= start < spoken.first_pause_at for start, _ in speech_spans)
    return LineResult(
        began_at_s=spoken.began_at - dialled_at,
        ended_at_s=spoken.ended_at - dialled_at,
        interrupted=spoken.interrupts and (cut is not None or _talked_on(phone, spoken, speech_spans)),
        obeyed_after_s=None if cut is None or went_on else max(0.0, cut.at - spoken.first_sound_at),
        answered_after_s=None if answer is None else max(0.0, answer - spoken.last_sound_at),
    )


def _cut(phone: Phone, spoken: SpokenLine) -> ClearReceived | None:
    """The clear that cut the agent off when this interrupted it."""
    for event in phone.timeline:
        if not isinstance(event, ClearReceived) or event.at < spoken.began_at:
            continue
        if event.at > spoken.first_sound_at + STOPPED_WITHIN_S:
            return None
        if event.discarded_bytes or any(event.at - _CUT_S <= end <= event.at for _, end in phone.played_runs()):
            return event
    return None


def _talked_on(phone: Phone, spoken: SpokenLine, speech_spans: list[tuple[float, float]]) -> bool:
    """True when agent audio that was on when the caller began was still on when it should have stopped."""
    limit = spoken.first_sound_at + STOPPED_WITHIN_S
    return any(
        start < spoken.first_sound_at and end > limit for start, end in [*phone.played_runs(), *speech_spans]
    )


def _broke(phone: Phone, started: float | None) -> str | None:
    if phone.ended is EndReason.APPLICATION_ERROR:
        why = f": {phone.problems[-1].text}" if phone.problems else ""
        return f"Twilio gave the call up{why}."
    if phone.ended is EndReason.REJECTED:
        return "The server rejected the call."
    for event in phone.timeline:
        if isinstance(event, StreamClosed) and event.by in {"network", "refused"}:
            return f"The stream broke: {event.reason}."
        # A server may announce something before it connects the caller to the agent.
        if started is not None and event.at > started:
            if isinstance(event, SayHeard):
                return f'The agent\'s part of the call broke off: Twilio said "{event.text}"'
            if isinstance(event, Dialled):
                return "The agent's part of the call ended: the caller was passed on to another number."
    return None
