"""The checks against the vendor's types: our examples pass, and what the types alone let through does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.sim.realtime.voicelive_service import VoiceLive
from tests.voicelive_types import check_client_event, check_server_event

Json = dict[str, Any]

VECTORS = Path(__file__).parents[2] / "vectors"


def vectors(name: str) -> list[Json]:
    return [json.loads(line) for line in (VECTORS / name).read_text().splitlines()]


@pytest.mark.parametrize("event", vectors("voicelive_client.jsonl"), ids=lambda event: event["type"])
def test_client_example_passes_the_types_and_the_simulator(event: Json) -> None:
    check_client_event(event)
    VoiceLive().check(event)


@pytest.mark.parametrize("event", vectors("voicelive_server.jsonl"), ids=lambda event: event["type"])
def test_server_example_passes(event: Json) -> None:
    check_server_event(event)


def update(**session: Any) -> Json:
    return {"type": "session.update", "session": session}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({}, "None: no such event"),
        ({"type": "session.updat"}, "no such event"),
        ({"type": "session.update"}, "missing member session"),
        (update(type="realtime"), "unknown member session.type"),
        (update(audio={}), "unknown member session.audio"),
        (update(output_audio_format="audio/pcmu"), "session.output_audio_format: 'audio/pcmu' is none of pcm16"),
        (update(input_audio_format="pcm16_8000hz"), "session.input_audio_format"),
        (update(input_audio_sampling_rate="8000"), "session.input_audio_sampling_rate: '8000' is no int"),
        (update(input_audio_format="g711_ulaw", input_audio_sampling_rate=24000), "24000 not in"),
        (
            update(turn_detection={"type": "server_vad", "idle_timeout_ms": 5000}),
            "unknown member .*idle_timeout_ms",
        ),
        (update(turn_detection={"type": "azure_multilingual_semantic_vad"}), "no such TurnDetection"),
        (update(turn_detection={"threshold": 0.5}), "no such TurnDetection"),
        (update(turn_detection={"type": "server_vad", "threshold": 2.0}), "threshold 2.0"),
        (update(turn_detection={"type": "server_vad", "create_response": 1}), "1 is no bool"),
        (update(voice={"type": "openai", "name": "nova"}), "session.voice.name: 'nova'"),
        (update(voice={"type": "openai"}), "missing member session.voice.name"),
        (update(input_audio_transcription={"model": "gpt-transcribe"}), "transcription.model: 'gpt-transcribe'"),
        (update(modalities=["audio"]), "audio alone"),
        (update(temperature=0.1), "temperature 0.1"),
        (update(max_response_output_tokens=5000), "max_response_output_tokens 5000"),
        (update(tools=[{"type": "function"}]), "missing member session.tools.0.name"),
        (
            {"type": "conversation.item.create", "item": {"type": "message", "role": "tool", "content": []}},
            "no such ConversationRequestItem|no such MessageItem",
        ),
        (
            {
                "type": "conversation.item.create",
                "item": {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "x"}],
                },
            },
            "no such MessageContentPart: 'output_text'",
        ),
        ({"type": "response.create", "response": {"output_modalities": []}}, "unknown member response.output_mod"),
        ({"type": "response.create", "response": {"metadata": {str(n): "" for n in range(17)}}}, "over 16 pairs"),
        ({"type": "response.cancel", "event_id": "x" * 513}, "over 512"),
        (
            {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": 1.5},
            "audio_end_ms: 1.5 is no int",
        ),
    ],
)
def test_client_event_that_the_service_would_refuse_is_found(event: Json, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_client_event(event)


DELTA = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"type": "response.output_audio.delta", "event_id": "e", **DELTA, "delta": ""}, "no such event"),
        ({"type": "conversation.item.added", "event_id": "e"}, "no such event"),
        ({"type": "rate_limits.updated", "event_id": "e"}, "no such event"),
        ({"type": "response.audio.delta", "event_id": "e", **DELTA, "delta": "%%%"}, "delta: '%%%' is no bytes"),
        ({"type": "response.audio.delta", "event_id": "e", **DELTA}, "missing member delta"),
        ({"type": "input_audio_buffer.cleared"}, "no event_id"),
        ({"type": "input_audio_buffer.cleared", "event_id": "e", "more": 1}, "unknown member more"),
        (
            {"type": "response.done", "event_id": "e", "response": {"id": "r", "status": "over"}},
            "response.status: 'over'",
        ),
        (
            {
                "type": "response.content_part.done",
                "event_id": "e",
                **DELTA,
                "part": {"type": "output_audio", "transcript": ""},
            },
            "no such ContentPart: 'output_audio'",
        ),
    ],
)
def test_server_event_that_the_service_would_not_send_is_found(event: Json, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_server_event(event)


@pytest.mark.parametrize(
    "event",
    [
        update(turn_detection={"type": "semantic_vad", "eagerness": "low"}),
        update(turn_detection={"type": "server_vad", "speech_duration_ms": 200}),
        update(turn_detection=None),
        update(input_audio_transcription={"model": "mai-transcribe"}),
        update(input_audio_transcription={"model": "gpt-4o-transcribe", "prompt": "Names: Example."}),
        {"type": "response.create", "response": {"max_response_output_tokens": 100}},
    ],
)
def test_what_the_service_has_beyond_the_sdk_is_known_from_our_notes(event: Json) -> None:
    check_client_event(event)
