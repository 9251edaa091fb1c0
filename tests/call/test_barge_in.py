"""The caller cuts in: what is thrown away, what the backend is told, what must not come back.

Instants end in half a millisecond where heard milliseconds are floored, so that there is one right answer.
The stories: realtime.md 1.7, 1.8 and 5.1, twilio.md 6.2.
"""

import pytest

from app.call import limits
from app.call.events import (
    AgentAudio,
    AgentAudioEnded,
    AgentText,
    CallerTurnCommitted,
    CancelResponse,
    CreateResponse,
    MarkReturned,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SendAudio,
    SendClear,
    SendMark,
    SpeechStarted,
    SpeechStopped,
    Truncate,
)
from app.call.plan import Abilities
from tests.call.phone_model import Phone
from tests.call.script import SILENT, Script, agent, only, talking, without_records

CALLER = SpeechStarted("u1")
R1 = ResponseStarted("r1")
R1_DONE = ResponseEnded("r1", ResponseStatus.COMPLETED)
R1_CUT = ResponseEnded("r1", ResponseStatus.CANCELLED)


# --- What is cut, and what of it was heard ---------------------------------------------------


def test_interruption_clears_first_and_then_truncates_at_what_was_heard() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    assert without_records(script.at(3.0005, CALLER)) == [SendClear(), Truncate("item_A", 2_000)]


def test_interruption_before_the_first_mark_truncates_by_the_clock() -> None:
    script = talking(one_way_s=0.5)
    script.at(2.0, R1, agent("item_A", 6_000))
    assert script.at(2.0505, CALLER)[:2] == [SendClear(), Truncate("item_A", 50)]


def test_caller_interrupts_at_the_very_first_byte_and_nothing_was_heard() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    assert script.at(1.0, CALLER)[:2] == [SendClear(), Truncate("item_A", 0)]


def test_response_is_long_done_and_its_audio_is_cleared_all_the_same() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000), AgentAudioEnded("r1", "item_A"), R1_DONE)
    assert without_records(script.at(6.0005, CALLER)) == [SendClear(), Truncate("item_A", 5_000)]


def test_second_item_is_playing_and_only_it_is_cut() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 1_000), agent("item_B", 4_000), R1_DONE)
    assert without_records(script.at(3.5005, CALLER)) == [SendClear(), Truncate("item_B", 1_500)]


def test_second_item_waits_behind_the_first_and_none_of_it_was_heard() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 4_000), agent("item_B", 4_000), R1_DONE)
    commands = without_records(script.at(3.0005, CALLER))
    assert commands == [SendClear(), Truncate("item_A", 2_000), Truncate("item_B", 0)]


def test_cut_is_exactly_between_two_items() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 1_000), agent("item_B", 4_000), R1_DONE)
    script.until(2.0001)
    assert without_records(script.at(2.0005, CALLER)) == [SendClear(), Truncate("item_B", 0)]


def test_everything_was_heard_and_nothing_is_truncated() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 1_000), R1_DONE)
    assert Truncate not in {type(command) for command in script.at(4.0, CALLER)}


def test_nothing_was_ever_sent_and_nothing_is_cleared() -> None:
    assert without_records(talking().at(4.0, CALLER)) == []


def test_one_huge_delta_is_cut_where_it_was_heard() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 60_000), R1_DONE)
    assert script.at(31.0005, CALLER)[:2] == [SendClear(), Truncate("item_A", 30_000)]


def test_many_tiny_deltas_are_cut_where_they_were_heard() -> None:
    script = talking()
    script.at(1.0, R1, *[agent("item_A", 5)] * 800)
    assert script.at(3.0005, CALLER)[:2] == [SendClear(), Truncate("item_A", 2_000)]


def test_deltas_stop_coming_and_no_more_is_truncated_than_was_received() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 730))
    assert script.at(9.0, CALLER)[:2] == [SendClear(), Truncate("item_A", 730)]


def test_length_of_an_item_is_no_whole_millisecond_and_is_floored() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 100), AgentAudio("r1", "item_A", "AAAA", 3))
    assert script.at(9.0, CALLER)[1] == Truncate("item_A", 100)


def test_second_interruption_truncates_the_second_reply_only() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0005, CALLER, R1_CUT)
    script.at(3.0, SpeechStopped("u1"), CallerTurnCommitted("u1"), ResponseStarted("r2"))
    script.at(3.5, agent("item_B", 6_000, "r2"))
    assert without_records(script.at(4.0005, SpeechStarted("u2"))) == [SendClear(), Truncate("item_B", 500)]


def test_second_speech_start_after_a_cut_has_nothing_to_clear() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0, CALLER, R1_CUT)
    assert without_records(script.at(2.5, SpeechStarted("u2"))) == []


# --- Who cancels and who cuts ----------------------------------------------------------------


def test_backend_that_cancels_by_itself_is_not_told_to() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0, CALLER)
    script.at(2.0 + limits.CANCEL_WAIT_S / 2, R1_CUT)
    script.until(9.0)
    assert not script.every(CancelResponse)


def test_backend_that_goes_on_while_the_caller_speaks_is_cancelled_once() -> None:
    """Voice Live's plain server_vad may not interrupt (realtime.md 2.2)."""
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0, CALLER)
    script.until(4.0)
    assert script.every(CancelResponse) == [(2.0 + limits.CANCEL_WAIT_S, CancelResponse("r1"))]


def test_response_that_went_on_is_cut_again_when_it_is_over() -> None:
    """What it made between the first cut and its end would count as heard else."""
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0005, CALLER)
    script.at(2.1, agent("item_A", 500), agent("item_B", 500))
    cut_again = script.at(2.5, R1_CUT)
    assert [cut for cut in cut_again if isinstance(cut, Truncate)] == [
        Truncate("item_A", 1_000),
        Truncate("item_B", 0),
    ]


def test_response_that_was_over_before_it_could_be_cancelled_is_cut_again() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0005, CALLER)
    script.at(2.1, agent("item_A", 500))
    assert without_records(script.at(2.2, R1_DONE)) == [Truncate("item_A", 1_000)]
    script.until(9.0)
    assert not script.every(CancelResponse)


def test_response_that_went_on_is_cut_again_after_new_speech() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0005, CALLER)
    script.at(2.1, agent("item_A", 500), SpeechStarted("u2"))
    script.until(2.35)
    assert [cancel for _, cancel in script.every(CancelResponse)] == [CancelResponse("r1")]
    script.at(2.4, agent("item_A", 500), SpeechStarted("u3"))
    assert only(Truncate, script.at(2.8, R1_CUT)) == [Truncate("item_A", 1_000)]
    assert len(script.every(CancelResponse)) == 1


def test_response_begun_during_speech_is_cut_again_when_it_is_over() -> None:
    """Of what it made until it was cancelled nothing was heard."""
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0005, CALLER, R1_CUT)
    script.at(2.1, ResponseStarted("r2"), agent("item_B", 500, "r2"), agent("item_B", 500, "r2"))
    assert only(Truncate, script.at(2.2, ResponseEnded("r2", ResponseStatus.CANCELLED))) == [Truncate("item_B", 0)]


def test_response_that_stalled_goes_on_late_and_is_cut_where_it_stalled() -> None:
    """What came before is played, and not taken back."""
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.until(1.0 + limits.RESPONSE_STALL_S)
    late = script.at(1.5 + limits.RESPONSE_STALL_S, agent("item_A", 500), agent("item_A", 500))
    assert only(Truncate, late) == [Truncate("item_A", 6_000)]


def test_response_to_the_next_turn_is_not_cancelled_in_place_of_the_old() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0, CALLER)
    script.at(2.1, R1_CUT, SpeechStopped("u1"), CallerTurnCommitted("u1"), ResponseStarted("r2"))
    script.until(4.0)
    assert not script.every(CancelResponse)


def test_backend_that_cuts_its_items_itself_is_never_told_what_was_heard() -> None:
    script = Script(abilities=Abilities(truncates=True)).begin()
    script.at(1.0, R1, agent("item_A", 6_000))
    assert without_records(script.at(2.0005, CALLER)) == [SendClear()]
    script.at(2.1, agent("item_A", 500), agent("item_B", 500), R1_CUT)
    script.until(9.0)
    assert not script.every(Truncate)


def test_what_was_heard_is_recorded_when_the_backend_truncates_itself() -> None:
    script = Script(abilities=Abilities(truncates=True)).begin()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0005, CALLER, R1_CUT)
    script.to_the_end()
    assert [turn.heard_ms for turn in script.turns if turn.interrupted] == [1_000]


# --- What must not come back -----------------------------------------------------------------


def test_late_deltas_of_a_cut_item_are_dropped_without_a_word() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 1_000))
    script.at(1.5, CALLER)
    late = script.at(1.52, agent("item_A", 1_000), AgentText("r1", "item_A", "late"), R1_CUT)
    assert without_records(late) == []
    assert not only(SendAudio, script.until(5.0))


def test_late_new_item_of_a_cut_response_is_truncated_at_zero_once() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 1_000))
    script.at(1.5, CALLER)
    assert script.at(1.52, agent("item_B", 400), agent("item_B", 400)) == [Truncate("item_B", 0)]


def test_audio_that_waited_here_is_not_sent_after_the_clear() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 20_000), R1_DONE)
    script.at(2.0, CALLER)
    script.at(3.0, SpeechStopped("u1"))
    assert not only(SendAudio, script.until(20.0))


def test_marks_that_come_back_after_the_clear_do_not_count_as_played() -> None:
    script = talking(one_way_s=0.1)
    script.at(1.0, R1, agent("item_A", 2_000))
    script.at(1.5, CALLER, R1_CUT)
    script.at(1.55, SpeechStopped("u1"), CallerTurnCommitted("u1"), ResponseStarted("r2"))
    script.at(1.56, agent("item_B", 4_000, "r2"))
    script.until(1.75)
    assert script.at(1.8605, SpeechStarted("u2"))[:2] == [SendClear(), Truncate("item_B", 300)]


def test_mark_of_an_earlier_generation_names_itself_and_is_ignored() -> None:
    script = Script(SILENT, Phone(loses_marks=True)).begin()
    (mark, *_) = only(SendMark, script.at(1.0, R1, agent("item_A", 2_000)))
    script.at(1.5, CALLER, R1_CUT)
    script.at(2.0, SpeechStopped("u1"), ResponseStarted("r2"), agent("item_B", 2_000, "r2"))
    script.at(2.0, MarkReturned(mark.name))
    assert script.at(2.1005, SpeechStarted("u2"))[1] == Truncate("item_B", 100)


def test_mark_names_are_unique_in_a_call_and_begin_with_their_generation() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 3_000), R1_DONE)
    script.at(1.5, CALLER)
    script.at(2.0, SpeechStopped("u1"), ResponseStarted("r2"), agent("item_A", 3_000, "r2"))
    script.until(8.0)
    names = [mark.name for _, mark in script.every(SendMark)]
    assert len(names) == len(set(names)) > 5
    assert {name.partition("-")[0] for name in names} == {"0", "1"}


@pytest.mark.parametrize("name", ["", "0-1-99", "9-9-9", "x", "0-1-1"])
def test_unknown_or_repeated_mark_changes_nothing(name: str) -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0, MarkReturned(name))
    assert script.at(3.0005, CALLER)[1] == Truncate("item_A", 2_000)


def test_one_mark_is_lost_and_the_next_one_makes_up_for_it() -> None:
    script = Script(SILENT, Phone(loses_marks=True)).begin()
    _, second, *_ = only(SendMark, script.at(1.0, R1, agent("item_A", 6_000)))
    script.at(1.6, MarkReturned(second.name))
    assert script.at(1.7005, CALLER)[1] == Truncate("item_A", 700)


def test_all_marks_are_lost_and_the_call_goes_on_by_the_clock() -> None:
    script = Script(SILENT, Phone(loses_marks=True)).begin()
    script.at(1.0, R1, agent("item_A", 6_000), R1_DONE)
    script.until(7.0 + limits.MARK_LOST_S + 0.1)
    assert [(turn.heard_ms, turn.interrupted) for turn in script.turns] == [(6_000, False)]


# --- Races with the backend ------------------------------------------------------------------


def test_response_that_begins_during_speech_is_cancelled_by_its_id() -> None:
    script = talking()
    script.at(1.0, CALLER)
    assert script.at(1.1, R1) == [CancelResponse("r1")]


def test_audio_of_a_response_begun_during_speech_is_not_played() -> None:
    script = talking()
    script.at(1.0, CALLER)
    script.at(1.1, R1)
    assert script.at(1.2, agent("item_A", 500)) == [Truncate("item_A", 0)]


def test_cancelled_response_leads_to_no_request_of_ours() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0, CALLER, R1_CUT)
    script.at(3.0, SpeechStopped("u1"), CallerTurnCommitted("u1"))
    script.until(3.4)
    assert not script.every(CreateResponse)


def test_answer_to_the_caller_plays_after_a_cut() -> None:
    script = talking()
    script.at(1.0, R1, agent("item_A", 6_000))
    script.at(2.0, CALLER, R1_CUT)
    script.at(3.0, SpeechStopped("u1"), CallerTurnCommitted("u1"), ResponseStarted("r2"))
    script.at(3.2, agent("item_B", 1_000, "r2"), ResponseEnded("r2", ResponseStatus.COMPLETED))
    script.until(5.0)
    assert script.phone.played_ms("B") == pytest.approx(1_000)
