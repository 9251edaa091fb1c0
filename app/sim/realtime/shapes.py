"""The shapes that the client events of both simulated services share (realtime.md 1.4, 2.3)."""

from collections.abc import Mapping
from typing import Any, Final

from app.sim.realtime.schema import (
    Check,
    Refusal,
    anything,
    boolean,
    chosen_by,
    either,
    fields,
    integer,
    list_of,
    literal,
    mapping,
    nullable,
    text,
)


def event(required: Mapping[str, Check] | None = None, optional: Mapping[str, Check] | None = None) -> Check:
    """A client event with these members; the type that chose it and an id of the client's own come with each."""
    return fields({"type": anything, **(required or {})}, {"event_id": text(512), **(optional or {})})


COMMON_EVENTS: Final[Mapping[str, Check]] = {
    "input_audio_buffer.append": event({"audio": text()}),
    "input_audio_buffer.commit": event(),
    "input_audio_buffer.clear": event(),
    "conversation.item.truncate": event(
        {"item_id": text(), "content_index": integer(0), "audio_end_ms": integer(0)}
    ),
    "conversation.item.delete": event({"item_id": text()}),
    "conversation.item.retrieve": event({"item_id": text()}),
    "response.cancel": event(optional={"response_id": nullable(text())}),
}


def metadata(value: Any, path: str) -> None:
    """Up to 16 pairs of short texts."""
    mapping(value, path)
    if len(value) > 16:
        raise Refusal("object_above_max_properties", f"Invalid '{path}': at most 16 properties.", path)
    for name, each in value.items():
        text(64)(name, f"{path} key")
        text(512)(each, f"{path}.{name}")


def not_simulated(_value: Any, path: str) -> None:
    """Refuses by name what the real service has and the simulator does not, and does not ignore it silently."""
    raise Refusal("not_simulated", f"'{path}' exists in the real service, but is not simulated.", path)


FUNCTION_TOOL: Final = fields(
    {"type": anything, "name": text(64)}, {"description": text(), "parameters": nullable(mapping)}
)
TOOL_CHOICE: Final = either(
    literal("auto", "none", "required"),
    chosen_by(
        "type",
        {
            "function": fields({"type": anything, "name": text()}),
            "mcp": fields({"type": anything, "server_label": text()}, {"name": nullable(text())}),
        },
    ),
)
MAX_OUTPUT_TOKENS: Final = either(literal("inf"), integer(1, 4096))

_ANY_ITEM: Final[Mapping[str, Check]] = {
    "id": text(64),
    "type": anything,
    "object": literal("realtime.item"),
    "status": literal("completed", "incomplete", "in_progress"),
}
TEXT_PART: Final = fields({"type": anything, "text": text()})
INPUT_AUDIO_PART: Final = fields({"type": anything, "audio": text()}, {"transcript": nullable(text())})


def item_kinds(contents: Mapping[str, Mapping[str, Check]]) -> dict[str, Check]:
    """The items a client may create, by type, given what a message of each role may hold."""
    messages = {
        role: fields({"content": list_of(chosen_by("type", parts)), "role": anything}, _ANY_ITEM)
        for role, parts in contents.items()
    }
    return {
        "message": chosen_by("role", messages),
        "function_call": fields({"name": text(), "arguments": text()}, {**_ANY_ITEM, "call_id": text()}),
        "function_call_output": fields({"call_id": text(), "output": text()}, _ANY_ITEM),
        "mcp_approval_response": fields(
            {"approval_request_id": text(), "approve": boolean}, {**_ANY_ITEM, "reason": nullable(text())}
        ),
    }
