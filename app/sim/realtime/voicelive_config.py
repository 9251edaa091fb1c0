"""The configuration of a Voice Live session: defaults, valid updates, and their result (realtime.md 2.2).

Sessions are kept in the shape the wire shows, which is flat, since `session.updated` echoes the whole of it. What
goes with which model (voices, turn detection, transcription) is checked here too. The module decides and returns;
it sends nothing and keeps nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

from app.sim.realtime.audio import PCM_BY_RATE, AudioFormat
from app.sim.realtime.config import VOICES
from app.sim.realtime.schema import (
    Check,
    Refusal,
    anything,
    boolean,
    chosen_by,
    either,
    fields,
    integer,
    invalid_value,
    list_of,
    literal,
    mapping,
    nullable,
    number,
    text,
)
from app.sim.realtime.service import SessionSettings, TurnTaking
from app.sim.realtime.shapes import FUNCTION_TOOL, MAX_OUTPUT_TOKENS, TOOL_CHOICE, metadata, not_simulated
from app.sim.realtime.vad import VadSettings

Json = dict[str, Any]

PCM16: Final = "pcm16"
_G711: Final = {"g711_ulaw": AudioFormat.PCMU, "g711_alaw": AudioFormat.PCMA}
OUTPUT_FORMATS: Final[Mapping[str, AudioFormat]] = {
    PCM16: AudioFormat.PCM_24K,
    "pcm16_8000hz": AudioFormat.PCM_8K,
    "pcm16_16000hz": AudioFormat.PCM_16K,
    **_G711,
}

_OPENAI_TRANSCRIPTION: Final = (
    "whisper-1",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-transcribe-diarize",
)
_AZURE_TRANSCRIPTION: Final = ("azure-speech", "mai-transcribe", "mai-transcribe-1")
_NATIVE_VOICES: Final = (
    *("aarti", "andrew", "ava", "denise", "diya", "elsa"),
    *("florian", "francisca", "meera", "ximena", "xiaoxiao", "yunxi"),
)


def is_gpt_realtime(model: str) -> bool:
    """The family that hears and speaks by itself; `-datazone` and so on are part of its name (realtime.md 2.7)."""
    return model.startswith("gpt-realtime")


# Voices.

_AZURE_VOICE: Final[Mapping[str, Check]] = {
    "temperature": number(0, 1),
    **dict.fromkeys(("rate", "pitch", "volume", "style", "locale"), text()),
    "prefer_locales": list_of(text()),
    "custom_lexicon_url": text(),
    "custom_text_normalization_url": text(),
}
_NAMED: Final = {"type": anything, "name": text()}
VOICE: Final = either(
    literal(*VOICES),
    chosen_by(
        "type",
        {
            "openai": fields({"type": anything, "name": literal(*VOICES)}),
            "azure-standard": fields(_NAMED, _AZURE_VOICE),
            "azure-custom": fields({**_NAMED, "endpoint_id": text()}, _AZURE_VOICE),
            "azure-personal": fields({**_NAMED, "model": text()}, _AZURE_VOICE),
            "azure-realtime-native": fields({"type": anything, "name": literal(*_NATIVE_VOICES)}),
        },
    ),
)


def check_voice(session: Json, voice: str | Json, path: str, *, has_spoken: bool) -> None:
    """Raises Refusal when the session's model does not speak with this voice, or has begun with another.

    A voice of Azure speaks the model's text and could be changed at any time; that it can is not documented.
    """
    model, kind = session["model"], _kind_of(voice)
    if has_spoken and voice != session["voice"] and "openai" in (kind, _kind_of(session["voice"])):
        message = "Cannot update a conversation's voice if assistant audio is present."
        raise Refusal("cannot_update_voice", message, path)
    if kind == "openai" and not is_gpt_realtime(model):
        raise invalid_value(f"Voices of OpenAI are not supported by model '{model}'.", path)
    if kind == "azure-realtime-native" and model != "azure-realtime":
        raise invalid_value(f"Native voices are not supported by model '{model}'.", path)


def _kind_of(voice: str | Json) -> str:
    return "openai" if isinstance(voice, str) else str(voice["type"])


def _default_voice(model: str) -> Json:
    if is_gpt_realtime(model):
        return {"type": "openai", "name": "alloy"}
    if model == "azure-realtime":
        return {"type": "azure-realtime-native", "name": "ava"}
    return {"type": "azure-standard", "name": "en-US-Ava:DragonHDLatestNeural"}


# Turn detection.

_END_OF_UTTERANCE: Final = fields(
    {"model": literal("semantic_detection_v1", "semantic_detection_v1_en", "semantic_detection_v1_multilingual")},
    {"threshold_level": literal("low", "medium", "high", "default"), "timeout_ms": integer(0)},
)
_ANSWERING: Final[Mapping[str, Check]] = {
    "create_response": boolean,
    "interrupt_response": boolean,
    "auto_truncate": boolean,
}
_BY_SOUND: Final[Mapping[str, Check]] = {
    **_ANSWERING,
    "threshold": number(0, 1),
    "prefix_padding_ms": integer(0),
    "silence_duration_ms": integer(0),
    "speech_duration_ms": integer(0),
    "end_of_utterance_detection": nullable(_END_OF_UTTERANCE),
}
_AZURE_VAD: Final[Mapping[str, Check]] = {**_BY_SOUND, "remove_filler_words": boolean}
_AZURE_KINDS: Final = ("azure_semantic_vad", "azure_semantic_vad_en", "azure_semantic_vad_multilingual")
_TURN_DETECTION: Final = chosen_by(
    "type",
    {
        "server_vad": fields({"type": anything}, _BY_SOUND),
        "semantic_vad": fields(
            {"type": anything}, {**_ANSWERING, "eagerness": literal("low", "medium", "high", "auto")}
        ),
        "azure_semantic_vad": fields({"type": anything}, {**_AZURE_VAD, "languages": list_of(text())}),
        "azure_semantic_vad_en": fields({"type": anything}, _AZURE_VAD),
        "azure_semantic_vad_multilingual": fields(
            {"type": anything}, {**_AZURE_VAD, "languages": list_of(text())}
        ),
    },
)
_ANSWERING_DEFAULTS: Final = {"create_response": True, "interrupt_response": True, "auto_truncate": False}
_AZURE_DEFAULTS: Final = {
    **_ANSWERING_DEFAULTS,
    "threshold": 0.5,
    "prefix_padding_ms": 420,
    "silence_duration_ms": 500,
    "speech_duration_ms": 80,
    "remove_filler_words": False,
}
_TURN_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "server_vad": {
        **_ANSWERING_DEFAULTS,
        "threshold": 0.5,
        "prefix_padding_ms": 400,
        "silence_duration_ms": 500,
        "speech_duration_ms": 200,
    },
    "semantic_vad": {**_ANSWERING_DEFAULTS, "eagerness": "auto"},
    **dict.fromkeys(_AZURE_KINDS, _AZURE_DEFAULTS),
}
"""Of API versions from 2026-04-10 on."""


def _with_defaults(turn_detection: Json | None) -> Json | None:
    if turn_detection is None:
        return None
    kind = turn_detection["type"]
    return {"type": kind, **_TURN_DEFAULTS[kind], **turn_detection}


# The whole session.


def _modalities(value: Any, path: str) -> None:
    list_of(literal("text", "audio"))(value, path)
    if sorted(value) not in (["text"], ["audio", "text"]):
        supported = "['text'] and ['text', 'audio']"
        raise invalid_value(f"Invalid modalities: {value}. Supported combinations are: {supported}.", path)


_MCP_TOOL: Final = fields(
    {"type": anything, "server_label": text(), "server_url": text()},
    {
        "authorization": text(),
        "headers": mapping,
        "allowed_tools": list_of(text()),
        "require_approval": either(literal("never", "always"), mapping),
    },
)
GENERATION: Final[Mapping[str, Check]] = {
    "modalities": _modalities,
    "instructions": text(),
    "voice": VOICE,
    "output_audio_format": literal(*OUTPUT_FORMATS),
    "tools": list_of(
        chosen_by("type", {"function": FUNCTION_TOOL, "mcp": _MCP_TOOL, "foundry_agent": not_simulated})
    ),
    "tool_choice": TOOL_CHOICE,
    "temperature": number(0.6, 1.2),
    "max_response_output_tokens": MAX_OUTPUT_TOKENS,
    "reasoning_effort": literal("none", "minimal", "low", "medium", "high", "xhigh"),
    "metadata": nullable(metadata),
    "interim_response": nullable(not_simulated),
}
"""The members that sessions and single responses share."""

SESSION_UPDATE: Final = fields(
    optional={
        **GENERATION,
        "model": text(),
        "input_audio_format": literal(PCM16, *_G711),
        "input_audio_sampling_rate": integer(),
        "turn_detection": nullable(_TURN_DETECTION),
        "input_audio_noise_reduction": nullable(
            fields({"type": literal("azure_deep_noise_suppression", "near_field", "far_field")})
        ),
        "input_audio_echo_cancellation": nullable(
            fields(
                {"type": literal("server_echo_cancellation")},
                {"reference_source": literal("server", "client"), "channels": integer(1)},
            )
        ),
        "input_audio_transcription": nullable(
            fields(
                {"model": text()},
                {
                    "language": text(),
                    "prompt": text(),
                    "phrase_list": list_of(text()),
                    "custom_speech": mapping,
                },
            )
        ),
        "parallel_tool_calls": boolean,
        "include": list_of(anything),
        **dict.fromkeys(("animation", "avatar", "output_audio_timestamp_types"), nullable(not_simulated)),
    }
)


def new_session(session_id: str, model: str, expires_at: int) -> Json:
    """The session as `session.created` shows it: PCM at 24 kHz both ways, server VAD on."""
    transcription = None if is_gpt_realtime(model) else {"model": "azure-speech"}
    return {
        "id": session_id,
        "model": model,
        "modalities": ["text", "audio"],
        "instructions": "",
        "voice": _default_voice(model),
        "input_audio_format": PCM16,
        "input_audio_sampling_rate": 24000,
        "output_audio_format": PCM16,
        "input_audio_noise_reduction": None,
        "input_audio_echo_cancellation": None,
        "input_audio_transcription": transcription,
        "turn_detection": _with_defaults({"type": "server_vad"}),
        "tools": [],
        "tool_choice": "auto",
        "temperature": 0.8,
        "max_response_output_tokens": "inf",
        "expires_at": expires_at,
    }


def updated(session: Json, change: Json, *, has_spoken: bool) -> Json:
    """The session after a `session.update` whose shape was checked already; the given one stays as it is.

    Fields that are absent keep their value; one that is there is replaced whole. Raises Refusal when the model
    forbids a value, or when it may not change any more.
    """
    model = session["model"]
    if change.get("model", model) != model:
        raise invalid_value("The model of a session cannot be changed.", "session.model")
    if "voice" in change:
        check_voice(session, change["voice"], "session.voice", has_spoken=has_spoken)
    _check_turn_detection(model, change.get("turn_detection"))
    _check_transcription(model, change.get("input_audio_transcription"))
    after = {**session, **change, "input_audio_sampling_rate": _sampling_rate(session, change)}
    after["turn_detection"] = _with_defaults(after["turn_detection"])
    return after


def _sampling_rate(session: Json, change: Json) -> int:
    """Overlays the change; a format without a rate gets its usual one."""
    path = "session.input_audio_sampling_rate"
    name = change.get("input_audio_format", session["input_audio_format"])
    usual = 24_000 if name == PCM16 else 8_000
    before: int = session["input_audio_sampling_rate"] if name == session["input_audio_format"] else usual
    rate = int(change.get("input_audio_sampling_rate", before))
    rates = tuple(PCM_BY_RATE) if name == PCM16 else (8_000,)
    if rate not in rates:
        supported = ", ".join(str(each) for each in rates)
        raise invalid_value(f"Invalid value: {rate}. Supported values for '{name}' are: {supported}.", path)
    return rate


def _check_turn_detection(model: str, wanted: Json | None) -> None:
    if wanted is None:
        return
    path = "session.turn_detection"
    if wanted["type"] == "semantic_vad" and not is_gpt_realtime(model):
        raise invalid_value(f"'semantic_vad' is not supported by model '{model}'.", f"{path}.type")
    if wanted.get("auto_truncate") and not wanted.get("interrupt_response", True):
        raise invalid_value("'auto_truncate' needs 'interrupt_response'.", f"{path}.auto_truncate")


def _check_transcription(model: str, wanted: Json | None) -> None:
    if wanted is None:
        return
    path = "session.input_audio_transcription"
    allowed = _OPENAI_TRANSCRIPTION if is_gpt_realtime(model) else _AZURE_TRANSCRIPTION
    literal(*allowed)(wanted["model"], f"{path}.model")
    for name in ("phrase_list", "custom_speech"):
        if name in wanted and wanted["model"] != "azure-speech":
            raise invalid_value(f"'{name}' is for 'azure-speech' only.", f"{path}.{name}")
    if "prompt" in wanted and wanted["model"] not in _OPENAI_TRANSCRIPTION:
        raise invalid_value(f"'prompt' is not supported by '{wanted['model']}'.", f"{path}.prompt")


def settings(session: Json) -> SessionSettings:
    """Returns the settings in a session's wire form."""
    name, transcription = session["input_audio_format"], session["input_audio_transcription"]
    return SessionSettings(
        input_format=_G711.get(name) or PCM_BY_RATE[session["input_audio_sampling_rate"]],
        output_format=OUTPUT_FORMATS[session["output_audio_format"]],
        turns=_turn_taking(session["turn_detection"]),
        transcription_model=transcription and transcription["model"],
    )


def _turn_taking(found: Json | None) -> TurnTaking | None:
    """The kinds that judge what was said are imitated by a server VAD with their numbers, if they have any."""
    if found is None:
        return None
    names = ("threshold", "prefix_padding_ms", "silence_duration_ms", "speech_duration_ms")
    return TurnTaking(
        VadSettings(**{name: found[name] for name in names if name in found}),
        found["create_response"],
        found["interrupt_response"],
        auto_truncate=found["auto_truncate"],
        by_silence=found["type"] == "server_vad",
    )
