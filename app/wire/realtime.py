"""What OpenAI Realtime and Azure Voice Live spell alike (realtime.md 1.4, 1.5, 2.3, 2.4, 4).

Each has its own module for what differs: names of a few events, the session, how it is dialled. Dispatches on the
`type` string; an unknown type is not an error. Of calls only the vocabulary is known here.
"""

from abc import ABC, abstractmethod
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import orjson

from app.call.ending import EndReason
from app.call.events import (
    AddToolCall,
    AddToolOutput,
    AddTurn,
    AgentAudio,
    AgentAudioEnded,
    AgentText,
    BackendFault,
    BackendOpened,
    CallerTranscribed,
    CallerTurnCommitted,
    CancelResponse,
    Configure,
    CreateResponse,
    DeleteItem,
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
from app.call.limits import CODE_MAX_CHARS, TOKENS_MAX, TOOL_ARGUMENTS_MAX_CHARS, TOOL_NAME_MAX_CHARS
from app.call.plan import Abilities, Plan
from app.call.records import Speaker
from app.call.texts import cut
from app.wire.dialect import Address, Authorize, BackendCommand
from app.wire.failures import classify
from app.wire.text import (
    Message,
    base64_bytes,
    base64_of,
    count_of,
    need_id,
    need_text,
    object_of,
    read_object,
    text_of,
)
from app.wire.tuning import UNTUNED, Tuning

MAX_MESSAGE_BYTES = 1024 * 1024
"""A longer message ends its backend. All calls wait while one message is read, for a few milliseconds at most.

OpenAI's client sets no limit, its agents SDK 8 MiB, Voice Live's 4 (realtime.md 1.1, 2.1). What is that long
is audio of items that a client retrieves, which we never do. A message of this size has 98 s of mu-law, or 16 s of
24 kHz PCM."""

CONFIGURATION_ID = "nearcall-session"
"""The `event_id` of our session.update: an error that it causes has it as `error.event_id` (realtime.md 1.4)."""

Parser = Callable[[dict[str, Any]], Sequence[Event]]
Parsers = Mapping[str, Parser]
"""By the event's `type`."""


@dataclass(frozen=True, slots=True)
class RealtimeDialect(ABC):
    """The part of a Dialect that both have."""

    base_url: str
    """http(s)://host, and a path."""
    authorize: Authorize = field(repr=False)
    tuning: Tuning = UNTUNED
    _parsers: Parsers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_parsers", MappingProxyType({**_PARSERS, **self._own_parsers()}))

    @property
    def abilities(self) -> Abilities:
        """See Dialect. Only a kind that can is set to (tuning.py)."""
        return Abilities(truncates=self.tuning.auto_truncate)

    def address(self, model: str) -> Address:
        """See Dialect."""
        socket_url = "ws" + self.base_url.removeprefix("http").rstrip("/")
        return Address(socket_url + self._target(quote(model, safe="")), self.authorize())

    def parse(self, message: Message) -> Sequence[Event]:
        """See Dialect."""
        values = read_object(message)
        kind = need_text(values, "type")
        parser = self._parsers.get(kind)
        return () if parser is None else parser(values)

    def render(self, command: BackendCommand) -> bytes:
        """See Dialect."""
        match command:
            case Configure():
                event = {
                    "type": "session.update",
                    "event_id": CONFIGURATION_ID,
                    "session": self._session(command.plan),
                }
            case CreateResponse():
                event = {"type": "response.create", "response": self._response(command)}
            case AddTurn():
                event = _create_item(self._message(command), command.after)
            case _:
                event = _client_event(command)
        return orjson.dumps(event)

    def append(self, payload: str) -> bytes:
        """See Dialect. No answer comes, and nothing blocks."""
        return b'{"type":"input_audio_buffer.append","audio":"' + payload.encode("ascii") + b'"}'

    @abstractmethod
    def _own_parsers(self) -> Parsers:
        """For the events that it alone has, or names so."""

    @abstractmethod
    def _target(self, model: str) -> str:
        """The rest of the socket's URL, for a model that is quoted."""

    @property
    @abstractmethod
    def _agent_text(self) -> str:
        """The content type of a text in a turn of the agent's that we add (realtime.md 1.4, 2.3)."""

    def _message(self, turn: AddTurn) -> dict[str, Any]:
        role, kind = ("user", "input_text") if turn.speaker is Speaker.CALLER else ("assistant", self._agent_text)
        name = {"id": turn.item_id} if turn.item_id else {}
        content = {"type": kind, "text": turn.text}
        if turn.audio:
            content = {"type": "input_audio", "audio": base64_of(b"".join(map(a2b_base64, turn.audio)))}
        return {**name, "type": "message", "role": role, "content": [content]}

    @abstractmethod
    def _session(self, plan: Plan) -> dict[str, Any]:
        """`session` of `session.update`."""

    @abstractmethod
    def _response(self, command: CreateResponse) -> dict[str, Any]:
        """`response` of `response.create`."""


# --- Ours to theirs --------------------------------------------------------------------------


def _client_event(command: CancelResponse | Truncate | DeleteItem | AddToolCall | AddToolOutput) -> dict[str, Any]:
    match command:
        case CancelResponse():
            return {"type": "response.cancel", "response_id": command.response_id}
        case Truncate():
            return {
                "type": "conversation.item.truncate",
                "item_id": command.item_id,
                "content_index": 0,
                "audio_end_ms": command.audio_end_ms,
            }
        case DeleteItem():
            return {"type": "conversation.item.delete", "item_id": command.item_id}
        case AddToolCall():
            named = {"call_id": command.tool_call_id, "name": command.name}
            return _create_item({"type": "function_call", **named, "arguments": command.arguments})
        case AddToolOutput():
            return _create_item(
                {"type": "function_call_output", "call_id": command.tool_call_id, "output": command.output}
            )


def _create_item(item: dict[str, Any], after: str = "") -> dict[str, Any]:
    place = {"previous_item_id": after} if after else {}
    return {"type": "conversation.item.create", **place, "item": item}


def asked_for(command: CreateResponse) -> dict[str, Any]:
    """A response by instructions, or by the session's own."""
    response: dict[str, Any] = {"metadata": {"purpose": command.purpose.value}}
    if not command.may_call_tools:
        response["tool_choice"] = "none"
    if command.instructions:
        response["instructions"] = command.instructions
    return response


def tools(plan: Plan) -> list[dict[str, Any]]:
    """`session.tools`."""
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": orjson.loads(tool.parameters),
        }
        for tool in plan.tools
    ]


# --- Theirs to ours --------------------------------------------------------------------------


def _opened(values: dict[str, Any]) -> Sequence[Event]:
    ends_s = count_of(object_of(values, "session"), "expires_at", _UNIX_S_MAX)
    return (BackendOpened(ends_s * 1000 if ends_s else None),)


_UNIX_S_MAX = 1 << 33
"""Of the year 2242: anything later is a mistake."""


def audio(values: dict[str, Any]) -> Sequence[Event]:
    """A piece of agent speech, in the session's output format."""
    payload = text_of(values, "delta")
    audio_bytes = base64_bytes(payload)
    if audio_bytes == 0:
        return ()
    return (AgentAudio(need_id(values, "response_id"), need_id(values, "item_id"), payload, audio_bytes),)


def audio_ended(values: dict[str, Any]) -> Sequence[Event]:
    """All audio of an item was sent."""
    return (AgentAudioEnded(need_id(values, "response_id"), need_id(values, "item_id")),)


def text(values: dict[str, Any]) -> Sequence[Event]:
    """More of what the agent says."""
    return (AgentText(need_id(values, "response_id"), need_id(values, "item_id"), text_of(values, "delta")),)


def text_ended(values: dict[str, Any]) -> Sequence[Event]:
    """All that the agent says in an item."""
    response_id, item_id = need_id(values, "response_id"), need_id(values, "item_id")
    return (AgentText(response_id, item_id, text_of(values, "transcript"), final=True),)


def written_ended(values: dict[str, Any]) -> Sequence[Event]:
    """The whole of an item that the model wrote instead of speaking it: recorded, and never heard."""
    response_id, item_id = need_id(values, "response_id"), need_id(values, "item_id")
    return (AgentText(response_id, item_id, text_of(values, "text"), final=True),)


def _speech_started(values: dict[str, Any]) -> Sequence[Event]:
    return (SpeechStarted(need_id(values, "item_id")),)


def _speech_stopped(values: dict[str, Any]) -> Sequence[Event]:
    return (SpeechStopped(need_id(values, "item_id")),)


def _committed(values: dict[str, Any]) -> Sequence[Event]:
    return (CallerTurnCommitted(need_id(values, "item_id")),)


def _transcribed(values: dict[str, Any]) -> Sequence[Event]:
    return (CallerTranscribed(need_id(values, "item_id"), text_of(values, "transcript")),)


def _not_transcribed(values: dict[str, Any]) -> Sequence[Event]:
    return (CallerTranscribed(need_id(values, "item_id"), None),)


def _response_started(values: dict[str, Any]) -> Sequence[Event]:
    return (ResponseStarted(need_id(object_of(values, "response"), "id")),)


def _arguments_ended(values: dict[str, Any]) -> Sequence[Event]:
    """Servers that speak the protocol may leave the name out; the end of the item has it then."""
    return _tool_called(values, values) if text_of(values, "name") else ()


def _item_ended(values: dict[str, Any]) -> Sequence[Event]:
    """A tool call as a whole. Most servers have sent it already: the core runs it once."""
    item = object_of(values, "item")
    if text_of(item, "type") != "function_call" or text_of(item, "status") == "incomplete":
        return ()
    return _tool_called(values, item)


def _tool_called(values: dict[str, Any], call: dict[str, Any]) -> Sequence[Event]:
    return (
        ToolCalled(
            need_id(values, "response_id"),
            need_id(call, "call_id"),
            cut(need_text(call, "name"), TOOL_NAME_MAX_CHARS),
            cut(text_of(call, "arguments"), TOOL_ARGUMENTS_MAX_CHARS),
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
    kind, failure = classify(error_code(error)) if status is ResponseStatus.FAILED else (None, None)
    return (ResponseEnded(need_id(response, "id"), status, kind, failure, _usage(object_of(response, "usage"))),)


def _usage(usage: dict[str, Any]) -> Usage:
    taken, made = object_of(usage, "input_token_details"), object_of(usage, "output_token_details")
    cached = object_of(taken, "cached_tokens_details")
    return Usage(
        input_text=count_of(taken, "text_tokens", TOKENS_MAX),
        input_audio=count_of(taken, "audio_tokens", TOKENS_MAX),
        cached_text=count_of(cached, "text_tokens", TOKENS_MAX),
        cached_audio=count_of(cached, "audio_tokens", TOKENS_MAX),
        output_text=count_of(made, "text_tokens", TOKENS_MAX),
        output_audio=count_of(made, "audio_tokens", TOKENS_MAX),
    )


def _fault(values: dict[str, Any]) -> Sequence[Event]:
    error = object_of(values, "error")
    param = cut(text_of(error, "param"), CODE_MAX_CHARS)
    kind, failure = classify(error_code(error), param)
    ours = (
        failure.reason is EndReason.BACKEND_FORMAT
        or text_of(error, "event_id") == CONFIGURATION_ID
        or param.partition(".")[0] == "session"
    )
    return (BackendFault(kind, failure, param, configuration=ours),)


def error_code(error: dict[str, Any]) -> str:
    """The code, else the type; never the message, which can quote what was sent."""
    return cut(text_of(error, "code") or text_of(error, "type") or "unknown", CODE_MAX_CHARS)


_PARSERS: Parsers = MappingProxyType(
    {
        "input_audio_buffer.speech_started": _speech_started,
        "input_audio_buffer.speech_stopped": _speech_stopped,
        "input_audio_buffer.committed": _committed,
        "conversation.item.input_audio_transcription.completed": _transcribed,
        "conversation.item.input_audio_transcription.failed": _not_transcribed,
        "response.created": _response_started,
        "response.function_call_arguments.done": _arguments_ended,
        "response.output_item.done": _item_ended,
        "response.done": _response_ended,
        "session.created": _opened,
        "error": _fault,
    }
)
"""Events of both with the same name and fields."""
