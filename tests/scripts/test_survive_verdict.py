"""The verdict of scripts/survive: each promise can be broken, and a good call breaks none."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from scripts.survivelib.report import Report
from scripts.survivelib.stamps import FRAME_S, WORD_FRAMES, Stamp, Voice, answer_words, wording_of
from scripts.survivelib.story import (
    SENTENCE_FRAMES,
    Asked,
    Fault,
    Leg,
    Request,
    Sentence,
    Story,
    Turn,
    answer_frames,
    silences,
    timeline,
)
from scripts.survivelib.verdict import Promises, judge

ANSWER_S = 0.9
PROMISES = Promises(answer_s=ANSWER_S, pause_s=0.3, pauses_max=1)
SHORT = Promises(answer_s=ANSWER_S, pause_s=0.3, longest_s=0.5)
AFTER_REQUEST = Promises(answer_s=ANSWER_S, pause_s=0.3, after_request_s=1.5, durable_s=1.0, faults_max=3)
CALL = 7
SENTENCES = 3
ENDED = {1: 1.0, 2: 5.0, 3: 9.0}
"""When the caller has said each sentence."""


def caller_words(sentence: int, first: int = 0, last: int = SENTENCE_FRAMES - 1) -> str:
    return f"c{CALL:03}.{sentence:02}f{first:02}-{last:02}"


def said(sentence: int) -> Turn:
    return Turn("leg", caller=True, heard=wording_of(caller_words(sentence)))


def answered(sentence: int) -> Turn:
    return Turn("leg", caller=False, heard=wording_of(whole(sentence)))


def whole(sentence: int) -> str:
    return answer_words(sentence, range(answer_frames(sentence) // WORD_FRAMES))


def frames(
    sentence: int, began: float, first: int = 0, last: int = -1, session: int = 1
) -> list[tuple[float, Stamp]]:
    until = answer_frames(sentence) if last < 0 else last
    return [
        (began + (frame - first) * FRAME_S, Stamp(Voice.ANSWER, CALL, sentence, session, frame))
        for frame in range(first, until)
    ]


def known(until: int) -> tuple[str, ...]:
    return tuple(text for number in range(1, until) for text in (caller_words(number), whole(number)))


def good() -> Story:
    """A call that moved to another session before its third sentence, and nobody noticed."""
    story = Story(CALL, "CA1", began=0.0, ended=13.0)
    for number, ended in ENDED.items():
        session = 1 if number < SENTENCES else 2
        story.sentences.append(Sentence(number, ended - SENTENCE_FRAMES * FRAME_S, ended))
        story.heard += frames(number, ended + 0.5, session=session)
        asked = tuple(wording_of(text) for text in known(number))
        story.asked.append(Asked(ended + 0.4, session, number, "answer", asked, ((3, "call_1"),)))
    story.legs = [Leg(0.1, "nrt", 7.6, "rest"), Leg(8.0, "iad", float("inf"), "")]
    story.requests = [Request(7.6, "rest", 7.8)]
    story.turns = [turn for number in ENDED for turn in (said(number), answered(number))]
    return story


def broken(story: Story, promises: Promises = PROMISES) -> list[str]:
    return [each.promise for each in judge(story, promises)]


@pytest.mark.parametrize("promises", [PROMISES, SHORT, AFTER_REQUEST])
def test_call_in_which_all_went_well_breaks_no_promise(promises: Promises) -> None:
    assert judge(good(), promises) == []


def dropped(story: Story) -> None:
    story.dropped = "the call is over"


def unanswered(story: Story) -> None:
    story.sentences[1].given_up = 10.0
    story.heard = [each for each in story.heard if each[1].sentence != 2]
    story.turns = [each for each in story.turns or () if 2 not in each.heard.agent]


def half_answered(story: Story) -> None:
    story.sentences[2].given_up = 16.0
    story.heard = [each for each in story.heard if each[1].sentence != 3 or each[1].frame < 30]


def two_pauses(story: Story) -> None:
    for number in (1, 2):
        story.heard = [each for each in story.heard if each[1].sentence != number]
        story.heard += [
            *frames(number, ENDED[number] + 0.5, last=30),
            *frames(number, ENDED[number] + 1.6, first=30),
        ]
    story.heard.sort(key=lambda each: each[0])


def words_lost(story: Story) -> None:
    story.heard = [each for each in story.heard if each[1].sentence != 2 or not 20 <= each[1].frame < 60]


def words_twice(story: Story) -> None:
    story.heard += frames(3, 11.0, first=20, session=2)


def old_agent_again(story: Story) -> None:
    story.heard += frames(3, 11.0, first=answer_frames(3) - 2, session=1)


def turn_lost(story: Story) -> None:
    story.turns = [each for each in story.turns or () if (CALL, 2) not in each.heard.caller]


def turn_twice(story: Story) -> None:
    story.turns = [*(story.turns or ()), said(2)]


def words_unrecorded(story: Story) -> None:
    story.turns = [each for each in story.turns or () if 1 not in each.heard.agent]


def words_never_heard(story: Story) -> None:
    story.turns = [
        *(story.turns or ()),
        Turn("leg", caller=False, heard=wording_of(answer_words(1, range(7, 10)))),
    ]
    story.heard = [each for each in story.heard if each[1].sentence != 1 or each[1].frame < 10]
    story.heard += [(ENDED[1] + 4, Stamp(Voice.ANSWER, CALL, 1, 1, answer_frames(1) - 1))]


def answer_recorded_twice(story: Story) -> None:
    story.turns = [*(story.turns or ()), answered(1)]


def told_history(story: Story, *texts: str) -> None:
    story.asked[2] = replace(story.asked[2], history=tuple(wording_of(text) for text in texts))


def history_lost(story: Story) -> None:
    told_history(story, *known(2))


def history_twice(story: Story) -> None:
    told_history(story, *known(3), caller_words(2))


def answer_missing_in_history(story: Story) -> None:
    told_history(story, *known(2), caller_words(2))


def anothers_history(story: Story) -> None:
    told_history(story, *known(3), "c008.01f00-44")


def tool_twice(story: Story) -> None:
    story.asked[2] = replace(story.asked[2], outputs=((3, "call_1"), (3, "call_2")))


def output_twice(story: Story) -> None:
    story.asked[2] = replace(story.asked[2], outputs=((3, "call_1"), (3, "call_1")))


@pytest.mark.parametrize(
    ("spoil", "promise"),
    [
        (dropped, "dropped"),
        (unanswered, "answered"),
        (half_answered, "answered"),
        (two_pauses, "pauses"),
        (words_lost, "lost"),
        (words_twice, "doubled"),
        (old_agent_again, "one agent"),
        (turn_lost, "ledger"),
        (turn_twice, "ledger"),
        (words_unrecorded, "ledger"),
        (words_never_heard, "ledger"),
        (answer_recorded_twice, "ledger"),
        (history_lost, "history"),
        (history_twice, "history"),
        (answer_missing_in_history, "history"),
        (anothers_history, "history"),
        (tool_twice, "tools"),
        (output_twice, "tools"),
    ],
)
def test_each_promise_can_be_broken(spoil: Callable[[Story], None], promise: str) -> None:
    story = good()
    spoil(story)
    assert promise in broken(story)


def late(sentence: int, by_s: float) -> Story:
    """The answer to a sentence comes so much later than usual."""
    story = good()
    story.heard = [each for each in story.heard if each[1].sentence != sentence]
    story.heard += frames(sentence, ENDED[sentence] + ANSWER_S + by_s, session=1 if sentence < SENTENCES else 2)
    story.heard.sort(key=lambda each: each[0])
    return story


@pytest.mark.parametrize(("by_s", "found"), [(0.45, []), (0.55, ["pause"])])
def test_answer_may_come_late_by_what_is_promised(by_s: float, found: list[str]) -> None:
    assert broken(late(2, by_s), SHORT) == found


def test_one_pause_is_no_broken_promise_where_one_is_allowed() -> None:
    assert broken(late(2, 0.6), PROMISES) == []


def test_wait_for_a_silent_backend_counts_from_when_it_was_noticed() -> None:
    story = late(2, 1.4)
    story.faults = [Fault(5.1, "silent", back=6.9)]
    assert broken(story, SHORT) == []
    story.faults = [Fault(5.1, "silent", back=6.5)]
    assert broken(story, SHORT) == ["pause"]


def test_pause_after_a_kill_counts_from_twilios_request() -> None:
    story = late(3, 2.0)
    story.requests = [Request(10.6, "action", 10.7)]
    story.legs = [Leg(0.1, "nrt", 9.9, "network"), Leg(10.8, "iad", float("inf"), "")]
    assert broken(story, AFTER_REQUEST) == []
    story.requests = [Request(10.2, "action", 10.7)]
    assert broken(story, AFTER_REQUEST) == ["pause"]


def test_stream_that_comes_late_is_told_also_when_no_answer_is_due() -> None:
    story = good()
    story.legs = [Leg(0.1, "nrt", 5.9, "network"), Leg(8.0, "iad", float("inf"), "")]
    story.requests = [Request(6.0, "action", 7.8)]
    assert broken(story, AFTER_REQUEST) == ["pause"]


def test_machine_may_take_the_last_second_with_it_and_no_more() -> None:
    story = good()
    unanswered(story)
    turn_lost(story)
    story.faults = [Fault(ENDED[2] + 0.5, "SIGKILL")]
    told_history(story, *known(2))
    assert broken(story, AFTER_REQUEST) == []
    story.faults = [Fault(ENDED[2] + 3.0, "SIGKILL")]
    assert {"answered", "ledger", "history"} <= set(broken(story, AFTER_REQUEST))


def test_call_that_met_too_many_faults_may_be_given_up() -> None:
    story = good()
    dropped(story)
    story.faults = [Fault(at, "lost") for at in (1.0, 2.0, 3.0)]
    assert broken(story, AFTER_REQUEST) == ["dropped"]
    story.faults.append(Fault(4.0, "lost"))
    assert broken(story, AFTER_REQUEST) == []


def test_silence_that_nothing_ends_lasts_until_the_caller_gives_up() -> None:
    story = good()
    half_answered(story)
    [*_, last] = silences(story)
    assert (last.inside, last.resumed, last.ended) == (True, False, 16.0)


def test_report_of_a_run_that_tried_too_little_is_not_good() -> None:
    assert Report("kills", 1, PROMISES, [good()]).good
    idle = Report("kills", 1, PROMISES, [good()], needed=1)
    assert not idle.good
    assert "only 0 faults hit a call, 1 were to" in idle.as_text()


def test_report_names_the_broken_promise_with_its_timeline() -> None:
    story = good()
    words_twice(story)
    told = Report("deploys", 1, PROMISES, [story]).as_text()
    assert f"  doubled: call {CALL}: {answer_frames(3) - 20} frames of the answer to 3 were heard twice" in told
    assert all(line in told for line in timeline(story))
    assert "Promises were broken." in told


def test_problem_apart_from_the_calls_is_not_good() -> None:
    report = Report("deploys", 1, PROMISES, [good()], problems=["the server of nrt ended with status 3"])
    assert not report.good
    assert "the server of nrt ended with status 3" in report.as_text()
