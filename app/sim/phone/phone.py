"""Simulates Twilio and the caller's phone for one call.

`Phone` is the interface for tests and commands: it dials, speaks, listens, hangs up, and records the call. The
other modules do Twilio's part: twilio.py runs the documents, webhook.py sends signed HTTP requests,
twiml_document.py reads TwiML, media.py runs one stream, wire.py has its messages, and playout.py says what is
heard when. They share no code with the server. The load test has a cheaper phone for thousands of calls,
scripts/benchlib/phone.py, which sends the same messages.

    async with Phone(PhoneOptions(webhook_url="http://127.0.0.1:8080/twiml/voice", auth_token="...")) as phone:
        await phone.dial()
        await phone.answered()
        phone.say(read_wav("hello.wav"))
        await phone.heard_speech(200)
        await phone.hang_up()
    assert not phone.violations

Waiting is always for a condition (`wait_for`); nothing here polls.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from app.sim.phone.audio import HeardSpeech, SpeechQueue, Track
from app.sim.phone.errors import CallEndedError, PhoneError
from app.sim.phone.events import AgentSpoke, EndReason, HungUp, PhoneEvent, Problem, SayHeard, Violation
from app.sim.phone.media import FRAME_S, MediaStream
from app.sim.phone.options import PhoneOptions
from app.sim.phone.playout import BYTES_PER_MS
from app.sim.phone.twilio import TwilioCall
from app.sim.phone.twiml_document import Document
from app.sim.wav import write_wav

_CLEAN_UP_LIMIT_S: Final = 5.0
"""For hanging up in an orderly way when the block is left with the call still on."""


class Phone:
    """One call. Enter it and `dial` once; leaving it ends the call and closes everything."""

    def __init__(self, options: PhoneOptions, listener: Callable[[float, bytes], None] | None = None) -> None:
        """`listener` is called with the agent's audio as the caller hears it, and when it began to be heard.

        Raises PhoneError when a URL in the options is not a URL.
        """
        self.options = options
        self.call_sid = options.call_sid or f"CA{uuid.uuid4().hex}"
        self.timeline: list[PhoneEvent] = []
        self.violations: list[Violation] = []  # wrong messages of the application: a sound one sends none
        self.problems: list[Problem] = []  # what Twilio would have put into its error log
        self.speech_spans: list[AgentSpoke] = []  # the agent's finished stretches of speech
        self.announcements: list[str] = []  # the texts of all <Say> heard
        self._said = Track() if options.keep_audio else None
        self._heard = Track() if options.keep_audio else None
        self._speech_queue = SpeechQueue(self._said)
        self._heard_speech = HeardSpeech(self._heard, listener)
        self._call = TwilioCall(
            options, self.call_sid, self._speech_queue, self._heard_speech, self._emit, self._notify
        )
        self._running: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._running is not None:
                await self._clean_up(self._running)
        finally:
            await self._call.aclose()

    # What the caller does

    async def dial(self) -> None:
        """Calls the number: requests the voice webhook and begins its document.

        Raises WebhookError or TwimlError when there is no document; the call is over then.
        """
        assert self._running is None, "a Phone makes one call"
        self._loop = asyncio.get_running_loop()
        self._running = asyncio.create_task(self._call.run())
        self._running.add_done_callback(lambda _: self._notify())
        await self.wait_for(lambda phone: self._call.has_document or phone.error is not None)
        if not self._call.has_document and self.error is not None:
            raise self.error

    async def answered(self, *, streams: int = 1) -> MediaStream:
        """Waits until this many media streams have started in the call and returns the last of them.

        Raises CallEndedError when the call ends instead.
        """
        await self.wait_for(lambda phone: len(phone.started_streams) >= streams)
        return self.started_streams[streams - 1]

    def say(self, audio: bytes) -> None:
        """Queues mu-law audio for the caller to say. Without a stream it waits for the next one."""
        self._speech_queue.say(audio)

    async def spoken(self) -> None:
        """Wait until everything queued by `say` has been sent."""
        await self.wait_for(lambda _: self._speech_queue.silent)

    def press(self, digit: str) -> None:
        """Press a key (0-9, *, #) while a stream is up."""
        self._live_stream().dtmf(digit)

    async def hang_up(self) -> None:
        """Hangs up. Returns when the call is over and its callbacks are answered, also if it was over already."""
        self._call.hang_up()
        await self.over()

    async def over(self) -> None:
        """Waits until either side has ended the call and its callbacks are answered."""
        assert self._running is not None, "the phone has not dialled"
        await asyncio.wait({self._running})
        self._raise_bug()

    # What the network does

    def stall(self, ms: float) -> None:
        """Holds back everything that the phone sends on its stream for so long, then sends it in one burst."""
        self._live_stream().stall(ms)

    def freeze(self) -> None:
        """Makes the stream's connection half-open: nothing is read, sent or answered any more."""
        self._live_stream().freeze()

    def cut(self) -> None:
        """Breaks the stream's TCP connection. The call goes on as after a close (assumed, twilio.md 1.9)."""
        self._live_stream().cut()

    # What REST does (app/sim/phone/twilio_rest.py)

    def rest_complete(self) -> None:
        """Obeys `Status=completed`: `stop`, close, end of the call."""
        self._call.complete()

    def rest_document(self, document: Document) -> None:
        """Obeys `Twiml=`: `stop`, close, then this document."""
        self._call.replace(document)

    def rest_url(self, url: str, method: str) -> None:
        """Obeys `Url=`: `stop`, close, then the document that is fetched from there."""
        self._call.redirect(url, method)

    # What can be asked

    async def wait_for(self, condition: Callable[["Phone"], bool]) -> None:
        """Waits until the condition holds. It is checked after every event and every 20 ms of a stream.

        Raises CallEndedError when the call is over and it still does not hold.
        """
        while not condition(self):
            if self._running is None or self._running.done():
                self._raise_bug()
                raise CallEndedError(self._end_text()) from self.error
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    async def heard_speech(self, min_ms: float, *, since_ms: float = 0) -> None:
        """Waits until the caller has heard this much speech, on top of `since_ms` (see `speech_ms`)."""
        await self.wait_for(lambda phone: phone.speech_ms >= since_ms + min_ms)

    async def events(self) -> AsyncIterator[PhoneEvent]:
        """Every event of the call from its beginning, live, until the call is over."""
        count = 0
        while True:
            while count < len(self.timeline):
                yield self.timeline[count]
                count += 1
            with contextlib.suppress(CallEndedError):
                await self.wait_for(lambda phone: len(phone.timeline) > count)  # noqa: B023  (waited for here)
            if count == len(self.timeline):
                return

    @property
    def ended(self) -> EndReason | None:
        """Why the call is over; None while it is not."""
        return self._call.ended

    @property
    def error(self) -> PhoneError | None:
        """What made Twilio give up (`ended` is APPLICATION_ERROR then)."""
        return self._call.error

    @property
    def status(self) -> str:
        """The CallStatus, as Twilio would send it now."""
        return self._call.status

    @property
    def streams(self) -> list[MediaStream]:
        """All streams of the call, those that were refused too."""
        return self._call.streams

    @property
    def stream(self) -> MediaStream | None:
        """The live stream, or the last one."""
        return self.streams[-1] if self.streams else None

    @property
    def started_streams(self) -> list[MediaStream]:
        """The streams that got as far as `start`."""
        return [stream for stream in self.streams if stream.started_at is not None]

    @property
    def speech_ms(self) -> int:
        """How much of the agent's speech the caller has heard so far (loud 20 ms pieces)."""
        return self._heard_speech.meter.speech_ms

    @property
    def agent_speaking(self) -> bool:
        return self._heard_speech.meter.speaking

    @property
    def connected(self) -> bool:
        """True while a stream is up: between two of them the caller waits for what Twilio does next."""
        return self._call.live_stream is not None

    @property
    def speaking_since(self) -> float | None:
        """When the agent began to speak; None while it is silent."""
        return self._heard_speech.meter.speaking_since

    @property
    def waiting_ms(self) -> float:
        """How much agent audio of the live stream, or of the last one, is not played yet."""
        return 0.0 if self.stream is None else self.stream.playout.waiting_bytes / BYTES_PER_MS

    def played_runs(self) -> list[tuple[float, float]]:
        """Returns beginning and end of each unbroken playback of agent audio, quiet or loud, over all streams."""
        return [(run.at, run.ended_at) for stream in self.streams for run in stream.playout.segments]

    def played_ms(self, *, since: float) -> float:
        """How much of the agent's audio, quiet or loud, has been played since that time."""
        return sum(max(0.0, end - max(start, since)) for start, end in self.played_runs()) * 1000

    def played_until(self) -> float:
        """Returns when agent audio was played last; minus infinity when none was."""
        return max((end for _, end in self.played_runs()), default=float("-inf"))

    def heard_ms(self, start: int, end: int, *, stream: int = -1) -> float:
        """How much of the audio between two playout positions of a stream was really played by now."""
        playout = self.streams[stream].playout
        return playout.heard_bytes(start, end, self._now()) / BYTES_PER_MS

    def heard_audio(self) -> bytes:
        """What the caller heard since the first stream opened, as mu-law with silence in the gaps."""
        return self._recorded()[1]

    def said_audio(self) -> bytes:
        """What the caller said, on the timeline of `heard_audio` and of the same length."""
        return self._recorded()[0]

    def save_wav(self, path: str | Path, *, agent_only: bool = False) -> None:
        """Write the call as WAV: caller left, agent right, or the agent alone in mono. Raises WavError."""
        said, heard = self._recorded()
        write_wav(path, *((heard,) if agent_only else (said, heard)))

    # Housekeeping

    def _emit(self, event: PhoneEvent) -> None:
        self.timeline.append(event)
        match event:
            case Violation():
                self.violations.append(event)
            case Problem():
                self.problems.append(event)
            case AgentSpoke():
                self.speech_spans.append(event)
            case SayHeard(text=text):
                self.announcements.append(text)
            case _:
                pass
        self._notify()

    def _notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _live_stream(self) -> MediaStream:
        stream = self._call.live_stream
        if stream is None or stream.started_at is None:
            raise PhoneError("there is no stream to do this on")
        return stream

    def _recorded(self) -> tuple[bytes, bytes]:
        """What was said and heard, from the first stream's first frame to the end of the call, or now."""
        if self._said is None or self._heard is None:
            raise PhoneError("the call's audio was not kept (keep_audio is off)")
        started = self.started_streams[0].started_at if self.started_streams else None
        if started is None:
            return b"", b""
        ended = next((event.at for event in self.timeline if isinstance(event, HungUp)), None)
        end = ended if ended is not None else self._now()
        start = started - FRAME_S  # the first frame brings what was said just before
        return self._said.between(start, end), self._heard.between(start, end)

    def _end_text(self) -> str:
        text = "the call was given up" if self.ended is None else f"the call is over: {self.ended}"
        return f"{text} ({self.problems[-1].text})" if self.problems else text

    async def _clean_up(self, running: asyncio.Task[None]) -> None:
        """Hang up as a caller would, within a limit; then by force."""
        try:
            if not running.done():
                self._call.hang_up()
                await asyncio.wait({running}, timeout=_CLEAN_UP_LIMIT_S)
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait({running})
        self._raise_bug()

    def _raise_bug(self) -> None:
        """The call's task ends without exception; anything else is a mistake in this simulator."""
        if self._running is not None and self._running.done() and not self._running.cancelled():
            self._running.result()

    def _now(self) -> float:
        assert self._loop is not None, "the phone has not dialled"
        return self._loop.time()
