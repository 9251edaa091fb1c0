"""The server of the simulated Realtime backends: sockets, upgrades, sessions, close codes.

It uses `websockets`, so that the bridge's own WebSocket code meets an independent implementation. Address and
authentication are in openai_simulator.py and voicelive_simulator.py, and session.py has what a session does.
"""

import asyncio
import logging
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlsplit

import orjson
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from app.sim.notifier import Notifier
from app.sim.realtime.event_sender import EventSender, Ids
from app.sim.realtime.faults import NO_FAULTS, Faults, Timing, error_by_code
from app.sim.realtime.reply import Reply, ReplyRequest, Script
from app.sim.realtime.schema import Refusal
from app.sim.realtime.service import Names, Service
from app.sim.realtime.session import LiveSession
from app.sim.realtime.state import Behaviour
from app.sim.speech import load_all

Json = dict[str, Any]

_MAX_MESSAGE_BYTES: Final = 24 * 1024 * 1024  # 15 MiB of audio as base64, and its envelope
MAX_UNSENT_BYTES: Final = 32 * 1024 * 1024
"""A client that leaves more than this unread is dropped: over an hour of mu-law speech."""

_CLOSE_TIMEOUT_S: Final = 2.0  # a client that does not answer a close is dropped after this


class _WebSocketConnection:
    """The connection of a session over `websockets`."""

    def __init__(self, websocket: ServerConnection) -> None:
        self._websocket = websocket
        self._closing: asyncio.Task[None] | None = None
        self._stalled = False

    def send(self, message: bytes) -> None:
        # The library's only send that neither waits nor needs a task; the bound on what piles up is ours then.
        broadcast((self._websocket,), message, text=True)
        if self._websocket.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self.abort()

    def close(self, code: int, reason: str) -> None:
        self._closing = asyncio.get_running_loop().create_task(self._websocket.close(code, reason))

    def abort(self) -> None:
        self._websocket.transport.abort()

    def reset(self) -> None:
        # Closing with a linger time of 0 makes the kernel send an RST in place of a FIN (socket(7), SO_LINGER).
        sock = self._websocket.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._websocket.transport.abort()

    def stall(self) -> None:
        self._stalled = True
        self._websocket.transport.pause_reading()

    def abort_if_stalled(self) -> None:
        """A stalled line would not read the answer to a close."""
        if self._stalled:
            self.abort()

    async def closed(self) -> None:
        """Waits until a close that began here is complete."""
        if self._closing:
            await self._closing


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One opening request and the status it got."""

    path: str
    headers: Mapping[str, str]  # names in lower case
    status: int


@dataclass(frozen=True, slots=True)
class Opening:
    """The request line and headers of a client's upgrade."""

    path: str
    query: Mapping[str, str]  # the first of each name
    headers: Mapping[str, str]  # names in lower case


@dataclass(frozen=True, slots=True)
class Denial:
    """An HTTP answer in place of 101."""

    status: int
    body: Json


@dataclass(frozen=True, slots=True)
class Rejection:
    """A refusal after the upgrade: an `error` event, then a close."""

    refusal: Refusal
    code: int
    reason: str


class RealtimeServer(ABC):
    """Serves the sessions of one Service on a port of this machine.

    `script`, `hears`, `faults` and `timing` may be changed while it runs: they apply to the sessions opened from
    then on, and the script to the next response.

    With `record` every event is kept for assertions; without it nothing is, so that a demonstration can run for
    months.
    """

    def __init__(
        self,
        service: Service,
        *,
        host: str,
        port: int,
        script: Script,
        hears: Callable[[bytes], str],
        timing: Timing,
        faults: Faults,
        record: bool,
    ) -> None:
        self.script = script
        self.hears = hears
        self.timing = timing
        self.faults = faults
        self.sessions: list[LiveSession] = []  # all of them when recording, else those that are open
        self.upgrades: list[Upgrade] = []  # when recording
        self._service = service
        self._host = host
        self._port = port
        self._record = record
        self._server: Server | None = None
        self._notifier = Notifier()
        self._connections: set[_WebSocketConnection] = set()
        self._opened = 0

    @property
    @abstractmethod
    def path(self) -> str:
        """The path at which sessions are opened."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The base URL that an operator would configure."""

    @abstractmethod
    def deny(self, opening: Opening) -> Denial | None:
        """Returns why this upgrade is refused before its 101; None when it is accepted."""

    @abstractmethod
    def reject(self, opening: Opening) -> Rejection | None:
        """Returns why this upgrade gets a 101 and no session; None when it gets one."""

    @abstractmethod
    def denial(self, status: int, refusal: Refusal) -> Denial:
        """Returns a refusal in the words of this service before the upgrade."""

    @property
    def names(self) -> Names:
        """The names that differ between the services."""
        return self._service.names

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://{self._host}:{self._port}"

    @property
    def ws_url(self) -> str:
        """The URL at which sessions are opened, without the query that names the model."""
        return f"ws://{self._host}:{self._port}{self.path}"

    async def start(self) -> None:
        """Loads the recordings and listens. Raises OSError when the port is taken."""
        load_all()
        logger = logging.getLogger("nearcall.sim.websockets")
        logger.setLevel(logging.WARNING)  # at INFO it logs every connection
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
        for connection in self._connections:
            connection.abort_if_stalled()
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
        """Waits for the `number`-th session, counted from 0. Without limit: add a time-out."""
        return await self._notifier.until(
            lambda: next((each for each in self.sessions if each.number == number), None)
        )

    async def wait_for(self, look: Callable[[Self], bool]) -> None:
        """Waits until `look` returns True for this simulator."""
        await self._notifier.until(lambda: look(self) or None)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Decides on an upgrade. Returns None to accept it with a 101."""
        denied = self._denied(_opening(request))
        if self._record:
            status = denied.status if denied else 101
            self.upgrades.append(Upgrade(request.path, _lower(request.headers.raw_items()), status))
            self._notifier.changed()
        return _response(connection, denied) if denied else None

    def _denied(self, opening: Opening) -> Denial | None:
        if opening.path != self.path:
            return self.denial(404, Refusal(None, f"Invalid URL (GET {opening.path})"))
        if denied := self.deny(opening):
            return denied
        if self.faults.refuse_upgrade is not None:
            return self.denial(self.faults.refuse_upgrade, error_by_code("server_error"))
        return None

    async def _serve(self, websocket: ServerConnection) -> None:
        """Serves one connection from its 101 to its end."""
        connection = _WebSocketConnection(websocket)
        self._connections.add(connection)
        try:
            await self._hold(websocket, connection)
        except ConnectionClosed:
            pass  # the session has recorded its close code
        finally:
            await connection.closed()
            self._connections.discard(connection)

    async def _hold(self, websocket: ServerConnection, connection: _WebSocketConnection) -> None:
        request = websocket.request
        assert request is not None, "the library calls handlers after the opening handshake"
        opening = _opening(request)
        if away := self.reject(opening):
            self._send_rejection(connection, away)
            return
        session = self._new_session(opening, connection)
        self.sessions.append(session)
        session.begin()
        self._notifier.changed()
        try:
            async for message in websocket:
                session.receive(message)
        finally:
            await session.end(websocket.close_code)
            if not self._record:
                self.sessions.remove(session)

    def _new_session(self, opening: Opening, connection: _WebSocketConnection) -> LiveSession:
        number, self._opened = self._opened, self._opened + 1
        timing = self.timing
        return LiveSession(
            number=number,
            model=opening.query["model"],
            headers=opening.headers,
            service=self._service,
            connection=connection,
            behaviour=Behaviour(self._reply, self.hears, timing, self.faults),
            notifier=self._notifier,
            expires_at=int(time.time() + timing.session_life_s / timing.clock_rate),
            record=self._record,
        )

    def _reply(self, request: ReplyRequest) -> Reply:
        """Answers with the present script, not with that at the beginning of the session."""
        return self.script(request)

    def _send_rejection(self, connection: _WebSocketConnection, away: Rejection) -> None:
        events_out = EventSender(
            connection=connection,
            ids=Ids(self._opened),
            faults=NO_FAULTS,
            now=asyncio.get_running_loop().time,
            sent=None,
            on_sent=self._notifier.changed,
        )
        events_out.refuse(away.refusal)
        events_out.close(away.code, away.reason)


def _opening(request: Request) -> Opening:
    address = urlsplit(request.path)
    query = dict(reversed(parse_qsl(address.query)))  # the last one put in stays
    return Opening(address.path, query, _lower(request.headers.raw_items()))


def _lower(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def _response(connection: ServerConnection, denial: Denial) -> Response:
    response = connection.respond(denial.status, orjson.dumps(denial.body).decode())
    response.headers.pop("Content-Type", None)
    response.headers["Content-Type"] = "application/json"
    return response
