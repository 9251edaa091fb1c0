"""Dialling a backend that is not there, does not answer, refuses, is not who it says, or is given up on."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from app.backends import dial as backend_module
from app.backends.dial import DialError, dial, dial_for_call
from app.bridge import link as link_module
from app.bridge.link import Link
from app.call.ending import EndReason
from app.call.events import Side
from app.call.failure import BackendFailure, Remedy, Scope
from app.wire.dialect import Address, NoKey, bearer
from app.wire.openai import OpenAIRealtime
from tests.bridge.pauses import stand_still
from tests.bridge.peers import FRAME_MAX, LOOPS, MESSAGE_MAX, TEXT, Owner, RawPeer, RawServer

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parent.parent / "vectors" / "tls"

WRONG_ACCEPT = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n"
)

KEY = "sk-not-to-be-seen"


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


def certified(name: str) -> ssl.SSLContext:
    """A server's side of TLS, with one of our test certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{name}.pem", TLS / f"{name}.key")
    return context


@pytest.fixture
def our_ca(monkeypatch: pytest.MonkeyPatch) -> None:
    trust = ssl.create_default_context(cafile=TLS / "ca.pem")
    monkeypatch.setattr(backend_module, "system_trust", lambda: trust)


class Dialled:
    """A link and who it reports to."""

    def __init__(self) -> None:
        self.owner = Owner()
        self.link = Link(Side.BACKEND, self.owner, MESSAGE_MAX)

    async def to(self, url: str) -> None:
        async with asyncio.timeout(10):
            await dial(Address(url, {"Authorization": f"Bearer {KEY}"}), self.link, FRAME_MAX)

    async def refused(self, url: str) -> str:
        """Dial, fail, and return what the operator reads."""
        return (await self.failed(url)).text

    async def failed(self, url: str) -> BackendFailure:
        """Dial, fail, and return by what."""
        with pytest.raises(DialError) as failed:
            await self.to(url)
        assert self.owner.told == []
        assert KEY not in str(failed.value)
        failure = failed.value.failure
        assert str(failed.value) == failure.text
        assert failure.reason is EndReason.BACKEND_UNREACHABLE
        return failure


async def answering(server: RawServer, answer: bytes) -> RawPeer:
    peer = await server.peer()
    await peer.request()
    peer.writer.write(answer)
    return peer


# --- It works --------------------------------------------------------------------------------------


async def test_dialled_link_is_up_and_carries_the_headers() -> None:
    dialled = Dialled()
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        dialling = tasks.create_task(dialled.to(f"ws://127.0.0.1:{server.port}/v1/realtime?model=a%20b"))
        peer = await server.peer()
        headers = await peer.accept()
        await dialling
        assert dialled.owner.told == [("up",)]
        assert headers["authorization"] == f"Bearer {KEY}"
        assert "openai-beta" not in headers
        dialled.link.send(b"hello")
        assert await peer.receive() == (TEXT, b"hello")


async def test_message_in_the_same_segment_as_the_101_is_told() -> None:
    dialled = Dialled()
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        tasks.create_task(dialled.to(f"ws://127.0.0.1:{server.port}/"))
        peer = await server.peer()
        await peer.accept()
        peer.send(TEXT, b"session.created")
        await dialled.owner.until("message", b"session.created")


async def test_certificate_of_a_trusted_ca_for_this_name_is_accepted(our_ca: None) -> None:
    dialled = Dialled()
    async with RawServer(certified("localhost")) as server, asyncio.TaskGroup() as tasks:
        dialling = tasks.create_task(dialled.to(f"wss://localhost:{server.port}/"))
        peer = await server.peer()
        await peer.accept()
        await dialling
        dialled.link.send(b"hello")
        assert await peer.receive() == (TEXT, b"hello")
        dialled.link.close()
        assert (await peer.receive())[1] == b"\x03\xe8"
        peer.writer.close()
        await dialled.owner.until_lost()


# --- It does not -----------------------------------------------------------------------------------


async def test_refused_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert "127.0.0.1" in await Dialled().refused(f"ws://127.0.0.1:{port}/")


async def test_unknown_name_is_told() -> None:
    assert "not known" in await Dialled().refused("ws://nowhere.invalid/")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("401 Unauthorized", "the key was refused (HTTP 401)"),
        ("429 Too Many Requests", "over its quota (HTTP 429)"),
        ("500 Internal Server Error", "it is out of order, or what is in front of it (HTTP 500)"),
        ("404 Not Found", "the upgrade was refused (HTTP 404)"),
        ("301 Moved Permanently\r\nLocation: ws://127.0.0.1/", "the upgrade was refused (HTTP 301)"),
        ("200 OK", "the upgrade was refused (HTTP 200)"),
    ],
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_http_status_instead_of_101_is_told(status: str, text: str, version: str) -> None:
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        answer = f"HTTP/{version} {status}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        tasks.create_task(answering(server, answer))
        assert await Dialled().refused(f"ws://127.0.0.1:{server.port}/") == text


@pytest.mark.parametrize(
    ("status", "scope", "fatal", "remedy"),
    [
        (400, Scope.MODEL, True, Remedy.ADDRESS_OR_MODEL),
        (401, Scope.BACKEND, True, Remedy.KEY),
        (403, Scope.BACKEND, True, Remedy.KEY),
        (404, Scope.MODEL, True, Remedy.ADDRESS_OR_MODEL),
        (429, Scope.BACKEND, False, Remedy.RATE_LIMIT),
        (302, Scope.BACKEND, False, Remedy.NOTHING),
        (502, Scope.BACKEND, False, Remedy.SERVER),
    ],
)
async def test_http_status_says_which_other_calls_will_meet_it(
    status: int, scope: Scope, fatal: bool, remedy: Remedy
) -> None:
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        tasks.create_task(answering(server, f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()))
        failure = await Dialled().failed(f"ws://127.0.0.1:{server.port}/")
    assert (failure.code, failure.scope, failure.fatal, failure.remedy) == (f"http_{status}", scope, fatal, remedy)


@pytest.mark.parametrize(
    ("header", "retry_after_s"),
    [
        ("Retry-After: 7", 7.0),
        ("retry-after:20", 20.0),
        ("Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Retry-After: soon", None),
        ("Retry-After: -1", None),
        ("X-Other: 7", None),
    ],
)
async def test_refusal_says_how_long_it_asks_us_to_wait(header: str, retry_after_s: float | None) -> None:
    answer = f"HTTP/1.1 429 Too Many Requests\r\n{header}\r\nContent-Length: 0\r\n\r\n"
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        tasks.create_task(answering(server, answer.encode()))
        failure = await Dialled().failed(f"ws://127.0.0.1:{server.port}/")
    assert (failure.code, failure.retry_after_s) == ("http_429", retry_after_s)


async def test_call_that_dials_is_told_why_it_was_refused_and_nothing_is_raised() -> None:
    def no_key() -> str:
        raise NoKey("no token")

    def dialect(url: str, key: Callable[[], str]) -> OpenAIRealtime:
        return OpenAIRealtime(url, bearer(key))

    dialled = Dialled()
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        url = f"http://127.0.0.1:{server.port}/v1"
        without = await dial_for_call(dialect(url, no_key), "m", dialled.link)
        assert without is not None
        assert (without.code, without.text, without.remedy) == ("no_key", "no token", Remedy.MISSING_KEY)
        tasks.create_task(answering(server, b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"))
        refused = await dial_for_call(dialect(url, lambda: KEY), "m", dialled.link)
        assert refused is not None
        assert (refused.text, refused.fatal) == ("access was refused (HTTP 403)", True)


async def test_call_whose_backend_is_reached_has_no_failure() -> None:
    dialled = Dialled()
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        dialect = OpenAIRealtime(f"http://127.0.0.1:{server.port}/v1", bearer(lambda: KEY))
        dialling = tasks.create_task(dial_for_call(dialect, "m", dialled.link))
        await (await server.peer()).accept()
        assert await dialling is None


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        WRONG_ACCEPT,
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.0 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 999 Whatever\r\n\r\n",
        b"x" * 20_000,
    ],
    ids=["ssh", "wrong accept", "no status", "101 of HTTP/1.0", "no such status", "endless header"],
)
async def test_answer_that_is_no_upgrade_is_told(answer: bytes) -> None:
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        tasks.create_task(answering(server, answer))
        assert await Dialled().refused(f"ws://127.0.0.1:{server.port}/") == "it is no WebSocket server"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Swit"])
async def test_connection_closed_instead_of_an_answer_is_told(answer: bytes) -> None:
    """To picows this is a success: its `ws_connect` returns a connection without a listener."""
    async with RawServer() as server, asyncio.TaskGroup() as tasks:

        async def hang_up() -> None:
            (await answering(server, answer)).writer.close()

        tasks.create_task(hang_up())
        why = await Dialled().refused(f"ws://127.0.0.1:{server.port}/")
    assert why == "it closed the connection instead of answering"


@pytest.mark.parametrize("url", ["ws://127.0.0.1:99999/", f"ws://{'a' * 64}.example/"])
async def test_url_that_nobody_can_dial_is_told(url: str) -> None:
    await Dialled().refused(url)


@pytest.mark.parametrize("name", ["localhost", "self"])
async def test_certificate_that_nobody_trusts_is_refused_in_words(name: str) -> None:
    async with RawServer(certified(name)) as server:
        why = await Dialled().refused(f"wss://localhost:{server.port}/")
    assert why.startswith("its certificate is not trusted: ")


async def test_certificate_for_another_name_is_refused_in_words(our_ca: None) -> None:
    async with RawServer(certified("elsewhere")) as server:
        why = await Dialled().refused(f"wss://localhost:{server.port}/")
    assert why == "its certificate is not trusted: hostname mismatch"


async def test_server_without_tls_is_refused_in_words(our_ca: None) -> None:
    async with RawServer() as server, asyncio.TaskGroup() as tasks:

        async def talk_plain() -> None:
            (await server.peer()).writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        tasks.create_task(talk_plain())
        assert await Dialled().refused(f"wss://localhost:{server.port}/")


# --- It takes too long, or is given up -------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_peer_that_accepts_and_never_answers_is_told_after_the_limit(
    scheme: str, monkeypatch: pytest.MonkeyPatch, our_ca: None
) -> None:
    monkeypatch.setattr(backend_module, "DIAL_LIMIT_S", 0.05)
    async with RawServer() as server:
        assert await Dialled().refused(f"{scheme}://localhost:{server.port}/") == "no answer within 0.05 s"


async def test_peer_that_never_answers_is_left_at_once_when_the_limit_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_module, "DIAL_LIMIT_S", 0.05)
    async with RawServer() as server:
        await Dialled().refused(f"ws://127.0.0.1:{server.port}/")
        peer = await server.peer()
        await peer.request()
        async with asyncio.timeout(1):
            await peer.gone()


async def test_standstill_of_this_process_is_not_held_against_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer comes before what the peer sent meanwhile is read."""
    monkeypatch.setattr(backend_module, "DIAL_LIMIT_S", 0.2)
    monkeypatch.setattr(backend_module, "STANDSTILL_S", 0.05)
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        dialled = Dialled()
        tasks.create_task(dialled.to(f"ws://127.0.0.1:{server.port}/"))
        peer = await server.peer()
        stand_still(0.4)
        await peer.accept()
        await dialled.owner.until("up")


async def test_peer_that_never_answers_is_told_though_this_process_stood_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_module, "DIAL_LIMIT_S", 0.05)
    monkeypatch.setattr(backend_module, "STANDSTILL_S", 0.05)
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        refusal = tasks.create_task(Dialled().refused(f"ws://127.0.0.1:{server.port}/"))
        await server.peer()
        stand_still(0.2)
        assert await refusal == "no answer within 0.05 s"


async def given_up(dialled: Dialled, dialling: "asyncio.Task[None]") -> None:
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    dialled.link.close()


async def test_dial_cancelled_before_the_101_leaves_no_socket() -> None:
    dialled = Dialled()
    async with RawServer() as server:
        dialling = asyncio.create_task(dialled.to(f"ws://127.0.0.1:{server.port}/"))
        peer = await server.peer()
        await peer.request()
        await given_up(dialled, dialling)
        async with asyncio.timeout(1):
            await peer.gone()
    assert dialled.owner.told == []


async def test_dial_cancelled_within_the_tls_handshake_leaves_no_socket(our_ca: None) -> None:
    dialled = Dialled()
    async with RawServer() as server:
        dialling = asyncio.create_task(dialled.to(f"wss://localhost:{server.port}/"))
        peer = await server.peer()
        assert (await peer.reader.readexactly(1)) == b"\x16"  # the ClientHello is there
        await given_up(dialled, dialling)
        async with asyncio.timeout(1):
            await peer.gone()
    assert dialled.owner.told == []


async def test_dial_cancelled_before_it_began_leaves_no_socket() -> None:
    dialled = Dialled()
    async with RawServer() as server:
        dialling = asyncio.create_task(dialled.to(f"ws://127.0.0.1:{server.port}/"))
        await given_up(dialled, dialling)
    assert dialled.owner.told == []


async def test_dial_cancelled_while_the_name_is_looked_up_returns_at_once() -> None:
    dialled = Dialled()
    dialling = asyncio.create_task(dialled.to("ws://nowhere.invalid/"))
    await asyncio.sleep(0)
    await given_up(dialled, dialling)
    assert dialled.owner.told == []


async def test_101_that_comes_after_the_call_gave_up_opens_nothing() -> None:
    dialled = Dialled()
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        dialling = tasks.create_task(dialled.to(f"ws://127.0.0.1:{server.port}/"))
        peer = await server.peer()
        dialled.link.close()
        await peer.accept()
        await dialling
        await peer.gone()
        await dialled.owner.until_lost()
    assert [told[0] for told in dialled.owner.told] == ["lost"]


async def test_frames_of_a_backend_have_a_bound() -> None:
    dialled = Dialled()
    async with RawServer() as server, asyncio.TaskGroup() as tasks:
        dialling = tasks.create_task(dialled.to(f"ws://127.0.0.1:{server.port}/"))
        peer = await server.peer()
        await peer.accept()
        await dialling
        peer.send(TEXT, bytes(FRAME_MAX + 1))
        assert (await peer.receive())[1][:2] == b"\x03\xf1"
        peer.writer.close()
        await dialled.owner.until_lost()


async def test_tls_peer_that_stops_reading_is_told_as_slow_and_cut_off(
    our_ca: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "SLOW_PEER_S", 0.01)
    monkeypatch.setattr(link_module, "CLOSE_WAIT_S", 0.01)
    dialled = Dialled()
    async with RawServer(certified("localhost")) as server, asyncio.TaskGroup() as tasks:
        dialling = tasks.create_task(dialled.to(f"wss://localhost:{server.port}/"))
        await (await server.peer()).accept()
        await dialling
        for _ in range(20_000):
            dialled.link.send(bytes(900))
        await dialled.owner.until("slow")
        dialled.link.close()
        await dialled.owner.until_lost()
    assert [told[0] for told in dialled.owner.told] == ["up", "slow", "lost"]
