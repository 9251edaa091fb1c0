"""The vendor's own client holds a conversation with the simulator: it must not notice."""

import asyncio
from base64 import b64encode

import pytest
from openai import AsyncOpenAI
from openai.types.realtime import ResponseDoneEvent

from app.sim.realtime.openai_simulator import RealtimeSimulator
from tests.sim.realtime_client import loud, silence, telephone

pytestmark = pytest.mark.anyio


async def test_official_client_configures_speaks_and_is_answered() -> None:
    async with asyncio.timeout(10), RealtimeSimulator(api_key="sk-sdk") as sim:
        async with (
            AsyncOpenAI(base_url=sim.url, api_key="sk-sdk") as client,
            client.realtime.connect(model="gpt-realtime-2.1") as connection,
        ):
            kinds: list[str] = []
            await connection.session.update(session=telephone())  # type: ignore[arg-type]  # the same, untyped
            await connection.input_audio_buffer.append(audio=b64encode(loud(400) + silence(600)).decode())
            while not isinstance(event := await connection.recv(), ResponseDoneEvent):
                kinds.append(event.type)
            assert kinds[:3] == ["session.created", "session.updated", "input_audio_buffer.speech_started"]
            assert event.response.status == "completed"
            assert event.response.usage is not None
            assert event.response.output is not None
            assert event.response.output[0].type == "message"
        session = await sim.session(0)
        assert session.model == "gpt-realtime-2.1"
