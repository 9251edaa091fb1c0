"""Runs `nearcall` in the process of a test, as its console script does."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from app.cli.main import app


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Nearcall = Callable[..., Ran]


def run_nearcall(*arguments: str, **environ: str) -> Ran:
    """What became of `nearcall ARGUMENTS` with these settings. A bug of ours is raised."""
    result = CliRunner().invoke(app, arguments, env=environ)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)
