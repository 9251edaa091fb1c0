"""The eleven events a client may send, as strict shapes (realtime.md 1.4, 1.6). Nothing here acts on them."""

from typing import Any, Final

from app.sim.realtime_config import FORMAT, GENERATION, SESSION_UPDATE, VOICE
from app.sim.realtime_items import INPUT_ITEM, ITEM
from app.sim.realtime_schema import (
    Check,
    Refusal,
    anything,
    chosen_by,
    fields,
    integer,
    list_of,
    literal,
    nullable,
    text,
)

Json = dict[str, Any]

_EVENT_ID: Final = text(512)


def _metadata(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        fields()(value, path)
    if len(value) > 16:
        raise Refusal("object_above_max_properties", f"Invalid '{path}': at most 16 properties.", path)
    for name, each in value.items():
        text(64)(name, f"{path} key")
        text(512)(each, f"{path}.{name}")


_RESPONSE: Final = fields(
    optional={
        **GENERATION,
        "conversation": literal("auto", "none"),
        "input": list_of(INPUT_ITEM),
        "audio": fields(optional={"output": fields(optional={"format": FORMAT, "voice": VOICE})}),
        "metadata": nullable(_metadata),
    }
)


def _event(required: dict[str, Check] | None = None, optional: dict[str, Check] | None = None) -> Check:
    return fields({"type": anything, **(required or {})}, {"event_id": _EVENT_ID, **(optional or {})})


_CLIENT_EVENT: Final = chosen_by(
    "type",
    {
        "session.update": _event({"session": SESSION_UPDATE}),
        "input_audio_buffer.append": _event({"audio": text()}),
        "input_audio_buffer.commit": _event(),
        "input_audio_buffer.clear": _event(),
        "conversation.item.create": _event({"item": ITEM}, {"previous_item_id": nullable(text())}),
        "conversation.item.truncate": _event(
            {"item_id": text(), "content_index": integer(0), "audio_end_ms": integer(0)}
        ),
        "conversation.item.delete": _event({"item_id": text()}),
        "conversation.item.retrieve": _event({"item_id": text()}),
        "response.create": _event(optional={"response": nullable(_RESPONSE)}),
        "response.cancel": _event(optional={"response_id": nullable(text())}),
        "output_audio_buffer.clear": _event(),
    },
)


def check_event(event: Json) -> None:
    """Raises Refusal when the service would not accept the event's shape."""
    _CLIENT_EVENT(event, "")
