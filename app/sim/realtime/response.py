"""Turns a Reply into the events of one response (realtime.md 1.5), whole or cut short.

Decisions are synchronous: `begin` and `cancel` send all their events before they return, and production is a
generator that sends the events of one delta at each step. Only `_run` waits, between steps. The script decides
what is said, and responses.py whether a response may start.
"""

import asyncio
import base64
import math
from collections.abc import Callable, Generator, Iterator
from itertools import cycle
from typing import Any, Final, Literal

from app.sim.realtime.audio import BYTES_PER_MS, Encoder
from app.sim.realtime.items import Item
from app.sim.realtime.playback import Playback
from app.sim.realtime.reply import FunctionCall, Message, Reply
from app.sim.realtime.service import InputTokens, ResponseSettings
from app.sim.realtime.state import SessionState

Json = dict[str, Any]

_TRANSCRIPT_LEAD: Final = 2.0
"""The transcript runs ahead of the audio (realtime.md 1.5): a third of the way, two thirds of it are out."""

_ARGUMENT_PIECE: Final = 8  # characters of a function call's arguments in one delta
_TEXT_PIECE: Final = 24  # characters of a text answer in one delta


class Response:
    """A response in progress. It is over when `on_done` was called, which happens once."""

    def __init__(
        self,
        reply: Reply,
        *,
        settings: ResponseSettings,
        tokens: InputTokens,
        state: SessionState,
        playback: Playback | None,
        on_done: Callable[["Response"], None],
    ) -> None:
        self.id = state.ids.new("resp")
        self.settings = settings
        self.status = "in_progress"
        self._reply = reply
        self._tokens = tokens
        self._timing = state.behaviour.timing
        self._conversation = state.conversation if settings.conversation_id else None
        self._playback = playback
        self._state = state
        self._names = state.service.names
        self._events_out = state.events_out
        self._ids = state.ids
        self._on_done = on_done
        self._items: list[Item] = []
        self._close_item: Callable[[str], None] | None = None  # sends the `.done` events of the open item
        self._production = self._produce()
        self._released = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        return self.status != "in_progress"

    @property
    def audio_ms(self) -> int:
        """Playing time of everything produced so far."""
        return sum(item.produced_ms for item in self._items)

    def begin(self) -> None:
        """Sends `response.created` and starts the task that produces the output."""
        self._events_out.emit("response.created", response=self._wire(None, None))
        self._task = self._state.clock.run(self._run())

    def release(self) -> None:
        """Ends the hold of `Reply.hold_after_deltas`."""
        self._released.set()

    def cancel(self, reason: Literal["turn_detected", "client_cancelled"]) -> None:
        """Cuts the response short: late deltas if the reply has them, the `.done` events, `response.done`."""
        if self.is_over:
            return
        assert self._task is not None, "a response is cancelled after it began"
        self._task.cancel()
        for _ in range(self._reply.late_deltas):
            next(self._production, None)
        self._finish("cancelled", {"type": "cancelled", "reason": reason})

    async def _run(self) -> None:
        reply, timing = self._reply, self._timing
        await self.wait_ms(timing.first_delta_ms if reply.first_delta_ms is None else reply.first_delta_ms)
        speed = timing.speed if reply.speed is None else reply.speed
        loop = asyncio.get_running_loop()
        started = loop.time()
        for deltas, _ in enumerate(self._production, 1):
            if deltas == reply.hold_after_deltas:
                await self._released.wait()
            if self._is_out_of_tokens():
                self._finish("incomplete", {"type": "incomplete", "reason": "max_output_tokens"})
                return
            if speed != math.inf:
                elapsed_ms = (loop.time() - started) * 1000 * timing.clock_rate
                await self.wait_ms(self.audio_ms / speed - elapsed_ms)
        self._finish(reply.status, self._details())

    async def wait_ms(self, delay_ms: float) -> None:
        """Waits for so many simulated milliseconds."""
        if delay_ms > 0:
            await asyncio.sleep(delay_ms / 1000 / self._timing.clock_rate)

    def _details(self) -> Json | None:
        reply = self._reply
        match reply.status:
            case "completed":
                return None
            case "incomplete":
                return {"type": "incomplete", "reason": reply.incomplete_reason}
            case "failed" if reply.error is None:
                return {"type": "failed"}
            case "failed":
                error = {
                    "type": reply.error.type,
                    "code": reply.error.code,
                    "message": reply.error.message,
                }
                return {"type": "failed", "error": error}

    def _finish(self, status: str, details: Json | None) -> None:
        self._production.close()
        if self._close_item:
            self._close_item("incomplete")
        self.status = status
        usage = None if status == "failed" else self._usage()
        self._events_out.emit("response.done", response=self._wire(details, usage))
        self._on_done(self)

    def _is_out_of_tokens(self) -> bool:
        limit = self.settings.max_output_tokens
        return limit != "inf" and sum(self._output_tokens()) > limit

    def _output_tokens(self) -> tuple[int, int]:
        """Text and audio."""
        return sum(item.text_tokens() for item in self._items), sum(item.audio_tokens() for item in self._items)

    def _usage(self) -> Json:
        text, audio = self._output_tokens()
        input_tokens = self._tokens.text + self._tokens.audio
        return {
            "total_tokens": input_tokens + text + audio,
            "input_tokens": input_tokens,
            "output_tokens": text + audio,
            "input_token_details": self._state.service.input_token_details(self._tokens),
            "output_token_details": {"text_tokens": text, "audio_tokens": audio},
        }

    def _wire(self, details: Json | None, usage: Json | None) -> Json:
        settings = self.settings
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self.status,
            "status_details": details,
            "output": [item.wire for item in self._items],
            "conversation_id": settings.conversation_id,
            **settings.shown,
            "usage": usage,
            "metadata": settings.metadata,
        }

    def _produce(self) -> Generator[None, None, None]:
        """Sends the events of all output; a step is one delta. An unfinished reply leaves its last item open."""
        last = len(self._reply.output) - 1
        for index, output in enumerate(self._reply.output):
            match output:
                case Message() if output.written or self.settings.modality == "text":
                    yield from self._write(index, output)
                case Message():
                    yield from self._speak(index, output)
                case FunctionCall():
                    yield from self._call(index, output)
            if self._close_item and (index < last or self._reply.status == "completed"):
                self._close_item("completed")

    def _speak(self, index: int, message: Message) -> Iterator[None]:
        names, audio_format = self._names, self.settings.output_format
        item, where = self._open_message(index)
        self._events_out.emit("response.content_part.added", **where, part={"type": "audio", "transcript": ""})
        content = {"type": names.audio_content, "transcript": ""}
        said, sent_bytes = "", 0

        def close(status: str) -> None:
            item.mulaw = message.mulaw[: item.audio_bytes or 0]
            self._events_out.emit(names.audio_done, **where)
            self._events_out.emit(names.transcript_done, **where, transcript=said)
            self._events_out.emit(
                "response.content_part.done", **where, part={"type": "audio", "transcript": said}
            )
            self._close(item, index, status)

        item.wire["content"] = [content]
        self._close_item = close
        for size, wire in self._wire_pieces(message.mulaw):
            share = min(1.0, _TRANSCRIPT_LEAD * size / len(message.mulaw))
            if words := message.transcript[len(said) : _word_end(message.transcript, share)]:
                said += words
                self._events_out.emit(names.transcript_delta, **where, delta=words)
            before_bytes, sent_bytes = item.produced_bytes, sent_bytes + len(wire)
            item.produced_bytes = sent_bytes * BYTES_PER_MS // audio_format.bytes_per_ms
            if not item.is_cut:
                item.audio_bytes, content["transcript"] = item.produced_bytes, said
            self._events_out.emit(names.audio_delta, **where, delta=base64.b64encode(wire).decode())
            if self._playback:
                added_ms = (item.produced_bytes - before_bytes) / BYTES_PER_MS
                self._playback.sent(item.id, added_ms, self._state.clock.now_ms)
            yield

    def _wire_pieces(self, mulaw: bytes) -> Iterator[tuple[int, bytes]]:
        """The deltas of one item in its format; with each, how much of the mu-law is out after it."""
        audio_format = self.settings.output_format
        encoder, held = Encoder(audio_format), b""
        cut = self._state.behaviour.faults.deltas_cut_samples and audio_format.sample_bytes > 1
        for size, piece in _pieces(mulaw, self._reply.delta_bytes):
            wire = held + encoder.encode(piece)
            held = wire[-1:] if cut and size < len(mulaw) else b""
            yield size, wire[: len(wire) - len(held)]

    def _write(self, index: int, message: Message) -> Iterator[None]:
        item, where = self._open_message(index)
        self._events_out.emit("response.content_part.added", **where, part={"type": "text", "text": ""})
        content = {"type": self._names.text_content, "text": ""}

        def close(status: str) -> None:
            text = content["text"]
            self._events_out.emit(self._names.text_done, **where, text=text)
            self._events_out.emit("response.content_part.done", **where, part={"type": "text", "text": text})
            self._close(item, index, status)

        item.wire["content"] = [content]
        self._close_item = close
        for start in range(0, len(message.transcript), _TEXT_PIECE):
            words = message.transcript[start : start + _TEXT_PIECE]
            content["text"] += words
            self._events_out.emit(self._names.text_delta, **where, delta=words)
            yield

    def _call(self, index: int, call: FunctionCall) -> Iterator[None]:
        call_id = call.call_id or self._ids.new("call")
        item = self._open_item(
            index, {"type": "function_call", "name": call.name, "call_id": call_id, "arguments": ""}
        )
        where = {"response_id": self.id, "item_id": item.id, "output_index": index, "call_id": call_id}

        def close(status: str) -> None:
            self._events_out.emit(
                "response.function_call_arguments.done",
                **where,
                name=call.name,
                arguments=item.wire["arguments"],
            )
            self._close(item, index, status)

        self._close_item = close
        for start in range(0, len(call.arguments), _ARGUMENT_PIECE):
            piece = call.arguments[start : start + _ARGUMENT_PIECE]
            item.wire["arguments"] += piece
            self._events_out.emit("response.function_call_arguments.delta", **where, delta=piece)
            yield

    def _open_message(self, index: int) -> tuple[Item, Json]:
        item = self._open_item(index, {"type": "message", "role": "assistant", "content": []})
        where = {"response_id": self.id, "item_id": item.id, "output_index": index, "content_index": 0}
        return item, where

    def _open_item(self, index: int, body: Json) -> Item:
        wire = {"id": self._ids.new("item"), "object": "realtime.item", "status": "in_progress", **body}
        item = Item(wire)
        self._items.append(item)
        self._events_out.emit("response.output_item.added", response_id=self.id, output_index=index, item=wire)
        if self._conversation is not None:
            previous = self._conversation.append(item)
            self._events_out.emit(self._names.item_added, previous_item_id=previous, item=wire)
        return item

    def _close(self, item: Item, index: int, status: str) -> None:
        self._close_item = None
        item.wire["status"] = status
        self._events_out.emit("response.output_item.done", response_id=self.id, output_index=index, item=item.wire)
        if self._conversation is not None and self._names.item_done:
            previous = self._conversation.before(item)
            self._events_out.emit(self._names.item_done, previous_item_id=previous, item=item.wire)


def _pieces(mulaw: bytes, sizes: tuple[int, ...]) -> Iterator[tuple[int, bytes]]:
    """Cuts audio into deltas of the given sizes in turn; with each, how much is out after it."""
    start = 0
    for size in cycle(sizes):
        if start >= len(mulaw):
            return
        piece = mulaw[start : start + size]
        start += len(piece)
        yield start, piece


def _word_end(words: str, share: float) -> int:
    """The end of the word that lies at this share of the text."""
    at = int(len(words) * share)
    space = words.find(" ", at)
    return len(words) if share == 1.0 or space < 0 else space
