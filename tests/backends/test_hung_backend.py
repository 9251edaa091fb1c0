"""A whole server with two backends over real sockets, one of which hangs: only one caller finds that out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from app.backends import circuit as circuit_module
from app.backends import pool as pool_module
from app.backends import probe as probe_module
from app.call import limits
from app.call.plan import Plan
from app.call.records import CallEvent, Record
from app.config import LedgerSettings, Settings
from app.main import running
from app.process import bind
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.realtime.faults import NO_FAULTS, Faults
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import Reply
from tests.bridge.world import ACCOUNT_SID, ADMIN_TOKEN, AUTH_TOKEN, OPERATOR, openai_at
from tests.waiting import LAG_UNLIMITED_S, a_moment

pytestmark = [pytest.mark.anyio, pytest.mark.alone]
"""They count callers who waited, by real clocks: beside other tests a healthy backend is late too."""

HUNG = Faults(end="stall", end_after="session.created")
"""It accepts the connection and sends its first message. The configuration is never confirmed."""

CALLERS = 20


@dataclass(slots=True)
class TwoBackends:
    """A server whose calls go to `a` first, and to `b` when `a` does not work."""

    a: RealtimeSimulator
    b: RealtimeSimulator
    url: str
    records: list[Record] = field(default_factory=list)

    async def caller_is_greeted(self) -> None:
        """A call that hears the agent and hangs up."""
        options = PhoneOptions(
            webhook_url=f"{self.url}/twiml/voice",
            auth_token=AUTH_TOKEN,
            connected_after_ms=(0, 0),
            document_pace=0.0,
        )
        async with Phone(options) as phone:
            await phone.dial()
            await phone.heard_speech(100)
            await phone.hang_up()

    async def state_of_a(self) -> str:
        """How the first backend is doing, as an operator sees it."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, headers=OPERATOR) as client:
            return str((await client.get("/healthz")).json()["backends"]["a"])

    async def until_a_is(self, state: str) -> None:
        """Wait until the first backend is doing so."""
        while await self.state_of_a() != state:
            await a_moment()

    @property
    def waited(self) -> int:
        """How many callers have waited for a backend until the next one was dialled."""
        return sum(isinstance(each, CallEvent) and each.kind == "failover" for each in self.records)


@asynccontextmanager
async def two_backends(data_dir: Path) -> AsyncIterator[TwoBackends]:
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with asyncio.timeout(60), RealtimeSimulator(api_key="k") as a, RealtimeSimulator(api_key="k") as b:
        settings = Settings(
            public_urls=(url,),
            secret="s" * 40,
            account_sid=ACCOUNT_SID,
            twilio_tokens={"us1": AUTH_TOKEN},
            backends=(openai_at(a.url, "k", name="a"), openai_at(b.url, "k", name="b")),
            ledger=LedgerSettings("local", "local", data_dir, {}, faults={}),
            port=0,
            plan=Plan(greeting="Hello."),
            admin_token=ADMIN_TOKEN,
            lag_max_s=LAG_UNLIMITED_S,
        )
        both = TwoBackends(a, b, url)
        async with running(settings, listener, api_hosts={}, watch=both.records.append):
            yield both


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes tenths; probes follow one another, so that many of them fail between two calls."""
    monkeypatch.setattr(limits, "BACKEND_LATE_S", 1.0)
    monkeypatch.setattr(limits, "GREETING_LATE_S", 1.0)
    monkeypatch.setattr(probe_module, "ANSWER_LIMIT_S", 0.3)
    monkeypatch.setattr(probe_module, "SPEECH_LIMIT_S", 0.3)
    monkeypatch.setattr(circuit_module, "PROBE_S", 0.0)
    monkeypatch.setattr(pool_module, "LOOK_S", 0.01)


@pytest.mark.usefixtures("short_limits")
async def test_of_twenty_callers_one_waits_for_a_hung_backend(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_backends(tmp_path) as here:
        here.a.faults = HUNG
        for _ in range(CALLERS):
            await here.caller_is_greeted()
        assert here.waited == 1
        assert len(here.a.sessions) > 2  # probes have tried it as well
        here.a.faults = NO_FAULTS
        await here.until_a_is("half_open")
        served_by_b = len(here.b.sessions)
        await here.caller_is_greeted()
        await here.until_a_is("ok")
        await here.caller_is_greeted()
        assert (here.waited, len(here.b.sessions)) == (1, served_by_b)
    logged = [record.getMessage() for record in caplog.records if record.name == "nearcall.backends"]
    assert logged[0] == "backend_suspected"
    assert logged[-1] == "backend_recovered"


@pytest.mark.usefixtures("short_limits")
async def test_of_twenty_callers_one_waits_for_a_backend_that_does_not_speak(tmp_path: Path) -> None:
    """Its sessions are configured in good time, so a probe that does not have it speak would call it well."""
    async with two_backends(tmp_path) as here:
        here.a.script = lambda _request: Reply(first_delta_ms=60_000)
        for _ in range(CALLERS):
            await here.caller_is_greeted()
        assert here.waited == 1
        assert len(here.a.sessions) > 2
