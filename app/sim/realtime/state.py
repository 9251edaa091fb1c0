"""The state that the parts of one simulated session share: configuration, conversation, clock, event sender.

`LiveSession` makes it and passes it to the caller's turns and the responses.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from app.sim.realtime.event_sender import EventSender, Ids
from app.sim.realtime.faults import Faults, Timing
from app.sim.realtime.items import Conversation, Item
from app.sim.realtime.reply import Script
from app.sim.realtime.service import Service, SessionSettings

Json = dict[str, Any]

_LOG: Final = logging.getLogger("nearcall.sim")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """The script, the timing and the faults of one session."""

    script: Script
    hears: Callable[[bytes], str]  # transcript of a caller's turn
    timing: Timing
    faults: Faults


class Clock:
    """Simulated time, and the timers and tasks of a session, which end with it."""

    def __init__(self, rate: float, on_failure: Callable[[], None]) -> None:
        self._rate = rate  # simulated seconds in a real one
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    @property
    def now_s(self) -> float:
        """The loop's seconds."""
        return self._loop.time()

    @property
    def now_ms(self) -> float:
        """Simulated milliseconds."""
        return self._loop.time() * 1000 * self._rate

    @property
    def timers(self) -> tuple[asyncio.TimerHandle, ...]:
        """The timers that are set."""
        return tuple(self._timers)

    def later(self, delay_s: float, act: Callable[[], None]) -> asyncio.TimerHandle:
        """Calls `act` after so many simulated seconds."""

        def fire() -> None:
            self._timers.discard(handle)
            act()

        handle = self._loop.call_later(delay_s / self._rate, fire)
        self._timers.add(handle)
        return handle

    def forget(self, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        self._timers.discard(timer)

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a task whose failure is logged and closes the session."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def stop(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()):
            _LOG.error("response_failed", exc_info=failure)
            self._on_failure()


@dataclass(slots=True)
class SessionState:
    """The shared state of one session."""

    service: Service
    behaviour: Behaviour
    ids: Ids
    events_out: EventSender
    clock: Clock
    config: Json  # as the wire shows it
    settings: SessionSettings  # the same as the parts read it
    conversation: Conversation = field(default_factory=Conversation)

    def announce(self, item: Item, previous_item_id: str | None) -> None:
        """Sends the events for a new item that is complete."""
        names = self.service.names
        self.events_out.emit(names.item_added, previous_item_id=previous_item_id, item=item.wire)
        if names.item_done:
            self.events_out.emit(names.item_done, previous_item_id=previous_item_id, item=item.wire)

    def truncate(self, item_id: str, content_index: int, audio_end_ms: int) -> None:
        """Truncates an item of the agent and sends the event. Raises Refusal when it cannot be truncated so."""
        self.conversation.truncate(item_id, content_index, audio_end_ms)
        self.events_out.emit(
            "conversation.item.truncated",
            item_id=item_id,
            content_index=content_index,
            audio_end_ms=audio_end_ms,
        )
