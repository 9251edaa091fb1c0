"""Azure Voice Live as a Service: flat sessions, the beta's names, no rate limits (realtime.md 2).

Shapes and defaults are app/sim/realtime/voicelive_config.py and app/sim/realtime/voicelive_events.py.
"""

from typing import Any, Final

from app.sim.realtime.items import without_audio
from app.sim.realtime.service import InputTokens, Names, ResponseSettings, SessionSettings
from app.sim.realtime.voicelive_config import OUTPUT_FORMATS, PCM16, check_voice, new_session, settings, updated
from app.sim.realtime.voicelive_events import CLIENT_EVENT

Json = dict[str, Any]

NAMES: Final = Names(
    audio_delta="response.audio.delta",
    audio_done="response.audio.done",
    transcript_delta="response.audio_transcript.delta",
    transcript_done="response.audio_transcript.done",
    text_delta="response.text.delta",
    text_done="response.text.done",
    item_added="conversation.item.created",
    item_done=None,
    audio_content="audio",
    text_content="text",
)
_FORMAT_MEMBERS: Final = ("input_audio_format", "input_audio_sampling_rate", "output_audio_format")


class VoiceLive:
    """API version 2026-07-15."""

    names = NAMES
    tells_rate_limits = False
    returns_agent_audio = False

    def check(self, event: Json) -> None:
        """See Service."""
        CLIENT_EVENT(event, "")

    def new_session(self, session_id: str, model: str, expires_at: int) -> Json:
        """See Service."""
        return new_session(session_id, model, expires_at)

    def updated(self, session: Json, change: Json, *, has_spoken: bool, is_speaking: bool) -> Json:  # noqa: ARG002
        """See Service: nothing in it waits for the end of a response."""
        return updated(session, change, has_spoken=has_spoken)

    def settings(self, session: Json) -> SessionSettings:
        """See Service."""
        return settings(session)

    def with_format(self, session: Json, name: str) -> Json:
        """See Service."""
        rate = 24_000 if name == PCM16 else 8_000
        formats = dict(zip(_FORMAT_MEMBERS, (name, rate, name), strict=True))
        return {**session, **formats}

    def without_formats(self, event: Json) -> Json:
        """See Service."""
        match event:
            case {"session": {**session}}:
                kept = {name: value for name, value in session.items() if name not in _FORMAT_MEMBERS}
                return {**event, "session": kept}
            case _:
                return event

    def response(
        self, session: Json, params: Json, *, has_spoken: bool, conversation_id: str | None
    ) -> ResponseSettings:
        """See Service."""
        chosen = {**session, **params}
        check_voice(session, chosen["voice"], "response.voice", has_spoken=has_spoken)
        most = params.get("max_output_tokens", chosen["max_response_output_tokens"])
        message = params.get("pre_generated_assistant_message")
        return ResponseSettings(
            output_format=OUTPUT_FORMATS[chosen["output_audio_format"]],
            modality="audio" if "audio" in chosen["modalities"] else "text",
            max_output_tokens=most,
            metadata=params.get("metadata"),
            conversation_id=conversation_id,
            shown={
                "modalities": chosen["modalities"],
                "voice": chosen["voice"],
                "output_audio_format": chosen["output_audio_format"],
                "temperature": chosen["temperature"],
                "max_output_tokens": most,
            },
            words=None if message is None else "".join(part["text"] for part in message["content"]),
        )

    def item(self, body: Json, new_id: str) -> Json:
        """See Service: the output of a call has no status here."""
        status = {} if body["type"] == "function_call_output" else {"status": "completed"}
        if body["type"] == "mcp_approval_response":
            status = {}
        return {"id": new_id, "object": "realtime.item", **status, **without_audio(body)}

    def input_token_details(self, tokens: InputTokens) -> Json:
        """See Service: details of what was cached can be missing, and are."""
        return {
            "cached_tokens": tokens.cached_text + tokens.cached_audio,
            "text_tokens": tokens.text,
            "audio_tokens": tokens.audio,
        }

    def transcribed(self, model: str, audio_ms: int, words: str) -> Json:  # noqa: ARG002
        """See Service: nothing."""
        return {}
