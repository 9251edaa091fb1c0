"""Hanging up by REST: every answer and every fault of Twilio's is a reason or none, and never an exception."""

import asyncio
import base64
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl

import pytest

from app.bridge.twilio_rest import TwilioRest
from app.call.events import RedirectAnswered, RedirectOutcome
from tests.bridge.peers import RawPeer, RawServer

pytestmark = pytest.mark.anyio

ACCOUNT_SID = "AC00000000000000000000000000000001"
CALL_SID = "CA00000000000000000000000000000002"
TOKEN = "0123456789abcdef0123456789abcdef"

OK = (200, b'{"status":"completed"}')
JUST_OVER = (400, b'{"code":21220,"message":"Call is not in-progress.","status":400}')
UNKNOWN_CALL = (404, b'{"code":20404,"message":"not found","status":404}')
BAD_TOKEN = (401, b'{"code":20003,"message":"Authenticate","status":401}')
TOO_MANY = (429, b'{"code":20429,"message":"Too Many Requests","status":429}')
DOWN = (500, b"")


class Api:
    """Answers requests one by one, each on the connection it came on."""

    def __init__(self, server: RawServer) -> None:
        self._server = server
        self.requests: list[dict[str, str]] = []
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    async def answer(self, *answers: tuple[int, bytes]) -> None:
        peer = await self._server.peer()
        for status, body in answers:
            await self.asked(peer)
            head = (
                f"HTTP/1.1 {status} Text\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            peer.writer.write(head.encode() + body)

    async def asked(self, peer: RawPeer) -> None:
        request = await peer.request()
        self.bodies.append(await peer.reader.readexactly(int(request["content-length"])))
        self.requests.append(request)

    async def close_instead(self) -> None:
        peer = await self._server.peer()
        await self.asked(peer)
        peer.writer.close()


@pytest.fixture
async def api(anyio_backend: object) -> AsyncIterator[Api]:
    async with RawServer() as server:
        yield Api(server)


@pytest.fixture
async def rest(api: Api) -> AsyncIterator[TwilioRest]:
    rest = TwilioRest(ACCOUNT_SID, {"us1": TOKEN, "ie1": TOKEN}, {"us1": api.url, "au1": api.url})
    yield rest
    await rest.aclose()


async def test_hang_up_completes_the_call_as_our_account(rest: TwilioRest, api: Api) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(api.answer(OK))
        assert await rest.hang_up(CALL_SID, "us1") is None
    (request,) = api.requests
    assert api.bodies == [b"Status=completed"]
    assert request["content-type"] == "application/x-www-form-urlencoded"
    assert base64.b64decode(request["authorization"].removeprefix("Basic ")).decode() == f"{ACCOUNT_SID}:{TOKEN}"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([OK], None),
        ([JUST_OVER], None),
        ([UNKNOWN_CALL], "HTTP 404, code 20404"),
        ([BAD_TOKEN], "HTTP 401, code 20003"),
        ([TOO_MANY, OK], None),
        ([DOWN, OK], None),
        ([DOWN, JUST_OVER], None),
        ([DOWN, DOWN], "HTTP 500, code None"),
        ([TOO_MANY, TOO_MANY], "HTTP 429, code 20429"),
        ([(503, b"<html>")] * 2, "HTTP 503, code None"),
        ([(400, b"not JSON")], "HTTP 400, code None"),
        ([(400, b"[]")], "HTTP 400, code None"),
        ([(400, b'{"code":"21220"}')], "HTTP 400, code None"),
        ([(400, b"\xff\xfe")], "HTTP 400, code None"),
        ([(301, b"")], "HTTP 301, code None"),
    ],
)
async def test_answer_of_twilio_says_whether_the_call_is_over(
    rest: TwilioRest, api: Api, answers: list[tuple[int, bytes]], why: str | None
) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(api.answer(*answers))
        assert await rest.hang_up(CALL_SID, "us1") == why
    assert len(api.requests) == len(answers)


@pytest.mark.parametrize("region", ["ie1", "au1", "jp1", ""])
async def test_region_without_a_token_or_a_host_is_not_asked(rest: TwilioRest, api: Api, region: str) -> None:
    assert await rest.hang_up(CALL_SID, region) == f"no auth token or API host for Twilio's {region}"
    assert api.requests == []


async def test_twilio_that_never_answers_is_not_waited_for(api: Api) -> None:
    rest = TwilioRest(ACCOUNT_SID, {"us1": TOKEN}, {"us1": api.url}, limit_s=0.05)
    assert await rest.hang_up(CALL_SID, "us1") == "no answer within 0.05 s"
    await rest.aclose()


async def test_twilio_that_does_not_listen_is_a_reason() -> None:
    rest = TwilioRest(ACCOUNT_SID, {"us1": TOKEN}, {"us1": "http://127.0.0.1:1"})
    assert await rest.hang_up(CALL_SID, "us1") == "ConnectError"
    await rest.aclose()


async def test_connection_that_twilio_has_closed_meanwhile_costs_a_second_try(rest: TwilioRest, api: Api) -> None:
    async with asyncio.TaskGroup() as tasks:

        async def close_then_answer() -> None:
            await api.close_instead()
            await api.answer(OK)

        tasks.create_task(close_then_answer())
        assert await rest.hang_up(CALL_SID, "us1") is None


async def test_many_calls_are_hung_up_at_once(rest: TwilioRest, api: Api) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(api.answer(OK))
        calls = [tasks.create_task(rest.hang_up(CALL_SID, "us1")) for _ in range(20)]
    assert [call.result() for call in calls] == [None] * 20


async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch, api: Api) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    rest = TwilioRest(ACCOUNT_SID, {"us1": TOKEN}, {"us1": api.url})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(api.answer(OK))
        assert await rest.hang_up(CALL_SID, "us1") is None
    await rest.aclose()


# --- Redirects ---------------------------------------------------------------------------------------

RESUME_URL = "https://calls.example.com/twiml/resume/global/fra/sealed"


async def test_redirect_has_twilio_post_to_the_url(rest: TwilioRest, api: Api) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(api.answer(OK))
        assert await rest.redirect(CALL_SID, "us1", RESUME_URL) == RedirectAnswered(RedirectOutcome.ACCEPTED)
    (body,) = api.bodies
    assert dict(parse_qsl(body.decode())) == {"Url": RESUME_URL, "Method": "POST"}


@pytest.mark.parametrize(
    ("answers", "outcome", "why"),
    [
        ([JUST_OVER], RedirectOutcome.CALL_OVER, ""),
        ([UNKNOWN_CALL], RedirectOutcome.FAILED, "HTTP 404, code 20404"),
        ([BAD_TOKEN], RedirectOutcome.FAILED, "HTTP 401, code 20003"),
        ([TOO_MANY, OK], RedirectOutcome.ACCEPTED, ""),
        ([DOWN, JUST_OVER], RedirectOutcome.CALL_OVER, ""),
        ([DOWN, DOWN], RedirectOutcome.FAILED, "HTTP 500, code None"),
    ],
)
async def test_answer_of_twilio_says_what_came_of_a_redirect(
    rest: TwilioRest, api: Api, answers: list[tuple[int, bytes]], outcome: RedirectOutcome, why: str
) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(api.answer(*answers))
        assert await rest.redirect(CALL_SID, "us1", RESUME_URL) == RedirectAnswered(outcome, why)
    assert len(api.requests) == len(answers)


async def test_redirect_that_may_have_been_carried_out_is_not_repeated(rest: TwilioRest, api: Api) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(api.close_instead())
        answer = await rest.redirect(CALL_SID, "us1", RESUME_URL)
    assert answer.outcome is RedirectOutcome.FAILED
    assert len(api.requests) == 1


async def test_redirect_in_a_region_without_a_token_fails(rest: TwilioRest, api: Api) -> None:
    answer = await rest.redirect(CALL_SID, "ie1", RESUME_URL)
    assert answer == RedirectAnswered(RedirectOutcome.FAILED, "no auth token or API host for Twilio's ie1")
    assert api.requests == []
