"""What the tests of scripts/rollout share."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scripts.rolloutlib.fly_toml import LEDGER_SECRETS, REGIONS, SECRETS
from tests.scripts.edge import edge, healthy
from tests.scripts.fly_stand_in import machine
from tests.scripts.outside import IMAGE, Bench, put_on_path


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Six Machines run release 2; all is well."""
    (tmp_path / "bin").mkdir()
    put_on_path(tmp_path / "bin", "fly", "fly_stand_in", tmp_path / "state.json")
    put_on_path(tmp_path / "bin", "nearcall", "nearcall_stand_in", tmp_path / "reports.json")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    state = {
        "told": [],
        "fail": {},
        "halfway": [],
        "hang": [],
        "batches": [],
        "name": "name",
        "config": 'app = "what-ran-before"',
        "secrets": [*SECRETS, "OPENAI_API_KEY", *LEDGER_SECRETS],
        "version": 2,
        "machines": [machine(region, "v2") for region in REGIONS],
        "releases": [
            {"Version": 1, "Status": "complete", "ImageRef": "registry.fly.io/nearcall:deployment-1"},
            {"Version": 3, "Status": "failed", "ImageRef": "registry.fly.io/nearcall:deployment-3"},
            {"Version": 2, "Status": "complete", "ImageRef": IMAGE},
        ],
        "short_of_capacity": [],
    }
    (tmp_path / "state.json").write_text(json.dumps(state))
    async with edge(answers={region: [healthy(region)] for region in REGIONS}) as listening:
        made = Bench(tmp_path, listening)
        made.reports()
        yield made
