"""Ports that stay ours: other processes take and leave ports of this machine all the time."""

import asyncio
import errno
import os
import socket
import sys

import pytest

from app.sim.slow_link import SlowLink
from app.world import process
from app.world.process import HELD_MAX, free_port

pytestmark = pytest.mark.anyio


def taken(port: int) -> bool:
    """True when somebody who comes along cannot have it."""
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="nobody can listen on a held port elsewhere")
async def test_free_port_is_held_refuses_and_may_be_listened_on_again_and_again() -> None:
    port = free_port()
    for _ in range(2):
        assert taken(port)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()


def test_no_more_ports_are_held_than_there_are_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "held", held := type(process.held)())
    ports = {free_port() for _ in range(HELD_MAX + 1)}
    assert len(held) <= HELD_MAX
    assert len(ports) >= HELD_MAX
    for each in held:
        os.close(each)


async def test_link_that_is_broken_off_refuses_keeps_its_port_and_is_mended() -> None:
    async with (
        await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as far,
        SlowLink(far.sockets[0].getsockname()[1], delay_ms=0) as link,
    ):
        await link.break_off()
        assert taken(link.port)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", link.port)
        await link.mend()
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
