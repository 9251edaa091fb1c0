"""Azure Voice Live (realtime.md 2): only its own words; what it shares with OpenAI Realtime is in realtime.py.

Its session is flat and its events have OpenAI's preview names. It hosts models of two sorts: gpt-realtime, which
hears and speaks by itself, and text models between Azure's own recognition and voices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from app.call.events import BackendConfigured, BackendFault, CreateResponse, ErrorKind, Event
from app.call.plan import Plan
from app.wire import realtime
from app.wire.dialect import is_azure_voice
from app.wire.failures import warning
from app.wire.formats import AudioFormat
from app.wire.text import object_of
from app.wire.tuning import NATIVE, NOISE_REDUCTIONS, VADS, VOICELIVE, speaks_by_itself

API_VERSION = "2026-07-15"
"""GA; the first that tells when a session ends (realtime.md 2.1)."""

_INPUT = MappingProxyType({audio: "g711_ulaw" if audio is AudioFormat.G711 else "pcm16" for audio in AudioFormat})
_OUTPUT = MappingProxyType(
    {
        AudioFormat.G711: "g711_ulaw",
        AudioFormat.PCM16_8K: "pcm16_8000hz",
        AudioFormat.PCM16_16K: "pcm16_16000hz",
        AudioFormat.PCM16_24K: "pcm16",
    }
)
"""realtime.md 2.2: the rate is a field of its own on the way in, and a part of the name on the way out."""

_TRANSCRIPTION = ("gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-4o-transcribe-diarize", "whisper-1")
"""What goes with the gpt-realtime models, the default first; others have `azure-speech` (realtime.md 2.2)."""


@dataclass(frozen=True, slots=True)
class VoiceLive(realtime.RealtimeDialect):
    """The dialect. `base_url` is the resource's endpoint: http(s)://NAME.services.ai.azure.com."""

    name: str = VOICELIVE

    def fitted(self, plan: Plan) -> Plan:
        """See Dialect. A tenant's own voice counts when it is one of Azure's, or the model has OpenAI's."""
        tuning = self.tuning
        model = tuning.model or plan.model
        voice = plan.voice if is_azure_voice(plan.voice) else tuning.voice or plan.voice
        return replace(
            plan,
            model=model,
            transcription_model=tuning.transcription_model or _transcription_model(model, plan),
            voice=voice,
        )

    def _own_parsers(self) -> realtime.Parsers:
        return {
            "response.audio.delta": realtime.audio,
            "response.audio.done": realtime.audio_ended,
            "response.audio_transcript.delta": realtime.text,
            "response.audio_transcript.done": realtime.text_ended,
            "response.text.delta": realtime.text,
            "response.text.done": realtime.written_ended,
            "session.updated": _configured(self.tuning.audio, echoed=self.tuning.echoes_formats),
            "warning": _warned,
        }

    def _target(self, model: str) -> str:
        return f"/voice-live/realtime?api-version={API_VERSION}&model={model}"

    def _response(self, command: CreateResponse) -> dict[str, Any]:
        """Exact words are spoken without asking a model (realtime.md 2.3)."""
        if not command.words:
            return realtime.asked_for(command)
        content = [{"type": "text", "text": command.words}]
        message = {"type": "message", "role": "assistant", "content": content}
        return {"pre_generated_assistant_message": message}

    @property
    def _agent_text(self) -> str:
        return "text"

    def _session(self, plan: Plan) -> dict[str, Any]:
        audio = self.tuning.audio
        noise_reduction = self.tuning.noise_reduction or NOISE_REDUCTIONS[VOICELIVE][0]
        session: dict[str, Any] = {
            "modalities": ["text", "audio"],
            "instructions": plan.instructions,
            "voice": _voice(plan),
            "input_audio_format": _INPUT[audio],
            "input_audio_sampling_rate": audio.rate_hz,
            "output_audio_format": _OUTPUT[audio],
            "input_audio_transcription": {
                "model": plan.transcription_model,
                "language": plan.language if _azure_speech(plan) else plan.language.split("-")[0],
            },
            "turn_detection": self._turn_detection(plan),
            "tools": realtime.tools(plan),
            "tool_choice": "auto",
        }
        if noise_reduction != "none":
            session["input_audio_noise_reduction"] = {"type": noise_reduction}
        if self.tuning.echo_cancellation:
            session["input_audio_echo_cancellation"] = {"type": "server_echo_cancellation"}
        return session

    def _turn_detection(self, plan: Plan) -> dict[str, Any]:
        vad = self.tuning.vad or VADS[VOICELIVE][0]
        then = {"create_response": True, "interrupt_response": True, "auto_truncate": self.tuning.auto_truncate}
        if vad == "semantic_vad":
            return {"type": vad, "eagerness": "auto", **then}
        silence_ms = plan.vad_silence_ms
        return {"type": vad, "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": silence_ms, **then}


def _transcription_model(model: str, plan: Plan) -> str:
    if not speaks_by_itself(model):
        return "azure-speech"
    return plan.transcription_model if plan.transcription_model in _TRANSCRIPTION else _TRANSCRIPTION[0]


def _azure_speech(plan: Plan) -> bool:
    """Takes a language with its country; OpenAI's models take one without."""
    return plan.transcription_model not in _TRANSCRIPTION


def _voice(plan: Plan) -> dict[str, str]:
    if is_azure_voice(plan.voice):
        return {"type": "azure-standard", "name": plan.voice}
    return {"type": "azure-realtime-native" if plan.model == NATIVE else "openai", "name": plan.voice}


def _configured(asked: AudioFormat, *, echoed: bool) -> realtime.Parser:
    """Compares what is echoed with what was asked for; unless it must be `echoed`, it may be left out."""
    wanted = (_INPUT[asked], asked.rate_hz, _OUTPUT[asked])

    def configured(values: dict[str, Any]) -> Sequence[Event]:
        session = object_of(values, "session")
        taken, rate, given = (
            session.get(key) for key in ("input_audio_format", "input_audio_sampling_rate", "output_audio_format")
        )
        # G.711 has one rate, which need not be echoed.
        needed = (echoed, echoed and asked is not AudioFormat.G711, echoed)
        match = all(
            found == value or (found is None and not must)
            for found, value, must in zip((taken, rate, given), wanted, needed, strict=True)
        )
        return (BackendConfigured(match, f"{taken}"[:32] + f"@{rate}"[:12] + f"/{given}"[:32]),)

    return configured


def _warned(values: dict[str, Any]) -> Sequence[Event]:
    return (BackendFault(ErrorKind.WARNING, warning(realtime.error_code(object_of(values, "warning")))),)
