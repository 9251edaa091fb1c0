"""What passed over one simulated session, and what assertions ask of it. It listens; it changes nothing."""

from app.sim.realtime.event_sender import Json, Recorded


class Record:
    """The events of both directions and the caller's audio, as far as they are kept."""

    def __init__(self, *, keep: bool) -> None:
        self.received: list[Recorded] = []  # every client event
        self.sent: list[Recorded] = []  # every server event
        self.input_bytes = 0  # audio received, in the session's format; counted always
        self.input_audio = bytearray()  # the same audio
        self._keep = keep

    def note(self, at: float, event: Json) -> None:
        """The client sent this."""
        if self._keep:
            self.received.append(Recorded(at, event))

    def note_audio(self, data: bytes) -> None:
        """The caller was heard."""
        self.input_bytes += len(data)
        if self._keep:
            self.input_audio += data

    def events(self, kind: str) -> list[Json]:
        """The client's events of a type so far."""
        return [each.event for each in self.received if each.type == kind]

    def truncations(self) -> list[tuple[str, int]]:
        """What the client had cut, in order: the item's id and `audio_end_ms`."""
        return [(each["item_id"], each["audio_end_ms"]) for each in self.events("conversation.item.truncate")]

    def texts(self) -> list[tuple[str, str]]:
        """The messages that the client put into the conversation, in order: role and text."""
        items = [each["item"] for each in self.events("conversation.item.create")]
        return [
            (item["role"], "".join(part.get("text", "") for part in item["content"]))
            for item in items
            if item["type"] == "message"
        ]

    def errors(self) -> list[Json]:
        """The `error` objects that the client got."""
        return [each.event["error"] for each in self.sent if each.type == "error"]
