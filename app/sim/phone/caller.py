"""A scripted caller: listens, speaks, interrupts, hangs up, and reports how the call went.

Drives a simulated phone as a person would, by ear alone. It knows nothing about the server at the other end.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from app.sim.phone.errors import CallEndedError
from app.sim.phone.judging import Report, SpokenLine, judge
from app.sim.phone.phone import Phone
from app.sim.phone.recording import utterances

ANSWER_WITHIN_S: Final = 5.0
"""How soon an agent has to greet and to answer, by default."""

_TALKS_MAX_S: Final = 60.0
"""The caller waits no longer than this for the agent to finish."""

_LONG_PAUSE_S: Final = 2.0
"""An agent that is silent for this long has finished, even if audio goes on: some servers send silence."""

_AUDIBLE_S: Final = 0.1
"""Agent audio this recent counts as playing: 20 ms pieces that are sent in real time leave short gaps."""


@dataclass(frozen=True, slots=True)
class ScriptedLine:
    """One thing that the caller says."""

    audio: bytes
    """8 kHz mu-law with speech in it: see recording.read_speech."""
    interrupts_after_s: float | None = None
    """How much of the agent's next speech to hear first; None: wait until the agent has finished."""


async def converse(
    phone: Phone,
    lines: list[ScriptedLine],
    *,
    patience_s: float,
    answer_within_s: float = ANSWER_WITHIN_S,
    greeting_required: bool = True,
) -> Report:
    """Says every line in turn and hangs up, on a phone that has dialled. Returns the report.

    `patience_s` is the longest wait for the agent to begin to speak. Speech that begins after `answer_within_s` is
    no greeting and no answer. Without `greeting_required`, the caller speaks first when no greeting came in that
    time. A call that ends early is reported, not raised.
    """
    patience_s = max(patience_s, answer_within_s)
    spoken: list[SpokenLine] = []
    with contextlib.suppress(CallEndedError):  # the report says how it ended
        await phone.answered()
        last: SpokenLine | None = None
        for line in lines:
            wait_s = patience_s if last is not None or greeting_required else answer_within_s
            if line.interrupts_after_s is None:
                await _hear_out(phone, last, wait_s)
            else:
                await _hear_some(phone, last, line.interrupts_after_s, wait_s, answer_within_s)
            last = await _say(phone, line, spoken)
        await _hear_out(phone, last, patience_s)
    await phone.hang_up()
    return judge(
        phone,
        spoken,
        lines=len(lines),
        greeting_required=greeting_required,
        answer_within_s=answer_within_s,
    )


async def _say(phone: Phone, line: ScriptedLine, spoken: list[SpokenLine]) -> SpokenLine:
    loop = asyncio.get_running_loop()
    found = utterances(line.audio)
    assert found, "a line without speech cannot be answered"
    began_at = loop.time()
    phone.say(line.audio)
    try:
        await phone.spoken()
    finally:
        spoken.append(SpokenLine(found, line.interrupts_after_s is not None, began_at, loop.time()))
    return spoken[-1]


async def _hear_out(phone: Phone, last: SpokenLine | None, patience_s: float) -> None:
    """Waits until the agent has spoken and finished."""
    if await _wait(phone, lambda p: _onset(p, last) is not None, patience_s):
        await _wait(phone, _finished, _TALKS_MAX_S)


async def _hear_some(
    phone: Phone, last: SpokenLine | None, wanted_s: float, patience_s: float, pause_s: float
) -> None:
    """Waits until `wanted_s` of the agent's next speech were heard and more of it is to come.

    The agent may pause for `pause_s` in it, for a tool call. After a longer silence there is nothing to interrupt.
    """
    loop = asyncio.get_running_loop()

    def enough(phone: Phone) -> bool:
        onset = _onset(phone, last)
        heard_s = 0.0 if onset is None else phone.played_ms(since=onset) / 1000
        return heard_s >= wanted_s and phone.played_until() >= loop.time() - _AUDIBLE_S

    def over(phone: Phone) -> bool:
        return _finished(phone) and loop.time() - phone.speech_spans[-1].at >= pause_s

    if await _wait(phone, lambda p: _onset(p, last) is not None, patience_s):
        await _wait(phone, lambda p: enough(p) or over(p), wanted_s + pause_s + _TALKS_MAX_S)


def _onset(phone: Phone, last: SpokenLine | None) -> float | None:
    """Returns when the agent began to speak after the caller's last words; None when it has not."""
    speech_spans = [(span.started_at, span.started_at + span.ms / 1000) for span in phone.speech_spans]
    if phone.speaking_since is not None:
        speech_spans.append((phone.speaking_since, asyncio.get_running_loop().time()))
    return next((start for start, end in speech_spans if last is None or last.answered_by(start, end)), None)


def _finished(phone: Phone) -> bool:
    """True when the agent has spoken, is silent and has nothing queued. A pause in its speech is no end."""
    if phone.agent_speaking or not phone.speech_spans or not phone.connected:
        return False
    return phone.waiting_ms == 0 or asyncio.get_running_loop().time() - phone.speech_spans[-1].at >= _LONG_PAUSE_S


async def _wait(phone: Phone, condition: Callable[[Phone], bool], limit_s: float) -> bool:
    """Waits for a condition. Returns False when it did not come true in time: the report shows what is missing."""
    try:
        async with asyncio.timeout(limit_s):
            await phone.wait_for(condition)
    except TimeoutError:
        return False
    return True
