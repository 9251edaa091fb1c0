"""The simulated Realtime backend: connecting, configuring, refusing."""

import asyncio
import json
import time
from base64 import b64encode
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.sim.realtime import server as realtime_server
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import ONE_HUGE_DELTA, Message, Reply
from tests.sim.realtime_client import (
    PCM,
    PCMU,
    SERVER_VAD,
    answers,
    dial,
    loud,
    silence,
    telephone,
)

pytestmark = pytest.mark.anyio

Json = dict[str, Any]


async def test_session_opens_with_pcm_defaults_and_its_end() -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        (created,) = client.events
        session = created["session"]
        assert session["model"] == "gpt-realtime-2.1"
        assert session["audio"]["input"]["format"] == PCM
        assert session["audio"]["output"]["format"] == PCM
        assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"
        assert abs(session["expires_at"] - (time.time() + 3600)) < 60


@pytest.mark.parametrize(
    ("key", "path", "status"),
    [(None, "/v1/realtime", 401), ("wrong", "/v1/realtime", 401), ("sk-right", "/v1/elsewhere", 404)],
)
async def test_upgrade_without_the_right_key_or_path_is_refused(key: str | None, path: str, status: int) -> None:
    async with RealtimeSimulator(api_key="sk-right") as sim:
        url = sim.ws_url.replace("/v1/realtime", path) + "?model=gpt-realtime-2.1"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, additional_headers=headers)
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body or b"")["error"]["message"]
        assert [upgrade.status for upgrade in sim.upgrades] == [status]


async def test_upgrade_with_the_right_key_is_accepted() -> None:
    async with (
        RealtimeSimulator(api_key="sk-right") as sim,
        dial(sim, headers={"Authorization": "Bearer sk-right"}),
    ):
        assert [upgrade.status for upgrade in sim.upgrades] == [101]


async def test_beta_header_gets_an_error_and_close_4000() -> None:
    headers = {"Authorization": "Bearer sk-test", "OpenAI-Beta": "realtime=v1"}
    async with RealtimeSimulator() as sim, dial(sim, greeted=False, headers=headers) as client:
        assert (await client.next())["error"]["code"] == "beta_api_shape_disabled"
        assert await client.closed() == (4000, "invalid_request_error.beta_api_shape_disabled")
        assert sim.sessions == []


async def test_session_without_a_model_gets_an_error_and_close_4000() -> None:
    async with RealtimeSimulator() as sim, dial(sim, greeted=False, query="") as client:
        assert (await client.next())["error"]["param"] == "model"
        assert (await client.closed())[0] == 4000


async def test_update_is_echoed_with_the_whole_session() -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        change = {**telephone(), "instructions": "Be brief.", "max_output_tokens": 2048}
        session = (await client.configure(change))["session"]
        assert session["audio"]["input"]["format"] == PCMU
        assert session["audio"]["output"] == {"format": PCMU, "voice": "marin", "speed": 1.0}
        assert session["instructions"] == "Be brief."
        assert session["max_output_tokens"] == 2048
        assert session["tool_choice"] == "auto"
        assert session["audio"]["input"]["turn_detection"]["idle_timeout_ms"] is None


async def test_update_of_one_field_keeps_the_others() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        change = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
        session = (await client.configure(change))["session"]
        assert session["audio"]["input"]["turn_detection"] is None
        assert session["audio"]["input"]["format"] == PCMU
        assert session["audio"]["output"]["voice"] == "marin"


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({"instructions": "no type"}, "missing_required_parameter", "session.type"),
        ({"type": "transcription"}, "invalid_value", "session.type"),
        ({"type": "realtime", "voice": "alloy"}, "unknown_parameter", "session.voice"),
        ({"type": "realtime", "modalities": ["audio"]}, "unknown_parameter", "session.modalities"),
        ({"type": "realtime", "temperature": 0.8}, "unknown_parameter", "session.temperature"),
        (
            {"type": "realtime", "input_audio_format": "g711_ulaw"},
            "unknown_parameter",
            "session.input_audio_format",
        ),
        ({"type": "realtime", "turn_detection": None}, "unknown_parameter", "session.turn_detection"),
        (
            {"type": "realtime", "output_modalities": ["audio", "text"]},
            "invalid_value",
            "session.output_modalities",
        ),
        ({"type": "realtime", "model": "gpt-realtime-1.5"}, "invalid_value", "session.model"),
        ({"type": "realtime", "max_output_tokens": 4097}, "integer_above_max_value", "session.max_output_tokens"),
        ({"type": "realtime", "max_output_tokens": True}, "invalid_type", "session.max_output_tokens"),
        (
            {"type": "realtime", "tools": [{"type": "function"}]},
            "missing_required_parameter",
            "session.tools[0].name",
        ),
        ({"type": "realtime", "tools": None}, "invalid_type", "session.tools"),
    ],
)
async def test_wrong_session_is_refused_by_name(session: Json, code: str, param: str) -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        error = await client.refused("session.update", session=session)
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)


@pytest.mark.parametrize(
    ("audio", "code", "param"),
    [
        ({"input": {"format": {"type": "g711_ulaw"}}}, "invalid_value", "input.format.type"),
        ({"input": {"format": "pcm16"}}, "invalid_type", "input.format"),
        ({"input": {"format": {"type": "audio/pcmu", "rate": 8000}}}, "unknown_parameter", "input.format.rate"),
        (
            {"input": {"format": {"type": "audio/pcm", "rate": 16000}}},
            "integer_below_min_value",
            "input.format.rate",
        ),
        ({"input": {"format": {"type": "audio/pcm"}}}, "missing_required_parameter", "input.format.rate"),
        (
            {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 100}}},
            "integer_below_min_value",
            "input.turn_detection.idle_timeout_ms",
        ),
        (
            {"input": {"turn_detection": {"type": "server_vad", "threshold": 1.5}}},
            "decimal_above_max_value",
            "input.turn_detection.threshold",
        ),
        (
            {"input": {"turn_detection": {"type": "semantic_vad", "silence_duration_ms": 500}}},
            "unknown_parameter",
            "input.turn_detection.silence_duration_ms",
        ),
        (
            {"input": {"transcription": {"language": "en"}}},
            "missing_required_parameter",
            "input.transcription.model",
        ),
        ({"output": {"voice": "nova"}}, "invalid_value", "output.voice"),
        ({"output": {"speed": 2}}, "decimal_above_max_value", "output.speed"),
    ],
)
async def test_wrong_audio_is_refused_and_the_old_configuration_stays(audio: Json, code: str, param: str) -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        error = await client.refused("session.update", session={"type": "realtime", "audio": audio})
        assert (error["code"], error["param"]) == (code, f"session.audio.{param}")
        session = (await client.configure({"type": "realtime"}))["session"]
        assert session["audio"]["input"]["format"] == PCMU
        assert session["audio"]["input"]["turn_detection"] == {
            **SERVER_VAD,
            "idle_timeout_ms": None,
            "create_response": True,
            "interrupt_response": True,
        }


async def test_unknown_parameter_is_refused_with_the_known_text() -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        wrong = {"type": "realtime", "input_audio_format": "g711_ulaw"}
        error = await client.refused("session.update", session=wrong)
        assert error["message"] == "Unknown parameter: 'session.input_audio_format'."


async def test_voice_cannot_change_after_the_first_audio() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        await client.send("response.create")
        await client.until("response.done")
        change = {"type": "realtime", "audio": {"output": {"voice": "cedar"}}}
        assert (await client.refused("session.update", session=change))["code"] == "cannot_update_voice"
        same = {"type": "realtime", "audio": {"output": {"voice": "marin"}}}
        assert (await client.configure(same))["session"]["audio"]["output"]["voice"] == "marin"


async def test_voice_can_change_before_the_first_audio() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        change = {"type": "realtime", "audio": {"output": {"voice": "cedar"}}}
        assert (await client.configure(change))["session"]["audio"]["output"]["voice"] == "cedar"


async def test_speed_cannot_change_during_a_response() -> None:
    script = answers(Reply((Message.lasting("Wait.", 1000),), hold_after_deltas=1))
    async with RealtimeSimulator(script=script) as sim, dial(sim, telephone()) as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        change = {"type": "realtime", "audio": {"output": {"speed": 1.2}}}
        error = await client.refused("session.update", session=change)
        assert error["param"] == "session.audio.output.speed"


async def test_reasoning_is_refused_by_a_model_that_has_none() -> None:
    async with RealtimeSimulator() as sim, dial(sim, query="?model=gpt-realtime-1.5") as client:
        wanted = {"type": "realtime", "reasoning": {"effort": "low"}}
        assert (await client.refused("session.update", session=wanted))["param"] == "session.reasoning"


async def test_enabled_tracing_cannot_be_switched_off() -> None:
    async with RealtimeSimulator() as sim, dial(sim, {"type": "realtime", "tracing": "auto"}) as client:
        off = {"type": "realtime", "tracing": None}
        assert (await client.refused("session.update", session=off))["param"] == "session.tracing"


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        ({"no": "type"}, "missing_required_parameter", "type"),
        ({"type": "session.updat"}, "invalid_value", "type"),
        ({"type": "transcription_session.update", "session": {}}, "invalid_value", "type"),
        ({"type": "session.update"}, "missing_required_parameter", "session"),
        ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "%%%"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "AAAA", "extra": 1}, "unknown_parameter", "extra"),
        ({"type": "input_audio_buffer.commit", "event_id": "x" * 513}, "string_above_max_length", "event_id"),
        (
            {"type": "response.create", "response": {"modalities": ["audio"]}},
            "unknown_parameter",
            "response.modalities",
        ),
        ({"type": "response.create", "response": {"metadata": {"a": 1}}}, "invalid_type", "response.metadata.a"),
        ({"type": "response.create", "response": {"metadata": 1}}, "invalid_type", "response.metadata"),
        ({"type": "output_audio_buffer.clear"}, "invalid_value", "type"),
        (["not", "an", "object"], "invalid_event", None),
    ],
)
async def test_wrong_event_is_refused_and_the_session_goes_on(event: object, code: str, param: str | None) -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        await client.send_raw(event)
        error = (await client.until("error"))["error"]
        assert (error["code"], error["param"]) == (code, param)
        await client.configure(telephone())


@pytest.mark.parametrize("message", ["{", b'{"type":"response.cancel"}'])
async def test_what_is_no_json_text_is_refused(message: str | bytes) -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        await client.websocket.send(message)
        assert (await client.until("error"))["error"]["code"] == "invalid_event"


async def test_append_over_15_mib_is_refused() -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        too_much = b64encode(bytes(15 * 1024 * 1024 + 1)).decode()
        assert (await client.refused("input_audio_buffer.append", audio=too_much))["param"] == "audio"


async def test_recording_keeps_what_the_client_sent_in_order() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        await client.append(loud(20))
        await client.append(silence(20))
        await client.send("response.create", response={"metadata": {"purpose": "greeting"}})
        session = await sim.session(0)
        assert (await session.event("response.create"))["response"]["metadata"] == {"purpose": "greeting"}
        assert [each.type for each in session.received][:2] == ["session.update", "input_audio_buffer.append"]
        assert session.input_bytes == 320
        assert bytes(session.input_audio) == loud(20) + silence(20)
        assert session.headers["authorization"] == "Bearer sk-test"


async def test_simulator_without_recording_keeps_nothing() -> None:
    async with RealtimeSimulator(record=False) as sim:
        async with dial(sim, telephone()) as client:
            await client.append(loud(20))
            session = await sim.session(0)
            await session.wait_for(lambda each: each.input_bytes == 160)
            assert (session.received, session.sent, bytes(session.input_audio)) == ([], [], b"")
        async with asyncio.timeout(10):
            await sim.wait_for(lambda each: each.sessions == [])
        assert sim.upgrades == []


async def test_stop_ends_sessions_with_1001_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    sim = RealtimeSimulator(script=answers(Reply((Message.lasting("Wait.", 1000),), hold_after_deltas=1)))
    await sim.start()
    async with dial(sim, telephone()) as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        await sim.stop()
        assert (await client.closed())[0] == 1001
    assert asyncio.all_tasks() == before


async def test_end_of_a_session_cancels_its_timers() -> None:
    async with RealtimeSimulator() as sim:
        async with dial(sim, telephone(idle_timeout_ms=30_000)) as client:
            await client.send("response.create")
            await client.until("response.done")
            session = await sim.session(0)
            idle_and_expiry = session.timers
        async with asyncio.timeout(10):
            await session.wait_for(lambda each: each.close_code is not None)
        assert [timer.cancelled() for timer in idle_and_expiry] == [True, True]


async def test_stop_does_not_wait_for_a_stalled_session() -> None:
    before = asyncio.all_tasks()
    async with RealtimeSimulator() as sim, dial(sim) as client:
        (await sim.session(0)).stall()
        async with asyncio.timeout(1.5):
            await sim.stop()
        assert (await client.closed())[0] == 1006
    assert asyncio.all_tasks() == before


async def test_client_that_lets_too_much_pile_up_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime_server, "MAX_UNSENT_BYTES", 1_000_000)
    hour = Message("Long.", silence(3_600_000))
    script = answers(Reply((hour,), delta_bytes=ONE_HUGE_DELTA))
    async with RealtimeSimulator(script=script) as sim, dial(sim, telephone()) as client:
        await client.send("response.create")
        session = await sim.session(0)
        await session.wait_for(lambda each: each.close_code == 1006)


async def test_script_that_raises_ends_its_session_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    async with RealtimeSimulator(script=answers()) as sim, dial(sim, telephone()) as client:
        await client.send("response.create")
        assert (await client.closed())[0] == 1011
    assert "StopIteration" in caplog.text
