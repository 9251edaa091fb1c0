"""A machine that dies under a call: another one goes on with it."""

import time
from pathlib import Path

import pytest

from app.sim.phone.events import WebhookAnswered
from app.sim.realtime.reply import Message, Reply, ReplyRequest
from app.world.calls import phone_in
from app.world.world import world
from tests.ledger.sqld import sqld_program

pytestmark = pytest.mark.anyio

PAUSE_MAX_S = 1.5
"""From Twilio's question to the resumed stream; the backends are at their real distances."""


@pytest.mark.long
async def test_call_goes_on_when_its_machine_is_killed(tmp_path: Path) -> None:
    asked: list[ReplyRequest] = []

    def script(request: ReplyRequest) -> Reply:
        asked.append(request)
        return Reply((Message.lasting(f"Sentence {len(asked)}.", 400),))

    async with (
        world(tmp_path / "w", ("fra", "cdg"), ("berlin",), sqld_program=sqld_program(), script=script) as running,
        phone_in(running, "berlin", "eu") as phone,
    ):
        await phone.dial()
        await phone.heard_speech(350)
        # Longer than a finished turn takes to the primary.
        until = time.monotonic() + 2.0
        await phone.wait_for(lambda _: time.monotonic() > until)
        await running.kill("fra")
        await phone.answered(streams=2)
        phone.press("5")
        await phone.heard_speech(200, since_ms=phone.speech_ms)
        await phone.hang_up()

    *_, after = [each for each in phone.timeline if isinstance(each, WebhookAnswered) and each.purpose == "action"]
    assert after.region == "cdg"
    assert after.took_ms < PAUSE_MAX_S * 1_000
    assert [each.purpose for each in asked].count("greeting") == 1
    words = str(asked[-1].history)
    assert "Sentence 1." in words
    assert phone.announcements == []
