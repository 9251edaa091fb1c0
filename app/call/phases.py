"""How far a call has come, and how far its backend has: two small machines, each of which is a table.

The phases of a call. The backend opens in parallel, from the webhook on, before Twilio's stream comes:

    EXPECTED        STREAM_CONNECTED  -> ARRIVED
    EXPECTED        OVER              -> ENDED
    ARRIVED         STREAM_STARTED    -> OPENING
    ARRIVED         OVER              -> ENDED
    OPENING         BACKEND_READY     -> TALKING
    OPENING         MOVE_DUE          -> MOVING
    OPENING         OVER              -> ENDED
    TALKING         BACKEND_REPLACED  -> OPENING
    TALKING         SESSION_LOST      -> TAKING_OVER
    TALKING         GOODBYE_BEGUN     -> SAYING_GOODBYE
    TALKING         MOVE_DUE          -> MOVING
    TALKING         OVER              -> ENDED
    SAYING_GOODBYE  CALLER_CUT_IN     -> TALKING
    SAYING_GOODBYE  SESSION_LOST      -> TAKING_OVER
    SAYING_GOODBYE  GOODBYE_HEARD     -> LEAVING
    SAYING_GOODBYE  OVER              -> ENDED
    TAKING_OVER     BACKEND_READY     -> TALKING
    TAKING_OVER     GOODBYE_BEGUN     -> SAYING_GOODBYE
    TAKING_OVER     MOVE_DUE          -> MOVING
    TAKING_OVER     OVER              -> ENDED
    LEAVING         OVER              -> ENDED
    MOVING          OVER              -> ENDED

The phases of its backend, which begin again with every backend that takes the call:

    DIALLING        OPENED            -> CONFIGURING
    DIALLING        REPLACED          -> DIALLING
    DIALLING        LOST              -> GONE
    CONFIGURING     CONFIGURED        -> READY
    CONFIGURING     REPLACED          -> DIALLING
    CONFIGURING     LOST              -> GONE
    READY           REPLACED          -> DIALLING
    READY           LOST              -> GONE

`python -m app.call.phases` prints both from the tables below. `following` alone leads from one phase to the next.
"""

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import TypeVar

from app.call import limits


class Phase(Enum):
    """How far the call has come."""

    EXPECTED = auto()
    """The webhook was answered; Twilio's stream has not come."""
    ARRIVED = auto()
    """Twilio's WebSocket is open; its `start` has not come."""
    OPENING = auto()
    """The stream has begun; the backend is not ready."""
    TALKING = auto()
    """Both sides are up."""
    SAYING_GOODBYE = auto()
    """The end is decided, and the agent's last words are being spoken."""
    TAKING_OVER = auto()
    """The backend's session was lost, and another one is being opened, which will go on with the conversation."""
    LEAVING = auto()
    """The goodbye was heard and the hang-up asked for by REST. Nothing more is said, sent or run."""
    MOVING = auto()
    """Another machine is to go on with the call: this leg's turns are recorded, and the redirect is asked for.
    Nothing more is said, sent or run."""
    ENDED = auto()
    """Every event is ignored."""


class Cause(Enum):
    """What moves a call from one phase to the next."""

    STREAM_CONNECTED = auto()
    STREAM_STARTED = auto()
    BACKEND_READY = auto()
    BACKEND_REPLACED = auto()
    """The backend failed before the caller had heard it, and another one was found."""
    SESSION_LOST = auto()
    """The backend failed after the caller had heard it."""
    GOODBYE_BEGUN = auto()
    CALLER_CUT_IN = auto()
    """The caller speaks during the goodbye, so the call goes on."""
    GOODBYE_HEARD = auto()
    """The goodbye was played to its end, or its time is up."""
    MOVE_DUE = auto()
    """This machine drains, and nobody speaks; or the latest instant has come, whoever speaks."""
    OVER = auto()
    """The caller hung up, a limit was reached, or something failed for good."""


class BackendPhase(Enum):
    """How far the present backend has come."""

    DIALLING = auto()
    CONFIGURING = auto()
    """Its first message came, and it was told what it needs to know."""
    READY = auto()
    """It has confirmed what it was told: audio may flow."""
    GONE = auto()
    """It was lost during the goodbye, and no other one was left to take its place."""


class BackendCause(Enum):
    """What moves a backend from one phase to the next."""

    OPENED = auto()
    CONFIGURED = auto()
    REPLACED = auto()
    """Another backend takes its place, and is dialled."""
    LOST = auto()


TRANSITIONS: Mapping[Phase, Mapping[Cause, Phase]] = MappingProxyType(
    {
        Phase.EXPECTED: {Cause.STREAM_CONNECTED: Phase.ARRIVED, Cause.OVER: Phase.ENDED},
        Phase.ARRIVED: {Cause.STREAM_STARTED: Phase.OPENING, Cause.OVER: Phase.ENDED},
        Phase.OPENING: {
            Cause.BACKEND_READY: Phase.TALKING,
            Cause.MOVE_DUE: Phase.MOVING,
            Cause.OVER: Phase.ENDED,
        },
        Phase.TALKING: {
            Cause.BACKEND_REPLACED: Phase.OPENING,
            Cause.SESSION_LOST: Phase.TAKING_OVER,
            Cause.GOODBYE_BEGUN: Phase.SAYING_GOODBYE,
            Cause.MOVE_DUE: Phase.MOVING,
            Cause.OVER: Phase.ENDED,
        },
        Phase.SAYING_GOODBYE: {
            Cause.CALLER_CUT_IN: Phase.TALKING,
            Cause.SESSION_LOST: Phase.TAKING_OVER,
            Cause.GOODBYE_HEARD: Phase.LEAVING,
            Cause.OVER: Phase.ENDED,
        },
        Phase.TAKING_OVER: {
            Cause.BACKEND_READY: Phase.TALKING,
            # No backend is left, and the goodbye that was being spoken needs none.
            Cause.GOODBYE_BEGUN: Phase.SAYING_GOODBYE,
            Cause.MOVE_DUE: Phase.MOVING,
            Cause.OVER: Phase.ENDED,
        },
        Phase.LEAVING: {Cause.OVER: Phase.ENDED},
        Phase.MOVING: {Cause.OVER: Phase.ENDED},
        Phase.ENDED: {},
    }
)

BACKEND_TRANSITIONS: Mapping[BackendPhase, Mapping[BackendCause, BackendPhase]] = MappingProxyType(
    {
        BackendPhase.DIALLING: {
            BackendCause.OPENED: BackendPhase.CONFIGURING,
            BackendCause.REPLACED: BackendPhase.DIALLING,
            BackendCause.LOST: BackendPhase.GONE,
        },
        BackendPhase.CONFIGURING: {
            BackendCause.CONFIGURED: BackendPhase.READY,
            BackendCause.REPLACED: BackendPhase.DIALLING,
            BackendCause.LOST: BackendPhase.GONE,
        },
        BackendPhase.READY: {
            BackendCause.REPLACED: BackendPhase.DIALLING,
            BackendCause.LOST: BackendPhase.GONE,
        },
        BackendPhase.GONE: {},
    }
)

PHASE_LIMIT_S: Mapping[Phase, float] = MappingProxyType(
    {
        Phase.EXPECTED: limits.STREAM_WAIT_S,
        Phase.ARRIVED: limits.START_WAIT_S,
        Phase.OPENING: limits.OPEN_LIMIT_S,
        Phase.SAYING_GOODBYE: limits.GOODBYE_LIMIT_S,
        Phase.TAKING_OVER: limits.OPEN_LIMIT_S,
        Phase.LEAVING: limits.HANG_UP_GRACE_S,
        Phase.MOVING: limits.MOVE_FLUSH_S + limits.REST_LIMIT_S + limits.STOP_WAIT_S,
    }
)
"""How long a call may stay in a phase. How long it may talk is the tenant's to say (patience.py)."""

_State = TypeVar("_State", bound=Enum)
_Why = TypeVar("_Why", bound=Enum)


def following(table: Mapping[_State, Mapping[_Why, _State]], state: _State, cause: _Why) -> _State:
    """The state that follows. Raises AssertionError when the table has none: that is a bug, and ends the call."""
    after = table[state].get(cause)
    if after is None:
        raise AssertionError(f"{cause.name} is impossible in {state.name}")
    return after


def diagram(table: Mapping[_State, Mapping[_Why, _State]]) -> str:
    """The table, one transition a line, as this module's docstring has it."""
    return "\n".join(
        f"    {state.name:<16}{cause.name:<18}-> {after.name}"
        for state, causes in table.items()
        for cause, after in causes.items()
    )


if __name__ == "__main__":
    print(diagram(TRANSITIONS), diagram(BACKEND_TRANSITIONS), sep="\n\n")  # noqa: T201  for a reader
