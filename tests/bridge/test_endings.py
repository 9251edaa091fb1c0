"""Calls that end in every way, many at once: nothing is left behind, and the ledger tells of each."""

import asyncio
import random
from pathlib import Path

import pytest

from app.call.plan import Plan
from app.config import LedgerSettings, Settings
from app.main import running
from app.process import bind
from app.sim.phone.twilio_rest import TwilioRest
from app.wire.tuning import OPENAI
from scripts.benchlib.endings import (
    BACKEND_KEY,
    QUICK_ENDINGS,
    OpenAIBackend,
    Scene,
    VoiceLiveBackend,
    check_ledger,
    make_calls,
)
from scripts.benchlib.leftovers import holdings
from scripts.benchlib.phone import ACCOUNT_SID, AUTH_TOKEN
from tests.bridge.spoken import USUAL, Spoken, each
from tests.waiting import LAG_UNLIMITED_S

pytestmark = pytest.mark.anyio


@pytest.mark.long
@each()
async def test_calls_that_end_in_every_way_leave_nothing_but_their_rows(tmp_path: Path, spoken: Spoken) -> None:
    calls = (3 if spoken == USUAL else 1) * len(QUICK_ENDINGS)
    before = holdings()
    chance = random.Random(1)
    rest = TwilioRest(ACCOUNT_SID, {ACCOUNT_SID: AUTH_TOKEN})
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    dealt = OpenAIBackend if spoken.service == OPENAI else VoiceLiveBackend
    async with rest.serve() as rest_url, dealt(chance, slow=False, **spoken.manners) as backend:
        settings = Settings(
            lag_max_s=LAG_UNLIMITED_S,
            public_urls=(url,),
            secret="s" * 32,
            account_sid=ACCOUNT_SID,
            twilio_tokens={"us1": AUTH_TOKEN},
            backends=(spoken.backend(backend.url, BACKEND_KEY),),
            ledger=LedgerSettings("local", "local", tmp_path),
            port=0,
            plan=Plan(vad_silence_ms=200),
        )
        async with running(settings, listener, api_hosts={"us1": rest_url}) as server:
            scene = Scene(url, rest, chance)
            await make_calls(scene, calls, calls, QUICK_ENDINGS)
            # Of the calls that ended, none keeps its backend; those whose stream never came still wait.
            async with asyncio.timeout(10):
                await backend.wait_for(lambda it: len(it.sessions) <= server.registry.counts["expected"])
            assert server.registry.counts["live"] == 0

    assert scene.problems == []
    assert scene.made.total() == calls
    assert check_ledger(tmp_path / "ledger.db", scene.heard) == []
    assert holdings().more_than(before) == {}
