"""The report of a drain: the next process on the same disk has it, and no fault of the disk matters."""

import logging
from pathlib import Path

import pytest

from app.http.last_drain import FILE, read_last_drain, write_last_drain

pytestmark = pytest.mark.anyio

REPORT = {"calls_left": 0, "moved": 5, "move_failed": 0, "cut_short": 0, "finished_ms": 1_800_000_000_000}


async def test_report_is_there_for_the_next_process(tmp_path: Path) -> None:
    await write_last_drain(tmp_path, REPORT)
    await write_last_drain(tmp_path, REPORT | {"moved": 6})
    assert await read_last_drain(tmp_path) == REPORT | {"moved": 6}


async def test_machine_that_has_never_drained_has_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert await read_last_drain(tmp_path) is None
    assert caplog.messages == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
async def test_report_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert await read_last_drain(tmp_path) is None


async def test_report_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        await write_last_drain(tmp_path / "nowhere", REPORT)
    assert caplog.messages == ["last_drain_not_written"]
