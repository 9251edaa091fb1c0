"""Failures that only the call can see, and which ends are a backend's fault."""

import pytest

from app.call import failure
from app.call.ending import EndReason
from app.call.failure import BackendFailure, Remedy, Scope

SEEN_BY_THE_CALL = [
    (failure.not_ready("dialling"), "backend_not_ready dialling"),
    (failure.wrong_format("audio/pcm"), "backend_format audio/pcm"),
    (failure.silent(), "backend_silent"),
    (failure.slow("does not read"), "backend_slow does not read"),
    (failure.misbehaved("audio without end"), "backend_misbehaved audio without end"),
    (failure.lost(1006), "backend_lost 1006"),
    (failure.no_response(failure.NO_AUDIO), "backend_failing no_audio"),
]


@pytest.mark.parametrize(("seen", "text"), SEEN_BY_THE_CALL, ids=[text for _, text in SEEN_BY_THE_CALL])
def test_failure_is_the_backends_fault_and_says_what_happened(seen: BackendFailure, text: str) -> None:
    assert (seen.reason.is_backend_fault, seen.scope, str(seen)) == (True, Scope.BACKEND, text)


def test_only_wrong_formats_are_met_by_every_other_call_for_certain() -> None:
    assert [seen.reason for seen, _ in SEEN_BY_THE_CALL if seen.fatal] == [EndReason.BACKEND_FORMAT]


def test_backend_that_fails_again_keeps_what_its_last_failure_means() -> None:
    quota = BackendFailure(EndReason.BACKEND_REFUSED, "rate_limit_exceeded", remedy=Remedy.RATE_LIMIT)
    often = failure.failing(quota)
    assert (often.reason, often.code, often.remedy) == (
        EndReason.BACKEND_FAILING,
        "rate_limit_exceeded",
        Remedy.RATE_LIMIT,
    )


def test_ends_that_are_a_backends_fault_are_those_that_name_it() -> None:
    faults = {reason for reason in EndReason if reason.is_backend_fault}
    assert faults == {reason for reason in EndReason if reason.value.startswith("backend_")}
