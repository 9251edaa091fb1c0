"""A `fly` and a `nearcall` on the PATH and an edge before them: all that scripts/rollout sees of the outside."""

import asyncio
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scripts.rolloutlib.fly_toml import REGIONS
from scripts.rolloutlib.regions import Patience
from scripts.rolloutlib.rollout import Plan, roll_out
from scripts.rolloutlib.shell import Shell, StepError
from tests.scripts.edge import Edge

HERE = Path(__file__).parent
IMAGE = "registry.fly.io/nearcall:deployment-2"


def short(arguments: list[str]) -> str:
    """A command of Fly's by the words that tell it from others."""
    if arguments[0] == "deploy":
        return "deploy --image" if "--image" in arguments else "deploy"
    return " ".join(arguments[:1] if arguments[0] in {"status", "releases"} else arguments[:2])


@dataclass(slots=True)
class Bench:
    """A repository to roll out, a stand-in for all that is outside, and what was said and told."""

    directory: Path
    edge: Edge
    said: list[str] = field(default_factory=list)

    @property
    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "state.json").read_text()))

    def set(self, **changes: Any) -> None:
        """Change what Fly is like."""
        (self.directory / "state.json").write_text(json.dumps(self.state | changes))

    def reports(self, **reports: Any) -> None:
        """What test calls end in, by region."""
        kept = {"tenants": [], "tenants_status": 0}
        (self.directory / "reports.json").write_text(json.dumps(kept | reports))

    def tenants(self, *lines: dict[str, Any] | str, status: int = 0) -> None:
        """Set what `nearcall tenants list` prints, and its exit status. Every test call goes well."""
        self.reports(tenants=lines, tenants_status=status)

    @property
    def told(self) -> list[str]:
        """The commands that fly was given, shortened."""
        return [short(arguments) for arguments in self.state["told"]]

    def lines(self, *arguments: str) -> list[str]:
        """The whole commands that begin like this."""
        told = [" ".join(each) for each in self.state["told"]]
        return [line for line in told if line.startswith(" ".join(arguments))]

    def plan(self, **changes: Any) -> Plan:
        values = {
            "app": None,
            "regions": REGIONS,
            "skip_calls": False,
            "url": self.edge.url,
            "tenants_here": True,
            "nearcall": str(self.directory / "bin" / "nearcall"),
            "patience": Patience(limit_s=10.0, every_s=0.01),
            **changes,
        }
        return Plan(**values)

    async def roll_out(self, *, sure: bool = True, dry_run: bool = False, **changes: Any) -> None:
        shell = Shell(self.said.append, dry_run=dry_run)
        async with asyncio.timeout(20):
            await roll_out(self.plan(**changes), shell, self.directory, lambda _: sure)

    async def fails(self, **changes: Any) -> str:
        """Why a roll-out failed."""
        with pytest.raises(StepError) as failed:
            await self.roll_out(**changes)
        return str(failed.value)


def put_on_path(directory: Path, name: str, module: str, state: Path) -> None:
    """An executable that runs one of the stand-ins. They need no packages, and start in half the time without."""
    script = directory / name
    run = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import {module}; "
        f"sys.exit({module}.main(sys.argv[1], sys.argv[2:]))"
    )
    line = shlex.join([sys.executable, "-ISc", run, str(state)])
    script.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
    script.chmod(0o755)
