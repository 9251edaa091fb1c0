"""What the backend is told of an interrupted reply, against what the phone really played.

With every backend all cases run at the same time, in real time. Pieces of PCM end in the middle of a sample.
Phone and bridge are in this process, and late when it is kept from running: it runs when no other test does, and
again when the machine paused it.
"""

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.call.plan import Plan
from app.cli.demo import VOICES
from app.sim.phone.events import ClearReceived, Violation
from app.sim.phone.phone import Phone
from app.sim.realtime.faults import Faults
from app.sim.realtime.reply import ONE_HUGE_DELTA, UNEVEN_DELTAS, Message, Reply, ReplyRequest
from app.sim.wav import read_wav
from tests.bridge.pauses import Pauses
from tests.bridge.spoken import Spoken, each
from tests.bridge.world import world

SPEECH = read_wav(VOICES / "caller_interrupts.wav")
BYTES_PER_MS = 8
TOLERANCE_MS = 40
PAUSE_MAX_S = 0.01
ATTEMPTS = 3
"""A run in which this process was paused for longer than that is made again; the last one counts in any case."""


pytestmark = [pytest.mark.anyio, pytest.mark.alone]


@dataclass(frozen=True, slots=True)
class Case:
    """Items of the reply that is interrupted, in ms, and how they come."""

    items_ms: tuple[int, ...]
    interrupted_at_ms: int
    """Of the whole reply."""
    second: bool = False
    """A short reply was heard, and a caller's turn taken, before this one."""
    speed: float = math.inf
    delta_bytes: tuple[int, ...] = UNEVEN_DELTAS
    delay_ms: float = 0.0
    late_deltas: int = 0


CASES = {
    "the first reply": Case((6000,), 2000),
    "the second reply": Case((6000,), 2000, second=True),
    "a reply with another queued behind it": Case((6000, 3000), 2000),
    "a reply queued behind another": Case((1000, 6000), 3000),
    "the second of two replies, with one behind it": Case((900, 5000, 2000), 2900, second=True),
    "one huge delta, long received": Case((6000,), 2000, delta_bytes=ONE_HUGE_DELTA),
    "tiny deltas": Case((6000,), 2000, delta_bytes=(160,)),
    "deltas hardly faster than speech": Case((6000,), 2000, speed=1.2, delta_bytes=(4000,)),
    "deltas slower than speech": Case((6000,), 2000, speed=0.8, delta_bytes=(2000,)),
    "late deltas after the interruption": Case((6000,), 2000, speed=2.0, late_deltas=2),
    "a phone 30 ms away": Case((6000,), 2000, delay_ms=30),
    "a phone 100 ms away": Case((6000, 1000), 2000, delay_ms=100),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case."""

    told_ms: list[int]
    """audio_end_ms of each truncation, in the order of the items."""
    heard_ms: list[float]
    """What the phone really played of each item that was not heard to its end."""
    refused: list[dict[str, Any]]
    violations: list[Violation]


def _script(case: Case) -> Any:
    def reply(request: ReplyRequest) -> Reply:
        if case.second and request.number == 1:
            return Reply((Message.lasting("One moment.", 800),))
        if request.number > 1 + case.second:
            return Reply((Message.lasting("All right.", 300),))
        items = tuple(Message.lasting(f"Item {n} of the reply.", ms) for n, ms in enumerate(case.items_ms))
        return Reply(items, speed=case.speed, delta_bytes=case.delta_bytes, late_deltas=case.late_deltas)

    return reply


async def _run(case: Case, spoken: Spoken, data_dir: Path) -> Result:
    plan = Plan(greeting="", vad_silence_ms=200)
    async with world(
        data_dir,
        plan=plan,
        script=_script(case),
        phone_delay_ms=case.delay_ms,
        faults=Faults(deltas_cut_samples=spoken.pcm),
        spoken=spoken,
    ) as nearcall:
        async with Phone(nearcall.phone()) as phone:
            await phone.dial()
            await phone.answered()
            session = await nearcall.backend.session(0)
            phone.press("1")  # the agent answers it: not with a greeting, whose words are not the script's
            before = 0
            if case.second:
                before = 800 * BYTES_PER_MS
                await phone.wait_for(lambda p: p.heard_ms(0, before) >= 800)
                phone.say(SPEECH[:4000])
            end = before + case.interrupted_at_ms * BYTES_PER_MS
            await phone.wait_for(lambda p: p.heard_ms(before, end) >= case.interrupted_at_ms - 1)
            clears = len([e for e in phone.timeline if isinstance(e, ClearReceived)])
            phone.say(SPEECH)
            await phone.wait_for(lambda p: len([e for e in p.timeline if isinstance(e, ClearReceived)]) > clears)
            clear = [e for e in phone.timeline if isinstance(e, ClearReceived)][-1]
            await session.event("conversation.item.truncate")
            await phone.hang_up()
            violations = list(phone.violations)
        told = [e["audio_end_ms"] for e in session.events("conversation.item.truncate")]
        refused = [each.event for each in session.sent if each.type == "error"]
        return Result(told, _heard(case, clear.played_to - before), refused, violations)


def _heard(case: Case, played_bytes: int) -> list[float]:
    heard, start_ms = [], 0
    played_ms = played_bytes / BYTES_PER_MS
    for item_ms in case.items_ms:
        if played_ms < start_ms + item_ms:
            heard.append(max(0.0, played_ms - start_ms))
        start_ms += item_ms
    return heard


@pytest.fixture
async def results(spoken: Spoken, tmp_path: Path) -> dict[str, Result]:
    for attempt in range(ATTEMPTS):
        async with asyncio.timeout(40):
            with Pauses() as pauses:
                found = await asyncio.gather(
                    *(_run(case, spoken, tmp_path / f"{attempt}-{n}") for n, case in enumerate(CASES.values()))
                )
        if pauses.longest_s < PAUSE_MAX_S:
            break
    return dict(zip(CASES, found, strict=True))


@each()
async def test_backend_is_told_within_40_ms_what_the_phone_played(results: dict[str, Result]) -> None:
    for name, result in results.items():
        # One truncation for each item that was not heard to its end; the backend refused none of them.
        assert len(result.told_ms) == len(result.heard_ms), name
        errors_ms = [abs(told - heard) for told, heard in zip(result.told_ms, result.heard_ms, strict=True)]
        assert max(errors_ms) <= TOLERANCE_MS, (name, result)
        # Of what was queued behind the item that was heard, nothing was.
        assert all(told == 0 for told in result.told_ms[1:]), (name, result)
        assert result.refused == [], name
        assert result.violations == [], name
