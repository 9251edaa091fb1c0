"""The strict shapes of the events that a client may send to Voice Live (realtime.md 2.3).

Events of the service that a telephone does not need are refused by name.
"""

from collections.abc import Mapping
from typing import Any, Final

from app.sim.realtime.schema import Check, chosen_by, fields, list_of, literal, nullable, text
from app.sim.realtime.shapes import (
    COMMON_EVENTS,
    INPUT_AUDIO_PART,
    MAX_OUTPUT_TOKENS,
    TEXT_PART,
    event,
    item_kinds,
    not_simulated,
)
from app.sim.realtime.voicelive_config import GENERATION, SESSION_UPDATE

Json = dict[str, Any]

_NOT_SIMULATED_EVENTS: Final = (
    "input_audio.turn.start",
    "input_audio.turn.append",
    "input_audio.turn.end",
    "input_audio.turn.cancel",
    "input_audio.clear",
    "input_text.delta",
    "input_text.done",
    "session.avatar.connect",
    "output_audio_buffer.clear",
)
_NOT_SIMULATED_PARAMETERS: Final = (
    "commit",
    "cancel_previous",
    "append_input_items",
    "input_items",
    "invoke_input",
)


def _event_not_simulated(value: Json, _path: str) -> None:
    not_simulated(value, value["type"])


_ITEMS: Final = item_kinds(
    {
        "user": {"input_text": TEXT_PART, "input_audio": INPUT_AUDIO_PART},
        "system": {"input_text": TEXT_PART},
        "assistant": {"text": TEXT_PART},
    }
)
_PRE_GENERATED: Final = fields(
    {
        "type": literal("message"),
        "role": literal("assistant"),
        "content": list_of(chosen_by("type", {"text": TEXT_PART})),
    },
    {"id": text(64), "status": literal("completed", "incomplete")},
)
_RESPONSE: Final[Mapping[str, Check]] = {
    **GENERATION,
    "max_output_tokens": MAX_OUTPUT_TOKENS,  # the SDK's name; the reference has the session's
    "conversation": literal("auto", "none"),
    "pre_generated_assistant_message": _PRE_GENERATED,
    **dict.fromkeys(_NOT_SIMULATED_PARAMETERS, not_simulated),
}

CLIENT_EVENT: Final = chosen_by(
    "type",
    {
        **COMMON_EVENTS,
        "session.update": event({"session": SESSION_UPDATE}),
        "conversation.item.create": event(
            {"item": chosen_by("type", _ITEMS)}, {"previous_item_id": nullable(text())}
        ),
        "response.create": event(
            optional={
                "response": nullable(fields(optional=_RESPONSE)),
                "additional_instructions": nullable(not_simulated),
            }
        ),
        **dict.fromkeys(_NOT_SIMULATED_EVENTS, _event_not_simulated),
    },
)
