"""A real `nearcall serve` without a database that is killed under a call, and started again."""

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import pytest
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import Message, Reply, ReplyRequest
from app.world.process import free_port
from scripts.benchlib import targets
from scripts.benchlib.phone import ACCOUNT_SID, AUTH_TOKEN
from scripts.benchlib.process import child
from tests.waiting import a_moment

pytestmark = pytest.mark.anyio

CALL = {
    "CallSid": "CA" + "7" * 32,
    "AccountSid": ACCOUNT_SID,
    "From": "+4930123456",
    "To": "+4930654321",
    "CallStatus": "in-progress",
}
KEY = "sk-of-the-test"
MEDIA = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def signed(url: str, fields: dict[str, str]) -> dict[str, str]:
    return {"X-Twilio-Signature": RequestValidator(AUTH_TOKEN).compute_signature(url, fields)}


def brief(request: ReplyRequest) -> Reply:
    return Reply((Message.lasting(f"Answer {request.number}.", 200),))


async def asked(url: str) -> ET.Element:
    """The `<Connect>` that the server answers Twilio with."""
    async with httpx.AsyncClient(trust_env=False) as twilio:
        answer = await twilio.post(url, data=CALL, headers=signed(url, CALL))
    stage = ET.fromstring(answer.text).find("Connect")
    assert stage is not None, answer.text
    return stage


async def stream(stage: ET.Element) -> None:
    """Twilio's stream: plays the agent's marks back until the server ends it."""
    opened = stage.find("Stream")
    assert opened is not None
    url = opened.attrib["url"]
    start = {"streamSid": "MZ1", "callSid": CALL["CallSid"], "mediaFormat": MEDIA}
    with contextlib.suppress(ConnectionClosed):
        async with connect(url, additional_headers=signed(url, {})) as socket:
            await socket.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
            await socket.send(
                json.dumps({"event": "start", "sequenceNumber": "1", "start": start, "streamSid": "MZ1"})
            )
            async for text in socket:
                message = json.loads(text)
                if message["event"] == "mark":
                    await socket.send(json.dumps({**message, "sequenceNumber": "9"}))


def turns(ledger: Path) -> int:
    with contextlib.closing(sqlite3.connect(ledger)) as database, contextlib.suppress(sqlite3.OperationalError):
        return len(database.execute("SELECT 1 FROM turns").fetchall())
    return 0


async def test_single_machine_goes_on_with_a_call_after_kill_and_restart(tmp_path: Path) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    async with asyncio.timeout(60), RealtimeSimulator(api_key=KEY, script=brief) as backend:
        env = {**targets.settings(base, tmp_path, backend.url, KEY), "FLY_REGION": ""}
        async with child("first", targets.SERVE, tmp_path, env=env) as server:
            await targets.until_answered(server, port, targets.HEALTH)
            first = await asked(f"{base}/twiml/voice")
            talking = asyncio.create_task(stream(first))
            while not turns(tmp_path / "data/ledger.db"):
                server.check()
                await a_moment()
            server.process.kill()
            await server.process.wait()
            await asyncio.wait({talking})
        async with child("second", targets.SERVE, tmp_path, env=env) as server:
            await targets.until_answered(server, port, targets.HEALTH)
            second = await asked(first.attrib["action"])
            going_on = asyncio.create_task(stream(second))
            # Other sessions are those that a start tries the backend with.
            await backend.wait_for(lambda it: any(each.record.texts() for each in it.sessions))
            [session] = [each for each in backend.sessions if each.record.texts()]
            assert session.record.texts() == [("assistant", "Answer 1.")]
            assert session.record.events("response.create") == []
            going_on.cancel()
            await asyncio.wait({going_on})
            assert "call_resumed" in server.log.read_text()
