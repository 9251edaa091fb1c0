"""What a client has played that plays in real time what it gets."""

from app.sim.realtime.playback import Playback


def test_nothing_sent_is_nothing_cut() -> None:
    assert Playback().cut(0) == []


def test_item_in_the_middle_of_its_playing_is_cut_there() -> None:
    playback = Playback()
    playback.sent("a", 2000, 100)
    assert playback.cut(1340.9) == [("a", 1240)]


def test_item_played_to_its_end_is_not_cut() -> None:
    playback = Playback()
    playback.sent("a", 500, 0)
    assert playback.cut(500) == []


def test_audio_sent_faster_than_it_plays_waits_its_turn() -> None:
    playback = Playback()
    for _ in range(4):
        playback.sent("a", 500, 0)
    playback.sent("b", 700, 10)
    assert playback.cut(1000) == [("a", 1000), ("b", 0)]


def test_second_item_is_cut_alone_when_the_first_was_played() -> None:
    playback = Playback()
    playback.sent("a", 500, 0)
    playback.sent("b", 500, 0)
    assert playback.cut(800) == [("b", 300)]


def test_gap_in_the_sending_is_no_playing() -> None:
    playback = Playback()
    playback.sent("a", 200, 0)
    playback.sent("a", 1000, 5000)
    assert playback.cut(5100) == [("a", 300)]


def test_items_before_a_gap_are_forgotten() -> None:
    playback = Playback()
    playback.sent("a", 200, 0)
    playback.sent("b", 1000, 5000)
    assert playback.cut(5000) == [("b", 0)]


def test_cut_is_made_once() -> None:
    playback = Playback()
    playback.sent("a", 1000, 0)
    playback.cut(100)
    assert playback.cut(200) == []
    playback.sent("b", 1000, 300)
    assert playback.cut(400) == [("b", 100)]
