"""The checks against the vendor's types: our examples pass, and what the types alone let through does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.sim.realtime.openai_service import OpenAI
from tests.openai_types import check_client_event, check_server_event

Json = dict[str, Any]

VECTORS = Path(__file__).parents[2] / "vectors"


def vectors(name: str) -> list[Json]:
    return [json.loads(line) for line in (VECTORS / name).read_text().splitlines()]


@pytest.mark.parametrize("event", vectors("openai_client.jsonl"), ids=lambda event: event["type"])
def test_client_example_passes_the_types_and_the_simulator(event: Json) -> None:
    check_client_event(event)
    OpenAI().check(event)


@pytest.mark.parametrize("event", vectors("openai_server.jsonl"), ids=lambda event: event["type"])
def test_server_example_passes(event: Json) -> None:
    check_server_event(event)


def update(**session: Any) -> Json:
    return {"type": "session.update", "session": {"type": "realtime", **session}}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({}, "None: no such event"),
        ({"type": "transcription_session.update"}, "no such event"),
        ({"type": "session.update", "session": {}}, "session"),
        (update(modalities=["audio"]), "unknown member session.modalities"),
        (update(id="sess_1"), "unknown member session.id"),
        (
            update(audio={"input": {"format": {"type": "audio/pcmu", "rate": 8000}}}),
            "unknown member .*format.rate",
        ),
        (update(audio={"input": {"format": {"type": "g711_ulaw"}}}), "format"),
        (update(output_modalities=["audio", "text"]), "both modalities"),
        (update(max_output_tokens=5000), "max_output_tokens 5000"),
        (update(audio={"output": {"speed": 2.0}}), "speed 2.0"),
        (update(audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 2.0}}}), "threshold 2.0"),
        (
            update(audio={"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 1}}}),
            "idle_timeout_ms 1",
        ),
        ({"type": "response.create", "response": {"modalities": ["audio"]}}, "unknown member response.modalities"),
        ({"type": "response.create", "response": {"metadata": {str(n): "" for n in range(17)}}}, "over 16 pairs"),
        ({"type": "response.cancel", "event_id": "x" * 513}, "over 512"),
        (
            {"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": 1.5},
            "audio_end_ms",
        ),
    ],
)
def test_client_event_that_the_service_would_refuse_is_found(event: Json, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_client_event(event)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"type": "response.cancelled", "event_id": "e"}, "no such event"),
        ({"type": "response.audio.delta", "event_id": "e"}, "no such event"),
        ({"type": "input_audio_buffer.cleared"}, "event_id"),
        ({"type": "input_audio_buffer.cleared", "event_id": "e", "more": 1}, "unknown member more"),
        (
            {
                "type": "response.content_part.done",
                "event_id": "e",
                "response_id": "r",
                "item_id": "i",
                "output_index": 0,
                "content_index": 0,
                "part": {"type": "output_audio"},
            },
            "part.type",
        ),
    ],
)
def test_server_event_that_the_service_would_not_send_is_found(event: Json, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_server_event(event)


def test_phase_of_an_item_is_known_from_our_notes() -> None:
    item = {"type": "message", "role": "assistant", "content": [], "phase": "commentary"}
    check_server_event({"type": "conversation.item.done", "event_id": "e", "previous_item_id": None, "item": item})
