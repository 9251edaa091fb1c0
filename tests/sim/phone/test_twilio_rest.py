"""The REST stub: it drives live phones, and refuses as Twilio does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from twilio.base.exceptions import TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client
from websockets.asyncio.server import ServerConnection

from app.sim.phone.errors import CallEndedError
from app.sim.phone.events import EndReason
from app.sim.phone.phone import Phone
from app.sim.phone.twilio_rest import TwilioRest
from tests.sim.caller import CONNECT_THEN_ACTION, HANGUP, calling, options, streaming
from tests.sim.echo_server import Application, Reply, Seen, echo, hang_for_ever, receive, running

pytestmark = pytest.mark.anyio

ACCOUNT = "AC00000000000000000000000000000001"
LOGIN = (ACCOUNT, "token")


@contextlib.asynccontextmanager
async def rest_and_phone(application: Application) -> AsyncIterator[tuple[TwilioRest, Phone]]:
    """A phone in its stream, and the API that knows its call."""
    rest = TwilioRest(ACCOUNT, {ACCOUNT: "token", "SKkey": "secret"})
    async with asyncio.timeout(10), calling(application) as phone:
        rest.attach(phone)
        await phone.answered()
        yield rest, phone


async def post(
    rest: TwilioRest, call_sid: str, form: dict[str, str], *, login: tuple[str, str] | None = LOGIN
) -> httpx.Response:
    """A request without a network."""
    transport = httpx.ASGITransport(rest.app)
    async with httpx.AsyncClient(transport=transport, base_url="https://api.twilio.com", auth=login) as client:
        path = f"/2010-04-01/Accounts/{ACCOUNT}/Calls/{call_sid}.json"
        return await client.post(path, data=form)


async def test_completed_ends_the_call_with_stop_and_close() -> None:
    stops: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        stops.append((await receive(ws, "stop"))["event"])

    async with rest_and_phone(streaming(conversation)) as (rest, phone):
        response = await post(rest, phone.call_sid, {"Status": "completed"})
        await phone.over()
    assert (response.status_code, response.json()["status"]) == (200, "completed")
    assert response.json()["sid"] == phone.call_sid
    assert response.headers["X-Home-Region"] == "us1"
    assert stops == ["stop"]
    assert phone.ended is EndReason.REST
    assert phone.problems == []


async def test_twiml_replaces_the_stream() -> None:
    async with rest_and_phone(streaming(echo)) as (rest, phone):
        twiml = '<Response><Dial callerId="+4930">+4911</Dial><Say>back</Say></Response>'
        response = await post(rest, phone.call_sid, {"Twiml": twiml})
        await phone.over()
    assert (response.status_code, response.json()["status"]) == (200, "in-progress")
    assert phone.announcements == ["back"]
    assert phone.ended is EndReason.DOCUMENT_END


async def test_url_is_fetched_as_a_signed_webhook() -> None:
    application = streaming(echo)
    application.webhooks["/resume"] = Reply(HANGUP)
    async with rest_and_phone(application) as (rest, phone):
        url = f"{application.http_url}/resume?ticket=1"
        response = await post(rest, phone.call_sid, {"Url": url, "Method": "POST"})
        await phone.over()
    (seen,) = application.requests("/resume")
    assert response.status_code == 200
    assert seen.form["CallStatus"] == "in-progress"
    assert "X-Twilio-Signature" in seen.headers
    assert phone.ended is EndReason.HANGUP


async def test_new_document_may_open_the_next_stream() -> None:
    application = streaming(echo)
    async with rest_and_phone(application) as (rest, phone):
        twiml = f'<Response><Connect><Stream url="{application.ws_url}/media/t2"/></Connect></Response>'
        await post(rest, phone.call_sid, {"Twiml": twiml})
        await phone.answered(streams=2)
        await phone.hang_up()
    assert [request.path for request in application.upgrades] == ["/media/t1", "/media/t2"]


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ({"Status": "busy"}, 400, 20001),
        ({"Status": "canceled"}, 400, 21220),
        ({"Url": "/resume"}, 400, 21205),
        ({"Url": "http://[half"}, 400, 21205),
        ({"Url": "https://a.example/x", "Method": "PUT"}, 400, 20001),
        ({"Url": "https://a.example/x", "Twiml": "<Response/>"}, 400, 20001),
        ({}, 400, 20001),
        ({"Twiml": "<Response>"}, 400, 12100),
        ({"Twiml": f"<Response><Say>{'x' * 4000}</Say></Response>"}, 400, 20001),
        ({"Twiml": "<Response><Dial action='/done'>+4911</Dial></Response>"}, 400, 15004),
        ({"Twiml": "<Response><Redirect>next</Redirect></Response>"}, 400, 15004),
    ],
)
async def test_update_that_makes_no_sense_is_refused_and_the_call_goes_on(
    form: dict[str, str], status: int, code: int
) -> None:
    async with rest_and_phone(streaming(echo)) as (rest, phone):
        response = await post(rest, phone.call_sid, form)
        assert phone.ended is None
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code)
    assert body.keys() == {"code", "message", "more_info", "status"}
    assert phone.ended is EndReason.CALLER


@pytest.mark.parametrize(
    "login", [None, (ACCOUNT, "wrong"), ("AC9", "token"), ("", ""), (ACCOUNT, "tökén")], ids=str
)
async def test_wrong_credentials_are_20003(login: tuple[str, str] | None) -> None:
    rest = TwilioRest(ACCOUNT, {ACCOUNT: "token"})
    response = await post(rest, "CA1", {"Status": "completed"}, login=login)
    assert (response.status_code, response.json()["code"]) == (401, 20003)


async def test_another_account_is_20003_even_with_the_right_password() -> None:
    rest = TwilioRest("AC" + "9" * 32, {ACCOUNT: "token"})
    response = await post(rest, "CA1", {"Status": "completed"})
    assert (response.status_code, response.json()["code"]) == (401, 20003)


async def test_api_key_is_as_good_as_the_token() -> None:
    async with rest_and_phone(streaming(echo)) as (rest, phone):
        response = await post(rest, phone.call_sid, {"Status": "completed"}, login=("SKkey", "secret"))
    assert response.status_code == 200


async def test_unknown_call_is_20404() -> None:
    response = await post(TwilioRest(ACCOUNT, {ACCOUNT: "token"}), "CA1", {"Status": "completed"})
    assert (response.status_code, response.json()["code"]) == (404, 20404)


async def test_call_of_another_region_is_20404() -> None:
    rest = TwilioRest(ACCOUNT, {ACCOUNT: "token"}, region="us1")
    async with asyncio.timeout(10), calling(streaming(echo), home_region="ie1") as phone:
        rest.attach(phone)
        response = await post(rest, phone.call_sid, {"Status": "completed"})
    assert (response.status_code, response.json()["code"]) == (404, 20404)


async def test_call_that_is_over_is_21220() -> None:
    async with rest_and_phone(streaming(echo)) as (rest, phone):
        await phone.hang_up()
        response = await post(rest, phone.call_sid, {"Status": "completed"})
    assert (response.status_code, response.json()["code"]) == (400, 21220)


async def test_ringing_call_can_be_cancelled() -> None:
    asked = asyncio.Event()

    async def voice(seen: Seen) -> Reply:
        asked.set()
        return await hang_for_ever(seen)

    rest = TwilioRest(ACCOUNT, {ACCOUNT: "token"})
    application = Application({"/voice": voice})
    async with asyncio.timeout(10), running(application), Phone(options(application)) as phone:
        rest.attach(phone)
        dialling = asyncio.create_task(phone.dial())
        await asked.wait()
        response = await post(rest, phone.call_sid, {"Status": "canceled"})
        with pytest.raises(CallEndedError, match="completed by REST"):
            await dialling
    assert response.json()["status"] == "canceled"


@pytest.mark.parametrize(("status", "code"), [(500, 20500), (429, 20429), (503, 20503)])
async def test_failure_on_demand_happens_once_and_does_nothing(status: int, code: int) -> None:
    async with rest_and_phone(streaming(echo)) as (rest, phone):
        rest.fail_next(status, code, "on demand")
        failed = await post(rest, phone.call_sid, {"Status": "completed"})
        assert phone.ended is None
        done = await post(rest, phone.call_sid, {"Status": "completed"})
        await phone.over()
    assert (failed.status_code, failed.json()["code"], failed.json()["message"]) == (status, code, "on demand")
    assert done.status_code == 200
    assert [update.form for update in rest.updates] == [{"Status": "completed"}] * 2


async def test_api_serves_on_a_real_port_and_can_hang() -> None:
    async with rest_and_phone(streaming(echo)) as (rest, phone), rest.serve() as base_url:
        rest.hang_next()
        path = f"{base_url}/2010-04-01/Accounts/{ACCOUNT}/Calls/{phone.call_sid}.json"
        async with httpx.AsyncClient(auth=LOGIN) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(path, data={"Status": "completed"}, timeout=0.05)
            assert phone.ended is None
            response = await client.post(path, data={"Status": "completed"})
        await phone.over()
    assert response.status_code == 200
    assert phone.ended is EndReason.REST


# With Twilio's own library


class _LocalTransport(TwilioHttpClient):  # type: ignore[misc]  # the library has no types
    """Twilio's HTTP client, which sends what is for api.twilio.com to the simulator."""

    def __init__(self, base_url: str) -> None:
        super().__init__(pool_connections=False)
        self._base_url = base_url

    def request(self, method: str, url: str, **arguments: Any) -> Any:
        return super().request(method, url.replace("https://api.twilio.com", self._base_url), **arguments)


async def update(base_url: str, call_sid: str, **fields: str) -> Any:
    """`client.calls(sid).update(...)` as an application calls it."""
    client = Client(*LOGIN, http_client=_LocalTransport(base_url))
    return await asyncio.to_thread(client.calls(call_sid).update, **fields)


async def test_library_redirects_a_live_call_to_the_next_stream() -> None:
    order: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")
        order.append("start")
        await receive(ws, "stop")
        order.append("stop")
        await ws.wait_closed()
        order.append("closed")

    async def resume(seen: Seen) -> Reply:
        order.append(f"webhook {seen.form['CallStatus']}")
        return Reply('<Response><Connect><Stream url="{ws}/media/t2"/></Connect></Response>')

    application = streaming(conversation, document=CONNECT_THEN_ACTION)
    application.webhooks["/resume"] = resume
    async with rest_and_phone(application) as (rest, phone), rest.serve() as base_url:
        call = await update(base_url, phone.call_sid, url=f"{application.http_url}/resume", method="POST")
        await phone.answered(streams=2)
        await phone.hang_up()
    assert (call.sid, call.status) == (phone.call_sid, "in-progress")
    assert order[:2] == ["start", "stop"]
    assert order.index("stop") < order.index("webhook in-progress")
    assert [request.path for request in application.upgrades] == ["/media/t1", "/media/t2"]
    assert application.requests("/after") == []  # a redirect replaces the document, so its action is not asked
    assert phone.problems == []


async def test_library_redirect_follows_a_redirect_verb() -> None:
    application = streaming(echo)
    application.webhooks["/resume"] = Reply("<Response><Redirect>/further</Redirect></Response>")
    application.webhooks["/further"] = Reply(HANGUP)
    async with rest_and_phone(application) as (rest, phone), rest.serve() as base_url:
        await update(base_url, phone.call_sid, url=f"{application.http_url}/resume")
        await phone.over()
    assert application.requests("/further")[0].form["CallStatus"] == "in-progress"
    assert phone.ended is EndReason.HANGUP


async def test_library_ends_a_call_and_is_told_when_it_is_over() -> None:
    async with rest_and_phone(streaming(echo)) as (rest, phone), rest.serve() as base_url:
        call = await update(base_url, phone.call_sid, status="completed")
        await phone.over()
        with pytest.raises(TwilioRestException) as refused:
            await update(base_url, phone.call_sid, twiml="<Response/>")
    assert call.status == "completed"
    assert (refused.value.status, refused.value.code) == (400, 21220)
