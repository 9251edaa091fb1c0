"""A backend that is lost at any point of a call, over real sockets: the next session goes on with the call."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.call.journal import ROLLOVER, TAKE_OVER
from app.call.plan import HANG_UP, Plan, Tool
from app.call.records import CallEvent, Speaker, Turn
from app.cli.demo import VOICES
from app.sim.phone.pauses import pauses
from app.sim.phone.phone import Phone
from app.sim.realtime.faults import IMMEDIATELY, NO_FAULTS, Faults, Timing
from app.sim.realtime.reply import FunctionCall, Message, Reply, ReplyRequest
from app.sim.realtime.session import LiveSession
from app.sim.wav import read_wav
from app.wire.formats import AudioFormat
from app.wire.tuning import OPENAI, VOICELIVE
from tests.bridge.spoken import Spoken
from tests.bridge.world import World, world

pytestmark = pytest.mark.anyio

SPEECH = read_wav(VOICES / "caller_interrupts.wav")
GREETING = "Hello, this is the dentist."
ANSWER = "On Tuesday we have a free appointment at half past ten in the morning, or at four."
PLAN = Plan(
    greeting=GREETING,
    vad_silence_ms=500,
    tools=(HANG_UP, Tool("find_slot", "Find a free appointment.")),
)
BOTH = [Spoken(OPENAI, AudioFormat.G711), Spoken(VOICELIVE, AudioFormat.G711)]


@dataclass(slots=True)
class Model:
    """Greets, answers every turn of the caller, and writes down what it was asked."""

    answer: Callable[[ReplyRequest], Reply]
    asked: list[ReplyRequest] = field(default_factory=list)

    def __call__(self, request: ReplyRequest) -> Reply:
        self.asked.append(request)
        if request.purpose == "greeting":
            return Reply((Message.lasting(GREETING, 500),))
        return self.answer(request)


def brief(request: ReplyRequest) -> Reply:
    """An answer of a second; a continuation of half a second."""
    if request.purpose == "continue":
        return Reply((Message.lasting("or at four.", 500),))
    return Reply((Message.lasting("At half past ten.", 1_000),))


def at_length(request: ReplyRequest) -> Reply:
    """An answer of six seconds, made hardly faster than it plays."""
    if request.purpose == "continue":
        return Reply((Message.lasting("or at four.", 500),))
    return Reply((Message.lasting(ANSWER, 6_000),), speed=2.0, delta_bytes=(1_600,))


@dataclass(slots=True)
class Called:
    """A call that has heard the greeting."""

    nearcall: World
    phone: Phone
    model: Model

    async def session(self, number: int) -> LiveSession:
        return await self.nearcall.backend.session(number)

    @property
    def turns(self) -> list[Turn]:
        return self.nearcall.turns(self.phone.call_sid)

    @property
    def take_overs(self) -> list[str]:
        records = self.nearcall.records
        return [each.detail for each in records if isinstance(each, CallEvent) and each.kind == TAKE_OVER]


@asynccontextmanager
async def called(
    data_dir: Path,
    faults: Faults,
    answer: Callable[[ReplyRequest], Reply] = brief,
    spoken: Spoken = BOTH[0],
    plan: Plan = PLAN,
) -> AsyncIterator[Called]:
    """`faults` are those of the first session alone."""
    model = Model(answer)
    async with world(data_dir, plan=plan, script=model, faults=faults, spoken=spoken) as nearcall:
        async with Phone(nearcall.phone()) as phone:
            await phone.dial()
            await phone.answered()
            await nearcall.backend.session(0)
            nearcall.backend.faults = NO_FAULTS
            if plan.greeting:
                await phone.heard_speech(450)
            yield Called(nearcall, phone, model)
            if phone.stream is not None:
                await phone.hang_up()
        assert phone.violations == []


def history(session: LiveSession) -> list[tuple[str, str]]:
    """What a session was told of the call before it: roles and words, tools and outputs."""
    told: list[tuple[str, str]] = []
    for each in session.received:
        if each.event["type"] != "conversation.item.create":
            continue
        item = each.event["item"]
        match item["type"]:
            case "message":
                told.append((item["role"], item["content"][0].get("text", "(sound)")))
            case "function_call":
                told.append(("call", item["name"]))
            case _:
                told.append(("output", item["output"]))
    return told


def names(spoken: Spoken, event: str) -> str:
    """The event as this service calls it."""
    return event.replace("output_", "") if spoken.service == VOICELIVE else event


LOSSES: dict[str, dict[str, Any]] = {
    "while the caller speaks": {"end_after": "input_audio_buffer.speech_started"},
    "between the turn and its answer": {"end_after": "input_audio_buffer.committed"},
    "at the answer's beginning": {"end_after": "response.created", "end_after_count": 2},
    "before the answer is heard": {"end_after": "response.content_part.added", "end_after_count": 2},
}


@pytest.mark.parametrize("how", ["abort", "reset", "internal_error", "clean", "expire"])
@pytest.mark.parametrize("where", LOSSES.values(), ids=LOSSES)
async def test_callers_turn_is_answered_once_by_the_next_session(
    tmp_path: Path, where: dict[str, Any], how: Any
) -> None:
    async with called(tmp_path, Faults(end=how, **where)) as call:
        before_ms = call.phone.speech_ms
        call.phone.say(SPEECH)
        await call.phone.heard_speech(900, since_ms=before_ms)
        second = await call.session(1)
        await call.phone.wait_for(lambda phone: phone.waiting_ms == 0)
        heard_ms = call.phone.speech_ms - before_ms
    assert 900 <= heard_ms <= 1_100
    assert history(second)[0] == ("assistant", GREETING)
    # In words or in sound, and never in both.
    in_words = any(role == "user" for role, _ in history(second))
    in_sound = any(sent.type == "input_audio_buffer.speech_started" for sent in second.sent)
    assert in_words != in_sound
    speakers = [turn.speaker for turn in call.turns]
    assert speakers == [Speaker.AGENT, Speaker.CALLER, Speaker.AGENT]
    assert [turn.seq for turn in call.turns] == [0, 1, 2]
    assert call.turns[1].said
    assert call.nearcall.endings(call.phone.call_sid) == ["caller_hung_up"]
    assert len(call.take_overs) == 1


@pytest.mark.parametrize("spoken", BOTH, ids=lambda spoken: spoken.service)
async def test_answer_that_breaks_off_goes_on_where_it_stopped(tmp_path: Path, spoken: Spoken) -> None:
    deltas = Faults(end="abort", end_after=names(spoken, "response.output_audio.delta"), end_after_count=16)
    async with called(tmp_path, deltas, at_length, spoken) as call:
        call.phone.say(SPEECH)
        second = await call.session(1)
        await second.event("response.create")
        await call.phone.wait_for(lambda phone: phone.waiting_ms == 0 and len(call.turns) > 3)
        silences = [each.ms for each in pauses(call.phone.heard_audio(), longer_than_ms=100) if each.resumed]
    first, rest = call.turns[2:]
    assert first.interrupted
    assert first.heard_ms == first.said_ms > 1_000
    assert first.heard
    assert ANSWER.startswith(first.heard)
    assert len(first.heard) / len(ANSWER) == pytest.approx(first.heard_ms / 6_000, abs=0.15)
    assert history(second)[-1] == ("assistant", first.heard)
    [create] = second.events("response.create")
    assert first.heard in create["response"]["instructions"]
    assert (rest.heard, rest.interrupted) == ("or at four.", False)
    # The only pause is the one in which the caller spoke: nothing is missing between the two parts.
    assert len(silences) == 1


async def test_answer_whose_audio_had_all_come_is_not_asked_for_again(tmp_path: Path) -> None:
    faults = Faults(end="abort", end_after="response.output_audio.done", end_after_count=2)
    async with called(tmp_path, faults) as call:
        call.phone.say(SPEECH)
        second = await call.session(1)
        await second.event("conversation.item.create", 3)
        await call.phone.wait_for(lambda phone: phone.waiting_ms == 0 and len(call.turns) > 2)
        call.phone.say(SPEECH)
        await call.phone.wait_for(lambda _: len(call.turns) > 4)
    assert second.events("response.create") == []
    assert history(second)[-1] == ("assistant", "At half past ten.")
    assert [turn.heard_ms for turn in call.turns if turn.speaker is Speaker.AGENT] == [500, 1_000, 1_000]


async def test_tool_that_ran_is_not_run_again_and_its_output_is_answered(tmp_path: Path) -> None:
    def looks_up(request: ReplyRequest) -> Reply:
        known = any(item["type"] == "function_call_output" for item in request.history)
        return brief(request) if known else Reply((FunctionCall("find_slot", '{"day":"tuesday"}'),))

    async with called(tmp_path, Faults(end="abort", end_before="function_call_output"), looks_up) as call:
        before_ms = call.phone.speech_ms
        call.phone.say(SPEECH)
        await call.phone.heard_speech(900, since_ms=before_ms)
    second = await call.session(1)
    assert [told[0] for told in history(second)][-2:] == ["call", "output"]
    ran = [each for each in call.nearcall.records if isinstance(each, CallEvent) and each.kind == "tool"]
    assert len(ran) == 1
    assert len(second.events("response.create")) == 1


async def test_session_that_is_lost_twice_in_a_row_is_taken_over_twice(tmp_path: Path) -> None:
    async with called(tmp_path, Faults(end="abort", end_after="input_audio_buffer.committed")) as call:
        call.nearcall.backend.faults = Faults(end="abort", end_before="session.update")
        before_ms = call.phone.speech_ms
        call.phone.say(SPEECH)
        await call.session(1)
        call.nearcall.backend.faults = NO_FAULTS
        await call.phone.heard_speech(900, since_ms=before_ms)
    assert [turn.speaker for turn in call.turns] == [Speaker.AGENT, Speaker.CALLER, Speaker.AGENT]
    assert call.nearcall.endings(call.phone.call_sid) == ["caller_hung_up"]


async def test_goodbye_is_heard_to_its_end_and_the_call_ends_as_it_should(tmp_path: Path) -> None:
    def leaves(_: ReplyRequest) -> Reply:
        return Reply((Message.lasting("Goodbye.", 1_500), FunctionCall("hang_up")))

    async with called(tmp_path, Faults(end="abort", end_after="response.done", end_after_count=2), leaves) as call:
        before_ms = call.phone.speech_ms
        call.phone.say(SPEECH)
        await call.phone.wait_for(lambda phone: phone.ended is not None)
        assert call.phone.speech_ms - before_ms >= 1_400
    assert call.nearcall.endings(call.phone.call_sid) == ["agent_hung_up"]


async def test_next_session_learns_where_the_caller_cut_into_an_old_answer(tmp_path: Path) -> None:
    def long(request: ReplyRequest) -> Reply:
        return Reply((Message.lasting(ANSWER, 6_000),)) if request.number == 2 else brief(request)

    faults = Faults(end="abort", end_after="response.done", end_after_count=2)
    async with called(tmp_path, faults, long) as call:
        start_ms = call.phone.speech_ms
        call.phone.say(SPEECH)
        second = await call.session(1)
        await second.event("conversation.item.create", 3)
        await call.phone.heard_speech(2_000, since_ms=start_ms)
        call.phone.say(SPEECH)
        await second.event("conversation.item.delete")
        await call.phone.wait_for(lambda phone: phone.waiting_ms == 0 and len(call.turns) > 4)
    cut = call.turns[2]
    assert cut.interrupted
    assert 2_000 <= cut.heard_ms < 5_000
    told = second.events("conversation.item.create")
    assert told[2]["item"]["content"][0]["text"] == ANSWER
    assert told[3]["previous_item_id"] == told[2]["item"]["id"]
    assert told[3]["item"]["content"][0]["text"] == cut.heard
    assert [each["item_id"] for each in second.events("conversation.item.delete")] == [told[2]["item"]["id"]]
    assert [each.event for each in second.sent if each.type == "error"] == []


async def test_no_backend_that_could_go_on_ends_in_the_apology_at_once(tmp_path: Path) -> None:
    async with called(tmp_path, Faults(end="abort", end_after="input_audio_buffer.committed")) as call:
        call.nearcall.backend.faults = Faults(refuse_upgrade=503)
        call.phone.say(SPEECH)
        await call.phone.wait_for(lambda phone: bool(phone.announcements))
        assert call.phone.announcements == [PLAN.sorry]
    assert len(call.nearcall.endings(call.phone.call_sid)) == 1


async def test_session_that_is_about_to_end_is_replaced_at_a_quiet_moment(tmp_path: Path) -> None:
    model = Model(brief)
    life = Timing(session_life_s=4)
    async with (
        world(tmp_path, plan=PLAN, script=model, timing=life) as nearcall,
        Phone(nearcall.phone()) as phone,
    ):
        await phone.dial()
        await phone.heard_speech(450)
        nearcall.backend.timing = IMMEDIATELY
        await nearcall.backend.wait_for(lambda backend: len(backend.sessions) > 1)
        first, second = await nearcall.backend.session(0), await nearcall.backend.session(1)
        await second.event("conversation.item.create")
        await first.wait_for(lambda session: session.close_code is not None)
        before_ms = phone.speech_ms
        phone.say(SPEECH)
        await phone.heard_speech(900, since_ms=before_ms)
        await phone.hang_up()
        assert phone.violations == []
    assert first.close_code == 1000
    assert history(second) == [("assistant", GREETING)]
    assert [turn.speaker for turn in nearcall.turns(phone.call_sid)] == [
        Speaker.AGENT,
        Speaker.CALLER,
        Speaker.AGENT,
    ]
    kinds = [each.kind for each in nearcall.records if isinstance(each, CallEvent)]
    assert kinds.count(ROLLOVER) == 1
    assert TAKE_OVER not in kinds
    assert nearcall.endings(phone.call_sid) == ["caller_hung_up"]
