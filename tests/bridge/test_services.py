"""What one service does and the other does not, in whole calls; and which backend a call gets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.backends.table import Backend
from app.call import limits
from app.call.evidence import BackendChoice
from app.call.journal import BACKEND, FAILOVER
from app.call.plan import Plan
from app.call.records import CallEnded, CallEvent, CallStarted, Record, Speaker
from app.cli.demo import VOICES
from app.config import LedgerSettings, Settings
from app.main import Running, running
from app.process import bind
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.realtime.faults import Faults
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import FunctionCall, Message, Reply, ReplyRequest, Script, parrot
from app.sim.realtime.server import RealtimeServer
from app.sim.realtime.voicelive_simulator import VoiceLiveSimulator
from app.sim.wav import read_wav
from app.wire.formats import AudioFormat
from app.wire.tuning import OPENAI, VOICELIVE
from tests.bridge.azure import Clock, app_service, jwt
from tests.bridge.spoken import KEY, USUAL, Spoken
from tests.bridge.world import ACCOUNT_SID, AUTH_TOKEN, IN_TIME_S, world
from tests.waiting import LAG_UNLIMITED_S, a_moment

pytestmark = pytest.mark.anyio

SPEECH = read_wav(VOICES / "caller_interrupts.wav")
QUIET = Plan(greeting="", vad_silence_ms=200)
VOICE_LIVE = Spoken(VOICELIVE, AudioFormat.G711)


def at_length(request: ReplyRequest) -> Reply:
    """A first answer that takes longer to make than to interrupt; then short ones."""
    if request.number == 1:
        return Reply((Message.lasting("A long answer.", 20_000),), speed=1.5)
    return Reply((Message.lasting("All right.", 300),))


async def interrupt(phone: Phone) -> None:
    """Call, have the agent speak, and talk over it."""
    await phone.dial()
    await phone.answered()
    phone.press("1")
    await phone.heard_speech(500)
    phone.say(SPEECH)


async def hear_the_next_answer(phone: Phone) -> None:
    """And hang up."""
    await phone.heard_speech(280, since_ms=phone.speech_ms)
    await phone.hang_up()


# --- Voice Live --------------------------------------------------------------------------------------


async def test_greeting_is_spoken_word_for_word_without_asking_the_model(tmp_path: Path) -> None:
    asked: list[ReplyRequest] = []

    def script(request: ReplyRequest) -> Reply:
        asked.append(request)
        return Reply((Message.lasting("Something else.", 300),))

    plan = Plan(greeting="Hello, Example Dental.")
    async with world(tmp_path, plan=plan, script=script, spoken=VOICE_LIVE) as nearcall:
        async with Phone(nearcall.phone()) as phone:
            await phone.dial()
            await phone.heard_speech(200)
            await phone.hang_up()
        assert asked == []
        session = await nearcall.backend.session(0)
        [create] = session.events("response.create")
        [content] = create["response"]["pre_generated_assistant_message"]["content"]
        assert content["text"] == plan.greeting
        [turn] = nearcall.turns(phone.call_sid)
        assert turn.speaker is Speaker.AGENT


async def test_response_that_the_service_does_not_interrupt_is_cancelled_by_us(tmp_path: Path) -> None:
    """Its plain server_vad may tell of the caller's speech and go on speaking (realtime.md 2.2)."""
    faults = Faults(vad_does_not_cancel=True)
    async with (
        world(
            tmp_path, plan=QUIET, script=at_length, faults=faults, spoken=VOICE_LIVE, vad="server_vad"
        ) as nearcall,
        Phone(nearcall.phone()) as phone,
    ):
        await interrupt(phone)
        session = await nearcall.backend.session(0)
        await session.event("response.cancel")
        await hear_the_next_answer(phone)
        assert [each.event["type"] for each in session.sent if each.type == "error"] == []


async def test_service_that_cuts_its_items_itself_is_not_told_where(tmp_path: Path) -> None:
    async with (
        world(tmp_path, plan=QUIET, script=at_length, spoken=VOICE_LIVE, auto_truncate=True) as nearcall,
        Phone(nearcall.phone()) as phone,
    ):
        await interrupt(phone)
        session = await nearcall.backend.session(0)
        await session.wait_for(lambda s: any(each.type == "conversation.item.truncated" for each in s.sent))
        await hear_the_next_answer(phone)
        assert session.events("conversation.item.truncate") == []
        assert any(turn.interrupted for turn in nearcall.turns(phone.call_sid))


async def test_warning_is_recorded_and_the_call_goes_on(tmp_path: Path) -> None:
    plan = Plan(greeting="Hello.")
    async with world(tmp_path, plan=plan, faults=Faults(warning_every=1), spoken=VOICE_LIVE) as nearcall:
        async with Phone(nearcall.phone()) as phone:
            await phone.dial()
            await phone.heard_speech(200)
            await phone.hang_up()
        assert nearcall.endings(phone.call_sid) == ["caller_hung_up"]
        assert "backend_warning" in {each.kind for each in nearcall.records if isinstance(each, CallEvent)}


async def test_call_is_opened_by_entra_id_when_there_is_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        app_service(monkeypatch, Clock()),
        VoiceLiveSimulator(tokens={jwt("1")}) as backend,
        served(tmp_path, AZURE_VOICELIVE_ENDPOINT=backend.url) as (_, url),
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        # No calls come before the first token is there.
        while (await client.get("/healthz")).json()["status"] != "ok":
            await a_moment()
        async with phone_at(url) as phone:
            await phone.dial()
            await phone.heard_speech(200)
            await phone.hang_up()
        [upgrade] = backend.upgrades
        assert "api-key" not in upgrade.headers
        # The identity has lost its role, or the token its use before its time.
        backend.tokens = ()
        async with phone_at(url) as phone:
            await phone.dial()
            await phone.over()
        assert phone.announcements == [Plan().sorry]
        assert (await client.get("/healthz")).json()["why"] == "no_backend"
    assert "the key was refused (HTTP 401)" in str([record.__dict__ for record in caplog.records])
    assert jwt("1") not in caplog.text


# --- A server that only speaks PCM -------------------------------------------------------------------


@asynccontextmanager
async def served(data_dir: Path, **environ: str) -> AsyncIterator[tuple[Running, str]]:
    """A server that is configured as an operator does it: by its environment alone."""
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    settings = Settings.from_env(
        {
            "NEARCALL_PUBLIC_URL": url,
            "NEARCALL_SECRET": "s" * 40,
            "NEARCALL_LAG_MAX_MS": "10000",
            "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
            "NEARCALL_DATA_DIR": str(data_dir / "data"),
            **environ,
        }
    )
    async with asyncio.timeout(IN_TIME_S), running(settings, listener, api_hosts={}) as server:
        yield server, url


def phone_at(url: str, query: str = "") -> Phone:
    return Phone(
        PhoneOptions(
            webhook_url=f"{url}/twiml/voice{query}",
            auth_token=AUTH_TOKEN,
            connected_after_ms=(0, 0),
            document_pace=0.0,
        )
    )


async def test_server_that_only_speaks_pcm_takes_calls_by_configuration_alone(tmp_path: Path) -> None:
    config = tmp_path / "nearcall.toml"
    config.write_text('[backends.openai]\naudio = "pcm16-24k"\n', encoding="utf-8")
    async with (
        RealtimeSimulator(api_key=KEY, g711=False) as third_party,
        served(tmp_path, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=third_party.url, NEARCALL_CONFIG=str(config)) as (
            _,
            url,
        ),
        phone_at(url) as phone,
    ):
        await phone.dial()
        await phone.heard_speech(300)
        phone.say(SPEECH)
        session = await third_party.session(0)
        await session.wait_for(lambda s: any(each.type == "input_audio_buffer.committed" for each in s.sent))
        await phone.hang_up()
        assert phone.violations == []


async def test_server_that_only_speaks_pcm_is_not_started_on_noise(tmp_path: Path) -> None:
    """Not even one that says nothing of it and keeps its own format (realtime.md 5.2)."""
    async with (
        RealtimeSimulator(api_key=KEY, faults=Faults(ignore_formats=True)) as third_party,
        served(tmp_path, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=third_party.url) as (_, url),
        phone_at(url) as phone,
    ):
        await phone.dial()
        await phone.over()
        session = await third_party.session(0)
        assert [each.type for each in session.received] == ["session.update"]
        assert phone.speech_ms == 0
        assert phone.announcements == [Plan().sorry]


# --- Which backend -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Pair:
    """A server with both services."""

    openai: RealtimeServer
    voicelive: RealtimeServer
    server: Running
    url: str
    records: list[Record]

    def backend_of(self, call_sid: str) -> str:
        """The one that handled the call."""
        [name] = [
            each.backend for each in self.records if isinstance(each, CallStarted) and each.call_sid == call_sid
        ]
        return name


@asynccontextmanager
async def pair(
    data_dir: Path,
    *,
    faults: Faults,
    models: tuple[str, ...] | None = None,
    script: Script = parrot,
    **plan: Any,
) -> AsyncIterator[Pair]:
    """`faults` and `script`: of the first, `openai`; `models`: what the region of the other has."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(IN_TIME_S))
        openai = await stack.enter_async_context(RealtimeSimulator(api_key=KEY, faults=faults, script=script))
        voicelive = await stack.enter_async_context(VoiceLiveSimulator(api_key=KEY, models=models))
        listener = bind("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        backends: tuple[Backend, ...] = (USUAL.backend(openai.url), VOICE_LIVE.backend(voicelive.url))
        settings = Settings(
            lag_max_s=LAG_UNLIMITED_S,
            public_urls=(url,),
            secret="s" * 40,
            account_sid=ACCOUNT_SID,
            twilio_tokens={"us1": AUTH_TOKEN},
            backends=backends,
            ledger=LedgerSettings("local", "local", data_dir),
            port=0,
            plan=replace(Plan(greeting="Hello."), **plan),
        )
        records: list[Record] = []
        server = await stack.enter_async_context(running(settings, listener, api_hosts={}, watch=records.append))
        yield Pair(openai, voicelive, server, url, records)


NO = Faults()


@pytest.mark.parametrize(
    ("preferred", "query", "backend"),
    [
        ((), "", OPENAI),
        ((VOICELIVE,), "", VOICELIVE),
        ((), "?backend=voicelive", VOICELIVE),
        ((VOICELIVE,), "?backend=openai", OPENAI),
        ((VOICELIVE,), "?backend=telepathy", VOICELIVE),
    ],
)
async def test_backend_is_the_one_that_the_numbers_url_asks_for_then_the_tenants(
    tmp_path: Path, preferred: tuple[str, ...], query: str, backend: str
) -> None:
    async with pair(tmp_path, faults=NO, backends=preferred) as both, phone_at(both.url, query) as phone:
        await phone.dial()
        await phone.heard_speech(200)
        await phone.hang_up()
        assert both.backend_of(phone.call_sid) == backend


@pytest.mark.parametrize(
    "faults",
    [
        Faults(refuse_upgrade=503),
        Faults(refuse_upgrade=401),
        Faults(ignore_formats=True, echo_format="audio/pcm"),
        Faults(error_code="model_not_found", error_after="session.created"),
        Faults(end="abort"),
        Faults(never_greet=True),
    ],
    ids=["503", "401", "format", "model", "lost", "hangs"],
)
@pytest.mark.parametrize("start_after_ms", [0, 400])
async def test_caller_hears_the_next_backend_when_one_fails_before_it_speaks(
    tmp_path: Path, faults: Faults, start_after_ms: int
) -> None:
    async with pair(tmp_path, faults=faults) as both:
        options = phone_at(both.url).options
        async with Phone(replace(options, connected_after_ms=(start_after_ms, start_after_ms))) as phone:
            await phone.dial()
            await phone.heard_speech(200)
            await phone.hang_up()
        assert both.backend_of(phone.call_sid) == VOICELIVE
        assert phone.announcements == []
        told = {each.kind: each.detail for each in both.records if isinstance(each, CallEvent)}
        assert told[FAILOVER].startswith(f"{OPENAI} backend_")
        chosen = [each.evidence for each in both.records if isinstance(each, CallEvent) and each.kind == BACKEND]
        assert chosen[-1] == BackendChoice(VOICELIVE, "marin", ("eu",), "next")
        [ending] = [each for each in both.records if isinstance(each, CallEnded)]
        assert ending.reason == "caller_hung_up"


SILENT_REPLIES: dict[str, Reply] = {
    "empty output": Reply(()),
    "text alone": Reply((Message("I can only write.", written=True),)),
    "content filter": Reply((), status="incomplete", incomplete_reason="content_filter"),
    "hangs": Reply((Message("Too late.", b"\x7f" * 800),), first_delta_ms=3_600_000),
}


@pytest.mark.parametrize("reply", SILENT_REPLIES.values(), ids=SILENT_REPLIES)
async def test_backend_whose_responses_have_no_audio_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reply: Reply
) -> None:
    async with pair(tmp_path, faults=NO, script=lambda _request: reply) as both, phone_at(both.url) as phone:
        await phone.dial()
        await phone.heard_speech(200)
        await phone.hang_up()
    assert phone.announcements == []
    told = {each.kind: each.detail for each in both.records if isinstance(each, CallEvent)}
    assert told[FAILOVER].startswith(f"{OPENAI} backend_")
    chosen = [each.evidence for each in both.records if isinstance(each, CallEvent) and each.kind == BACKEND]
    assert chosen[-1] == BackendChoice(VOICELIVE, "marin", ("eu",), "next")
    [ending] = [each for each in both.records if isinstance(each, CallEnded)]
    assert ending.reason == "caller_hung_up"
    assert any("backend_replaced" in record.getMessage() for record in caplog.records)


async def test_model_that_calls_a_missing_tool_for_ever_is_asked_a_bounded_time(tmp_path: Path) -> None:
    """It was asked again 36,349 times in 14 s, and the caller heard nothing."""
    requests: list[ReplyRequest] = []

    def script(request: ReplyRequest) -> Reply:
        requests.append(request)
        if request.params.get("tool_choice") == "none":
            return Reply((Message.lasting("My tools do not work.", 400),))
        return Reply((FunctionCall("make_coffee"),))

    plan = Plan(greeting="Hello.")
    async with world(tmp_path, plan=plan, script=script) as nearcall, Phone(nearcall.phone()) as phone:
        await phone.dial()
        await phone.heard_speech(300)
        await phone.hang_up()
    assert len(requests) == limits.TOOL_ROUNDS_MAX + 1
    [turn] = nearcall.turns(phone.call_sid)
    assert (turn.said, turn.model) == ("My tools do not work.", Plan().model)
    assert turn.input_text_tokens > 0


async def test_model_that_the_region_does_not_have_costs_no_caller_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the backend's own model: every call would meet it, so no more are sent there."""
    async with pair(tmp_path, faults=NO, models=("gpt-realtime",), backends=(VOICELIVE,)) as both:
        options = phone_at(both.url).options
        async with Phone(replace(options, connected_after_ms=(400, 400))) as phone:
            await phone.dial()
            await phone.heard_speech(200)
            await phone.hang_up()
        assert both.backend_of(phone.call_sid) == OPENAI
        async with phone_at(both.url) as phone:
            await phone.dial()
            await phone.heard_speech(200)
            await phone.hang_up()
        assert len(both.voicelive.upgrades) == 1
        endings = [each.reason for each in both.records if isinstance(each, CallEnded)]
        assert endings == ["caller_hung_up"] * 2
    [told] = [record.__dict__["fields"] for record in caplog.records if "backend_replaced" in record.getMessage()]
    assert (told["reason"], told["error"], told["backend"]) == (
        "backend_refused",
        "invalid_model model",
        VOICELIVE,
    )
