"""The whole path over real sockets: a caller, Twilio's protocol, the bridge, and a realtime backend."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from twilio.request_validator import RequestValidator

from app.bridge.ticket import Ticket
from app.call.plan import Plan
from app.call.records import Record, Speaker, Turn
from app.cli.demo import VOICES
from app.sim.phone.errors import WebhookStatusError
from app.sim.phone.events import EndReason
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.phone.twilio_rest import TwilioRest
from app.sim.realtime.faults import Faults
from app.sim.realtime.reply import FunctionCall, Message, Reply, ReplyRequest, parrot
from app.sim.wav import read_wav
from app.wire.tuning import VOICELIVE
from tests import openai_types, voicelive_types
from tests.bridge.spoken import Spoken, each
from tests.bridge.world import ACCOUNT_SID, AUTH_TOKEN, OPERATOR, World, world

pytestmark = pytest.mark.anyio

SPEECH = read_wav(VOICES / "caller_interrupts.wav")
QUICK = Plan(greeting="Hello.", vad_silence_ms=200)


@asynccontextmanager
async def calling(options: PhoneOptions) -> AsyncIterator[Phone]:
    async with Phone(options) as phone:
        await phone.dial()
        yield phone


def brief(request: ReplyRequest) -> Reply:
    """Short answers, so that tests are."""
    return Reply((Message.lasting(f"Answer {request.number}.", 300),))


def goodbye(request: ReplyRequest) -> Reply:
    """Says goodbye and hangs up as soon as it may speak."""
    return Reply((Message.lasting("Goodbye.", 400), FunctionCall("hang_up")))


@pytest.mark.long
@each()
async def test_caller_is_greeted_speaks_and_hears_the_own_words_repeated(tmp_path: Path, spoken: Spoken) -> None:
    async with (
        world(tmp_path, plan=replace(QUICK, vad_silence_ms=500), script=parrot, spoken=spoken) as nearcall,
        calling(nearcall.phone()) as phone,
    ):
        await phone.answered()
        session = await nearcall.backend.session(0)
        await phone.heard_speech(300)
        phone.say(SPEECH)
        await session.wait_for(lambda s: any(sent.type == "input_audio_buffer.committed" for sent in s.sent))
        before_ms = phone.speech_ms
        await phone.heard_speech(1500, since_ms=before_ms)
        await phone.hang_up()
        call_sid = phone.call_sid

    turns = nearcall.turns(call_sid)
    assert [turn.speaker for turn in turns] == [Speaker.AGENT, Speaker.CALLER, Speaker.AGENT]
    assert turns[1].said is not None
    assert turns[2].answer_heard_ms is not None
    assert nearcall.endings(call_sid) == ["caller_hung_up"]
    assert phone.violations == []


@each()
async def test_every_message_to_the_backend_is_one_that_its_vendor_defines(tmp_path: Path, spoken: Spoken) -> None:
    async with (
        world(tmp_path, plan=QUICK, script=parrot, spoken=spoken) as nearcall,
        calling(nearcall.phone()) as phone,
    ):
        await phone.answered()
        session = await nearcall.backend.session(0)
        phone.press("5")
        await session.event("response.create", 2)
        phone.say(SPEECH)
        await session.event("conversation.item.truncate")
        await phone.hang_up()

    received = [heard.event for heard in session.received]
    for event in received:
        # The vendor's types know one rate of PCM; servers that speak its protocol may have others.
        if spoken.service == VOICELIVE:
            voicelive_types.check_client_event(event)
        elif event["type"] != "session.update" or not spoken.pcm:
            openai_types.check_client_event(event)
    assert {event["type"] for event in received} == {
        "session.update",
        "input_audio_buffer.append",
        "response.create",
        "conversation.item.create",
        "conversation.item.truncate",
    }


async def test_backend_session_is_open_before_the_stream_comes_and_is_used_by_it(tmp_path: Path) -> None:
    async with world(tmp_path, plan=QUICK) as nearcall:
        async with calling(nearcall.phone(connected_after_ms=(300, 300))) as phone:
            session = await nearcall.backend.session(0)
            await session.event("session.update")
            assert phone.stream is None or phone.stream.started_at is None
            await phone.answered()
            await phone.heard_speech(100)
            await phone.hang_up()

        assert len(nearcall.backend.upgrades) == 1


async def test_same_webhook_again_gets_the_same_answer_and_opens_nothing_more(tmp_path: Path) -> None:
    async with world(tmp_path, plan=QUICK) as nearcall:
        form = {"CallSid": "CA" + "1" * 32, "AccountSid": ACCOUNT_SID, "From": "+4930123456", "To": "+4930654321"}
        url = f"{nearcall.url}/twiml/voice"
        headers = {"X-Twilio-Signature": RequestValidator(AUTH_TOKEN).compute_signature(url, form)}
        async with httpx.AsyncClient() as client:
            first = await client.post(url, data=form, headers=headers)
            second = await client.post(url, data=form, headers=headers)
        await (await nearcall.backend.session(0)).event("session.update")

        assert first.content == second.content
        assert len(nearcall.backend.upgrades) == 1


@each()
async def test_agent_hangs_up_by_rest_after_the_goodbye_was_heard(tmp_path: Path, spoken: Spoken) -> None:
    rest = TwilioRest(ACCOUNT_SID, {ACCOUNT_SID: AUTH_TOKEN})
    async with (
        rest.serve() as rest_url,
        world(
            tmp_path, plan=replace(QUICK, greeting=""), script=goodbye, api_hosts={"us1": rest_url}, spoken=spoken
        ) as nearcall,
    ):
        async with Phone(nearcall.phone()) as phone:
            rest.attach(phone)
            await phone.dial()
            await phone.answered()
            phone.press("1")
            await phone.over()

        assert phone.ended is EndReason.REST
        assert phone.speech_ms >= 380
        assert phone.problems == []
        assert nearcall.endings(phone.call_sid) == ["agent_hung_up"]


async def test_agent_hangs_up_by_closing_when_rest_fails(tmp_path: Path) -> None:
    rest = TwilioRest(ACCOUNT_SID, {ACCOUNT_SID: AUTH_TOKEN})
    rest.fail_next(404, 20404, "not found")
    async with (
        rest.serve() as rest_url,
        world(tmp_path, plan=QUICK, script=goodbye, api_hosts={"us1": rest_url}) as nearcall,
    ):
        async with calling(nearcall.phone()) as phone:
            await phone.over()

        assert phone.ended is EndReason.HANGUP
        assert phone.announcements == []
        assert phone.speech_ms >= 380


@each()
@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (Faults(refuse_upgrade=401), "backend_unreachable"),
        (Faults(end="abort", end_after="response.created"), "backend_lost"),
        (Faults(end="internal_error", end_after="response.created"), "backend_lost"),
        (Faults(end="clean", end_after="response.created"), "backend_lost"),
        (Faults(echo_format="another"), "backend_format"),
        (Faults(error_code="insufficient_quota"), "backend_refused"),
        (Faults(end="expire", end_after="response.created"), "backend_refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_caller_hears_a_sentence_when_the_backend_fails(
    faults: Faults, reason: str, tmp_path: Path, spoken: Spoken
) -> None:
    if faults.echo_format is not None:
        faults = replace(faults, echo_format="g711_alaw" if spoken.service == VOICELIVE else "audio/pcma")
    async with world(tmp_path, plan=QUICK, faults=faults, spoken=spoken) as nearcall:
        async with calling(nearcall.phone(connected_after_ms=(150, 150))) as phone:
            await phone.over()

        assert phone.announcements == [QUICK.sorry]
        assert phone.ended is EndReason.HANGUP
        assert set(nearcall.endings(phone.call_sid)) in ({reason}, {reason, "not_taken"})


@each()
async def test_odd_messages_of_the_backend_cost_the_caller_nothing(tmp_path: Path, spoken: Spoken) -> None:
    odd = Faults(
        unknown_event_every=1,
        extra_fields=True,
        transcription="failed",
        deltas_cut_samples=spoken.pcm,
        warning_every=2 if spoken.service == VOICELIVE else None,
    )
    plan = replace(QUICK, vad_silence_ms=500)
    async with world(tmp_path, plan=plan, script=brief, faults=odd, spoken=spoken) as nearcall:
        async with calling(nearcall.phone()) as phone:
            await phone.heard_speech(100)
            phone.say(SPEECH)
            session = await nearcall.backend.session(0)
            await session.wait_for(lambda s: any("transcription.failed" in sent.type for sent in s.sent))
            before_ms = phone.speech_ms
            await phone.heard_speech(280, since_ms=before_ms)
            await phone.hang_up()

        assert nearcall.endings(phone.call_sid) == ["caller_hung_up"]
        assert phone.violations == []
        assert [turn.said for turn in nearcall.turns(phone.call_sid) if turn.speaker is Speaker.CALLER] == [None]


@pytest.mark.parametrize("signing", ["wrong", "none"])
async def test_stranger_gets_403_from_the_webhook(signing: str, tmp_path: Path) -> None:
    async with world(tmp_path) as nearcall, Phone(nearcall.phone(signing=signing)) as phone:
        with pytest.raises(WebhookStatusError) as caught:
            await phone.dial()

        assert caught.value.status == 403
        assert nearcall.backend.upgrades == []


async def test_stranger_with_a_ticket_gets_no_stream(tmp_path: Path) -> None:
    async with world(tmp_path) as nearcall, calling(nearcall.phone(stream_signing="wrong")) as phone:
        await phone.over()

        # The call has one more chance. Then its caller is told, instead of waiting for stream after stream.
        assert [problem.code for problem in phone.problems] == [31920, 31920]
        assert phone.announcements == [Plan().sorry]
        assert nearcall.server.registry.counts["live"] == 0


async def test_bug_in_one_call_interrupts_that_call_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken: list[Record] = []

    def break_once(record: Record) -> None:
        if isinstance(record, Turn) and not broken:
            broken.append(record)
            raise ZeroDivisionError("a bug")

    async with world(tmp_path, plan=QUICK, script=brief, watch=break_once) as nearcall:
        with caplog.at_level(logging.ERROR, "nearcall.call"):
            async with calling(nearcall.phone()) as unlucky:
                await unlucky.answered(streams=2)
                await unlucky.heard_speech(200, since_ms=unlucky.speech_ms)
                await unlucky.hang_up()
        async with calling(nearcall.phone()) as neighbour:
            await neighbour.heard_speech(280)
            await neighbour.hang_up()

        assert unlucky.announcements == []
        assert nearcall.endings(unlucky.call_sid) == ["bug", "caller_hung_up"]
        assert nearcall.endings(neighbour.call_sid) == ["caller_hung_up"]
    [record] = caplog.records
    logged = str(record.__dict__)
    assert unlucky.call_sid in logged
    assert "AgentAudio" in logged
    assert "Answer" not in logged


async def test_stream_that_comes_without_an_expected_call_is_served(tmp_path: Path) -> None:
    """As after a webhook that another machine answered: the ticket is all that is known."""
    async with world(tmp_path, plan=QUICK, script=brief) as nearcall:
        async with Phone(nearcall.phone()) as phone:
            forget_expected(nearcall)
            await phone.dial()
            await phone.heard_speech(280)
            await phone.hang_up()

        assert nearcall.endings(phone.call_sid) == ["caller_hung_up"]


async def test_call_and_stream_are_counted_by_their_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, plan=QUICK, script=brief) as nearcall:
        async with calling(nearcall.phone()) as phone:
            await phone.heard_speech(280)
            await phone.hang_up()
        assert await decisions(nearcall) == {"taken call": 1, "taken stream": 1}
        monkeypatch.setattr(nearcall.server.registry, "answer", lambda *_: None)
        async with calling(nearcall.phone()) as phone:
            await phone.over()
        assert await decisions(nearcall) == {
            "taken call": 2,
            "taken stream": 1,
            "refused no_call": 1,
            "resume_refused": 1,
        }


async def decisions(nearcall: World) -> object:
    async with httpx.AsyncClient(base_url=nearcall.server.url, trust_env=False, headers=OPERATOR) as client:
        return (await client.get("/healthz")).json()["decisions"]


def forget_expected(nearcall: World) -> None:
    """Make the registry ignore the webhook, as if another machine had answered it."""

    def expect(_ticket: Ticket, _plan: Plan) -> None:
        pass

    nearcall.server.registry.expect = expect  # type: ignore[method-assign, assignment]
