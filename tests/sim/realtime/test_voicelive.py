"""The simulated Voice Live: connecting, configuring, refusing, where it differs from OpenAI."""

import asyncio
import json
import time
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from app.sim.realtime.audio import AudioFormat
from app.sim.realtime.faults import Faults, Timing
from app.sim.realtime.voicelive_simulator import VoiceLiveSimulator
from tests.sim.realtime_client import SERVER_VAD, dial, loud, open_socket, voicelive_telephone

pytestmark = pytest.mark.anyio

Json = dict[str, Any]

QUERY = "?api-version=2026-07-15&model=gpt-realtime-2.1"
CASCADED = "?api-version=2026-07-15&model=gpt-4.1"
AZURE_VOICE = {"type": "azure-standard", "name": "en-US-Ava:DragonHDLatestNeural", "temperature": 0.8}


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        (QUERY, {"api-key": "key-right"}),
        (f"{QUERY}&api-key=key-right", {}),
        (QUERY, {"Authorization": "Bearer entra-right"}),
    ],
)
async def test_upgrade_with_a_key_or_a_token_is_accepted(query: str, headers: dict[str, str]) -> None:
    async with (
        VoiceLiveSimulator(api_key="key-right", tokens={"entra-right"}) as sim,
        dial(sim, query=query, headers=headers),
    ):
        assert [upgrade.status for upgrade in sim.upgrades] == [101]


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        (QUERY, {}),
        (QUERY, {"api-key": "wrong"}),
        (f"{QUERY}&api-key=wrong", {}),
        (QUERY, {"Authorization": "Bearer entra-expired"}),
        (QUERY, {"Authorization": "Bearer key-right"}),
        (QUERY, {"Authorization": "Basic entra-right"}),
        (QUERY, {"api-key": "wrong", "Authorization": "Bearer entra-right"}),
    ],
)
async def test_upgrade_without_the_right_key_or_token_is_refused(query: str, headers: dict[str, str]) -> None:
    async with VoiceLiveSimulator(api_key="key-right", tokens={"entra-right"}) as sim:
        with pytest.raises(InvalidStatus) as refused:
            await open_socket(sim, query, headers)
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body or b"")["error"]["code"] == "401"


async def test_token_that_was_good_expires_for_the_next_upgrade_only() -> None:
    token = {"Authorization": "Bearer entra-1"}
    async with VoiceLiveSimulator(tokens={"entra-1"}) as sim, dial(sim, headers=token) as client:
        sim.tokens = {"entra-2"}
        with pytest.raises(InvalidStatus):
            await open_socket(sim, headers=token)
        await client.quiet()


@pytest.mark.parametrize("key", ["any", "of them"])
async def test_simulator_without_a_key_takes_any_but_no_token(key: str) -> None:
    async with VoiceLiveSimulator() as sim:
        async with dial(sim, headers={"api-key": key}):
            pass
        with pytest.raises(InvalidStatus):
            await open_socket(sim, headers={"Authorization": f"Bearer {key}"})
        sim.tokens = None
        async with dial(sim, headers={"Authorization": f"Bearer {key}"}):
            pass


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?model=gpt-realtime-2.1", "Missing query 'api-version'"),
        ("?api-version=2025-01-01&model=gpt-realtime-2.1", "'2025-01-01' is not simulated"),
        ("?api-version=2026-07-15", "Missing query 'model'"),
        ("?api-version=2026-07-15&agent-name=a&agent-project-name=p", "Agents are not simulated"),
    ],
)
async def test_upgrade_with_a_wrong_query_is_refused_plainly(query: str, message: str) -> None:
    async with VoiceLiveSimulator() as sim:
        with pytest.raises(InvalidStatus) as refused:
            await open_socket(sim, query)
        assert refused.value.response.status_code == 400
        assert message in json.loads(refused.value.response.body or b"")["error"]["message"]


async def test_model_that_the_region_does_not_have_gets_an_error_and_a_close() -> None:
    async with (
        VoiceLiveSimulator(models={"gpt-realtime-2.1-datazone"}) as sim,
        dial(sim, greeted=False) as client,
    ):
        error = (await client.next())["error"]
        assert error["code"] == "invalid_model"
        assert error["message"] == "Model gpt-realtime-2.1 is not supported in this region"
        await client.closed()
        assert sim.sessions == []
        async with dial(sim, query="?api-version=2026-07-15&model=gpt-realtime-2.1-datazone") as other:
            assert other.events[0]["session"]["model"] == "gpt-realtime-2.1-datazone"
            assert (await sim.session(0)).model == "gpt-realtime-2.1-datazone"


async def test_endpoint_is_what_an_operator_configures() -> None:
    async with VoiceLiveSimulator() as sim:
        assert sim.ws_url == f"{sim.url}/voice-live/realtime".replace("http", "ws", 1)
        with pytest.raises(InvalidStatus) as refused:
            async with asyncio.timeout(10), open_socket(sim, f"/elsewhere{QUERY}"):
                pass
        assert refused.value.response.status_code == 404


async def test_session_opens_flat_with_pcm_defaults_and_its_end() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim) as client:
        session = client.events[0]["session"]
        assert "type" not in session
        assert session["model"] == "gpt-realtime-2.1"
        assert (session["input_audio_format"], session["output_audio_format"]) == ("pcm16", "pcm16")
        assert session["input_audio_sampling_rate"] == 24000
        assert session["voice"] == {"type": "openai", "name": "alloy"}
        assert session["turn_detection"]["type"] == "server_vad"
        assert session["turn_detection"]["prefix_padding_ms"] == 400
        assert abs(session["expires_at"] - (time.time() + 3600)) < 60


async def test_cascaded_model_opens_with_an_azure_voice_and_azure_speech() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, query=CASCADED) as client:
        session = client.events[0]["session"]
        assert session["voice"]["type"] == "azure-standard"
        assert session["input_audio_transcription"] == {"model": "azure-speech"}


async def test_update_is_echoed_with_the_whole_session() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim) as client:
        change = {**voicelive_telephone(), "instructions": "Be brief.", "max_response_output_tokens": 2048}
        session = (await client.configure(change))["session"]
        assert session.items() >= {**change, "turn_detection": session["turn_detection"]}.items()
        assert session["turn_detection"] == {
            **SERVER_VAD,
            "speech_duration_ms": 200,
            "create_response": True,
            "interrupt_response": True,
            "auto_truncate": False,
        }
        assert session["tool_choice"] == "auto"
        assert session["expires_at"] == client.events[0]["session"]["expires_at"]


async def test_update_of_one_field_keeps_the_others() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, voicelive_telephone()) as client:
        session = (await client.configure({"turn_detection": None}))["session"]
        assert session["turn_detection"] is None
        assert session["input_audio_format"] == "g711_ulaw"
        assert session["voice"] == {"type": "openai", "name": "marin"}


@pytest.mark.parametrize(
    ("change", "rate"),
    [
        ({"input_audio_format": "g711_ulaw"}, 8000),
        ({"input_audio_format": "g711_alaw", "input_audio_sampling_rate": 8000}, 8000),
        ({"input_audio_sampling_rate": 16000}, 16000),
        ({"instructions": "Be brief."}, 24000),
    ],
)
async def test_format_without_a_rate_has_its_usual_one(change: Json, rate: int) -> None:
    async with VoiceLiveSimulator() as sim, dial(sim) as client:
        assert (await client.configure(change))["session"]["input_audio_sampling_rate"] == rate


async def test_rate_stays_while_the_format_does() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, {"input_audio_sampling_rate": 8000}) as client:
        assert (await client.configure({}))["session"]["input_audio_sampling_rate"] == 8000
        assert (await sim.session(0)).settings.input_format is AudioFormat.PCM_8K


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"type": "realtime"}, "unknown_parameter", "type"),
        ({"audio": {}}, "unknown_parameter", "audio"),
        ({"output_modalities": ["audio"]}, "unknown_parameter", "output_modalities"),
        ({"max_output_tokens": 100}, "unknown_parameter", "max_output_tokens"),
        ({"speed": 1.0}, "unknown_parameter", "speed"),
        ({"modalities": ["audio"]}, "invalid_value", "modalities"),
        ({"model": "gpt-4.1"}, "invalid_value", "model"),
        ({"input_audio_format": "audio/pcmu"}, "invalid_value", "input_audio_format"),
        ({"input_audio_format": "pcm16_8000hz"}, "invalid_value", "input_audio_format"),
        ({"output_audio_format": "pcm16-8000hz"}, "invalid_value", "output_audio_format"),
        ({"input_audio_sampling_rate": 44100}, "invalid_value", "input_audio_sampling_rate"),
        ({"input_audio_sampling_rate": "8000"}, "invalid_type", "input_audio_sampling_rate"),
        (
            {"input_audio_format": "g711_ulaw", "input_audio_sampling_rate": 24000},
            "invalid_value",
            "input_audio_sampling_rate",
        ),
        ({"temperature": 0.5}, "decimal_below_min_value", "temperature"),
        ({"max_response_output_tokens": 4097}, "integer_above_max_value", "max_response_output_tokens"),
        ({"voice": "nova"}, "invalid_value", "voice"),
        ({"voice": {"type": "openai", "name": "nova"}}, "invalid_value", "voice.name"),
        ({"voice": {"name": "alloy"}}, "missing_required_parameter", "voice.type"),
        ({"voice": {"type": "azure-custom", "name": "x"}}, "missing_required_parameter", "voice.endpoint_id"),
        ({"voice": {**AZURE_VOICE, "speed": "1"}}, "unknown_parameter", "voice.speed"),
        ({"voice": {"type": "azure-realtime-native", "name": "ava"}}, "invalid_value", "voice"),
        ({"turn_detection": {"type": "azure_multilingual_semantic_vad"}}, "invalid_value", "turn_detection.type"),
        (
            {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}},
            "unknown_parameter",
            "turn_detection.idle_timeout_ms",
        ),
        (
            {"turn_detection": {"type": "server_vad", "threshold": 1.5}},
            "decimal_above_max_value",
            "turn_detection.threshold",
        ),
        (
            {"turn_detection": {"type": "azure_semantic_vad_en", "languages": ["en"]}},
            "unknown_parameter",
            "turn_detection.languages",
        ),
        (
            {"turn_detection": {"type": "server_vad", "interrupt_response": False, "auto_truncate": True}},
            "invalid_value",
            "turn_detection.auto_truncate",
        ),
        (
            {"input_audio_transcription": {"model": "azure-speech"}},
            "invalid_value",
            "input_audio_transcription.model",
        ),
        (
            {"input_audio_transcription": {"model": "whisper-1", "phrase_list": ["Example"]}},
            "invalid_value",
            "input_audio_transcription.phrase_list",
        ),
        ({"input_audio_noise_reduction": {"type": "deep"}}, "invalid_value", "input_audio_noise_reduction.type"),
        ({"tools": [{"type": "mcp", "server_label": "kb"}]}, "missing_required_parameter", "tools[0].server_url"),
        ({"avatar": {"character": "lisa"}}, "not_simulated", "avatar"),
        ({"interim_response": {"type": "static_interim_response"}}, "not_simulated", "interim_response"),
    ],
)
async def test_wrong_session_is_refused_by_name_and_the_old_one_stays(
    session: Json, code: str, param: str
) -> None:
    async with VoiceLiveSimulator() as sim, dial(sim) as client:
        before = client.events[0]["session"]
        error = await client.refused("session.update", session=session)
        assert (error["type"], error["code"], error["param"]) == (
            "invalid_request_error",
            code,
            f"session.{param}",
        )
        assert (await client.configure({}))["session"] == before


@pytest.mark.parametrize(
    ("session", "param"),
    [
        ({"voice": {"type": "openai", "name": "alloy"}}, "voice"),
        ({"voice": "alloy"}, "voice"),
        ({"turn_detection": {"type": "semantic_vad"}}, "turn_detection.type"),
        ({"input_audio_transcription": {"model": "gpt-4o-transcribe"}}, "input_audio_transcription.model"),
    ],
)
async def test_what_gpt_realtime_alone_can_is_refused_with_another_model(session: Json, param: str) -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, query=CASCADED) as client:
        error = await client.refused("session.update", session=session)
        assert (error["code"], error["param"]) == ("invalid_value", f"session.{param}")


@pytest.mark.parametrize(
    "session",
    [
        {"voice": AZURE_VOICE},
        {"input_audio_transcription": {"model": "azure-speech", "phrase_list": ["Example Dental"]}},
        {"input_audio_transcription": {"model": "mai-transcribe"}},
        {
            "turn_detection": {
                "type": "azure_semantic_vad",
                "languages": ["en"],
                "end_of_utterance_detection": {"model": "semantic_detection_v1", "timeout_ms": 1000},
            }
        },
    ],
)
async def test_cascaded_model_takes_what_is_azures(session: Json) -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, query=CASCADED) as client:
        await client.configure(session)


async def test_azure_realtime_speaks_with_its_own_voices() -> None:
    query = "?api-version=2026-07-15&model=azure-realtime"
    async with VoiceLiveSimulator() as sim, dial(sim, query=query) as client:
        await client.configure({"voice": {"type": "azure-realtime-native", "name": "francisca"}})


async def test_voice_of_openai_cannot_change_after_the_first_audio() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, voicelive_telephone()) as client:
        await client.send("response.create")
        await client.until("response.done")
        for voice in (AZURE_VOICE, {"type": "openai", "name": "cedar"}):
            error = await client.refused("session.update", session={"voice": voice})
            assert (error["code"], error["param"]) == ("cannot_update_voice", "session.voice")
            error = await client.refused("response.create", response={"voice": voice})
            assert (error["code"], error["param"]) == ("cannot_update_voice", "response.voice")


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        ({"type": "output_audio_buffer.clear"}, "not_simulated", "output_audio_buffer.clear"),
        ({"type": "input_audio.turn.start", "turn_id": "t"}, "not_simulated", "input_audio.turn.start"),
        ({"type": "response.create", "additional_instructions": "x"}, "not_simulated", "additional_instructions"),
        ({"type": "response.create", "response": {"commit": True}}, "not_simulated", "response.commit"),
        (
            {"type": "response.create", "response": {"output_modalities": ["text"]}},
            "unknown_parameter",
            "response.output_modalities",
        ),
        (
            {
                "type": "conversation.item.create",
                "item": {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Until six."}],
                },
            },
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {
                "type": "response.create",
                "response": {"pre_generated_assistant_message": {"type": "message", "role": "assistant"}},
            },
            "missing_required_parameter",
            "response.pre_generated_assistant_message.content",
        ),
    ],
)
async def test_wrong_event_is_refused_and_the_session_goes_on(event: Json, code: str, param: str) -> None:
    async with VoiceLiveSimulator() as sim, dial(sim) as client:
        await client.send_raw(event)
        error = (await client.until("error"))["error"]
        assert (error["code"], error["param"]) == (code, param)
        await client.configure(voicelive_telephone())


async def test_warnings_come_now_and_then_and_change_nothing() -> None:
    async with (
        VoiceLiveSimulator(faults=Faults(warning_every=4)) as sim,
        dial(sim, voicelive_telephone()) as client,
    ):
        await client.send("response.create")
        done = await client.until("response.done")
        assert done["response"]["status"] == "completed"
        assert len(client.all("warning")) == (len(client.events) + 2) // 5


async def test_session_ends_after_60_minutes() -> None:
    async with VoiceLiveSimulator(timing=Timing(clock_rate=100_000)) as sim, dial(sim) as client:
        assert (await client.closed())[0] == 1001
        assert client.all("error")[0]["error"]["code"] == "session_expired"


async def test_tests_ask_a_session_the_same_questions_at_both_services() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, voicelive_telephone()) as client:
        item = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "Until six."}]}
        await client.send("conversation.item.create", item=item)
        await client.append(loud(400))
        await client.send("conversation.item.truncate", item_id="gone", content_index=0, audio_end_ms=7)
        await client.until("error")
        session = await sim.session(0)
        assert session.model == "gpt-realtime-2.1"
        assert session.record.texts() == [("assistant", "Until six.")]
        assert session.record.truncations() == [("gone", 7)]
        assert [each["code"] for each in session.record.errors()] == ["item_truncate_invalid_item_id"]
        assert session.input_bytes == 3200
        assert session.headers["api-key"] == "sk-test"
