"""The part of Twilio's REST API that a live call needs: `POST /2010-04-01/Accounts/{sid}/Calls/{call}.json`.

It controls the simulated phones attached to it: `Status=completed` ends the call, `Twiml` and `Url` end the stream
with `stop` and run the new document. Errors have Twilio's numbers and body (twilio.md 4.1, 5.3); hanging and
failing happen on demand. One instance is one Twilio region: a call of another region is not found here.
"""

import asyncio
import contextlib
import hmac
import socket
import uuid
from base64 import b64decode
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.sim.inner_server import InnerServer
from app.sim.phone.errors import TwimlError
from app.sim.phone.phone import Phone
from app.sim.phone.twiml_document import read_document, relative_urls

MAX_TWIML_CHARS: Final = 4000
"""Documented for creating a call, assumed for updating one (twilio.md 4.1)."""

_PATH: Final = "/2010-04-01/Accounts/{account_sid}/Calls/{call_sid}.json"
_INVALID: Final = 20001
_SHUTDOWN_LIMIT_S: Final = 1


@dataclass(frozen=True, slots=True)
class Update:
    """A request as it came, authenticated or not."""

    account_sid: str
    call_sid: str
    form: Mapping[str, str]


class ApiError(Exception):
    """An answer in Twilio's error form."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class TwilioRest:
    """`credentials` are the accepted users and passwords: account sid and token, API keys and their secrets."""

    def __init__(self, account_sid: str, credentials: Mapping[str, str], *, region: str = "us1") -> None:
        self.updates: list[Update] = []
        self.app = Starlette(routes=[Route(_PATH, self._handle, methods=["POST"])])
        self._account_sid = account_sid
        self._credentials = dict(credentials)
        self._region = region
        self._phones: dict[str, Phone] = {}
        self._faults: deque[ApiError | None] = deque()  # None: hang

    def attach(self, phone: Phone) -> None:
        """Lets this phone's call be updated, now and after its end (which is an error of its own)."""
        self._phones[phone.call_sid] = phone

    def fail_next(self, status: int, code: int = 20500, message: str = "Internal Server Error") -> None:
        """Answers the next request that has no other fault with this error, and does nothing else."""
        self._faults.append(ApiError(status, code, message))

    def hang_next(self) -> None:
        """Leaves the next request that has no other fault without an answer until its client disconnects."""
        self._faults.append(None)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Serve on a free port of this machine; gives the base URL that stands for https://api.twilio.com."""
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            self.app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_SHUTDOWN_LIMIT_S,
        )
        server = InnerServer(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await server.up.wait()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving

    async def _handle(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True))
        update = Update(request.path_params["account_sid"], request.path_params["call_sid"], form)
        self.updates.append(update)
        try:
            if self._faults:
                await self._fault(request)
            phone = self._phone(request.headers.get("authorization"), update)
            status = _obey(phone, form)
        except ApiError as error:
            return self._answer(error.status, _error_body(error))
        return self._answer(200, _call_body(phone, status))

    async def _fault(self, request: Request) -> None:
        fault = self._faults.popleft()
        if fault is not None:
            raise fault
        while (await request.receive())["type"] != "http.disconnect":
            pass
        raise ApiError(503, 20503, "the client went away")

    def _phone(self, authorization: str | None, update: Update) -> Phone:
        """Returns the phone of the call, after the checks that Twilio makes before it reads the fields."""
        if not self._authorised(authorization) or update.account_sid != self._account_sid:
            raise ApiError(401, 20003, "Authenticate")
        phone = self._phones.get(update.call_sid)
        if phone is None or phone.options.home_region != self._region:
            path = _PATH.format(account_sid=update.account_sid, call_sid=update.call_sid)
            raise ApiError(404, 20404, f"The requested resource {path} was not found")
        if phone.ended is not None:
            raise ApiError(400, 21220, "Call is not in-progress. Cannot redirect.")
        return phone

    def _authorised(self, authorization: str | None) -> bool:
        scheme, _, encoded = (authorization or "").partition(" ")
        try:
            user, _, password = b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return False
        expected = self._credentials.get(user)
        return (
            scheme == "Basic"
            and expected is not None
            and hmac.compare_digest(password.encode(), expected.encode())
        )

    def _answer(self, status: int, body: dict[str, Any]) -> Response:
        headers = {
            "Twilio-Request-Id": f"RQ{uuid.uuid4().hex}",
            "Twilio-Concurrent-Requests": "1",
            "Twilio-Request-Duration": "0.010",
            "X-Home-Region": self._region,
        }
        return JSONResponse(body, status, headers)


def _obey(phone: Phone, form: Mapping[str, str]) -> str:
    """Does what the fields say and returns the call's new status. Raises ApiError for invalid fields."""
    asked = [name for name in ("Status", "Twiml", "Url") if name in form]
    if len(asked) != 1:
        raise ApiError(400, _INVALID, f"exactly one of Status, Twiml and Url is expected, not {asked or 'none'}")
    match asked[0]:
        case "Status":
            return _end(phone, form["Status"])
        case "Twiml":
            _replace(phone, form["Twiml"])
        case _:
            _redirect(phone, form["Url"], form.get("Method", "POST"))
    return phone.status


def _end(phone: Phone, status: str) -> str:
    if status not in ("completed", "canceled"):
        raise ApiError(400, _INVALID, f"Status {status!r} is neither completed nor canceled")
    if status == "canceled" and phone.status != "ringing":
        raise ApiError(400, 21220, "Call is in-progress. Cannot cancel.")
    phone.rest_complete()
    return status


def _replace(phone: Phone, twiml: str) -> None:
    if len(twiml) > MAX_TWIML_CHARS:
        raise ApiError(400, _INVALID, f"Twiml has {len(twiml)} characters, {MAX_TWIML_CHARS} are allowed")
    try:
        document = read_document(twiml.encode(), allow_ws=phone.options.allow_ws)
    except TwimlError as error:
        raise ApiError(400, error.code or _INVALID, str(error)) from error
    relative = relative_urls(document)
    if relative:
        raise ApiError(400, 15004, f"relative URLs are not allowed in inline TwiML: {', '.join(relative)}")
    phone.rest_document(document)


def _redirect(phone: Phone, url: str, method: str) -> None:
    if not _is_absolute(url):
        raise ApiError(400, 21205, f"Url {url!r} is not a valid URL")
    if method not in ("GET", "POST"):
        raise ApiError(400, _INVALID, f"Method {method!r} is neither GET nor POST")
    phone.rest_url(url, method)


def _is_absolute(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _error_body(error: ApiError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": str(error),
        "more_info": f"https://www.twilio.com/docs/errors/{error.code}",
        "status": error.status,
    }


def _call_body(phone: Phone, status: str) -> dict[str, Any]:
    account_sid = phone.options.account_sid
    return {
        "sid": phone.call_sid,
        "account_sid": account_sid,
        "api_version": "2010-04-01",
        "direction": "inbound",
        "from": phone.options.from_,
        "to": phone.options.to,
        "status": status,
        "uri": _PATH.format(account_sid=account_sid, call_sid=phone.call_sid),
    }
