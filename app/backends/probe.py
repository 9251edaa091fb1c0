"""Tries a backend without a caller: dials it, configures it as a call would, and may have it speak.

What follows from the outcome is decided elsewhere: in pool.py for the calls, in check.py for the operator.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from app.backends.dial import DialError, address_of, dial
from app.bridge.link import Link
from app.call import events as ev
from app.call.events import Event, Side
from app.call.failure import (
    NO_AUDIO,
    BackendFailure,
    Remedy,
    lost,
    misbehaved,
    no_response,
    not_ready,
    wrong_format,
)
from app.call.plan import Plan, Purpose, wording
from app.wire.dialect import Dialect
from app.wire.errors import WireError
from app.wire.realtime import MAX_MESSAGE_BYTES

ANSWER_LIMIT_S = 4.0
"""For each answer. A backend that accepts connections and says nothing is not there."""
SPEECH_LIMIT_S = 10.0
"""For the first sound; a reasoning model takes 2.3 s at high effort (realtime.md 5.4)."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How a backend did."""

    opened_ms: float
    """From the beginning of the dialling to its first message."""
    configured_ms: float
    """From there to the echo of the configuration."""
    first_audio_ms: float | None
    """From the wish for a greeting to its first sound; None when it was not asked to speak."""


class _Listener:
    """Owns the link of a trial, and queues what happens on it."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.heard: asyncio.Queue[Event | BackendFailure] = asyncio.Queue()
        """A failure says why the connection is of no use any more."""

    def link_up(self, side: Side) -> None:
        pass

    def link_message(self, side: Side, message: memoryview | bytes) -> None:
        try:
            for event in self._dialect.parse(message):
                self.heard.put_nowait(event)
        except WireError as error:
            self.link_bad_message(side, str(error))

    def link_bad_message(self, side: Side, why: str) -> None:  # noqa: ARG002  there is one side
        self.heard.put_nowait(_not_a_backend(f"it said what cannot be understood: {why}"))

    def link_pong(self, side: Side) -> None:
        pass

    def link_slow(self, side: Side) -> None:
        pass

    def link_lost(self, side: Side, code: int, why: str) -> None:  # noqa: ARG002  there is one side
        closed = replace(lost(code), text=f"it closed the connection ({code})")
        self.heard.put_nowait(_not_a_backend(f"it sent a message that is {why}") if why else closed)


def _not_a_backend(text: str) -> BackendFailure:
    """Whatever answers there, it does not speak the protocol."""
    return replace(misbehaved(text), remedy=Remedy.ADDRESS)


async def attempt(
    dialect: Dialect, plan: Plan, *, speak: bool, clock: Callable[[], float] = time.monotonic
) -> Trial:
    """Return when the backend has echoed what it was configured with, or has begun to speak. Leaves nothing open.

    To speak costs some tokens. Raises DialError, which says what did not work.
    """
    plan = dialect.fitted(plan)
    listener = _Listener(dialect)
    link = Link(Side.BACKEND, listener, MAX_MESSAGE_BYTES)
    began_at = clock()
    await dial(address_of(dialect, plan.model), link, MAX_MESSAGE_BYTES)
    try:
        await _until(listener, ev.BackendOpened, ANSWER_LIMIT_S)
        opened_at = clock()
        link.send(dialect.render(ev.Configure(plan)))
        configured = await _until(listener, ev.BackendConfigured, ANSWER_LIMIT_S)
        if not configured.formats_match:
            raise DialError(wrong_format(f"it echoed the audio formats {configured.echoed}"))
        configured_at = clock()
        first_audio_ms = None
        if speak:
            # A tenant that greets nobody has no words to be spoken.
            greeting = plan.greeting or Plan().greeting
            instructions = wording(Purpose.GREETING, replace(plan, greeting=greeting))
            link.send(dialect.render(ev.CreateResponse(Purpose.GREETING, instructions, greeting)))
            await _until(listener, ev.AgentAudio, SPEECH_LIMIT_S)
            first_audio_ms = (clock() - configured_at) * 1000
        return Trial((opened_at - began_at) * 1000, (configured_at - opened_at) * 1000, first_audio_ms)
    finally:
        link.close()
        await link.over.wait()


_MISSING: Mapping[type[Event], str] = MappingProxyType(
    {
        ev.BackendOpened: "it said nothing",
        ev.BackendConfigured: "it did not echo its configuration",
        ev.AgentAudio: "it did not speak",
    }
)

_Wanted = TypeVar("_Wanted", ev.BackendOpened, ev.BackendConfigured, ev.AgentAudio)


async def _until(listener: _Listener, wanted: type[_Wanted], limit_s: float) -> _Wanted:
    """The first event of this type. Raises DialError when it will not come."""
    try:
        async with asyncio.timeout(limit_s):
            while True:
                heard = await listener.heard.get()
                if isinstance(heard, wanted):
                    return heard
                _refuse(heard, speaking=wanted is ev.AgentAudio)
    except TimeoutError:
        raise DialError(not_ready(f"{_MISSING[wanted]} within {limit_s:g} s")) from None


def _refuse(heard: Event | BackendFailure, *, speaking: bool) -> None:
    """Raises DialError for what ends a trial; everything else does not matter to it.

    Until it speaks, an error ends it only when it is fatal or answers the configuration, as in a call.
    """
    match heard:
        case BackendFailure():
            raise DialError(heard)
        case ev.BackendFault(kind=ev.ErrorKind.WARNING):
            pass
        case ev.BackendFault() if speaking or heard.configuration or heard.kind is ev.ErrorKind.FATAL:
            about = f" about {heard.param}" if heard.param else ""
            failure = heard.failure
            raise DialError(replace(failure, text=f"it answered with the error {failure.code}{about}"))
        case ev.ResponseEnded(status=ev.ResponseStatus.COMPLETED):
            raise DialError(replace(no_response(NO_AUDIO), text="it answered without audio"))
        case ev.ResponseEnded():
            failure = heard.failure or no_response(heard.status.value)
            raise DialError(replace(failure, text=f"it could not speak: {failure.code}"))
