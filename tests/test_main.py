"""A server put together, started, stopped, and refused what it needs. In process, on free ports."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.backends.table import Backend, BackendEntry
from app.call.plan import Plan
from app.config import LedgerSettings, PrimarySettings, Settings
from app.main import Running, running, serve
from app.process import StartError, bind
from app.regions.zones import ZoneRule, shipped_zones
from app.sim.phone.events import EndReason
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.storage.errors import StorageError
from app.world.process import free_port
from tests.waiting import LAG_UNLIMITED_S, a_moment

pytestmark = pytest.mark.anyio

PUBLIC = {"status": "ok", "region": "fra", "test_numbers": ["test:eu", "test:global"]}
"""The public answer of /healthz."""

TOKEN = "0123456789abcdef0123456789abcdef"
ADMIN_TOKEN = "a" * 32
OPERATOR = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


NOWHERE = PrimarySettings("http://127.0.0.1:9", lambda: "token")


def settings(data_dir: Path, port: int = 8080) -> Settings:
    return Settings(
        lag_max_s=LAG_UNLIMITED_S,
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
        details = (await client.get("/healthz", headers=OPERATOR)).json()
        assert details.pop("loop_lag_ms") >= 0
        assert details == {
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


async def test_health_names_test_numbers_of_zones_whose_calls_are_taken_here(tmp_path: Path) -> None:
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


async def ending_of_a_call(server: Running) -> EndReason | None:
    """Place a call that ends by itself."""
    public_url = settings(Path()).public_urls[0]
    account_sid = settings(Path()).account_sid
    options = PhoneOptions(
        f"{server.url}/twiml/voice", TOKEN, public_url=public_url, account_sid=account_sid, document_pace=0.0
    )
    async with Phone(options) as phone:
        await phone.dial()
        await phone.wait_for(lambda p: p.ended is not None)
        return phone.ended


@pytest.mark.parametrize("limit", [{"calls_max": 0}, {"setups_max": 0}])
async def test_call_without_room_hears_a_busy_tone(tmp_path: Path, limit: dict[str, int]) -> None:
    async with started(tmp_path, deployed=("fra",), **limit) as (server, _):
        assert await ending_of_a_call(server) is EndReason.REJECTED


@pytest.mark.long
async def test_server_whose_event_loop_is_late_takes_no_call_and_stays_routable(tmp_path: Path) -> None:
    async with started(tmp_path, deployed=("fra",), lag_max_s=0.0) as (server, client):
        while (health := await client.get("/healthz")).json().get("why") != "lagging":
            assert health.status_code == 200
            await a_moment()
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert await ending_of_a_call(server) is EndReason.REJECTED


async def test_broken_ledger_is_named_to_operators_without_its_error(tmp_path: Path) -> None:
    faults = dict.fromkeys(("eu", "global"), f"{tmp_path}: disk I/O error")
    async with started(tmp_path, ledger=LedgerSettings("fra", "machine-1", tmp_path, faults=faults)) as (
        _,
        client,
    ):
        public = {**PUBLIC, "status": "degraded", "why": "ledger"}
        assert (await client.get("/healthz")).json() == public
        details = await client.get("/healthz", headers=OPERATOR)
        assert details.json()["ledger"] == ["eu", "global"]
        assert str(tmp_path) not in details.text


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
    assert [record.getMessage() for record in caplog.records] == ["stream_refused"]


# --- It cannot start ---------------------------------------------------------------------------------


async def failed_start(data_dir: Path, error: type[Exception]) -> str:
    listener = bind("127.0.0.1", 0)
    before = asyncio.all_tasks()
    with pytest.raises(error) as failed:
        async with running(settings(data_dir), listener):
            raise AssertionError("it started")
    assert listener.fileno() == -1
    assert asyncio.all_tasks() == before
    return str(failed.value)


async def test_data_directory_that_is_a_file_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("", encoding="utf-8")
    text = await failed_start(tmp_path / "data", StorageError)
    assert text == f"Cannot use {tmp_path / 'data'} (NEARCALL_DATA_DIR): it is not a directory."


async def test_data_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    text = await failed_start(tmp_path / "file" / "data", StorageError)
    assert text == f"Cannot use {tmp_path / 'file' / 'data'} (NEARCALL_DATA_DIR): Not a directory."


async def test_disk_that_takes_no_record_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
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
    handler = _OnLine("server_started", up.set)
    with handler.attached():
        serving = asyncio.create_task(serve(settings(tmp_path, free_port()), "127.0.0.1"))
        async with asyncio.timeout(10):
            await up.wait()
            os.kill(os.getpid(), number)
            await serving
    assert [record.getMessage() for record in caplog.records if record.name == "nearcall.main"][
        -1
    ] == "server_stopping"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
