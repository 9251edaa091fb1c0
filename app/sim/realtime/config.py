"""The configuration of an OpenAI session: defaults, valid updates, and their result (realtime.md 1.3).

A session is kept in its wire form, since `session.updated` echoes all of it. The module sends nothing and keeps no
state.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from app.sim.realtime.audio import PCM_BY_RATE, AudioFormat
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
from app.sim.realtime.shapes import FUNCTION_TOOL, MAX_OUTPUT_TOKENS, TOOL_CHOICE
from app.sim.realtime.vad import VadSettings

Json = dict[str, Any]

VOICES: Final = ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse", "marin", "cedar")
DEFAULT_VOICE: Final = "marin"
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


def format_shape(rates: Sequence[int], *, g711: bool) -> Check:
    """A `format` object: the service takes PCM at these rates, and G.711 or not."""

    def rate(value: Any, path: str) -> None:
        integer(min(rates), max(rates))(value, path)
        if value not in rates:
            supported = ", ".join(str(each) for each in rates)
            raise invalid_value(f"Invalid value: {value}. Supported values are: {supported}.", path)

    g711_shapes = {"audio/pcmu": fields({"type": anything}), "audio/pcma": fields({"type": anything})}
    pcm = {"audio/pcm": fields({"type": anything, "rate": rate})}
    return chosen_by("type", {**pcm, **g711_shapes} if g711 else pcm)


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


def _audio(audio_format: Check) -> Check:
    return fields(
        optional={
            "input": fields(
                optional={
                    "format": audio_format,
                    "noise_reduction": nullable(
                        fields({"type": literal("near_field", "far_field")}, {"strength": number(0, 1)})
                    ),
                    "transcription": nullable(_TRANSCRIPTION),
                    "turn_detection": nullable(_TURN_DETECTION),
                }
            ),
            "output": fields(optional={"format": audio_format, "voice": VOICE, "speed": number(0.25, 1.5)}),
        }
    )


_TOOL: Final = chosen_by(
    "type",
    {
        "function": FUNCTION_TOOL,
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


def _modalities(value: Any, path: str) -> None:
    list_of(literal("audio", "text"))(value, path)
    if len(value) != 1:
        supported = "['text'] and ['audio']"
        raise invalid_value(f"Invalid modalities: {value}. Supported combinations are: {supported}.", path)


GENERATION: Final[Mapping[str, Check]] = {
    "output_modalities": _modalities,
    "instructions": text(),
    "tools": list_of(_TOOL),
    "tool_choice": TOOL_CHOICE,
    "parallel_tool_calls": boolean,
    "reasoning": fields(optional={"effort": literal("minimal", "low", "medium", "high", "xhigh")}),
    "max_output_tokens": MAX_OUTPUT_TOKENS,
    "prompt": nullable(fields({"id": text()}, {"version": nullable(text()), "variables": nullable(mapping)})),
}
"""The members that sessions and single responses share."""

_REALTIME: Final[Mapping[str, Check]] = {
    **GENERATION,
    "model": text(),
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
}


def _fixed_type(_value: Any, path: str) -> None:
    raise invalid_value("Cannot change the session type of a realtime session to 'transcription'.", f"{path}.type")


def session_shape(audio_format: Check) -> Check:
    """The `session` of a `session.update`."""
    realtime = fields({"type": anything}, {**_REALTIME, "audio": _audio(audio_format)})
    return chosen_by("type", {"realtime": realtime, "transcription": _fixed_type})


def new_session(session_id: str, model: str, expires_at: int, audio_format: Json) -> Json:
    """The session as `session.created` shows it: server VAD on."""
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
                "format": audio_format,
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": dict(_SERVER_VAD_DEFAULTS),
            },
            "output": {"format": audio_format, "voice": DEFAULT_VOICE, "speed": 1.0},
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


def audio_format_of(wire: Json) -> AudioFormat:
    """The format that a `format` object names."""
    if wire["type"] == "audio/pcm":
        return PCM_BY_RATE[wire["rate"]]
    return AudioFormat.PCMU if wire["type"] == "audio/pcmu" else AudioFormat.PCMA


def settings(session: Json) -> SessionSettings:
    """Returns the settings in a session's wire form."""
    sent, heard = session["audio"]["output"], session["audio"]["input"]
    transcription = heard["transcription"]
    return SessionSettings(
        input_format=audio_format_of(heard["format"]),
        output_format=audio_format_of(sent["format"]),
        turns=_turn_taking(heard["turn_detection"]),
        transcription_model=transcription and transcription["model"],
    )


def _turn_taking(found: Json | None) -> TurnTaking | None:
    """Semantic VAD is imitated by a server VAD with its schema's defaults."""
    if found is None:
        return None
    by_silence = found["type"] == "server_vad"
    return TurnTaking(
        VadSettings(found["threshold"], found["prefix_padding_ms"], found["silence_duration_ms"])
        if by_silence
        else VadSettings(),
        found["create_response"],
        found["interrupt_response"],
        found.get("idle_timeout_ms"),
        by_silence=by_silence,
    )
