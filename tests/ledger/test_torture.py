"""Servers under load that are killed and stopped while link, primary or disk fails."""

from pathlib import Path

import pytest

from tests.ledger.torture import Fault, torture, torture_by_fault

pytestmark = [pytest.mark.anyio, pytest.mark.long]

ROUNDS = 6


async def test_killed_servers_lose_and_double_no_record(tmp_path: Path) -> None:
    verdict = await torture(tmp_path, ROUNDS, seed=1)
    assert verdict.good, verdict


@pytest.mark.parametrize("stopped", [False, True], ids=["killed", "stopped"])
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
async def test_server_beside_a_fault_loses_no_record_that_it_does_not_own_up_to(
    tmp_path: Path, fault: Fault, stopped: bool
) -> None:
    outcome = await torture_by_fault(tmp_path, fault, stopped=stopped, seed=1)
    assert outcome.good, outcome
