"""Calls, by their two sockets: a real session, core and dialect between a phone and a backend that send anything.

Most of a case is a conversation as it should be, so that the call gets somewhere; some of its messages are
damaged, missing, doubled or early. Both peers answer pings, and the phone returns marks, unless the case says
otherwise. Time is the case's own.
"""

import asyncio
import base64
import sys
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

import orjson
from picows import WSMsgType

from app.backends.dialects import dialect_of
from app.backends.entra import EntraTokens
from app.bridge.link import Link
from app.bridge.session import Service, Session
from app.call.call import Call
from app.call.ending import EndReason
from app.call.events import (
    CallerAudio,
    Command,
    Configure,
    Event,
    RedirectAnswered,
    RedirectOutcome,
    SendAudio,
    Side,
)
from app.call.evidence import Route
from app.call.failure import BackendFailure
from app.call.journal import Facts
from app.call.pause import TONE
from app.call.phases import Phase
from app.call.plan import HANG_UP, Plan, Tool
from app.call.records import Record
from app.call.wall import Wall
from app.logs import CallLog
from app.sim.phone.wire import Refused, read_server_message
from app.wire.audio import spoken_in
from app.wire.dialect import Dialect
from app.wire.tuning import OPENAI
from tests.bridge.spoken import EVERY, Spoken
from tests.call.invariants import Watcher, longest_s
from tests.call.phone_model import length_ms
from tests.fuzz.engine import FaultError, memory_bytes, timed
from tests.fuzz.mutate import Mutator
from tests.wire.vectors import lines

CALL_SID: Final = "CA00000000000000000000000000000002"
STREAM_SID: Final = "MZ00000000000000000000000000000003"

MEMORY_MAX_BYTES: Final = 24_000_000
"""Of one call, whatever its peers send: ten minutes of agent audio that waits to be played are 7 MB."""

TICKS_MAX: Final = 20_000
"""To the end of a call; one that wants more spins."""

TOOLS: Final = (HANG_UP, Tool("find_slot", "Find a free appointment."))
PLANS: Final = (
    Plan(greeting="Hello.", max_call_s=70.0, max_call_warning_s=15.0, idle_prompt_s=6.0, tools=TOOLS),
    Plan(greeting="", max_call_s=40.0, idle_prompt_s=3.0, idle_prompts_max=1, tools=TOOLS),
    Plan(greeting="Hello.", greeting_interruptible=False, max_call_s=30.0, tools=TOOLS, fallback_number="+49301"),
)


@dataclass(frozen=True, slots=True)
class Begin:
    """The first step: whose call it is, and how its backends are reached."""

    backend: int = 0
    """Which of EVERY."""
    plan: int = 0
    successors: tuple[int, ...] = ()
    """The backends that may take over."""
    dial: str = ""
    """Why the first one is not reached; "hangs": it never answers."""
    successors_work: bool = True
    """They are configured as soon as they are dialled."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A WebSocket frame from the phone, or from the backend."""

    side: Side
    payload: bytes
    kind: int = 1
    """Its opcode: 0 continues, 1 is text, 2 binary, 8 close, 10 pong."""
    fin: bool = True


@dataclass(frozen=True, slots=True)
class Wait:
    """Time passes."""

    s: float
    still: bool = False
    """This process does nothing meanwhile: what falls due is late."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The phone returns so many marks, the oldest first."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Happens:
    """Anything else: "up", "lost", "slow", "pong" or "silent" (no pings are answered from here on)."""

    what: str
    side: Side = Side.PHONE


Step = Begin | Frame | Wait | Marks | Happens
PHONE, BACKEND = Side.PHONE, Side.BACKEND

# --- What a session has around it ------------------------------------------------------------------


class _Frame:
    """A picows frame."""

    def __init__(self, frame: Frame) -> None:
        self.msg_type = frame.kind
        self.fin = frame.fin
        self._payload = frame.payload
        self.payload_size = len(frame.payload)

    def get_payload_as_memoryview(self) -> memoryview:
        return memoryview(self._payload)

    def get_payload_as_bytes(self) -> bytes:
        return self._payload


class _Underlying:
    def set_write_buffer_limits(self, high: int) -> None:
        pass


class _Transport:
    """A picows transport; hands on what is sent."""

    is_client_side = False
    close_handshake = None
    underlying_transport = _Underlying()

    def __init__(self, bench: "Bench", side: Side) -> None:
        self._bench = bench
        self._side = side
        self.gone = False

    def send(self, _kind: WSMsgType, message: bytes) -> None:
        self._bench.sent(self._side, message)

    def send_ping(self) -> None:
        self._bench.pings.append(self._side)

    def send_pong(self, message: bytes) -> None:
        pass

    def send_close(self, code: object) -> None:
        self.gone = True

    def disconnect(self, graceful: bool = True) -> None:
        self.gone = True


class _Watched(Call):
    """A call that complains when an invariant does not hold."""

    watcher: "_Watcher"

    def handle(self, event: Event, now: float) -> list[Command]:
        commands = super().handle(event, now)
        self.watcher.saw(event, now, list(commands))
        return commands

    def passes(self, frame: CallerAudio, now: float) -> bool:
        passes = super().passes(frame, now)
        assert self.watcher.configured or not passes, "caller audio before the backend was configured"
        return passes


_BEFORE_TALKING: Final = frozenset({Phase.EXPECTED, Phase.ARRIVED, Phase.OPENING, Phase.TAKING_OVER})


class _Watcher(Watcher):
    """The core's invariants, but for those that ask for audio which names its response."""

    def _take_in(self, event: Event) -> None:
        super()._take_in(event)
        if self.call.phase in _BEFORE_TALKING:
            # It has been asked for nothing, and was sent no audio: what it says of that is not believed.
            self.active, self.caller_speaking = None, False

    def _check(self, command: Command) -> None:
        if isinstance(command, SendAudio) and command.payload != TONE:
            self.sent_ms += length_ms(command.payload)
            assert self.sent_ms <= sum(self.received_ms.values()) + 1, "more sent than received"
            return
        super()._check(command)


@dataclass(slots=True)
class _Log:
    """The call's real log, and the exceptions in it."""

    inner: CallLog
    broke: list[BaseException] = field(default_factory=list)

    @property
    def stream_sid(self) -> str | None:
        return self.inner.stream_sid

    @stream_sid.setter
    def stream_sid(self, stream_sid: str) -> None:
        self.inner.stream_sid = stream_sid

    def info(self, event: str, /, **fields: object) -> None:
        self.inner.info(event, **fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self.inner.warning(event, **fields)

    def exception(self, event: str, /, **fields: object) -> None:
        error = sys.exc_info()[1]
        assert error is not None
        self.broke.append(error)
        self.inner.warning(event, **fields)


def _dialect(spoken: Spoken) -> Dialect:
    backend = spoken.backend("http://127.0.0.1:1/v1")
    return spoken_in(dialect_of(backend, EntraTokens()), spoken.audio)


class Bench:
    """One session with everything around it."""

    def __init__(self, begin: Begin) -> None:
        self.now = 0.0
        self.begin = begin
        self.pings: list[Side] = []
        self.marks: list[str] = []
        self.to_phone = self.to_backend = 0
        self.silent: set[Side] = set()
        self.ended: list[EndReason] = []
        self._successors = list(begin.successors)
        self._names = iter(f"backend {number}" for number in range(10))
        self.log = _Log(CallLog("nearcall.call", CALL_SID, "default", "fra"))
        self.plan = PLANS[begin.plan]
        service = self._service(begin.backend)
        self.call = _Watched(service.plan, service.facts, Wall(0.0, 1_800_000_000_000), service.dialect.abilities)
        self.call.watcher = _Watcher(self.call)
        self.session = Session(
            self.call,
            service,
            find=self._find,
            dial=self._dial,
            remember=_remember,
            hang_up=_not_hung_up,
            hand_over=_not_handed_over,
            log=self.log,
            on_end=lambda _session, reason: self.ended.append(reason),
            clock=lambda: self.now,
        )
        self.phone: Link | None = None
        self.backend: Link | None = None
        self.dials = 0
        self._dialect = service.dialect
        self._sockets: dict[Link, _Transport] = {}
        """Of each link that is up."""
        self._others = asyncio.all_tasks()

    def _service(self, number: int) -> Service:
        dialect = _dialect(EVERY[number])
        facts = Facts(CALL_SID, "leg-1", "fra", next(self._names), "+4930111", "+4930222")
        return Service(dialect.fitted(self.plan), facts, dialect, _take, _take, _take)

    def _find(self, tried: Collection[str], *, working: bool) -> Service | None:
        return self._service(self._successors.pop(0)) if self._successors else None

    async def _dial(self, dialect: Dialect, model: str, link: Link) -> BackendFailure | None:
        self.dials += 1
        if self.dials == 1 and self.begin.dial == "hangs":
            await asyncio.Event().wait()
        if self.dials == 1 and self.begin.dial:
            return BackendFailure(EndReason.BACKEND_UNREACHABLE, "http_429", text=self.begin.dial)
        self.backend, self._dialect = link, dialect
        self._connect(link, BACKEND)
        if self.dials > 1 and self.begin.successors_work:
            await self.take(said(BACKEND, _CREATED))
            await self.take(said(BACKEND, _echo(dialect, self.plan)))
        return None

    def sent(self, side: Side, message: bytes) -> None:
        if side is BACKEND:
            self.to_backend += 1
            values = orjson.loads(message)
            assert type(values["type"]) is str
            return
        self.to_phone += 1
        read = read_server_message(message.decode(), orjson.loads(message)["streamSid"])
        if isinstance(read, Refused):
            raise FaultError(f"Twilio would refuse what we sent: {read.why}")
        if b'"event":"mark"' in message:
            self.marks.append(orjson.loads(message)["mark"]["name"])

    def _connect(self, link: Link, side: Side) -> None:
        transport = self._sockets[link] = _Transport(self, side)
        link.on_ws_connected(transport)  # type: ignore[arg-type]

    def link(self, side: Side) -> Link | None:
        return self.phone if side is PHONE else self.backend

    async def take(self, step: Step) -> None:
        """Carry out one step."""
        match step:
            case Frame():
                link = self.link(step.side)
                if link is not None and (transport := self._sockets.get(link)) is not None:
                    with timed(f"a frame of {len(step.payload)} bytes from the {step.side.value}"):
                        link.on_ws_frame(transport, _Frame(step))  # type: ignore[arg-type]
            case Wait():
                self.now += step.s if step.still else 0.0
                await self.wait(0.0 if step.still else step.s)
            case Marks():
                for _ in range(min(step.count, len(self.marks))):
                    await self.take(said(PHONE, _mark(self.marks.pop(0))))
            case Happens("up"):
                if self.phone is None and not self.ended:
                    self.phone = self.session.phone_link("us1", Route("fra", "fra", "us1"))
                    self._connect(self.phone, PHONE)
            case Happens("lost"):
                self.lose(self.link(step.side))
            case Happens("slow"):
                self.session.link_slow(step.side)
            case Happens("pong"):
                self.session.link_pong(step.side)
            case Happens("silent"):
                self.silent.add(step.side)
            case _:
                pass
        self._look()

    def lose(self, link: Link | None) -> None:
        """A socket is gone."""
        if link is not None and (transport := self._sockets.pop(link, None)) is not None:
            link.on_ws_disconnected(transport)  # type: ignore[arg-type]

    async def wait(self, s: float) -> None:
        """Let time pass: the session's timer comes when it is due, and pings are answered."""
        until = self.now + s
        for _ in range(TICKS_MAX):
            await asyncio.sleep(0)
            for side in self.pings:
                if side not in self.silent:
                    self.session.link_pong(side)
            self.pings.clear()
            at = self.session.wakes_at
            if at is None or at > until:
                self.now = max(self.now, until)
                return
            self.now = max(self.now, at)
            with timed("a tick"):
                self.session.wake()
            self._look()
        raise FaultError(f"more than {TICKS_MAX} ticks within {s} s: the call spins")

    def _look(self) -> None:
        if self.log.broke:
            raise FaultError("call broke") from self.log.broke[0]

    async def over(self) -> None:
        """Let the call come to its end by itself, and look at what it leaves."""
        self.pings.clear()
        self.silent = {PHONE, BACKEND}
        await self.wait(longest_s(self.plan) + 60.0)
        if not self.ended:
            raise FaultError("the call does not end")
        for link in [*self._sockets]:
            self.lose(link)
        self.cancel_tasks()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._look()
        assert len(self.ended) == 1, "a call ends once"
        assert self.session.at_rest, "a timer or a task is left"
        self.call.watcher.check_end()

    def cancel_tasks(self) -> None:
        """Cancel what the session has begun and has not ended."""
        for task in asyncio.all_tasks() - self._others:
            task.cancel()

    def check_memory(self) -> None:
        """What the call keeps is bounded, what its session has queued included."""
        queues = [each for each in vars(self.session).values() if isinstance(each, deque)]
        kept = memory_bytes(self.call, *queues, self._dialect)
        own = memory_bytes(self.call.watcher) if self.call.watcher else 0
        if kept - own > MEMORY_MAX_BYTES:
            raise FaultError(f"the call keeps {kept - own} bytes")


def _remember(_record: Record) -> None:
    pass


def _take(_report: object) -> None:
    pass


async def _not_hung_up(call_sid: str, twilio_region: str) -> str | None:
    return "no credentials"


async def _not_handed_over(call_sid: str, twilio_region: str, resume_url: str) -> tuple[bool, RedirectAnswered]:
    return True, RedirectAnswered(RedirectOutcome.FAILED, "no credentials")


# --- What the peers say ------------------------------------------------------------------------------


def said(side: Side, message: dict[str, Any] | bytes) -> Frame:
    """A text message."""
    return Frame(side, message if isinstance(message, bytes) else orjson.dumps(message))


def _mark(name: str) -> dict[str, Any]:
    return {"event": "mark", "sequenceNumber": "88", "streamSid": STREAM_SID, "mark": {"name": name}}


_START: Final = {
    "event": "start",
    "sequenceNumber": "1",
    "streamSid": STREAM_SID,
    "start": {
        "streamSid": STREAM_SID,
        "callSid": CALL_SID,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {},
    },
}
_PHONE_LINES: Final = tuple(lines("twilio_to_us.jsonl"))
_BACKEND_LINES: Final = {
    True: tuple(lines("openai_server.jsonl")),
    False: tuple(lines("voicelive_server.jsonl")),
}
_FRAME: Final = base64.b64encode(b"\xff" * 160).decode()


_CREATED: Final = {"type": "session.created", "session": {"id": "sess_1"}}


def _echo(dialect: Dialect, plan: Plan) -> dict[str, Any]:
    """`session.updated` as the backend answers what it is told."""
    return {
        "type": "session.updated",
        "session": orjson.loads(dialect.render(Configure(dialect.fitted(plan))))["session"],
    }


class _Talk:
    """Draws what the peers say, right or damaged."""

    def __init__(self, rng: Random, begin: Begin) -> None:
        self.rng = rng
        self.mutator = Mutator(rng)
        self.openai = EVERY[begin.backend].service == OPENAI
        self.timestamp_ms = 100
        self.wildness = rng.choice((0.02, 0.1, 0.3, 0.7))

    def step(self, side: Side, message: dict[str, Any] | bytes) -> Iterator[Frame]:
        """A message, or what becomes of it."""
        rng = self.rng
        frame = said(side, message)
        if rng.random() >= self.wildness:
            yield frame
            return
        match rng.randrange(12):
            case 0:
                return
            case 1:
                yield from (frame, frame)
            case 2:
                yield replace(frame, kind=rng.choice((0, 2)))
            case 3:
                at, last = rng.randint(0, len(frame.payload)), rng.random() < 0.9
                yield replace(frame, payload=frame.payload[:at], fin=False)
                rest = Frame(side, frame.payload[at:], 0, last)
                yield rest
            case _:
                yield replace(frame, payload=self.mutator.message(frame.payload))

    def phone(self) -> Iterator[Step]:
        """The phone does something."""
        rng = self.rng
        match rng.randrange(10):
            case 0:
                digit = rng.choice("0123456789*#ABCDx")
                yield from self.step(PHONE, {"event": "dtmf", "streamSid": STREAM_SID, "dtmf": {"digit": digit}})
            case 1:
                yield from self.step(PHONE, rng.choice(_PHONE_LINES))
            case 2 | 3:
                yield Marks(rng.choice((1, 1, 3, 50)))
            case 4:
                yield from self.step(PHONE, _mark(rng.choice(("", "g1-r1-1", "*", "g0-item-1", "9" * 400))))
            case _:
                for _ in range(rng.choice((1, 3, 10))):
                    self.timestamp_ms += rng.choices((20, 21, 0, 500, 30_000, -300), (80, 10, 2, 4, 2, 2))[0]
                    payload = _FRAME if rng.random() < 0.8 else base64.b64encode(rng.randbytes(160)).decode()
                    media = {"track": "inbound", "timestamp": str(self.timestamp_ms), "payload": payload}
                    yield from self.step(PHONE, {"event": "media", "streamSid": STREAM_SID, "media": media})

    def backend(self) -> Iterator[Step]:
        """The backend does something: a turn, a response, or a line of the vectors."""
        rng = self.rng
        match rng.randrange(8):
            case 0 | 1:
                yield from self._turn()
            case 2 | 3 | 4:
                yield from self._response()
            case 5:
                kinds = ("insufficient_quota", "rate_limit_exceeded", "server_error", "unknown_parameter", "x")
                error = {"type": "invalid_request_error", "code": rng.choice(kinds), "message": "m", "param": None}
                yield from self.step(BACKEND, {"type": "error", "error": error})
            case _:
                yield from self.step(BACKEND, rng.choice(_BACKEND_LINES[self.openai]))

    def _turn(self) -> Iterator[Step]:
        item = {"item_id": f"item_u{self.rng.randrange(4)}"}
        buffer = "input_audio_buffer"
        yield from self.step(BACKEND, {"type": f"{buffer}.speech_started", "audio_start_ms": 10, **item})
        yield Wait(self.rng.choice((0.0, 0.3, 2.0)))
        yield from self.step(BACKEND, {"type": f"{buffer}.speech_stopped", "audio_end_ms": 900, **item})
        yield from self.step(BACKEND, {"type": f"{buffer}.committed", "previous_item_id": None, **item})
        transcribed = "conversation.item.input_audio_transcription.completed"
        yield from self.step(BACKEND, {"type": transcribed, "transcript": "I need an appointment.", **item})

    def _response(self) -> Iterator[Step]:
        rng = self.rng
        output = "output_" if self.openai else ""
        response_id, part = f"resp_{rng.randrange(4)}", rng.randrange(3)
        ids = {"response_id": response_id, "item_id": f"item_{response_id}_{part}", "output_index": 0}
        yield from self.step(
            BACKEND, {"type": "response.created", "response": {"id": response_id, "status": "in_progress"}}
        )
        for _ in range(rng.choice((0, 1, 1, 4))):
            size = rng.choice((1, 160, 4_000, 4_000, 24_001))
            audio = base64.b64encode(rng.randbytes(size)).decode()
            yield from self.step(BACKEND, {"type": f"response.{output}audio.delta", "delta": audio, **ids})
            text = f"response.{output}audio_transcript.delta"
            yield from self.step(BACKEND, {"type": text, "delta": "Of course. ", **ids})
            yield Wait(rng.choice((0.0, 0.0, 0.2, 1.0)))
        if rng.random() < 0.3:
            call = {"call_id": f"call_{rng.randrange(3)}", "name": rng.choice(("find_slot", "hang_up", "x"))}
            done = {"type": "response.function_call_arguments.done", "arguments": '{"day":"tuesday"}'}
            yield from self.step(BACKEND, {**done, **call, **ids})
        yield from self.step(BACKEND, {"type": f"response.{output}audio.done", **ids})
        words = {"type": f"response.{output}audio_transcript.done", "transcript": "Of course. Which day?"}
        yield from self.step(BACKEND, {**words, **ids})
        status = rng.choice(("completed", "completed", "cancelled", "failed", "incomplete", "of the future"))
        response = {"id": response_id, "status": status, "status_details": None, "usage": _USAGE}
        yield from self.step(BACKEND, {"type": "response.done", "response": response})

    def flood(self) -> Iterator[Step]:
        """The same kind of message again and again, each with another id, and long."""
        rng = self.rng
        output = "output_" if self.openai else ""
        kinds = (
            f"response.{output}audio.delta",
            f"response.{output}audio_transcript.delta",
            f"response.{output}audio_transcript.done",
            "response.function_call_arguments.done",
            "input_audio_buffer.speech_started",
            "input_audio_buffer.committed",
            "conversation.item.input_audio_transcription.completed",
            "response.created",
            "response.done",
            "error",
        )
        kind, size = rng.choice(kinds), rng.choice((10, 1_000, 20_000))
        text = "A" * (size // 4 * 4)
        ever_new = rng.random() < 0.7
        for number in range(rng.choice((100, 400))):
            item = f"{number if ever_new else 0}-{text[: size if rng.random() < 0.05 else 8]}"
            fields = {"delta": text, "transcript": text, "arguments": text, "name": "find_slot", "call_id": item}
            ids = {"item_id": item, "response_id": item, "response": {"id": item, "status": "completed"}}
            yield said(BACKEND, {"type": kind, **fields, **ids, "error": {"code": text}})

    def rare(self) -> Step:
        """What happens once in a call, if at all."""
        rng = self.rng
        side = rng.choice((PHONE, BACKEND))
        what = rng.choice(("lost", "slow", "pong", "silent", "stop", "huge", "still"))
        if what == "still":
            return Wait(rng.choice((0.6, 3.0, 15.0, 90.0)), still=True)
        if what == "stop":
            return said(PHONE, {"event": "stop", "streamSid": STREAM_SID, "stop": {"callSid": CALL_SID}})
        if what == "huge":
            size = rng.choices((65_000, 66_000, 1_000_000, 4_000_000), (30, 30, 30, 3))[0]
            kind = b"response.output_audio.delta" if self.openai else b"response.audio.delta"
            ids = b'"response_id":"resp_1","item_id":"item_1"'
            return Frame(
                side, b'{"type":"' + kind + b'","event":"media",' + ids + b',"delta":"' + b"A" * size + b'"}'
            )
        return Happens(what, side)


_USAGE: Final = {
    "total_tokens": 30,
    "input_token_details": {"text_tokens": 9, "audio_tokens": 11, "cached_tokens_details": {"text_tokens": 3}},
    "output_token_details": {"text_tokens": 4, "audio_tokens": 6},
}


class Calls:
    """The target."""

    name = "calls"
    share = 72

    def __init__(self) -> None:
        self._neighbour: Bench | None = None

    def draw(self, rng: Random) -> Sequence[Step]:
        """See Target."""
        backend = rng.choices(range(len(EVERY)), (8, 1, 1, 1, 8, 1, 1, 1))[0]
        successors = tuple(rng.choices(range(len(EVERY)), k=rng.choice((0, 0, 1, 2))))
        dial = rng.choices(("", "refused", "hangs"), (94, 3, 3))[0]
        begin = Begin(backend, rng.randrange(len(PLANS)), successors, dial, rng.random() < 0.8)
        talk = _Talk(rng, begin)
        steps: list[Step] = [begin]
        wildness = talk.wildness
        if rng.random() < 0.85:
            talk.wildness = 0.0  # most calls begin well, or hardly any would get further
        opening: list[list[Step]] = [
            list(talk.step(BACKEND, _CREATED)),
            list(talk.step(BACKEND, _echo(_dialect(EVERY[backend]), PLANS[begin.plan]))),
            [Happens("up")],
            list(talk.step(PHONE, {"event": "connected", "protocol": "Call", "version": "1.0.0"})),
            list(talk.step(PHONE, _START)),
        ]
        if rng.random() < 0.05:
            rng.shuffle(opening)
        for each in opening:
            steps += each
            if rng.random() < 0.3:
                steps.append(Wait(rng.choices((0.02, 0.2, 1.0, 6.0), (50, 40, 8, 2))[0]))
        talk.wildness = wildness
        for _ in range(rng.choice((2, 6, 12))):
            steps += talk.phone() if rng.random() < 0.4 else talk.backend()
            steps.append(Wait(rng.choices((0.0, 0.02, 0.1, 0.5, 2.0, 9.0), (20, 20, 20, 20, 15, 1))[0]))
        if rng.random() < 0.02:
            steps += talk.flood()
        if rng.random() < 0.3:
            steps.insert(rng.randint(1, len(steps)), talk.rare())
        return steps

    async def run(self, case: Sequence[Step]) -> None:
        """See Target. Also that a neighbour on the same loop hears and is heard as before."""
        begin = case[0] if case and isinstance(case[0], Begin) else Begin()
        bench = Bench(begin)
        try:
            bench.session.begin()
            await asyncio.sleep(0)
            for step in case:
                await bench.take(step)
            bench.check_memory()
            await bench.over()
        finally:
            bench.cancel_tasks()
        await self._greet_neighbour()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """See Target."""
        yield

    async def _greet_neighbour(self) -> None:
        """A caller's frame reaches the neighbour's backend at once, and a word of its agent the phone."""
        if self._neighbour is None or self._neighbour.now > 15.0:
            if self._neighbour is not None:
                self._neighbour.session.shut_down()
            self._neighbour = await self._new_neighbour()
        bench = self._neighbour
        number = round(bench.now * 50)
        before = (bench.to_phone, bench.to_backend)
        media = {"track": "inbound", "timestamp": str(100 + number * 20), "payload": _FRAME}
        await bench.take(said(PHONE, {"event": "media", "streamSid": STREAM_SID, "media": media}))
        ids = {"response_id": "resp_1", "item_id": "item_1"}
        delta = {"type": "response.output_audio.delta", "delta": _FRAME[:-4], **ids}
        await bench.take(said(BACKEND, delta))
        await bench.wait(0.02)
        await bench.take(Marks(9))
        if bench.ended or not (bench.to_phone > before[0] and bench.to_backend > before[1]):
            raise FaultError(f"the neighbour's call is disturbed: {bench.ended or 'silence'}")

    async def _new_neighbour(self) -> Bench:
        bench = Bench(Begin(plan=1))
        bench.session.begin()
        await asyncio.sleep(0)
        for step in (
            said(BACKEND, _CREATED),
            said(BACKEND, _echo(_dialect(EVERY[0]), bench.plan)),
            Happens("up"),
            said(PHONE, _START),
            said(BACKEND, {"type": "response.created", "response": {"id": "resp_1"}}),
        ):
            await bench.take(step)
        return bench
