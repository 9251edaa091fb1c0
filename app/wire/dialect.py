"""What every backend's wire module offers: the one shape that the bridge talks to.

A backend differs from another in its dialect and nowhere else. A vendor's dialect keeps no state of a call;
only converted audio has some, and there a dialect is made for each call (audio.py: `spoken_in`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from app.call.events import (
    AddToolCall,
    AddToolOutput,
    AddTurn,
    CancelResponse,
    Configure,
    CreateResponse,
    DeleteItem,
    Event,
    Truncate,
)
from app.call.plan import Abilities, Plan
from app.wire.text import Message

BackendCommand = (
    Configure | CreateResponse | CancelResponse | Truncate | AddTurn | DeleteItem | AddToolCall | AddToolOutput
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where and how to dial a backend. The headers hold its key: never log them."""

    url: str
    headers: dict[str, str] = field(repr=False)


Authorize = Callable[[], dict[str, str]]
"""The headers that open a backend, as they are now. Raises NoKey."""


class NoKey(Exception):  # noqa: N818  it is the key that is not there
    """A backend cannot be dialled: there is nothing to show it. `str()` says why and holds no secret."""


def bearer(token: Callable[[], str]) -> Authorize:
    """OpenAI's way, and that of Entra ID, whose tokens change (realtime.md 1.1, 2.1)."""
    return lambda: {"Authorization": f"Bearer {token()}"}


def api_key(key: str) -> Authorize:
    """Azure's way (realtime.md 2.1, 3)."""
    return lambda: {"api-key": key}


class Dialect(Protocol):
    """One vendor's words."""

    @property
    def name(self) -> str:
        """The kind of backend, for logs."""

    @property
    def abilities(self) -> Abilities:
        """What the core may leave to the backend."""

    def fitted(self, plan: Plan) -> Plan:
        """The plan with the model and the voices that calls have with this backend."""

    def address(self, model: str) -> Address:
        """Where to dial for this model. Raises NoKey."""

    def parse(self, message: Message) -> Sequence[Event]:
        """What a text frame means; empty for what does not concern us. Raises WireError."""

    def render(self, command: BackendCommand) -> bytes:
        """The message that carries a command out."""

    def append(self, payload: str) -> bytes:
        """The message for caller audio (base64; mu-law, see audio.py): the hot path, 50 times a second."""


_AZURE_VOICE = re.compile(r"[a-z]{2,3}-[A-Z][A-Za-z]{1,3}-\w.*", re.ASCII)


def is_azure_voice(name: str) -> bool:
    """True for a voice that only Azure has: it begins with a locale, `de-DE-KatjaNeural` (realtime.md 2.2)."""
    return _AZURE_VOICE.fullmatch(name) is not None
