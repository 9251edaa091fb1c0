"""Records the traffic of one simulated session for assertions."""

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
        """Records an event of the client."""
        if self._keep:
            self.received.append(Recorded(at, event))

    def note_audio(self, data: bytes) -> None:
        """Counts audio of the caller, and keeps it when recording."""
        self.input_bytes += len(data)
        if self._keep:
            self.input_audio += data

    def events(self, kind: str) -> list[Json]:
        """Returns the client's events of a type so far."""
        return [each.event for each in self.received if each.type == kind]

    def truncations(self) -> list[tuple[str, int]]:
        """Returns the client's truncations in order: item id and `audio_end_ms`."""
        return [(each["item_id"], each["audio_end_ms"]) for each in self.events("conversation.item.truncate")]

    def texts(self) -> list[tuple[str, str]]:
        """Returns the messages that the client created in the conversation, in order: role and text."""
        items = [each["item"] for each in self.events("conversation.item.create")]
        return [
            (item["role"], "".join(part.get("text", "") for part in item["content"]))
            for item in items
            if item["type"] == "message"
        ]

    def errors(self) -> list[Json]:
        """Returns the `error` objects that the client got."""
        return [each.event["error"] for each in self.sent if each.type == "error"]
