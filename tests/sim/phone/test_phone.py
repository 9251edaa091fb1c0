"""A whole call of the test phone: documents, orders, callbacks, its end and what can be asked afterwards."""

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from app.sim.phone.errors import (
    CallEndedError,
    PhoneError,
    RedirectLoopError,
    TwimlError,
    UnsupportedTwimlError,
    WebhookStatusError,
    WebhookUnreachableError,
)
from app.sim.phone.events import (
    CallAnswered,
    CallbackSent,
    Dialled,
    DocumentRead,
    EndReason,
    HungUp,
    PauseHeard,
    SayHeard,
    StreamClosed,
    StreamStarted,
    WebhookAnswered,
)
from app.sim.phone.phone import Phone
from app.sim.phone.twiml_document import read_document
from app.sim.wav import read_wav
from tests.sim.caller import CONNECT, CONNECT_THEN_ACTION, HANGUP, STREAM, calling, options, streaming, tone
from tests.sim.echo_server import Application, Reply, Seen, echo, hang_for_ever, mark, media, receive, running

pytestmark = pytest.mark.anyio


def answering(*verbs: str, **webhooks: Reply) -> Application:
    """An application whose voice webhook answers these verbs; keywords are further paths."""
    documents = {f"/{path}": reply for path, reply in webhooks.items()}
    return Application({"/voice": Reply(f"<Response>{''.join(verbs)}</Response>"), **documents})


async def call(application: Application, **changes: Any) -> Phone:
    """A whole call in which the caller does nothing."""
    async with asyncio.timeout(10), calling(application, **changes) as phone:
        await phone.over()
    return phone


def events(phone: Phone, kind: type) -> list[Any]:
    return [event for event in phone.timeline if isinstance(event, kind)]


# The webhook


async def test_voice_webhook_gets_the_fields_of_an_inbound_call() -> None:
    application = answering("<Hangup/>")
    phone = await call(application, from_="anonymous", to="+493099", account_sid="AC9")
    form = application.seen[0].form
    assert form == {
        "AccountSid": "AC9",
        "ApiVersion": "2010-04-01",
        "CallSid": phone.call_sid,
        "CallStatus": "ringing",
        "CallToken": '{"parentCallInfoToken":"x"}',
        "Called": "+493099",
        "CalledCity": "",
        "CalledCountry": "",
        "CalledState": "",
        "CalledZip": "",
        "Caller": "anonymous",
        "CallerCity": "",
        "CallerCountry": "",
        "CallerState": "",
        "CallerZip": "",
        "Direction": "inbound",
        "From": "anonymous",
        "FromCity": "",
        "FromCountry": "",
        "FromState": "",
        "FromZip": "",
        "To": "+493099",
        "ToCity": "",
        "ToCountry": "",
        "ToState": "",
        "ToZip": "",
    }


async def test_call_sid_can_be_chosen() -> None:
    application = answering("<Hangup/>")
    await call(application, call_sid="CA" + "7" * 32)
    assert application.seen[0].form["CallSid"] == "CA" + "7" * 32


async def refused(reply: Reply) -> tuple[Phone, PhoneError]:
    """A call whose webhook cannot be used: the phone afterwards, and what dialling raised."""
    application = Application({"/voice": reply})
    async with asyncio.timeout(10), running(application), Phone(options(application)) as phone:
        with pytest.raises(PhoneError) as caught:
            await phone.dial()
    return phone, caught.value


@pytest.mark.parametrize(
    ("reply", "error", "code"),
    [
        (Reply("forbidden", 403), WebhookStatusError, 11200),
        (Reply("broken", 500), WebhookStatusError, 11200),
        (Reply("<Response>"), TwimlError, 12100),
        (Reply(""), TwimlError, 11770),
        (Reply("{}", content_type="application/json"), TwimlError, 12300),
        (Reply("<Response/>", content_type=None), TwimlError, 12300),
        (Reply("x" * 70_000), TwimlError, 11750),
        (Reply("<Response><Gather/></Response>"), UnsupportedTwimlError, None),
    ],
)
async def test_dialling_raises_what_is_wrong_with_the_answer(
    reply: Reply, error: type[PhoneError], code: int | None
) -> None:
    phone, raised = await refused(reply)
    assert type(raised) is error
    assert phone.error is raised
    assert phone.ended is EndReason.APPLICATION_ERROR
    assert [problem.code for problem in phone.problems] == [code]
    assert phone.status == "failed"


async def test_dialling_nobody_raises_that_nobody_is_there() -> None:
    application = answering()
    async with running(application):
        nobody = options(application)
    async with asyncio.timeout(10), Phone(nobody) as phone:
        with pytest.raises(WebhookUnreachableError, match="no connection to http://127"):
            await phone.dial()


async def test_caller_can_give_up_while_the_webhook_is_silent() -> None:
    asked = asyncio.Event()

    async def webhook(seen: Seen) -> Reply:
        asked.set()
        return await hang_for_ever(seen)

    application = Application({"/voice": webhook})
    async with asyncio.timeout(10), running(application), Phone(options(application)) as phone:
        dialling = asyncio.create_task(phone.dial())
        await asked.wait()
        await phone.hang_up()
        with pytest.raises(CallEndedError, match="the caller hung up"):
            await dialling
    assert phone.status == "no-answer"


# Documents


async def test_document_is_run_from_top_to_bottom() -> None:
    phone = await call(answering("<Say language='de-DE'>Guten Tag</Say>", "<Pause length='2'/>", "<Hangup/>"))
    said, pause = events(phone, SayHeard)[0], events(phone, PauseHeard)[0]
    assert (said.text, said.language, said.voice) == ("Guten Tag", "de-DE", "man")
    assert pause.length_s == 2
    assert phone.announcements == ["Guten Tag"]
    assert phone.ended is EndReason.HANGUP
    assert phone.status == "completed"


async def test_say_takes_time_at_its_nominal_pace() -> None:
    phone = await call(answering("<Say>x</Say>"), document_pace=1)
    assert events(phone, HungUp)[0].at - events(phone, SayHeard)[0].at >= 0.06


async def test_caller_can_hang_up_during_an_endless_announcement() -> None:
    async with asyncio.timeout(10), calling(answering("<Say loop='0'>Please hold</Say>")) as phone:
        await phone.wait_for(lambda p: p.announcements == ["Please hold"])
        await phone.hang_up()
    assert phone.ended is EndReason.CALLER


async def test_end_of_the_document_ends_the_call() -> None:
    phone = await call(answering("<Say>bye</Say>"))
    assert phone.ended is EndReason.DOCUMENT_END


@pytest.mark.parametrize(
    ("verbs", "status"),
    [
        ("<Reject/>", "no-answer"),
        ("<Reject reason='busy'/>", "busy"),
        ("<Say>sorry</Say><Reject reason='busy'/>", "completed"),
    ],
)
async def test_rejected_call_is_unanswered_only_when_reject_comes_first(verbs: str, status: str) -> None:
    phone = await call(answering(verbs))
    assert phone.ended is EndReason.REJECTED
    assert phone.status == status
    assert bool(events(phone, CallAnswered)) is (status == "completed")


async def test_pause_as_first_verb_delays_the_answer() -> None:
    phone = await call(answering("<Pause/>", "<Say>hello</Say>"))
    order = [type(event) for event in phone.timeline if isinstance(event, PauseHeard | CallAnswered | SayHeard)]
    assert order == [PauseHeard, CallAnswered, SayHeard]


async def test_redirect_leaves_the_document_and_resolves_relative_urls() -> None:
    application = Application(
        {
            "/voice": Reply("<Response><Redirect>next/step?a=b</Redirect><Say>unreachable</Say></Response>"),
            "/next/step": Reply("<Response><Say>there</Say><Redirect method='GET'>../end</Redirect></Response>"),
            "/end": Reply(HANGUP),
        }
    )
    phone = await call(application)
    assert [seen.target.partition("&")[0] for seen in application.seen][:2] == ["/voice", "/next/step?a=b"]
    assert [seen.method for seen in application.seen] == ["POST", "POST", "GET"]
    assert [seen.form["CallStatus"] for seen in application.seen] == ["ringing", "in-progress", "in-progress"]
    assert phone.announcements == ["there"]


async def test_documents_that_redirect_in_a_circle_are_given_up_after_ten() -> None:
    application = answering("<Redirect>/voice</Redirect>")
    phone = await call(application)
    assert len(application.seen) == 11
    assert isinstance(phone.error, RedirectLoopError)
    assert [problem.code for problem in phone.problems] == [11215]


async def test_stream_that_is_refused_again_and_again_is_given_up_after_ten() -> None:
    def refuse(ws: ServerConnection, _: object) -> Any:
        return ws.respond(503, "full\n")

    document = CONNECT_THEN_ACTION.replace("/after", "/voice")
    application = streaming(echo, document=document, refuse_upgrade=refuse)
    phone = await call(application)
    assert len(application.upgrades) == 11
    assert isinstance(phone.error, RedirectLoopError)


async def test_streams_that_work_may_follow_each_other_for_ever() -> None:
    upgrades: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        upgrades.append("one more")
        await receive(ws, "start")
        if len(upgrades) == 15:
            await receive(ws, "stop")

    application = streaming(conversation, document=CONNECT_THEN_ACTION)
    application.webhooks["/after"] = Reply("<Response><Redirect>/voice</Redirect></Response>")
    async with asyncio.timeout(10), calling(application) as phone:
        await phone.answered(streams=15)
        await phone.hang_up()
    assert phone.ended is EndReason.CALLER


async def test_dial_is_recorded_and_its_action_told_the_result() -> None:
    application = answering(
        "<Dial action='/done' callerId='+4930'><Number>+4911</Number><Number>+4912</Number></Dial>",
        done=Reply(HANGUP),
    )
    phone = await call(application, dial_status="busy")
    (dialled,) = events(phone, Dialled)
    assert (dialled.numbers, dialled.caller_id) == (("+4911", "+4912"), "+4930")
    assert application.requests("/done")[0].form["DialCallStatus"] == "busy"


async def test_dial_without_action_goes_on_with_the_next_verb() -> None:
    phone = await call(answering("<Dial>+4911</Dial>", "<Say>next</Say>"))
    assert phone.announcements == ["next"]


async def test_warnings_of_a_document_are_in_the_error_log() -> None:
    phone = await call(answering("<say>hello</say>"))
    assert [problem.code for problem in phone.problems] == [12200]


async def test_action_is_asked_after_the_stream_and_later_verbs_are_unreachable() -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")

    document = CONNECT_THEN_ACTION.replace("</Response>", "<Say>unreachable</Say></Response>")
    application = streaming(conversation, document=document)
    phone = await call(application)
    assert application.requests("/after")[0].form["CallStatus"] == "in-progress"
    assert phone.announcements == []
    assert phone.ended is EndReason.HANGUP


async def test_broken_stream_is_followed_by_the_actions_next_stream() -> None:
    application = streaming(echo, document=CONNECT_THEN_ACTION)
    application.webhooks["/after"] = Reply(CONNECT.replace("/media/t1", "/media/t2"))
    async with asyncio.timeout(10), calling(application) as phone:
        await phone.answered()
        phone.cut()
        await phone.answered(streams=2)
        await phone.hang_up()
    assert application.requests("/after")[0].form["CallStatus"] == "in-progress"
    assert [request.path for request in application.upgrades] == ["/media/t1", "/media/t2"]
    assert [problem.code for problem in phone.problems] == [31903]
    assert phone.ended is EndReason.CALLER


async def test_without_action_the_next_verb_follows_the_stream() -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")

    document = CONNECT.replace("</Response>", "<Say>next</Say></Response>")
    phone = await call(streaming(conversation, document=document))
    assert phone.announcements == ["next"]


async def test_failing_action_ends_the_call_with_an_application_error() -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")

    application = streaming(conversation, document=CONNECT_THEN_ACTION)
    application.webhooks["/after"] = Reply("no", 500)
    phone = await call(application)
    assert phone.ended is EndReason.APPLICATION_ERROR
    assert [problem.code for problem in phone.problems] == [31921, 11200]


async def test_caller_hanging_up_ends_the_call_without_asking_the_action() -> None:
    application = streaming(echo, document=CONNECT_THEN_ACTION)
    async with asyncio.timeout(10), calling(application) as phone:
        await phone.answered()
        await phone.hang_up()
    assert application.requests("/after") == []
    assert phone.status == "completed"


# Orders by REST


def complete(phone: Phone) -> None:
    phone.rest_complete()


def say_goodbye(phone: Phone) -> None:
    phone.rest_document(read_document(b"<Response><Say>goodbye</Say></Response>"))


def go_elsewhere(phone: Phone) -> None:
    phone.rest_url(f"{phone.options.webhook_url}/../elsewhere", "POST")


@pytest.mark.parametrize(
    ("order", "ended", "announcements"),
    [
        (complete, EndReason.REST, []),
        (say_goodbye, EndReason.DOCUMENT_END, ["goodbye"]),
        (go_elsewhere, EndReason.DOCUMENT_END, ["elsewhere"]),
    ],
)
async def test_order_by_rest_sends_stop_and_replaces_the_document(
    order: Callable[[Phone], None], ended: EndReason, announcements: list[str]
) -> None:
    stopped: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        stopped.append((await receive(ws, "stop"))["event"])

    application = streaming(conversation, document=CONNECT_THEN_ACTION)
    application.webhooks["/voice/../elsewhere"] = Reply("<Response><Say>elsewhere</Say></Response>")
    async with asyncio.timeout(10), calling(application) as phone:
        await phone.answered()
        order(phone)
        await phone.over()
    (closed,) = events(phone, StreamClosed)
    assert stopped == ["stop"]
    assert closed.by == "rest"
    assert phone.ended is ended
    assert phone.announcements == announcements
    assert application.requests("/after") == []
    assert phone.problems == []


async def test_order_by_rest_interrupts_an_announcement() -> None:
    async with asyncio.timeout(10), calling(answering("<Say loop='0'>hold</Say>")) as phone:
        await phone.wait_for(lambda p: p.announcements == ["hold"])
        say_goodbye(phone)
        await phone.over()
    assert phone.announcements == ["hold", "goodbye"]


async def test_hanging_up_wins_over_a_later_redirect() -> None:
    async with asyncio.timeout(10), calling(streaming(echo)) as phone:
        await phone.answered()
        phone.rest_complete()
        say_goodbye(phone)
        await phone.over()
    assert phone.ended is EndReason.REST


# Callbacks


async def test_call_status_callback_tells_how_the_call_ended() -> None:
    application = answering("<Hangup/>", status=Reply(status=204))
    async with asyncio.timeout(10), running(application):
        settings = options(application, status_callback_url=f"{application.http_url}/status")
        async with Phone(settings) as phone:
            await phone.dial()
            await phone.over()
    (seen,) = application.requests("/status")
    assert seen.form["CallStatus"] == "completed"
    assert seen.form["SequenceNumber"] == "0"
    assert seen.form["CallDuration"] == "0"
    assert "X-Twilio-Signature" in seen.headers
    assert [event.what for event in events(phone, CallbackSent)] == ["completed"]


@pytest.mark.parametrize(
    ("changes", "statuses"),
    [
        ({}, ["queued", "ringing", "in-progress", "completed"]),
        ({"status_reversed": True}, ["completed", "in-progress", "ringing", "queued"]),
        (
            {"status_twice": True, "status_events": ("answered", "completed")},
            ["in-progress"] * 2 + ["completed"] * 2,
        ),
    ],
)
async def test_status_callbacks_can_come_out_of_order_and_twice(
    changes: dict[str, Any], statuses: list[str]
) -> None:
    application = answering("<Hangup/>", status=Reply(status=204))
    every = {"status_events": ("initiated", "ringing", "answered", "completed")}
    async with asyncio.timeout(10), running(application):
        url = f"{application.http_url}/status"
        async with Phone(options(application, **{"status_callback_url": url, **every, **changes})) as phone:
            await phone.dial()
            await phone.over()
    seen = [request.form for request in application.requests("/status")]
    assert [form["CallStatus"] for form in seen] == statuses
    assert sorted({form["SequenceNumber"] for form in seen}) == [str(n) for n in range(len(set(statuses)))]


async def test_failing_status_callback_is_a_problem_but_no_end() -> None:
    application = answering("<Hangup/>")
    async with asyncio.timeout(10), running(application):
        settings = options(application, status_callback_url=f"{application.http_url}/missing")
        async with Phone(settings) as phone:
            await phone.dial()
            await phone.over()
    assert phone.ended is EndReason.HANGUP
    assert [(problem.code, problem.text[:18]) for problem in phone.problems] == [(11200, "completed callback")]


CALLBACK_STREAM = '<Stream name="main" url="{ws}/media/t1" statusCallback="HTTP/stream"/>'


async def stream_events(application: Application, **changes: Any) -> list[dict[str, str]]:
    """The forms of the stream status callbacks of a call."""
    application.webhooks["/stream"] = Reply(status=204)
    async with asyncio.timeout(10), running(application):
        document = f"<Response><Connect>{CALLBACK_STREAM}</Connect></Response>"
        application.webhooks["/voice"] = Reply(document.replace("HTTP", application.http_url))
        async with Phone(options(application, **changes)) as phone:
            await phone.dial()
            await phone.over()
    return [request.form for request in application.requests("/stream")]


async def test_stream_callbacks_tell_start_error_and_stop() -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")
        await ws.close(1012, "restart")

    forms = await stream_events(streaming(conversation))
    assert [form["StreamEvent"] for form in forms] == ["stream-started", "stream-error", "stream-stopped"]
    assert forms[1]["StreamError"] == "31921 the application closed the stream with 1012 restart"
    assert forms[0].keys() == {"AccountSid", "CallSid", "StreamSid", "StreamName", "StreamEvent", "Timestamp"}
    assert forms[0]["StreamName"] == "main"


async def test_refused_stream_has_an_error_callback_only() -> None:
    def refuse(ws: ServerConnection, _: object) -> Any:
        return ws.respond(403, "no\n")

    forms = await stream_events(streaming(echo, refuse_upgrade=refuse))
    assert [form["StreamEvent"] for form in forms] == ["stream-error"]
    assert forms[0]["StreamError"].startswith("31920 ")


# The caller and the record of the call


async def test_caller_hears_an_echoing_application() -> None:
    async with asyncio.timeout(10), calling(streaming(echo)) as phone:
        await phone.answered()
        phone.say(tone(200))
        await phone.spoken()
        await phone.heard_speech(200)
        await phone.hang_up()
    assert tone(200) in phone.said_audio()
    assert len(phone.heard_audio()) == len(phone.said_audio())
    assert phone.speech_ms >= 200
    assert phone.violations == []
    assert phone.problems == []


async def test_what_is_said_before_the_stream_is_sent_when_it_starts() -> None:
    async with asyncio.timeout(10), running(streaming(echo)) as application, Phone(options(application)) as phone:
        phone.say(tone(40))
        await phone.dial()
        await phone.spoken()
    assert tone(40) in phone.said_audio()


async def test_call_is_saved_with_the_caller_left_and_the_agent_right(tmp_path: Path) -> None:
    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(media(sid, b"\x20" * 320))
        await ws.send(mark(sid, "end"))
        await receive(ws, "mark")
        await receive(ws, "stop")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        phone.say(b"\x10" * 160)
        await phone.spoken()
        await phone.heard_speech(40)
        await phone.hang_up()
    phone.save_wav(tmp_path / "both.wav")
    phone.save_wav(tmp_path / "agent.wav", agent_only=True)
    body = (tmp_path / "both.wav").read_bytes()[44:]
    samples = struct.unpack(f"<{len(body) // 2}h", body)
    assert len([sample for sample in samples[::2] if sample]) == 160
    assert len([sample for sample in samples[1::2] if sample]) == 320
    assert read_wav(tmp_path / "agent.wav") == phone.heard_audio()


async def test_call_can_be_saved_from_a_thread_while_it_goes_on(tmp_path: Path) -> None:
    async with asyncio.timeout(10), calling(streaming(echo)) as phone:
        await phone.answered()
        phone.say(tone(40))
        await phone.spoken()
        await asyncio.to_thread(phone.save_wav, tmp_path / "call.wav")
        assert phone.ended is None
    assert len(read_wav(tmp_path / "call.wav")) >= 320


async def test_audio_that_was_not_kept_cannot_be_saved(tmp_path: Path) -> None:
    phone = await call(answering("<Hangup/>"), keep_audio=False)
    with pytest.raises(PhoneError, match="was not kept"):
        phone.save_wav(tmp_path / "call.wav")


async def test_call_without_a_stream_has_no_audio() -> None:
    phone = await call(answering("<Hangup/>"))
    assert phone.heard_audio() == phone.said_audio() == b""


async def test_timeline_tells_the_call_in_order() -> None:
    async with asyncio.timeout(10), calling(streaming(echo, document=CONNECT_THEN_ACTION)) as phone:
        await phone.answered()
        await phone.hang_up()
    kinds = [type(event).__name__ for event in phone.timeline if type(event).__name__ != "AudioReceived"]
    assert kinds == [
        "WebhookAnswered",
        "DocumentRead",
        "CallAnswered",
        "StreamOpened",
        "StreamStarted",
        "StreamClosed",
        "HungUp",
    ]
    answered, read = events(phone, WebhookAnswered)[0], events(phone, DocumentRead)[0]
    assert (answered.purpose, answered.status) == ("voice", 200)
    assert read.verbs == ("Connect",)
    assert all(a.at <= b.at for a, b in zip(phone.timeline, phone.timeline[1:], strict=False))


async def test_events_can_be_followed_live_until_the_end() -> None:
    async with asyncio.timeout(10), calling(streaming(echo)) as phone:
        seen = []
        async for event in phone.events():
            seen.append(event)
            if isinstance(event, StreamStarted):
                phone.rest_complete()
    assert seen == phone.timeline
    assert isinstance(seen[-1], HungUp)


async def test_waiting_for_what_never_came_ends_with_the_call_and_says_why() -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        with pytest.raises(
            CallEndedError, match=r"the document came to its end \(the application closed the stream"
        ):
            await phone.heard_speech(1000)


async def test_key_cannot_be_pressed_without_a_stream() -> None:
    async with asyncio.timeout(10), calling(answering("<Say loop='0'>hold</Say>")) as phone:
        with pytest.raises(PhoneError, match="no stream"):
            phone.press("1")


# Cleaning up


async def test_leaving_the_block_hangs_up_and_leaves_nothing_running() -> None:
    stops: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        stops.append((await receive(ws, "stop"))["event"])

    application = streaming(conversation)
    async with asyncio.timeout(10), running(application):
        async with Phone(options(application)) as phone:
            await phone.dial()
            await phone.answered()
        left = [task for task in asyncio.all_tasks() if "app/sim/" in repr(task)]
    assert phone.ended is EndReason.CALLER
    assert stops == ["stop"]
    assert left == []


async def test_error_in_the_block_ends_the_call_and_is_not_hidden() -> None:
    phones: list[Phone] = []

    async def clumsy_caller() -> None:
        async with asyncio.timeout(10), calling(streaming(echo)) as phone:
            phones.append(phone)
            await phone.answered()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await clumsy_caller()
    assert phones[0].ended is EndReason.CALLER


async def test_cancelled_caller_leaves_no_call_behind() -> None:
    application = streaming(echo)
    started = asyncio.Event()
    phones: list[Phone] = []

    async def caller() -> None:
        async with Phone(options(application)) as phone:
            phones.append(phone)
            await phone.dial()
            await phone.answered()
            started.set()
            await phone.over()

    async with asyncio.timeout(10), running(application):
        calling_task = asyncio.create_task(caller())
        await started.wait()
        calling_task.cancel()
        await asyncio.wait({calling_task})
    assert calling_task.cancelled()
    assert phones[0].ended is EndReason.CALLER


async def test_hanging_up_twice_is_harmless() -> None:
    async with asyncio.timeout(10), calling(streaming(echo)) as phone:
        await phone.answered()
        await phone.hang_up()
        await phone.hang_up()
    assert len(events(phone, HungUp)) == 1


async def test_phone_that_never_dialled_is_left_quietly() -> None:
    application = answering(STREAM)
    async with running(application), Phone(options(application)) as phone:
        pass
    assert phone.ended is None
