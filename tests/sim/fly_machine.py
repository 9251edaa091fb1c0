"""Machines for the edge to route to: real servers, uvicorn and Starlette, that say what they were asked."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect

from app.sim.fly.edge import Machine
from app.sim.fly.fly import Fly, FlyOptions
from app.sim.fly.log import Hop, Trace
from app.sim.inner_server import InnerServer
from tests.waiting import a_moment

PLACES_MS: Mapping[str, float] = {
    "syd": 0,
    "tokyo": 90,
    "nrt": 100,
    "iad": 200,
    "lhr": 280,
    "berlin": 285,
    "fra": 290,
}


def near(a: str, b: str) -> float:
    """Distances that order the places and take no time."""
    return abs(PLACES_MS[a] - PLACES_MS[b]) / 10_000


@dataclass
class Process:
    """The process of one Machine. It replays everything (`replay`) or what has not been replayed yet."""

    id: str
    health: int = 200
    replay: str | None = None
    replay_new: str | None = None
    seen: list[HTTPConnection] = field(default_factory=list)
    checked: int = 0
    port: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    _server: InnerServer | None = None
    _serving: asyncio.Task[None] | None = None

    @property
    def region(self) -> str:
        return self.id.rstrip("0123456789")

    def machine(self, **changes: Any) -> Machine:
        return Machine(self.id, self.region, self.port, **changes)

    async def start(self) -> None:
        routes = [
            Route("/healthz", self._health),
            Route("/wait", self._wait),
            Route("/stream", self._stream),
            Route("/{path:path}", self._answer, methods=["GET", "POST"]),
            WebSocketRoute("/{path:path}", self._converse),
        ]
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            Starlette(routes=routes), lifespan="off", log_config=None, timeout_graceful_shutdown=1
        )
        self._server = InnerServer(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        await self._server.up.wait()

    async def stop(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving

    async def _health(self, _: Request) -> Response:
        self.checked += 1
        return Response(status_code=self.health, headers={"location": "/"})

    def _replay(self, connection: HTTPConnection) -> Response | None:
        self.seen.append(connection)
        header = self.replay
        if "fly-replay-src" not in connection.headers:
            header = header or self.replay_new
        if header is None:
            return None
        return Response("this is not for the client", 409, headers={"fly-replay": header})

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        return self._replay(request) or JSONResponse(
            {
                "machine": self.id,
                "method": request.method,
                "target": request.url.path + "?" + request.url.query,
                "headers": dict(request.headers),
                "body": body.decode(),
            },
            headers={"x-app": "kept"},
        )

    async def _wait(self, request: Request) -> Response:
        """Answers when told to, or notes that the client has left."""
        self.waiting.set()
        released = asyncio.create_task(self.release.wait())
        gone = asyncio.create_task(self._disconnected(request))
        await asyncio.wait({released, gone}, return_when=asyncio.FIRST_COMPLETED)
        released.cancel()
        gone.cancel()
        return Response(self.id)

    async def _disconnected(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.left.set()

    async def _stream(self, _: Request) -> Response:
        """The second piece only after the test has had the first."""

        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            await self.release.wait()
            yield b"second"

        return StreamingResponse(pieces())

    async def _converse(self, ws: WebSocket) -> None:
        denial = self._replay(ws)
        if denial is not None:
            await ws.send_denial_response(denial)
            return
        await ws.accept()
        await ws.send_text(self.id)
        async for text in ws.iter_text():
            await ws.send_text(f"{self.id} heard {text}")
        self.left.set()


@contextlib.asynccontextmanager
async def instead(
    cluster: "Cluster",
    machine_id: str,
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[None]:
    """In place of the Machine's server: this, after the head of each request."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        cluster.fly.set_health(machine_id, ok=True)
        cluster.fly.machine_started(machine_id, server.sockets[0].getsockname()[1])
        await cluster.fly.ready()
        yield
    finally:
        server.close()


@dataclass
class Cluster:
    """A Fly with its processes, and clients that talk to it."""

    fly: Fly
    processes: dict[str, Process]

    def __getitem__(self, machine_id: str) -> Process:
        return self.processes[machine_id]

    async def seen(self, condition: Callable[[], bool]) -> None:
        """Return when this is true of what the edge or a process has recorded."""
        while not condition():
            await a_moment()

    async def request(
        self, location: str, path: str = "/", *, method: str = "GET", **options: Any
    ) -> httpx.Response:
        port = await self.fly.listen(location)
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            return await client.request(method, f"http://127.0.0.1:{port}{path}", **options)

    async def served_by(self, location: str, path: str = "/", **options: Any) -> str:
        response = await self.request(location, path, **options)
        assert response.status_code == 200, response.text
        machine: str = response.json()["machine"]
        return machine

    @contextlib.asynccontextmanager
    async def socket(self, location: str, path: str = "/media/t") -> AsyncIterator[ClientConnection]:
        port = await self.fly.listen(location)
        async with connect(f"ws://127.0.0.1:{port}{path}", ping_interval=None, proxy=None) as ws:
            yield ws


async def _all(processes: Mapping[str, Process], do: Callable[[Process], Awaitable[None]]) -> None:
    await asyncio.gather(*(do(each) for each in processes.values()))


class Starting:
    """`async with Starting(["nrt1", "iad1"]) as cluster`: started, checked, and known at every edge."""

    def __init__(
        self,
        machine_ids: list[str],
        *,
        edges: list[str] | None = None,
        limits: Mapping[str, int] | None = None,
        on_hop: Callable[[Trace, Hop], None] | None = None,
        **options: Any,
    ) -> None:
        self._ids = machine_ids
        self._edges = edges
        self._limits = limits or {}
        self._on_hop = on_hop
        self._rtt_ms = options.pop("rtt_ms", near)
        settings: dict[str, Any] = {"propagation_s": (0, 0), "check_interval_s": 0.02, "queue_timeout_s": 5}
        self._options = FlyOptions(**settings | options)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Cluster:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(asyncio.timeout(15))
            processes = {each: Process(each) for each in self._ids}
            stack.push_async_callback(_all, processes, Process.stop)
            await _all(processes, Process.start)
            machines = [each.machine(hard_limit=self._limits.get(each.id)) for each in processes.values()]
            edges = self._edges or sorted({each.region for each in machines})
            fly = await stack.enter_async_context(
                Fly(machines, edges=edges, rtt_ms=self._rtt_ms, options=self._options, on_hop=self._on_hop)
            )
            await fly.ready()
            self._stack = stack.pop_all()
            return Cluster(fly, processes)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)
