"""Why calls end: one word each, for the ledger, for logs and for what the caller hears next."""

from enum import StrEnum


class EndReason(StrEnum):
    """Why a call ended. Kept in the ledger; `after` decides by it what the caller hears next."""

    CALLER_HUNG_UP = "caller_hung_up"
    AGENT_HUNG_UP = "agent_hung_up"
    IDLE = "idle"
    MAX_LENGTH = "max_length"
    STREAM_NEVER_CAME = "stream_never_came"
    START_NEVER_CAME = "start_never_came"
    PHONE_LOST = "phone_lost"
    PHONE_SILENT = "phone_silent"
    PHONE_SLOW = "phone_slow"
    PHONE_MISBEHAVED = "phone_misbehaved"
    WRONG_CALL = "wrong_call"
    BACKEND_UNREACHABLE = "backend_unreachable"
    BACKEND_NOT_READY = "backend_not_ready"
    BACKEND_FORMAT = "backend_format"
    BACKEND_REFUSED = "backend_refused"
    BACKEND_LOST = "backend_lost"
    BACKEND_SILENT = "backend_silent"
    BACKEND_SLOW = "backend_slow"
    BACKEND_MISBEHAVED = "backend_misbehaved"
    BACKEND_FAILING = "backend_failing"
    SHUTDOWN = "shutdown"
    MOVED = "moved"
    """This machine drains and handed the call to another one: the call goes on in a later leg."""
    SUPERSEDED = "superseded"
    """A later leg has the call already, so this one ends without a word."""
    BUG = "bug"
    UNKNOWN_NUMBER = "unknown_number"
    """Nobody has the number that was dialled."""
    TENANT_FULL = "tenant_full"
    """Its tenant had as many calls as it may have."""
    NOT_TAKEN = "not_taken"
    """No machine that may take the call could, or its stream was refused. The event `end` says why."""
    MACHINE_DIED = "machine_died"
    """Written by the machine's next start."""

    @property
    def owes_apology(self) -> bool:
        """True when the caller was left in the middle of a call and should hear a sentence."""
        return self not in _NO_APOLOGY

    @property
    def is_backend_fault(self) -> bool:
        """True when the backend ended the call, and not the caller, the agent, Twilio or this process."""
        return self in _BACKEND_FAULTS


WELL_ENDED = frozenset({EndReason.CALLER_HUNG_UP, EndReason.AGENT_HUNG_UP, EndReason.IDLE, EndReason.MAX_LENGTH})
"""The endings of calls that went as they should."""

_NO_APOLOGY = frozenset(
    {
        EndReason.CALLER_HUNG_UP,
        EndReason.AGENT_HUNG_UP,
        EndReason.IDLE,
        EndReason.MAX_LENGTH,
        EndReason.WRONG_CALL,
        EndReason.MOVED,
        EndReason.SUPERSEDED,
    }
)

_BACKEND_FAULTS = frozenset(
    {
        EndReason.BACKEND_UNREACHABLE,
        EndReason.BACKEND_NOT_READY,
        EndReason.BACKEND_FORMAT,
        EndReason.BACKEND_REFUSED,
        EndReason.BACKEND_LOST,
        EndReason.BACKEND_SILENT,
        EndReason.BACKEND_SLOW,
        EndReason.BACKEND_MISBEHAVED,
        EndReason.BACKEND_FAILING,
    }
)
