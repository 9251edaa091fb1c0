"""The conversation of a session: its items in order, and their truncation.

Items are kept in their wire form (realtime.md 1.4, 1.8), with the length of their audio. The module sends nothing:
it changes the list, or raises the Refusal that the client gets.
"""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from app.sim.realtime.audio import BYTES_PER_MS, AudioFormat, Decoder, Encoder, duration_ms
from app.sim.realtime.schema import Refusal, invalid_value

Json = dict[str, Any]

AUDIO_KEPT_MS: Final = 30_000
"""Audio kept for `conversation.item.retrieve`, newest first: 240 kB a call. The newest item keeps all its own."""

USER_MS_PER_TOKEN: Final = 100  # realtime.md 1.12
AGENT_MS_PER_TOKEN: Final = 50
_CHARACTERS_PER_TOKEN: Final = 4  # the usual rule of thumb for English


@dataclass(slots=True)
class Item:
    """One entry of the conversation: its wire form, and the audio that belongs to it."""

    wire: Json
    audio_bytes: int | None = None  # mu-law bytes of speech; None when it has none, or none yet
    mulaw: bytes = field(default=b"", repr=False)  # empty when it was not kept
    produced_bytes: int = 0  # as `audio_bytes`, of what the agent said; truncation leaves it alone
    is_cut: bool = False  # truncated: what is still produced of it is no part of the conversation

    @property
    def id(self) -> str:
        return str(self.wire["id"])

    @property
    def role(self) -> str | None:
        role: str | None = self.wire.get("role")
        return role

    @property
    def audio_ms(self) -> int:
        return (self.audio_bytes or 0) // BYTES_PER_MS

    @property
    def produced_ms(self) -> int:
        """How much audio of it was sent to the client, heard or not."""
        return self.produced_bytes // BYTES_PER_MS

    def audio_tokens(self) -> int:
        return self.audio_ms // (AGENT_MS_PER_TOKEN if self.role == "assistant" else USER_MS_PER_TOKEN)

    def text_tokens(self) -> int:
        return tokens_of_text("".join(self._texts()))

    def _texts(self) -> Iterator[str]:
        yield from (str(self.wire[name]) for name in ("name", "arguments", "output") if name in self.wire)
        for part in self.wire.get("content", ()):
            # The caller's transcript comes from another model and is no part of the context.
            yield part.get("text") or (part.get("transcript") if self.role == "assistant" else "") or ""


def tokens_of_text(words: str) -> int:
    return -(-len(words) // _CHARACTERS_PER_TOKEN)


def decoded_audio(encoded: str, path: str) -> bytes:
    """Returns the bytes of a base64 field. Raises Refusal when it is not base64."""
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, ValueError):
        message = f"Invalid '{path}'. Expected base64-encoded audio bytes but got some invalid bytes."
        raise invalid_value(message, path) from None


class Conversation:
    """The items of one session, oldest first."""

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @property
    def last(self) -> Item | None:
        return self._items[-1] if self._items else None

    def find(self, item_id: str) -> Item | None:
        # From the end: what clients name is nearly always recent.
        return next((item for item in reversed(self._items) if item.id == item_id), None)

    def before(self, item: Item) -> str | None:
        """Returns the id of the item before this one."""
        previous: Item | None = None
        for each in self._items:
            if each is item:
                return previous.id if previous else None
            previous = each
        return None

    def append(self, item: Item) -> str | None:
        """Adds an item of the server. Returns the id of the item before it."""
        previous = self.last
        self._items.append(item)
        self._drop_old_audio()
        return previous.id if previous else None

    def insert(self, item: Item, after: str | None) -> str | None:
        """Adds a client's item; `after` None appends, "root" inserts it first. Returns the id before it."""
        if self.find(item.id):
            message = f"Error adding item: an item with the ID '{item.id}' already exists."
            raise Refusal("item_create_invalid_item_id", message, "item.id")
        if item.wire["type"] == "function_call_output":
            self._refuse_unknown_call(item.wire["call_id"])
        if after is None:
            return self.append(item)
        at = 0 if after == "root" else self._index(after) + 1
        self._items.insert(at, item)
        return self._items[at - 1].id if at else None

    def delete(self, item_id: str) -> None:
        item = self.find(item_id)
        if item is None:
            message = f"Error deleting item: the item with id '{item_id}' does not exist."
            raise Refusal("item_delete_invalid_item_id", message, "item_id")
        self._items.remove(item)

    def truncate(self, item_id: str, content_index: int, audio_end_ms: int) -> None:
        """Cuts the audio of an agent's item and deletes its transcript (realtime.md 1.8).

        Raises Refusal for an item that is unknown or has no agent audio, and for a cut behind its end.
        """
        item = self.find(item_id)
        if item is None:
            message = f"Error truncating item: item with item_id '{item_id}' not found."
            raise Refusal("item_truncate_invalid_item_id", message, "item_id")
        if item.role != "assistant" or item.audio_bytes is None or content_index != 0:
            # Also the answer for an item whose audio has not begun (livekit/agents#6249).
            raise invalid_value("Only model output audio messages can be truncated")
        if audio_end_ms > item.audio_ms:
            message = f"Audio content of {item.audio_ms}ms is already shorter than {audio_end_ms}ms"
            raise invalid_value(message)
        item.is_cut = True
        item.audio_bytes = audio_end_ms * BYTES_PER_MS
        item.mulaw = item.mulaw[: item.audio_bytes]
        item.wire["content"][0].pop("transcript", None)

    def retrieved(self, item_id: str, caller: AudioFormat, agent: AudioFormat | None) -> Json:
        """The wire form of an item with its audio, as far as that was kept; `agent` None: of the caller only."""
        item = self.find(item_id)
        if item is None:
            message = f"Error retrieving item: the item with id '{item_id}' does not exist."
            raise Refusal("item_retrieve_invalid_item_id", message, "item_id")
        audio_format = agent if item.role == "assistant" else caller
        if not item.mulaw or audio_format is None:
            return item.wire
        audio = base64.b64encode(Encoder(audio_format).encode(item.mulaw)).decode()
        first, *others = item.wire["content"]
        return {**item.wire, "content": [{**first, "audio": audio}, *others]}

    def text_tokens(self) -> int:
        return sum(item.text_tokens() for item in self._items)

    def audio_tokens(self) -> int:
        return sum(item.audio_tokens() for item in self._items)

    def _index(self, item_id: str) -> int:
        for index, item in enumerate(self._items):
            if item.id == item_id:
                return index
        message = f"Error adding item: the previous item with id '{item_id}' does not exist."
        raise Refusal("item_create_invalid_previous_item_id", message, "previous_item_id")

    def _refuse_unknown_call(self, call_id: str) -> None:
        if not any(item.wire.get("call_id") == call_id for item in self._items):
            message = f"Tool call ID '{call_id}' not found in conversation."
            raise Refusal("invalid_tool_call_id", message, "item.call_id")

    def _drop_old_audio(self) -> None:
        kept_ms = duration_ms(self._items[-1].mulaw)
        for item in reversed(self._items[:-1]):
            if not item.mulaw:
                continue
            kept_ms += duration_ms(item.mulaw)
            if kept_ms > AUDIO_KEPT_MS:
                item.mulaw = b""


def client_item(wire: Json, body: Json, input_format: AudioFormat) -> Item:
    """Makes the entry for an `item` of the client: its wire form and its decoded audio."""
    item = Item(wire)
    encoded = [part["audio"] for part in body.get("content", ()) if part["type"] == "input_audio"]
    if encoded:
        decoder = Decoder(input_format)
        item.mulaw = b"".join(decoder.decode(decoded_audio(each, "item.content")) for each in encoded)
        item.audio_bytes = len(item.mulaw)
    return item


def without_audio(body: Json) -> Json:
    """Returns a client's item as events show it. Only `conversation.item.retrieved` has its audio."""
    if "content" not in body:
        return body
    shown = [
        {"type": "input_audio", "transcript": part.get("transcript")} if part["type"] == "input_audio" else part
        for part in body["content"]
    ]
    return {**body, "content": shown}
