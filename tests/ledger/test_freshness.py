"""What looks at a replica's files mean, with time as an argument."""

import pytest

from app.ledger.freshness import LOST_S, STUCK_S, Freshness, Look, Treatment

WHOLE = frozenset({"", "-wal", "-shm", "-client_wal_index"})


def look(beat_ms: int | None, frame: bytes = b"1") -> Look:
    return Look(WHOLE, frame, beat_ms)


@pytest.fixture
def freshness() -> Freshness:
    """Of a replica that was in step at 100.0, with beat 7 and frame 1."""
    freshness = Freshness()
    freshness.connected(100.0)
    assert freshness.judge(look(7), 7, 100.0) == (Treatment.KEEP, "")
    return freshness


def test_newest_beat_is_shown_and_the_replica_kept(freshness: Freshness) -> None:
    assert freshness.judge(look(8), 8, 200.0) == (Treatment.KEEP, "")


def test_beat_arrives_before_its_acknowledgement_and_the_replica_is_kept(freshness: Freshness) -> None:
    assert freshness.judge(look(8), 7, 200.0) == (Treatment.KEEP, "")


def test_primary_is_down_and_the_replica_is_not_blamed(freshness: Freshness) -> None:
    assert freshness.judge(look(7), 7, 100.0 + 10 * LOST_S) == (Treatment.KEEP, "")


def test_nothing_is_acknowledged_yet_and_the_replica_is_not_blamed() -> None:
    freshness = Freshness()
    freshness.connected(100.0)
    assert freshness.judge(look(None), None, 100.0 + 10 * LOST_S) == (Treatment.KEEP, "")


def test_primary_goes_down_with_its_last_beat_and_no_replica_is_blamed(freshness: Freshness) -> None:
    freshness.judge(look(7), 8, 100.1)
    assert freshness.judge(look(7), 8, 100.0 + 10 * LOST_S) == (Treatment.KEEP, "")


def test_beat_is_missing_for_a_moment_and_the_replica_has_time(freshness: Freshness) -> None:
    freshness.judge(look(7), 8, 100.1)
    assert freshness.judge(look(7), 9, 100.0 + STUCK_S - 0.1) == (Treatment.KEEP, "")


def test_beat_stays_missing_and_the_child_is_restarted(freshness: Freshness) -> None:
    freshness.judge(look(7), 8, 100.1)
    treatment, why = freshness.judge(look(7), 9, 100.0 + STUCK_S)
    assert (treatment, why) == (Treatment.RESTART, "behind the primary for 15 s and nothing arrives")


def restarted_at_200(freshness: Freshness) -> None:
    freshness.judge(look(7), 8, 100.1)
    assert freshness.judge(look(7), 9, 100.0 + STUCK_S)[0] is Treatment.RESTART
    freshness.connected(200.0)


def test_restart_does_not_help_and_the_file_is_made_anew(freshness: Freshness) -> None:
    restarted_at_200(freshness)
    freshness.judge(look(7), 10, 200.1)
    assert freshness.judge(look(7), 11, 200.0 + STUCK_S - 0.1) == (Treatment.KEEP, "")
    assert freshness.judge(look(7), 11, 200.0 + STUCK_S)[0] is Treatment.REBUILD


def test_restart_helps_and_the_next_trouble_begins_with_a_restart_again(freshness: Freshness) -> None:
    restarted_at_200(freshness)
    assert freshness.judge(look(10), 10, 201.0) == (Treatment.KEEP, "")
    freshness.judge(look(10), 11, 201.1)
    assert freshness.judge(look(10), 12, 201.0 + STUCK_S)[0] is Treatment.RESTART


def test_first_download_takes_minutes_and_is_left_alone() -> None:
    freshness = Freshness()
    freshness.connected(0.0)
    verdicts = [freshness.judge(look(None, b"%d" % s), s + 1, float(s))[0] for s in range(0, int(LOST_S), 10)]
    assert set(verdicts) == {Treatment.KEEP}


def test_download_stops_and_the_child_is_restarted() -> None:
    freshness = Freshness()
    freshness.connected(0.0)
    assert freshness.judge(look(None, b"2"), 1, 100.0) == (Treatment.KEEP, "")
    assert freshness.judge(look(None, b"2"), 2, 100.0 + STUCK_S)[0] is Treatment.RESTART


def test_data_arrives_for_ever_but_no_beat_and_the_file_is_made_anew(freshness: Freshness) -> None:
    freshness.judge(look(None, b"2"), 8, 100.1)
    treatment, why = freshness.judge(look(None, b"3"), 9, 100.0 + LOST_S)
    assert (treatment, why) == (Treatment.REBUILD, "behind the primary for 900 s although data arrives")


@pytest.mark.parametrize("part", sorted(WHOLE))
def test_part_of_the_file_vanishes_and_it_is_made_anew(freshness: Freshness, part: str) -> None:
    treatment, why = freshness.judge(Look(WHOLE - {part}, b"1", 7), 7, 101.0)
    assert (treatment, why) == (Treatment.REBUILD, f"somebody removed replica.db{part}")


def test_part_that_a_new_child_has_not_made_yet_is_not_missed(freshness: Freshness) -> None:
    freshness.connected(101.0)
    assert freshness.judge(Look(frozenset({""}), b"1", 7), 7, 101.0) == (Treatment.KEEP, "")


def test_file_is_damaged_and_made_anew_at_once(freshness: Freshness) -> None:
    damaged = Look(WHOLE, b"1", damage="database disk image is malformed")
    assert freshness.judge(damaged, 7, 100.1) == (Treatment.REBUILD, "database disk image is malformed")
