"""What vendors' error codes mean, for the call that meets one and for the others."""

import pytest

from app.call.ending import EndReason
from app.call.events import ErrorKind
from app.call.failure import Remedy, Scope
from app.wire.failures import CODES, classify


@pytest.mark.parametrize(
    ("code", "scope", "fatal"),
    [
        ("insufficient_quota", Scope.BACKEND, True),
        ("billing_hard_limit_reached", Scope.BACKEND, True),
        ("invalid_api_key", Scope.BACKEND, True),
        ("model_not_found", Scope.MODEL, True),
        ("invalid_model", Scope.MODEL, True),
        ("beta_api_shape_disabled", Scope.BACKEND, False),
        ("session_expired", Scope.CALL, False),
        ("invalid_value", Scope.CALL, False),
        ("server_error", Scope.BACKEND, False),
        ("rate_limit_exceeded", Scope.BACKEND, False),
        ("of_the_future", Scope.BACKEND, False),
    ],
)
def test_code_says_which_other_calls_will_meet_it(code: str, scope: Scope, fatal: bool) -> None:
    _, failure = classify(code)
    assert (failure.code, failure.scope, failure.fatal, failure.text) == (code, scope, fatal, code)
    assert failure.reason is EndReason.BACKEND_REFUSED


@pytest.mark.parametrize("code", ["invalid_value", "of_the_future"])
def test_error_about_the_audio_formats_is_met_by_every_call(code: str) -> None:
    _, failure = classify(code, "session.audio.input.format.type")
    assert failure.reason is EndReason.BACKEND_FORMAT
    assert (failure.scope, failure.fatal, failure.remedy) == (Scope.BACKEND, True, Remedy.FORMAT)
    assert failure.text == f"{code} session.audio.input.format.type"


def test_unknown_code_is_harmless_and_has_no_remedy() -> None:
    kind, failure = classify("of_the_future", "model")
    assert (kind, failure.remedy, failure.text) == (ErrorKind.HARMLESS, Remedy.NOTHING, "of_the_future model")


def test_what_ends_every_call_at_once_also_ends_the_call_that_meets_it() -> None:
    assert {meaning.kind for meaning in CODES.values() if meaning.fatal} == {ErrorKind.FATAL}
