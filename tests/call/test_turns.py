"""Who said what, what of it was heard, and how long the caller waited: every number worked out by hand.

The voice activity detection of SILENT reports the end of speech 500 ms after it; every instant below counts
from there.
"""

import pytest

from app.call import limits
from app.call.events import (
    AgentAudioEnded,
    AgentText,
    CallerTranscribed,
    CallerTurnCommitted,
    Event,
    PhoneStopped,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
    ToolFinished,
    Usage,
)
from app.call.records import CallEnded, Speaker, Turn
from app.call.turns import words_heard
from tests.call.phone_model import Phone
from tests.call.script import SILENT, UNIX_MS, Script, agent, talking

R1 = ResponseStarted("r1")
USAGE = Usage(100, 50, 40, 20, 30, 90)


def done(
    response_id: str = "r1", status: ResponseStatus = ResponseStatus.COMPLETED, usage: Usage = USAGE
) -> Event:
    """A response is over."""
    return ResponseEnded(response_id, status, usage=usage)


def said(text: str, item_id: str = "item_A", response_id: str = "r1") -> AgentText:
    """The final transcript of an item."""
    return AgentText(response_id, item_id, text, final=True)


def asks_and_is_answered(script: Script) -> None:
    """The caller speaks from 1.0 to 2.0; the VAD says so at 2.5; words come at 2.7, audio at 2.8, two seconds."""
    script.at(1.0, SpeechStarted("u1"))
    script.at(2.5, SpeechStopped("u1"), CallerTurnCommitted("u1"))
    script.at(2.6, R1)
    script.at(2.7, AgentText("r1", "item_A", "Hello there."))
    script.at(2.8, agent("item_A", 2_000), AgentAudioEnded("r1", "item_A"), said("Hello there."), done())
    script.at(2.9, CallerTranscribed("u1", "Good morning."))


def tokens(turn: Turn) -> tuple[int, ...]:
    """What a turn cost."""
    return (
        turn.input_text_tokens,
        turn.input_audio_tokens,
        turn.cached_text_tokens,
        turn.cached_audio_tokens,
        turn.output_text_tokens,
        turn.output_audio_tokens,
    )


# --- The caller ------------------------------------------------------------------------------


def test_caller_says_something_and_it_is_recorded_with_its_instants() -> None:
    script = talking()
    asks_and_is_answered(script)
    (turn,) = script.turns
    assert (turn.seq, turn.speaker, turn.said, turn.heard) == (0, Speaker.CALLER, "Good morning.", "Good morning.")
    assert (turn.started_ms, turn.ended_ms) == (UNIX_MS + 1_000, UNIX_MS + 2_000)
    assert (turn.said_ms, turn.heard_ms, turn.interrupted) == (1_000, 1_000, False)


def test_transcript_comes_after_the_answer_and_the_turn_keeps_its_place() -> None:
    script = talking()
    script.at(1.0, SpeechStarted("u1"))
    script.at(2.5, SpeechStopped("u1"), CallerTurnCommitted("u1"), R1, agent("item_A", 500), done())
    script.at(6.0, CallerTranscribed("u1", "Good morning."))
    assert [(turn.seq, turn.speaker) for turn in script.turns] == [(1, Speaker.AGENT), (0, Speaker.CALLER)]


def test_two_transcripts_come_in_the_other_order_and_find_their_turns() -> None:
    script = talking()
    script.at(1.0, SpeechStarted("u1"))
    script.at(2.0, SpeechStopped("u1"), CallerTurnCommitted("u1"))
    script.at(2.5, SpeechStarted("u2"))
    script.at(3.5, SpeechStopped("u2"), CallerTurnCommitted("u2"))
    script.at(4.0, CallerTranscribed("u2", "two"), CallerTranscribed("u1", "one"))
    assert sorted((turn.seq, turn.said) for turn in script.turns) == [(0, "one"), (1, "two")]


def test_transcription_fails_and_the_turn_is_recorded_without_words() -> None:
    script = talking()
    script.at(1.0, SpeechStarted("u1"))
    script.at(2.5, SpeechStopped("u1"), CallerTurnCommitted("u1"), CallerTranscribed("u1", None))
    assert [(turn.said, turn.heard, turn.said_ms) for turn in script.turns] == [(None, None, 1_000)]


def test_turn_whose_transcript_never_comes_is_recorded_without_words() -> None:
    script = talking()
    script.at(1.0, SpeechStarted("u1"))
    script.at(2.5, SpeechStopped("u1"), CallerTurnCommitted("u1"), R1, agent("item_A", 200), done())
    script.until(2.0 + limits.TRANSCRIPT_WAIT_S - 0.01)
    assert [turn.speaker for turn in script.turns] == [Speaker.AGENT]
    script.until(2.0 + limits.TRANSCRIPT_WAIT_S)
    assert [(turn.speaker, turn.said) for turn in script.turns[1:]] == [(Speaker.CALLER, None)]


def test_late_transcript_of_a_given_up_turn_makes_no_second_record() -> None:
    script = talking()
    script.at(1.0, SpeechStarted("u1"))
    script.at(2.5, SpeechStopped("u1"), CallerTurnCommitted("u1"), R1, done())
    script.at(20.0, CallerTranscribed("u1", "Good morning."))
    assert len([turn for turn in script.turns if turn.speaker is Speaker.CALLER]) == 1


def test_transcript_comes_twice_and_is_recorded_once() -> None:
    script = talking()
    asks_and_is_answered(script)
    script.at(3.0, CallerTranscribed("u1", "Good morning, once more."))
    assert [turn.said for turn in script.turns] == ["Good morning."]


def test_caller_hangs_up_in_the_middle_of_a_word_and_the_turn_ends_then() -> None:
    script = talking()
    script.at(1.0, SpeechStarted("u1"))
    script.at(1.7, PhoneStopped())
    (turn,) = script.turns
    assert (turn.said, turn.started_ms, turn.ended_ms) == (None, UNIX_MS + 1_000, UNIX_MS + 1_700)


def test_turns_that_never_end_are_not_kept_without_bound() -> None:
    script = talking()
    script.at(1.0, *[SpeechStarted(f"u{n}") for n in range(limits.OPEN_TURNS_MAX + 10)])
    assert [turn.seq for turn in script.turns] == list(range(10))


# --- The agent -------------------------------------------------------------------------------


def test_agent_is_heard_to_the_end_and_the_turn_is_recorded_then() -> None:
    script = talking()
    asks_and_is_answered(script)
    script.until(4.79)
    assert [turn.speaker for turn in script.turns] == [Speaker.CALLER]
    script.until(4.81)
    turn = script.turns[1]
    assert (turn.seq, turn.said, turn.heard) == (1, "Hello there.", "Hello there.")
    assert (turn.said_ms, turn.heard_ms, turn.interrupted) == (2_000, 2_000, False)
    assert (turn.started_ms, turn.ended_ms) == (UNIX_MS + 2_700, UNIX_MS + 4_800)


def test_turn_is_over_when_its_last_sound_came_out_of_the_phone() -> None:
    script = Script(SILENT, Phone(one_way_s=0.2)).begin()
    asks_and_is_answered(script)
    script.until(6.0)
    assert script.turns[1].ended_ms == UNIX_MS + 2_800 + 200 + 2_000


def test_latency_counts_to_the_first_audio_and_not_to_the_first_words() -> None:
    script = talking()
    asks_and_is_answered(script)
    script.until(6.0)
    assert (script.turns[1].answer_sent_ms, script.turns[1].answer_heard_ms) == (800, 800)


def test_latency_at_the_phone_adds_the_way_there() -> None:
    script = Script(SILENT, Phone(one_way_s=0.06)).begin()
    asks_and_is_answered(script)
    script.until(6.0)
    assert (script.turns[1].answer_sent_ms, script.turns[1].answer_heard_ms) == (800, 860)


def test_agent_speaks_first_and_no_latency_is_made_up() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 500), said("Hello."), done())
    script.until(3.0)
    assert (script.turns[0].answer_sent_ms, script.turns[0].answer_heard_ms) == (None, None)


def test_second_item_of_an_answer_is_no_second_answer() -> None:
    script = talking()
    asks_and_is_answered(script)
    script.at(3.5, ResponseStarted("r2"), agent("item_B", 500, "r2"), done("r2"))
    script.until(8.0)
    assert [turn.answer_sent_ms for turn in script.turns if turn.speaker is Speaker.AGENT] == [800, None]


def test_two_items_of_a_response_are_two_turns_and_the_last_has_the_tokens() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 500), agent("item_B", 500), done())
    script.until(4.0)
    assert [(turn.seq, tokens(turn)) for turn in script.turns] == [(0, (0,) * 6), (1, (100, 50, 40, 20, 30, 90))]


def test_words_come_in_pieces_and_the_final_text_replaces_them() -> None:
    script = talking()
    script.at(1.0, R1, AgentText("r1", "item_A", "Hel"), AgentText("r1", "item_A", "o ther"), agent("item_A", 500))
    script.at(1.1, said("Hello there."), done())
    script.until(3.0)
    assert script.turns[0].said == "Hello there."


def test_final_text_never_comes_and_the_pieces_are_what_was_said() -> None:
    script = talking()
    script.at(1.0, R1, AgentText("r1", "item_A", "Hello "), AgentText("r1", "item_A", "there."))
    script.at(1.1, agent("item_A", 500), done())
    script.until(3.0)
    assert script.turns[0].said == "Hello there."


def test_agent_speaks_without_a_transcript() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 500), done())
    script.until(3.0)
    assert (script.turns[0].said, script.turns[0].heard) == (None, None)


def test_transcript_without_end_is_cut() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 500), *[AgentText("r1", "item_A", "x" * 1_000)] * 100, done())
    script.until(3.0)
    assert len(script.turns[0].said or "") == limits.TRANSCRIPT_MAX_CHARS


# --- Cut off ---------------------------------------------------------------------------------


def test_words_heard_before_an_interruption_end_with_a_whole_word() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 4_000), said("We are open from nine to six on weekdays"), done())
    script.at(3.0005, SpeechStarted("u1"))
    (turn,) = script.turns
    assert (turn.said_ms, turn.heard_ms, turn.interrupted) == (4_000, 2_000, True)
    assert turn.heard == "We are open from"
    assert turn.said == "We are open from nine to six on weekdays"


def test_turn_is_interrupted_before_a_word_of_it_was_heard() -> None:
    script = Script(SILENT, Phone(one_way_s=0.1)).begin()
    script.at(1.0, SpeechStarted("u1"))
    script.at(2.5, SpeechStopped("u1"), CallerTurnCommitted("u1"), R1)
    script.at(2.6, agent("item_A", 4_000), said("We are open."), done())
    script.at(2.6, SpeechStarted("u2"))
    turn = next(turn for turn in script.turns if turn.speaker is Speaker.AGENT)
    assert (turn.heard, turn.heard_ms, turn.answer_heard_ms) == ("", 0, None)


def test_cancelled_response_bears_its_tokens_when_they_are_known() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 4_000))
    script.at(2.0, SpeechStarted("u1"))
    assert script.turns == []
    script.at(2.1, done(status=ResponseStatus.CANCELLED))
    assert [tokens(turn) for turn in script.turns] == [(100, 50, 40, 20, 30, 90)]


def test_words_ran_ahead_of_an_audio_that_never_came() -> None:
    script = talking()
    script.at(1.0, R1, AgentText("r1", "item_A", "On Tuesday"))
    script.at(1.1, SpeechStarted("u1"))
    script.at(1.2, done(status=ResponseStatus.CANCELLED))
    (turn,) = script.turns
    assert (turn.said, turn.heard, turn.heard_ms, turn.interrupted) == ("On Tuesday", "", 0, True)


def test_answer_is_recorded_as_far_as_it_was_heard_at_the_hang_up() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 4_000), said("We are open from nine to six on weekdays"), done())
    script.at(3.0005, PhoneStopped())
    (turn,) = script.turns
    assert (turn.heard, turn.heard_ms, turn.interrupted) == ("We are open from", 2_000, True)


# --- Tokens ----------------------------------------------------------------------------------


def test_tokens_of_a_response_without_speech_go_to_the_next_turn() -> None:
    script = talking()
    script.at(1.0, R1, ToolCalled("r1", "call_1", "find_slot", "{}"), done())
    script.at(2.0, ToolFinished("call_1", "10:30"), ResponseStarted("r2"), agent("item_A", 500, "r2"))
    script.at(2.1, done("r2", usage=Usage(1, 1, 1, 1, 1, 1)))
    script.until(4.0)
    assert [tokens(turn) for turn in script.turns] == [(101, 51, 41, 21, 31, 91)]


def test_tokens_of_the_last_response_are_not_lost_when_it_made_no_speech() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 4_000))
    script.at(1.1, done())
    script.at(1.2, ResponseStarted("r2"), done("r2", ResponseStatus.CANCELLED, Usage(7, 0, 0, 0, 0, 0)))
    script.at(1.5, PhoneStopped())
    assert sum(turn.input_text_tokens for turn in script.turns) == 107


def test_tokens_that_waited_go_to_the_turn_that_is_open_at_the_end() -> None:
    script = talking()
    script.at(1.0, R1, done())
    script.at(1.2, ResponseStarted("r2"), AgentText("r2", "item_A", "On Tuesday"))
    script.at(1.5, PhoneStopped())
    assert [tokens(turn) for turn in script.turns] == [(100, 50, 40, 20, 30, 90)]


# --- All of them -----------------------------------------------------------------------------


def test_every_turn_is_recorded_once_and_the_ending_counts_them() -> None:
    script = talking()
    asks_and_is_answered(script)
    script.at(4.0, SpeechStarted("u2"))
    script.at(4.5, PhoneStopped())
    ending = script.records[-1]
    assert isinstance(ending, CallEnded)
    assert sorted(turn.seq for turn in script.turns) == [0, 1, 2]
    assert ending.turns == 3


WORDS = [
    ("one two three four", 0, 4_000, ""),
    ("one two three four", 4_000, 4_000, "one two three four"),
    ("one two three four", 5_000, 4_000, "one two three four"),
    ("one two three four", 2_000, 4_000, "one two"),
    ("one two three four", 1_700, 4_000, "one two"),
    ("one two three four", 1_500, 4_000, "one"),
    ("one two three four", 700, 4_000, "one"),
    ("one two three four", 600, 4_000, ""),
    ("unbroken", 3_999, 4_000, ""),
    ("one\ntwo\nthree", 2_000, 4_000, "one"),
    ("", 2_000, 4_000, None),
    ("one two", 2_000, 0, ""),
    ("こんにちは、今日はどのようなご用件でしょうか", 2_000, 4_000, "こんにちは、今日はどの"),
    ("สวัสดีครับ", 2_000, 4_000, "สวัสด"),
]


@pytest.mark.parametrize(("text", "heard_ms", "said_ms", "heard"), WORDS)
def test_words_that_fit_into_what_was_heard(text: str, heard_ms: int, said_ms: int, heard: str | None) -> None:
    assert words_heard(text, heard_ms, said_ms) == heard


def test_turn_names_the_model_that_spoke_it_or_wrote_it_down() -> None:
    script = talking()
    asks_and_is_answered(script)
    script.at(9.0, PhoneStopped())
    assert [(turn.speaker, turn.model) for turn in script.turns] == [
        (Speaker.CALLER, SILENT.transcription_model),
        (Speaker.AGENT, SILENT.model),
    ]


def test_audio_after_the_end_of_its_item_is_not_heard_longer_than_said() -> None:
    """The item's first turn is recorded when its response ends, and what comes then begins another one."""
    script = talking()
    script.at(1.0, agent("item_a", 1), AgentAudioEnded("r1", "item_a"))
    script.at(1.1, ResponseStarted("r1"), agent("item_a", 500))
    script.at(1.1, ResponseEnded("r1", ResponseStatus.INCOMPLETE), agent("item_a", 20))
    script.until(4.0)
    script.at(4.0, PhoneStopped())
    turns = [turn for turn in script.turns if turn.speaker is Speaker.AGENT]
    assert [(turn.said_ms, turn.heard_ms) for turn in turns] == [(501, 1), (20, 20)]
