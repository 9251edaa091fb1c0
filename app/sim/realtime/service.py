"""The differences between the simulated services, as one interface.

OpenAI Realtime and Azure Voice Live share a protocol and differ in names, in the session object and in a few
abilities (realtime.md 2.3, 2.4, 4). Sessions, turns and responses ask their Service. The upgrade, which precedes
the session, is in openai_simulator.py and voicelive_simulator.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from app.sim.realtime.audio import AudioFormat
from app.sim.realtime.vad import VadSettings

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Names:
    """The types of events and of the agent's contents whose names differ by service (realtime.md 1.11)."""

    audio_delta: str
    audio_done: str
    transcript_delta: str
    transcript_done: str
    text_delta: str
    text_done: str
    item_added: str
    item_done: str | None  # None: only one event announces an item
    audio_content: str
    text_content: str


@dataclass(frozen=True, slots=True)
class TurnTaking:
    """How the service detects the caller's turns, and how it reacts to them."""

    vad: VadSettings
    create_response: bool
    interrupt_response: bool
    idle_timeout_ms: int | None = None
    auto_truncate: bool = False
    by_silence: bool = True  # `server_vad`; False for the kinds that judge what was said


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """A session's configuration as the simulator uses it. The wire form is only echoed."""

    input_format: AudioFormat
    output_format: AudioFormat
    turns: TurnTaking | None  # None: the client commits and asks
    transcription_model: str | None


@dataclass(frozen=True, slots=True)
class ResponseSettings:
    """The settings of a response: the session's configuration overlaid with `response.create`."""

    output_format: AudioFormat
    modality: Literal["audio", "text"]
    max_output_tokens: int | Literal["inf"]
    metadata: Mapping[str, str] | None
    conversation_id: str | None  # None: beside the conversation
    shown: Mapping[str, Any]  # members of the response object that are this service's own
    words: str | None = None  # to be spoken word for word, without asking the model


@dataclass(frozen=True, slots=True)
class InputTokens:
    """The context that a response bills as input, and the part of it that was cached."""

    text: int
    audio: int
    cached_text: int
    cached_audio: int


class Service(Protocol):
    """One vendor's service."""

    @property
    def names(self) -> Names: ...

    @property
    def tells_rate_limits(self) -> bool: ...

    @property
    def returns_agent_audio(self) -> bool:
        """Whether `conversation.item.retrieved` holds audio of the agent as well as of the caller."""

    def check(self, event: Json) -> None:
        """Raises Refusal when the service would not accept the event's shape."""

    def new_session(self, session_id: str, model: str, expires_at: int) -> Json:
        """The session as `session.created` shows it."""

    def updated(self, session: Json, change: Json, *, has_spoken: bool, is_speaking: bool) -> Json:
        """The session after a `session.update` whose shape was checked; the given one stays as it is.

        Raises Refusal when the session's model forbids a value, or when it may not change any more.
        """

    def settings(self, session: Json) -> SessionSettings:
        """Returns the settings in a session's wire form."""

    def with_format(self, session: Json, name: str) -> Json:
        """The session with the format of this name both ways, whatever it had."""

    def without_formats(self, event: Json) -> Json:
        """A `session.update`, not checked yet, without what it says of formats."""

    def response(
        self, session: Json, params: Json, *, has_spoken: bool, conversation_id: str | None
    ) -> ResponseSettings:
        """Returns the settings of a new response. Raises Refusal when they are not valid."""

    def item(self, body: Json, new_id: str) -> Json:
        """A checked `item` of the client as its events show it: with an id, without its audio."""

    def input_token_details(self, tokens: InputTokens) -> Json:
        """The `input_token_details` of a response's usage."""

    def transcribed(self, model: str, audio_ms: int, words: str) -> Json:
        """Returns the members of a transcript event besides the words."""
