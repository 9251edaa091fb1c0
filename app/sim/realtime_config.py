"""A session's configuration: its defaults, what an update may hold, and what it then is (realtime.md 1.3).

Sessions are kept in the shape the wire shows, since `session.updated` echoes the whole of it. The module decides
and returns; it sends nothing and keeps nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

from app.sim.realtime_audio import AudioFormat
from app.sim.realtime_schema import (
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
from app.sim.vad import VadSettings

Json = dict[str, Any]

VOICES: Final = ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar")
DEFAULT_VOICE: Final = "marin"
PCM_24K: Final[Mapping[str, Any]] = {"type": "audio/pcm", "rate": 24000}
_NOT_REASONING: Final = ("gpt-realtime", "gpt-realtime-mini", "gpt-realtime-1.5")

_SERVER_VAD_DEFAULTS: Final[Mapping[str, Any]] = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 200,
    "idle_timeout_ms": None,
    "create_response": True,
    "interrupt_response": True,
}
_SEMANTIC_VAD_DEFAULTS: Final[Mapping[str, Any]] = {
    "type": "semantic_vad",
    "eagerness": "auto",
    "create_response": True,
    "interrupt_response": True,
}

FORMAT: Final = chosen_by(
    "type",
    {
        "audio/pcm": fields({"type": anything, "rate": integer(24000, 24000)}),
        "audio/pcmu": fields({"type": anything}),
        "audio/pcma": fields({"type": anything}),
    },
)
VOICE: Final = either(literal(*VOICES), fields({"id": text()}))

_TRANSCRIPTION: Final = fields(
    {"model": text()},
    {
        "language": nullable(text()),
        "languages": list_of(text()),
        "keywords": list_of(text()),
        "prompt": nullable(text()),
        "delay": literal("minimal", "low", "medium", "high", "xhigh"),
    },
)
_TURN_DETECTION: Final = chosen_by(
    "type",
    {
        "server_vad": fields(
            {"type": anything},
            {
                "threshold": number(0, 1),
                "prefix_padding_ms": integer(0),
                "silence_duration_ms": integer(0),
                "idle_timeout_ms": nullable(integer(5000, 30000)),
                "create_response": boolean,
                "interrupt_response": boolean,
            },
        ),
        "semantic_vad": fields(
            {"type": anything},
            {
                "eagerness": literal("low", "medium", "high", "auto"),
                "create_response": boolean,
                "interrupt_response": boolean,
            },
        ),
    },
)
_AUDIO: Final = fields(
    optional={
        "input": fields(
            optional={
                "format": FORMAT,
                "noise_reduction": nullable(
                    fields({"type": literal("near_field", "far_field")}, {"strength": number(0, 1)})
                ),
                "transcription": nullable(_TRANSCRIPTION),
                "turn_detection": nullable(_TURN_DETECTION),
            }
        ),
        "output": fields(optional={"format": FORMAT, "voice": VOICE, "speed": number(0.25, 1.5)}),
    }
)
_TOOL: Final = chosen_by(
    "type",
    {
        "function": fields(
            {"type": anything, "name": text(64)}, {"description": text(), "parameters": nullable(mapping)}
        ),
        "mcp": fields(
            {"type": anything, "server_label": text()},
            dict.fromkeys(
                (
                    "server_url",
                    "connector_id",
                    "tunnel_id",
                    "authorization",
                    "headers",
                    "allowed_tools",
                    "require_approval",
                    "server_description",
                ),
                anything,
            ),
        ),
    },
)
_TOOL_CHOICE: Final = either(
    literal("auto", "none", "required"),
    chosen_by(
        "type",
        {
            "function": fields({"type": anything, "name": text()}),
            "mcp": fields({"type": anything, "server_label": text()}, {"name": nullable(text())}),
        },
    ),
)


def _modalities(value: Any, path: str) -> None:
    list_of(literal("audio", "text"))(value, path)
    if len(value) != 1:
        supported = "['text'] and ['audio']"
        raise invalid_value(f"Invalid modalities: {value}. Supported combinations are: {supported}.", path)


GENERATION: Final[Mapping[str, Check]] = {
    "output_modalities": _modalities,
    "instructions": text(),
    "tools": list_of(_TOOL),
    "tool_choice": _TOOL_CHOICE,
    "parallel_tool_calls": boolean,
    "reasoning": fields(optional={"effort": literal("minimal", "low", "medium", "high", "xhigh")}),
    "max_output_tokens": either(literal("inf"), integer(1, 4096)),
    "prompt": nullable(fields({"id": text()}, {"version": nullable(text()), "variables": nullable(mapping)})),
}
"""What sessions and single responses have in common."""

_REALTIME: Final = fields(
    {"type": anything},
    {
        **GENERATION,
        "model": text(),
        "audio": _AUDIO,
        "truncation": either(
            literal("auto", "disabled"),
            fields(
                {"type": literal("retention_ratio"), "retention_ratio": number(0, 1)},
                {"token_limits": fields(optional={"post_instructions": integer(0)})},
            ),
        ),
        "tracing": nullable(
            either(
                literal("auto"),
                fields(optional={"workflow_name": text(), "group_id": text(), "metadata": mapping}),
            )
        ),
        "include": nullable(list_of(literal("item.input_audio_transcription.logprobs"))),
    },
)


def _fixed_type(_value: Any, path: str) -> None:
    raise invalid_value("Cannot change the session type of a realtime session to 'transcription'.", f"{path}.type")


SESSION_UPDATE: Final = chosen_by("type", {"realtime": _REALTIME, "transcription": _fixed_type})


def new_session(session_id: str, model: str, expires_at: int) -> Json:
    """The session as `session.created` shows it: PCM at 24 kHz both ways, server VAD on."""
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": model,
        "output_modalities": ["audio"],
        "instructions": "You are a helpful, friendly voice assistant. (server default)",
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "expires_at": expires_at,
        "audio": {
            "input": {
                "format": dict(PCM_24K),
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": dict(_SERVER_VAD_DEFAULTS),
            },
            "output": {"format": dict(PCM_24K), "voice": DEFAULT_VOICE, "speed": 1.0},
        },
        "include": None,
    }


def updated(session: Json, change: Json, *, has_spoken: bool, is_speaking: bool) -> Json:
    """The session after a `session.update` whose shape was checked already; the given one stays as it is.

    Fields that are absent keep their value, at every level down to the members of `audio.input` and
    `audio.output`; each of those is replaced whole (how deep the real service merges is not documented,
    realtime.md 1.3). Raises Refusal when a value may not change any more.
    """
    _refuse_fixed(session, change, has_spoken=has_spoken, is_speaking=is_speaking)
    audio = {
        side: {**session["audio"][side], **change.get("audio", {}).get(side, {})} for side in ("input", "output")
    }
    audio["input"]["turn_detection"] = _with_defaults(audio["input"]["turn_detection"])
    if audio["input"]["transcription"] is not None:
        audio["input"]["transcription"] = {"prompt": None, **audio["input"]["transcription"]}
    return {**session, **change, "audio": audio}


def _refuse_fixed(session: Json, change: Json, *, has_spoken: bool, is_speaking: bool) -> None:
    if change.get("model", session["model"]) != session["model"]:
        raise invalid_value("The model of a session cannot be changed.", "session.model")
    if change.get("reasoning") is not None and _plain_name(session["model"]) in _NOT_REASONING:
        raise invalid_value(f"Reasoning is not supported by model '{session['model']}'.", "session.reasoning")
    if session["tracing"] is not None and change.get("tracing", session["tracing"]) != session["tracing"]:
        raise invalid_value("Tracing cannot be changed once it is enabled.", "session.tracing")
    now, wanted = session["audio"]["output"], change.get("audio", {}).get("output", {})
    if has_spoken and wanted.get("voice", now["voice"]) != now["voice"]:
        message = "Cannot update a conversation's voice if assistant audio is present."
        raise Refusal("cannot_update_voice", message, "session.audio.output.voice")
    if is_speaking and wanted.get("speed", now["speed"]) != now["speed"]:
        raise invalid_value("Speed cannot be changed during a response.", "session.audio.output.speed")


def _plain_name(model: str) -> str:
    """A model's name without the date of a snapshot: `gpt-realtime-mini-2025-12-15` is `gpt-realtime-mini`."""
    return model.split("-20", 1)[0]


def _with_defaults(turn_detection: Json | None) -> Json | None:
    if turn_detection is None:
        return None
    defaults = _SERVER_VAD_DEFAULTS if turn_detection["type"] == "server_vad" else _SEMANTIC_VAD_DEFAULTS
    return {**defaults, **turn_detection}


def input_format(session: Json) -> AudioFormat:
    return AudioFormat(session["audio"]["input"]["format"]["type"])


def turn_detection(session: Json) -> Json | None:
    found: Json | None = session["audio"]["input"]["turn_detection"]
    return found


def vad_settings(session: Json) -> VadSettings | None:
    """The detector's numbers; semantic VAD is imitated by a server VAD with its schema's defaults."""
    found = turn_detection(session)
    if found is None:
        return None
    if found["type"] == "semantic_vad":
        return VadSettings()
    return VadSettings(found["threshold"], found["prefix_padding_ms"], found["silence_duration_ms"])
