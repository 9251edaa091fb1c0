"""A real `nearcall serve` that is stopped while it is alone: between a webhook and its stream, and in a call."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import httpx
import pytest
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.call.plan import Plan
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.world.process import free_port
from scripts.benchlib import targets
from scripts.benchlib.phone import ACCOUNT_SID, AUTH_TOKEN
from scripts.benchlib.process import Child, child
from tests.waiting import a_moment

STREAM_AFTER_S = 1.0
"""Twilio opens the stream within a second of the webhook's answer."""

pytestmark = pytest.mark.anyio

CALL = {"CallSid": "CA" + "7" * 32, "AccountSid": ACCOUNT_SID, "From": "+4930123456", "To": "+4930654321"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def signed(url: str, fields: dict[str, str]) -> dict[str, str]:
    return {"X-Twilio-Signature": RequestValidator(AUTH_TOKEN).compute_signature(url, fields)}


async def said(server: Child, line: str) -> None:
    """Until the process has logged it."""
    while line not in server.log.read_text():
        server.check()
        await a_moment()


async def test_caller_of_an_announced_call_hears_the_sentence(tmp_path: Path) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    env = {**targets.settings(base, tmp_path, "", ""), "FLY_REGION": ""}
    async with (
        asyncio.timeout(40),
        child("nearcall", targets.SERVE, tmp_path, env=env) as server,
        httpx.AsyncClient(trust_env=False) as twilio,
    ):
        await targets.until_answered(server, port, targets.HEALTH)
        answer = await twilio.post(f"{base}/twiml/voice", data=CALL, headers=signed(f"{base}/twiml/voice", CALL))
        stage = ET.fromstring(answer.text).find("Connect")
        assert stage is not None
        stream = stage.find("Stream")
        assert stream is not None

        server.process.terminate()
        await said(server, "server_stopping")
        stopping_at = time.monotonic()
        while time.monotonic() - stopping_at < STREAM_AFTER_S:
            # A connection for each: the server has to accept new ones, Twilio's will be one.
            assert (await twilio.get(f"{base}/livez", headers={"Connection": "close"})).status_code == 200
            await a_moment()

        url = stream.attrib["url"]
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, additional_headers=signed(url, {}))
        assert refused.value.response.status_code == 503
        new = CALL | {"CallSid": "CA" + "8" * 32}
        another = await twilio.post(f"{base}/twiml/voice", data=new, headers=signed(f"{base}/twiml/voice", new))
        assert Plan().sorry in another.text
        after = stage.attrib["action"]
        assert urlsplit(after).port == port
        answer = await twilio.post(after, data=CALL, headers=signed(after, CALL))
        assert Plan().sorry in answer.text
        assert await server.process.wait() == os.EX_OK


@asynccontextmanager
async def in_a_call(tmp_path: Path, drain_s: int) -> AsyncIterator[tuple[Child, Phone, httpx.AsyncClient]]:
    """A lone server with the practice backend, and a caller who hears its agent."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    env = {**targets.settings(base, tmp_path, "", ""), "FLY_REGION": "", "NEARCALL_DRAIN_S": f"{drain_s}"}
    options = PhoneOptions(
        f"{base}/twiml/voice", AUTH_TOKEN, account_sid=ACCOUNT_SID, connected_after_ms=(0, 0), document_pace=0.0
    )
    async with (
        asyncio.timeout(40),
        child("nearcall", targets.SERVE, tmp_path, env=env) as server,
        httpx.AsyncClient(base_url=base, trust_env=False, headers=targets.OPERATOR) as operator,
        Phone(options) as phone,
    ):
        await targets.until_answered(server, port, targets.HEALTH)
        await phone.dial()
        await phone.heard_speech(200)
        yield server, phone, operator


async def test_live_call_that_nobody_else_may_take_goes_on_and_the_exit_is_clean(tmp_path: Path) -> None:
    async with in_a_call(tmp_path, 60) as (server, phone, operator):
        server.process.terminate()
        await said(server, "drain_started")
        health = await operator.get("/healthz")
        assert (health.status_code, health.json()["why"]) == (503, "draining")
        drain = health.json()["drain"]
        assert drain.pop("deadline_s") > 50
        assert drain == {"calls_left": 1, "moved": 0, "move_failed": 0, "cut_short": 0}
        await phone.heard_speech(200, since_ms=phone.speech_ms)
        assert phone.ended is None
        await phone.hang_up()
        assert await server.process.wait() == os.EX_OK


async def test_call_that_outlasts_the_deadline_hears_the_sentence(tmp_path: Path) -> None:
    async with in_a_call(tmp_path, 4) as (server, phone, _):
        server.process.terminate()
        await phone.over()
        assert phone.announcements == [Plan().sorry]
        assert await server.process.wait() == os.EX_OK
        assert '"cut_short": 1' in server.log.read_text()


async def test_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    async with in_a_call(tmp_path, 60) as (server, _, _):
        server.process.terminate()
        await said(server, "drain_started")
        server.process.send_signal(signal.SIGINT)
        assert await server.process.wait() == -signal.SIGINT
