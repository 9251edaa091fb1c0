"""A caller who keeps to a script: listens, speaks, interrupts, hangs up, and says afterwards how it went.

Drives a simulated phone as a person would, by ear alone. Knows nothing of the server on the other end.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass

from app.sim.phone import Phone
from app.sim.phone_errors import CallEndedError
from app.sim.phone_events import ClearReceived, PhoneEvent, StreamOpened, StreamStarted, WebhookAnswered

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
    """A line that was said, and what the agent made of it. Times in seconds since the call was dialled."""

    began_at_s: float
    ended_at_s: float
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
    unsaid: int
    """Lines that the call ended before."""
    not_interrupted: int
    """Lines that were to interrupt the agent, and found it silent."""
    ended: str
    violations: int
    """Messages of the server that Twilio would not take."""
    webhook_region: str | None = None
    """Where the voice webhook was answered; None: the server does not say."""
    stream_region: str | None = None
    """Where the last stream was answered; None: the server does not say, or there was none."""

    @property
    def answered(self) -> bool:
        """True when every line was said and got an answer."""
        return self.unsaid == 0 and all(said.answered_after_s is not None for said in self.said)

    @property
    def obeyed(self) -> bool:
        """True when every interruption took place and silenced the agent."""
        talked_on = any(said.interrupted and said.obeyed_after_s is None for said in self.said)
        return self.not_interrupted == 0 and not talked_on

    @property
    def good(self) -> bool:
        """True when the agent greeted, answered and obeyed, in messages that Twilio would take."""
        return self.greeted_after_s is not None and self.answered and self.obeyed and self.violations == 0


async def converse(phone: Phone, lines: list[Line], *, patience_s: float) -> Report:
    """Say every line in its turn and hang up. The phone has dialled.

    `patience_s`: the longest to wait for the agent, each time. A call that ends early is reported, not raised.
    """
    spoken: list[_Spoken] = []
    with contextlib.suppress(CallEndedError):  # the report says how it ended
        await phone.answered()
        since = 0.0
        for line in lines:
            await _turn(phone, line, since, patience_s)
            since = await _say(phone, line, spoken)
        await _agent_finished(phone, since, patience_s)
    await phone.hang_up()
    return _report(phone, lines, spoken)


@dataclass(slots=True)
class _Spoken:
    line: Line
    began_at: float
    ended_at: float


async def _say(phone: Phone, line: Line, spoken: list[_Spoken]) -> float:
    loop = asyncio.get_running_loop()
    said = _Spoken(line, loop.time(), loop.time())
    spoken.append(said)
    phone.say(line.audio)
    try:
        await phone.spoken()
    finally:
        said.ended_at = loop.time()
    return said.ended_at


async def _turn(phone: Phone, line: Line, since: float, patience_s: float) -> None:
    """Wait until it is the line's turn; impatience is a turn as well."""
    if line.interrupts_after_s is None:
        await _agent_finished(phone, since, patience_s)
        return
    before_ms = phone.speech_ms
    wanted_ms = line.interrupts_after_s * 1000
    await _wait(phone.wait_for(lambda p: p.speech_ms >= before_ms + wanted_ms), patience_s)


async def _agent_finished(phone: Phone, since: float, patience_s: float) -> None:
    """Wait for the end of a speech that began after `since`: one that was interrupted before is no answer."""

    def finished(phone: Phone) -> bool:
        return not phone.agent_speaking and any(spell.started_at >= since for spell in phone.spells)

    await _wait(phone.wait_for(finished), patience_s)


async def _wait(waiting: Coroutine[None, None, None], patience_s: float) -> None:
    # The script goes on after a time-out: that there was no answer is what the report is for.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            await waiting


def _report(phone: Phone, lines: list[Line], spoken: list[_Spoken]) -> Report:
    started = next((e.at for e in phone.timeline if isinstance(e, StreamStarted)), None)
    first = phone.spells[0].started_at if phone.spells else None
    said = tuple(_judge(phone, each) for each in spoken)
    return Report(
        greeted_after_s=None if started is None or first is None else first - started,
        said=said,
        unsaid=len(lines) - len(said),
        not_interrupted=sum(
            each.line.interrupts_after_s is not None and not judged.interrupted
            for each, judged in zip(spoken, said, strict=True)
        ),
        ended="" if phone.ended is None else phone.ended.value,
        violations=len(phone.violations),
        webhook_region=next((e.region for e in phone.timeline if isinstance(e, WebhookAnswered)), None),
        stream_region=next((e.region for e in reversed(phone.timeline) if isinstance(e, StreamOpened)), None),
    )


def _judge(phone: Phone, said: _Spoken) -> Said:
    dialled_at = dialled(phone.timeline)
    spells = [(spell.started_at, spell.started_at + spell.ms / 1000) for spell in phone.spells]
    interrupted = any(start < said.began_at < end for start, end in spells)
    clears = (event.at for event in phone.timeline if isinstance(event, ClearReceived))
    hush = next((at - said.began_at for at in clears if at > said.began_at), None)
    answer = next((start for start, _ in spells if start >= said.ended_at), None)
    return Said(
        began_at_s=said.began_at - dialled_at,
        ended_at_s=said.ended_at - dialled_at,
        interrupted=interrupted,
        obeyed_after_s=hush if interrupted and hush is not None and hush <= OBEYED_WITHIN_S else None,
        answered_after_s=None if answer is None else answer - said.ended_at,
    )


def dialled(timeline: list[PhoneEvent]) -> float:
    """When the call began: its first webhook was sent then."""
    first = timeline[0]
    return first.at - (first.took_ms / 1000 if isinstance(first, WebhookAnswered) else 0.0)
