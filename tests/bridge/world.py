"""A whole nearcall on this machine, with a simulated backend and simulated phones at its ends.

Real sockets, the server's own event loop, the official signatures: only Twilio and the backend are stand-ins.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from app.backends.table import Backend
from app.bridge.call_registry import CALLBACK_WAIT_S
from app.call.plan import Plan
from app.call.records import CallEnded, Record, Turn
from app.config import LedgerSettings, PrimarySettings, Settings
from app.main import Running, running
from app.process import bind
from app.sim.phone.options import PhoneOptions
from app.sim.realtime.faults import IMMEDIATELY, NO_FAULTS, Faults, Timing
from app.sim.realtime.reply import Script, parrot
from app.sim.realtime.server import RealtimeServer
from app.sim.slow_link import SlowLink
from tests.bridge.spoken import EU, KEY, USUAL, Spoken
from tests.waiting import LAG_UNLIMITED_S, a_moment

IN_TIME_S = 30
"""A test that hangs fails after this."""

AUTH_TOKEN = "0123456789abcdef0123456789abcdef"
ACCOUNT_SID = "AC00000000000000000000000000000001"
ADMIN_TOKEN = "a" * 32
OPERATOR = MappingProxyType({"Authorization": f"Bearer {ADMIN_TOKEN}"})
"""Headers that have /healthz tell all it knows."""


def openai_at(url: str, key: str, *, name: str = "openai") -> Backend:
    """A backend of these tests: any zone allows it."""
    return USUAL.backend(url, key, name=name)


@dataclass(slots=True)
class World:
    """What a test may look at."""

    server: Running
    backend: RealtimeServer
    url: str
    records: list[Record] = field(default_factory=list)

    def phone(self, **options: Any) -> PhoneOptions:
        """A phone that rings here. Connects at once, unless told otherwise."""
        given = {"connected_after_ms": (0, 0), "document_pace": 0.0, **options}
        return PhoneOptions(webhook_url=f"{self.url}/twiml/voice", auth_token=AUTH_TOKEN, **given)

    def turns(self, call_sid: str) -> list[Turn]:
        """The call's turns, in their order."""
        turns = [r for r in self.records if isinstance(r, Turn) and r.call_sid == call_sid]
        return sorted(turns, key=lambda turn: turn.seq)

    def endings(self, call_sid: str) -> list[str]:
        """Why the call ended; one for each leg."""
        return [r.reason for r in self.records if isinstance(r, CallEnded) and r.call_sid == call_sid]


@asynccontextmanager
async def world(
    data_dir: Path,
    *,
    plan: Plan = Plan(greeting=""),  # noqa: B008  frozen
    script: Script = parrot,
    faults: Faults = NO_FAULTS,
    timing: Timing = IMMEDIATELY,
    api_hosts: Mapping[str, str] | None = None,
    watch: Callable[[Record], None] = lambda _record: None,
    phone_delay_ms: float = 0.0,
    primaries: Mapping[str, PrimarySettings] = MappingProxyType({}),
    ledger_faults: Mapping[str, str] = MappingProxyType({}),
    residency: frozenset[str] = EU,
    settle: bool = True,
    drain_s: float = CALLBACK_WAIT_S,
    spoken: Spoken = USUAL,
    **tuning: Any,
) -> AsyncIterator[World]:
    """A running server with its backend. `phone_delay_ms`: one way, between Twilio and the server.

    `spoken`: which backend it is; `tuning`: what else is set for it.

    `primaries`: the databases of zones; a zone without one has a local file. `ledger_faults`: by zone, what is
    wrong with their settings. `residency`: what the backend promises. `settle`: only a server that
    knows whose numbers there are is of use. `drain_s`: as NEARCALL_DRAIN_S; by default live calls are cut short at
    once.
    """
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with (
        asyncio.timeout(IN_TIME_S),
        spoken.server(api_key=KEY, script=script, faults=faults, timing=timing, **spoken.manners) as backend,
        SlowLink(port, delay_ms=phone_delay_ms) as link,
    ):
        url = f"http://127.0.0.1:{link.port if phone_delay_ms else port}"
        settings = Settings(
            lag_max_s=LAG_UNLIMITED_S,
            public_urls=(url,),
            secret="s" * 40,
            account_sid=ACCOUNT_SID,
            twilio_tokens={"us1": AUTH_TOKEN},
            backends=(spoken.backend(backend.url, residency=residency, **tuning),),
            ledger=LedgerSettings("local", "local", data_dir, primaries, faults=ledger_faults),
            port=0,
            plan=plan,
            admin_token=ADMIN_TOKEN,
            drain_s=drain_s,
        )
        records: list[Record] = []

        def see(record: Record) -> None:
            records.append(record)
            watch(record)

        async with running(settings, listener, api_hosts=api_hosts or {}, watch=see) as server:
            if primaries and settle:
                await settled(server.url)
            yield World(server, backend, url, records)


async def settled(url: str) -> None:
    """Until the server knows whose numbers there are; the world's own time-out ends the waiting."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        while (await client.get("/healthz")).json().get("why") == "starting":
            await a_moment()
