"""kill -9 of a recording server, over and over, with a link and a primary that fail too."""

from pathlib import Path

from tests.ledger.torture import torture

ROUNDS = 8


def test_killed_servers_lose_and_double_no_recorded_turn(tmp_path: Path) -> None:
    verdict = torture(tmp_path, ROUNDS, seed=1)
    assert verdict.recorded > ROUNDS
    assert (verdict.lost, verdict.doubled) == (0, 0)
