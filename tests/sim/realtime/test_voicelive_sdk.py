"""The vendor's own client holds a conversation with the simulator: it must not notice.

It takes an endpoint with the scheme http and speaks ws to it: nothing else had to be done.
"""

import asyncio
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Self

import pytest
from azure.ai.voicelive.aio import ConnectionError as VoiceLiveConnectionError
from azure.ai.voicelive.aio import VoiceLiveConnection, connect
from azure.ai.voicelive.models import (
    AudioInputTranscriptionOptions,
    InputAudioFormat,
    Modality,
    OpenAIVoice,
    OutputAudioFormat,
    RequestSession,
    ServerEvent,
    ServerEventType,
    ServerVad,
)
from azure.core.credentials import AccessToken, AzureKeyCredential

from app.sim.realtime.reply import Message, Reply
from app.sim.realtime.voicelive_simulator import VoiceLiveSimulator
from app.sim.speech import Sentence, spoken
from tests.sim.realtime_client import answers, silence
from tests.voicelive_types import check_client_event

pytestmark = pytest.mark.anyio

LONG = Reply((Message.lasting("A long answer.", 4000),), delta_bytes=(1600,), hold_after_deltas=3)


class Entra:
    """A credential as azure-identity has them."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def get_token(self, *scopes: str, **_options: Any) -> AccessToken:
        assert scopes == ("https://ai.azure.com/.default",)
        return AccessToken(self._token, 2_000_000_000)

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...


def session() -> RequestSession:
    return RequestSession(
        modalities=[Modality.TEXT, Modality.AUDIO],
        instructions="Be brief.",
        voice=OpenAIVoice(name="marin"),
        input_audio_format=InputAudioFormat.G711_ULAW,
        input_audio_sampling_rate=8000,
        output_audio_format=OutputAudioFormat.G711_ULAW,
        input_audio_transcription=AudioInputTranscriptionOptions(model="gpt-4o-transcribe"),
        turn_detection=ServerVad(threshold=0.5, prefix_padding_ms=300, silence_duration_ms=500),
        input_audio_noise_reduction=None,
    )


async def until(
    connection: VoiceLiveConnection, kind: ServerEventType, seen: Callable[[ServerEvent], None] = lambda _: None
) -> Any:
    while (event := await connection.recv()).type != kind:
        seen(event)
    seen(event)
    return event


async def say(connection: VoiceLiveConnection, mulaw: bytes) -> None:
    """In frames of 20 ms, as a telephone does."""
    for start in range(0, len(mulaw), 160):
        await connection.input_audio_buffer.append(audio=b64encode(mulaw[start : start + 160]).decode())


async def test_official_client_configures_speaks_hears_and_interrupts() -> None:
    words = spoken(Sentence.IDLE).mulaw
    answer = Reply((Message.lasting("Yes, I am.", 700),))
    heard: list[Any] = []
    async with (
        asyncio.timeout(10),
        VoiceLiveSimulator(api_key="key-sdk", script=answers(answer, LONG, answer)) as sim,
    ):
        async with connect(
            endpoint=sim.url, credential=AzureKeyCredential("key-sdk"), model="gpt-realtime-2.1"
        ) as connection:
            created = await until(connection, ServerEventType.SESSION_CREATED)
            assert created.session.expires_at is not None
            await connection.session.update(session=session())
            updated = await until(connection, ServerEventType.SESSION_UPDATED)
            assert updated.session.output_audio_format == OutputAudioFormat.G711_ULAW
            assert updated.session.input_audio_sampling_rate == 8000

            await say(connection, silence(400) + words + silence(600))
            done = await until(connection, ServerEventType.RESPONSE_DONE, heard.append)
            assert done.response.status == "completed"
            assert done.response.output[0].content[0].transcript == "Yes, I am."
            audio = b"".join(each.delta for each in heard if each.type == ServerEventType.RESPONSE_AUDIO_DELTA)
            assert audio == Message.lasting("", 700).mulaw

            await connection.response.create(response={"instructions": "Tell a story."})
            delta = await until(connection, ServerEventType.RESPONSE_AUDIO_DELTA)
            await say(connection, words)
            cancelled = await until(connection, ServerEventType.RESPONSE_DONE)
            assert cancelled.response.status == "cancelled"
            assert cancelled.response.status_details.reason == "turn_detected"
            await connection.conversation.item.truncate(item_id=delta.item_id, content_index=0, audio_end_ms=150)
            truncated = await until(connection, ServerEventType.CONVERSATION_ITEM_TRUNCATED)
            assert truncated.audio_end_ms == 150
            await say(connection, silence(600))
            assert (await until(connection, ServerEventType.RESPONSE_DONE)).response.status == "completed"
        held = await sim.session(0)
        await held.wait_for(lambda each: each.close_code == 1000)
        for event in held.received:
            check_client_event(event.event)


async def test_official_client_speaks_pcm_at_the_rates_there_are() -> None:
    async with (
        asyncio.timeout(10),
        VoiceLiveSimulator(script=answers(LONG)) as sim,
        connect(endpoint=sim.url, credential=AzureKeyCredential("any"), model="gpt-4.1") as connection,
    ):
        wanted = RequestSession(
            input_audio_format=InputAudioFormat.PCM16,
            input_audio_sampling_rate=16000,
            output_audio_format=OutputAudioFormat.PCM16_16000_HZ,
        )
        await connection.session.update(session=wanted)
        updated = await until(connection, ServerEventType.SESSION_UPDATED)
        assert updated.session.output_audio_format == OutputAudioFormat.PCM16_16000_HZ
        await connection.response.create()
        delta = await until(connection, ServerEventType.RESPONSE_AUDIO_DELTA)
        assert len(delta.delta) == 200 * 32


async def test_official_client_comes_in_with_a_token_until_it_expires() -> None:
    async with asyncio.timeout(10), VoiceLiveSimulator(tokens={"entra-1"}) as sim:
        async with connect(endpoint=sim.url, credential=Entra("entra-1"), model="gpt-realtime") as connection:
            await until(connection, ServerEventType.SESSION_CREATED)
        sim.tokens = {"entra-2"}
        with pytest.raises(VoiceLiveConnectionError, match="401"):
            async with connect(endpoint=sim.url, credential=Entra("entra-1"), model="gpt-realtime"):
                pass
        async with connect(endpoint=sim.url, credential=Entra("entra-2"), model="gpt-realtime") as connection:
            await until(connection, ServerEventType.SESSION_CREATED)
