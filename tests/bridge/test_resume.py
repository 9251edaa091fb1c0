"""Calls whose streams break, and that go on: real sockets, one machine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from app.call.plan import Plan
from app.call.records import CallStarted, Speaker
from app.cli.demo import VOICES
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.realtime.reply import Message, Reply, ReplyRequest
from app.sim.realtime.server import RealtimeServer
from app.sim.wav import read_wav
from tests.bridge.world import OPERATOR, World, world

pytestmark = pytest.mark.anyio

SPEECH = read_wav(VOICES / "caller_interrupts.wav")
PLAN = Plan(greeting="Hello.", vad_silence_ms=200)


def brief(request: ReplyRequest) -> Reply:
    """Short answers, each other than the one before."""
    return Reply((Message.lasting(f"Answer {request.number}.", 300),))


@asynccontextmanager
async def calling(options: PhoneOptions) -> AsyncIterator[Phone]:
    async with Phone(options) as phone:
        await phone.dial()
        yield phone


async def talk(nearcall: World, phone: Phone) -> None:
    """The caller hears the greeting, says something and hears the answer to its end."""
    await phone.heard_speech(250)
    phone.say(SPEECH)
    heard = len(nearcall.turns(phone.call_sid))
    assert heard <= 1
    await phone.wait_for(lambda p: len(nearcall.turns(p.call_sid)) >= 3)


def purposes(server: RealtimeServer, number: int) -> list[str]:
    """What this session was asked to say."""
    asked = server.sessions[number].record.events("response.create")
    return [each.get("response", {}).get("metadata", {}).get("purpose", "") for each in asked]


def legs(nearcall: World) -> list[CallStarted]:
    return [each for each in nearcall.records if isinstance(each, CallStarted) and each.stream_sid]


def has_legs(nearcall: World, number: int, _phone: Phone) -> bool:
    return len(legs(nearcall)) == number


async def decisions(nearcall: World) -> dict[str, int]:
    async with httpx.AsyncClient(base_url=nearcall.url, trust_env=False) as client:
        found: dict[str, int] = (await client.get("/healthz", headers=OPERATOR)).json()["decisions"]
    return found


async def test_call_whose_stream_breaks_goes_on_with_what_was_said(tmp_path: Path) -> None:
    async with (
        world(tmp_path, plan=PLAN, script=brief) as nearcall,
        calling(nearcall.phone()) as phone,
    ):
        await talk(nearcall, phone)
        said = [(turn.speaker, turn.heard) for turn in nearcall.turns(phone.call_sid)]
        phone.cut()
        await phone.answered(streams=2)
        session = await nearcall.backend.session(1)
        phone.say(SPEECH)
        before_ms = phone.speech_ms
        await phone.heard_speech(250, since_ms=before_ms)
        counted = await decisions(nearcall)
        await phone.hang_up()

    roles = {Speaker.CALLER: "user", Speaker.AGENT: "assistant"}
    assert session.record.texts() == [(roles[speaker], heard) for speaker, heard in said]
    assert "greeting" not in purposes(nearcall.backend, 1)
    assert nearcall.endings(phone.call_sid) == ["phone_lost", "caller_hung_up"]
    first, second = legs(nearcall)
    assert (second.caller, second.called, second.leg != first.leg) == (first.caller, first.called, True)
    assert phone.violations == []
    assert (counted["call_resumed"], counted.get("resume_refused")) == (1, None)


async def test_fourth_resume_in_a_minute_is_the_sentence(tmp_path: Path) -> None:
    async with world(tmp_path, plan=PLAN, script=brief) as nearcall:
        async with calling(nearcall.phone()) as phone:
            for streams in range(1, 5):
                await phone.answered(streams=streams)
                await phone.wait_for(partial(has_legs, nearcall, streams))
                phone.cut()
            await phone.over()
            counted = await decisions(nearcall)
        assert len(legs(nearcall)) == 4
        assert phone.announcements == [PLAN.sorry]
        assert (counted["call_resumed"], counted["resume_refused"]) == (3, 1)
