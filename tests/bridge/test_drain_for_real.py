"""A real `nearcall serve` that gets a stop signal between a call's webhook and its stream."""

import asyncio
import os
import time
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import httpx
import pytest
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.call.plan import Plan
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
