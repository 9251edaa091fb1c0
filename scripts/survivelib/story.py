"""What happened in one call, as far as a verdict needs it: what was said, heard, recorded, and broken on purpose.

Instants are seconds of the event loop in which phones and backends run.
"""

from dataclasses import dataclass, field

from scripts.survivelib.stamps import FRAME_S, WORD_FRAMES, Stamp, Voice, Wording

SENTENCE_FRAMES = 45
"""Of everything that the caller says: 0.9 s."""


def answer_frames(sentence: int) -> int:
    """Returns how long the answer to a sentence is: 1.2 to 2.4 s."""
    return (3 + sentence % 4) * WORD_FRAMES


@dataclass(slots=True)
class Sentence:
    """One sentence of the caller."""

    number: int
    began: float
    ended: float
    given_up: float | None = None
    """When the caller stopped waiting for the rest of the answer, and said something else; None: it came."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One stream of the call."""

    opened: float
    region: str
    closed: float
    """Infinity: it was never closed."""
    how: str
    """How it was closed."""


@dataclass(frozen=True, slots=True)
class Request:
    """Twilio asked what comes next: after a stream, or because REST told it to."""

    at: float
    purpose: str
    answered: float


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was broken on purpose, and hurt this call."""

    at: float
    what: str
    back: float | None = None
    """When whoever noticed only later asked for a replacement; None: it was noticed at once."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A backend session was asked to speak."""

    at: float
    session: int
    sentence: int
    """Which one it answers; 0: none."""
    what: str
    history: tuple[Wording, ...]
    """What it knows: each item of its conversation."""
    outputs: tuple[tuple[int, str], ...] = ()
    """Of tools: the sentence that it was called for, and the id of the call."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn in the ledger."""

    leg: str
    caller: bool
    heard: Wording


@dataclass(slots=True)
class Story:
    """One call."""

    call: int
    call_sid: str = ""
    label: str = ""
    """What the run says about it: where it came from."""
    began: float = 0.0
    sentences: list[Sentence] = field(default_factory=list)
    heard: list[tuple[float, Stamp]] = field(default_factory=list)
    """Frames of the agent's, in the order in which the caller heard them."""
    legs: list[Leg] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    turns: list[Turn] | None = None
    """What the ledger has of it; None: it was not read."""
    ended: float = 0.0
    dropped: str = ""
    """Why it ended before the caller hung up; empty: it did not."""

    def answer(self, sentence: int) -> list[tuple[float, Stamp]]:
        """Returns what was heard of the answer to a sentence."""
        return [
            (at, stamp) for at, stamp in self.heard if stamp.voice is Voice.ANSWER and stamp.sentence == sentence
        ]

    def complete(self, sentence: int) -> bool:
        """True when the answer to a sentence was heard to its last frame."""
        last = answer_frames(sentence) - 1
        return any(stamp.frame == last for _, stamp in self.answer(sentence))

    def leg_at(self, at: float) -> Leg | None:
        """Returns the stream that was up at an instant."""
        return next((leg for leg in self.legs if leg.opened <= at < leg.closed), None)


@dataclass(frozen=True, slots=True)
class Silence:
    """The caller waited for an answer, or for the rest of one, and heard nothing of it."""

    sentence: int
    began: float
    ended: float
    inside: bool
    """It began in the middle of the answer."""
    resumed: bool
    """False: nothing more of this answer was heard."""

    @property
    def length_s(self) -> float:
        return self.ended - self.began


_GAP_S = 3 * FRAME_S
"""Frames that follow each other more slowly than this leave a gap."""


def silences(story: Story) -> list[Silence]:
    """Returns every silence while an answer was due, in order."""
    found = []
    for sentence in story.sentences:
        silent_since, inside = sentence.ended, False
        for at, _ in story.answer(sentence.number):
            if at - silent_since > _GAP_S:
                found.append(Silence(sentence.number, silent_since, at, inside, resumed=True))
            silent_since, inside = max(silent_since, at + FRAME_S), True
        if sentence.given_up is not None and sentence.given_up - silent_since > _GAP_S:
            found.append(Silence(sentence.number, silent_since, sentence.given_up, inside, resumed=False))
    return found


def timeline(story: Story) -> list[str]:
    """Returns what happened in the call, a line each, with seconds since it began."""
    told: list[tuple[float, str]] = [(story.ended, f"over{f': {story.dropped}' if story.dropped else ''}")]
    told += [(each.began, f"caller says {each.number}") for each in story.sentences]
    told += [
        (each.given_up, f"caller gives up on the answer to {each.number}")
        for each in story.sentences
        if each.given_up is not None
    ]
    told += [(leg.opened, f"stream to {leg.region or 'the server'}") for leg in story.legs]
    told += [(leg.closed, f"stream closed by {leg.how}") for leg in story.legs if leg.closed < float("inf")]
    told += [
        (each.at, f"Twilio asks: {each.purpose}, answered in {each.answered - each.at:.2f} s")
        for each in story.requests
    ]
    told += [(fault.at, f"FAULT: {fault.what}") for fault in story.faults]
    told += [(each.at, _asked_text(each)) for each in story.asked]
    told += _heard_texts(story)
    return [f"{at - story.began:7.2f}  {text}" for at, text in sorted(told)]


def _asked_text(asked: Asked) -> str:
    whom = f"session {asked.session}, knowing {len(asked.history)} items, is asked for {asked.what}"
    return f"{whom} {asked.sentence}" if asked.sentence else whom


def _heard_texts(story: Story) -> list[tuple[float, str]]:
    """A line for each unbroken run of frames."""
    runs: list[tuple[float, Stamp, Stamp, float]] = []
    for at, stamp in story.heard:
        if runs:
            began, first, last, last_at = runs[-1]
            follows = (stamp.voice, stamp.sentence, stamp.session) == (first.voice, first.sentence, first.session)
            if follows and stamp.frame == last.frame + 1 and at - last_at <= _GAP_S:
                runs[-1] = (began, first, stamp, at)
                continue
        runs.append((at, stamp, stamp, at))
    return [(began, _heard_text(first, last)) for began, first, last, _ in runs]


def _heard_text(first: Stamp, last: Stamp) -> str:
    what = first.voice.name.lower()
    of = ""
    if first.voice is Voice.ANSWER:
        what, of = f"answer {first.sentence}", f" of {answer_frames(first.sentence)}"
    return f"caller hears {what} of session {first.session}, frames {first.frame} to {last.frame}{of}"
