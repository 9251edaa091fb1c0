"""Judges calls against the promises: which of them were broken, one line each.

Pure: a story goes in, sentences come out. What a run may ask depends on its faults: `Promises` has the numbers.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from scripts.survivelib.stamps import WORD_FRAMES
from scripts.survivelib.story import SENTENCE_FRAMES, Sentence, Silence, Story, answer_frames, silences

SLACK_FRAMES = WORD_FRAMES + 2
"""What was heard is known to the word: so much may be heard twice, or not at all, where an answer was cut."""

TURN_TAKES_S = 0.6
"""From the end of a sentence to its transcript: the voice detection's silence, and the transcription."""


@dataclass(frozen=True, slots=True)
class Promises:
    """What is promised to callers, in numbers."""

    answer_s: float
    """From the end of a sentence to the answer when nothing is broken: what comes on top of it is a pause."""
    pause_s: float
    """A pause that is longer counts."""
    pauses_max: int | None = None
    """How many pauses a caller may notice in a call."""
    longest_s: float | None = None
    """The longest pause after a fault that was noticed."""
    after_request_s: float | None = None
    """The longest pause after Twilio asked what comes next."""
    durable_s: float | None = None
    """A machine's death may take what was said in so many seconds before it; None: nothing may be lost."""
    faults_max: int | None = None
    """A call that met more faults than this within a minute may be given up."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that was not kept."""

    promise: str
    call: int
    detail: str


PROMISES = ("dropped", "answered", "pauses", "pause", "lost", "doubled", "one agent", "ledger", "history", "tools")
"""The names of all promises, in the order of the table."""


def judge(story: Story, promises: Promises) -> list[Broken]:
    """Returns every broken promise of a call."""
    found: list[Broken] = []

    def broken(promise: str, detail: str) -> None:
        found.append(Broken(promise, story.call, detail))

    if _given_up(story, promises):
        return found
    if story.dropped:
        broken("dropped", story.dropped)
    for promise, check in (
        ("answered", _unanswered),
        ("pauses", _pauses),
        ("pause", _long_pauses),
        ("lost", _lost),
        ("doubled", _doubled),
        ("one agent", _two_agents),
        ("ledger", _ledger),
        ("history", _history),
        ("tools", _tools),
    ):
        for detail in check(story, promises):
            broken(promise, detail)
    return found


def _given_up(story: Story, promises: Promises) -> bool:
    """True when so many faults hit the call that it may end in the apology."""
    if promises.faults_max is None:
        return False
    times = sorted(fault.at for fault in story.faults)
    return any(later - first <= 60 for first, later in zip(times, times[promises.faults_max :], strict=False))


def _excused(story: Story, sentence: Sentence, promises: Promises) -> bool:
    """True when the words of a sentence may have died with a machine."""
    if promises.durable_s is None:
        return False
    kept_at = sentence.ended + TURN_TAKES_S + promises.durable_s
    return any(sentence.began <= fault.at <= kept_at for fault in story.faults)


def _answer_excused(story: Story, sentence: Sentence, promises: Promises) -> bool:
    """True when what was heard of an answer may have died with a machine: it may be given again."""
    if promises.durable_s is None:
        return False
    heard = story.answer(sentence.number)
    until = (heard[-1][0] if heard else sentence.ended) + promises.durable_s
    return any(sentence.began <= fault.at <= until for fault in story.faults)


# --- What the caller hears -----------------------------------------------------------------------------


def _unanswered(story: Story, promises: Promises) -> Iterator[str]:
    for sentence in story.sentences:
        if sentence.given_up is None or _excused(story, sentence, promises):
            continue
        heard = len({stamp.frame for _, stamp in story.answer(sentence.number)})
        part = f"{heard} of {answer_frames(sentence.number)} frames" if heard else "nothing"
        yield f"the caller heard {part} of the answer to {sentence.number}, and had to ask again"


def pauses(story: Story, promises: Promises) -> list[tuple[Silence, float]]:
    """Returns the silences that the caller noticed, and how much longer than usual each was, in seconds."""
    found = []
    for silence in silences(story):
        over_s = silence.length_s - (0 if silence.inside else promises.answer_s)
        if over_s > promises.pause_s:
            found.append((silence, over_s))
    return found


def _pauses(story: Story, promises: Promises) -> Iterator[str]:
    noticed = pauses(story, promises)
    if promises.pauses_max is not None and len(noticed) > promises.pauses_max:
        told = ", ".join(f"{over_s:.2f} s at {silence.sentence}" for silence, over_s in noticed)
        yield f"the caller noticed {len(noticed)} pauses: {told}"


def longest_s(story: Story, promises: Promises) -> list[float]:
    """Returns how long the caller waited because of a fault, each time, counted as the promise counts."""
    return [max(0.0, waited_s) for _, waited_s, by_fault in _waits(story, promises) if by_fault]


def _waits(story: Story, promises: Promises) -> Iterator[tuple[int, float, bool]]:
    """Returns how long the caller waited for the answer to a sentence, and whether a fault was the reason."""
    for silence in silences(story):
        usual_s = 0 if silence.inside else promises.answer_s
        if promises.after_request_s is not None:
            asked = [each.at for each in story.requests if silence.began <= each.at < silence.ended]
            if asked and silence.resumed:
                yield silence.sentence, silence.ended - max(asked[-1], silence.began + usual_s), True
        elif promises.longest_s is not None:
            hits = [each for each in story.faults if silence.began - 1 <= (each.back or each.at) < silence.ended]
            since = max((each.back or silence.began for each in hits), default=silence.began)
            yield silence.sentence, silence.ended - max(since, silence.began + usual_s), bool(hits)


def _long_pauses(story: Story, promises: Promises) -> Iterator[str]:
    most_s = promises.after_request_s if promises.longest_s is None else promises.longest_s
    if most_s is None:
        return
    for sentence, waited_s, _ in _waits(story, promises):
        if waited_s > most_s:
            yield f"{waited_s:.2f} s of silence at the answer to {sentence}, and {most_s:g} s are promised"
    if promises.after_request_s is None:
        return
    for request in story.requests:
        opened = next((leg.opened for leg in story.legs if leg.opened >= request.at), None)
        if opened is not None and opened - request.at > most_s:
            yield f"the next stream came {opened - request.at:.2f} s after Twilio's request"


def _lost(story: Story, promises: Promises) -> Iterator[str]:
    """Words of an answer that were passed over."""
    for sentence in story.sentences:
        frames = {stamp.frame for _, stamp in story.answer(sentence.number)}
        if not frames or _answer_excused(story, sentence, promises):
            continue
        for before, after in pairwise([-1, *sorted(frames)]):
            if after - before - 1 > SLACK_FRAMES:
                yield f"frames {before + 1} to {after - 1} of the answer to {sentence.number} were never heard"


def _doubled(story: Story, promises: Promises) -> Iterator[str]:
    for sentence in story.sentences:
        counts = Counter(stamp.frame for _, stamp in story.answer(sentence.number))
        twice = [frame for frame, count in counts.items() if count > 1]
        if len(twice) > SLACK_FRAMES and not _answer_excused(story, sentence, promises):
            yield f"{len(twice)} frames of the answer to {sentence.number} were heard twice"


def _two_agents(story: Story, _promises: Promises) -> Iterator[str]:
    """A session that was heard before another one is heard no more after it."""
    replaced: set[int] = set()
    speaking = None
    for at, stamp in story.heard:
        if stamp.session == speaking:
            continue
        if stamp.session in replaced:
            yield f"session {stamp.session} was heard again after another one, at {at - story.began:.2f} s"
            return
        if speaking is not None:
            replaced.add(speaking)
        speaking = stamp.session


# --- What was kept -------------------------------------------------------------------------------------


def _ledger(story: Story, promises: Promises) -> Iterator[str]:
    if story.turns is None:
        return
    said: Counter[tuple[int, int]] = Counter()
    heard: Counter[tuple[int, int]] = Counter()
    for turn in story.turns:
        strangers = {call for call, _ in turn.heard.caller if call != story.call}
        if strangers:
            yield f"a turn has words of the calls {sorted(strangers)}"
        said.update((number, frame) for (_, number), frames in turn.heard.caller.items() for frame in frames)
        heard.update((number, word) for number, words in turn.heard.agent.items() for word in words)
    for sentence in story.sentences:
        yield from _caller_turn(story, sentence, said, promises)
        yield from _agent_turn(story, sentence, heard, promises)


def _caller_turn(
    story: Story, sentence: Sentence, said: Counter[tuple[int, int]], promises: Promises
) -> Iterator[str]:
    if story.dropped and sentence is story.sentences[-1]:
        return  # the call ended while it was said, or before anybody had to answer it
    counts = [said[sentence.number, frame] for frame in range(SENTENCE_FRAMES)]
    missing, twice = counts.count(0), sum(count > 1 for count in counts)
    if missing > SLACK_FRAMES and not _excused(story, sentence, promises):
        yield f"the ledger lacks {missing} of the {SENTENCE_FRAMES} frames of sentence {sentence.number}"
    if twice > SLACK_FRAMES:
        yield f"the ledger has {twice} of the {SENTENCE_FRAMES} frames of sentence {sentence.number} twice"


def _agent_turn(
    story: Story, sentence: Sentence, recorded: Counter[tuple[int, int]], promises: Promises
) -> Iterator[str]:
    if _answer_excused(story, sentence, promises):
        return
    heard = Counter(stamp.frame // WORD_FRAMES for _, stamp in story.answer(sentence.number))
    words = range(answer_frames(sentence.number) // WORD_FRAMES)
    unrecorded = [
        word for word in words if heard[word] >= WORD_FRAMES // 2 and not recorded[sentence.number, word]
    ]
    unheard = [word for word in words if not heard[word] and recorded[sentence.number, word]]
    twice = [word for word in words if heard[word] <= WORD_FRAMES and recorded[sentence.number, word] > 1]
    for found, what in (
        (unrecorded, "lacks words that the caller heard"),
        (unheard, "has words that the caller did not hear"),
        (twice, "has words twice that the caller heard once"),
    ):
        if len(found) > 1:  # one word is the precision of what was heard
            yield f"the ledger {what}: {len(found)} of the answer to {sentence.number}"


def _history(story: Story, promises: Promises) -> Iterator[str]:
    """What a session knew when it was asked to answer. The first session is the backend's own memory."""
    first = story.asked[0].session if story.asked else None
    for asked in story.asked:
        if asked.session == first or not asked.sentence:
            continue
        items = asked.history
        if strangers := {call for item in items for call, _ in item.caller if call != story.call}:
            yield f"session {asked.session} was told of the calls {sorted(strangers)}"
        for sentence in story.sentences:
            if sentence.number >= asked.sentence:
                break
            key = (story.call, sentence.number)
            said = Counter(frame for item in items for frame in item.caller.get(key, ()))
            words = Counter(word for item in items for word in item.agent.get(sentence.number, ()))
            heard = len({stamp.frame // WORD_FRAMES for _, stamp in story.answer(sentence.number)})
            where = f"session {asked.session}, asked for {asked.what} {asked.sentence},"
            if len(said) < SENTENCE_FRAMES - SLACK_FRAMES and not _excused(story, sentence, promises):
                yield f"{where} did not know sentence {sentence.number}"
            if sum(count > 1 for count in said.values()) > SLACK_FRAMES:
                yield f"{where} was told sentence {sentence.number} twice"
            # A backend forgets the transcript of what it is told to cut (realtime.md 1.7).
            whole = sentence.given_up is None
            if whole and len(words) < heard - 1 and not _answer_excused(story, sentence, promises):
                yield f"{where} knew {len(words)} of {heard} words of answer {sentence.number}"
            if sum(count > 1 for count in words.values()) > 1 and not _answer_excused(story, sentence, promises):
                yield f"{where} was told answer {sentence.number} twice"


def _tools(story: Story, promises: Promises) -> Iterator[str]:
    """For each sentence a tool runs once, whatever was lost meanwhile."""
    runs: dict[int, set[str]] = {}
    for asked in story.asked:
        counts = Counter(asked.outputs)
        if doubled := [sentence for (sentence, _), count in counts.items() if count > 1]:
            yield f"session {asked.session} has the output of one tool call twice, for sentence {doubled[0]}"
        for sentence, tool_call_id in asked.outputs:
            runs.setdefault(sentence, set()).add(tool_call_id)
    excused = {each.number for each in story.sentences if _answer_excused(story, each, promises)}
    for number, ids in runs.items():
        if len(ids) > 1 and number not in excused:
            yield f"the tool for sentence {number} ran {len(ids)} times"
