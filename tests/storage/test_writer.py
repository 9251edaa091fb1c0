"""The writer's thread, for those who ask it something. What it writes: test_local.py and test_spool.py."""

import asyncio
import gc
import threading
from pathlib import Path

import pytest

from app.storage.database import Database, DatabaseError, open_for_writing
from app.storage.writer import Writer

pytestmark = pytest.mark.anyio

WAIT_S = 10.0


async def test_question_that_is_given_up_and_then_fails_leaves_no_complaint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer[str](tmp_path / "words.db", open_for_writing, lambda _database, _words: [], 10)
    await writer.start()
    begun, go_on = threading.Event(), threading.Event()

    def fail(_: Database) -> None:
        begun.set()
        assert go_on.wait(WAIT_S)
        raise DatabaseError("disk I/O error")

    question = asyncio.create_task(writer.ask(fail))
    assert await asyncio.to_thread(begun.wait, WAIT_S)
    question.cancel()
    await asyncio.wait([question])
    go_on.set()
    await writer.close()
    del question
    gc.collect()
    assert caplog.messages == []
