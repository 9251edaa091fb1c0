"""Why a backend failed a call, what that says about other calls, and who can mend it.

A failure is made in one of three places: app/wire/failures.py reads a vendor's error, app/backends/dial.py reads a
connection that does not come about, and the functions at the end of this file say what only the call can see.
All other code passes it on and looks at its fields, never at codes again.
"""

from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto

from app.call.ending import EndReason


class Scope(StrEnum):
    """Which other calls a failure says something about."""

    CALL = "call"
    """None: it was about this call's length, voice or language."""
    MODEL = "model"
    """Those that use the same model."""
    BACKEND = "backend"
    """All calls that this backend gets."""


class Remedy(Enum):
    """What an operator has to look at. The words for it are in app/backends/check.py."""

    NOTHING = auto()
    """Nothing that is known."""
    MISSING_KEY = auto()
    KEY = auto()
    CREDIT = auto()
    RATE_LIMIT = auto()
    MODEL = auto()
    ADDRESS = auto()
    ADDRESS_OR_MODEL = auto()
    SERVER = auto()
    FORMAT = auto()
    VOICE = auto()
    SETTING = auto()


@dataclass(frozen=True, slots=True)
class BackendFailure:
    """One failure of one backend, classified."""

    reason: EndReason
    """One of those whose `is_backend_fault` is true."""
    code: str = ""
    """The vendor's error code, the close code or the HTTP status; empty when there was none."""
    scope: Scope = Scope.BACKEND
    fatal: bool = False
    """True when every call in the scope will meet it until somebody mends it; False when it may be bad luck."""
    text: str = ""
    """What happened, for records and for an operator. Holds no secret and nothing that was spoken."""
    remedy: Remedy = Remedy.NOTHING
    retry_after_s: float | None = None
    """How long the backend asked us to wait; None when it did not say."""

    def __str__(self) -> str:
        """The reason and what is known about it, as the records have it."""
        return f"{self.reason.value} {self.text}".rstrip()


# --- What only the call can see --------------------------------------------------------------


def not_ready(step: str) -> BackendFailure:
    """The backend took too long for this step of its beginning."""
    return BackendFailure(EndReason.BACKEND_NOT_READY, text=step, remedy=Remedy.ADDRESS)


def wrong_format(echoed: str) -> BackendFailure:
    """The backend will not use the audio formats that it was asked for. No call gets them from it."""
    return BackendFailure(EndReason.BACKEND_FORMAT, fatal=True, text=echoed, remedy=Remedy.FORMAT)


def silent(text: str = "") -> BackendFailure:
    """The backend sends nothing any more, or nothing that the caller could hear."""
    return BackendFailure(EndReason.BACKEND_SILENT, text=text)


def slow(text: str = "") -> BackendFailure:
    """The backend does not read what is sent to it."""
    return BackendFailure(EndReason.BACKEND_SLOW, text=text)


def misbehaved(text: str = "") -> BackendFailure:
    """The backend sent what a call cannot take: messages that make no sense, audio or tool calls without end."""
    return BackendFailure(EndReason.BACKEND_MISBEHAVED, text=text)


def lost(close_code: int) -> BackendFailure:
    """The connection closed without our asking for it."""
    return BackendFailure(EndReason.BACKEND_LOST, str(close_code), text=str(close_code), remedy=Remedy.ADDRESS)


def no_response(code: str) -> BackendFailure:
    """A response did not come, stopped half-way (`code` says which), or could not be heard (NO_AUDIO)."""
    remedy = Remedy.VOICE if code == NO_AUDIO else Remedy.NOTHING
    return BackendFailure(EndReason.BACKEND_FAILING, code, text=code, remedy=remedy)


def failing(last: BackendFailure) -> BackendFailure:
    """Response after response failed, the last one by this."""
    return replace(last, reason=EndReason.BACKEND_FAILING)


NO_AUDIO = "no_audio"
"""The code of a response that ended with neither audio nor a tool call."""

DEAD_AIR = "dead_air"
"""The text of a backend that was given up because the caller heard nothing for too long."""
