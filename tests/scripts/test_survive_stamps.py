"""The speech of scripts/survive: it says what it is, whole, in pieces, and cut anywhere."""

from scripts.survivelib.stamps import (
    FRAME_BYTES,
    Ear,
    Stamp,
    Voice,
    answer_words,
    speech,
    wording_of,
    words_of,
)

CALLER = speech(Voice.CALLER, 300, 12, 0, range(45))
SILENCE = b"\xff" * 800


def test_every_frame_is_read_with_the_time_at_which_it_is_heard() -> None:
    heard = Ear().hear(10.0, SILENCE + CALLER)
    assert [stamp for _, stamp in heard] == [Stamp(Voice.CALLER, 300, 12, 0, frame) for frame in range(45)]
    assert [round(at, 6) for at, _ in heard] == [round(10.1 + frame * 0.02, 6) for frame in range(45)]


def test_frames_are_read_whatever_the_pieces_are() -> None:
    for size in (1, 7, 160, 333):
        ear = Ear()
        found = []
        for start in range(0, len(CALLER), size):
            found += ear.hear(start / 8_000, CALLER[start : start + size])
        assert [stamp.frame for _, stamp in found] == list(range(45)), size
        assert [round(at, 6) for at, _ in found] == [round(frame * 0.02, 6) for frame in range(45)], size


def test_frame_that_is_cut_off_is_not_taken_for_another() -> None:
    cut = CALLER[: 10 * FRAME_BYTES + 9] + CALLER[20 * FRAME_BYTES :]
    assert [stamp.frame for _, stamp in Ear().hear(0, cut)] == [*range(10), *range(20, 45)]


def test_transcript_names_what_was_said_and_what_was_said_twice() -> None:
    assert words_of(SILENCE + CALLER) == "c300.12f00-44"
    twice = words_of(CALLER[: 20 * FRAME_BYTES] + CALLER[10 * FRAME_BYTES :])
    assert twice == "c300.12f00-19 c300.12f10-44"
    assert wording_of(twice).caller[300, 12].count(15) == 2


def test_words_are_read_from_any_text() -> None:
    text = f'They have heard you up to these words: "{answer_words(4, range(3))}".'
    assert wording_of(text).agent == {4: (0, 1, 2)}
    assert wording_of("Hello.").agent == {}
