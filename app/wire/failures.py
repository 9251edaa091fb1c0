"""What a vendor's error codes mean: the only place that knows them (realtime.md 1.9, 2.9).

`classify` turns a code into what it means for the call that met it (an ErrorKind) and into a BackendFailure, which
says what it means for other calls and for the operator. OpenAI and Azure Voice Live share the table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.call.ending import EndReason
from app.call.events import ErrorKind
from app.call.failure import BackendFailure, Remedy, Scope


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What one code means."""

    kind: ErrorKind
    scope: Scope
    fatal: bool = False
    remedy: Remedy = Remedy.NOTHING


_NO_CREDIT = _Meaning(ErrorKind.FATAL, Scope.BACKEND, fatal=True, remedy=Remedy.CREDIT)
_NO_MODEL = _Meaning(ErrorKind.FATAL, Scope.MODEL, fatal=True, remedy=Remedy.MODEL)
_BAD_SETTING = _Meaning(ErrorKind.HARMLESS, Scope.BACKEND, remedy=Remedy.SETTING)

CODES: Mapping[str, _Meaning] = MappingProxyType(
    {
        "insufficient_quota": _NO_CREDIT,
        # OpenAI's REST code for the same.
        "billing_hard_limit_reached": _NO_CREDIT,
        "invalid_api_key": _Meaning(ErrorKind.FATAL, Scope.BACKEND, fatal=True, remedy=Remedy.KEY),
        "model_not_found": _NO_MODEL,
        "invalid_model": _NO_MODEL,
        "beta_api_shape_disabled": _Meaning(ErrorKind.FATAL, Scope.BACKEND),
        # The session was open for as long as a session may be.
        "session_expired": _Meaning(ErrorKind.FATAL, Scope.CALL),
        "conversation_already_has_active_response": _Meaning(ErrorKind.BUSY, Scope.BACKEND),
        "rate_limit_exceeded": _Meaning(ErrorKind.RETRY, Scope.BACKEND, remedy=Remedy.RATE_LIMIT),
        "server_error": _Meaning(ErrorKind.RETRY, Scope.BACKEND),
        # A voice or a language that one tenant asks for. A value of the backend's own table is refused in the same
        # words, and `nearcall backends check` finds that.
        "invalid_value": _Meaning(ErrorKind.HARMLESS, Scope.CALL, remedy=Remedy.SETTING),
        "unknown_parameter": _BAD_SETTING,
        "missing_required_parameter": _BAD_SETTING,
    }
)

_UNKNOWN = _Meaning(ErrorKind.HARMLESS, Scope.BACKEND)
"""Codes of the future: the call goes on."""

_FORMATS = re.compile(r"audio\.(in|out)put\.format|(in|out)put_audio_(format|sampling_rate)")
"""Where the formats are in a session, of OpenAI's now, and of Voice Live's (realtime.md 1.3, 2.2)."""


def classify(code: str, param: str = "") -> tuple[ErrorKind, BackendFailure]:
    """What an error means for its call, and the failure that it is if the call cannot go on.

    `param` is the field that the error is about. Errors about the audio formats meet every call.
    """
    meaning = CODES.get(code, _UNKNOWN)
    text = f"{code} {param}".rstrip()
    if _FORMATS.search(param):
        failure = BackendFailure(EndReason.BACKEND_FORMAT, code, Scope.BACKEND, True, text, Remedy.FORMAT)
    else:
        failure = BackendFailure(
            EndReason.BACKEND_REFUSED, code, meaning.scope, meaning.fatal, text, meaning.remedy
        )
    return meaning.kind, failure


def warning(code: str) -> BackendFailure:
    """The failure that goes with a warning, which refuses nothing."""
    return BackendFailure(EndReason.BACKEND_REFUSED, code, Scope.CALL, text=code)
