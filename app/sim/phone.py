"""A caller on the line: Twilio and the caller's phone, simulated for one call.

`Phone` makes the call: it asks the voice webhook, runs the TwiML, opens media streams, and ends the call as Twilio
would. Its siblings do the parts: `phone_webhook` HTTP and signatures, `twiml_doc` TwiML, `phone_media` one stream,
`phone_wire` its messages, `playout` what is heard when. It shares no code with the server it calls.

    async with Phone(PhoneOptions(webhook_url="http://127.0.0.1:8080/twiml/voice", auth_token="...")) as phone:
        await phone.dial()
        await phone.answered()
        phone.say(read_wav("hello.wav"))
        await phone.heard_speech(200)
        await phone.hang_up()
    assert not phone.violations

Waiting is always for a condition (`wait_for`); nothing here polls. The sources are in twilio.md; where Twilio's
behaviour is not documented, the assumption is stated where it is made.
"""

import asyncio
import contextlib
import functools
import random
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self, TypeVar, assert_never
from urllib.parse import urljoin

from app.sim.phone_audio import Ear, Mouth, Track
from app.sim.phone_errors import CallEndedError, PhoneError, RedirectLoopError, WebhookError
from app.sim.phone_events import (
    AgentSpoke,
    CallAnswered,
    CallbackSent,
    Dialled,
    DocumentRead,
    EndReason,
    HungUp,
    PauseHeard,
    PhoneEvent,
    Problem,
    Purpose,
    SayHeard,
    StreamClosed,
    StreamOpened,
    Violation,
    WebhookAnswered,
)
from app.sim.phone_media import FRAME_S, MediaStream
from app.sim.phone_options import PhoneOptions, StatusEvent
from app.sim.phone_webhook import Addresses, Signer, Webhooks
from app.sim.playout import BYTES_PER_MS
from app.sim.twiml_doc import (
    Connect,
    Dial,
    Document,
    Hangup,
    Pause,
    Redirect,
    Reject,
    Say,
    Stream,
    Verb,
    read_answer,
)
from app.sim.wav import write_wav

_T = TypeVar("_T")

_MAX_HOPS: Final = 10
"""Redirects, or requests of `action` after a refused stream, in a row (11215, twilio.md 2.2)."""

_SAY_S_PER_CHAR: Final = 0.06
"""About 1000 characters a minute, an ordinary speaking rate."""

_CLEAN_UP_LIMIT_S: Final = 5.0
"""For hanging up in an orderly way when the block is left with the call still on."""


_Load = Callable[[], Coroutine[Any, Any, tuple[str, Document]]]
"""Gets the next document, and the URL that relative URLs in it start from."""


@dataclass(frozen=True, slots=True)
class _Callback:
    what: str
    url: str
    method: str
    form: dict[str, str]


class _OrderedError(Exception):
    """Leaves whatever verb is running: the caller or REST has given an order."""


class Phone:
    """One call. Enter it, `dial` once, leave it: on the way out the call is ended and everything is closed."""

    def __init__(self, options: PhoneOptions) -> None:
        """Raises PhoneError when a URL in the options is not one."""
        self.options = options
        self.call_sid = options.call_sid or f"CA{uuid.uuid4().hex}"
        self.timeline: list[PhoneEvent] = []
        self.streams: list[MediaStream] = []
        self.ended: EndReason | None = None
        self.error: PhoneError | None = None
        self._addresses = Addresses(options.webhook_url, options.public_url)
        self._signer = Signer(options.auth_token)
        self._webhooks = Webhooks(options, self._addresses, self._signer)
        self._said = Track() if options.keep_audio else None
        self._heard = Track() if options.keep_audio else None
        self._mouth = Mouth(self._said)
        self._ear = Ear(self._heard)
        self._rng = random.Random(options.seed)
        self._waiters: set[asyncio.Future[None]] = set()
        self._call: asyncio.Task[None] | None = None
        self._stream: MediaStream | None = None
        self._order: EndReason | _Load | None = None
        self._ordered = asyncio.Event()
        self._callbacks: asyncio.Queue[_Callback | None] = asyncio.Queue()
        self._held_back: list[_Callback] = []
        self._answered_at: float | None = None
        self.status = "ringing"
        self._status_count = 0
        self._reject_reason: str | None = None
        self._has_document = False
        self._hops = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._call is not None:
                await self._clean_up(self._call)
        finally:
            await self._webhooks.aclose()

    # What the caller does

    async def dial(self) -> None:
        """Call the number: ask the voice webhook and begin its document.

        Raises WebhookError or TwimlError when there is no document; the call is over then.
        """
        assert self._call is None, "a Phone makes one call"
        self._call = asyncio.create_task(self._run())
        self._call.add_done_callback(lambda _: self._notify())
        await self.wait_for(lambda _: self._has_document or self.error is not None)
        if not self._has_document and self.error is not None:
            raise self.error

    async def answered(self, *, streams: int = 1) -> MediaStream:
        """Wait until this many media streams have started in the call; returns the last of them.

        Raises CallEndedError when the call ends instead.
        """
        await self.wait_for(lambda phone: len(phone.started_streams) >= streams)
        return self.started_streams[streams - 1]

    def say(self, audio: bytes) -> None:
        """Queue mu-law audio for the caller to say; without a stream it waits for the next one."""
        self._mouth.say(audio)

    async def spoken(self) -> None:
        """Wait until everything queued by `say` has been sent."""
        await self.wait_for(lambda _: self._mouth.silent)

    def press(self, digit: str) -> None:
        """Press a key (0-9, *, #) while a stream is up."""
        self._live_stream().dtmf(digit)

    async def hang_up(self) -> None:
        """The caller hangs up. Returns when the call is over and its callbacks are answered; harmless if it is."""
        assert self._call is not None, "nobody has dialled"
        self._give(EndReason.CALLER)
        await self.over()

    async def over(self) -> None:
        """Wait until the call has ended, by whomever, and its callbacks are answered."""
        assert self._call is not None, "nobody has dialled"
        await asyncio.wait({self._call})
        self._raise_bug()

    # What the network does

    def stall(self, ms: float) -> None:
        """Hold everything the phone sends on its stream back for so long, then send it in one burst."""
        self._live_stream().stall(ms)

    def freeze(self) -> None:
        """Make the stream's connection half-open: nothing is read, sent or answered any more."""
        self._live_stream().freeze()

    def cut(self) -> None:
        """Break the stream's TCP connection; the call goes on as after a close (assumed, twilio.md 1.9)."""
        self._live_stream().cut()

    # What REST does (app/sim/twilio_rest.py)

    def rest_complete(self) -> None:
        """`Status=completed`: `stop`, close, end of the call."""
        self._give(EndReason.REST)

    def rest_document(self, document: Document) -> None:
        """`Twiml=`: `stop`, close, then this document."""

        async def load() -> tuple[str, Document]:
            return self._read(self._addresses.webhook_url, document)

        self._give(load)

    def rest_url(self, url: str, method: str) -> None:
        """`Url=`: `stop`, close, then the document fetched from there."""
        self._give(functools.partial(self._fetch, "rest", url, method))

    # What can be asked

    async def wait_for(self, condition: Callable[["Phone"], bool]) -> None:
        """Wait until the condition holds; it is looked at after every event and every 20 ms of a stream.

        Raises CallEndedError when the call is over and it still does not hold.
        """
        while not condition(self):
            if self._call is None or self._call.done():
                self._raise_bug()
                raise CallEndedError(self._obituary()) from self.error
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    async def heard_speech(self, min_ms: float, *, since_ms: float = 0) -> None:
        """Wait until the caller has heard this much speech in the call, on top of `since_ms` (see `speech_ms`)."""
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
    def stream(self) -> MediaStream | None:
        """The live stream, or the last one."""
        return self.streams[-1] if self.streams else None

    @property
    def started_streams(self) -> list[MediaStream]:
        """The streams that got as far as `start`."""
        return [stream for stream in self.streams if stream.started_at is not None]

    @property
    def violations(self) -> list[Violation]:
        """Wrong messages of the application. A sound application has none."""
        return [event for event in self.timeline if isinstance(event, Violation)]

    @property
    def problems(self) -> list[Problem]:
        """What Twilio would have put into its error log."""
        return [event for event in self.timeline if isinstance(event, Problem)]

    @property
    def announcements(self) -> list[str]:
        """The texts of all <Say> heard."""
        return [event.text for event in self.timeline if isinstance(event, SayHeard)]

    @property
    def spells(self) -> list[AgentSpoke]:
        """The agent's finished stretches of speech."""
        return [event for event in self.timeline if isinstance(event, AgentSpoke)]

    @property
    def speech_ms(self) -> int:
        """How much of the agent's speech the caller has heard so far (loud 20 ms pieces)."""
        return self._ear.meter.speech_ms

    @property
    def agent_speaking(self) -> bool:
        return self._ear.meter.speaking

    def heard_ms(self, start: int, end: int, *, stream: int = -1) -> float:
        """How much of the audio between two playout positions of a stream was really played by now."""
        playout = self.streams[stream].playout
        return playout.heard_bytes(start, end, asyncio.get_running_loop().time()) / BYTES_PER_MS

    def heard_audio(self) -> bytes:
        """What reached the caller's ear since the first stream opened, as mu-law with silence in the gaps."""
        return self._recorded()[1]

    def said_audio(self) -> bytes:
        """What the caller said, on the timeline of `heard_audio` and of the same length."""
        return self._recorded()[0]

    def save_wav(self, path: str | Path, *, agent_only: bool = False) -> None:
        """Write the call as WAV: caller left, agent right, or the agent alone in mono. Raises WavError."""
        said, heard = self._recorded()
        write_wav(path, *((heard,) if agent_only else (said, heard)))

    # The call

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_callbacks())
            self._status_callback("initiated", "queued")
            self._status_callback("ringing", "ringing")
            reason = await self._until_the_end()
            self.status = self._final_status(reason)
            self.ended = reason
            self._emit(HungUp(self._now(), reason))
            self._status_callback("completed", self.status)
            for callback in reversed(self._held_back):
                self._callbacks.put_nowait(callback)
            self._callbacks.put_nowait(None)

    async def _until_the_end(self) -> EndReason:
        try:
            return await self._documents()
        except PhoneError as error:
            self.error = error
            self._emit(Problem(self._now(), error.code, str(error)))
            return EndReason.APPLICATION_ERROR

    async def _documents(self) -> EndReason:
        """One document after the other until one of them, or an order, ends the call."""
        following: EndReason | _Load = functools.partial(self._fetch, "voice", self._addresses.webhook_url, "POST")
        while not isinstance(following, EndReason):
            try:
                url, document = await self._unless_ordered(following())
                following = await self._document(url, document)
            except _OrderedError:
                following = self._obey()
        return following

    async def _document(self, url: str, document: Document) -> "EndReason | _Load":
        """Run the verbs. Returns how the call ends, or what loads the next document."""
        for index, verb in enumerate(document.verbs):
            if not (index == 0 and isinstance(verb, Reject | Pause)):
                self._answer()
            following = await self._verb(verb, url)
            if following is not None:
                return following
        self._answer()
        return EndReason.DOCUMENT_END

    async def _verb(self, verb: Verb, url: str) -> "EndReason | _Load | None":
        match verb:
            case Say():
                await self._say(verb)
            case Pause(length_s):
                self._emit(PauseHeard(self._now(), length_s))
                await self._pass_time(length_s)
            case Redirect():
                self._hop()
                return self._following("redirect", url, verb.url, verb.method, {})
            case Dial():
                return self._dial_verb(verb, url)
            case Connect():
                return await self._connect(verb, url)
            case Hangup():
                return EndReason.HANGUP
            case Reject(reason):
                self._reject_reason = reason
                return EndReason.REJECTED
            case _:
                assert_never(verb)
        return None

    async def _say(self, verb: Say) -> None:
        self._emit(SayHeard(self._now(), verb.text, verb.language, verb.voice))
        if verb.loop == 0:
            await self._unless_ordered(asyncio.Event().wait())  # endless: only an order gets out
        await self._pass_time(len(verb.text) * verb.loop * _SAY_S_PER_CHAR)

    def _dial_verb(self, verb: Dial, url: str) -> "_Load | None":
        self._emit(Dialled(self._now(), verb.numbers, verb.caller_id))
        if verb.action is None:
            return None
        status = self.options.dial_status
        result = {"DialCallStatus": status, "DialCallSid": f"CA{uuid.uuid4().hex}"}
        if status == "completed":
            result |= {"DialCallDuration": "0", "DialBridged": "true"}
        return self._following("action", url, verb.action, verb.method, result)

    async def _connect(self, verb: Connect, url: str) -> "_Load | None":
        """Run the stream, then `action` or the next verb.

        That the call goes on in the same way when the stream was refused (31920 and the like) is assumed: the
        documentation only says so for a close (twilio.md 2.1).
        """
        stream = self._new_stream(verb.stream)
        self._stream = stream
        try:
            closed = await stream.run()
        finally:
            self._stream = None
        self._after_stream(stream, closed)
        if self._ordered.is_set():
            raise _OrderedError
        if verb.action is None:
            return None
        return self._following("action", url, verb.action, verb.method, {})

    def _new_stream(self, noun: Stream) -> MediaStream:
        def emit(event: PhoneEvent) -> None:
            self._emit(event)
            if isinstance(event, StreamOpened):
                self._stream_callback(stream, "stream-started")

        stream = MediaStream(
            noun,
            stream_sid=f"MZ{uuid.uuid4().hex}",
            call_sid=self.call_sid,
            options=self.options,
            addresses=self._addresses,
            signer=self._signer,
            rng=self._rng,
            mouth=self._mouth,
            ear=self._ear,
            emit=emit,
            ticked=self._notify,
        )
        self.streams.append(stream)
        return stream

    def _after_stream(self, stream: MediaStream, closed: StreamClosed) -> None:
        if closed.by in ("refused", "server", "network"):
            self._stream_callback(stream, "stream-error", closed.reason)
        if closed.by == "refused":
            self._hop()
        else:
            self._hops = 0
            self._stream_callback(stream, "stream-stopped")

    def _answer(self) -> None:
        if self._answered_at is None:
            self._answered_at = self._now()
            self.status = "in-progress"
            self._emit(CallAnswered(self._answered_at))
            self._status_callback("answered", "in-progress")

    def _hop(self) -> None:
        self._hops += 1
        if self._hops > _MAX_HOPS:
            raise RedirectLoopError(f"the call was sent round {_MAX_HOPS} times without getting anywhere")

    def _final_status(self, reason: EndReason) -> str:
        """`busy` and `no-answer` are for a call that was never answered (twilio.md 2.2)."""
        if self._answered_at is not None:
            return "completed"
        if reason is EndReason.APPLICATION_ERROR:
            return "failed"
        return "busy" if self._reject_reason == "busy" else "no-answer"

    # Orders from outside the document

    def _give(self, order: EndReason | _Load) -> None:
        """End the call, or go on with another document. Hanging up is never taken back by a later order."""
        if not isinstance(self._order, EndReason):
            self._order = order
        self._ordered.set()
        if self._stream is not None:
            self._stream.finish("caller" if order is EndReason.CALLER else "rest")

    def _obey(self) -> "EndReason | _Load":
        order, self._order = self._order, None
        self._ordered.clear()
        assert order is not None
        return order

    async def _unless_ordered(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The work's result, unless an order comes first: then the work is dropped."""
        working = asyncio.create_task(work)
        order = asyncio.create_task(self._ordered.wait())
        try:
            await asyncio.wait({working, order}, return_when=asyncio.FIRST_COMPLETED)
            if self._ordered.is_set():
                raise _OrderedError
            return working.result()
        finally:
            for task in (working, order):
                task.cancel()
            await asyncio.wait({working, order})

    async def _pass_time(self, seconds: float) -> None:
        await self._unless_ordered(asyncio.sleep(seconds * self.options.document_pace))

    # Requests

    def _following(self, purpose: Purpose, base_url: str, url: str, method: str, extra: dict[str, str]) -> "_Load":
        return functools.partial(self._fetch, purpose, urljoin(base_url, url), method, extra)

    async def _fetch(
        self, purpose: Purpose, url: str, method: str, extra: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[str, Document]:
        """A webhook and the document it gives, with the URL that relative URLs in it start from."""
        answer = await self._webhooks.request(method, url, self._form() | dict(extra))
        self._emit(WebhookAnswered(self._now(), purpose, answer.url, answer.status, answer.took_ms))
        document = read_answer(answer.content_type, answer.body, allow_ws=self.options.allow_ws)
        return self._read(answer.url, document)

    def _read(self, url: str, document: Document) -> tuple[str, Document]:
        for warning in document.warnings:
            self._emit(Problem(self._now(), warning.code, warning.text))
        self._has_document = True
        self._emit(DocumentRead(self._now(), url, tuple(type(verb).__name__ for verb in document.verbs)))
        return url, document

    def _form(self) -> dict[str, str]:
        """The fields of an inbound call (twilio.md 2.4), empty ones included: they are signed."""
        options = self.options
        places = {
            f"{who}{what}": ""
            for who in ("Called", "Caller", "From", "To")
            for what in ("City", "Country", "State", "Zip")
        }
        return places | {
            "AccountSid": options.account_sid,
            "ApiVersion": "2010-04-01",
            "CallSid": self.call_sid,
            "CallStatus": self.status,
            "CallToken": '{"parentCallInfoToken":"x"}',
            "Called": options.to,
            "Caller": options.from_,
            "Direction": "inbound",
            "From": options.from_,
            "To": options.to,
        }

    def _status_callback(self, event: StatusEvent, status: str) -> None:
        """Queue a call status callback, if the number has one and asks for this event (twilio.md 2.5)."""
        url = self.options.status_callback_url
        if url is None or event not in self.options.status_events:
            return
        form = self._form() | {
            "CallStatus": status,
            "CallbackSource": "call-progress-events",
            "SequenceNumber": str(self._status_count),
            "Timestamp": format_datetime(datetime.now(UTC)),
        }
        self._status_count += 1
        if event == "completed":
            seconds = 0 if self._answered_at is None else round(self._now() - self._answered_at)
            form |= {"CallDuration": str(seconds), "Duration": str(-(-seconds // 60))}
        callbacks = [_Callback(status, url, "POST", form)] * (2 if self.options.status_twice else 1)
        if self.options.status_reversed:
            self._held_back += callbacks
        else:
            for callback in callbacks:
                self._callbacks.put_nowait(callback)

    def _stream_callback(self, stream: MediaStream, event: str, error: str | None = None) -> None:
        """Queue a stream status callback, if the <Stream> has one (twilio.md 1.8)."""
        url = stream.noun.status_callback
        if url is None:
            return
        form = {
            "AccountSid": self.options.account_sid,
            "CallSid": self.call_sid,
            "StreamSid": stream.stream_sid,
            "StreamName": stream.noun.name or stream.stream_sid,
            "StreamEvent": event,
            "Timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        if error is not None:
            form["StreamError"] = error
        self._callbacks.put_nowait(_Callback(event, url, stream.noun.status_callback_method, form))

    async def _send_callbacks(self) -> None:
        """One after the other, beside the call: a slow callback holds up nothing but the next one."""
        while (callback := await self._callbacks.get()) is not None:
            try:
                answer = await self._webhooks.request(callback.method, callback.url, callback.form)
            except WebhookError as error:
                self._emit(Problem(self._now(), error.code, f"{callback.what} callback: {error}"))
            else:
                self._emit(CallbackSent(self._now(), callback.what, answer.url, answer.status))

    # Housekeeping

    def _emit(self, event: PhoneEvent) -> None:
        self.timeline.append(event)
        self._notify()

    def _notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _live_stream(self) -> MediaStream:
        if self._stream is None:
            raise PhoneError("there is no stream to do this on")
        return self._stream

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

    def _obituary(self) -> str:
        text = "the call was given up" if self.ended is None else f"the call is over: {self.ended}"
        problems = self.problems
        return f"{text} ({problems[-1].text})" if problems else text

    async def _clean_up(self, call: asyncio.Task[None]) -> None:
        """Hang up as a caller would, within a limit; then by force."""
        try:
            if not call.done():
                self._give(EndReason.CALLER)
                await asyncio.wait({call}, timeout=_CLEAN_UP_LIMIT_S)
        finally:
            if not call.done():
                call.cancel()
                await asyncio.wait({call})
        self._raise_bug()

    def _raise_bug(self) -> None:
        """The call's task ends without exception; anything else is a mistake in this simulator."""
        if self._call is not None and self._call.done() and not self._call.cancelled():
            self._call.result()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
