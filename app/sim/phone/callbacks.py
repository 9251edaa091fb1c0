"""Sends the status callbacks of a call (twilio.md 2.5) and of its streams (twilio.md 1.8), in order.

A slow callback delays only the next callback; a failed one is reported as a Problem. The code that runs the call
decides when each is due.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime

from app.sim.phone.errors import WebhookError
from app.sim.phone.events import CallbackSent, PhoneEvent, Problem
from app.sim.phone.options import PhoneOptions, StatusEvent
from app.sim.phone.twiml_document import Stream
from app.sim.phone.webhook import Webhooks


@dataclass(frozen=True, slots=True)
class _Callback:
    what: str
    url: str
    method: str
    form: Mapping[str, str]


class Callbacks:
    """The status callbacks of one call. `run` sends them until `close`."""

    def __init__(self, options: PhoneOptions, webhooks: Webhooks, emit: Callable[[PhoneEvent], None]) -> None:
        self._options = options
        self._webhooks = webhooks
        self._emit = emit
        self._queue: asyncio.Queue[_Callback | None] = asyncio.Queue()  # None: nothing follows
        self._held_back: list[_Callback] = []
        self._sequence = 0

    def call(self, event: StatusEvent, form: Mapping[str, str]) -> None:
        """Queues a call event for the number's StatusCallback, if it has one and asks for this event.

        `form` has the call's fields with the CallStatus of the event.
        """
        url = self._options.status_callback_url
        if url is None or event not in self._options.status_events:
            return
        extra = {
            "CallbackSource": "call-progress-events",
            "SequenceNumber": str(self._sequence),
            "Timestamp": format_datetime(datetime.now(UTC)),
        }
        self._sequence += 1
        callbacks = [_Callback(form["CallStatus"], url, "POST", {**form, **extra})]
        if self._options.status_twice:
            callbacks *= 2
        if self._options.status_reversed:
            self._held_back += callbacks
        else:
            self._put(callbacks)

    def stream(self, noun: Stream, event: str, form: Mapping[str, str]) -> None:
        """Queues a stream event for its statusCallback, if any. `form` has the ids, and the error if any."""
        if noun.status_callback is None:
            return
        extra = {
            "StreamName": noun.name or form["StreamSid"],
            "StreamEvent": event,
            "Timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        callback = _Callback(event, noun.status_callback, noun.status_callback_method, {**form, **extra})
        self._put([callback])

    def close(self) -> None:
        """Ends the queue. Callbacks that were held back are sent now, the last one first."""
        self._put(self._held_back[::-1])
        self._queue.put_nowait(None)

    async def run(self) -> None:
        """Sends the callbacks one after the other."""
        while (callback := await self._queue.get()) is not None:
            try:
                answer = await self._webhooks.request(callback.method, callback.url, callback.form)
            except WebhookError as error:
                self._emit(Problem(_now(), error.code, f"{callback.what} callback: {error}"))
            else:
                self._emit(CallbackSent(_now(), callback.what, answer.url, answer.status))

    def _put(self, callbacks: list[_Callback]) -> None:
        for callback in callbacks:
            self._queue.put_nowait(callback)


def _now() -> float:
    return asyncio.get_running_loop().time()
