"""OpenAI Realtime, GA (realtime.md 1), and whatever speaks it: Azure OpenAI (realtime.md 3), compatible servers.

Only its own words; what it shares with Voice Live is in realtime.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.call.events import BackendConfigured, CreateResponse, Event
from app.call.plan import Plan
from app.wire import realtime
from app.wire.dialect import is_azure_voice
from app.wire.formats import AudioFormat
from app.wire.text import object_of
from app.wire.tuning import NOISE_REDUCTIONS, OPENAI


@dataclass(frozen=True, slots=True)
class OpenAIRealtime(realtime.RealtimeDialect):
    """The dialect. `base_url` as the official SDK takes it: http(s)://host/v1."""

    name: str = OPENAI

    def fitted(self, plan: Plan) -> Plan:
        """See Dialect."""
        tuning = self.tuning
        own = Plan().voice if is_azure_voice(plan.voice) else plan.voice
        return replace(
            plan,
            model=tuning.model or plan.model,
            transcription_model=tuning.transcription_model or plan.transcription_model,
            voice=tuning.voice or own,
        )

    def _own_parsers(self) -> realtime.Parsers:
        return {
            "response.output_audio.delta": realtime.audio,
            "response.output_audio.done": realtime.audio_ended,
            "response.output_audio_transcript.delta": realtime.text,
            "response.output_audio_transcript.done": realtime.text_ended,
            "response.output_text.delta": realtime.text,
            "response.output_text.done": realtime.written_ended,
            "session.updated": _configured(self.tuning.audio, echoed=self.tuning.echoes_formats),
        }

    def _target(self, model: str) -> str:
        """No OpenAI-Beta header goes along: with it the session is refused (realtime.md 1.1)."""
        return f"/realtime?model={model}"

    def _response(self, command: CreateResponse) -> dict[str, Any]:
        return realtime.asked_for(command)

    @property
    def _agent_text(self) -> str:
        return "output_text"

    def _session(self, plan: Plan) -> dict[str, Any]:
        """The whole session at once: whether a partial `audio` object merges is not said (realtime.md 1.3)."""
        noise_reduction = self.tuning.noise_reduction or NOISE_REDUCTIONS[OPENAI][0]
        return {
            "type": "realtime",
            "output_modalities": ["audio"],
            "instructions": plan.instructions,
            "audio": {
                "input": {
                    "format": _format(self.tuning.audio),
                    "noise_reduction": None if noise_reduction == "none" else {"type": noise_reduction},
                    "transcription": {"model": plan.transcription_model, "language": plan.language.split("-")[0]},
                    "turn_detection": self._turn_detection(plan),
                },
                "output": {"format": _format(self.tuning.audio), "voice": plan.voice},
            },
            "tools": realtime.tools(plan),
            "tool_choice": "auto",
            "tracing": None,
        }

    def _turn_detection(self, plan: Plan) -> dict[str, Any]:
        answers = {"create_response": True, "interrupt_response": True}
        if self.tuning.vad == "semantic_vad":
            return {"type": "semantic_vad", "eagerness": "auto", **answers}
        silence_ms = plan.vad_silence_ms
        thresholds = {"threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": silence_ms}
        return {"type": "server_vad", **thresholds, **answers}


def _format(audio: AudioFormat) -> dict[str, Any]:
    """Mu-law takes no rate (realtime.md 1.3)."""
    return {"type": "audio/pcmu"} if audio is AudioFormat.G711 else {"type": "audio/pcm", "rate": audio.rate_hz}


def _configured(asked: AudioFormat, *, echoed: bool) -> realtime.Parser:
    """Compares what is echoed with what was asked for; unless it must be `echoed`, it may be left out."""
    wanted = _format(asked)

    def configured(values: dict[str, Any]) -> Sequence[Event]:
        audio = object_of(object_of(values, "session"), "audio")
        formats = [object_of(object_of(audio, way), "format") for way in ("input", "output")]
        # Fields that are not ours to know may stand beside them.
        match = all(
            each.get(key, None if echoed else value) == value for each in formats for key, value in wanted.items()
        )
        return (BackendConfigured(match, "/".join(_spelt(each) for each in formats)),)

    return configured


def _spelt(echoed: dict[str, Any]) -> str:
    rate = echoed.get("rate")
    return str(echoed.get("type"))[:32] + (f"@{rate}"[:12] if rate is not None else "")
