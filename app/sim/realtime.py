"""A simulator of the OpenAI Realtime backend (GA) over WebSocket: the sockets, the upgrade, the close codes.

It stands in for the outside in tests and is the backend of a nearcall without an API key. It is spoken with
`websockets`, so that the bridge's own WebSocket code meets an independent one, and is held to the vendor's own
types in the tests. What a session does is app/sim/realtime_session.py.

    async with RealtimeSimulator(script=my_script) as sim:
        ...                                   # a client connects to sim.ws_url
        session = await sim.session(0)
        await session.event("conversation.item.truncate")
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import orjson
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from app.sim.realtime_faults import IMMEDIATELY, NO_FAULTS, Faults, Timing, error_by_code
from app.sim.realtime_outlet import Ids, Outlet
from app.sim.realtime_reply import Reply, ReplyRequest, Script, honest_words, parrot
from app.sim.realtime_schema import Refusal
from app.sim.realtime_session import Behaviour, LiveSession
from app.sim.realtime_watch import Watch
from app.sim.speech import load_all

PATH: Final = "/v1/realtime"

_MAX_MESSAGE_BYTES: Final = 24 * 1024 * 1024  # 15 MiB of audio as base64, and its envelope
_MAX_UNSENT_BYTES: Final = 32 * 1024 * 1024
"""What may wait for a client that does not read before it is dropped: over an hour of mu-law speech."""

_CLOSE_TIMEOUT_S: Final = 2.0  # a client that does not answer a close is dropped after this


class _WebSocketLine:
    """A `websockets` connection as the line of a session."""

    def __init__(self, websocket: ServerConnection) -> None:
        self._websocket = websocket
        self._closing: asyncio.Task[None] | None = None
        self._stalled = False

    def send(self, message: bytes) -> None:
        # The library's only send that neither waits nor needs a task; the bound on what piles up is ours then.
        broadcast((self._websocket,), message, text=True)
        if self._websocket.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            self.abort()

    def close(self, code: int, reason: str) -> None:
        self._closing = asyncio.get_running_loop().create_task(self._websocket.close(code, reason))

    def abort(self) -> None:
        self._websocket.transport.abort()

    def stall(self) -> None:
        self._stalled = True
        self._websocket.transport.pause_reading()

    def abort_if_stalled(self) -> None:
        """A stalled line would not read the answer to a close."""
        if self._stalled:
            self.abort()

    async def closed(self) -> None:
        """Until a close that was begun here is through."""
        if self._closing:
            await self._closing


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One opening request and the status it got."""

    path: str
    headers: Mapping[str, str]  # names in lower case
    status: int


class RealtimeSimulator:
    """Serves sessions on a port of this machine.

    `script`, `hears`, `faults` and `timing` may be changed while it runs: they apply to the sessions opened from
    then on, and the script to the next response.

    With `record` every event is kept for assertions; without it nothing is, so that a demonstration can run for
    months. `api_key` None accepts any bearer, but not a missing one.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        script: Script = parrot,
        hears: Callable[[bytes], str] = honest_words,
        timing: Timing = IMMEDIATELY,
        faults: Faults = NO_FAULTS,
        record: bool = True,
    ) -> None:
        self.script = script
        self.hears = hears
        self.timing = timing
        self.faults = faults
        self.sessions: list[LiveSession] = []  # all of them when recording, else those that are open
        self.upgrades: list[Upgrade] = []  # when recording
        self._host = host
        self._port = port
        self._api_key = api_key
        self._record = record
        self._server: Server | None = None
        self._watch = Watch()
        self._lines: set[_WebSocketLine] = set()
        self._opened = 0

    @property
    def url(self) -> str:
        """The base URL as the official SDK takes it."""
        return f"http://{self._host}:{self._port}/v1"

    @property
    def ws_url(self) -> str:
        """Where sessions are opened, without the query that names the model."""
        return f"ws://{self._host}:{self._port}{PATH}"

    async def start(self) -> None:
        """Loads the recordings and listens. Raises OSError when the port is taken."""
        load_all()
        logger = logging.getLogger("app.sim.realtime.websockets")
        logger.setLevel(logging.WARNING)  # it tells of every connection
        self._server = await serve(
            self._serve,
            self._host,
            self._port,
            process_request=self._admit,
            compression=None,
            max_size=_MAX_MESSAGE_BYTES,
            ping_interval=None,  # whether the service pings is not known; the client's pings are answered
            close_timeout=_CLOSE_TIMEOUT_S,
            server_header=None,
            logger=logger,
        )
        self._port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Ends every session with close 1001 and leaves nothing running."""
        if self._server is None:
            return
        server, self._server = self._server, None
        for line in self._lines:
            line.abort_if_stalled()
        server.close()
        await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def session(self, number: int) -> LiveSession:
        """The `number`-th session from 0, as soon as it is there. Waits for ever: give it a time-out."""
        return await self._watch.until(
            lambda: next((each for each in self.sessions if each.number == number), None)
        )

    async def wait_for(self, look: "Callable[[RealtimeSimulator], bool]") -> None:
        """Until `look` finds the simulator as it should be."""
        await self._watch.until(lambda: look(self) or None)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Decides about an upgrade: None goes on to 101."""
        refused = self._refusal(connection, request)
        if self._record:
            status = refused.status_code if refused else 101
            self.upgrades.append(Upgrade(request.path, _lower(request.headers.raw_items()), status))
            self._watch.changed()
        return refused

    def _refusal(self, connection: ServerConnection, request: Request) -> Response | None:
        if urlsplit(request.path).path != PATH:
            return _denied(connection, 404, Refusal(None, f"Invalid URL (GET {request.path})"))
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            return _denied(connection, 401, Refusal(None, "Missing bearer authentication in header."))
        if self._api_key is not None and not hmac.compare_digest(key.encode(), self._api_key.encode()):
            return _denied(connection, 401, error_by_code("invalid_api_key"))
        if self.faults.refuse_upgrade is not None:
            return _denied(connection, self.faults.refuse_upgrade, error_by_code("server_error"))
        return None

    async def _serve(self, websocket: ServerConnection) -> None:
        """One connection, from 101 to its end."""
        line = _WebSocketLine(websocket)
        self._lines.add(line)
        try:
            await self._hold(websocket, line)
        except ConnectionClosed:
            pass  # however it ended, the session has its close code
        finally:
            await line.closed()
            self._lines.discard(line)

    async def _hold(self, websocket: ServerConnection, line: _WebSocketLine) -> None:
        request = websocket.request
        assert request is not None, "the library calls handlers after the opening handshake"
        number, self._opened = self._opened, self._opened + 1
        models = parse_qs(urlsplit(request.path).query).get("model")
        if "OpenAI-Beta" in request.headers:
            self._turn_away(line, number, error_by_code("beta_api_shape_disabled"))
            return
        if not models:
            missing = Refusal("missing_required_parameter", "Missing required parameter: 'model'.", "model")
            self._turn_away(line, number, missing)
            return
        session = self._new_session(number, models[0], _lower(request.headers.raw_items()), line)
        self.sessions.append(session)
        session.begin()
        self._watch.changed()
        try:
            async for message in websocket:
                session.receive(message)
        finally:
            await session.end(websocket.close_code)
            if not self._record:
                self.sessions.remove(session)

    def _new_session(
        self, number: int, model: str, headers: Mapping[str, str], line: _WebSocketLine
    ) -> LiveSession:
        timing = self.timing
        return LiveSession(
            number=number,
            model=model,
            headers=headers,
            line=line,
            behaviour=Behaviour(self._reply, self.hears, timing, self.faults),
            watch=self._watch,
            expires_at=int(time.time() + timing.session_life_s / timing.clock_rate),
            record=self._record,
        )

    def _reply(self, request: ReplyRequest) -> Reply:
        """The script as it is set now, not as it was when the session began."""
        return self.script(request)

    def _turn_away(self, line: _WebSocketLine, number: int, refusal: Refusal) -> None:
        """Some refusals come after the upgrade: an error event, then close 4000 (realtime.md 1.1)."""
        outlet = Outlet(
            line=line,
            ids=Ids(number),
            faults=NO_FAULTS,
            now=asyncio.get_running_loop().time,
            sent=None,
            on_sent=self._watch.changed,
        )
        outlet.refuse(refusal)
        outlet.close(4000, f"{refusal.kind}.{refusal.code}")


def _lower(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def _denied(connection: ServerConnection, status: int, refusal: Refusal) -> Response:
    """An HTTP answer in place of 101, with the service's JSON body."""
    error: dict[str, Any] = {
        "message": refusal.message,
        "type": refusal.kind,
        "param": refusal.param,
        "code": refusal.code,
    }
    response = connection.respond(status, orjson.dumps({"error": error}).decode())
    response.headers.pop("Content-Type", None)
    response.headers["Content-Type"] = "application/json"
    return response
