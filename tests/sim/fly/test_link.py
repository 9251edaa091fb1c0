"""A connection to somewhere far: late, in order, held and reset."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from app.sim.fly.link import Link

pytestmark = pytest.mark.anyio

DELAY_S = 0.05


@dataclass
class Ends:
    """This end, which is `DELAY_S` away from the other, an ordinary stream."""

    link: Link
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@contextlib.asynccontextmanager
async def connected(delay_s: float = 0) -> AsyncIterator[Ends]:
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accepted.put((reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        _, link = await loop.create_connection(
            lambda: Link("the other end", delay_s, lambda _: None), "127.0.0.1", port
        )
        reader, writer = await accepted.get()
        try:
            yield Ends(link, reader, writer)
        finally:
            server.close()
            link.destroy()
            writer.close()
            await link.gone


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_bytes_arrive_late_and_in_order_in_both_directions() -> None:
    async with connected(DELAY_S) as ends:
        begun = now()
        for number in range(200):
            ends.link.write(b"%d," % number)
        expected = b"".join(b"%d," % number for number in range(200))
        assert await ends.reader.readexactly(len(expected)) == expected
        assert now() - begun >= DELAY_S
        begun = now()
        ends.writer.write(b"back")
        assert await ends.link.read() == b"back"
        assert now() - begun >= DELAY_S


async def test_delay_does_not_add_up_over_many_writes() -> None:
    async with connected(DELAY_S) as ends:
        begun = now()
        for _ in range(100):
            ends.link.write(b"x" * 10_000)
            await ends.link.drain()
        await ends.reader.readexactly(1_000_000)
        assert now() - begun < 100 * DELAY_S


async def test_end_and_close_arrive_after_the_bytes() -> None:
    async with connected(DELAY_S) as ends:
        begun = now()
        ends.link.write(b"last")
        ends.link.write_eof()
        ends.writer.write(b"answer")
        ends.writer.write_eof()
        assert await ends.reader.read() == b"last"
        assert now() - begun >= DELAY_S
        assert [await ends.link.read(), await ends.link.read()] == [b"answer", b""]
        ends.link.close()
        await ends.link.gone


async def test_travelled_bytes_arrive_before_those_that_have_the_way_before_them() -> None:
    async with connected(3600) as ends:
        ends.link.write(b"request", travelled=True)
        assert await ends.reader.readexactly(7) == b"request"


async def test_reset_is_a_reset_for_the_other_end() -> None:
    async with connected(DELAY_S) as ends:
        begun = now()
        ends.link.write(b"x")
        ends.link.reset()
        with pytest.raises(ConnectionResetError):
            await ends.reader.read()
        assert now() - begun >= DELAY_S


async def test_reset_of_the_other_end_comes_after_its_bytes() -> None:
    async with connected(DELAY_S) as ends:
        ends.writer.write(b"x")
        assert await ends.link.read() == b"x"
        begun = now()
        ends.writer.transport.abort()
        ends.link.break_far_end()
        with pytest.raises(ConnectionResetError, match="the other end was killed"):
            await ends.link.read()
        assert now() - begun >= DELAY_S
        assert ends.link.broken
        with pytest.raises(ConnectionResetError):
            await ends.link.drain()


async def test_held_link_lets_nothing_through_and_loses_nothing() -> None:
    async with connected() as ends:
        ends.link.hold(held=True)
        ends.link.write(b"out")
        ends.writer.write(b"in")
        draining = asyncio.create_task(ends.link.drain())
        reading = asyncio.create_task(ends.link.read())
        arriving = asyncio.create_task(ends.reader.readexactly(3))
        done, _ = await asyncio.wait({draining, reading, arriving}, timeout=0.05)
        assert done == set()
        ends.link.hold(held=False)
        assert (await arriving, await reading) == (b"out", b"in")
        await draining


async def test_hang_ends_when_the_other_end_dies() -> None:
    async with connected() as ends:
        ends.link.hold(held=True)
        ends.link.break_far_end()
        with pytest.raises(ConnectionResetError):
            await ends.link.read()


async def test_reader_that_does_not_read_is_felt_by_the_writer() -> None:
    async with connected() as ends:
        ends.writer.write(b"x" * 30_000_000)
        draining = asyncio.create_task(ends.writer.drain())
        await asyncio.wait({draining}, timeout=0.05)
        assert not draining.done()
        assert ends.link.unread_bytes < 1_000_000
        received = 0
        while received < 30_000_000:
            received += len(await ends.link.read())
        await draining


async def test_writer_waits_for_an_end_that_does_not_read() -> None:
    async with connected() as ends:
        ends.link.write(b"x" * 30_000_000)
        draining = asyncio.create_task(ends.link.drain())
        await asyncio.wait({draining}, timeout=0.05)
        assert not draining.done()
        await ends.reader.readexactly(30_000_000)
        await draining
