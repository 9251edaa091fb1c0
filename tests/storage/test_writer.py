"""The writer's thread, for those who ask it something. What it writes: test_local.py and test_spool.py."""

import asyncio
import gc
import threading
from pathlib import Path

import pytest

from app.ledger.local import LocalLedger
from app.storage.database import Database, DatabaseError

pytestmark = pytest.mark.anyio

WAIT_S = 10.0


async def test_question_that_is_given_up_and_then_fails_leaves_no_complaint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = await LocalLedger.open(tmp_path / "ledger.db")
    begun, go_on = threading.Event(), threading.Event()

    def fail(_: Database) -> None:
        begun.set()
        assert go_on.wait(WAIT_S)
        raise DatabaseError("disk I/O error")

    question = asyncio.create_task(ledger.ask(fail))
    assert await asyncio.to_thread(begun.wait, WAIT_S)
    question.cancel()
    await asyncio.wait([question])
    go_on.set()
    await ledger.close()
    del question
    gc.collect()
    assert caplog.messages == []
