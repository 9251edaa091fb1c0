"""Servers for the ledger's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.nobody import nobody
from tests.ledger.sqld import Sqld


@pytest.fixture
def sqld(tmp_path: Path) -> Iterator[Sqld]:
    """A running primary with an empty database."""
    with Sqld(tmp_path / "sqld") as server:
        yield server


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """The whole test, as somebody who is not root."""
    with nobody():
        yield
