"""The hand-over of an upgrade from uvicorn to picows, over real sockets, with plain HTTP beside it."""

import asyncio
import contextlib
import http.client
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import picows
import pytest
import uvicorn
from picows import WSListener
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # the shape test is about this name
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.bridge.front import Front, Limits, http_protocol
from app.bridge.handover import MAX_FRAME_BYTES, Denial, ws_protocol
from app.bridge.link import ABNORMAL, Link
from app.call.events import Side
from tests.bridge.peers import LOOPS, MESSAGE_MAX, Owner

pytestmark = pytest.mark.anyio

Header = Callable[[str], str | None]

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""RFC 6455, section 1.3."""

UPGRADE = (
    "GET /media/ticket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture(scope="module", params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


class House:
    """A server whose upgrades a test answers."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[tuple[str, Header]] = []
        self.owners: list[Owner] = []
        self.answer: Callable[[], WSListener | Denial] = self.accept

    def upgrade(self, target: str, header: Header) -> WSListener | Denial:
        self.requests.append((target, header))
        return self.answer()

    def accept(self) -> WSListener:
        """A link that says hello and echoes."""
        owner = Owner()
        self.owners.append(owner)
        link = _Echo(Side.PHONE, owner, MESSAGE_MAX)
        owner.link_message = lambda side, message: link.send(bytes(message))  # type: ignore[method-assign]
        return link

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/media/ticket"

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


class _Echo(Link):
    def on_ws_connected(self, transport: object) -> None:
        super().on_ws_connected(transport)  # type: ignore[arg-type]
        self.send(b"hello")


class Server(uvicorn.Server):
    """Tells when it is up, and leaves signals alone."""

    up: asyncio.Event

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _plain(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.method)


@contextlib.asynccontextmanager
async def serving(house: House) -> AsyncIterator[tuple[Server, "asyncio.Task[None]"]]:
    """uvicorn as app/http/server.py sets it up, with two plain routes."""
    app = Starlette(routes=[Route("/healthz", _plain), Route("/media/ticket", _plain, methods=["POST"])])
    config = uvicorn.Config(
        app,
        ws=ws_protocol(house.upgrade, {"Nearcall-Region": "fra"}),  # type: ignore[arg-type]  # any protocol factory works
        http=http_protocol(Front(Limits())),  # type: ignore[arg-type]  # any protocol factory works
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = Server(config)
    server.up = asyncio.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    house.port = listener.getsockname()[1]
    running = asyncio.create_task(server.serve([listener]))
    async with asyncio.timeout(10):
        await server.up.wait()
    try:
        yield server, running
    finally:
        server.should_exit = True
        await running


@pytest.fixture(scope="module")
async def one_house(anyio_backend: object) -> AsyncIterator[House]:
    """Starting and stopping uvicorn takes longer than all tests together: they share one."""
    house = House()
    async with serving(house):
        yield house


@pytest.fixture
def house(one_house: House) -> House:
    one_house.requests.clear()
    one_house.owners.clear()
    one_house.answer = one_house.accept
    return one_house


async def head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """An answer: status, headers with names in lower case, and everything after it until the connection ends."""
    async with asyncio.timeout(10):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        body = await reader.read() if headers.get("connection") == "close" else b""
    return int(lines[0].split()[1]), headers, body


# --- Accepted --------------------------------------------------------------------------------------


async def test_accepted_upgrade_carries_messages_both_ways(house: House) -> None:
    async with connect(house.url) as client:
        assert await client.recv() == "hello"
        await client.send("are you there")
        assert await client.recv() == "are you there"


async def test_upgrade_is_asked_with_path_and_headers_as_they_were_sent(house: House) -> None:
    async with connect(f"{house.url}%2F?a=b", additional_headers={"X-Twilio-Signature": "c2ln"}):
        ((target, header),) = house.requests
    assert (target, header("x-twilio-signature"), header("Missing")) == ("/media/ticket%2F?a=b", "c2ln", None)


async def test_accepted_upgrade_has_the_key_of_the_rfc_and_our_headers(house: House) -> None:
    reader, writer = await house.raw()
    writer.write(UPGRADE.encode())
    status, headers, _ = await head(reader)
    assert (status, headers["sec-websocket-accept"], headers["nearcall-region"]) == (101, ACCEPT, "fra")
    writer.close()


async def test_first_message_of_the_server_follows_the_101_at_once(house: House) -> None:
    """Twilio's `start` follows the 101 within milliseconds: code that attaches after an await would miss it."""
    reader, writer = await house.raw()
    writer.write(UPGRADE.encode())
    await head(reader)
    assert await reader.readexactly(7) == b"\x81\x05hello"
    writer.close()


@pytest.mark.parametrize("cut", [1, 10, 30, 60, 100, len(UPGRADE) - 2, len(UPGRADE) - 1])
async def test_upgrade_split_by_the_network_is_accepted_once_it_is_whole(house: House, cut: int) -> None:
    reader, writer = await house.raw()
    writer.write(UPGRADE[:cut].encode())
    await writer.drain()
    async with connect(house.url):  # the server has turned its loop with one half only
        pass
    assert len(house.requests) == 1
    writer.write(UPGRADE[cut:].encode())
    assert (await head(reader))[0] == 101
    assert len(house.requests) == 2
    writer.close()


async def test_many_upgrades_at_once_are_kept_apart(house: House) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = await asyncio.gather(*(stack.enter_async_context(connect(house.url)) for _ in range(50)))
        await asyncio.gather(*(client.recv() for client in clients))
        await asyncio.gather(*(client.send(str(number)) for number, client in enumerate(clients)))
        echoes = await asyncio.gather(*(client.recv() for client in clients))
    assert echoes == [str(number) for number in range(50)]


async def test_connection_lost_after_the_101_is_told_once(house: House) -> None:
    reader, writer = await house.raw()
    writer.write(UPGRADE.encode())
    await head(reader)
    writer.transport.abort()
    await house.owners[0].until_lost()
    assert house.owners[0].told == [("up",), ("lost", ABNORMAL)]


async def test_connection_lost_together_with_the_request_is_told_once(house: House) -> None:
    _, writer = await house.raw()
    writer.write(UPGRADE.encode())
    await writer.drain()
    writer.transport.abort()
    async with connect(house.url):
        pass
    owner = house.owners[0]
    await owner.until_lost()
    assert owner.told == [("up",), ("lost", ABNORMAL)]


async def test_connection_lost_before_the_request_is_whole_asks_no_gate(house: House) -> None:
    _, writer = await house.raw()
    writer.write(UPGRADE[:-2].encode())
    await writer.drain()
    writer.transport.abort()
    async with connect(house.url):
        pass
    assert len(house.requests) == 1


async def test_lost_connection_closes_its_neighbours_not(house: House) -> None:
    async with connect(house.url) as first:
        async with connect(house.url) as second:
            second.transport.abort()
        await house.owners[1].until_lost()
        assert await first.recv() == "hello"
        await first.send("still here")
        assert await first.recv() == "still here"


# --- Refused ---------------------------------------------------------------------------------------


async def test_refusal_has_its_status_and_headers_and_an_empty_body(house: House) -> None:
    house.answer = lambda: Denial(503, {"fly-replay": 'region="fra,cdg"'})
    reader, writer = await house.raw()
    writer.write(UPGRADE.encode())
    status, headers, body = await head(reader)
    assert (status, body, headers["nearcall-region"]) == (503, b"", "fra")
    assert (headers["fly-replay"], headers["content-length"]) == ('region="fra,cdg"', "0")
    writer.close()


@pytest.mark.parametrize("status", [403, 404, 503])
async def test_refused_client_sees_the_status(house: House, status: int) -> None:
    house.answer = lambda: Denial(status)
    with pytest.raises(InvalidStatus) as refused:
        await connect(house.url)
    assert refused.value.response.status_code == status


async def test_refusal_closes_the_connection(house: House) -> None:
    house.answer = lambda: Denial(403)
    reader, writer = await house.raw()
    writer.write(UPGRADE.encode() * 2)
    assert (await head(reader))[2] == b""
    writer.close()


def broken() -> WSListener:
    raise RuntimeError("ticket 1234 met a bug")


async def test_bug_in_the_answer_is_an_empty_500_for_the_peer_and_is_logged(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.answer = broken
    reader, writer = await house.raw()
    with caplog.at_level(logging.ERROR):
        writer.write(UPGRADE.encode())
        status, _, body = await head(reader)
    writer.close()
    assert (status, body) == (500, b"")
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_bug_in_one_answer_leaves_the_next_upgrade_alone(house: House) -> None:
    house.answer = broken
    with pytest.raises(InvalidStatus) as refused:
        await connect(house.url)
    assert refused.value.response.status_code == 500
    house.answer = house.accept
    async with connect(house.url) as client:
        assert await client.recv() == "hello"


BAD_UPGRADES = [
    pytest.param(UPGRADE.replace(f"Sec-WebSocket-Key: {KEY}\r\n", ""), id="no key"),
    pytest.param(UPGRADE.replace(KEY, "c2hvcnQ="), id="short key"),
    pytest.param(UPGRADE.replace("Version: 13", "Version: 12"), id="wrong version"),
    pytest.param(UPGRADE.replace("Sec-WebSocket-Version: 13\r\n", ""), id="no version"),
    pytest.param(UPGRADE.replace("GET", "POST").replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n"), id="POST"),
]


@pytest.mark.parametrize("request_text", BAD_UPGRADES)
async def test_bad_upgrade_is_400_and_closed(house: House, request_text: str) -> None:
    reader, writer = await house.raw()
    writer.write(request_text.encode())
    status, _, _ = await head(reader)
    assert status == 400
    writer.close()


@pytest.mark.parametrize("request_text", BAD_UPGRADES)
async def test_bad_upgrade_does_not_reach_the_gate(house: House, request_text: str) -> None:
    reader, writer = await house.raw()
    writer.write(request_text.encode())
    await head(reader)
    writer.close()
    assert house.requests == []


async def test_upgrade_through_a_proxy_that_adds_keep_alive_is_accepted(house: House) -> None:
    reader, writer = await house.raw()
    writer.write(UPGRADE.replace("Connection: Upgrade", "Connection: keep-alive, Upgrade").encode())
    status, _, _ = await head(reader)
    writer.close()
    assert status == 101


async def test_upgrade_with_too_many_headers_is_closed_without_an_answer(house: House) -> None:
    reader, writer = await house.raw()
    fillers = "".join(f"X-Filler-{number}: {'x' * 1000}\r\n" for number in range(25))
    writer.write(UPGRADE.replace("\r\n\r\n", f"\r\n{fillers}\r\n").encode())
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    assert house.requests == []
    writer.close()


# --- Plain HTTP beside it --------------------------------------------------------------------------


async def test_plain_http_is_answered_beside_an_open_socket(house: House) -> None:
    async with connect(house.url) as client:
        assert await asyncio.to_thread(get, house.port) == "GET"
        assert await client.recv() == "hello"


def get(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/healthz")
        return connection.getresponse().read().decode()


async def test_connection_that_was_kept_alive_may_be_upgraded(house: House) -> None:
    reader, writer = await house.raw()
    for _ in range(2):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, headers, _ = await head(reader)
        assert (status, await reader.readexactly(int(headers["content-length"]))) == (200, b"GET")
    writer.write(UPGRADE.encode())
    assert (await head(reader))[0] == 101
    assert await reader.readexactly(7) == b"\x81\x05hello"
    writer.close()


async def test_request_without_upgrade_to_the_media_path_is_plain_http(house: House) -> None:
    reader, writer = await house.raw()
    writer.write(b"GET /media/ticket HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert (await head(reader))[0] == 405
    assert house.requests == []
    writer.close()


async def test_socket_outlives_the_http_server() -> None:
    """uvicorn closes what it knows with 1012 when it stops; a call is ended by us or not at all."""
    house = House()
    async with serving(house) as (server, running), connect(house.url) as client:
        assert await client.recv() == "hello"
        server.should_exit = True
        await running
        await client.send("still here")
        assert await client.recv() == "still here"


# --- The pinned package ----------------------------------------------------------------------------


def test_constructor_of_picows_protocol_has_the_expected_shape() -> None:
    """`WSProtocol` is not public and tells no signature. The source that its wheel ships does."""
    source = Path(picows.__file__).with_name("picows.pyx").read_text(encoding="utf-8")
    found = re.search(r"cdef class WSProtocol\(.*?def __init__\(self,(.*?)\):", source, re.DOTALL)
    assert found is not None
    assert [name.split()[-1] for name in found[1].split(",")] == [
        "host_port",
        "ws_path",
        "is_client_side",
        "ws_listener_factory",
        "logger",
        "disconnect_on_exception",
        "websocket_handshake_timeout",
        "enable_auto_ping",
        "auto_ping_idle_timeout",
        "auto_ping_reply_timeout",
        "auto_ping_strategy",
        "enable_auto_pong",
        "max_frame_size",
        "extra_headers",
        "read_buffer_init_size",
    ]


@pytest.mark.parametrize("count", [14, 16])
async def test_picows_protocol_takes_as_many_arguments_as_the_hand_over_gives_it(count: int) -> None:
    with pytest.raises(TypeError, match="exactly 15 positional arguments"):
        WSProtocol(*[None] * count)


async def test_frame_over_the_limit_ends_the_connection(house: House) -> None:
    async with connect(house.url) as client:
        await client.recv()
        await client.send(bytes(MAX_FRAME_BYTES + 1))
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_closed_socket_is_closed_for_the_client_too(house: House) -> None:
    async with connect(house.url) as client:
        await client.recv()
        await client.close(4000)
        await house.owners[0].until("lost", 4000)
        with pytest.raises(ConnectionClosed):
            await client.recv()
