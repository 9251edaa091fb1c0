"""The strict shapes of the events that a client may send to OpenAI (realtime.md 1.4, 1.6)."""

from typing import Final

from app.sim.realtime.config import GENERATION, VOICE, session_shape
from app.sim.realtime.schema import Check, anything, chosen_by, fields, list_of, literal, nullable, text
from app.sim.realtime.shapes import COMMON_EVENTS, INPUT_AUDIO_PART, TEXT_PART, event, item_kinds, metadata

_ITEMS: Final = item_kinds(
    {
        "user": {
            "input_text": TEXT_PART,
            "input_audio": INPUT_AUDIO_PART,
            "input_image": fields(
                {"type": anything, "image_url": text()}, {"detail": literal("auto", "low", "high")}
            ),
        },
        "system": {"input_text": TEXT_PART},
        # Audio of the assistant cannot be put in (realtime.md 1.4).
        "assistant": {"output_text": TEXT_PART},
    }
)
_INPUT_ITEM: Final = chosen_by("type", {**_ITEMS, "item_reference": fields({"id": text()}, {"type": anything})})
"""An entry of `response.create`'s `input`: an item, or a reference to one (realtime.md 1.6)."""


def client_event(audio_format: Check) -> Check:
    """Any event of a client; every `format` in it has the given shape."""
    response = fields(
        optional={
            **GENERATION,
            "conversation": literal("auto", "none"),
            "input": list_of(_INPUT_ITEM),
            "audio": fields(optional={"output": fields(optional={"format": audio_format, "voice": VOICE})}),
            "metadata": nullable(metadata),
        }
    )
    return chosen_by(
        "type",
        {
            **COMMON_EVENTS,
            "session.update": event({"session": session_shape(audio_format)}),
            "conversation.item.create": event(
                {"item": chosen_by("type", _ITEMS)}, {"previous_item_id": nullable(text())}
            ),
            "response.create": event(optional={"response": nullable(response)}),
            "output_audio_buffer.clear": event(),
        },
    )
