"""Two machines with one database: each may get a call that the other one has, or had."""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import pytest
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.bridge.ticket import Continuation, Continuations
from app.call.plan import Plan
from app.config import PrimarySettings
from app.sim.realtime.reply import Message, Reply, ReplyRequest
from tests.bridge.world import ACCOUNT_SID, AUTH_TOKEN, OPERATOR, World, world
from tests.ledger.replicas import migrated
from tests.ledger.sqld import Sqld, token
from tests.waiting import a_moment

pytestmark = pytest.mark.anyio

CALL = "CA" + "5" * 32
FORM = {
    "CallSid": CALL,
    "AccountSid": ACCOUNT_SID,
    "From": "+4930123456",
    "To": "+4930654321",
    "CallStatus": "in-progress",
}
PLAN = Plan(greeting="Hello.", vad_silence_ms=200)
CONTINUATIONS = Continuations("s" * 40)


def brief(request: ReplyRequest) -> Reply:
    return Reply((Message.lasting(f"Answer {request.number}.", 300),))


def signed(url: str, form: Mapping[str, str]) -> dict[str, str]:
    return {"X-Twilio-Signature": RequestValidator(AUTH_TOKEN).compute_signature(url, dict(form))}


async def asked(machine: World, path: str, form: Mapping[str, str] = FORM) -> ET.Element:
    """The document that this machine answers Twilio with."""
    url = machine.url + path
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(url, data=dict(form), headers=signed(url, form))
    assert answer.status_code == 200
    return ET.fromstring(answer.text)


def ticket_in(document: ET.Element) -> str:
    stream = document.find("Connect/Stream")
    assert stream is not None, ET.tostring(document)
    return stream.attrib["url"].rpartition("/media/")[2]


def action_in(document: ET.Element) -> str:
    """The path at which Twilio asks after the stream."""
    stage = document.find("Connect")
    assert stage is not None
    return "/twiml/after" + stage.attrib["action"].partition("/twiml/after")[2]


@asynccontextmanager
async def streaming(machine: World, ticket: str) -> AsyncIterator[ClientConnection]:
    """Twilio's stream with this ticket, which has begun. No audio comes: it is as good as half-open."""
    url = f"{machine.url.replace('http', 'ws', 1)}/media/{ticket}"
    async with connect(url, additional_headers=signed(url, {})) as stream:
        start = {
            "accountSid": ACCOUNT_SID,
            "streamSid": "MZ" + "1" * 32,
            "callSid": CALL,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {},
        }
        await stream.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
        await stream.send(
            json.dumps({"event": "start", "sequenceNumber": "1", "start": start, "streamSid": "MZ" + "1" * 32})
        )
        yield stream


async def closed(stream: ClientConnection) -> None:
    """Until the server has closed the stream."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await stream.recv()


@pytest.fixture
def primaries(sqld: Sqld, tmp_path: Path) -> dict[str, PrimarySettings]:
    migrated(sqld, tmp_path)
    return {"global": PrimarySettings(sqld.url, token)}


@pytest.fixture
def sqld(tmp_path: Path) -> Iterator[Sqld]:
    with Sqld(tmp_path / "sqld") as server:
        yield server


def claims(sqld: Sqld) -> list[tuple[int, str]]:
    return [(epoch, leg) for epoch, leg in sqld.query("SELECT epoch, leg FROM claims ORDER BY epoch")]


@asynccontextmanager
async def two_machines(
    tmp_path: Path, primaries: dict[str, PrimarySettings]
) -> AsyncIterator[tuple[World, World]]:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        world(tmp_path / "a", plan=PLAN, script=brief, primaries=primaries) as one,
        world(tmp_path / "b", plan=PLAN, script=brief, primaries=primaries) as other,
    ):
        yield one, other


async def counts(machine: World) -> dict[str, int]:
    async with httpx.AsyncClient(base_url=machine.url, trust_env=False) as client:
        found: dict[str, int] = (await client.get("/healthz", headers=OPERATOR)).json()["decisions"]
    return found


async def heard(stream: ClientConnection, machine: World, turns: int) -> None:
    """Plays marks back until the call has so many turns."""
    while len(machine.turns(CALL)) < turns:
        message = json.loads(await stream.recv())
        if message["event"] == "mark":
            await stream.send(json.dumps({**message, "sequenceNumber": "9"}))


async def shipped(sqld: Sqld, turns: int) -> None:
    while len(sqld.query("SELECT 1 FROM turns")) < turns:
        await a_moment()


@pytest.mark.long
async def test_half_open_leg_learns_that_a_later_one_has_its_call(
    tmp_path: Path, sqld: Sqld, primaries: dict[str, PrimarySettings]
) -> None:
    async with two_machines(tmp_path, primaries) as (one, other):
        first = await asked(one, "/twiml/voice")
        async with streaming(one, ticket_in(first)) as old:
            await heard(old, one, 1)
            await shipped(sqld, 1)
            began = time.monotonic()
            second = await asked(other, action_in(first))
            async with streaming(other, ticket_in(second)) as new:
                session = await other.backend.session(0)
                await session.event("conversation.item.create")
                took_s = time.monotonic() - began
                await closed(old)
                assert one.endings(CALL) == ["superseded"]
                assert other.endings(CALL) == []
                # The old leg's machine knows no ending: it is not the call's.
                assert (await counts(one))["leg_superseded"] == 1
                assert [epoch for epoch, _ in claims(sqld)] == [0, 1]
                assert session.record.texts() == [("assistant", "Answer 1.")]
                assert session.record.events("response.create") == []
                await new.close()
    assert took_s < 1.5


async def test_ticket_used_on_another_machine_gets_a_leg_that_ends(
    tmp_path: Path, sqld: Sqld, primaries: dict[str, PrimarySettings]
) -> None:
    async with two_machines(tmp_path, primaries) as (one, other):
        document = await asked(one, "/twiml/voice")
        async with streaming(one, ticket_in(document)) as first:
            await heard(first, one, 1)
            async with streaming(other, ticket_in(document)) as second:
                await closed(second)
            assert (await counts(other))["claim_taken"] == 1
            assert one.endings(CALL) == []
            (claim,) = claims(sqld)
            assert [record.leg for record in one.records] == [claim[1]] * len(one.records)
            assert claim[1] not in {record.leg for record in other.records}
            assert set(other.endings(CALL)) <= {"superseded"}


async def test_stream_that_lands_elsewhere_is_given_the_history(
    tmp_path: Path, sqld: Sqld, primaries: dict[str, PrimarySettings]
) -> None:
    """The machine that answers the webhook need not be the one that gets the stream."""
    async with two_machines(tmp_path, primaries) as (one, other):
        first = await asked(one, "/twiml/voice")
        async with streaming(one, ticket_in(first)) as stream:
            await heard(stream, one, 1)
        await shipped(sqld, 1)
        second = await asked(one, action_in(first))
        async with streaming(other, ticket_in(second)):
            session = await other.backend.session(0)
            await session.event("conversation.item.create")
        assert session.record.texts() == [("assistant", "Answer 1.")]
        assert "greeting" not in str(session.record.events("response.create"))


async def test_without_the_primary_the_copy_or_the_continuation_is_enough(
    tmp_path: Path, sqld: Sqld, primaries: dict[str, PrimarySettings]
) -> None:
    async with two_machines(tmp_path, primaries) as (one, other):
        first = await asked(one, "/twiml/voice")
        async with streaming(one, ticket_in(first)) as stream:
            await heard(stream, one, 1)
        sqld.hang()
        try:
            began = time.monotonic()
            second = await asked(other, action_in(first))
            took_s = time.monotonic() - began
            async with streaming(other, ticket_in(second)):
                await (await other.backend.session(0)).event("session.update")
        finally:
            sqld.wake()
        assert took_s < 3.0
        assert (await counts(other))["history_degraded"] == 1


async def test_bad_continuation_opens_no_stream(tmp_path: Path) -> None:
    async with world(tmp_path, plan=PLAN) as machine:
        now_ms = time.time_ns() // 1_000_000
        good = Continuation(CALL, "default", "global", 0, now_ms, "en")
        texts = [
            "AAAA.BBBB",
            Continuations("x" * 40).issue(good),
            CONTINUATIONS.issue(Continuation("CA" + "6" * 32, "default", "global", 0, now_ms, "en")),
            CONTINUATIONS.issue(Continuation(CALL, "default", "global", 0, now_ms - 25 * 3_600_000, "en")),
            CONTINUATIONS.issue(Continuation(CALL, "nobody", "global", 0, now_ms, "en")),
            CONTINUATIONS.issue(Continuation(CALL, "default", "eu", 0, now_ms, "en")),
        ]
        for text in texts:
            for path in ("/twiml/after", "/twiml/resume"):
                document = await asked(machine, f"{path}/global/local/{text}")
                assert [verb.tag for verb in document] == ["Say", "Hangup"], text
        assert (await counts(machine))["resume_refused"] == 2 * len(texts)
        assert machine.server.registry.counts["expected"] == 0
        over = FORM | {"CallStatus": "completed"}
        assert list(await asked(machine, f"/twiml/resume/global/local/{CONTINUATIONS.issue(good)}", over)) == []
