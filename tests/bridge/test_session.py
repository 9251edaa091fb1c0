"""The duties of a session: what it feeds to the core, what it does for it, and how it ends. The core is scripted,
the sockets are fakes, and time is an argument; the real ones are in test_link.py and test_end_to_end.py."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from picows import WSMsgType

from app.bridge import link as link_module
from app.bridge.epoch_watch import Place
from app.bridge.link import ABNORMAL, Link
from app.bridge.session import BAD_MESSAGES_LOGGED, TRAIL_EVENTS, Service, Session
from app.call import events as ev
from app.call.continuity import Ownership
from app.call.ending import EndReason
from app.call.events import Command, Event, Side
from app.call.evidence import Route
from app.call.failure import BackendFailure, lost, not_ready
from app.call.journal import Facts
from app.call.plan import NO_ABILITIES, Plan, Purpose
from app.call.records import CallEnded, CallStarted, Record
from app.wire.dialect import Address, BackendCommand
from app.wire.text import Message
from tests.bridge.memory import MINE, OTHERS, UNKNOWN, Memory
from tests.bridge.peers import FakeFrame, FakeTransport

ROUTE = Route("fra", "fra", "ie1")

pytestmark = pytest.mark.anyio

CALL_SID = "CA00000000000000000000000000000002"
STREAM_SID = "MZ00000000000000000000000000000003"
RECORD = CallEnded(CALL_SID, "leg-1", 0, "idle", 0)
RESUME_URL = "https://calls.example.com/twiml/resume/global/fra/sealed"
WORDS = "my number is one two three"
AUDIO = "c2VjcmV0IHNvdW5k"

END: list[Command] = [ev.ClosePhone(), ev.CloseBackend(), ev.Ended(EndReason.CALLER_HUNG_UP)]
BROKEN_END: list[Command] = [ev.ClosePhone(), ev.CloseBackend(), ev.Ended(EndReason.BUG)]

Answer = Sequence[Command] | Callable[[Any], Sequence[Command]]


class Core:
    """Answers events as told until it has ended, writes them down, and does not let itself be entered twice."""

    phone_heard_at = 3_600.0

    def __init__(self) -> None:
        self.plan = Plan()
        self.facts = Facts(CALL_SID, "leg-1", "fra", "openai")
        self.heard: list[Event] = []
        self.ticks: list[float] = []
        self.answers: dict[type, Answer] = {ev.Broken: BROKEN_END, ev.ShutdownRequested: END}
        self.due: float | None = None
        self.passing = False
        self.ticked = asyncio.Event()
        self._inside = False
        self._over = False

    def handle(self, event: Event, now: float) -> Sequence[Command]:
        assert not self._inside, "entered twice"
        self._inside = True
        try:
            if isinstance(event, ev.Tick):
                self.ticks.append(now)
                self.ticked.set()
            else:
                self.heard.append(event)
            answer = () if self._over else self.answers.get(type(event), ())
            commands = answer(event) if callable(answer) else answer
            self._over = self._over or any(isinstance(command, ev.Ended) for command in commands)
            return commands
        finally:
            self._inside = False

    def deadline(self) -> float | None:
        return self.due

    def passes(self, frame: ev.CallerAudio, now: float) -> bool:
        return self.passing


class Dialect:
    """A backend whose messages are one word: an item that was committed."""

    name = "plain"
    abilities = NO_ABILITIES

    def fitted(self, plan: Plan) -> Plan:
        return plan

    def address(self, model: str) -> Address:
        return Address("ws://backend/", {"Authorization": "Bearer sk-secret"})

    def parse(self, message: Message) -> Sequence[Event]:
        assert not isinstance(message, str)
        return [ev.CallerTurnCommitted(word) for word in bytes(message).decode().split()]

    def render(self, command: BackendCommand) -> bytes:
        return type(command).__name__.encode()

    def append(self, payload: str) -> bytes:
        return b"append " + payload.encode()


class Log:
    """The lines of a call, as they were asked for."""

    def __init__(self) -> None:
        self.stream_sid: str | None = None
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def info(self, event: str, /, **fields: object) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, /, **fields: object) -> None:
        self.lines.append(("warning", event, fields))

    def exception(self, event: str, /, **fields: object) -> None:
        self.lines.append(("exception", event, fields))

    def all(self, level: str) -> list[str]:
        return [event for found, event, _ in self.lines if found == level]


class Bench:
    """A session with everything around it in a test's hands."""

    def __init__(self) -> None:
        self.core = Core()
        self.dialect = Dialect()
        self.log = Log()
        self.now = 0.0
        self.clock_reads = 0
        self.clock_read = asyncio.Event()
        self.ended: list[EndReason] = []
        self.outcomes: list[BackendFailure | None] = []
        self.ready_ms: list[float] = []
        self.timers: list[asyncio.TimerHandle] = []
        """Every timer that the session has armed."""
        self.records: list[Record] = []
        self.order: list[tuple[str, bytes]] = []
        self.phone = FakeTransport(lambda message: self.order.append(("phone", message)))
        self.backend = FakeTransport(lambda message: self.order.append(("backend", message)))
        self.hung_up: list[tuple[str, str]] = []
        self.hang_up_answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.handed_over: list[tuple[str, str, str]] = []
        self.hand_over_answer: asyncio.Future[tuple[bool, ev.RedirectAnswered]] = (
            asyncio.get_running_loop().create_future()
        )
        self.remembers: Callable[[Record], None] = self.records.append
        self.dialled: list[tuple[object, str]] = []
        self.dialling: asyncio.Future[BackendFailure | None] = asyncio.get_running_loop().create_future()
        self.successors: list[Service] = []
        self.asked: list[tuple[tuple[str, ...], bool]] = []
        self.outcomes_of_the_next: list[BackendFailure | None] = []
        self.ready_ms_of_the_next: list[float] = []
        self.first_audio_ms: list[float] = []
        self.first_audio_ms_of_the_next: list[float] = []
        core: Any = self.core
        self.session = Session(
            core,
            Service(
                self.core.plan,
                self.core.facts,
                self.dialect,
                self.outcomes.append,
                self.ready_ms.append,
                self.first_audio_ms.append,
            ),
            find=self.find,
            dial=self.dial,
            remember=self.remember,
            hang_up=self.hang_up,
            hand_over=self.hand_over,
            resume_url=RESUME_URL,
            log=self.log,
            on_end=lambda _session, reason: self.ended.append(reason),
            clock=self.clock,
        )
        self.link: Link | None = None
        self.backend_link: Link | None = None
        self.first_link: Link | None = None
        """Of the backend that was given up."""

    def remember(self, record: Record) -> None:
        self.remembers(record)

    def find(self, tried: Collection[str], *, working: bool) -> Service | None:
        self.asked.append(((*tried,), working))
        return self.successors.pop(0) if self.successors else None

    async def hang_up(self, call_sid: str, twilio_region: str) -> str | None:
        self.hung_up.append((call_sid, twilio_region))
        return await self.hang_up_answer

    async def hand_over(
        self, call_sid: str, twilio_region: str, resume_url: str
    ) -> tuple[bool, ev.RedirectAnswered]:
        self.handed_over.append((call_sid, twilio_region, resume_url))
        return await self.hand_over_answer

    async def dial(self, dialect: object, model: str, link: Link) -> BackendFailure | None:
        self.dialled.append((dialect, model))
        self.backend_link = link
        return await self.dialling

    def clock(self) -> float:
        self.clock_reads += 1
        self.clock_read.set()
        return self.now

    # What the peers do

    def phone_comes(self) -> None:
        self.link = self.session.phone_link("ie1", ROUTE)
        self.link.on_ws_connected(self.phone)  # type: ignore[arg-type]

    def backend_comes(self) -> None:
        assert self.backend_link is not None
        self.dialling.set_result(None)
        self.backend_link.on_ws_connected(self.backend)  # type: ignore[arg-type]

    def phone_says(self, event: str, **fields: object) -> None:
        message = json.dumps({"event": event, **fields})
        self.session.link_message(Side.PHONE, message.encode())

    def phone_starts(self, stream_sid: str = STREAM_SID) -> None:
        media_format = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {"streamSid": stream_sid, "callSid": CALL_SID, "mediaFormat": media_format}
        self.phone_says("start", start=start)

    def presses(self, digit: str) -> None:
        self.phone_says("dtmf", dtmf={"digit": digit})

    def backend_says(self, words: str) -> None:
        self.session.link_message(Side.BACKEND, words.encode())

    def phone_goes(self, code: int = ABNORMAL) -> None:
        assert self.link is not None
        if code != ABNORMAL:
            frame = FakeFrame(WSMsgType.CLOSE, code.to_bytes(2, "big"))
            self.link.on_ws_frame(self.phone, frame)  # type: ignore[arg-type]
        self.link.on_ws_disconnected(self.phone)  # type: ignore[arg-type]

    def backend_goes(self) -> None:
        assert self.backend_link is not None
        self.backend_link.on_ws_disconnected(self.backend)  # type: ignore[arg-type]


async def turns(count: int = 5) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A session that has begun and is dialling its backend."""
    bench = Bench()
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def arm(delay: float, callback: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        timer = call_later(delay, callback, *arguments)
        if getattr(callback, "__self__", None) is bench.session:
            bench.timers.append(timer)
        return timer

    monkeypatch.setattr(loop, "call_later", arm)
    bench.session.begin()
    await turns()
    bench.core.ticks.clear()
    bench.core.ticked.clear()
    yield bench
    if not bench.ended:
        bench.session.shut_down()
    await turns()
    assert bench.session.at_rest
    assert len(bench.ended) == 1


@pytest.fixture
async def call(bench: Bench) -> Bench:
    """Both peers are there, and the stream has started."""
    bench.backend_comes()
    bench.phone_comes()
    bench.phone_starts()
    await turns()
    bench.core.heard.clear()
    return bench


# --- 1. Messages in, commands out --------------------------------------------------------------------


async def test_every_message_of_both_peers_is_fed_once_and_in_order(call: Bench) -> None:
    call.presses("1")
    call.backend_says("a b")
    call.presses("2")
    call.backend_says("c")
    assert call.core.heard == [
        ev.KeyPressed("1"),
        ev.CallerTurnCommitted("a"),
        ev.CallerTurnCommitted("b"),
        ev.KeyPressed("2"),
        ev.CallerTurnCommitted("c"),
    ]


async def test_beginning_of_a_stream_is_fed_in_order(bench: Bench) -> None:
    bench.phone_comes()
    bench.phone_says("connected", protocol="Call", version="1.0.0")
    bench.phone_starts()
    bench.phone_says("stop")
    assert bench.core.heard == [
        ev.PhoneConnected(ROUTE),
        ev.PhoneStarted(STREAM_SID, CALL_SID),
        ev.PhoneStopped(),
    ]
    assert bench.log.stream_sid == STREAM_SID


async def test_commands_of_one_event_are_run_in_order(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = [
        ev.SendClear(),
        ev.Truncate("item", 20),
        ev.SendAudio(AUDIO),
        ev.SendMark("0-a-1"),
        ev.PassOn(AUDIO),
        ev.CreateResponse(Purpose.KEYS, ""),
    ]
    call.presses("1")
    stream = f'"streamSid":"{STREAM_SID}"'.encode()
    assert call.order == [
        ("phone", b'{"event":"clear",' + stream + b"}"),
        ("backend", b"Truncate"),
        ("phone", b'{"event":"media",' + stream + b',"media":{"payload":"' + AUDIO.encode() + b'"}}'),
        ("phone", b'{"event":"mark",' + stream + b',"mark":{"name":"0-a-1"}}'),
        ("backend", b"append " + AUDIO.encode()),
        ("backend", b"CreateResponse"),
    ]


@pytest.mark.parametrize("side", list(Side))
async def test_ping_goes_to_the_side_that_it_names_and_its_answer_is_fed(call: Bench, side: Side) -> None:
    call.core.answers[ev.KeyPressed] = [ev.Ping(side)]
    call.presses("1")
    pinged = {Side.PHONE: call.phone, Side.BACKEND: call.backend}[side]
    assert pinged.done == [("ping",)]
    call.session.link_pong(side)
    assert call.core.heard[-1] == ev.Pong(side)


async def test_frame_that_the_core_lets_pass_goes_straight_to_the_backend(call: Bench) -> None:
    call.core.passing = True
    call.phone_says("media", media={"track": "inbound", "timestamp": "20", "payload": AUDIO})
    assert call.order == [("backend", b"append " + AUDIO.encode())]
    assert call.core.heard == []


async def test_frame_that_the_core_keeps_is_fed_with_its_size_and_time(call: Bench) -> None:
    call.phone_says("media", media={"track": "inbound", "timestamp": "20", "payload": AUDIO})
    assert call.core.heard == [ev.CallerAudio(AUDIO, 12, 20)]
    assert call.order == []


async def test_silence_is_mulaw_of_that_length(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = [ev.PassSilence(20)]
    call.presses("1")
    assert call.order == [("backend", b"append " + b"/" * 213 + b"w==")]


async def test_record_is_handed_on(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = [ev.Remember(RECORD)]
    call.presses("1")
    assert call.records == [RECORD]


async def test_beginning_of_the_call_is_logged_with_the_backend_that_has_it(call: Bench) -> None:
    begun = CallStarted(CALL_SID, "leg-1", "acme", "eu", "fra", "azure", "m1", STREAM_SID, "+4930", "+4940", 0)
    call.core.answers[ev.KeyPressed] = [ev.Remember(begun)]
    call.presses("1")
    assert call.records == [begun]
    assert call.log.lines == [("info", "call_started", {"backend": "azure", "model": "m1"})]


async def test_commands_for_a_phone_that_has_not_come_go_nowhere(bench: Bench) -> None:
    bench.core.answers[ev.CallerTurnCommitted] = [
        ev.SendAudio(AUDIO),
        ev.SendMark("m"),
        ev.SendClear(),
        ev.Ping(Side.PHONE),
    ]
    bench.backend_says("a")
    assert bench.phone.done == []
    assert bench.log.all("exception") == []


# --- 2. One timer ------------------------------------------------------------------------------------


async def test_deadline_brings_a_tick(call: Bench) -> None:
    call.core.due = 0.01
    call.presses("1")
    call.now = 0.01
    async with asyncio.timeout(10):
        await call.core.ticked.wait()
    assert call.core.ticks[0] == 0.01


async def test_earlier_deadline_replaces_the_armed_one(call: Bench) -> None:
    call.core.due = 1000.0
    call.presses("1")
    armed = call.timers[-1]
    call.core.due = 0.001
    call.presses("2")
    assert armed.cancelled()
    call.now = 0.002
    async with asyncio.timeout(10):
        await call.core.ticked.wait()


async def test_later_deadline_leaves_one_timer(call: Bench) -> None:
    call.core.due = 1000.0
    call.presses("1")
    armed = len(call.timers)
    call.core.due = 2000.0
    call.presses("2")
    assert len(call.timers) == armed
    assert not call.timers[-1].cancelled()
    assert call.session.wakes_at == 1000.0


async def test_tick_rearms_the_timer(call: Bench) -> None:
    call.core.due = 0.001

    def advance(_tick: ev.Tick) -> list[Command]:
        call.core.due = 1000.0
        return []

    call.core.answers[ev.Tick] = advance
    call.now = 0.001
    call.presses("1")
    async with asyncio.timeout(10):
        await call.core.ticked.wait()
    await turns()
    assert call.session.wakes_at == 1000.0


async def test_core_without_a_deadline_has_no_timer(call: Bench) -> None:
    call.core.due = 1000.0
    call.presses("1")
    call.core.due = None
    call.presses("2")
    assert call.session.wakes_at is None
    assert call.timers[-1].cancelled()


async def test_timer_that_fires_early_does_not_tick_before_the_armed_time(call: Bench) -> None:
    call.core.due = 0.001
    call.presses("1")  # by the session's clock, which stands still at 0.0
    reads = call.clock_reads
    async with asyncio.timeout(10):
        while call.clock_reads < reads + 3:
            call.clock_read.clear()
            await call.clock_read.wait()
    assert call.core.ticks == []
    call.now = 0.001
    async with asyncio.timeout(10):
        await call.core.ticked.wait()
    assert call.core.ticks[0] == 0.001


# --- 3. Never entered twice --------------------------------------------------------------------------


async def test_event_that_a_command_causes_waits_until_all_commands_are_run(call: Bench) -> None:
    call.phone.on_send = lambda _message: call.session.link_pong(Side.PHONE)
    call.core.answers[ev.KeyPressed] = [ev.SendMark("one"), ev.PassOn("two")]
    call.core.answers[ev.Pong] = [ev.PassOn("three")]
    call.presses("1")
    assert call.core.heard == [ev.KeyPressed("1"), ev.Pong(Side.PHONE)]
    assert [message for side, message in call.order if side == "backend"] == [b"append two", b"append three"]


async def test_socket_lost_while_it_is_written_to_is_an_event_for_afterwards(call: Bench) -> None:
    call.backend.on_send = lambda _message: call.backend_goes()
    call.core.answers[ev.KeyPressed] = [ev.PassOn("one"), ev.PassOn("two"), ev.SendClear()]
    call.presses("1")
    assert call.core.heard == [ev.KeyPressed("1"), ev.PeerLost(Side.BACKEND, ABNORMAL)]
    assert call.backend.sent == [b"append one"]
    assert len(call.phone.sent) == 1


async def test_answer_of_a_tool_comes_after_the_commands_beside_it(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = [ev.RunTool("t1", "weather", "{}"), ev.PassOn("one")]
    call.core.answers[ev.ToolFinished] = [ev.PassOn("two")]
    call.presses("1")
    assert call.backend.sent == [b"append one", b"append two"]


# --- 4. Peers that are lost, slow, or make no sense --------------------------------------------------


async def test_lost_phone_is_told_once_with_its_code(call: Bench) -> None:
    call.phone_goes(4000)
    assert call.core.heard == [ev.PeerLost(Side.PHONE, 4000)]


async def test_lost_backend_is_told_once(call: Bench) -> None:
    call.backend_goes()
    assert call.core.heard == [ev.PeerLost(Side.BACKEND, ABNORMAL)]


@pytest.mark.parametrize("side", list(Side))
async def test_slow_peer_is_told(call: Bench, side: Side) -> None:
    call.session.link_slow(side)
    assert call.core.heard == [ev.PeerSlow(side)]


@pytest.mark.parametrize(
    "message", [b"", b"{", b"[]", b"{}", b'{"event":"media","media":{"payload":"*"}}', b"\xff"]
)
async def test_call_goes_on_after_a_message_of_the_phone_that_makes_no_sense(call: Bench, message: bytes) -> None:
    call.session.link_message(Side.PHONE, message)
    call.presses("1")
    assert [type(event) for event in call.core.heard] == [ev.BadMessage, ev.KeyPressed]


async def test_bad_messages_are_all_fed_and_the_first_few_are_logged(call: Bench) -> None:
    for _ in range(100):
        call.session.link_bad_message(Side.PHONE, "binary")
    assert len(call.core.heard) == 100
    assert call.log.all("warning") == ["bad_message_received"] * BAD_MESSAGES_LOGGED


async def test_messages_after_the_end_are_neither_fed_nor_logged(call: Bench) -> None:
    call.session.shut_down()
    call.core.heard.clear()
    lines = len(call.log.lines)
    call.presses("1")
    call.backend_says("a")
    call.session.link_bad_message(Side.BACKEND, "binary")
    assert call.core.heard == []
    assert len(call.log.lines) == lines


async def test_second_start_of_a_phone_is_fed_and_breaks_nothing(call: Bench) -> None:
    call.phone_starts("MZ00000000000000000000000000000009")
    assert call.core.heard == [ev.PhoneStarted("MZ00000000000000000000000000000009", CALL_SID)]
    assert call.log.stream_sid == STREAM_SID
    call.core.answers[ev.KeyPressed] = [ev.SendClear()]
    call.presses("1")
    assert STREAM_SID.encode() in call.phone.sent[0]
    assert call.log.all("exception") == []


async def test_backend_that_cannot_be_reached_is_told_and_logged_without_its_key(bench: Bench) -> None:
    refused = BackendFailure(EndReason.BACKEND_UNREACHABLE, text="the key was refused (HTTP 401)")
    bench.dialling.set_result(refused)
    await turns()
    assert bench.core.heard == [ev.BackendUnreachable(refused)]
    told = {"backend": "openai", "error": "the key was refused (HTTP 401)"}
    assert bench.log.lines == [("warning", "backend_unreachable", told)]
    assert "sk-secret" not in repr(bench.log.lines)


async def test_session_dials_its_backend_once_for_the_model_of_its_plan(bench: Bench) -> None:
    assert bench.dialled == [(bench.dialect, bench.core.plan.model)]


async def test_outcome_and_waiting_times_are_reported_of_the_backend(call: Bench) -> None:
    failure = lost(1006)
    times: list[Command] = [ev.ReportReady(250.0), ev.ReportFirstAudio(700.0)]
    call.core.answers[ev.KeyPressed] = [*times, ev.ReportOutcome(failure), ev.ReportOutcome(None)]
    call.presses("1")
    assert (call.ready_ms, call.first_audio_ms, call.outcomes) == ([250.0], [700.0], [failure, None])


# --- Hanging up --------------------------------------------------------------------------------------


async def test_hang_up_asks_the_region_that_processes_the_call(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = [ev.HangUp()]
    call.presses("1")
    await turns()
    assert call.hung_up == [(CALL_SID, "ie1")]
    call.hang_up_answer.set_result(None)
    await turns()
    assert call.core.heard == [ev.KeyPressed("1")]


async def claimed(bench: Bench, claim: Ownership, owner: Ownership) -> Memory:
    """The stream has started, and the ledger answers so."""
    memory = Memory([claim], [owner])
    bench.session.place = Place(3, memory=memory)
    bench.backend_comes()
    bench.phone_comes()
    bench.phone_starts()
    await turns()
    bench.core.heard.clear()
    return memory


@pytest.mark.parametrize(
    ("owner", "heard"),
    [(MINE, []), (UNKNOWN, []), (OTHERS, [ev.Superseded()])],
)
async def test_leg_asks_whether_it_still_has_the_call_before_it_hangs_up(
    bench: Bench, owner: Ownership, heard: list[Event]
) -> None:
    """The stream may be half-open: a hang-up would end the call that goes on elsewhere."""
    await claimed(bench, MINE, owner)
    bench.core.answers[ev.KeyPressed] = [ev.HangUp()]
    bench.presses("1")
    await turns()
    assert bench.core.heard == [ev.KeyPressed("1"), *heard]
    assert (bench.hung_up == []) == (owner is OTHERS)


async def test_leg_whose_epoch_is_taken_is_superseded(bench: Bench) -> None:
    bench.core.answers[ev.Superseded] = [ev.ClosePhone(), ev.CloseBackend(), ev.Ended(EndReason.SUPERSEDED)]
    memory = await claimed(bench, OTHERS, MINE)
    assert bench.ended == [EndReason.SUPERSEDED]
    assert (memory.asked, bench.hung_up) == ({"claim": 1}, [])


async def test_hang_up_that_fails_is_told(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = [ev.HangUp()]
    call.presses("1")
    call.hang_up_answer.set_result("HTTP 500")
    await turns()
    assert call.core.heard == [ev.KeyPressed("1"), ev.HangUpFailed()]


async def test_hang_up_does_not_hold_up_the_call(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = [ev.HangUp(), ev.SendClear()]
    call.presses("1")
    assert len(call.phone.sent) == 1
    call.presses("2")
    assert call.core.heard == [ev.KeyPressed("1"), ev.KeyPressed("2")]


# --- Moving to another machine -----------------------------------------------------------------------


async def test_request_to_move_reaches_the_call_with_its_latest_instant(call: Bench) -> None:
    call.now = 100.0
    call.session.move(20.0)
    assert call.core.heard == [ev.MoveRequested(120.0)]


@pytest.mark.parametrize(
    ("outcome", "redirected", "logged"),
    [
        (ev.RedirectOutcome.ACCEPTED, True, [("info", "call_moved", {"records_stored": True})]),
        (ev.RedirectOutcome.CALL_OVER, False, []),
        (
            ev.RedirectOutcome.FAILED,
            False,
            [("warning", "move_failed", {"error": "why", "effect": "stream_closed", "records_stored": True})],
        ),
    ],
)
async def test_redirect_goes_to_the_calls_url_and_its_answer_is_told(
    call: Bench, outcome: ev.RedirectOutcome, redirected: bool, logged: list[object]
) -> None:
    call.core.answers[ev.MoveRequested] = [ev.Redirect()]
    call.session.move(20.0)
    await turns()
    assert call.handed_over == [(CALL_SID, "ie1", RESUME_URL)]
    answer = ev.RedirectAnswered(outcome, "why")
    call.hand_over_answer.set_result((True, answer))
    await turns()
    assert call.core.heard[1:] == [answer]
    assert call.session.redirected is redirected
    assert call.log.lines == logged


async def test_superseded_leg_is_not_redirected(bench: Bench) -> None:
    """Its stream was half-open. A redirect would tear the call away from the machine that carries it."""
    await claimed(bench, MINE, OTHERS)
    bench.core.answers[ev.MoveRequested] = [ev.Redirect()]
    bench.session.move(20.0)
    await turns()
    assert bench.core.heard[1:] == [ev.Superseded()]
    assert bench.handed_over == []


async def test_end_during_a_redirect_leaves_no_task(call: Bench) -> None:
    call.core.answers[ev.MoveRequested] = [ev.Redirect()]
    call.session.move(20.0)
    await turns()
    call.session.shut_down()
    await turns()
    assert call.hand_over_answer.cancelled()


# --- 6. The ways out ---------------------------------------------------------------------------------


async def test_end_closes_both_sockets_and_is_told_once(call: Bench) -> None:
    call.session.shut_down()
    call.session.shut_down()
    assert call.phone.done == [("close", 1000)]
    assert call.backend.done == [("close", 1000)]
    assert call.ended == [EndReason.CALLER_HUNG_UP]
    assert call.log.lines == [("info", "call_ended", {"reason": "caller_hung_up"})]


async def test_end_that_owes_an_apology_is_a_warning(call: Bench) -> None:
    call.core.answers[ev.ShutdownRequested] = [ev.Ended(EndReason.SHUTDOWN)]
    call.session.shut_down()
    assert call.log.lines == [("warning", "call_ended", {"reason": "shutdown"})]
    assert call.link is not None
    call.link.close()


async def test_closed_waits_for_both_sockets(call: Bench) -> None:
    call.session.shut_down()
    waiting = asyncio.create_task(call.session.closed())
    await turns()
    assert not waiting.done()
    call.backend_goes()
    await turns()
    assert not waiting.done()
    call.phone_goes()
    async with asyncio.timeout(10):
        await waiting


async def test_end_while_the_backend_is_dialled_cancels_the_dial(bench: Bench) -> None:
    bench.session.shut_down()
    async with asyncio.timeout(10):
        await bench.session.closed()
    assert bench.dialling.cancelled()


async def test_backend_that_comes_after_the_end_is_dropped(bench: Bench) -> None:
    bench.session.shut_down()
    assert bench.backend_link is not None
    bench.backend_link.on_ws_connected(bench.backend)  # type: ignore[arg-type]
    assert bench.backend.done == [("disconnect", "by force")]


async def test_end_while_hanging_up_leaves_no_task(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = [ev.HangUp()]
    call.presses("1")
    await turns()
    call.session.shut_down()
    await turns()
    assert call.session.at_rest
    assert call.hang_up_answer.cancelled()


async def test_end_leaves_no_timer(call: Bench) -> None:
    call.core.due = 1000.0
    call.presses("1")
    call.session.shut_down()
    assert call.session.wakes_at is None
    assert call.timers[-1].cancelled()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
async def test_session_that_ends_in_the_turn_it_began_leaves_nothing() -> None:
    """The same webhook twice: the first session is shut down before its dial has run one step."""
    bench = Bench()
    bench.session.begin()
    bench.session.shut_down()
    async with asyncio.timeout(10):
        await bench.session.closed()
    assert bench.dialled == []
    assert bench.ended == [EndReason.CALLER_HUNG_UP]


# --- 7. The next backend -----------------------------------------------------------------------------


KEY_REFUSED = BackendFailure(EndReason.BACKEND_REFUSED, "invalid_api_key", text="invalid_api_key")
GIVEN_UP = ev.FindBackend(KEY_REFUSED, ("openai",), only_working=False)
GO_OVER: list[Command] = [ev.ReportOutcome(KEY_REFUSED), ev.SwitchBackend()]


class OtherDialect(Dialect):
    """Spells differently."""

    def append(self, payload: str) -> bytes:
        return b"other " + payload.encode()


def other(bench: Bench) -> Service:
    facts = Facts(CALL_SID, "leg-1", "fra", "azure")
    return Service(
        Plan(model="azure-model"),
        facts,
        OtherDialect(),
        bench.outcomes_of_the_next.append,
        bench.ready_ms_of_the_next.append,
        bench.first_audio_ms_of_the_next.append,
    )


@pytest.fixture
async def replaced(bench: Bench) -> Bench:
    """The first backend came, and was given up; the next one is being dialled."""
    bench.backend_comes()
    bench.successors = [other(bench)]
    bench.core.answers[ev.CallerTurnCommitted] = [GIVEN_UP]
    bench.core.answers[ev.BackendFound] = GO_OVER
    bench.first_link = bench.backend_link
    bench.dialling = asyncio.get_running_loop().create_future()
    bench.backend_says("bad")
    await turns()
    bench.core.answers.clear()
    bench.core.answers[ev.ShutdownRequested] = END
    return bench


async def test_next_backend_is_told_to_the_core_and_dialled_once(replaced: Bench) -> None:
    found = other(replaced)
    assert replaced.core.heard[1:] == [ev.BackendFound(found.plan, found.facts, NO_ABILITIES)]
    assert replaced.asked == [(("openai",), False)]
    assert [model for _, model in replaced.dialled] == [Plan().model, "azure-model"]
    assert replaced.backend_link is not replaced.first_link


async def test_one_that_was_given_up_is_judged_and_logged_with_the_next(replaced: Bench) -> None:
    assert replaced.outcomes == [KEY_REFUSED]
    assert replaced.outcomes_of_the_next == []
    told = {"reason": "backend_refused", "backend": "openai", "error": "invalid_api_key", "next": "azure"}
    assert replaced.log.lines == [("warning", "backend_replaced", told)]


async def test_next_backend_is_judged_by_what_it_does_itself(replaced: Bench) -> None:
    gone = lost(1011)
    ending: list[Command] = [*END[:-1], ev.ReportOutcome(gone), ev.Ended(EndReason.BACKEND_LOST, gone)]
    replaced.core.answers[ev.ShutdownRequested] = ending
    replaced.session.shut_down()
    assert replaced.outcomes_of_the_next == [gone]
    assert len(replaced.outcomes) == 1
    assert replaced.log.lines[-1][2]["backend"] == "azure"


async def test_backend_that_was_given_up_is_closed_and_not_listened_to(replaced: Bench) -> None:
    heard = [*replaced.core.heard]
    first = replaced.first_link
    assert first is not None
    assert replaced.backend.done[-1] == ("close", 1000)
    frames = [
        FakeFrame(WSMsgType.TEXT, b"late words"),
        FakeFrame(WSMsgType.PONG),
        FakeFrame(WSMsgType.BINARY, b"binary"),
    ]
    for frame in frames:
        first.on_ws_frame(replaced.backend, frame)  # type: ignore[arg-type]
    first.on_ws_disconnected(replaced.backend)  # type: ignore[arg-type]
    assert replaced.core.heard == heard


async def test_what_is_for_the_backend_goes_to_the_next_one_in_its_spelling(replaced: Bench) -> None:
    second = FakeTransport()
    assert replaced.backend_link is not None
    replaced.backend_link.on_ws_connected(second)  # type: ignore[arg-type]
    replaced.dialling.set_result(None)
    replaced.phone_comes()
    replaced.phone_starts()
    replaced.core.passing = True
    replaced.phone_says("media", media={"track": "inbound", "timestamp": "20", "payload": AUDIO})
    assert second.sent == [b"other " + AUDIO.encode()]
    assert replaced.backend.sent == []


async def test_closed_waits_for_the_sockets_of_all_backends(replaced: Bench) -> None:
    replaced.session.shut_down()
    waiting = asyncio.create_task(replaced.session.closed())
    await turns()
    assert not waiting.done()
    assert replaced.first_link is not None
    replaced.first_link.on_ws_disconnected(replaced.backend)  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        await waiting


async def test_no_other_backend_is_told_and_the_present_one_stays(call: Bench) -> None:
    call.core.answers[ev.CallerTurnCommitted] = [GIVEN_UP]
    call.backend_says("bad")
    assert call.core.heard[1:] == [ev.NoBackendLeft()]
    assert call.backend.done == []
    assert call.outcomes == []


async def test_slow_timer_of_a_backend_that_was_given_up_tells_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "SLOW_PEER_S", 0.0)
    bench.backend_comes()
    first = bench.backend_link
    assert first is not None
    first.pause_writing()
    bench.successors = [other(bench)]
    bench.core.answers[ev.CallerTurnCommitted] = [GIVEN_UP]
    bench.core.answers[ev.BackendFound] = GO_OVER
    bench.backend_says("bad")
    heard = [*bench.core.heard]
    await turns()
    assert bench.core.heard[: len(heard)] == heard
    assert ev.PeerSlow(Side.BACKEND) not in bench.core.heard


async def test_dial_that_hangs_is_cancelled_for_the_next_one(bench: Bench) -> None:
    bench.successors = [other(bench)]
    hanging, bench.dialling = bench.dialling, asyncio.get_running_loop().create_future()
    late = ev.FindBackend(not_ready("dialling"), ("openai",), only_working=True)
    bench.core.answers[ev.PhoneConnected] = [late]
    bench.core.answers[ev.BackendFound] = [ev.SwitchBackend()]
    bench.phone_comes()
    await turns()
    assert hanging.cancelled()
    assert len(bench.dialled) == 2
    assert bench.asked == [(("openai",), True)]


async def test_call_that_ends_before_it_goes_over_dials_no_other_backend(bench: Bench) -> None:
    bench.successors = [other(bench)]
    bench.core.answers[ev.PhoneConnected] = [GIVEN_UP]
    bench.core.answers[ev.BackendFound] = END
    bench.phone_comes()
    await turns()
    assert len(bench.dialled) == 1


async def test_dial_that_fails_is_judged_once_and_the_next_one_dialled(bench: Bench) -> None:
    bench.successors = [other(bench)]
    failing, bench.dialling = bench.dialling, asyncio.get_running_loop().create_future()
    refused = BackendFailure(EndReason.BACKEND_UNREACHABLE, "http_403", text="refused")
    bench.core.answers[ev.BackendUnreachable] = [ev.FindBackend(refused, ("openai",), only_working=False)]
    bench.core.answers[ev.BackendFound] = [ev.ReportOutcome(refused), ev.SwitchBackend()]
    failing.set_result(refused)
    await turns()
    assert len(bench.dialled) == 2
    assert bench.outcomes == [refused]


# --- 5. A bug of ours --------------------------------------------------------------------------------


def bug(*_: object) -> Any:
    raise RuntimeError("a bug")


def assert_over(bench: Bench) -> None:
    """Both sockets told to close, the end told once, nothing left running."""
    assert bench.phone.done[-1:] == [("close", 1000)]
    assert bench.backend.done[-1:] == [("close", 1000)]
    assert bench.ended == [EndReason.BUG]
    assert bench.session.at_rest


async def test_exception_of_the_core_ends_the_call_and_is_logged_once(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = bug
    call.presses("1")
    assert_over(call)
    assert call.log.all("exception") == ["call_broke"]


async def test_exception_of_the_core_in_a_deadline_ends_the_call(
    call: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call.core, "deadline", bug)
    call.presses("1")
    assert_over(call)
    assert call.log.all("exception") == ["call_broke"]


async def test_exception_of_the_core_when_the_timer_wakes_ends_the_call(
    call: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    call.core.due = 0.001
    call.presses("1")
    call.now = 0.001
    monkeypatch.setattr(call.core, "deadline", bug)
    async with asyncio.timeout(10):
        while not call.ended:
            call.clock_read.clear()
            await call.clock_read.wait()
            await turns()
    assert_over(call)


async def test_exception_of_the_core_on_the_hot_path_ends_the_call(
    call: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call.core, "passes", bug)
    call.phone_says("media", media={"track": "inbound", "timestamp": "20", "payload": AUDIO})
    assert_over(call)


async def test_exception_of_the_dialect_ends_the_call(call: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call.dialect, "parse", bug)
    call.backend_says("a")
    assert_over(call)


async def test_exception_in_a_command_ends_the_call(call: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call.dialect, "render", bug)
    call.core.answers[ev.KeyPressed] = [ev.CreateResponse(Purpose.KEYS, "")]
    call.presses("1")
    assert_over(call)


async def test_exception_in_a_task_ends_the_call(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = [ev.HangUp()]
    call.presses("1")
    call.hang_up_answer.set_exception(RuntimeError("a bug"))
    await turns()
    assert_over(call)
    assert call.log.all("exception") == ["call_broke"]


async def test_second_exception_while_ending_lets_go_of_everything_by_hand(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = bug
    call.core.answers[ev.Broken] = bug
    call.presses("1")
    assert_over(call)
    assert call.log.all("exception") == ["call_broke", "call_broke_while_ending"]


async def test_nothing_is_fed_after_the_last_resort(call: Bench) -> None:
    """The core never reached its end: fed again it may break again, or end a second time."""
    call.core.answers[ev.KeyPressed] = bug
    call.core.answers[ev.Broken] = bug
    call.presses("1")
    call.core.heard.clear()
    call.phone_goes()
    call.session.shut_down()
    assert call.core.heard == []
    assert call.ended == [EndReason.BUG]


async def test_exception_among_the_last_commands_still_closes_both_sockets(call: Bench) -> None:
    call.remembers = bug
    call.core.answers[ev.ShutdownRequested] = [ev.Remember(RECORD), *END]
    call.core.answers[ev.Broken] = []  # a core that has ended asks for nothing more
    call.session.shut_down()
    assert_over(call)


async def test_events_that_waited_behind_a_bug_are_not_fed(call: Bench) -> None:
    call.phone.on_send = lambda _message: call.session.link_pong(Side.PHONE)
    call.core.answers[ev.KeyPressed] = [ev.SendClear(), ev.Remember(RECORD)]
    call.remembers = bug
    call.presses("1")
    assert call.core.heard == [ev.KeyPressed("1"), ev.Broken()]


async def test_bug_in_one_call_leaves_its_neighbour_alone(call: Bench) -> None:
    neighbour = Bench()
    neighbour.session.begin()
    await turns()
    neighbour.backend_comes()
    neighbour.phone_comes()
    call.core.answers[ev.KeyPressed] = bug
    call.presses("1")
    neighbour.core.answers[ev.KeyPressed] = [ev.PassOn("one")]
    neighbour.presses("1")
    assert neighbour.backend.sent == [b"append one"]
    assert neighbour.ended == []
    neighbour.session.shut_down()


async def test_trail_has_names_and_sizes_of_the_last_events(call: Bench) -> None:
    call.core.passing = True
    for _ in range(7):
        call.phone_says("media", media={"track": "inbound", "timestamp": "20", "payload": AUDIO})
    call.core.passing = False
    call.now = 1.5
    call.phone_says("media", media={"track": "inbound", "timestamp": "40", "payload": AUDIO})
    call.core.answers[ev.KeyPressed] = bug
    call.presses("1")
    (fields,) = (fields for level, _, fields in call.log.lines if level == "exception")
    assert str(fields["trail"]).endswith("1.500 frames 7, 1.500 CallerAudio 12, 1.500 KeyPressed")


async def test_trail_has_no_more_events_than_it_should(call: Bench) -> None:
    for _ in range(3 * TRAIL_EVENTS):
        call.backend_says("a")
    call.core.answers[ev.KeyPressed] = bug
    call.presses("1")
    (fields,) = (fields for level, _, fields in call.log.lines if level == "exception")
    assert len(str(fields["trail"]).split(", ")) == TRAIL_EVENTS


async def test_log_of_a_bug_has_no_words_and_no_audio(call: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[Event] = [
        ev.CallerTranscribed("item", WORDS),
        ev.AgentText("response", "item", WORDS, final=True),
        ev.AgentAudio("response", "item", AUDIO, 12),
        ev.CallerAudio(AUDIO, 12, 20),
        ev.KeyPressed("4"),
    ]
    monkeypatch.setattr(call.dialect, "parse", lambda _message: spoken)
    call.backend_says("all of it")
    call.core.answers[ev.Pong] = bug
    call.session.link_pong(Side.PHONE)
    told = repr(call.log.lines)
    assert "CallerTranscribed" in told
    assert WORDS not in told
    assert AUDIO not in told


@pytest.mark.parametrize(
    "event",
    [
        ev.CallerTranscribed("item", WORDS),
        ev.AgentText("response", "item", WORDS),
        ev.AgentAudio("response", "item", AUDIO, 12),
        ev.CallerAudio(AUDIO, 12, 20),
        ev.ToolCalled("response", "call", "book", WORDS),
    ],
)
def test_event_in_the_text_of_an_exception_does_not_tell_what_was_said(event: Event) -> None:
    """`assert_never` and most ValueErrors put the value's repr into their text, and so into the log."""
    assert WORDS not in repr(event)
    assert AUDIO not in repr(event)


# --- 8. A second session beside the first --------------------------------------------------------------


class SpareDialect(OtherDialect):
    """A backend whose messages are the names of events."""

    def parse(self, message: Message) -> Sequence[Event]:
        assert not isinstance(message, str)
        named: dict[str, Event] = {
            "opened": ev.BackendOpened(5_000),
            "configured": ev.BackendConfigured(formats_match=True),
            "other-formats": ev.BackendConfigured(formats_match=False),
            "committed": ev.CallerTurnCommitted("item"),
        }
        return [named[word] for word in bytes(message).decode().split()]


@dataclass(slots=True)
class WithSpare:
    """A call with a second session that is open."""

    bench: Bench
    link: Link
    transport: FakeTransport

    def says(self, word: str) -> None:
        frame = FakeFrame(WSMsgType.TEXT, word.encode())
        self.link.on_ws_frame(self.transport, frame)  # type: ignore[arg-type]


@pytest.fixture
async def spare(call: Bench) -> WithSpare:
    """The first session goes on while the second one is dialled."""
    found = dataclasses.replace(other(call), dialect=SpareDialect())
    call.first_link = call.backend_link
    call.successors = [found]
    call.core.answers[ev.KeyPressed] = [ev.OpenSpare()]
    call.presses("1")
    await turns()
    assert call.backend_link is not None
    assert call.backend_link is not call.first_link
    transport = FakeTransport()
    call.backend_link.on_ws_connected(transport)  # type: ignore[arg-type]
    call.core.heard.clear()
    return WithSpare(call, call.backend_link, transport)


async def test_spare_is_configured_and_then_reported(spare: WithSpare) -> None:
    spare.says("opened")
    assert spare.transport.sent == [b"Configure"]
    assert spare.bench.core.heard == []
    spare.says("configured")
    found = ev.BackendFound(Plan(model="azure-model"), Facts(CALL_SID, "leg-1", "fra", "azure"), NO_ABILITIES)
    assert spare.bench.core.heard == [ev.SpareReady(found, 5_000)]


async def test_call_goes_on_with_the_first_session_until_it_switches(spare: WithSpare) -> None:
    spare.says("opened configured committed")
    assert not [each for each in spare.bench.core.heard if isinstance(each, ev.CallerTurnCommitted)]
    spare.bench.core.answers[ev.KeyPressed] = [ev.PassOn(AUDIO), ev.SwitchToSpare(), ev.PassOn(AUDIO)]
    spare.bench.presses("2")
    assert spare.bench.backend.sent == [b"append " + AUDIO.encode()]
    assert spare.bench.backend.done[-1] == ("close", 1000)
    assert spare.transport.sent == [b"Configure", b"other " + AUDIO.encode()]
    spare.says("committed")
    assert spare.bench.core.heard[-1] == ev.CallerTurnCommitted("item")


@pytest.mark.parametrize("fault", ["opened other-formats", "lost"])
async def test_spare_that_does_not_work_is_reported_and_closed(spare: WithSpare, fault: str) -> None:
    if fault == "lost":
        spare.link.on_ws_disconnected(spare.transport)  # type: ignore[arg-type]
    else:
        spare.says(fault)
        assert spare.transport.done[-1] == ("close", 1000)
    assert [type(each) for each in spare.bench.core.heard] == [ev.SpareLost]
    assert not spare.bench.ended


async def test_spare_is_closed_with_its_call(spare: WithSpare) -> None:
    spare.says("opened configured")
    spare.bench.session.shut_down()
    assert spare.transport.done[-1] == ("close", 1000)


async def test_no_second_session_is_reported_when_no_backend_works(call: Bench) -> None:
    call.core.answers[ev.KeyPressed] = [ev.OpenSpare()]
    call.presses("1")
    assert call.core.heard[-1] == ev.SpareLost("no backend works")
    assert call.asked == [((), True)]
