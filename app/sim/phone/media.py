"""One media stream as Twilio runs it: sends frames, checks messages, plays audio, returns marks, closes.

One task plays (frames on an absolute schedule, mark echoes, delayed messages, pings) and one reads. Of the TwiML
it knows only its <Stream>. What the call does next is decided elsewhere: `run` returns a StreamClosed.
Sources: twilio.md 1.1 to 1.6, 1.9.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from websockets.exceptions import ConnectionClosed

from app.sim.phone.audio import HeardSpeech, SpeechQueue
from app.sim.phone.events import (
    AgentSpoke,
    AudioReceived,
    ClearReceived,
    ClosedBy,
    DtmfSent,
    MarkEchoed,
    MarkReceived,
    PhoneEvent,
    Problem,
    StreamClosed,
    StreamOpened,
    StreamStarted,
    Violation,
)
from app.sim.phone.options import PhoneOptions
from app.sim.phone.playout import Echo, PlayoutBuffer
from app.sim.phone.socket import OpenFailure, Socket, open_socket
from app.sim.phone.twiml_document import Stream
from app.sim.phone.webhook import REGION_HEADER, Addresses, Signer, preferring
from app.sim.phone.wire import (
    CONNECTED,
    FRAME_MS,
    Refused,
    Script,
    ServerClear,
    ServerMark,
    ServerMedia,
    read_server_message,
)

FRAME_S: Final = FRAME_MS / 1000
_FIRST_TIMESTAMP_MS: Final = (100, 200)
_JITTER_MS: Final = 2

MAX_UNSENT_BYTES: Final = 64 * 1024
"""About 3 s of frames the application has not read: from here on caller audio is dropped (31930)."""

_MESSAGE_QUOTE_CHARS: Final = 200
_WAV_HEADER: Final = b"RIFF"


class MediaStream:
    """`run` it once. All other methods may be called at any time, before and after too, from the same loop."""

    def __init__(
        self,
        noun: Stream,
        *,
        stream_sid: str,
        call_sid: str,
        options: PhoneOptions,
        addresses: Addresses,
        signer: Signer,
        rng: random.Random,
        speech_queue: SpeechQueue,
        heard_speech: HeardSpeech,
        emit: Callable[[PhoneEvent], None],
        ticked: Callable[[], None],
    ) -> None:
        """`emit` is called with every event, `ticked` after each 20 ms of the stream."""
        self.noun = noun
        self.stream_sid = stream_sid
        self.playout = PlayoutBuffer()
        self.started_at: float | None = None
        self._options = options
        self._addresses = addresses
        self._signer = signer
        self._rng = rng
        self._speech_queue = speech_queue
        self._heard_speech = heard_speech
        self._emit = emit
        self._ticked = ticked
        self._script = Script(options.account_sid, call_sid, stream_sid)
        self._loop = asyncio.get_running_loop()
        self._delay_s = options.network_delay_ms / 1000
        self._socket: Socket | None = None
        self._outbox: deque[tuple[float, str]] = deque()  # (when it may leave, text)
        self._inbox: deque[tuple[float, str | bytes | ConnectionClosed]] = deque()  # (when it is here, what)
        self._stalled_until = 0.0
        self._finishing: ClosedBy | None = None
        self._closed: StreamClosed | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self._warned: set[int] = set()

    # What the caller, REST and the network do

    def finish(self, by: ClosedBy) -> None:
        """Ends the stream from Twilio's side: `stop`, then close."""
        if self._finishing is not None or self._closed is not None:
            return
        self._finishing = by
        if self.started_at is not None and self._options.send_stop:
            self._post(self._script.stop())
        self._wake()

    def dtmf(self, digit: str) -> None:
        """The caller presses a key."""
        self._post(self._script.dtmf(digit))
        self._emit(DtmfSent(self._loop.time(), digit))

    def stall(self, ms: float) -> None:
        """Holds all messages back for so long, then sends them at once."""
        self._stalled_until = self._loop.time() + ms / 1000

    def freeze(self) -> None:
        """Makes the connection half-open: no reads, no writes, no answers to pings, while TCP stays up."""
        if self._socket is not None:
            self._socket.frozen = True

    def cut(self) -> None:
        """The TCP connection breaks, without `stop` or a close frame (31903)."""
        if self._socket is not None:
            self._socket.transport.abort()

    # The stream's life

    async def run(self) -> StreamClosed:
        """Runs the whole stream. Leaves no task and no socket behind, however it ends."""
        closed = await self._run()
        self._speech_over(closed.at, cut_off=True)
        self._emit(closed)
        return closed

    async def _run(self) -> StreamClosed:
        fault = self.noun.fault
        if fault is not None:
            return self._refused(fault.code, fault.text)
        try:
            return await self._dialled()
        finally:
            if self._socket is not None:
                self._socket.transport.abort()

    async def _dialled(self) -> StreamClosed:
        opened_at = self._loop.time()
        opening = asyncio.create_task(self._open())
        try:
            await self._first_of(opening)
        finally:
            if not opening.done():
                opening.cancel()
                await asyncio.wait({opening})
        outcome = None if opening.cancelled() else opening.result()
        if isinstance(outcome, OpenFailure):
            return self._refused(outcome.code, outcome.text)
        if outcome is None:
            return self._closing(None, "before the upgrade was answered")
        took_ms = (self._loop.time() - opened_at) * 1000
        region = None if outcome.response is None else outcome.response.headers.get(REGION_HEADER)
        self._emit(StreamOpened(self._loop.time(), self.noun.url, took_ms, region))
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(outcome))
            try:
                await self._play()
                self._stop_playout()
                if self._closed is None and not outcome.frozen:
                    await outcome.close()
                return self._closed or self._closing(outcome.close_code, "")
            finally:
                reader.cancel()

    async def _first_of(self, opening: "asyncio.Task[Socket | OpenFailure]") -> None:
        """Wait for the upgrade, unless the call ends while it is under way."""
        opening.add_done_callback(lambda _: self._wake())
        while not opening.done() and self._finishing is None:
            await self._sleep_until(None)

    async def _open(self) -> Socket | OpenFailure:
        url = self.noun.url
        headers = {"accept-encoding": "gzip", **self._signature(url), **preferring(self._options)}
        outcome = await open_socket(url, self._addresses.dial(url), headers, self._options)
        if isinstance(outcome, Socket):
            self._socket = outcome
        return outcome

    def _signature(self, url: str) -> dict[str, str]:
        """Over the wss URL as in the TwiML; the header's name was seen in lower case (twilio.md 1.1, 3.3)."""
        signing = self._options.stream_signing or self._options.signing
        if signing == "slash":
            signing, url = "right", url + "/"
        return {name.lower(): value for name, value in self._signer.headers(signing, url, {}).items()}

    # Reading

    async def _read(self, ws: Socket) -> None:
        try:
            while True:
                self._arrive(await ws.recv())
        except ConnectionClosed as error:
            self._arrive(error)

    def _arrive(self, what: str | bytes | ConnectionClosed) -> None:
        if self._delay_s:
            self._inbox.append((self._loop.time() + self._delay_s, what))
            if len(self._inbox) == 1:
                self._wake()
        else:
            self._handle(what, self._loop.time())

    def _handle(self, what: str | bytes | ConnectionClosed, now: float) -> None:
        if self._closed is not None or self._finishing is not None:
            return
        if isinstance(what, ConnectionClosed):
            self._closed = self._lost(what, now)
            self._wake()
            return
        message = read_server_message(what, self.stream_sid)
        match message:
            case ServerMedia(audio):
                self._media(audio, what, now)
            case ServerMark(name):
                self.playout.mark(name, now)
                self._emit(MarkReceived(now, name, self.playout.appended))
                self._echo(self.playout.due(now), now)
                self._wake()
            case ServerClear():
                self._clear(now)
            case Refused(code, why):
                self._violation(code, why, what, now)

    def _media(self, audio: bytes, what: str | bytes, now: float) -> None:
        if audio.startswith(_WAV_HEADER):
            self._violation(None, "media.payload starts with a WAV header, which is heard as a click", what, now)
        start = self.playout.appended
        discarded = self.playout.append(audio, now)
        if self._options.keep_audio:
            self._emit(AudioReceived(now, start, self.playout.appended))
        if discarded:
            self._warn_once(31931, "more than 10 minutes of audio wait: what comes on top is discarded", now)

    def _clear(self, now: float) -> None:
        self._echo(self.playout.due(now), now)
        cleared = self.playout.clear(now)
        # What comes after a clear is something new, however soon it comes.
        self._heard_speech.hear(self.playout.take_played(now))
        self._speech_over(now, cut_off=True)
        self._emit(ClearReceived(now, cleared.played_to, cleared.discarded_bytes))
        self._echo(cleared.echoes, now)
        self._wake()

    def _echo(self, echoes: list[Echo], now: float) -> None:
        for echo in echoes:
            self._post(self._script.mark(echo.name))
            self._emit(MarkEchoed(now, echo.name, echo.position, echo.heard))

    def _violation(self, code: int | None, why: str, what: str | bytes, now: float) -> None:
        text = what if isinstance(what, str) else repr(what[:_MESSAGE_QUOTE_CHARS])
        self._emit(Violation(now, code, why, text[:_MESSAGE_QUOTE_CHARS]))
        if code is not None:
            self._warn_once(code, why, now)

    def _warn_once(self, code: int, text: str, now: float) -> None:
        """Twilio reports each of these once per stream (twilio.md 1.6)."""
        if code not in self._warned:
            self._warned.add(code)
            self._emit(Problem(now, code, text))

    # Playing

    async def _play(self) -> None:
        """Does everything that is due at a time, in one loop with one timer, until the stream is over."""
        low, high = self._options.connected_after_ms
        frame_at = self._loop.time() + self._rng.uniform(low, high) / 1000
        first_ms = self._rng.randint(*_FIRST_TIMESTAMP_MS)
        frame_count = 0
        ping_at = frame_at + self._options.ping_interval_s
        while self._closed is None:
            now = self._loop.time()
            self._receive_due(now)
            if now >= frame_at and self._finishing is None:
                if self.started_at is None:
                    self._start(now)
                    frame_at = now
                while frame_at <= now:
                    self._frame(first_ms, frame_count, frame_at)
                    frame_count += 1
                    frame_at += FRAME_S
                self._listen(now)
            self._echo(self.playout.due(now), now)
            if now >= ping_at:
                self._ping()
                ping_at = now + self._options.ping_interval_s
            self._send_due(now)
            if self._finishing is not None and not self._outbox:
                return
            await self._sleep_until(self._next_wake(frame_at))

    def _start(self, now: float) -> None:
        self._post(CONNECTED)
        self._post(self._script.start(self.noun.parameters))
        self.started_at = now
        self._emit(StreamStarted(now, self.stream_sid))

    def _frame(self, first_ms: int, count: int, at: float) -> None:
        audio = self._speech_queue.frame(at)
        if audio is None and self._options.gaps_in_silence:
            return
        assert self._socket is not None
        if self._socket.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._warn_once(31930, "the application reads too slowly: caller audio is dropped", at)
            return
        jitter_ms = self._rng.randint(-_JITTER_MS, _JITTER_MS) if count else 0
        self._post(self._script.media(first_ms + FRAME_MS * count + jitter_ms, audio))

    def _listen(self, now: float) -> None:
        """Account for what was heard in the last 20 ms."""
        self._heard_speech.hear(self.playout.take_played(now))
        self._speech_over(now)
        self._ticked()

    def _speech_over(self, now: float, *, cut_off: bool = False) -> None:
        """Reports the agent's speech when it is over: after a silence, or at once when it was cut off."""
        span = self._heard_speech.meter.finished(now, over=cut_off)
        if span is not None:
            self._emit(AgentSpoke(now, span.started_at, span.ms))

    def _stop_playout(self) -> None:
        """Discards the waiting audio: it is never played, since the stream has ended."""
        now = self._loop.time()
        self.playout.clear(now)
        self._heard_speech.hear(self.playout.take_played(now))

    def _ping(self) -> None:
        assert self._socket is not None
        self._socket.post_ping()

    # Time and order

    def _post(self, text: str) -> None:
        """Sends in order, once the network's delay and a stall allow it."""
        now = self._loop.time()
        leaves_at = max(now + self._delay_s, self._stalled_until)
        if leaves_at > now or self._outbox:
            self._outbox.append((leaves_at, text))
            if len(self._outbox) == 1:
                self._wake()
        elif self._socket is not None:
            self._socket.post(text)

    def _send_due(self, now: float) -> None:
        assert self._socket is not None
        while self._outbox and self._outbox[0][0] <= now:
            self._socket.post(self._outbox.popleft()[1])

    def _receive_due(self, now: float) -> None:
        while self._inbox and self._inbox[0][0] <= now:
            self._handle(self._inbox.popleft()[1], now)

    def _next_wake(self, frame_at: float) -> float:
        times = [frame_at] if self._finishing is None else []
        due = self.playout.next_due()
        if due is not None:
            times.append(due)
        times += [queue[0][0] for queue in (self._outbox, self._inbox) if queue]
        return min(times)

    async def _sleep_until(self, when: float | None) -> None:
        """Until that time or a `_wake`, whichever is first."""
        self._wakeup = self._loop.create_future()
        timer = None if when is None else self._loop.call_at(when, self._wake)
        try:
            await self._wakeup
        finally:
            self._wakeup = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    # How it ended

    def _refused(self, code: int, text: str) -> StreamClosed:
        self._emit(Problem(self._loop.time(), code, text))
        return StreamClosed(self._loop.time(), "refused", None, f"{code} {text}")

    def _lost(self, error: ConnectionClosed, now: float) -> StreamClosed:
        """Returns how a connection ended that this side did not end."""
        by: ClosedBy = "server"
        if error.rcvd is not None and (error.sent is None or error.rcvd_then_sent):
            twilio_code, code = 31921, int(error.rcvd.code)
            text = f"the application closed the stream with {error.rcvd.code} {error.rcvd.reason}".rstrip()
        elif error.sent is not None:
            twilio_code, code = 31924, error.sent.code
            text = f"the application broke the WebSocket protocol: {error.sent.reason}"
        else:
            by, twilio_code, code = "network", 31903, None
            text = "the connection broke without a close"
        self._emit(Problem(now, twilio_code, text))
        return StreamClosed(now, by, code, f"{twilio_code} {text}")

    def _closing(self, code: int | None, reason: str) -> StreamClosed:
        assert self._finishing is not None
        return StreamClosed(self._loop.time(), self._finishing, code, reason)
