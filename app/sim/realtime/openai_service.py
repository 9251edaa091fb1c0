"""OpenAI Realtime (GA) as a Service: nested sessions, GA names, rate limits (realtime.md 1).

Shapes and defaults are app/sim/realtime/config.py and app/sim/realtime/events.py.
"""

from collections.abc import Sequence
from typing import Any, Final

from app.sim.realtime.audio import PCM_BY_RATE
from app.sim.realtime.billing import transcription_usage
from app.sim.realtime.config import audio_format_of, format_shape, new_session, settings, updated
from app.sim.realtime.events import client_event
from app.sim.realtime.items import without_audio
from app.sim.realtime.schema import Refusal, invalid_value
from app.sim.realtime.service import InputTokens, Names, ResponseSettings, SessionSettings

Json = dict[str, Any]

NAMES: Final = Names(
    audio_delta="response.output_audio.delta",
    audio_done="response.output_audio.done",
    transcript_delta="response.output_audio_transcript.delta",
    transcript_done="response.output_audio_transcript.done",
    text_delta="response.output_text.delta",
    text_done="response.output_text.done",
    item_added="conversation.item.added",
    item_done="conversation.item.done",
    audio_content="output_audio",
    text_content="output_text",
)


class OpenAI:
    """OpenAI takes PCM at 24 kHz and G.711. Third-party servers with its protocol may take other formats."""

    names = NAMES
    tells_rate_limits = True
    returns_agent_audio = True

    def __init__(self, rates: Sequence[int] = (24_000,), *, g711: bool = True) -> None:
        if not rates or not set(rates) <= PCM_BY_RATE.keys():
            raise ValueError(f"rates of PCM must be some of {tuple(PCM_BY_RATE)}: {rates}")
        self._check = client_event(format_shape(rates, g711=g711))
        self._pcm = {"type": "audio/pcm", "rate": max(rates)}

    def check(self, event: Json) -> None:
        """See Service."""
        self._check(event, "")
        if event["type"] == "output_audio_buffer.clear":
            raise invalid_value(f"'{event['type']}' is for WebRTC and SIP sessions only.", "type")

    def new_session(self, session_id: str, model: str, expires_at: int) -> Json:
        """See Service: PCM both ways."""
        return new_session(session_id, model, expires_at, self._pcm)

    def updated(self, session: Json, change: Json, *, has_spoken: bool, is_speaking: bool) -> Json:
        """See Service."""
        return updated(session, change, has_spoken=has_spoken, is_speaking=is_speaking)

    def settings(self, session: Json) -> SessionSettings:
        """See Service."""
        return settings(session)

    def with_format(self, session: Json, name: str) -> Json:
        """See Service."""
        wire = self._pcm if name == "audio/pcm" else {"type": name}
        audio = {side: {**audio, "format": wire} for side, audio in session["audio"].items()}
        return {**session, "audio": audio}

    def without_formats(self, event: Json) -> Json:
        """See Service."""
        match event:
            case {"session": {"audio": {**audio}} as session}:
                sides = {side: _without(each, "format") for side, each in audio.items()}
                return {**event, "session": {**session, "audio": sides}}
            case _:
                return event

    def response(
        self, session: Json, params: Json, *, has_spoken: bool, conversation_id: str | None
    ) -> ResponseSettings:
        """See Service."""
        output = {**session["audio"]["output"], **params.get("audio", {}).get("output", {})}
        if has_spoken and output["voice"] != session["audio"]["output"]["voice"]:
            message = "Cannot update a conversation's voice if assistant audio is present."
            raise Refusal("cannot_update_voice", message, "response.audio.output.voice")
        chosen = {**session, **params}
        voice = output["voice"]
        shown_voice = voice if isinstance(voice, str) else voice["id"]
        return ResponseSettings(
            output_format=audio_format_of(output["format"]),
            modality=chosen["output_modalities"][0],
            max_output_tokens=chosen["max_output_tokens"],
            metadata=params.get("metadata"),
            conversation_id=conversation_id,
            shown={
                "output_modalities": chosen["output_modalities"],
                "max_output_tokens": chosen["max_output_tokens"],
                "audio": {"output": {"format": output["format"], "voice": shown_voice}},
            },
        )

    def item(self, body: Json, new_id: str) -> Json:
        """See Service."""
        if body["type"] == "mcp_approval_response":
            return {"id": new_id, **body}
        return {"id": new_id, "object": "realtime.item", "status": "completed", **without_audio(body)}

    def input_token_details(self, tokens: InputTokens) -> Json:
        """See Service."""
        cached = {"text_tokens": tokens.cached_text, "audio_tokens": tokens.cached_audio, "image_tokens": 0}
        return {
            "text_tokens": tokens.text,
            "audio_tokens": tokens.audio,
            "image_tokens": 0,
            "cached_tokens": tokens.cached_text + tokens.cached_audio,
            "cached_tokens_details": cached,
        }

    def transcribed(self, model: str, audio_ms: int, words: str) -> Json:
        """See Service."""
        return {"usage": transcription_usage(model, audio_ms, words)}


def _without(value: Any, name: str) -> Any:
    return {key: each for key, each in value.items() if key != name} if isinstance(value, dict) else value
