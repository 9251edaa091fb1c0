"""A caller who keeps to a script: listens, speaks, interrupts, hangs up, and says afterwards how it went.

Drives a simulated phone as a person would, by ear alone. Knows nothing of the server on the other end.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass

from app.sim.phone import Phone
from app.sim.phone_errors import CallEndedError
from app.sim.phone_events import AgentSpoke, ClearReceived, StreamStarted

OBEYED_WITHIN_S = 1.0
"""An agent that talks on for longer than this after the caller's first sound has not obeyed."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing to say."""

    audio: bytes
    """8 kHz mu-law."""
    interrupts_after_s: float | None = None
    """None: wait until the agent has finished. Else: so long into the agent's next speech."""


@dataclass(frozen=True, slots=True)
class Said:
    """A line that was said, and what the agent made of it. Times in seconds."""

    began_at: float
    ended_at: float
    interrupted: bool
    """The agent was speaking when it began."""
    obeyed_after_s: float | None
    """From the first sound of an interruption to the agent's silence; None: the agent talked on."""
    answered_after_s: float | None
    """From the last sound to the agent's first; None: no answer."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a call went."""

    greeted_after_s: float | None
    """From the stream's start to the agent's first sound; None: not greeted."""
    said: tuple[Said, ...]
    ended: str
    violations: int
    """Messages of the server that Twilio would not take."""

    @property
    def answered(self) -> bool:
        """True when every line got an answer."""
        return bool(self.said) and all(said.answered_after_s is not None for said in self.said)

    @property
    def obeyed(self) -> bool:
        """True when every interruption silenced the agent."""
        return all(said.obeyed_after_s is not None for said in self.said if said.interrupted)


async def converse(phone: Phone, lines: list[Line], *, patience_s: float) -> Report:
    """Say every line in its turn and hang up. The phone has dialled.

    `patience_s`: the longest to wait for the agent, each time. A call that ends early is reported, not raised.
    """
    loop = asyncio.get_running_loop()
    spoken: list[tuple[float, float]] = []
    with contextlib.suppress(CallEndedError):  # the report says how it ended
        await phone.answered()
        for line in lines:
            await _turn(phone, line, patience_s)
            began_at = loop.time()
            phone.say(line.audio)
            await phone.spoken()
            spoken.append((began_at, loop.time()))
        await _agent_finished(phone, patience_s)
    await phone.hang_up()
    return _report(phone, spoken)


async def _turn(phone: Phone, line: Line, patience_s: float) -> None:
    """Wait until it is the line's turn; impatience is a turn as well."""
    if line.interrupts_after_s is None:
        await _agent_finished(phone, patience_s)
        return
    before_ms = phone.speech_ms
    wanted_ms = line.interrupts_after_s * 1000
    await _wait(phone.wait_for(lambda p: p.speech_ms >= before_ms + wanted_ms), patience_s)


async def _agent_finished(phone: Phone, patience_s: float) -> None:
    spells = len(phone.spells)
    await _wait(phone.wait_for(lambda p: len(p.spells) > spells and not p.agent_speaking), patience_s)


async def _wait(waiting: Coroutine[None, None, None], patience_s: float) -> None:
    # The script goes on after a time-out: that there was no answer is what the report is for.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            await waiting


def _report(phone: Phone, spoken: list[tuple[float, float]]) -> Report:
    spells = [(e.started_at, e.started_at + e.ms / 1000) for e in phone.timeline if isinstance(e, AgentSpoke)]
    clears = [e.at for e in phone.timeline if isinstance(e, ClearReceived)]
    started = next((e.at for e in phone.timeline if isinstance(e, StreamStarted)), None)
    said = tuple(_judge(began, ended, spells, clears) for began, ended in spoken)
    greeted = None if started is None or not spells else spells[0][0] - started
    return Report(greeted, said, "" if phone.ended is None else phone.ended.value, len(phone.violations))


def _judge(began_at: float, ended_at: float, spells: list[tuple[float, float]], clears: list[float]) -> Said:
    interrupted = any(start < began_at < end for start, end in spells)
    clear = next((at for at in clears if at > began_at), None)
    obeyed = clear is not None and clear - began_at <= OBEYED_WITHIN_S
    answer = next((start for start, _ in spells if start >= ended_at), None)
    return Said(
        began_at,
        ended_at,
        interrupted,
        clear - began_at if interrupted and clear is not None and obeyed else None,
        None if answer is None else answer - ended_at,
    )
