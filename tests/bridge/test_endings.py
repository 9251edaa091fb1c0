"""Calls that end in every way, many at once: nothing is left behind, and the ledger tells of each."""

import asyncio
import random
from pathlib import Path

import pytest

from app.call.plan import Plan
from app.config import LedgerSettings, Settings
from app.main import bind, running
from app.sim.twilio_rest import TwilioRest
from scripts.benchlib.endings import (
    BACKEND_KEY,
    QUICK_ENDINGS,
    Backend,
    Scene,
    check_ledger,
    make_calls,
)
from scripts.benchlib.leftovers import holdings
from scripts.benchlib.phone import ACCOUNT_SID, AUTH_TOKEN
from tests.bridge.world import openai_at

pytestmark = pytest.mark.anyio

CALLS = 3 * len(QUICK_ENDINGS)


@pytest.mark.long
async def test_calls_that_end_in_every_way_leave_nothing_but_their_rows(tmp_path: Path) -> None:
    before = holdings()
    chance = random.Random(1)
    rest = TwilioRest(ACCOUNT_SID, {ACCOUNT_SID: AUTH_TOKEN})
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with rest.serve() as rest_url, Backend(chance, slow=False) as backend:
        settings = Settings(
            public_urls=(url,),
            secret="s" * 32,
            account_sid=ACCOUNT_SID,
            twilio_tokens={"us1": AUTH_TOKEN},
            backends=(openai_at(backend.url, BACKEND_KEY),),
            ledger=LedgerSettings("local", "local", tmp_path),
            port=0,
            plan=Plan(vad_silence_ms=200),
        )
        async with running(settings, listener, api_hosts={"us1": rest_url}) as server:
            scene = Scene(url, rest, chance)
            await make_calls(scene, CALLS, CALLS, QUICK_ENDINGS)
            # Of the calls that ended, none keeps its backend; those whose stream never came still wait.
            async with asyncio.timeout(10):
                await backend.wait_for(lambda it: len(it.sessions) <= server.switchboard.counts["expected"])
            assert server.switchboard.counts["live"] == 0

    assert scene.problems == []
    assert scene.made.total() == CALLS
    assert check_ledger(tmp_path / "ledger.db", scene.heard) == []
    assert holdings().more_than(before) == {}
