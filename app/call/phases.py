"""How far a call has come, and how far its backend has.

What moves a call on:

    EXPECTED ──PhoneConnected──> ARRIVED ──PhoneStarted──> OPENING ──backend configured──> TALKING
        │                           │                         │                              │
        │ 15 s                      │ 5 s                     │ 5 s                 goodbye  │
        v                           v                         v                              v
      ENDED <───────────────────────┴─── any fault, stop ─────┴──── LEAVING <──heard── SAYING_GOODBYE

The backend opens in parallel (at the webhook, before Twilio's stream): DIALLING, CONFIGURING, READY, GONE.
TALKING needs both the phone's `start` and READY. A backend that fails before TALKING, or takes long, is followed
by another one, which begins with DIALLING. In LEAVING the hang-up was asked for by REST, and we wait for Twilio's
`stop`. After ENDED every event is ignored.

In LEAVING the goodbye was heard and nothing more is said, sent or run; only the end of the stream matters.
"""

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType

from app.call import limits


class Phase(Enum):
    """How far the call has come; see the diagram above."""

    EXPECTED = auto()
    ARRIVED = auto()
    OPENING = auto()
    TALKING = auto()
    SAYING_GOODBYE = auto()
    LEAVING = auto()
    ENDED = auto()


class BackendPhase(Enum):
    """How far the backend has come."""

    DIALLING = auto()
    CONFIGURING = auto()
    READY = auto()
    GONE = auto()


PHASE_LIMIT_S: Mapping[Phase, float] = MappingProxyType(
    {
        Phase.EXPECTED: limits.STREAM_WAIT_S,
        Phase.ARRIVED: limits.START_WAIT_S,
        Phase.OPENING: limits.OPEN_LIMIT_S,
        Phase.SAYING_GOODBYE: limits.GOODBYE_LIMIT_S,
        Phase.LEAVING: limits.HANG_UP_GRACE_S,
    }
)
