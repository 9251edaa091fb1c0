"""Where a call was handled, as values: how its request came to this machine, and which backend it got.

`app/ledger/residency.py` holds them against the promise of the call's zone.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Route:
    """How a request came to this machine."""

    edge: str | None
    """The region of Fly's edge that decrypted it, as the request says; None when it does not."""
    machine: str
    """The region of this machine."""
    twilio: str | None
    """The Twilio region that signed it; None when that is not known."""
    sent_on_by: tuple[str, ...] = ()
    """The regions of the machines that sent it on, the first one first."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """The backend that a call got."""

    name: str
    voice: str
    residency: tuple[str, ...]
    """What the backend promises about where speech is processed and kept, such as `eu`."""
    because: str
    """Why this one: `only`, `nearest`, `next` after another one failed."""


Evidence = Route | BackendChoice
