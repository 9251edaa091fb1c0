"""Twilio's playout buffer: what is heard when, and when marks come back. Times are arguments, nothing waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sim.phone.playout import BYTES_PER_S, CAPACITY_BYTES, Echo, Played, PlayoutBuffer, Segment

T0 = 1000.0


def ms(count: float) -> float:
    return count / 1000


def audio(count_ms: int, value: int = 0x40) -> bytes:
    return bytes([value]) * (count_ms * 8)


def test_mark_is_due_when_the_bytes_before_it_were_played() -> None:
    buffer = PlayoutBuffer()
    buffer.append(audio(100), T0)
    buffer.mark("a", T0)
    assert buffer.next_due() == T0 + ms(100)
    assert buffer.due(T0 + ms(99)) == []
    assert buffer.due(T0 + ms(100)) == [Echo("a", 800, heard=True)]
    assert buffer.due(T0 + ms(200)) == []


def test_mark_in_an_empty_buffer_is_due_at_once() -> None:
    buffer = PlayoutBuffer()
    buffer.mark("a", T0)
    assert buffer.next_due() == T0
    assert buffer.due(T0) == [Echo("a", 0, heard=True)]


def test_mark_after_all_was_played_is_due_at_once() -> None:
    buffer = PlayoutBuffer()
    buffer.append(audio(100), T0)
    buffer.mark("a", T0 + 5)
    assert buffer.due(T0 + 5) == [Echo("a", 800, heard=True)]


def test_underrun_stops_the_clock_until_the_next_bytes() -> None:
    buffer = PlayoutBuffer()
    buffer.append(audio(100), T0)
    buffer.append(audio(100), T0 + 1)
    buffer.mark("a", T0 + 1)
    assert buffer.next_due() == pytest.approx(T0 + 1 + ms(100))
    buffer.due(T0 + 2)
    assert buffer.segments == [Segment(T0, 0, 800), Segment(T0 + 1, 800, 1600)]


def test_bytes_that_come_in_time_are_played_without_a_break() -> None:
    buffer = PlayoutBuffer()
    buffer.append(audio(100), T0)
    buffer.append(audio(100), T0 + ms(99))
    buffer.due(T0 + 1)
    assert buffer.segments == [Segment(T0, 0, 1600)]


def test_clear_discards_what_was_not_played_and_says_how_much() -> None:
    buffer = PlayoutBuffer()
    buffer.append(audio(100), T0)
    cleared = buffer.clear(T0 + ms(30))
    assert (cleared.played_to, cleared.discarded_bytes) == (240, 560)
    assert buffer.heard_bytes(0, 800, T0 + 1) == 240


def test_clear_returns_pending_marks_in_order_and_tells_heard_from_lost() -> None:
    buffer = PlayoutBuffer()
    buffer.append(audio(20), T0)
    buffer.mark("heard", T0)
    buffer.append(audio(20), T0)
    buffer.mark("gone", T0)
    buffer.mark("gone too", T0)
    cleared = buffer.clear(T0 + ms(25))
    assert cleared.echoes == [
        Echo("heard", 160, heard=True),
        Echo("gone", 320, heard=False),
        Echo("gone too", 320, heard=False),
    ]
    assert buffer.due(T0 + 1) == []
    assert buffer.next_due() is None


def test_clear_of_an_empty_buffer_does_nothing() -> None:
    cleared = PlayoutBuffer().clear(T0)
    assert (cleared.played_to, cleared.discarded_bytes, cleared.echoes) == (0, 0, [])


def test_audio_after_a_clear_plays_at_once_and_continues_the_positions() -> None:
    buffer = PlayoutBuffer()
    buffer.append(audio(100), T0)
    buffer.clear(T0 + ms(30))
    buffer.append(audio(10), T0 + ms(40))
    buffer.mark("b", T0 + ms(40))
    assert buffer.next_due() == pytest.approx(T0 + ms(50))
    assert buffer.due(T0 + 1) == [Echo("b", 880, heard=True)]
    assert buffer.heard_bytes(800, 880, T0 + 1) == 80


def test_full_buffer_discards_only_what_does_not_fit() -> None:
    buffer = PlayoutBuffer(capacity_bytes=100)
    assert buffer.append(bytes(60), T0) == 0
    assert buffer.append(bytes(60), T0) == 20
    assert buffer.append(bytes(60), T0) == 60
    assert buffer.appended == 100


def test_capacity_is_ten_minutes() -> None:
    assert CAPACITY_BYTES == 600 * BYTES_PER_S


def test_played_audio_is_handed_over_once_with_its_time() -> None:
    buffer = PlayoutBuffer()
    buffer.append(audio(20, 1) + audio(20, 2), T0)
    assert buffer.take_played(T0 + ms(20)) == [Played(T0, audio(20, 1))]
    assert buffer.take_played(T0 + ms(40)) == [Played(T0 + ms(20), audio(20, 2))]
    assert buffer.take_played(T0 + ms(60)) == []


def test_time_that_goes_back_is_refused() -> None:
    buffer = PlayoutBuffer()
    buffer.append(audio(20), T0)
    with pytest.raises(AssertionError, match="time went back"):
        buffer.due(T0 - 1)


# Whatever the application does, in whatever pieces

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "mark", "clear", "look"]),
        st.integers(0, 400),  # bytes
        st.integers(0, 60),  # ms until the step
    ),
    max_size=40,
)


@given(STEPS)
def test_every_mark_comes_back_once_and_in_order(steps: list[tuple[str, int, int]]) -> None:
    buffer, sent, back, now = PlayoutBuffer(), 0, list[str](), T0
    for kind, count, wait_ms in steps:
        now += ms(wait_ms)
        match kind:
            case "append":
                buffer.append(bytes(count), now)
            case "mark":
                buffer.mark(str(sent), now)
                sent += 1
            case "clear":
                back += [echo.name for echo in buffer.clear(now).echoes]
            case _:
                back += [echo.name for echo in buffer.due(now)]
    back += [echo.name for echo in buffer.due(now + 3600)]
    assert back == [str(n) for n in range(sent)]


@given(STEPS)
def test_everything_appended_is_heard_or_discarded_and_nothing_twice(steps: list[tuple[str, int, int]]) -> None:
    buffer, discarded, played, now = PlayoutBuffer(), 0, 0, T0
    for kind, count, wait_ms in steps:
        now += ms(wait_ms)
        match kind:
            case "append":
                buffer.append(bytes(count), now)
            case "clear":
                discarded += buffer.clear(now).discarded_bytes
            case _:
                played += sum(len(piece.audio) for piece in buffer.take_played(now))
        assert played + discarded <= buffer.appended
    played += sum(len(piece.audio) for piece in buffer.take_played(now + 3600))
    assert played == buffer.heard_bytes(0, buffer.appended, now + 3600)
    assert played + discarded == buffer.appended


@given(STEPS)
def test_no_faster_than_eight_bytes_a_millisecond(steps: list[tuple[str, int, int]]) -> None:
    buffer, now = PlayoutBuffer(), T0
    for kind, count, wait_ms in steps:
        now += ms(wait_ms)
        if kind == "clear":
            buffer.clear(now)
        else:
            buffer.append(bytes(count), now)
        heard = buffer.heard_bytes(0, buffer.appended, now)
        assert heard <= (now - T0) * BYTES_PER_S + 1


@given(st.binary(min_size=1, max_size=2000), st.lists(st.integers(1, 300)), st.integers(0, 300))
def test_any_split_of_the_same_bytes_is_heard_alike(data: bytes, sizes: list[int], cleared_at_ms: int) -> None:
    whole, pieces = PlayoutBuffer(), PlayoutBuffer()
    whole.append(data, T0)
    rest = data
    for size in sizes:
        pieces.append(rest[:size], T0)
        rest = rest[size:]
    pieces.append(rest, T0)
    assert whole.clear(T0 + ms(cleared_at_ms)) == pieces.clear(T0 + ms(cleared_at_ms))
    assert whole.segments == pieces.segments
    assert whole.take_played(T0 + 1) == pieces.take_played(T0 + 1)


@given(st.binary(min_size=1, max_size=2000), st.lists(st.integers(1, 40), max_size=30))
def test_looking_more_often_changes_nothing(data: bytes, looks_ms: list[int]) -> None:
    seldom, often = PlayoutBuffer(), PlayoutBuffer()
    now, heard = T0, b""
    for buffer in (seldom, often):
        buffer.append(data, T0)
    for look_ms in looks_ms:
        now += ms(look_ms)
        heard += b"".join(piece.audio for piece in often.take_played(now))
    assert heard == b"".join(piece.audio for piece in seldom.take_played(now))
    assert often.segments == seldom.segments


@given(STEPS)
def test_a_mark_is_due_exactly_when_announced(steps: list[tuple[str, int, int]]) -> None:
    """The player sleeps until `next_due`: a mark not yet due then would make it spin or sleep on."""
    buffer, now = PlayoutBuffer(), T0 + 0.1234567
    for _, count, wait_ms in steps:
        now += ms(wait_ms)
        buffer.append(bytes(count), now)
        buffer.mark("m", now)
    due = buffer.next_due()
    assert due is None or buffer.due(due) != []
