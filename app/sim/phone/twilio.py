"""Twilio's side of one call: runs documents, opens streams, obeys REST and sends status callbacks.

Of the caller it knows only the audio that is said and heard; waiting for conditions is done in phone.py. Sources:
twilio.md 1.8, 1.9, 2. Where Twilio's documentation says nothing, a comment names the assumption.
"""

import asyncio
import functools
import random
import uuid
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar, assert_never
from urllib.parse import urljoin

from app.sim.phone.audio import HeardSpeech, SpeechQueue
from app.sim.phone.callbacks import Callbacks
from app.sim.phone.errors import PhoneError, RedirectLoopError
from app.sim.phone.events import (
    CallAnswered,
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
    WebhookAnswered,
)
from app.sim.phone.media import MediaStream
from app.sim.phone.options import PhoneOptions
from app.sim.phone.twiml_document import (
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
from app.sim.phone.webhook import Addresses, Signer, Webhooks

_T = TypeVar("_T")

_MAX_HOPS: Final = 10
"""Redirects, or requests of `action` after a refused stream, in a row (11215, twilio.md 2.2)."""

_SAY_S_PER_CHAR: Final = 0.06
"""About 1000 characters a minute, an ordinary speaking rate."""

_Load = Callable[[], Coroutine[Any, Any, tuple[str, Document]]]
"""Gets the next document, and the URL that relative URLs in it start from."""


class _InterruptedError(Exception):
    """The running verb ends early: the caller hung up, or REST updated the call."""


class TwilioCall:
    """One call. `run` it once and `aclose` it at the end; orders may come at any time from the same loop."""

    def __init__(
        self,
        options: PhoneOptions,
        call_sid: str,
        speech_queue: SpeechQueue,
        heard_speech: HeardSpeech,
        emit: Callable[[PhoneEvent], None],
        ticked: Callable[[], None],
    ) -> None:
        """`emit` is called with every event, `ticked` after each 20 ms of a stream.

        Raises PhoneError when a URL in the options is not a URL.
        """
        self.status = "ringing"
        self.has_document = False
        self.ended: EndReason | None = None
        self.error: PhoneError | None = None
        self.streams: list[MediaStream] = []
        self.live_stream: MediaStream | None = None
        self._options = options
        self._call_sid = call_sid
        self._speech_queue = speech_queue
        self._heard_speech = heard_speech
        self._emit = emit
        self._ticked = ticked
        self._addresses = Addresses(options.webhook_url, options.public_url)
        self._signer = Signer(options.auth_token)
        self._webhooks = Webhooks(options, self._addresses, self._signer)
        self._callbacks = Callbacks(options, self._webhooks, emit)
        self._rng = random.Random(options.seed)
        self._order: EndReason | _Load | None = None
        self._interrupted = asyncio.Event()
        self._answered_at: float | None = None
        self._reject_reason: str | None = None
        self._hops = 0

    async def run(self) -> None:
        """Runs the call until its last callback is answered. An error of the call is in `error`, not raised."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._callbacks.run())
            self._callbacks.call("initiated", self._form() | {"CallStatus": "queued"})
            self._callbacks.call("ringing", self._form())
            reason = await self._until_the_end()
            self.status = self._final_status(reason)
            self.ended = reason
            self._emit(HungUp(_now(), reason))
            self._callbacks.call("completed", self._form() | self._duration())
            self._callbacks.close()

    async def aclose(self) -> None:
        await self._webhooks.aclose()

    # Orders from outside the document

    def hang_up(self) -> None:
        """Ends the call: the caller hangs up."""
        self._give(EndReason.CALLER)

    def complete(self) -> None:
        """Ends the call as REST does with `Status=completed`."""
        self._give(EndReason.REST)

    def replace(self, document: Document) -> None:
        """Goes on with this document, as REST does with `Twiml`."""

        async def load() -> tuple[str, Document]:
            return self._read(self._addresses.webhook_url, document)

        self._give(load)

    def redirect(self, url: str, method: str) -> None:
        """Goes on with the document from this URL, as REST does with `Url`."""
        self._give(functools.partial(self._fetch, "rest", url, method))

    def _give(self, order: EndReason | _Load) -> None:
        """Stores an order and ends the live stream. A later order never takes back a hang-up."""
        if not isinstance(self._order, EndReason):
            self._order = order
        self._interrupted.set()
        if self.live_stream is not None:
            self.live_stream.finish("caller" if order is EndReason.CALLER else "rest")

    def _obey(self) -> EndReason | _Load:
        order, self._order = self._order, None
        self._interrupted.clear()
        assert order is not None
        return order

    async def _unless_interrupted(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Returns the work's result. An order that comes first cancels the work and raises _InterruptedError."""
        working = asyncio.create_task(work)
        order = asyncio.create_task(self._interrupted.wait())
        try:
            await asyncio.wait({working, order}, return_when=asyncio.FIRST_COMPLETED)
            if self._interrupted.is_set():
                raise _InterruptedError
            return working.result()
        finally:
            for task in (working, order):
                task.cancel()
            await asyncio.wait({working, order})

    # Documents and their verbs

    async def _until_the_end(self) -> EndReason:
        try:
            return await self._documents()
        except PhoneError as error:
            self.error = error
            self._emit(Problem(_now(), error.code, str(error)))
            return EndReason.APPLICATION_ERROR

    async def _documents(self) -> EndReason:
        """One document after the other until one of them, or an order, ends the call."""
        following: EndReason | _Load = functools.partial(self._fetch, "voice", self._addresses.webhook_url, "POST")
        while not isinstance(following, EndReason):
            try:
                url, document = await self._unless_interrupted(following())
                following = await self._document(url, document)
            except _InterruptedError:
                following = self._obey()
        return following

    async def _document(self, url: str, document: Document) -> EndReason | _Load:
        """Run the verbs. Returns how the call ends, or what loads the next document."""
        for index, verb in enumerate(document.verbs):
            if self._interrupted.is_set():
                raise _InterruptedError
            if not (index == 0 and isinstance(verb, Reject | Pause)):
                self._answer()
            following = await self._verb(verb, url)
            if following is not None:
                return following
        self._answer()
        return EndReason.DOCUMENT_END

    async def _verb(self, verb: Verb, url: str) -> EndReason | _Load | None:
        match verb:
            case Say():
                await self._say(verb)
            case Pause(length_s):
                self._emit(PauseHeard(_now(), length_s))
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
        self._emit(SayHeard(_now(), verb.text, verb.language, verb.voice))
        if verb.loop == 0:
            await self._unless_interrupted(asyncio.Event().wait())  # endless: only an order gets out
        await self._pass_time(len(verb.text) * verb.loop * _SAY_S_PER_CHAR)

    def _dial_verb(self, verb: Dial, url: str) -> _Load | None:
        self._emit(Dialled(_now(), verb.numbers, verb.caller_id))
        if verb.action is None:
            return None
        status = self._options.dial_status
        result = {"DialCallStatus": status, "DialCallSid": f"CA{uuid.uuid4().hex}"}
        if status == "completed":
            result |= {"DialCallDuration": "0", "DialBridged": "true"}
        return self._following("action", url, verb.action, verb.method, result)

    async def _connect(self, verb: Connect, url: str) -> _Load | None:
        """Run the stream, then `action` or the next verb.

        That the call goes on in the same way when the stream was refused (31920 and the like) is assumed: the
        documentation only says so for a close (twilio.md 2.1).
        """
        stream = self._new_stream(verb.stream)
        self.live_stream = stream
        try:
            closed = await stream.run()
        finally:
            self.live_stream = None
        self._after_stream(stream, closed)
        if self._interrupted.is_set():
            raise _InterruptedError
        if verb.action is None:
            return None
        return self._following("action", url, verb.action, verb.method, {})

    def _new_stream(self, noun: Stream) -> MediaStream:
        def emit(event: PhoneEvent) -> None:
            self._emit(event)
            if isinstance(event, StreamOpened):
                self._stream_callback(stream, "stream-started", {})

        stream = MediaStream(
            noun,
            stream_sid=f"MZ{uuid.uuid4().hex}",
            call_sid=self._call_sid,
            options=self._options,
            addresses=self._addresses,
            signer=self._signer,
            rng=self._rng,
            speech_queue=self._speech_queue,
            heard_speech=self._heard_speech,
            emit=emit,
            ticked=self._ticked,
        )
        self.streams.append(stream)
        return stream

    def _after_stream(self, stream: MediaStream, closed: StreamClosed) -> None:
        if closed.by in ("refused", "server", "network"):
            self._stream_callback(stream, "stream-error", {"StreamError": closed.reason})
        if closed.by == "refused":
            self._hop()
        else:
            self._hops = 0
            self._stream_callback(stream, "stream-stopped", {})

    def _stream_callback(self, stream: MediaStream, event: str, extra: Mapping[str, str]) -> None:
        ids = {
            "AccountSid": self._options.account_sid,
            "CallSid": self._call_sid,
            "StreamSid": stream.stream_sid,
        }
        self._callbacks.stream(stream.noun, event, {**ids, **extra})

    def _answer(self) -> None:
        if self._answered_at is None:
            self._answered_at = _now()
            self.status = "in-progress"
            self._emit(CallAnswered(self._answered_at))
            self._callbacks.call("answered", self._form())

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

    async def _pass_time(self, seconds: float) -> None:
        await self._unless_interrupted(asyncio.sleep(seconds * self._options.document_pace))

    # Requests

    def _following(self, purpose: Purpose, base_url: str, url: str, method: str, extra: dict[str, str]) -> _Load:
        return functools.partial(self._fetch, purpose, urljoin(base_url, url), method, extra)

    async def _fetch(
        self, purpose: Purpose, url: str, method: str, extra: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[str, Document]:
        """A webhook and the document it gives, with the URL that relative URLs in it start from."""
        answer = await self._webhooks.request(method, url, self._form() | dict(extra))
        self._emit(WebhookAnswered(_now(), purpose, answer.url, answer.status, answer.took_ms, answer.region))
        document = read_answer(answer.content_type, answer.body, allow_ws=self._options.allow_ws)
        return self._read(answer.url, document)

    def _read(self, url: str, document: Document) -> tuple[str, Document]:
        for warning in document.warnings:
            self._emit(Problem(_now(), warning.code, warning.text))
        self.has_document = True
        self._emit(DocumentRead(_now(), url, tuple(type(verb).__name__ for verb in document.verbs)))
        return url, document

    def _form(self) -> dict[str, str]:
        """The fields of an inbound call (twilio.md 2.4), empty ones included: they are signed."""
        options = self._options
        places = {
            f"{who}{what}": ""
            for who in ("Called", "Caller", "From", "To")
            for what in ("City", "Country", "State", "Zip")
        }
        return places | {
            "AccountSid": options.account_sid,
            "ApiVersion": "2010-04-01",
            "CallSid": self._call_sid,
            "CallStatus": self.status,
            "CallToken": '{"parentCallInfoToken":"x"}',
            "Called": options.to,
            "Caller": options.from_,
            "Direction": "inbound",
            "From": options.from_,
            "To": options.to,
        }

    def _duration(self) -> dict[str, str]:
        """Seconds, and minutes rounded up."""
        seconds = 0 if self._answered_at is None else round(_now() - self._answered_at)
        return {"CallDuration": str(seconds), "Duration": str(-(-seconds // 60))}


def _now() -> float:
    return asyncio.get_running_loop().time()
