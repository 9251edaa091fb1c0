"""Backends are tried over real sockets, as a call would find them: what is wrong is said in words."""

import asyncio
from typing import Literal

import pytest

from app.backends import probe as trial_module
from app.backends.dial import DialError
from app.backends.probe import attempt
from app.call.ending import EndReason
from app.call.failure import NO_AUDIO, Remedy, Scope
from app.call.plan import Plan
from app.sim.realtime.faults import Faults
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import Reply, ReplyError
from app.wire.dialect import NoKey, bearer
from app.wire.formats import AudioFormat
from app.wire.openai import OpenAIRealtime
from app.wire.tuning import Tuning
from app.world.process import free_port

pytestmark = pytest.mark.anyio

PLAN = Plan()


def spoken(url: str, key: str = "test-key", tuning: Tuning = Tuning()) -> OpenAIRealtime:  # noqa: B008  frozen
    return OpenAIRealtime(url, bearer(lambda: key), tuning)


async def refusal(dialect: OpenAIRealtime, *, speak: bool = False) -> DialError:
    with pytest.raises(DialError) as raised:
        async with asyncio.timeout(10):
            await attempt(dialect, PLAN, speak=speak)
    return raised.value


# --- It works ----------------------------------------------------------------------------------------


async def test_backend_that_is_well_was_configured_and_is_left_alone() -> None:
    async with asyncio.timeout(10), RealtimeSimulator(api_key="test-key") as backend:
        trial = await attempt(spoken(backend.url), PLAN, speak=False)
        assert trial.first_audio_ms is None
        assert trial.opened_ms > 0 < trial.configured_ms
        session = await backend.session(0)
        await session.wait_for(lambda s: s.close_code is not None)
        assert [each.type for each in session.received] == ["session.update"]


@pytest.mark.parametrize("audio", [AudioFormat.G711, AudioFormat.PCM16_24K])
async def test_backend_that_is_well_begins_to_speak(audio: AudioFormat) -> None:
    async with asyncio.timeout(10), RealtimeSimulator(api_key="test-key") as backend:
        trial = await attempt(spoken(backend.url, tuning=Tuning(audio)), PLAN, speak=True)
        assert trial.first_audio_ms is not None


async def test_backend_says_something_though_the_built_in_tenant_greets_nobody() -> None:
    async with asyncio.timeout(10), RealtimeSimulator(api_key="test-key") as backend:
        await attempt(spoken(backend.url), Plan(greeting=""), speak=True)
        session = await backend.session(0)
        await session.wait_for(lambda s: s.close_code is not None)
        [asked] = [each.event for each in session.received if each.type == "response.create"]
        assert f'"{Plan().greeting}"' in asked["response"]["instructions"]


async def test_error_about_something_else_before_the_configuration_is_no_refusal() -> None:
    faults = Faults(error_code="deprecated", error_after="session.created")
    async with asyncio.timeout(10), RealtimeSimulator(api_key="test-key", faults=faults) as backend:
        await attempt(spoken(backend.url), PLAN, speak=False)


# --- It does not -------------------------------------------------------------------------------------


async def test_port_where_nobody_is_says_why() -> None:
    error = await refusal(spoken(f"http://127.0.0.1:{free_port()}/v1"))
    assert (str(error)[:19], error.failure.code) == ("Connect call failed", "")
    assert (error.failure.scope, error.failure.fatal, error.failure.remedy) == (
        Scope.BACKEND,
        False,
        Remedy.ADDRESS,
    )


async def test_refused_key_says_why() -> None:
    async with RealtimeSimulator(api_key="test-key") as backend:
        error = await refusal(spoken(backend.url, "another"))
    assert (str(error), error.failure.code) == ("the key was refused (HTTP 401)", "http_401")


async def test_key_that_is_not_there_says_why() -> None:
    def none() -> str:
        raise NoKey("no token from Entra ID: HTTP 500")

    error = await refusal(OpenAIRealtime("http://127.0.0.1:9/v1", bearer(none)))
    assert str(error) == "no token from Entra ID: HTTP 500"


async def test_backend_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_module, "ANSWER_LIMIT_S", 0.01)
    async with RealtimeSimulator(api_key="test-key", faults=Faults(never_greet=True)) as backend:
        assert str(await refusal(spoken(backend.url))) == "it said nothing within 0.01 s"


async def test_format_that_is_not_echoed_is_named() -> None:
    async with RealtimeSimulator(api_key="test-key", faults=Faults(echo_format="audio/pcm")) as backend:
        error = await refusal(spoken(backend.url))
    assert str(error) == "it echoed the audio formats audio/pcm@24000/audio/pcm@24000"
    assert error.failure.reason is EndReason.BACKEND_FORMAT


async def test_setting_that_is_refused_is_named_with_its_place() -> None:
    async with RealtimeSimulator(api_key="test-key") as backend:
        error = await refusal(spoken(backend.url, tuning=Tuning(voice="nova")))
    assert (str(error), error.failure.code) == (
        "it answered with the error invalid_value about session.audio.output.voice",
        "invalid_value",
    )


@pytest.mark.parametrize(
    ("end", "told"), [("abort", "it closed the connection (1006)"), ("clean", "it closed the connection (1000)")]
)
async def test_connection_that_closes_is_told_with_its_code(end: Literal["abort", "clean"], told: str) -> None:
    async with RealtimeSimulator(api_key="test-key", faults=Faults(end=end)) as backend:
        assert str(await refusal(spoken(backend.url))) == told


async def test_account_without_quota_is_found_when_it_is_to_speak() -> None:
    reply = Reply(status="failed", error=ReplyError("insufficient_quota", "insufficient_quota", "No credit."))
    async with RealtimeSimulator(api_key="test-key", script=lambda _request: reply) as backend:
        error = await refusal(spoken(backend.url), speak=True)
    assert (str(error), error.failure.code) == ("it could not speak: insufficient_quota", "insufficient_quota")


async def test_answer_without_audio_is_named_and_is_no_failed_one() -> None:
    async with RealtimeSimulator(api_key="test-key", script=lambda _request: Reply()) as backend:
        error = await refusal(spoken(backend.url), speak=True)
    assert (str(error), error.failure.code) == ("it answered without audio", NO_AUDIO)
