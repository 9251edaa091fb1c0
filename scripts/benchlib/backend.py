"""The backend of the load test: thousands of Realtime sessions, each with a scripted conversation.

It sends the same events as the simulator in app/sim/realtime (realtime.md 1.5 to 1.8) and shares no code with it:
it runs on picows and does as little as possible per event, so that one core carries thousands of sessions. The
caller's turns come from a script, not from a VAD. Stamps in the audio show how long each piece took.
"""

import asyncio
import math
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import orjson
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

from scripts.benchlib.meter import STAMP_CHARS, Meter, filler, read_stamp, stamp

CYCLE_S = 8.0
SPEECH_S = 0.8
"""How long the caller speaks in a cycle."""
THINK_S = 0.2
REPLY_MS = 6_600
GREETING_MS = 2_000
SPEED = 4.0
"""Agent audio leaves this many times faster than it plays."""
DELTA_MS = (100, 150, 200)
AT_ONCE_MS = 1_500
"""Of a reply to a phone that plays nothing, so much may go out at once: well below the server's lead of 2 s."""
BARGE_INS_S = (None, None, None, 2.5, None, None, 1.0)
"""After the start of each of a call's replies the caller cuts in, or not: at 2.5 s every delta was sent, at 1.0 s
they still come."""

_FIRST_TURN_S = 1.0
"""From the first caller frame to the script: the greeting's audio is sent by then."""
_APPEND = b'{"type":"input_audio_buffer.append","audio":"'
_STAMP_AT = slice(len(_APPEND), len(_APPEND) + STAMP_CHARS)
_FILLERS = {ms: filler(ms * 8, 0x55) for ms in DELTA_MS}
_USAGE: Mapping[str, Any] = {
    "input_token_details": {"text_tokens": 119, "audio_tokens": 13, "cached_tokens_details": {"text_tokens": 64}},
    "output_token_details": {"text_tokens": 21, "audio_tokens": 100},
}


@dataclass(slots=True)
class Opening:
    """The progress of a session's opening, on the monotonic clock in ns; 0 means not yet."""

    updated_ns: int = 0
    """`session.updated` was sent: the backend is ready."""


class LoadBackend:
    """All sessions of the load test, and their measurements."""

    def __init__(self, handshake_s: float = 0.0) -> None:
        self.handshake_s = handshake_s
        """From the accepted socket to `session.created`."""
        self.meter = Meter()
        self.sessions: set[Session] = set()
        self.interrupted_ns: dict[int, int] = {}
        """When the caller last began to speak, by the number in the call's stamps."""
        self.random = random.Random(1)
        self._numbers = count(1)
        self._openings: dict[int, asyncio.Future[Opening]] = {}

    def number(self) -> int:
        """A number for the next call's stamps."""
        return next(self._numbers)

    def opening(self, number: int) -> "asyncio.Future[Opening]":
        """Resolves to the session's opening times once the call's first audio has arrived."""
        return self._openings.setdefault(number, asyncio.get_running_loop().create_future())

    @asynccontextmanager
    async def serve(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Serve on a free port; gives the base URL as OPENAI_BASE_URL takes it."""
        server = await ws_create_server(lambda _request: Session(self), "127.0.0.1", 0, backlog=2048, ssl=tls)
        try:
            scheme, port = "http" if tls is None else "https", server.sockets[0].getsockname()[1]
            yield f"{scheme}://127.0.0.1:{port}/v1"
        finally:
            server.close()
            for session in list(self.sessions):
                session.drop()


class Session(WSListener):
    """One connection and its script."""

    def __init__(self, load_backend: LoadBackend) -> None:
        self._load_backend = load_backend
        self._loop = asyncio.get_running_loop()
        self._transport: WSTransport | None = None
        self._script: asyncio.TimerHandle | None = None
        self._reply: _Reply | None = None
        self._call: int | None = None
        self._opening = Opening()
        self._turns = 0
        self._replies = 0

    # --- The socket ----------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self._load_backend.sessions.add(self)
        self._then(self._load_backend.handshake_s, self._created)

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        self._transport = None
        self._load_backend.sessions.discard(self)
        if self._script is not None:
            self._script.cancel()
        if self._reply is not None:
            self._reply.stop()

    def drop(self) -> None:
        """Break the connection."""
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    def put(self, message: bytes) -> None:
        """Sends an encoded message."""
        if self._transport is not None:
            self._transport.send(WSMsgType.TEXT, message)

    def send(self, kind: str, **fields: object) -> None:
        """Send a message."""
        self.put(orjson.dumps({"type": kind, "event_id": "event_load", **fields}))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            message = frame.get_payload_as_bytes()
            if message.startswith(_APPEND):
                self._caller_audio(message)
            else:
                self._client_event(orjson.loads(message))
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()

    def _caller_audio(self, message: bytes) -> None:
        number, sent_ns = read_stamp(message[_STAMP_AT])
        meter = self._load_backend.meter
        if meter.covers(sent_ns):
            meter.caller_ns.append(time.monotonic_ns() - sent_ns)
        if self._call is None:
            self._call = number
            self._load_backend.opening(number).set_result(self._opening)
            self._then(_FIRST_TURN_S, self._enter)

    def _client_event(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.update":
                self.send("session.updated", session=event["session"])
                self._opening.updated_ns = time.monotonic_ns()
            case "response.create":
                self._say(GREETING_MS)
            case "response.cancel":
                self._cut()
            case "conversation.item.truncate":
                self.send("conversation.item.truncated", item_id=event["item_id"], content_index=0)
            case _:
                pass

    # --- The script ----------------------------------------------------------------------------

    def _then(self, delay_s: float, step: Callable[[], None]) -> None:
        self._script = self._loop.call_later(delay_s, step)

    def _created(self) -> None:
        self.send("session.created", session={"type": "realtime", "id": "sess_load"})

    def _enter(self) -> None:
        """Begin somewhere in the cycle, so that the load of many calls is even from the start."""
        at_s = self._load_backend.random.uniform(0, CYCLE_S)
        busy_s = SPEECH_S + THINK_S + REPLY_MS / SPEED / 1000
        self._then(0 if at_s < busy_s else CYCLE_S - at_s, self._speech)

    def _speech(self) -> None:
        self._cut()
        self._turns += 1
        if self._call is not None:
            self._load_backend.interrupted_ns[self._call] = time.monotonic_ns()
        self.send("input_audio_buffer.speech_started", audio_start_ms=0, item_id=self._item)
        self._then(SPEECH_S, self._stopped)

    def _stopped(self) -> None:
        item = {"id": self._item, "type": "message", "status": "completed", "role": "user"}
        self.send("input_audio_buffer.speech_stopped", audio_end_ms=800, item_id=self._item)
        self.send("input_audio_buffer.committed", previous_item_id=None, item_id=self._item)
        self.send("conversation.item.added", previous_item_id=None, item=item)
        self.send("conversation.item.done", previous_item_id=None, item=item)
        self._then(THINK_S, self._answer)

    def _answer(self) -> None:
        self.send(
            "conversation.item.input_audio_transcription.completed",
            item_id=self._item,
            content_index=0,
            transcript="I would like to move my appointment to Tuesday.",
        )
        barge_in_s = BARGE_INS_S[self._replies % len(BARGE_INS_S)]
        self._say(REPLY_MS)
        self._then(CYCLE_S - SPEECH_S - THINK_S if barge_in_s is None else barge_in_s, self._speech)

    @property
    def _item(self) -> str:
        return f"item_u{self._turns}"

    def _say(self, length_ms: int) -> None:
        self._cut()
        self._replies += 1
        self._reply = _Reply(self, self._loop, self._replies, length_ms)
        self._reply.begin()

    def _cut(self) -> None:
        if self._reply is not None:
            self._reply.cancel()


class _Reply:
    """One response: created, audio and transcript in deltas, done."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop, number: int, length_ms: int) -> None:
        self._session = session
        self._loop = loop
        self._id = f"resp_{number}"
        self._item = f"item_a{number}"
        self._length_ms = length_ms
        self._sent_ms = 0
        self._pieces = 0
        self._next_at = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self._delta = (
            '{"type":"response.output_audio.delta","event_id":"event_load",'
            f'"response_id":"{self._id}","item_id":"{self._item}","output_index":0,"content_index":0,"delta":"'
        ).encode()

    def begin(self) -> None:
        self._session.send("response.created", response={"id": self._id, "status": "in_progress", "output": []})
        item = {"id": self._item, "type": "message", "role": "assistant", "content": []}
        self._session.send("response.output_item.added", response_id=self._id, output_index=0, item=item)
        self._session.send("conversation.item.added", previous_item_id=None, item=item)
        self._work()

    def cancel(self) -> None:
        """Ends it as cancelled, unless it is over."""
        if not self._over:
            self._end("cancelled")

    def stop(self) -> None:
        """Stops sending: the connection has ended."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    def _work(self) -> None:
        """Send what is due; then the end, or a timer for the next piece."""
        now = self._loop.time()
        while self._next_at <= now:
            if self._sent_ms >= self._length_ms:
                self._done()
                return
            self._piece(DELTA_MS[self._pieces % len(DELTA_MS)])
        # Rounded up: uvloop's timers know whole milliseconds only, and come early.
        delay_ms = math.ceil((self._next_at - now) * 1000) + 1
        self._timer = self._loop.call_later(delay_ms / 1000, self._work)

    def _piece(self, ms: int) -> None:
        if self._pieces % 2 == 0:
            self._about("response.output_audio_transcript.delta", delta="of course ")
        at_once = self._sent_ms + ms <= AT_ONCE_MS
        self._session.put(self._delta + stamp(at_once) + _FILLERS[ms] + b'"}')
        self._pieces += 1
        self._sent_ms += ms
        self._next_at += ms / SPEED / 1000

    def _done(self) -> None:
        words = "of course " * ((self._pieces + 1) // 2)
        self._about("response.output_audio.done")
        self._about("response.output_audio_transcript.done", transcript=words)
        self._about("response.content_part.done", part={"type": "audio", "transcript": words})
        self._end("completed")

    def _end(self, status: str) -> None:
        self.stop()
        response = {"id": self._id, "status": status, "status_details": None, "usage": _USAGE}
        self._session.send("response.done", response=response)
        self._session.send("rate_limits.updated", rate_limits=[])

    def _about(self, kind: str, **fields: object) -> None:
        self._session.send(
            kind, response_id=self._id, item_id=self._item, output_index=0, content_index=0, **fields
        )
