"""A server put together, started, stopped, and refused what it needs. In process, on free ports."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Never

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app import main as main_module
from app.backends.table import Backend, BackendEntry
from app.bridge.ticket import Ticket
from app.call.plan import Plan
from app.config import LedgerSettings, PrimarySettings, Settings
from app.ledger.local import LocalLedger
from app.main import Running, StartError, bind, running, serve, stop_signal
from app.regions.zones import ZoneRule, shipped_zones
from app.storage.errors import StorageError
from app.world.process import free_port
from twiml.gate import Admission

pytestmark = pytest.mark.anyio

PUBLIC = {"status": "ok", "region": "fra", "test_numbers": ["test:eu", "test:global"]}
"""What /healthz tells everybody."""

TOKEN = "0123456789abcdef0123456789abcdef"
ADMIN_TOKEN = "a" * 32
OPERATOR = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


NOWHERE = PrimarySettings("http://127.0.0.1:9", lambda: "token")


def settings(data_dir: Path, port: int = 8080) -> Settings:
    return Settings(
        public_urls=(f"http://127.0.0.1:{port}",),
        secret="s" * 40,
        account_sid="AC" + "0" * 32,
        twilio_tokens={"us1": TOKEN},
        backends=(),
        ledger=LedgerSettings("fra", "machine-1", data_dir),
        port=port,
        plan=Plan(),
        admin_token=ADMIN_TOKEN,
        practice=True,
    )


@asynccontextmanager
async def started(data_dir: Path, **changes: Any) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A server, and a client that knows where it is."""
    async with (
        asyncio.timeout(20),
        running(replace(settings(data_dir), **changes), bind("127.0.0.1", 0)) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
    ):
        yield server, client


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def one(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A server for the tests that only ask it something."""
    async with (
        running(settings(tmp_path_factory.mktemp("one")), bind("127.0.0.1", 0)) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as client,
    ):
        yield client


# --- It runs -----------------------------------------------------------------------------------------


async def test_started_server_is_healthy_and_says_where_it_is(tmp_path: Path) -> None:
    async with started(tmp_path) as (server, client):
        health = await client.get("/healthz")
        assert (health.status_code, health.json()) == (200, PUBLIC)
        assert (await client.get("/healthz", headers=OPERATOR)).json() == {
            **PUBLIC,
            "calls": {"expected": 0, "live": 0},
            "ledger_depth": 0,
            "decisions": {},
            "connections": {"open": 1, "closed": {}},
            "backends": {"practice": "untried"},
        }
        assert server.backends == ("practice",)
        assert server.zones == ("eu", "global")
        assert (tmp_path / "ledger.db").is_file()


@pytest.mark.parametrize(
    ("region", "promises", "primaries", "zones"),
    [
        ("fra", {"eu"}, {}, ("eu", "global")),
        pytest.param("fra", set(), {}, ("global",), id="no backend"),
        pytest.param("fra", {"eu"}, {"global": NOWHERE}, ("global",), id="no database"),
        pytest.param("iad", {"eu"}, {}, ("global",), id="abroad"),
    ],
)
async def test_started_server_names_the_zones_whose_calls_it_takes(
    tmp_path: Path, region: str, promises: set[str], primaries: dict[str, PrimarySettings], zones: tuple[str, ...]
) -> None:
    entry = BackendEntry("one", "openai", "http://127.0.0.1:9/v1", "KEY", frozenset(promises))
    ledger = LedgerSettings(region, "machine-1", tmp_path, primaries)
    given = replace(settings(tmp_path), backends=(Backend(entry, "key"),), practice=False, ledger=ledger)
    async with running(given, bind("127.0.0.1", 0)) as server:
        assert server.zones == zones


async def test_stopped_server_leaves_no_task_and_no_socket(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with started(tmp_path) as (server, _):
        port = int(server.url.rpartition(":")[2])
    assert asyncio.all_tasks() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


async def test_server_can_be_started_again_on_what_it_left(tmp_path: Path) -> None:
    for _ in range(2):
        async with started(tmp_path) as (_, client):
            assert (await client.get("/livez")).status_code == 200


async def test_data_directory_is_made(tmp_path: Path) -> None:
    async with started(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / "ledger.db").is_file()


async def test_health_names_the_test_numbers_of_the_zones_whose_calls_are_taken_here(tmp_path: Path) -> None:
    """A strict zone would refuse a test call, which comes in by another edge or Twilio region."""
    zones = {**shipped_zones(), "swiss": ZoneRule("swiss", frozenset({"fra"}), None, "TURSO_CH", "ie1")}
    for region, numbers in (("fra", ["test:eu", "test:global"]), ("iad", ["test:global"])):
        ledger = LedgerSettings(region, "machine-1", tmp_path / region)
        async with started(tmp_path, zones=zones, ledger=ledger) as (_, client):
            assert (await client.get("/healthz")).json()["test_numbers"] == numbers


async def test_full_server_stays_routable(tmp_path: Path) -> None:
    """It has callbacks of its own calls to answer, and sends new calls on itself."""
    async with started(tmp_path, calls_max=0) as (_, client):
        health = await client.get("/healthz")
        assert (health.status_code, health.json()["status"], health.json()["why"]) == (200, "degraded", "full")


async def test_broken_ledger_is_named_to_the_operator_and_its_words_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalLedger, "healthy", False)
    monkeypatch.setattr(LocalLedger, "last_error", f"{tmp_path}: disk I/O error")
    async with started(tmp_path) as (_, client):
        public = {**PUBLIC, "status": "degraded", "why": "ledger"}
        assert (await client.get("/healthz")).json() == public
        told = await client.get("/healthz", headers=OPERATOR)
        assert told.json()["ledger"] == ["eu", "global"]
        assert str(tmp_path) not in told.text


async def test_draining_server_is_down_for_new_calls(tmp_path: Path) -> None:
    async with started(tmp_path) as (server, client):
        await server.registry.drain(1.0)
        health = await client.get("/healthz")
        assert (health.status_code, health.json()["why"]) == (503, "draining")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/twiml/voice", 403),
        ("POST", "/twiml/voice/", 404),  # a redirect would change the URL that Twilio signed
        ("GET", "/twiml/voice", 405),
        ("POST", "/twiml/after", 403),
        ("GET", "/media/ticket", 404),
        ("GET", "/", 404),
        ("POST", "/healthz", 405),
    ],
)
async def test_stranger_gets_a_status_and_nothing_else(
    one: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await one.request(method, path)
    assert answer.status_code == status
    assert "server" not in answer.headers
    assert answer.headers["Nearcall-Region"] == "fra"


@pytest.mark.parametrize(("path", "status"), [("/media/forged", 403), ("/media/", 404), ("/elsewhere", 404)])
async def test_stream_of_a_stranger_is_refused_and_logged(
    one: httpx.AsyncClient, path: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    base = str(one.base_url).replace("http", "ws").rstrip("/")
    with caplog.at_level(logging.WARNING, "nearcall"), pytest.raises(InvalidStatus) as refused:
        await connect(base + path)
    assert refused.value.response.status_code == status
    assert refused.value.response.body == b""
    assert refused.value.response.headers["Nearcall-Region"] == "fra"
    assert [record.getMessage() for record in caplog.records] == ["stream refused"]


# --- It cannot start ---------------------------------------------------------------------------------


def test_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError) as failed:
            bind("127.0.0.1", port)
    assert str(failed.value) == (
        f"Cannot listen on 127.0.0.1, port {port}: Address already in use. Another program listens there, perhaps "
        "a nearcall that still runs: `ss -ltnp` names it. Stop it, or choose another port with --port or PORT."
    )


@pytest.mark.parametrize("host", ["nowhere.invalid", "256.1.1.1", "::zz"])
def test_host_that_is_none_is_one_clear_line(host: str) -> None:
    with pytest.raises(StartError) as failed:
        bind(host, 0)
    assert str(failed.value) == f"Cannot listen on {host}, port 0: no such address."


def test_host_of_another_machine_is_one_clear_line() -> None:
    with pytest.raises(StartError) as failed:
        bind("192.0.2.1", 0)
    assert str(failed.value) == "Cannot listen on 192.0.2.1, port 0: Cannot assign requested address."


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("::", "127.0.0.1")],
)
def test_url_is_one_that_can_be_clicked(host: str, shown: str) -> None:
    with bind(host, 0) as listener:
        port = listener.getsockname()[1]
        assert main_module._url_of(listener) == f"http://{shown}:{port}"


def test_all_addresses_are_those_of_both_families() -> None:
    with bind("::", 0) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()


async def failed_start(data_dir: Path, error: type[Exception]) -> str:
    listener = bind("127.0.0.1", 0)
    before = asyncio.all_tasks()
    with pytest.raises(error) as failed:
        async with running(settings(data_dir), listener):
            raise AssertionError("it started")
    assert listener.fileno() == -1
    assert asyncio.all_tasks() == before
    return str(failed.value)


async def test_data_directory_that_is_a_file_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("", encoding="utf-8")
    text = await failed_start(tmp_path / "data", StartError)
    assert text == f"Cannot use {tmp_path / 'data'} (NEARCALL_DATA_DIR): it is not a directory."


async def test_data_directory_that_cannot_be_made_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    text = await failed_start(tmp_path / "file" / "data", StartError)
    assert text == f"Cannot use {tmp_path / 'file' / 'data'} (NEARCALL_DATA_DIR): Not a directory."


async def test_disk_that_takes_no_record_at_all_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    (tmp_path / "global").write_text("", encoding="utf-8")
    assert await failed_start(tmp_path, StorageError) == f"cannot create {tmp_path / 'global'}: File exists"


# --- It stops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_the_server(
    tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nearcall")
    up = asyncio.Event()
    handler = _OnLine("nearcall is up", up.set)
    with handler.attached():
        serving = asyncio.create_task(serve(settings(tmp_path, free_port()), "127.0.0.1"))
        async with asyncio.timeout(10):
            await up.wait()
            os.kill(os.getpid(), number)
            await serving
    assert [record.getMessage() for record in caplog.records if record.name == "nearcall"][-1] == "stopping"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_second_signal_is_the_kernels() -> None:
    async with AsyncExitStack() as stack:
        stop = stop_signal(stack)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await stop.wait()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


async def test_http_server_that_breaks_stops_the_process_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main_loop(_server: Any) -> Never:
        raise RuntimeError("the loop of uvicorn broke")

    monkeypatch.setattr(uvicorn.Server, "main_loop", main_loop)
    with pytest.raises(StartError, match="stopped by itself"):
        async with asyncio.timeout(10):
            await serve(settings(tmp_path, free_port()), "127.0.0.1")
    assert "the loop of uvicorn broke" in caplog.text


class _OnLine(logging.Handler):
    """Does something when a line is logged."""

    def __init__(self, line: str, act: Any) -> None:
        super().__init__()
        self._line = line
        self._act = act

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == self._line:
            self._act()

    @contextlib.contextmanager
    def attached(self) -> Any:
        logger = logging.getLogger("nearcall")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)


def test_stream_that_nobody_may_have_is_logged_without_whose_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Its tenant may have moved to a zone whose calls must not be named in this region's log."""
    ticket = Ticket("CA" + "5" * 32, "acme", "eu", 0, "nonce")
    gate = SimpleNamespace(admit=lambda *_: Admission(ticket, "us1", "edge=fra"))
    refused: list[Ticket] = []
    registry = SimpleNamespace(answer=lambda *_: None, stream_refused=lambda ticket, _why: refused.append(ticket))
    policy = SimpleNamespace(refused=lambda _why: None)
    upgrade = main_module._upgrade(gate, registry, policy, "iad")  # type: ignore[arg-type]  # stand-ins
    request = SimpleNamespace(path=b"/media/ticket", headers={})
    with caplog.at_level(logging.INFO):
        assert upgrade(request).response.status == HTTPStatus.FORBIDDEN  # type: ignore[arg-type, union-attr]
    assert refused == [ticket]
    told = str([record.__dict__ for record in caplog.records])
    assert "stream refused" in told
    assert (ticket.call_sid in told, "acme" in told) == (False, False)
