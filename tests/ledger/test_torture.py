"""kill -9 of a server under load, over and over, with a link and a primary that fail too."""

from pathlib import Path

import pytest

from tests.ledger.torture import torture

ROUNDS = 6


@pytest.mark.anyio
@pytest.mark.long
async def test_killed_servers_lose_and_double_no_record(tmp_path: Path) -> None:
    verdict = await torture(tmp_path, ROUNDS, seed=1)
    assert verdict.good, verdict
