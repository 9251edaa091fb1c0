"""Servers under load that are killed and stopped while link, primary or disk fails."""

import os
from pathlib import Path

import pytest

from tests.ledger.torture import RECORDS_LOST, Fault, torture, torture_by_fault

pytestmark = [pytest.mark.anyio, pytest.mark.long]

DEEP = "CI" in os.environ
"""True in CI, which runs every round and every end of a server. Otherwise these are a fifth of the suite."""
ROUNDS = 6 if DEEP else 3


async def test_killed_servers_lose_and_double_no_record(tmp_path: Path) -> None:
    verdict = await torture(tmp_path, ROUNDS, seed=1)
    assert verdict.good, verdict


@pytest.mark.parametrize(
    ("fault", "stopped"),
    [
        (fault, stopped)
        for fault in Fault
        if fault is not Fault.GONE
        for stopped in fault.ends
        # A server that is stopped does all that a killed one does, and has to own up to its losses as well.
        if DEEP or stopped or fault is Fault.HANGS
    ],
    ids=lambda value: value.value if isinstance(value, Fault) else "stopped" if value else "killed",
)
async def test_server_beside_a_fault_loses_no_record_that_it_does_not_own_up_to(
    tmp_path: Path, fault: Fault, stopped: bool
) -> None:
    outcome = await torture_by_fault(tmp_path, fault, stopped=stopped, seed=1)
    assert outcome.good, outcome


async def test_server_that_loses_records_ends_with_status_3_and_says_how_many(tmp_path: Path) -> None:
    outcome = await torture_by_fault(tmp_path, Fault.GONE, stopped=True, seed=2)
    assert (outcome.status, outcome.told_lost > 0) == (RECORDS_LOST, True)
    assert (
        outcome.last_line
        == f"nearcall: Records of calls were lost: {outcome.told_lost} of zone global. The log says why."
    )
