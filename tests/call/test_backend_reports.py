"""What a call reports about its backend while it goes on: the time to the first audio, and a rate limit."""

import pytest

from app.call.ending import EndReason
from app.call.events import (
    BackendFault,
    ErrorKind,
    ReportFirstAudio,
    ResponseEnded,
    ResponseStarted,
    ResponseStatus,
    SpeechStarted,
)
from app.call.failure import BackendFailure, Remedy
from tests.call.script import Script, agent
from tests.call.test_failover import CONFIGURED, CONNECTED, OPENED, STARTED, script_with

LIMITED = BackendFailure(EndReason.BACKEND_REFUSED, "rate_limit_exceeded", remedy=Remedy.RATE_LIMIT)


def first_audio_ms(script: Script) -> list[float]:
    return [heard.after_ms for _, heard in script.every(ReportFirstAudio)]


def test_time_to_the_first_audio_counts_from_the_request_for_the_greeting() -> None:
    script = script_with("azure")
    script.at(0.0, CONNECTED, STARTED, OPENED)
    script.at(0.5, CONFIGURED)
    script.at(0.7, ResponseStarted("r1"))
    script.at(1.25, agent("item_A", 20), agent("item_A", 20))
    assert first_audio_ms(script) == [pytest.approx(750.0)]


def test_greeting_that_gave_way_to_the_caller_measures_nothing() -> None:
    script = script_with().begin()
    script.at(0.5, SpeechStarted("u1"))
    script.at(2.5, ResponseStarted("r2"), agent("item_B", 20))
    assert first_audio_ms(script) == []


def test_rate_limit_is_reported_at_once_while_the_call_goes_on() -> None:
    script = script_with().begin()
    script.at(0.5, ResponseStarted("r1"))
    script.at(0.6, ResponseEnded("r1", ResponseStatus.FAILED, ErrorKind.RETRY, LIMITED))
    script.at(0.7, BackendFault(ErrorKind.RETRY, LIMITED))
    assert script.outcomes == [(0.6, LIMITED), (0.7, LIMITED)]
    assert script.ended is None
