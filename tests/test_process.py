"""What concerns the process: the listening socket and stop signals."""

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack

import pytest

from app.process import StartError, bind, stop_signal, url_of


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
def test_unknown_host_is_one_clear_line(host: str) -> None:
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
        assert url_of(listener) == f"http://{shown}:{port}"


def test_all_addresses_are_those_of_both_families() -> None:
    with bind("::", 0) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()


@pytest.mark.anyio
async def test_second_signal_has_the_default_effect() -> None:
    async with AsyncExitStack() as stack:
        stop = stop_signal(stack)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await stop.wait()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
