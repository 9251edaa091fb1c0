"""What every backend's wire module offers: the one shape that the bridge talks to.

A backend differs from another in its dialect and nowhere else. A vendor's dialect keeps no state of a call;
only converted audio has some, and there a dialect is made for each call (audio.py: `spoken_in`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.call.events import (
    AddText,
    AddToolOutput,
    CancelResponse,
    Configure,
    CreateResponse,
    Event,
    Truncate,
)
from app.wire.text import Message

BackendCommand = Configure | CreateResponse | CancelResponse | Truncate | AddText | AddToolOutput


@dataclass(frozen=True, slots=True)
class Address:
    """Where and how to dial a backend. The headers hold its key: never log them."""

    url: str
    headers: dict[str, str] = field(repr=False)


class Dialect(Protocol):
    """One vendor's words."""

    @property
    def name(self) -> str:
        """The kind of backend, for logs."""

    def address(self, model: str) -> Address:
        """Where to dial for this model."""

    def parse(self, message: Message) -> Sequence[Event]:
        """What a text frame means; empty for what does not concern us. Raises WireError."""

    def render(self, command: BackendCommand) -> bytes:
        """The message that carries a command out."""

    def append(self, payload: str) -> bytes:
        """The message for caller audio (base64; mu-law, see audio.py): the hot path, 50 times a second."""
