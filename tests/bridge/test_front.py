"""What a stranger's connection may cost before it is a call's stream: over real sockets, with short limits."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from websockets.asyncio.client import connect

from app.bridge.front import HEAD_MAX_BYTES, HEADERS_MAX, Front, Limits, http_protocol
from app.bridge.handover import ws_protocol
from app.bridge.link import Link
from app.call.events import Side
from tests.bridge.peers import LOOPS, MESSAGE_MAX, Owner
from tests.waiting import a_moment

pytestmark = pytest.mark.anyio

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module", params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


class House:
    """A server behind the front. `gate` holds up the answers of /slow."""

    def __init__(self, limits: Limits) -> None:
        self.front = Front(limits)
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()
        self.port = 0
        self.owners: list[Owner] = []

    def upgrade(self, _target: str, _header: object) -> Link:
        self.owners.append(Owner())
        return Link(Side.PHONE, self.owners[-1], MESSAGE_MAX)

    async def livez(self, _request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def echo(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    async def slow(self, _request: Request) -> PlainTextResponse:
        self.asked.set()
        await self.gate.wait()
        return PlainTextResponse("late")

    async def open(self) -> Peer:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def until_open(self, count: int) -> None:
        while self.front.open != count:
            await a_moment()


@contextlib.asynccontextmanager
async def served(limits: Limits | None = None) -> AsyncIterator[House]:
    house = House(limits or Limits())
    routes = [Route("/livez", house.livez), Route("/slow", house.slow)]
    routes.append(Route("/echo", house.echo, methods=["POST"]))
    config = uvicorn.Config(
        Starlette(routes=routes),
        http=http_protocol(house.front),  # type: ignore[arg-type]  # any protocol factory works
        ws=ws_protocol(house.upgrade, {}),  # type: ignore[arg-type]  # any protocol factory works
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    listener = socket.create_server(("127.0.0.1", 0))
    house.port = listener.getsockname()[1]
    running = asyncio.create_task(server.serve([listener]))
    async with asyncio.timeout(20):
        while not server.started:
            await a_moment()
        try:
            yield house
        finally:
            house.gate.set()
            server.should_exit = True
            await running


async def send(peer: Peer, data: bytes) -> None:
    peer[1].write(data)
    with contextlib.suppress(ConnectionError):
        await peer[1].drain()


async def rest(peer: Peer) -> bytes:
    """Everything that still comes until the server closes; a reset closes too."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while part := await peer[0].read(65536):
            got += part
    peer[1].close()
    return got


async def answer(peer: Peer) -> int:
    """The status of one answer, whose body has a length."""
    head = (await peer[0].readuntil(b"\r\n\r\n")).decode()
    length = next(line.partition(":")[2] for line in head.split("\r\n") if line.startswith("content-length"))
    await peer[0].readexactly(int(length))
    return int(head.split()[1])


# --- Bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(b"GET /livez HTTP/1.1\r\nX-Endless: " + b"x" * HEAD_MAX_BYTES, id="one header"),
        pytest.param(b"GET /" + b"x" * HEAD_MAX_BYTES, id="the URL"),
        pytest.param(b"\r\n" * HEAD_MAX_BYTES, id="empty lines"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + b"a:b\r\n" * (HEADERS_MAX + 2), id="many headers"),
    ],
)
async def test_endless_head_is_refused_and_closed(endless: bytes) -> None:
    async with served() as house:
        peer = await house.open()
        await send(peer, endless)
        answered = await rest(peer)
        assert answered.startswith(b"HTTP/1.1 431 ") or not answered  # a reset may overtake the answer
        assert house.front.closed == {"head": 1}


async def test_endless_head_in_small_pieces_is_refused_at_the_same_size() -> None:
    async with served() as house:
        peer = await house.open()
        sent = 0
        await send(peer, b"GET /livez HTTP/1.1\r\nX-Endless: ")
        while not house.front.closed:
            await send(peer, b"x" * 1000)
            sent += 1000
            await a_moment()
        assert sent < 100 * HEAD_MAX_BYTES
        assert house.front.closed == {"head": 1}
        await rest(peer)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"Content-Length: 9999999\r\n\r\n" + b"x" * 200_000, id="long"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 300, id="many tiny chunks"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 200_000, id="endless chunk extension"),
    ],
)
async def test_endless_body_is_cut(body: bytes) -> None:
    async with served() as house:
        peer = await house.open()
        await send(peer, POST + body)
        assert await rest(peer) == b""
        assert house.front.closed == {"body": 1}


@pytest.mark.parametrize("size", [0, 1, 3_000, 16_384])
async def test_body_of_the_size_of_a_webhooks_arrives(size: int) -> None:
    async with served() as house:
        peer = await house.open()
        await send(peer, POST + f"Content-Length: {size}\r\n\r\n".encode() + b"x" * size)
        assert await answer(peer) == 200
        peer[1].close()
        assert house.front.closed == {}


async def test_what_is_no_http_is_refused_and_closed() -> None:
    async with served() as house:
        peer = await house.open()
        await send(peer, b"\x16\x03\x01\x02\x00\x01\x00")
        assert (await rest(peer)).startswith(b"HTTP/1.1 400 ")
        assert house.front.closed == {"malformed": 1}


# --- One request at a time -------------------------------------------------------------------------


@pytest.mark.parametrize("first", [GET, b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_second_request_before_the_first_is_answered_closes_the_connection(first: bytes) -> None:
    async with served() as house:
        peer = await house.open()
        await send(peer, first + GET * 20_000)
        assert await rest(peer) == b""
        assert house.front.closed == {"pipelining": 1}


async def test_requests_one_after_the_other_share_a_connection() -> None:
    async with served() as house:
        peer = await house.open()
        for _ in range(50):
            await send(peer, GET)
            assert await answer(peer) == 200
        peer[1].close()
        assert house.front.closed == {}


# --- Time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begun", [b"", b"GET /livez HTT", GET[:-2], POST + b"Content-Length: 5\r\n\r\nab"], ids=str
)
async def test_request_that_is_not_complete_in_time_is_closed(begun: bytes) -> None:
    async with served(Limits(request_s=0.05)) as house:
        peer = await house.open()
        await send(peer, begun)
        await rest(peer)
        assert house.front.closed == {"request_late": 1}
        assert house.front.open == 0


async def test_each_byte_in_time_does_not_make_a_late_request_good() -> None:
    async with served(Limits(request_s=0.1)) as house:
        peer = await house.open()
        await send(peer, b"GET /livez HTTP/1.1\r\nX-Slow: ")
        while not house.front.closed:
            await send(peer, b"x")
            await a_moment()
        assert set(house.front.closed) <= {"request_late", "head"}
        await rest(peer)


async def test_later_request_has_the_same_time() -> None:
    async with served(Limits(request_s=0.1)) as house:
        peer = await house.open()
        await send(peer, GET)
        assert await answer(peer) == 200
        await send(peer, b"GET /livez")
        assert (await rest(peer)).startswith(b"HTTP/1.1 408 ")
        assert house.front.closed == {"request_late": 1}


async def test_idle_connection_is_closed_without_a_word() -> None:
    async with served(Limits(idle_s=0.05)) as house:
        peer = await house.open()
        await send(peer, GET)
        assert await answer(peer) == 200
        assert await rest(peer) == b""
        assert (house.front.closed, house.front.open) == ({}, 0)


async def test_answer_that_never_comes_ends_the_connection() -> None:
    async with served(Limits(answer_s=0.05)) as house:
        peer = await house.open()
        await send(peer, b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await rest(peer) == b""
        assert house.front.closed == {"answer_late": 1}


# --- Connections -----------------------------------------------------------------------------------


async def test_the_longest_waiting_connection_makes_room_for_a_new_one() -> None:
    async with served(Limits(connections=3)) as house:
        half_open = []
        for count in range(3):
            half_open.append(await house.open())
            await send(half_open[-1], b"GET /livez")
            await house.until_open(count + 1)
        last = await house.open()
        await send(last, GET)
        assert await answer(last) == 200
        assert await rest(half_open[0]) == b""
        assert (house.front.closed, house.front.open) == ({"connections": 1}, 3)
        for peer in [*half_open, last]:
            peer[1].close()


async def test_connection_whose_answer_is_being_made_does_not_make_room() -> None:
    async with served(Limits(connections=1)) as house:
        busy = await house.open()
        await send(busy, b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await house.asked.wait()
        assert await rest(await house.open()) == b""
        assert house.front.closed == {"connections": 1}
        house.gate.set()
        assert await answer(busy) == 200
        busy[1].close()


async def test_stream_takes_no_place_of_a_connection() -> None:
    async with served(Limits(connections=1)) as house, contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(connect(f"ws://127.0.0.1:{house.port}/media/ticket"))
        peer = await house.open()
        await send(peer, GET)
        assert await answer(peer) == 200
        peer[1].close()
        assert len(house.owners) == 3
        assert house.front.closed == {}


async def test_stream_outlives_every_limit_of_time() -> None:
    short = Limits(request_s=0.1, answer_s=0.1, idle_s=0.1)
    async with served(short) as house, connect(f"ws://127.0.0.1:{house.port}/media/ticket") as stream:
        late = await house.open()
        await rest(late)  # it came after the stream, and its time is over
        await (await stream.ping())


async def test_connection_that_takes_one_of_the_last_descriptors_is_refused() -> None:
    async with served(Limits(descriptor=0)) as house:
        assert await rest(await house.open()) == b""
        assert house.front.closed == {"descriptors": 1}


class Silent:
    """A connection that only counts."""

    def drop(self, why: str) -> None:
        raise AssertionError(why)


def test_public_address_has_so_many_connections_and_a_proxys_has_all() -> None:
    front = Front(Limits(connections=100, per_sender=2))
    mine = [Silent(), Silent(), Silent()]
    assert [front.admit(each, "203.0.114.7", 9) for each in mine] == [None, None, "per_address"]
    assert front.admit(Silent(), "203.0.114.8", 9) is None
    assert [front.admit(Silent(), "10.0.0.1", 9) for _ in range(10)] == [None] * 10
    front.release(mine[0])
    front.release(mine[0])
    assert [front.admit(Silent(), "203.0.114.7", 9) for _ in range(2)] == [None, "per_address"]


def test_addresses_of_one_network_of_ipv6_are_one_sender() -> None:
    front = Front(Limits(per_sender=1))
    assert front.admit(Silent(), "2a01:4f8:1:2::1", 9) is None
    assert front.admit(Silent(), "2a01:4f8:1:2::2", 9) == "per_address"
    assert front.admit(Silent(), "::ffff:203.0.114.7", 9) is None
    assert front.admit(Silent(), "203.0.114.7", 9) == "per_address"


def test_on_fly_the_few_addresses_of_its_proxy_are_not_limited() -> None:
    front = Front(Limits.of(65_536, on_fly=True))
    assert {front.admit(Silent(), "203.0.114.7", 9) for _ in range(500)} == {None}


@pytest.mark.parametrize(
    ("descriptors", "limits"), [(256, (64, 192)), (1024, (256, 960)), (1 << 20, (512, (1 << 20) - 64))]
)
def test_limits_leave_descriptors_for_files_and_calls(descriptors: int, limits: tuple[int, int]) -> None:
    found = Limits.of(descriptors, on_fly=False)
    assert (found.connections, found.descriptor) == limits


def test_flood_is_a_log_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    front = Front(Limits())
    for count in range(1000):
        front.note("head", 100.0 + count / 100)
    front.note("pipelining", 200.0)
    assert [vars(record)["reasons"] for record in caplog.records] == [{"head": 1}, {"head": 999, "pipelining": 1}]
