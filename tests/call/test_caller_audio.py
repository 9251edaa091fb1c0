"""The caller's audio on its way to the backend: order, holes, stalls (twilio.md 1.2, "Gaps")."""

import pytest

from app.call import limits
from app.call.events import Command, PassOn, PassSilence
from tests.call.script import Script, answered, frame, only, talking


def flowing() -> Script:
    """Frames at 100 and 120 ms of the media clock have come; the next is due at 140, at 1.04 s."""
    script = answered()
    script.at(1.0, frame(100))
    script.at(1.02, frame(120))
    return script


def silence_ms(commands: list[Command]) -> int:
    """How much silence was made."""
    return sum(command.ms for command in only(PassSilence, commands))


@pytest.mark.parametrize("timestamp_ms", [138, 139, 140, 141, 142, 80, 200])
def test_frame_within_the_jitter_of_the_media_clock_passes_straight(timestamp_ms: int) -> None:
    assert flowing().call.passes(frame(timestamp_ms), 1.04)


@pytest.mark.parametrize("timestamp_ms", [201, 300, 5_000, 79, 0])
def test_frame_beyond_the_jitter_does_not_pass_straight_through(timestamp_ms: int) -> None:
    assert not flowing().call.passes(frame(timestamp_ms), 1.04)


def test_first_frame_of_all_has_no_hole_before_it() -> None:
    assert talking().at(1.0, frame(171)) == [PassOn("f171")]


def test_hole_in_the_media_clock_becomes_silence_of_its_length() -> None:
    assert flowing().at(1.04, frame(640)) == [PassSilence(500), PassOn("f640")]


def test_hole_is_filled_up_to_its_bound() -> None:
    commands = flowing().at(1.04, frame(140 + 60_000))
    assert commands == [PassSilence(limits.GAP_FILL_MAX_MS), PassOn("f60140")]


def test_frames_flow_on_after_a_hole_without_more_silence() -> None:
    script = flowing()
    script.at(1.04, frame(640))
    assert script.call.passes(frame(660), 1.06)


def test_no_frame_comes_and_silence_is_made_by_the_clock() -> None:
    script = flowing()
    made = silence_ms(script.until(1.02 + limits.STALL_FILL_AFTER_S + 1.0))
    assert made == pytest.approx(1_000, abs=limits.STALL_FILL_STEP_MS)


def test_nothing_is_made_up_before_the_stall_is_one() -> None:
    assert silence_ms(flowing().until(1.02 + limits.STALL_FILL_AFTER_S - 0.01)) == 0


def test_stall_is_filled_up_to_its_bound() -> None:
    assert silence_ms(flowing().until(40.0)) == limits.GAP_FILL_MAX_MS


def test_frames_come_late_after_a_stall_and_the_hole_is_not_filled_twice() -> None:
    script = flowing()
    made = silence_ms(script.until(3.0))
    commands = script.at(3.0, frame(140 + 2_000))
    assert made + silence_ms(commands) == pytest.approx(2_000, abs=limits.GAP_MIN_MS)
    assert commands[-1] == PassOn("f2140")


def test_network_stalled_and_the_late_frames_are_all_passed_on() -> None:
    script = flowing()
    script.until(3.0)
    commands = script.at(3.0, *(frame(140 + 20 * n) for n in range(50)))
    assert len(only(PassOn, commands)) == 50
    assert silence_ms(commands) == 0


def test_second_stall_is_filled_anew() -> None:
    script = flowing()
    script.until(3.0)
    script.at(3.0, frame(2_120))
    assert silence_ms(script.until(3.0 + limits.STALL_FILL_AFTER_S + 0.5)) >= 400


def test_frames_that_passed_straight_through_put_the_stall_off() -> None:
    script = flowing()
    script.until(1.5)
    assert script.call.passes(frame(140), 1.5)
    assert silence_ms(script.until(1.5 + limits.STALL_FILL_AFTER_S - 0.05)) == 0


@pytest.mark.parametrize("timestamp_ms", [79, 60, 0, -860, -(10**12)])
def test_media_clock_jumps_back_and_no_frame_is_lost_and_no_silence_made(timestamp_ms: int) -> None:
    script = flowing()
    commands = script.at(1.04, *(frame(timestamp_ms + 20 * n) for n in range(100)))
    assert commands == [PassOn(f"f{timestamp_ms + 20 * n}") for n in range(100)]
    assert script.ended is None


def test_frames_pass_straight_through_again_after_a_jump_back() -> None:
    script = flowing()
    script.at(1.04, frame(0))
    assert script.call.passes(frame(20), 1.06)


def test_single_frame_of_another_clock_makes_no_silence() -> None:
    script = flowing()
    commands = script.at(1.04, frame(140), frame(-840), frame(180), frame(-800), frame(220))
    assert commands == [PassOn(f"f{at}") for at in (140, -840, 180, -800, 220)]


def test_hole_after_a_jump_back_is_a_hole() -> None:
    script = flowing()
    script.at(1.04, frame(-10_000))
    assert script.at(1.5, frame(-9_000)) == [PassSilence(980), PassOn("f-9000")]


def test_media_clock_that_jumps_back_in_a_stall_makes_no_more_silence() -> None:
    script = flowing()
    made = silence_ms(script.until(3.0))
    assert made > 0
    assert silence_ms(script.at(3.0, frame(0), frame(20))) == 0


def test_frame_of_an_odd_length_keeps_the_media_clock() -> None:
    script = flowing()
    assert script.call.passes(frame(140, 60), 1.04)
    assert script.call.passes(frame(200), 1.1)


def test_frame_takes_the_slow_way_and_reaches_the_backend_the_same() -> None:
    by_event, straight = flowing(), flowing()
    assert straight.call.passes(frame(140), 1.04)
    assert by_event.at(1.04, frame(140)) == [PassOn("f140")]
    assert by_event.at(1.06, frame(700)) == straight.at(1.06, frame(700))
