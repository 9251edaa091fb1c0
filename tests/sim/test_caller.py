"""The caller who keeps to a script, on a real test phone, against agents that do and do not do their part."""

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from app.sim.caller import Line, Report, Said, converse
from tests.sim.caller import calling, streaming, tone
from tests.sim.echo_server import Conversation, clear, media, receive

pytestmark = pytest.mark.anyio

QUIET = {0x7F, 0xFF}
"""Both zeros of mu-law."""

QUIET_FRAMES = 5
"""So many frames without a sound end the caller's turn: quick, so that the tests are."""


def agent(
    *,
    greets: int = 200,
    answers: int = 200,
    obeys: bool = True,
    patience: int = QUIET_FRAMES,
    hangs_up_at_sound: int = 1_000,
) -> Conversation:
    """An agent that greets and answers with so many ms of tone, and stops when it is interrupted."""

    async def conversation(connection: ServerConnection) -> None:
        stream_sid = (await receive(connection, "start"))["streamSid"]
        sounds = quiet = 0
        await connection.send(media(stream_sid, tone(greets)))
        async for raw in connection:
            message = json.loads(raw)
            if message["event"] != "media":
                continue
            if set(base64.b64decode(message["media"]["payload"])) <= QUIET:
                quiet += 1
                if quiet == patience and sounds:
                    await connection.send(media(stream_sid, tone(answers)))
                continue
            if (not sounds or quiet >= patience) and obeys:
                await connection.send(clear(stream_sid))
            sounds, quiet = sounds + 1, 0
            if sounds == hangs_up_at_sound:
                return

    return conversation


async def call(conversation: Conversation, *lines: Line, patience_s: float = 5.0) -> Report:
    async with asyncio.timeout(20), calling(streaming(conversation)) as phone:
        return await converse(phone, list(lines), patience_s=patience_s)


async def test_caller_without_lines_hears_the_greeting_and_hangs_up() -> None:
    report = await call(agent())
    assert report.greeted_after_s is not None
    assert (report.said, report.ended, report.violations) == ((), "the caller hung up", 0)


async def test_caller_waits_for_the_greeting_speaks_and_hears_the_answer() -> None:
    report = await call(agent(), Line(tone(100)))
    (said,) = report.said
    assert not said.interrupted
    assert said.ended_at_s - said.began_at_s >= 0.08
    assert said.answered_after_s is not None
    assert report.answered
    assert report.obeyed


async def test_caller_interrupts_and_the_agent_obeys_and_answers() -> None:
    """What ends 0.6 s after the interruption is the speech that was cut off, and no answer."""
    report = await call(agent(greets=3_000, patience=40), Line(tone(100), interrupts_after_s=0.1))
    (said,) = report.said
    assert said.interrupted
    assert said.obeyed_after_s is not None
    assert report.good


async def test_caller_interrupts_and_the_agent_talks_on() -> None:
    report = await call(agent(greets=1_000, obeys=False), Line(tone(100), interrupts_after_s=0.1), patience_s=0.5)
    (said,) = report.said
    assert said.interrupted
    assert said.obeyed_after_s is None
    assert not report.obeyed


async def test_caller_whose_agent_is_silent_speaks_after_all_and_reports_it() -> None:
    report = await call(agent(greets=0, answers=0), Line(tone(100)), patience_s=0.1)
    assert report.greeted_after_s is None
    assert not report.answered
    assert [said.answered_after_s for said in report.said] == [None]


async def test_call_that_ends_in_the_middle_of_a_line_is_reported() -> None:
    report = await call(agent(hangs_up_at_sound=2), Line(tone(2_000)))
    assert report.ended == "the document came to its end"
    assert not report.answered


async def test_interruption_that_meets_silence_is_reported() -> None:
    report = await call(agent(answers=0), Line(tone(100), interrupts_after_s=2.0), patience_s=0.5)
    assert report.not_interrupted == 1
    assert not report.obeyed


async def test_call_that_ends_in_the_middle_of_a_later_line_was_not_answered() -> None:
    report = await call(agent(hangs_up_at_sound=8), Line(tone(100)), Line(tone(1_000)))
    assert not report.answered


# --- Judging -----------------------------------------------------------------------------------------


GOOD = Report(0.5, (), unsaid=0, not_interrupted=0, ended="the caller hung up", violations=0)


def said(*, interrupted: bool = False, obeyed: float | None = None, answered: float | None = None) -> Said:
    return Said(0.0, 1.0, interrupted, obeyed, answered)


@pytest.mark.parametrize(
    ("lines", "answered", "obeyed"),
    [
        ((), True, True),
        ((said(answered=0.5),), True, True),
        ((said(),), False, True),
        ((said(answered=0.5), said()), False, True),
        ((said(answered=0.5, interrupted=True, obeyed=0.2),), True, True),
        ((said(answered=0.5, interrupted=True),), True, False),
    ],
)
def test_report_is_answered_and_obeyed_when_every_line_was(
    lines: tuple[Said, ...], answered: bool, obeyed: bool
) -> None:
    report = replace(GOOD, said=lines)
    assert (report.answered, report.obeyed, report.good) == (answered, obeyed, answered and obeyed)


@pytest.mark.parametrize(
    "flaw", [{"greeted_after_s": None}, {"unsaid": 1}, {"not_interrupted": 1}, {"violations": 1}]
)
def test_report_with_any_flaw_is_not_good(flaw: dict[str, Any]) -> None:
    assert GOOD.good
    assert not replace(GOOD, **flaw).good
