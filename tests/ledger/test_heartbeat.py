"""This machine's sign of life on the primary."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from app.ledger.heartbeat import ALARM_EVERY_S, EVERY_S, FORGET_MS, Heartbeat, pause_s
from app.storage.loops import Bug
from app.storage.primary import Alarm, Outcome, Poison, Primary, Retry, Stored
from app.storage.statement import Statement
from tests.ledger.replicas import migrated
from tests.ledger.samples import NOW_MS
from tests.ledger.sqld import Sqld, token

pytestmark = pytest.mark.anyio

ROWS = "SELECT machine, region, at_ms FROM heartbeats ORDER BY machine"


class Answers:
    """A primary that answers as told, and then no more."""

    def __init__(self, *outcomes: Outcome | Exception) -> None:
        self._outcomes = list(outcomes)
        self.batches: list[Sequence[Statement]] = []
        self.exhausted = asyncio.Event()

    async def batch(self, steps: Sequence[Statement]) -> Outcome:
        self.batches.append(steps)
        if not self._outcomes:
            self.exhausted.set()
            await asyncio.Event().wait()
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def clock() -> Iterator[int]:
    """Five seconds pass between two looks at it."""
    return iter(range(NOW_MS, NOW_MS + 1_000_000, 5_000))


async def test_beats_renew_one_row_for_each_machine(sqld: Sqld, tmp_path: Path, clock: Iterator[int]) -> None:
    migrated(sqld, tmp_path)
    async with Primary(sqld.url, token) as primary:
        fra = Heartbeat(primary, "m1", "fra", clock_ms=clock.__next__)
        nrt = Heartbeat(primary, "m2", "nrt", clock_ms=clock.__next__)
        assert [await fra.beat(), await nrt.beat(), await fra.beat()] == [Stored()] * 3
    assert sqld.query(ROWS) == [("m1", "fra", NOW_MS + 10_000), ("m2", "nrt", NOW_MS + 5_000)]
    assert (fra.acked_ms, nrt.acked_ms) == (NOW_MS + 10_000, NOW_MS + 5_000)


async def test_first_beat_forgets_machines_that_are_long_gone(sqld: Sqld, tmp_path: Path) -> None:
    migrated(sqld, tmp_path)
    sqld.execute(f"INSERT INTO heartbeats VALUES ('gone', 'iad', {NOW_MS - FORGET_MS - 1})")
    sqld.execute(f"INSERT INTO heartbeats VALUES ('silent', 'iad', {NOW_MS - FORGET_MS})")
    async with Primary(sqld.url, token) as primary:
        await Heartbeat(primary, "m1", "fra", clock_ms=lambda: NOW_MS).beat()
    assert [machine for machine, *_ in sqld.query(ROWS)] == ["m1", "silent"]


@pytest.mark.parametrize("outcome", [Retry("no answer"), Alarm("401"), Poison(0, "CHECK")])
async def test_beat_without_success_is_not_taken_for_one(outcome: Outcome, clock: Iterator[int]) -> None:
    heartbeat = Heartbeat(Answers(Stored(), outcome), "m1", "fra", clock_ms=clock.__next__)
    await heartbeat.beat()
    assert await heartbeat.beat() == outcome
    assert heartbeat.acked_ms == NOW_MS


async def test_why_a_beat_did_not_arrive_is_told_until_one_does(clock: Iterator[int]) -> None:
    heart = Heartbeat(Answers(Retry("no answer within 10 s"), Stored()), "m1", "fra", clock_ms=clock.__next__)
    await heart.beat()
    assert heart.trouble == "no answer within 10 s"
    await heart.beat()
    assert heart.trouble is None


async def test_heart_goes_on_after_failures_of_any_kind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clock: Iterator[int]
) -> None:
    monkeypatch.setattr("app.ledger.heartbeat.EVERY_S", 0.0)
    answers = Answers(Retry("no answer"), RuntimeError("a bug"), Stored())
    heartbeat = Heartbeat(answers, "m1", "fra", clock_ms=clock.__next__)
    heartbeat.start()
    async with asyncio.timeout(10):
        await answers.exhausted.wait()
    assert heartbeat.acked_ms == NOW_MS + 10_000
    assert "loop_step_failed" in caplog.messages
    await heartbeat.stop()


async def test_stop_does_not_wait_for_a_beat_under_way(clock: Iterator[int]) -> None:
    answers = Answers()
    heartbeat = Heartbeat(answers, "m1", "fra", clock_ms=clock.__next__)
    heartbeat.start()
    await answers.exhausted.wait()
    async with asyncio.timeout(10):
        await heartbeat.stop()
    assert heartbeat.acked_ms is None


@pytest.mark.parametrize(
    ("outcome", "expected_s"),
    [
        (Stored(), EVERY_S),
        (Retry("no answer"), EVERY_S),
        (Alarm("no such table", schema=True), EVERY_S),
        (Alarm("401"), ALARM_EVERY_S),
        (Bug(KeyError()), EVERY_S),
    ],
)
def test_primary_that_refuses_us_is_asked_less_often(outcome: Outcome | Bug, expected_s: float) -> None:
    assert pause_s(outcome) == expected_s
