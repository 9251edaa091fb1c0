"""The caller who keeps to a script, on a real test phone, against agents that do and do not do their part."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from app.sim.phone.caller import ScriptedLine, converse
from app.sim.phone.judging import LineResult, Report
from tests.sim.caller import CONNECT_THEN_ACTION, HANGUP, calling, streaming, tone
from tests.sim.echo_server import Conversation, Reply, clear, media, receive

pytestmark = pytest.mark.anyio

QUIET = {0x7F, 0xFF}
"""Both zeros of mu-law."""

QUIET_FRAMES = 5
"""So many frames without a sound end the caller's turn: quick, so that the tests are."""

WITHIN_S = 1.0
"""For an answer, in these tests."""


def silence(ms: int) -> bytes:
    """Silence, as audio."""
    return b"\xff" * (ms * 8)


class Agent:
    """Greets and answers with this audio, and clears when it is interrupted."""

    def __init__(
        self,
        *,
        greeting: bytes = tone(200),
        answer: bytes = tone(200),
        obeys: bool = True,
        patience: int = QUIET_FRAMES,
        hangs_up_at_sound: int = 1_000,
        after_answer: Callable[["Agent"], Awaitable[None]] | None = None,
    ) -> None:
        self.greeting = greeting
        self.answer = answer
        self.obeys = obeys
        self.patience = patience
        self.hangs_up_at_sound = hangs_up_at_sound
        self.after_answer = after_answer

    async def say(self, audio: bytes) -> None:
        """Send it all at once."""
        if audio:
            await self.connection.send(media(self.stream_sid, audio))

    async def clear(self) -> None:
        """Throw away what was not played."""
        await self.connection.send(clear(self.stream_sid))

    async def __call__(self, connection: ServerConnection) -> None:
        """A whole conversation."""
        self.connection = connection
        self.stream_sid = (await receive(connection, "start"))["streamSid"]
        sounds = quiet = 0
        await self.say(self.greeting)
        async for raw in connection:
            message = json.loads(raw)
            if message["event"] != "media":
                continue
            if set(base64.b64decode(message["media"]["payload"])) <= QUIET:
                quiet += 1
                if quiet == self.patience and sounds:
                    await self.say(self.answer)
                    if self.after_answer is not None:
                        await self.after_answer(self)
                continue
            if (not sounds or quiet >= self.patience) and self.obeys:
                await self.clear()
            sounds, quiet = sounds + 1, 0
            if sounds == self.hangs_up_at_sound:
                return


async def after(frames: int, agent: Agent) -> None:
    """Let so many frames of the caller pass."""
    for _ in range(frames):
        await receive(agent.connection, "media")


async def call(
    conversation: Conversation,
    *lines: ScriptedLine,
    patience_s: float = 5.0,
    within_s: float = WITHIN_S,
    document: str | None = None,
    **options: Any,
) -> Report:
    application = streaming(conversation) if document is None else streaming(conversation, document=document)
    async with asyncio.timeout(20), calling(application) as phone:
        return await converse(phone, list(lines), patience_s=patience_s, answer_within_s=within_s, **options)


# --- Greeting ----------------------------------------------------------------------------------------


async def test_caller_without_lines_hears_the_greeting_and_hangs_up() -> None:
    report = await call(Agent())
    assert report.greeted_after_s is not None
    assert (report.said, report.ended, report.faults) == ((), "the caller hung up", [])


async def test_agent_that_waits_for_the_caller_did_not_greet() -> None:
    report = await call(Agent(greeting=b""), ScriptedLine(tone(100)), patience_s=1.0)
    assert report.greeted_after_s is None
    assert report.answered
    assert report.faults == ["The agent did not greet the caller."]


async def test_agent_may_wait_for_the_caller_when_the_greeting_is_optional() -> None:
    report = await call(Agent(greeting=b""), ScriptedLine(tone(100)), greeting_required=False)
    assert report.greeted_after_s is None
    assert report.said[0].began_at_s < WITHIN_S + 1.0
    assert report.good


async def test_silent_agent_and_silent_caller_make_no_greeting() -> None:
    report = await call(Agent(greeting=b""), greeting_required=False, patience_s=1.0)
    assert report.faults == ["The agent did not greet the caller."]


async def test_idle_prompt_is_no_greeting() -> None:
    async def conversation(connection: ServerConnection) -> None:
        agent = Agent(greeting=b"")
        agent.connection, agent.stream_sid = connection, (await receive(connection, "start"))["streamSid"]
        await after(75, agent)
        await agent.say(tone(200))
        await connection.wait_closed()

    report = await call(conversation)
    assert report.greeted_after_s is not None
    assert not report.greeted
    assert report.faults[0].endswith("the limit is 1 s.")


# --- Answers -----------------------------------------------------------------------------------------


async def test_caller_waits_for_the_greeting_speaks_and_hears_the_answer() -> None:
    report = await call(Agent(), ScriptedLine(tone(100)))
    (said,) = report.said
    assert not said.interrupted
    assert said.ended_at_s - said.began_at_s >= 0.08
    assert said.answered_after_s is not None
    assert report.good


async def test_what_the_agent_says_much_later_is_no_answer() -> None:
    report = await call(Agent(patience=90), ScriptedLine(tone(100)))
    (said,) = report.said
    assert said.answered_after_s is not None
    assert said.answered_after_s > WITHIN_S
    assert not report.answered
    assert report.faults == [
        f"Line 1 got no answer within 1 s: the agent spoke only {said.answered_after_s:.1f} s after it."
    ]


async def test_answer_to_a_later_line_is_none_to_the_one_before() -> None:
    """The agent has ears for the second line only."""
    deaf = Agent(patience=60)
    report = await call(deaf, ScriptedLine(tone(100)), ScriptedLine(tone(100)), patience_s=1.0)
    assert report.said[0].answered_after_s is None


async def test_answer_in_the_silence_at_the_end_of_a_recording_is_the_answer() -> None:
    report = await call(Agent(), ScriptedLine(tone(100) + silence(1_500)))
    (said,) = report.said
    assert said.answered_after_s is not None
    assert said.answered_after_s < 0.5
    assert report.good


async def test_time_until_the_answer_counts_from_the_last_word() -> None:
    report = await call(Agent(), ScriptedLine(tone(100) + silence(600) + tone(100)))
    (said,) = report.said
    assert said.answered_after_s is not None
    assert said.answered_after_s < 0.5


async def test_very_short_answer_is_one() -> None:
    report = await call(Agent(answer=tone(40)), ScriptedLine(tone(100)))
    assert report.good


async def test_caller_does_not_speak_in_a_pause_of_the_agents() -> None:
    greeting = tone(100) + silence(1_000) + tone(100)
    report = await call(Agent(greeting=greeting), ScriptedLine(tone(100)))
    assert report.greeted_after_s is not None
    assert report.said[0].began_at_s > 1.2
    assert report.good


async def test_answer_in_pieces_with_a_tool_between_is_one_for_each_line() -> None:
    async def looks_it_up(agent: Agent) -> None:
        await after(50, agent)
        await agent.say(tone(300))

    report = await call(Agent(after_answer=looks_it_up), ScriptedLine(tone(100)), ScriptedLine(tone(100)))
    assert report.good


async def test_agent_that_is_always_silent_is_reported() -> None:
    report = await call(Agent(greeting=b"", answer=b""), ScriptedLine(tone(100)), patience_s=0.1, within_s=0.1)
    assert report.greeted_after_s is None
    assert [said.answered_after_s for said in report.said] == [None]
    assert report.faults == ["The agent did not greet the caller.", "Line 1 got no answer."]


# --- Interruptions -----------------------------------------------------------------------------------


async def test_caller_interrupts_and_the_agent_obeys_and_answers() -> None:
    """The answer comes less than the 0.6 s after the cut that otherwise end a speech."""
    report = await call(Agent(greeting=tone(3_000)), ScriptedLine(tone(100), interrupts_after_s=0.1))
    (said,) = report.said
    assert said.interrupted
    assert said.obeyed_after_s is not None
    assert said.answered_after_s is not None
    assert said.answered_after_s < 0.5
    assert report.good


async def test_interruption_between_two_words_is_one() -> None:
    words = tone(100) + silence(1_500) + tone(1_000)
    report = await call(Agent(greeting=words), ScriptedLine(tone(100), interrupts_after_s=0.8))
    (said,) = report.said
    assert said.interrupted
    assert said.obeyed_after_s is not None
    assert report.good


async def test_interruption_counts_the_agents_pauses_as_heard_audio() -> None:
    words = (tone(100) + silence(400)) * 8
    report = await call(Agent(greeting=words), ScriptedLine(tone(100), interrupts_after_s=1.0))
    assert report.greeted_after_s is not None
    began_after_s = report.said[0].began_at_s - report.greeted_after_s
    assert 1.0 <= began_after_s < 2.0
    assert report.good


async def test_silence_before_the_first_word_is_no_part_of_the_interruption() -> None:
    recording = silence(1_500) + tone(100)
    report = await call(Agent(greeting=tone(4_000)), ScriptedLine(recording, interrupts_after_s=0.1))
    assert report.good


async def test_agent_that_sends_each_frame_when_it_is_due_is_interrupted_too() -> None:
    class Unhurried(Agent):
        async def __call__(self, connection: ServerConnection) -> None:
            self.connection, self.stream_sid = connection, (await receive(connection, "start"))["streamSid"]
            sounds = quiet = 0
            async for raw in connection:
                message = json.loads(raw)
                if message["event"] != "media":
                    continue
                heard = not set(base64.b64decode(message["media"]["payload"])) <= QUIET
                if heard and not sounds:
                    await self.clear()
                sounds, quiet = sounds + heard, 0 if heard else quiet + 1
                if not sounds or quiet == 20:
                    await self.say(tone(20))

    report = await call(Unhurried(), ScriptedLine(tone(100), interrupts_after_s=0.5))
    assert report.said[0].interrupted
    assert report.good


async def test_caller_interrupts_what_comes_after_a_tool() -> None:
    async def looks_it_up(agent: Agent) -> None:
        agent.after_answer = None
        await after(45, agent)
        await agent.say(tone(2_000))

    agent = Agent(after_answer=looks_it_up)
    report = await call(agent, ScriptedLine(tone(100)), ScriptedLine(tone(100), interrupts_after_s=0.6))
    assert report.said[1].interrupted
    assert report.good


async def test_caller_interrupts_and_the_agent_talks_on() -> None:
    report = await call(Agent(greeting=tone(2_000), obeys=False), ScriptedLine(tone(100), interrupts_after_s=0.1))
    (said,) = report.said
    assert said.interrupted
    assert said.obeyed_after_s is None
    assert report.faults[0] == "The agent did not stop within 1 s when line 1 interrupted it."


async def test_agent_that_clears_and_goes_on_has_not_stopped() -> None:
    class Stubborn(Agent):
        async def clear(self) -> None:
            await super().clear()
            await self.say(tone(1_000))

    report = await call(Stubborn(greeting=tone(2_000)), ScriptedLine(tone(600), interrupts_after_s=0.1))
    assert report.said[0].interrupted
    assert not report.obeyed


async def test_agent_that_had_said_all_was_not_interrupted() -> None:
    """It clears as one should, and there is nothing to throw away."""
    recording = silence(600) + tone(100)
    report = await call(Agent(greeting=tone(300)), ScriptedLine(recording, interrupts_after_s=0.2))
    assert report.not_interrupted == 1
    assert report.answered
    assert [fault.partition(":")[0] for fault in report.faults] == ["The interruption proves nothing"]


async def test_interruption_that_meets_silence_is_reported_and_not_waited_for() -> None:
    report = await call(Agent(), ScriptedLine(tone(100), interrupts_after_s=2.0))
    assert report.not_interrupted == 1
    assert report.said[0].began_at_s < 4.0
    assert not report.obeyed


# --- Calls that end early ----------------------------------------------------------------------------


async def test_call_that_ends_in_the_middle_of_a_line_is_reported() -> None:
    report = await call(Agent(hangs_up_at_sound=2), ScriptedLine(tone(2_000)))
    assert report.ended == "the document came to its end"
    assert not report.answered


async def test_call_that_ends_in_the_middle_of_a_later_line_was_not_answered() -> None:
    report = await call(Agent(hangs_up_at_sound=8), ScriptedLine(tone(100)), ScriptedLine(tone(1_000)))
    assert not report.answered


async def test_call_that_ends_before_a_line_is_reported() -> None:
    async def gone(agent: Agent) -> None:
        await agent.connection.close()

    report = await call(
        Agent(after_answer=gone), ScriptedLine(tone(100)), ScriptedLine(tone(100)), ScriptedLine(tone(100))
    )
    assert report.unsaid == 2
    assert "2 lines were not said: the document came to its end." in report.faults


async def test_agent_that_hangs_up_when_all_is_answered_did_well() -> None:
    async def gone(agent: Agent) -> None:
        await after(30, agent)
        await agent.connection.close()

    report = await call(Agent(after_answer=gone), ScriptedLine(tone(100)))
    assert report.ended == "the document came to its end"
    assert report.good


async def test_agent_whose_connection_breaks_in_its_answer_did_not() -> None:
    async def gone(agent: Agent) -> None:
        await after(20, agent)
        agent.connection.transport.abort()

    report = await call(Agent(answer=tone(2_000), after_answer=gone), ScriptedLine(tone(100)))
    assert report.answered
    assert [fault.partition(":")[0] for fault in report.faults] == ["The stream broke"]


async def test_caller_who_hears_the_sentence_of_a_broken_call_reports_it() -> None:
    async def gone(agent: Agent) -> None:
        await after(20, agent)
        await agent.connection.close()

    application = streaming(Agent(answer=tone(2_000), after_answer=gone), document=CONNECT_THEN_ACTION)
    application.webhooks["/after"] = Reply(HANGUP.replace("<Hangup/>", "<Say>We are sorry.</Say><Hangup/>"))
    async with asyncio.timeout(20), calling(application) as phone:
        report = await converse(phone, [ScriptedLine(tone(100))], patience_s=5.0)
    assert report.answered
    assert report.faults == ['The agent\'s part of the call broke off: Twilio said "We are sorry."']


# --- Judging -----------------------------------------------------------------------------------------


GOOD = Report(0.5, (), unsaid=0, not_interrupted=0, ended="the caller hung up", violations=0)


def said(*, interrupted: bool = False, obeyed: float | None = None, answered: float | None = None) -> LineResult:
    return LineResult(0.0, 1.0, interrupted, obeyed, answered)


@pytest.mark.parametrize(
    ("lines", "answered", "obeyed"),
    [
        ((), True, True),
        ((said(answered=0.5),), True, True),
        ((said(),), False, True),
        ((said(answered=5.5),), False, True),
        ((said(answered=0.5), said()), False, True),
        ((said(answered=0.5, interrupted=True, obeyed=0.2),), True, True),
        ((said(answered=0.5, interrupted=True),), True, False),
    ],
)
def test_report_is_answered_and_obeyed_when_every_line_was(
    lines: tuple[LineResult, ...], answered: bool, obeyed: bool
) -> None:
    report = replace(GOOD, said=lines)
    assert (report.answered, report.obeyed, report.good) == (answered, obeyed, answered and obeyed)


@pytest.mark.parametrize(
    "flaw",
    [
        {"greeted_after_s": None},
        {"greeted_after_s": 5.5},
        {"unsaid": 1},
        {"not_interrupted": 1},
        {"violations": 1},
        {"broke": "The stream broke."},
    ],
)
def test_report_with_any_flaw_is_not_good_and_says_so_in_one_sentence(flaw: dict[str, Any]) -> None:
    assert GOOD.good
    assert len(replace(GOOD, **flaw).faults) == 1
