"""OpenAI Realtime, GA: its server events to ours, our commands to its client events (realtime.md 1).

Dispatches on the `type` string; an unknown type is not an error. Knows nothing of calls beyond the vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, assert_never
from urllib.parse import quote

import orjson

from app.call.events import (
    AddText,
    AddToolOutput,
    AgentAudio,
    AgentAudioEnded,
    AgentText,
    BackendConfigured,
    BackendFault,
    BackendOpened,
    CallerTranscribed,
    CallerTurnCommitted,
    CancelResponse,
    Configure,
    CreateResponse,
    ErrorKind,
    Event,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
    Truncate,
    Usage,
)
from app.call.plan import Plan
from app.wire.dialect import Address, BackendCommand
from app.wire.text import Message, base64_bytes, need_text, number_of, object_of, read_object, text_of

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""The official client sets no limit, the agents SDK 8 MiB (realtime.md 1.1); an audio delta may be long."""

PCMU: Mapping[str, str] = MappingProxyType({"type": "audio/pcmu"})
"""Takes no rate (realtime.md 1.3)."""

_FATAL = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "invalid_api_key",
        "model_not_found",
        "beta_api_shape_disabled",
        "session_expired",
    }
)
"""realtime.md 1.9, and OpenAI's REST code for the same billing fault."""


@dataclass(frozen=True, slots=True)
class OpenAIRealtime:
    """The dialect. `base_url` as the official SDK takes it: http(s)://host/v1."""

    base_url: str
    api_key: str = field(repr=False)
    name: str = "openai"

    def address(self, model: str) -> Address:
        """No OpenAI-Beta header: with it the session is refused (realtime.md 1.1)."""
        socket_url = "ws" + self.base_url.removeprefix("http").rstrip("/")
        return Address(
            f"{socket_url}/realtime?model={quote(model, safe='')}",
            {"Authorization": f"Bearer {self.api_key}"},
        )

    def parse(self, message: Message) -> Sequence[Event]:
        """See Dialect."""
        values = read_object(message)
        kind = need_text(values, "type")
        parser = _PARSERS.get(kind)
        return () if parser is None else parser(values)

    def render(self, command: BackendCommand) -> bytes:
        """See Dialect."""
        return orjson.dumps(_client_event(command))

    def append(self, payload: str) -> bytes:
        """Twilio's payload unchanged: it is base64 mu-law already. No answer comes, and nothing blocks."""
        return b'{"type":"input_audio_buffer.append","audio":"' + payload.encode("ascii") + b'"}'


# --- Ours to theirs --------------------------------------------------------------------------


def _client_event(command: BackendCommand) -> dict[str, Any]:
    match command:
        case Configure():
            return {"type": "session.update", "session": _session(command.plan)}
        case CreateResponse():
            response: dict[str, Any] = {"metadata": {"purpose": command.purpose.value}}
            if command.instructions:
                response["instructions"] = command.instructions
            return {"type": "response.create", "response": response}
        case CancelResponse():
            return {"type": "response.cancel", "response_id": command.response_id}
        case Truncate():
            return {
                "type": "conversation.item.truncate",
                "item_id": command.item_id,
                "content_index": 0,
                "audio_end_ms": command.audio_end_ms,
            }
        case AddText():
            content = [{"type": "input_text", "text": command.text}]
            return _create_item({"type": "message", "role": "user", "content": content})
        case AddToolOutput():
            return _create_item(
                {"type": "function_call_output", "call_id": command.tool_call_id, "output": command.output}
            )
        case _:
            assert_never(command)


def _create_item(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": item}


def _session(plan: Plan) -> dict[str, Any]:
    """The whole session at once: whether a partial `audio` object merges is not spelt out (realtime.md 1.3)."""
    return {
        "type": "realtime",
        "output_modalities": ["audio"],
        "instructions": plan.instructions,
        "audio": {
            "input": {
                "format": dict(PCMU),
                "noise_reduction": {"type": "near_field"},
                "transcription": {"model": plan.transcription_model, "language": plan.language.split("-")[0]},
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.5,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": plan.vad_silence_ms,
                    "create_response": True,
                    "interrupt_response": True,
                },
            },
            "output": {"format": dict(PCMU), "voice": plan.voice},
        },
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": orjson.loads(tool.parameters),
            }
            for tool in plan.tools
        ],
        "tool_choice": "auto",
        "tracing": None,
    }


# --- Theirs to ours --------------------------------------------------------------------------


def _opened(_: dict[str, Any]) -> Sequence[Event]:
    return (BackendOpened(),)


def _configured(values: dict[str, Any]) -> Sequence[Event]:
    audio = object_of(object_of(values, "session"), "audio")
    formats = [object_of(object_of(audio, way), "format").get("type") for way in ("input", "output")]
    echoed = "/".join(str(name)[:32] for name in formats)
    return (BackendConfigured(formats == [PCMU["type"]] * 2, echoed),)


def _audio(values: dict[str, Any]) -> Sequence[Event]:
    payload = text_of(values, "delta")
    audio_bytes = base64_bytes(payload)
    if audio_bytes == 0:
        return ()
    return (AgentAudio(need_text(values, "response_id"), need_text(values, "item_id"), payload, audio_bytes),)


def _audio_ended(values: dict[str, Any]) -> Sequence[Event]:
    return (AgentAudioEnded(need_text(values, "response_id"), need_text(values, "item_id")),)


def _text(values: dict[str, Any]) -> Sequence[Event]:
    return (AgentText(need_text(values, "response_id"), need_text(values, "item_id"), text_of(values, "delta")),)


def _text_ended(values: dict[str, Any]) -> Sequence[Event]:
    response_id, item_id = need_text(values, "response_id"), need_text(values, "item_id")
    return (AgentText(response_id, item_id, text_of(values, "transcript"), final=True),)


def _speech_started(values: dict[str, Any]) -> Sequence[Event]:
    return (SpeechStarted(need_text(values, "item_id")),)


def _speech_stopped(values: dict[str, Any]) -> Sequence[Event]:
    return (SpeechStopped(need_text(values, "item_id")),)


def _committed(values: dict[str, Any]) -> Sequence[Event]:
    return (CallerTurnCommitted(need_text(values, "item_id")),)


def _transcribed(values: dict[str, Any]) -> Sequence[Event]:
    return (CallerTranscribed(need_text(values, "item_id"), text_of(values, "transcript")),)


def _not_transcribed(values: dict[str, Any]) -> Sequence[Event]:
    return (CallerTranscribed(need_text(values, "item_id"), None),)


def _response_started(values: dict[str, Any]) -> Sequence[Event]:
    return (ResponseStarted(need_text(object_of(values, "response"), "id")),)


def _tool_called(values: dict[str, Any]) -> Sequence[Event]:
    return (
        ToolCalled(
            need_text(values, "response_id"),
            need_text(values, "call_id"),
            need_text(values, "name"),
            text_of(values, "arguments"),
        ),
    )


def _response_ended(values: dict[str, Any]) -> Sequence[Event]:
    response = object_of(values, "response")
    error = object_of(object_of(response, "status_details"), "error")
    try:
        status = ResponseStatus(text_of(response, "status"))
    except ValueError:
        # A status of the future: the response is over, and nothing says that it failed.
        status = ResponseStatus.COMPLETED
    code = error_code(error)
    return (
        ResponseEnded(
            need_text(response, "id"),
            status,
            classify(code) if status is ResponseStatus.FAILED else None,
            code if status is ResponseStatus.FAILED else "",
            _usage(object_of(response, "usage")),
        ),
    )


def _usage(usage: dict[str, Any]) -> Usage:
    taken, made = object_of(usage, "input_token_details"), object_of(usage, "output_token_details")
    cached = object_of(taken, "cached_tokens_details")
    return Usage(
        input_text=number_of(taken, "text_tokens"),
        input_audio=number_of(taken, "audio_tokens"),
        cached_text=number_of(cached, "text_tokens"),
        cached_audio=number_of(cached, "audio_tokens"),
        output_text=number_of(made, "text_tokens"),
        output_audio=number_of(made, "audio_tokens"),
    )


def _fault(values: dict[str, Any]) -> Sequence[Event]:
    code = error_code(object_of(values, "error"))
    return (BackendFault(classify(code), code),)


def error_code(error: dict[str, Any]) -> str:
    """The code, else the type; never the message, which can quote what was sent."""
    return (text_of(error, "code") or text_of(error, "type") or "unknown")[:64]


def classify(code: str) -> ErrorKind:
    """What an error code means for the call (realtime.md 1.9). An unknown one is harmless."""
    if code in _FATAL:
        return ErrorKind.FATAL
    if code == "conversation_already_has_active_response":
        return ErrorKind.BUSY
    if code in {"rate_limit_exceeded", "server_error"}:
        return ErrorKind.RETRY
    return ErrorKind.HARMLESS


_PARSERS: Mapping[str, Callable[[dict[str, Any]], Sequence[Event]]] = MappingProxyType(
    {
        "response.output_audio.delta": _audio,
        "response.output_audio.done": _audio_ended,
        "response.output_audio_transcript.delta": _text,
        "response.output_audio_transcript.done": _text_ended,
        "input_audio_buffer.speech_started": _speech_started,
        "input_audio_buffer.speech_stopped": _speech_stopped,
        "input_audio_buffer.committed": _committed,
        "conversation.item.input_audio_transcription.completed": _transcribed,
        "conversation.item.input_audio_transcription.failed": _not_transcribed,
        "response.created": _response_started,
        "response.function_call_arguments.done": _tool_called,
        "response.done": _response_ended,
        "session.created": _opened,
        "session.updated": _configured,
        "error": _fault,
    }
)
