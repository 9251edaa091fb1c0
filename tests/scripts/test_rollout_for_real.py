"""scripts/rollout's last steps against two real servers, with real test calls; only Fly itself is a stand-in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from app.call.plan import Plan as CallPlan
from app.cli.tenant_store import read_tenants, rows_of, write_tenants
from app.config import LedgerSettings, Settings
from app.ledger.zones import Zone
from app.main import running
from app.process import bind
from app.sim.realtime.faults import IMMEDIATELY
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import Message, Reply
from app.tenants.document import parse_document
from app.tenants.fields import Known
from app.tenants.tenant import tenants_in
from scripts.rolloutlib.regions import Patience, all_answer, all_healthy
from scripts.rolloutlib.rollout import Plan
from scripts.rolloutlib.shell import Shell, StepError
from tests.bridge.world import openai_at
from tests.scripts.edge import Edge, edge
from tests.waiting import LAG_UNLIMITED_S

pytestmark = pytest.mark.anyio

TOKEN = "0123456789abcdef0123456789abcdef"
ACCOUNT_SID = "AC00000000000000000000000000000001"
IN_TIME_S = 60
REGIONS = ("fra", "iad")
TENANTS = rows_of(
    tenants_in(
        parse_document('[tenants.acme]\nnumbers = ["+493055500"]\nzone = "eu"\n', "tenants.toml"),
        Known({"global", "eu"}, {"openai"}),
    )
)
BRIEF = Reply((Message.lasting("Yes.", 600),))


@asynccontextmanager
async def two_regions(directory: Path) -> AsyncIterator[Edge]:
    """A server in fra and one in iad, behind one edge and under its URL. There are tenants."""
    async with (
        asyncio.timeout(IN_TIME_S),
        RealtimeSimulator(api_key="key", script=lambda _: BRIEF, timing=IMMEDIATELY, record=False) as backend,
        edge() as front,
        AsyncExitStack() as stack,
    ):
        for region in REGIONS:
            zone = Zone("global", directory / region, None, str)
            await write_tenants(zone, await read_tenants(zone), TENANTS, 1)
            settings = Settings(
                lag_max_s=LAG_UNLIMITED_S,
                public_urls=(front.url,),
                secret="s" * 40,
                account_sid=ACCOUNT_SID,
                twilio_tokens={"us1": TOKEN},
                backends=(openai_at(backend.url, "key"),),
                ledger=LedgerSettings(region, region, directory / region),
                port=0,
                deployed=REGIONS,
                plan=CallPlan(greeting="Hello."),
            )
            server = await stack.enter_async_context(running(settings, bind("127.0.0.1", 0)))
            front.machines[region] = int(server.url.rpartition(":")[2])
        yield front


@pytest.mark.long
async def test_regions_answer_for_themselves_and_one_that_does_not_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gru has no Machine: Fly's edge takes another one then. Some 7 s, a call is as long as what is said in it."""
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", ACCOUNT_SID)
    said: list[str] = []
    async with two_regions(tmp_path) as front:
        front.machines["gru"] = front.machines["iad"]
        nearcall = Plan(None, REGIONS, skip_calls=False, url=front.url).nearcall
        numbers = await all_healthy(Shell(said.append), front.url, REGIONS, Patience(limit_s=20))
        assert numbers == {"fra": ("test:eu", "test:global"), "iad": ("test:global",)}
        with pytest.raises(StepError) as failed:
            await all_answer(Shell(said.append), nearcall, front.url, numbers | {"gru": ("test:global",)})
    assert str(failed.value) == (
        "the test call to test:global in gru was answered by iad (webhook) and iad (stream)."
    )
    for region in REGIONS:
        assert f"{region}: healthy" in said
        for number in numbers[region]:
            assert any(line.startswith(f"{region}: answered the test call to {number},") for line in said)
