"""The test phone, checked against a small independent application (echo_server.py)."""

import asyncio
import math
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from app.sim.phone import Phone
from app.sim.phone_events import EndReason, MarkEchoed
from app.sim.phone_options import PhoneOptions
from app.sim.wav import pcm_to_mulaw
from tests.sim.echo_server import Application, Reply, clear, echo, mark, media, receive, running

pytestmark = pytest.mark.anyio

TOKEN = "12345"
CONNECT = '<Response><Connect><Stream url="{ws}/media/t1"/></Connect></Response>'
CONNECT_THEN_ACTION = '<Response><Connect action="/after"><Stream url="{ws}/media/t1"/></Connect></Response>'
HANGUP = "<Response><Hangup/></Response>"


def options(application: Application, **changes: Any) -> PhoneOptions:
    """Without the delays that only a human would notice."""
    settings: dict[str, Any] = {
        "webhook_url": f"{application.http_url}/voice",
        "auth_token": TOKEN,
        "connected_after_ms": (0, 0),
        "document_pace": 0,
    }
    return PhoneOptions(**settings | changes)


def tone(ms: int) -> bytes:
    return pcm_to_mulaw([round(8000 * math.sin(2 * math.pi * 440 * n / 8000)) for n in range(ms * 8)])


async def test_caller_hears_own_voice_from_an_echoing_application() -> None:
    application = Application({"/voice": Reply(CONNECT)}, echo)
    async with asyncio.timeout(10), running(application), Phone(options(application)) as phone:
        await phone.dial()
        await phone.answered()
        phone.say(tone(200))
        await phone.spoken()
        await phone.heard_speech(200)
        await phone.hang_up()
    assert phone.ended is EndReason.CALLER
    assert tone(200) in phone.said_audio()
    assert len(phone.heard_audio()) == len(phone.said_audio())
    assert phone.violations == []
    assert phone.problems == []


async def test_mark_comes_back_when_the_audio_before_it_was_played() -> None:
    echoed = asyncio.Event()

    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(media(sid, tone(100)))
        await ws.send(mark(sid, "g1-a-0"))
        assert (await receive(ws, "mark"))["mark"] == {"name": "g1-a-0"}
        echoed.set()
        await receive(ws, "stop")

    application = Application({"/voice": Reply(CONNECT)}, conversation)
    async with asyncio.timeout(10), running(application), Phone(options(application)) as phone:
        await phone.dial()
        await echoed.wait()
        assert phone.heard_ms(0, 800) == 100
    (echo_event,) = [event for event in phone.timeline if isinstance(event, MarkEchoed)]
    assert echo_event.heard


async def test_clear_stops_playout_and_gives_all_marks_back_in_order() -> None:
    names: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(media(sid, tone(1000)))
        await ws.send(mark(sid, "g1-a-0"))
        await ws.send(media(sid, tone(1000)))
        await ws.send(mark(sid, "g1-a-1"))
        await ws.send(clear(sid))
        names.append((await receive(ws, "mark"))["mark"]["name"])
        names.append((await receive(ws, "mark"))["mark"]["name"])
        await ws.close()

    application = Application({"/voice": Reply(CONNECT)}, conversation)
    async with asyncio.timeout(10), running(application), Phone(options(application)) as phone:
        await phone.dial()
        await phone.over()
        assert phone.heard_ms(0, 16000) < 1000
    assert names == ["g1-a-0", "g1-a-1"]
    assert phone.ended is EndReason.DOCUMENT_END
    assert [problem.code for problem in phone.problems] == [31921]


async def test_action_is_asked_after_the_application_closes_the_stream() -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")

    application = Application({"/voice": Reply(CONNECT_THEN_ACTION), "/after": Reply(HANGUP)}, conversation)
    async with asyncio.timeout(10), running(application), Phone(options(application)) as phone:
        await phone.dial()
        await phone.over()
    assert phone.ended is EndReason.HANGUP
    assert application.requests("/after")[0].form["CallStatus"] == "in-progress"
