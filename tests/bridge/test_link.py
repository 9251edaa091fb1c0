"""A link: whole messages up, bytes down, every end told once. Its other end is a raw peer or a fake transport."""

import asyncio
import gc
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from picows import WSMsgType
from picows.picows import _make_test_ws_frame

from app.bridge import link as link_module
from app.bridge.link import ABNORMAL, FRAME_BYTES, NO_CODE, PACES, TOO_LONG, WRITE_HIGH_BYTES, Link
from app.call.events import Side
from tests.bridge.pauses import stand_still
from tests.bridge.peers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FRAME_MAX,
    LOOPS,
    MESSAGE_MAX,
    PING,
    PONG,
    TEXT,
    FakeTransport,
    Owner,
    Told,
    frame,
    linked,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def up(transport: FakeTransport, clock: Callable[[], float] = time.monotonic) -> tuple[Link, Owner]:
    owner = Owner()
    link = Link(Side.PHONE, owner, MESSAGE_MAX, clock)
    link.on_ws_connected(transport)  # type: ignore[arg-type]
    return link, owner


def hear(link: Link, transport: FakeTransport, kind: WSMsgType, payload: bytes = b"", *, fin: bool = True) -> None:
    fake: Any = transport
    link.on_ws_frame(fake, _make_test_ws_frame(kind, payload, fin, False))


# --- Messages up -----------------------------------------------------------------------------------


async def test_messages_in_one_segment_are_told_once_each_and_in_order() -> None:
    async with linked() as (_, owner, peer):
        peer.writer.write(b"".join(frame(TEXT, b"%d" % n) for n in range(200)))
        await owner.until("message", b"199")
        assert owner.all("message") == [("message", b"%d" % n) for n in range(200)]


@pytest.mark.parametrize("cut", range(1, 12))
async def test_message_cut_by_the_network_anywhere_is_told_whole(cut: int) -> None:
    message = frame(TEXT, b"0123456789")
    async with linked() as (_, owner, peer):
        peer.writer.write(frame(PONG) + message[:cut])
        await owner.until("pong")
        peer.writer.write(message[cut:])
        await owner.until("message", b"0123456789")


async def test_fragments_are_told_as_one_message() -> None:
    async with linked() as (_, owner, peer):
        peer.send(TEXT, b"one ", fin=False)
        peer.send(CONTINUATION, b"", fin=False)
        peer.send(CONTINUATION, b"two", fin=True)
        peer.send(TEXT, b"three")
        await owner.until("message", b"three")
        assert owner.told == [("up",), ("message", b"one two"), ("message", b"three")]


async def test_ping_between_fragments_is_answered_and_does_not_split_the_message() -> None:
    async with linked() as (_, owner, peer):
        peer.send(TEXT, b"one ", fin=False)
        peer.send(PING, b"now")
        peer.send(CONTINUATION, b"two")
        assert await peer.receive() == (PONG, b"now")
        await owner.until("message", b"one two")


@pytest.mark.parametrize(
    "frames",
    [
        [(TEXT, MESSAGE_MAX + 1, True)],
        [(TEXT, MESSAGE_MAX, False), (CONTINUATION, 1, True)],
        [(TEXT, 1, False), (CONTINUATION, MESSAGE_MAX, True)],
        [(TEXT, MESSAGE_MAX + 1, False), (CONTINUATION, 0, True)],
        [(TEXT, 600, False), (CONTINUATION, 600, False), (CONTINUATION, 600, True)],
    ],
)
async def test_message_over_the_limit_is_reported_once_and_the_next_is_fine(
    frames: list[tuple[int, int, bool]],
) -> None:
    async with linked() as (_, owner, peer):
        peer.writer.write(b"".join(frame(kind, bytes(size), fin=fin) for kind, size, fin in frames))
        peer.send(TEXT, b"next")
        await owner.until("message", b"next")
        assert owner.told == [("up",), ("bad", "too long"), ("message", b"next")]


@pytest.mark.parametrize("frames", [[(TEXT, MESSAGE_MAX, True)], [(TEXT, 400, False), (CONTINUATION, 600, True)]])
async def test_message_as_long_as_the_limit_is_told(frames: list[tuple[int, int, bool]]) -> None:
    async with linked() as (_, owner, peer):
        peer.writer.write(b"".join(frame(kind, bytes(size), fin=fin) for kind, size, fin in frames))
        await owner.until("message", bytes(MESSAGE_MAX))


async def test_fragments_over_the_limit_are_not_kept() -> None:
    transport = FakeTransport()
    link, _ = up(transport)
    hear(link, transport, WSMsgType.TEXT, bytes(MESSAGE_MAX), fin=False)
    for _ in range(1_000):
        hear(link, transport, WSMsgType.CONTINUATION, bytes(MESSAGE_MAX), fin=False)
    assert link.gathered_bytes <= MESSAGE_MAX


# --- Too much of it --------------------------------------------------------------------------------


def flood(
    link: Link, owner: Owner, transport: FakeTransport, kind: WSMsgType, payload: bytes, bytes_at_most: int
) -> int:
    """Send frames until one is refused. Returns how many were not. No time should pass by the link's clock."""
    cost = len(payload) + FRAME_BYTES
    for number in range(bytes_at_most // cost + 2):
        hear(link, transport, kind, payload, fin=kind != WSMsgType.CONTINUATION)
        if ("bad", "too fast") in owner.told[-1:]:
            return number
    raise AssertionError("all were taken")


@pytest.mark.parametrize("payload", [b"", b"x" * 370, b"x" * MESSAGE_MAX])
@pytest.mark.parametrize("kind", [WSMsgType.TEXT, WSMsgType.CONTINUATION, WSMsgType.PONG, WSMsgType.PING])
async def test_peer_that_sends_without_end_is_refused_by_what_its_frames_cost(
    kind: WSMsgType, payload: bytes
) -> None:
    transport = FakeTransport()
    link, owner = up(transport, Clock())
    if kind == WSMsgType.CONTINUATION:
        hear(link, transport, WSMsgType.TEXT, b"", fin=False)
    pace = PACES[Side.PHONE]
    taken = flood(link, owner, transport, kind, payload, 2 * pace.burst_bytes)
    assert taken == pytest.approx(pace.burst_bytes / (len(payload) + FRAME_BYTES), rel=0.2)


async def test_two_minutes_of_frames_that_waited_are_not_too_fast() -> None:
    transport = FakeTransport()
    link, owner = up(transport)
    for _ in range(6_000):
        hear(link, transport, WSMsgType.TEXT, b"x" * 400)
    assert not owner.all("bad")


async def test_peer_that_slows_down_is_heard_again() -> None:
    transport = FakeTransport()
    clock = Clock()
    link, owner = up(transport, clock)
    flood(link, owner, transport, WSMsgType.TEXT, b"x" * 370, 2 * PACES[Side.PHONE].burst_bytes)
    clock.now += 1.0
    owner.told.clear()
    hear(link, transport, WSMsgType.TEXT, b"words")
    assert owner.told == [("message", b"words")]


async def test_peer_that_was_too_fast_may_still_close() -> None:
    transport = FakeTransport()
    link, owner = up(transport, Clock())
    flood(link, owner, transport, WSMsgType.TEXT, b"x" * 370, 2 * PACES[Side.PHONE].burst_bytes)
    hear(link, transport, WSMsgType.CLOSE, struct.pack(">H", 1000))
    assert transport.done[-1] == ("disconnect", "politely")


async def test_peer_that_floods_on_while_the_link_closes_is_cut_off() -> None:
    transport = FakeTransport()
    link, owner = up(transport, Clock())
    flood(link, owner, transport, WSMsgType.TEXT, b"x" * 370, 2 * PACES[Side.PHONE].burst_bytes)
    link.close()
    told = list(owner.told)
    hear(link, transport, WSMsgType.TEXT, b"x" * 370)
    assert transport.done[-1] == ("disconnect", "by force")
    assert owner.told == told


async def test_fragments_of_two_bytes_take_two_bytes_each() -> None:
    transport = FakeTransport()
    link, _ = up(transport)
    hear(link, transport, WSMsgType.TEXT, b"{}", fin=False)
    for _ in range(400):
        hear(link, transport, WSMsgType.CONTINUATION, b"{}", fin=False)
    assert link.gathered_bytes == 802


async def test_frame_over_the_protocol_limit_ends_the_connection() -> None:
    async with linked() as (_, owner, peer):
        peer.writer.write(b"\x81\x7e" + struct.pack(">H", FRAME_MAX + 1))
        kind, payload = await peer.receive()
        assert (kind, struct.unpack(">H", payload[:2])[0]) == (CLOSE, 1009)
        peer.writer.close()
        await owner.until_lost()
        assert owner.told == [("up",), ("lost", ABNORMAL, TOO_LONG)]
    gc.collect()  # an exception that picows kept for nobody would be complained of now, and fail this test


async def test_bug_of_the_owner_ends_the_connection_and_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(_side: Side, _message: object) -> None:
        raise RuntimeError("a bug")

    async with linked() as (_, owner, peer):
        monkeypatch.setattr(owner, "link_message", bug)
        peer.send(TEXT, b"words")
        await owner.until_lost()
        await until(lambda: "link_broke" in caplog.messages, 10)
    [told] = [record for record in caplog.records if record.getMessage() == "link_broke"]
    assert told.exc_info is not None
    assert isinstance(told.exc_info[1], RuntimeError)


async def test_binary_message_is_told_as_bad_and_the_next_is_fine() -> None:
    async with linked() as (_, owner, peer):
        peer.send(BINARY, b"\0\1")
        peer.send(TEXT, b"next")
        await owner.until("message", b"next")
        assert owner.told == [("up",), ("bad", "binary"), ("message", b"next")]


async def test_fragmented_binary_message_is_bad_once_and_its_rest_is_no_text() -> None:
    async with linked() as (_, owner, peer):
        peer.send(BINARY, b'{"event":', fin=False)
        peer.send(CONTINUATION, b'"stop"}')
        peer.send(TEXT, b"next")
        await owner.until("message", b"next")
        assert owner.told == [("up",), ("bad", "binary"), ("message", b"next")]


async def test_continuation_of_nothing_is_no_message() -> None:
    async with linked() as (_, owner, peer):
        peer.send(CONTINUATION, b"of nothing")
        peer.send(TEXT, b"next")
        await owner.until("message", b"next")
        assert owner.all("message") == [("message", b"next")]


async def test_new_message_in_the_middle_of_a_fragmented_one_replaces_it() -> None:
    async with linked() as (_, owner, peer):
        peer.send(TEXT, b"never ended", fin=False)
        peer.send(TEXT, b"next")
        await owner.until("message", b"next")
        assert owner.all("message") == [("message", b"next")]


@pytest.mark.parametrize("garbage", [b"\x83\x00", b"\x81\x80\0\0\0\0", b"\x09\x00", b"\x81\x7f" + b"\xff" * 8])
async def test_peer_that_breaks_the_protocol_is_closed_and_told_once(garbage: bytes) -> None:
    async with linked() as (_, owner, peer):
        peer.writer.write(garbage)
        assert (await peer.receive())[0] == CLOSE
        peer.writer.close()
        await owner.until_lost()
        assert owner.told == [("up",), ("lost", ABNORMAL)]


# --- Down ------------------------------------------------------------------------------------------


async def test_messages_are_sent_in_order_as_text() -> None:
    async with linked() as (link, _, peer):
        link.send(b"one")
        link.send(b"two")
        assert [await peer.receive(), await peer.receive()] == [(TEXT, b"one"), (TEXT, b"two")]


async def test_ping_is_sent_and_its_answer_told() -> None:
    async with linked() as (link, owner, peer):
        link.ping()
        assert (await peer.receive())[0] == PING
        peer.send(PONG)
        await owner.until("pong")


async def test_ping_of_the_peer_is_answered_and_not_told() -> None:
    async with linked() as (_, owner, peer):
        peer.send(PING, b"are you there")
        assert await peer.receive() == (PONG, b"are you there")
        assert owner.told == [("up",)]


async def test_sending_before_the_connection_and_after_its_end_goes_nowhere() -> None:
    transport = FakeTransport()
    owner = Owner()
    link = Link(Side.PHONE, owner, MESSAGE_MAX)
    link.send(b"early")
    link.ping()
    link.on_ws_connected(transport)  # type: ignore[arg-type]
    link.on_ws_disconnected(transport)  # type: ignore[arg-type]
    link.send(b"late")
    link.ping()
    assert transport.done == []


# --- Ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 3000, 4000, 4999])
async def test_close_code_of_the_peer_is_told_once_and_answered(code: int) -> None:
    async with linked() as (_, owner, peer):
        peer.send(CLOSE, struct.pack(">H", code) + b"because")
        assert (await peer.receive())[0] == CLOSE
        await peer.gone()
        await owner.until_lost()
        assert owner.told == [("up",), ("lost", code)]


async def test_close_without_a_code_is_told_as_such() -> None:
    async with linked() as (_, owner, peer):
        peer.send(CLOSE)
        await owner.until_lost()
        assert owner.told == [("up",), ("lost", NO_CODE)]


async def test_connection_reset_is_told_once_as_abnormal() -> None:
    async with linked() as (_, owner, peer):
        peer.writer.transport.abort()
        await owner.until_lost()
        assert owner.told == [("up",), ("lost", ABNORMAL)]


async def test_connection_ended_without_a_close_is_told_once_as_abnormal() -> None:
    async with linked() as (_, owner, peer):
        peer.writer.write_eof()
        await peer.gone()
        await owner.until_lost()
        assert owner.told == [("up",), ("lost", ABNORMAL)]


async def test_message_before_the_close_in_one_segment_is_told_first() -> None:
    async with linked() as (_, owner, peer):
        peer.writer.write(frame(TEXT, b"last") + frame(CLOSE, struct.pack(">H", 4000)))
        await owner.until_lost()
        assert owner.told == [("up",), ("message", b"last"), ("lost", 4000)]


async def test_close_of_ours_is_one_frame_however_often_it_is_asked_for() -> None:
    async with linked() as (link, owner, peer):
        link.close()
        link.close()
        assert await peer.receive() == (CLOSE, struct.pack(">H", 1000))
        peer.send(CLOSE, struct.pack(">H", 1000))
        await peer.gone()
        await owner.until_lost()
        assert owner.told == [("up",), ("lost", 1000)]


async def test_nothing_is_sent_after_our_close() -> None:
    async with linked() as (link, _, peer):
        link.close()
        link.send(b"too late")
        link.ping()
        assert (await peer.receive())[0] == CLOSE
        peer.send(CLOSE, struct.pack(">H", 1000))
        assert await peer.reader.read() == b""


async def test_both_close_at_once_and_the_end_is_told_once() -> None:
    async with linked() as (link, owner, peer):
        peer.send(CLOSE, struct.pack(">H", 1001))
        link.close()
        await owner.until_lost()
        assert owner.told == [("up",), ("lost", 1001)]


async def test_peer_that_never_answers_our_close_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "CLOSE_WAIT_S", 0.01)
    async with linked() as (link, owner, peer):
        link.close()
        await peer.gone()
        await owner.until_lost()
        assert owner.told == [("up",), ("lost", ABNORMAL)]


async def test_peer_that_no_longer_reads_is_cut_off_after_our_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "CLOSE_WAIT_S", 0.01)
    async with linked() as (link, owner, _):
        fill(link)
        link.close()
        await owner.until_lost()
        assert owner.all("lost") == [("lost", ABNORMAL)]


async def test_peer_that_says_goodbye_and_no_longer_reads_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "SLOW_PEER_S", 0.01)
    monkeypatch.setattr(link_module, "CLOSE_WAIT_S", 0.01)
    async with linked() as (link, owner, peer):
        fill(link)
        peer.send(CLOSE, struct.pack(">H", 1000))
        await owner.until("slow")
        link.close()
        await owner.until_lost()
        assert owner.all("lost") == [("lost", 1000)]


async def test_link_closed_before_it_is_up_is_dropped_as_soon_as_it_opens() -> None:
    transport = FakeTransport()
    owner = Owner()
    link = Link(Side.BACKEND, owner, MESSAGE_MAX)
    link.close()
    link.on_ws_connected(transport)  # type: ignore[arg-type]
    assert transport.done == [("disconnect", "by force")]
    assert owner.told == []
    link.on_ws_disconnected(transport)  # type: ignore[arg-type]
    assert owner.told == [("lost", ABNORMAL)]


def timers(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.TimerHandle]:
    """Every timer that is armed from now on."""
    armed: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def arm(delay: float, callback: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        armed.append(call_later(delay, callback, *arguments))
        return armed[-1]

    monkeypatch.setattr(loop, "call_later", arm)
    return armed


async def test_no_timer_is_left_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    armed = timers(monkeypatch)
    transport = FakeTransport()
    link, owner = up(transport)
    link.pause_writing()
    link.close()
    link.on_ws_disconnected(transport)  # type: ignore[arg-type]
    assert [timer.cancelled() for timer in armed] == [True, True]
    assert owner.told == [("up",), ("lost", ABNORMAL)]


# --- Back-pressure ---------------------------------------------------------------------------------


def fill(link: Link) -> None:
    """Send until the kernel takes no more and the link's own bound is passed."""
    for _ in range(20_000):
        link.send(bytes(900))
        if link.congested:
            return
    raise AssertionError("the socket swallowed 18 MB")


async def test_peer_that_stops_reading_is_told_as_slow_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "SLOW_PEER_S", 0.01)
    async with linked() as (link, owner, _):
        fill(link)
        await owner.until("slow")
        link.send(bytes(900))
        assert owner.told == [("up",), ("slow",)]


async def test_peer_is_not_slow_because_this_process_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "SLOW_PEER_S", 0.1)
    monkeypatch.setattr(link_module, "STANDSTILL_S", 0.05)
    async with linked() as (link, owner, peer):
        fill(link)
        stand_still(0.3)
        link.send(b"the end")
        received: Told = ()
        async with asyncio.timeout(10):
            while received != (TEXT, b"the end"):
                received = await peer.receive()
        assert owner.told == [("up",)]


async def test_peer_that_reads_again_in_time_is_not_slow() -> None:
    async with linked() as (link, owner, peer):
        fill(link)
        link.send(b"the end")
        received: Told = ()
        async with asyncio.timeout(10):
            while received != (TEXT, b"the end"):
                received = await peer.receive()
        assert not link.congested
        assert owner.told == [("up",)]


async def test_peer_that_pauses_often_is_given_the_whole_time_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    armed = timers(monkeypatch)
    transport = FakeTransport()
    link, _ = up(transport)
    link.pause_writing()
    link.pause_writing()
    assert [timer.cancelled() for timer in armed] == [False]
    link.resume_writing()
    link.pause_writing()
    assert [timer.cancelled() for timer in armed] == [True, False]
    assert link.congested
    link.on_ws_disconnected(transport)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", Side)
async def test_what_waits_for_a_peer_that_does_not_read_is_bounded_in_bytes(
    side: Side,
) -> None:
    transport, owner = FakeTransport(), Owner()
    link = Link(side, owner, MESSAGE_MAX)
    link.on_ws_connected(transport)  # type: ignore[arg-type]
    link.pause_writing()
    bound = PACES[side].unsent_max_bytes
    for _ in range(2 * bound // 60_000):
        link.send(bytes(60_000))
    assert bound - 60_000 < sum(map(len, transport.sent)) <= bound
    assert owner.told == [("up",), ("slow",)]
    link.resume_writing()
    link.send(b"next")
    assert transport.sent[-1] == b"next"
    link.on_ws_disconnected(transport)  # type: ignore[arg-type]


async def test_unsent_bytes_have_a_bound() -> None:
    transport = FakeTransport()
    up(transport)
    assert transport.underlying_transport.high == WRITE_HIGH_BYTES
