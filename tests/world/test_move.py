"""A deploy under live calls: two server processes behind Fly's edge, one of which is told to stop."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from app.cli.demo import VOICES
from app.sim.phone.phone import Phone
from app.sim.realtime.reply import Message, Reply, ReplyRequest
from app.sim.wav import read_wav
from app.world.calls import phone_in
from app.world.world import World, world
from tests.ledger.sqld import sqld_program

pytestmark = pytest.mark.anyio

CALLS = 5
SPEECH = read_wav(VOICES / "caller_interrupts.wav")
IN_TIME_S = 120


def reply(request: ReplyRequest) -> Reply:
    return Reply((Message.lasting(f"Answer {request.number}.", 1_500),))


def logged(running: World, region: str, event: str) -> list[dict[str, object]]:
    """The lines of a machine's log about this event."""
    lines = (running.directory / region / "log").read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in found if line["msg"] == event]


async def talk(phone: Phone) -> None:
    """The caller says something and hears the answer begin."""
    before_ms = phone.speech_ms
    phone.say(SPEECH)
    await phone.heard_speech(400, since_ms=before_ms)


async def goes_on(phones: Sequence[Phone]) -> None:
    """Each caller talks to the agent in a second stream, and has noticed nothing worse than that."""
    await asyncio.gather(*(phone.answered(streams=2) for phone in phones))
    await asyncio.gather(*(talk(phone) for phone in phones))
    for phone in phones:
        assert phone.ended is None
        assert phone.announcements == []
        assert phone.violations == []
        assert len(phone.started_streams) == 2


async def calling(running: World, stack: AsyncExitStack) -> Sequence[Phone]:
    phones = [await stack.enter_async_context(phone_in(running, "berlin", "global")) for _ in range(CALLS)]
    for phone in phones:
        await phone.dial()
    await asyncio.gather(*(phone.heard_speech(400) for phone in phones))
    return phones


@pytest.mark.long
@pytest.mark.parametrize("rest_works", [True, False], ids=["redirect", "closed_stream"])
async def test_live_calls_go_on_at_another_machine_after_sigterm(tmp_path: Path, rest_works: bool) -> None:
    async with (
        asyncio.timeout(IN_TIME_S),
        world(tmp_path / "w", ("fra", "iad"), ("berlin",), sqld_program=sqld_program(), script=reply) as running,
        AsyncExitStack() as stack,
    ):
        phones = await calling(running, stack)
        await asyncio.gather(*(talk(phone) for phone in phones))
        if not rest_works:
            for _ in range(2 * CALLS):
                running.rest.fail_next(500)
        # Every caller hears an answer when the signal comes, and none of it is lost.
        await running.drain("fra")

        await goes_on(phones)
        await asyncio.gather(*(phone.hang_up() for phone in phones))

        moved = "call_moved" if rest_works else "move_failed"
        assert len(logged(running, "fra", moved)) == CALLS
        (finished,) = logged(running, "fra", "drain_finished")
        counted = {name: finished[name] for name in ("calls_left", "moved", "move_failed", "cut_short")}
        assert counted == {
            "calls_left": 0,
            "moved": CALLS if rest_works else 0,
            "move_failed": 0 if rest_works else CALLS,
            "cut_short": 0,
        }
        resumed = logged(running, "iad", "call_resumed")
        # The answer that was being spoken was heard to its end, so nothing of it is owed.
        assert [(each["source"], each["owed"]) for each in resumed] == [("primary", "nothing")] * CALLS
        # A busy machine sends a caller's sentence with a gap in it, which makes two turns of it.
        assert all(int(str(each["turns"])) >= 2 for each in resumed)
        updates = [update.form for update in running.rest.updates if "Url" in update.form]
        assert all(form["Method"] == "POST" and "/twiml/resume/global/fra/" in form["Url"] for form in updates)


@pytest.mark.long
async def test_call_moves_though_no_database_tells_what_was_said(tmp_path: Path) -> None:
    """The machine that drains has the only records. It is not asked: it would send the question on."""
    async with (
        asyncio.timeout(IN_TIME_S),
        world(tmp_path / "w", ("fra", "iad"), ("berlin",), sqld_program=None, script=reply) as running,
        AsyncExitStack() as stack,
    ):
        phones = await calling(running, stack)
        await running.drain("fra")
        await goes_on(phones)
        resumed = logged(running, "iad", "call_resumed")
        assert [each["owed"] for each in resumed] == ["repetition"] * CALLS
