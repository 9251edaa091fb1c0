"""One media stream of the test phone against a small application: order, times, truth of playout, faults."""

import asyncio
import contextlib
import json
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from app.sim.phone import media as phone_media
from app.sim.phone.events import (
    AgentSpoke,
    AudioReceived,
    ClearReceived,
    EndReason,
    MarkEchoed,
    MarkReceived,
    StreamClosed,
    StreamOpened,
    StreamStarted,
)
from app.sim.phone.phone import Phone
from app.sim.phone.webhook import Signer
from tests.sim.caller import CONNECT, CONNECT_THEN_ACTION, TOKEN, calling, options, streaming, tone
from tests.sim.echo_server import Application, clear, echo, mark, media, receive, running

pytestmark = pytest.mark.anyio


async def heard_from(application: Application, count: int, **changes: Any) -> list[dict[str, Any]]:
    """The first messages the application gets in a call."""
    messages: list[dict[str, Any]] = []
    enough = asyncio.Event()

    async def conversation(ws: ServerConnection) -> None:
        async for raw in ws:
            assert isinstance(raw, str)
            messages.append(json.loads(raw))
            if len(messages) >= count:
                enough.set()

    application.conversation = conversation
    async with asyncio.timeout(10), calling(application, **changes):
        await enough.wait()
    return messages


def problem_codes(phone: Phone) -> list[int | None]:
    return [problem.code for problem in phone.problems]


# The upgrade


async def test_upgrade_has_the_captured_headers_and_no_others() -> None:
    application = streaming(echo)
    async with asyncio.timeout(10), calling(application) as phone:
        await phone.answered()
    (request,) = application.upgrades
    headers = dict(request.headers.raw_items())
    assert len(headers.pop("Sec-WebSocket-Key")) == 24
    assert headers == {
        "Host": application.ws_url.removeprefix("ws://"),
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "accept-encoding": "gzip",
        "x-twilio-signature": Signer(TOKEN).headers("right", f"{application.ws_url}/media/t1", {})[
            "X-Twilio-Signature"
        ],
        "User-Agent": "Twilio.TmeWs/1.0",
    }


async def test_upgrade_to_a_public_host_uses_the_local_port_and_signs_as_wss() -> None:
    document = CONNECT.replace("{ws}", "wss://voice.example.com")
    application = streaming(echo, document=document)
    async with asyncio.timeout(10), calling(application, public_url="https://voice.example.com") as phone:
        await phone.answered()
    (request,) = application.upgrades
    expected = Signer(TOKEN).headers("right", "wss://voice.example.com/media/t1", {})
    assert request.headers["Host"] == "voice.example.com"
    assert request.headers["x-twilio-signature"] == expected["X-Twilio-Signature"]


async def test_upgrade_can_be_signed_with_a_slash_appended() -> None:
    application = streaming(echo)
    async with asyncio.timeout(10), calling(application, stream_signing="slash") as phone:
        await phone.answered()
    expected = Signer(TOKEN).headers("right", f"{application.ws_url}/media/t1/", {})
    assert application.upgrades[0].headers["x-twilio-signature"] == expected["X-Twilio-Signature"]


async def test_upgrade_can_be_unsigned_while_the_webhook_is_signed() -> None:
    application = streaming(echo)
    async with asyncio.timeout(10), calling(application, stream_signing="none") as phone:
        await phone.answered()
    assert "x-twilio-signature" not in application.upgrades[0].headers
    assert "X-Twilio-Signature" in application.seen[0].headers


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (HTTPStatus.FORBIDDEN, {}),
        (HTTPStatus.SERVICE_UNAVAILABLE, {"fly-replay": "region=fra"}),
        (HTTPStatus.TEMPORARY_REDIRECT, {"Location": "/elsewhere"}),
    ],
)
async def test_any_answer_but_101_is_31920_and_the_action_is_asked(
    status: HTTPStatus, headers: dict[str, str]
) -> None:
    def refuse(ws: ServerConnection, _request: Request) -> Response:
        response = ws.respond(status, "not here\n")
        for name, value in headers.items():
            response.headers[name] = value
        return response

    application = streaming(echo, document=CONNECT_THEN_ACTION, refuse_upgrade=refuse)
    async with asyncio.timeout(10), calling(application) as phone:
        await phone.over()
    assert phone.ended is EndReason.HANGUP
    assert len(application.upgrades) == 1
    assert phone.problems[0].text == f"the upgrade was answered with {status.value} not here"
    assert problem_codes(phone) == [31920]


async def refused_with(url: str, **changes: Any) -> list[int | None]:
    """The problems of a call whose stream goes to this URL."""
    application = streaming(echo, document=CONNECT.replace("{ws}/media/t1", url))
    async with asyncio.timeout(10), calling(application, **changes) as phone:
        await phone.over()
    assert phone.ended is EndReason.DOCUMENT_END
    (closed,) = [event for event in phone.timeline if isinstance(event, StreamClosed)]
    assert closed.by == "refused"
    return problem_codes(phone)


async def test_closed_port_is_31902() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    assert await refused_with(f"ws://127.0.0.1:{port}/media") == [31902]
    assert await refused_with(f"ws://localhost:{port}/media") == [31902]


async def test_server_that_never_answers_the_upgrade_is_31901() -> None:
    release = asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        codes = await refused_with(f"ws://127.0.0.1:{port}/media", open_limit_s=0.05)
        release.set()
    assert codes == [31901]


async def test_server_without_tls_is_31910() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await refused_with(f"wss://127.0.0.1:{port}/media") == [31910]


async def test_unknown_host_is_31904() -> None:
    assert await refused_with("wss://voice.invalid/media") == [31904]


async def test_ws_to_another_machine_is_31922_and_never_dialled() -> None:
    assert await refused_with("ws://192.0.2.1/media") == [31922]


async def test_query_in_the_url_is_31920_and_never_dialled() -> None:
    assert await refused_with("{ws}/media/t1?token=1") == [31920]


async def test_caller_can_hang_up_while_the_upgrade_is_under_way() -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await release.wait()
        writer.close()

    async with asyncio.timeout(10), await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/media"
        async with calling(streaming(echo, document=CONNECT.replace("{ws}/media/t1", url))) as phone:
            await asked.wait()
            await phone.hang_up()
        release.set()
    assert phone.ended is EndReason.CALLER
    assert phone.problems == []


# What the application gets


async def test_stream_begins_with_connected_start_and_media() -> None:
    messages = await heard_from(streaming(echo), 4)
    assert [message["event"] for message in messages[:4]] == ["connected", "start", "media", "media"]
    assert [message.get("sequenceNumber") for message in messages[:4]] == [None, "1", "2", "3"]
    assert messages[1]["start"]["customParameters"] == {}


async def test_parameters_arrive_in_start() -> None:
    stream = '<Stream url="{ws}/media/t1"><Parameter name="tenant" value="Müller &amp; Co"/></Stream>'
    messages = await heard_from(streaming(echo, document=f"<Response><Connect>{stream}</Connect></Response>"), 2)
    assert messages[1]["start"]["customParameters"] == {"tenant": "Müller & Co"}


async def test_call_is_the_one_of_the_webhook() -> None:
    application = streaming(echo)
    messages = await heard_from(application, 2)
    assert messages[1]["start"]["callSid"] == application.seen[0].form["CallSid"]
    assert messages[1]["start"]["accountSid"] == application.seen[0].form["AccountSid"]


async def test_timestamps_begin_between_100_and_200_and_advance_by_20_ms() -> None:
    messages = await heard_from(streaming(echo), 12, seed=7)
    times = [int(message["media"]["timestamp"]) for message in messages if message["event"] == "media"]
    assert 100 <= times[0] <= 200
    jitter = [time - times[0] - 20 * index for index, time in enumerate(times)]
    assert max(map(abs, jitter)) in (1, 2)


async def test_same_seed_gives_the_same_timestamps() -> None:
    first = await heard_from(streaming(echo), 6, seed=7)
    second = await heard_from(streaming(echo), 6, seed=7)
    assert [m["media"]["timestamp"] for m in first[2:6]] == [m["media"]["timestamp"] for m in second[2:6]]


async def test_wait_before_connected_is_kept() -> None:
    async with asyncio.timeout(10), calling(streaming(echo), connected_after_ms=(30, 40)) as phone:
        await phone.answered()
    (opened,) = [event for event in phone.timeline if isinstance(event, StreamOpened)]
    (started,) = [event for event in phone.timeline if isinstance(event, StreamStarted)]
    assert started.at - opened.at >= 0.03


async def test_key_presses_arrive_in_sequence_with_the_audio() -> None:
    pressed: list[dict[str, Any]] = []

    async def conversation(ws: ServerConnection) -> None:
        pressed.append(await receive(ws, "dtmf"))

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.answered()
        phone.press("5")
        await phone.over()
    assert pressed[0]["dtmf"] == {"track": "inbound_track", "digit": "5"}
    assert int(pressed[0]["sequenceNumber"]) >= 2


async def test_silent_caller_can_leave_gaps_with_the_time_still_running() -> None:
    times: list[int] = []
    chunks: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        first = await receive(ws, "media")
        await ws.send(media(sid, tone(60)))
        await ws.send(mark(sid, "later"))
        await receive(ws, "mark")
        second = await receive(ws, "media")
        times.extend(int(message["media"]["timestamp"]) for message in (first, second))
        chunks.extend(message["media"]["chunk"] for message in (first, second))

    async with asyncio.timeout(10), calling(streaming(conversation), gaps_in_silence=True) as phone:
        phone.say(tone(20))
        await phone.wait_for(lambda p: any(isinstance(event, MarkEchoed) for event in p.timeline))
        phone.say(tone(20))
        await phone.over()
    assert chunks == ["1", "2"]
    assert times[1] - times[0] >= 56


async def test_stall_holds_everything_back_and_loses_nothing() -> None:
    counted: list[int] = []

    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "dtmf")
        counted.append(1)

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        stream = await phone.answered()
        assert stream.started_at is not None
        phone.stall(80)
        stalled_at = asyncio.get_running_loop().time()
        phone.press("1")
        await phone.over()
        ended_at = asyncio.get_running_loop().time()
    assert counted == [1]
    assert ended_at - stalled_at >= 0.08


async def test_frames_after_a_stall_keep_their_numbers() -> None:
    messages: list[dict[str, Any]] = []
    enough = asyncio.Event()

    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")
        async for raw in ws:
            messages.append(json.loads(raw))
            if len(messages) == 8:
                enough.set()

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.answered()
        phone.stall(60)
        await enough.wait()
    assert [message["sequenceNumber"] for message in messages[:8]] == [str(n) for n in range(2, 10)]


# What the caller hears


async def test_mark_comes_back_when_the_audio_before_it_was_played() -> None:
    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(media(sid, tone(100)))
        await ws.send(mark(sid, "g1-a-0"))
        assert (await receive(ws, "mark"))["mark"] == {"name": "g1-a-0"}

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.over()
        assert phone.heard_ms(0, 800) == 100
    (received,) = [event for event in phone.timeline if isinstance(event, MarkReceived)]
    (echoed,) = [event for event in phone.timeline if isinstance(event, MarkEchoed)]
    (audio,) = [event for event in phone.timeline if isinstance(event, AudioReceived)]
    assert echoed.heard
    assert (received.position, audio.ms) == (800, 100)
    assert echoed.at - audio.at >= 0.0999


async def test_mark_without_audio_comes_back_at_once() -> None:
    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(mark(sid, "g1-a-0"))
        await receive(ws, "mark")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.over()
    (received,) = [event for event in phone.timeline if isinstance(event, MarkReceived)]
    (echoed,) = [event for event in phone.timeline if isinstance(event, MarkEchoed)]
    assert echoed.at == received.at


async def test_clear_stops_playout_and_gives_all_marks_back_in_order() -> None:
    names: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(media(sid, tone(1000)))
        await ws.send(mark(sid, "g1-a-0"))
        await ws.send(media(sid, tone(1000)))
        await ws.send(mark(sid, "g1-a-1"))
        await ws.send(clear(sid))
        names.append((await receive(ws, "mark"))["mark"]["name"])
        names.append((await receive(ws, "mark"))["mark"]["name"])

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.over()
        heard_ms = phone.heard_ms(0, 16000)
    (cleared,) = [event for event in phone.timeline if isinstance(event, ClearReceived)]
    echoes = [event for event in phone.timeline if isinstance(event, MarkEchoed)]
    assert names == ["g1-a-0", "g1-a-1"]
    assert [echo.heard for echo in echoes] == [False, False]
    assert heard_ms * 8 == cleared.played_to < 8000
    assert cleared.played_to + cleared.discarded_bytes == 16000


async def test_audio_after_a_clear_is_heard_and_the_cleared_is_not() -> None:
    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(media(sid, b"\x10" * 8000))
        await ws.send(clear(sid))
        await ws.send(media(sid, b"\x20" * 400))
        await ws.send(mark(sid, "g2"))
        await receive(ws, "mark")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.over()
        assert phone.heard_ms(8000, 8400) == 50
        heard = phone.heard_audio()
    assert heard.count(0x20) == 400
    assert heard.count(0x10) < 8000


@pytest.mark.parametrize("delay_ms", [30, 100])
async def test_network_delay_applies_each_way_and_keeps_the_order(delay_ms: int) -> None:
    sent_at: list[float] = []
    back_at: list[float] = []
    names: list[str] = []
    now = asyncio.get_running_loop().time

    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        sent_at.append(now())
        for name in ("a", "b", "c"):
            await ws.send(mark(sid, name))
        names.extend([(await receive(ws, "mark"))["mark"]["name"] for _ in range(3)])
        back_at.append(now())

    async with asyncio.timeout(10), calling(streaming(conversation), network_delay_ms=delay_ms) as phone:
        await phone.over()
    first = next(event for event in phone.timeline if isinstance(event, MarkReceived))
    assert names == ["a", "b", "c"]
    assert first.at - sent_at[0] >= delay_ms / 1000
    assert back_at[0] - first.at >= delay_ms / 1000


async def test_over_a_network_more_is_heard_than_the_marks_tell() -> None:
    """The truth of barge-in: while an echo and the clear that answers it travel, playing goes on."""

    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(media(sid, tone(20)))
        await ws.send(mark(sid, "first"))
        await ws.send(media(sid, tone(980)))
        await receive(ws, "mark")
        await ws.send(clear(sid))
        await ws.send(mark(sid, "cleared"))
        await receive(ws, "mark")

    async with asyncio.timeout(10), calling(streaming(conversation), network_delay_ms=40) as phone:
        await phone.over()
        assert 20 + 2 * 40 <= phone.heard_ms(0, 8000) < 1000


async def test_speech_of_the_agent_is_noticed_and_measured() -> None:
    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(media(sid, tone(200)))
        await receive(ws, "stop")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.heard_speech(100)
        assert phone.agent_speaking
        await phone.heard_speech(100, since_ms=100)
        await phone.hang_up()
    (spoke,) = [event for event in phone.timeline if isinstance(event, AgentSpoke)]
    assert phone.speech_ms == spoke.ms == 200


# Wrong applications


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('{"event":"media","streamSid":"SID","media":{"payload":"/////w==","track":"outbound"}}', 31951),
        ('{"event":"media","streamSid":"MZ00000000000000000000000000000000","media":{"payload":"//8="}}', 31951),
        ('{"event":"media","streamSid":"SID","media":{"payload":"not base64!"}}', 31950),
        ('{"event":"hello","streamSid":"SID"}', 31951),
        ("hello", 31951),
        (b"\xff\xff", 31950),
    ],
)
async def test_wrong_message_is_recorded_and_the_stream_goes_on(message: str | bytes, code: int) -> None:
    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(message.replace("SID", sid) if isinstance(message, str) else message)
        await ws.send(mark(sid, "still here"))
        await receive(ws, "mark")
        await receive(ws, "stop")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.wait_for(lambda p: any(isinstance(event, MarkEchoed) for event in p.timeline))
        await phone.hang_up()
    assert [violation.code for violation in phone.violations] == [code]
    assert problem_codes(phone) == [code]


async def test_twilio_reports_only_the_first_wrong_message_the_phone_all() -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")
        await ws.send("one")
        await ws.send("two")
        await ws.send(b"three")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.over()
    assert [violation.message for violation in phone.violations] == ["one", "two", "b'three'"]
    assert problem_codes(phone) == [31951, 31950, 31921]


async def test_wav_header_is_a_violation_that_is_heard_all_the_same() -> None:
    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(media(sid, b"RIFF" + tone(20)))
        await ws.send(mark(sid, "end"))
        await receive(ws, "mark")
        await receive(ws, "stop")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.wait_for(lambda p: any(isinstance(event, MarkEchoed) for event in p.timeline))
        await phone.hang_up()
    assert [(violation.code, "WAV" in violation.why) for violation in phone.violations] == [(None, True)]
    assert phone.problems == []
    assert b"RIFF" in phone.heard_audio()


async def test_more_than_ten_minutes_of_audio_is_31931_once() -> None:
    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        for _ in range(3):
            await ws.send(media(sid, bytes(2_400_400)))
        await ws.send(clear(sid))
        await ws.send(mark(sid, "end"))
        await receive(ws, "mark")
        await receive(ws, "stop")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.wait_for(lambda p: any(isinstance(event, MarkEchoed) for event in p.timeline))
        await phone.hang_up()
    assert problem_codes(phone) == [31931]


# How streams end


async def test_caller_hanging_up_sends_stop_then_closes() -> None:
    ends: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        ends.append((await receive(ws, "stop"))["stop"]["callSid"])
        try:
            await ws.recv()
        except ConnectionClosed as closed:
            ends.append("close frame" if closed.rcvd is not None else "no close frame")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.answered()
        await phone.hang_up()
    assert ends == [phone.call_sid, "close frame"]
    assert phone.problems == []


async def test_stop_can_be_missing() -> None:
    events: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        events.extend([json.loads(raw)["event"] async for raw in ws])

    async with asyncio.timeout(10), calling(streaming(conversation), send_stop=False) as phone:
        await phone.answered()
        await phone.hang_up()
    assert events[0] == "connected"
    assert "stop" not in events


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 4000])
async def test_every_close_by_the_application_is_31921(code: int) -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")
        await ws.close(code, "bye")

    async with asyncio.timeout(10), calling(streaming(conversation, document=CONNECT_THEN_ACTION)) as phone:
        await phone.over()
    (closed,) = [event for event in phone.timeline if isinstance(event, StreamClosed)]
    assert (closed.by, closed.code) == ("server", code)
    assert problem_codes(phone) == [31921]
    assert phone.ended is EndReason.HANGUP


async def test_connection_that_breaks_is_31903_and_the_action_is_asked() -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")
        ws.transport.abort()

    application = streaming(conversation, document=CONNECT_THEN_ACTION)
    async with asyncio.timeout(10), calling(application) as phone:
        await phone.over()
    (closed,) = [event for event in phone.timeline if isinstance(event, StreamClosed)]
    assert (closed.by, closed.code) == ("network", None)
    assert problem_codes(phone) == [31903]
    assert len(application.requests("/after")) == 1


async def test_cut_connection_reaches_the_application_without_stop_or_close() -> None:
    ends: list[bool] = []

    async def conversation(ws: ServerConnection) -> None:
        try:
            await receive(ws, "stop")
        except ConnectionClosed as closed:
            ends.append(closed.rcvd is None)

    async with asyncio.timeout(10), calling(streaming(conversation, document=CONNECT_THEN_ACTION)) as phone:
        await phone.answered()
        phone.cut()
        await phone.over()
    assert ends == [True]
    assert problem_codes(phone) == [31903]


async def test_frozen_phone_sends_nothing_and_answers_no_pings() -> None:
    frozen, gone = asyncio.Event(), asyncio.Event()
    pongs: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")
        await (await ws.ping())
        pongs.append("before")
        await frozen.wait()
        pong = asyncio.ensure_future(await ws.ping())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(pong), 0.05)
        ws.transport.close()
        with pytest.raises(ConnectionClosed):
            await pong
        gone.set()

    async with asyncio.timeout(10), calling(streaming(conversation, document=CONNECT_THEN_ACTION)) as phone:
        await phone.answered()
        await phone.wait_for(lambda _: bool(pongs))
        phone.freeze()
        frozen.set()
        await gone.wait()
        await phone.over()
    assert problem_codes(phone) == [31903]
    assert phone.ended is EndReason.HANGUP


async def test_frozen_phone_drops_the_connection_when_the_call_ends() -> None:
    events: list[str] = []
    lost = asyncio.Event()

    async def conversation(ws: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                events.append(json.loads(await ws.recv())["event"])
        lost.set()

    async with asyncio.timeout(10), running(streaming(conversation)) as application:
        async with Phone(options(application)) as phone:
            await phone.dial()
            await phone.answered()
            phone.freeze()
            phone.press("9")
            await phone.hang_up()
        await lost.wait()
    assert phone.ended is EndReason.CALLER
    assert "dtmf" not in events
    assert "stop" not in events


async def test_broken_websocket_protocol_is_31924() -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "start")
        ws.transport.write(b"\xc1\x00")  # a text frame with a reserved bit set
        await receive(ws, "stop")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.over()
    assert problem_codes(phone) == [31924]


async def test_phone_pings_the_application() -> None:
    pinged = asyncio.Event()

    async def conversation(ws: ServerConnection) -> None:
        received = ws.protocol.recv_frame

        def record_frame(frame: Any) -> None:
            if frame.opcode.name == "PING":
                pinged.set()
            received(frame)

        ws.protocol.recv_frame = record_frame  # type: ignore[method-assign]
        await receive(ws, "stop")

    async with asyncio.timeout(10), calling(streaming(conversation), ping_interval_s=0.02):
        await pinged.wait()


async def test_unread_caller_audio_beyond_the_limit_is_dropped_with_one_31930(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(phone_media, "MAX_UNSENT_BYTES", -1)  # the real one fills only after minutes
    events: list[str] = []

    async def conversation(ws: ServerConnection) -> None:
        events.extend([json.loads(raw)["event"] async for raw in ws])

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        phone.say(tone(60))
        await phone.spoken()
        await phone.hang_up()
    assert events == ["connected", "start", "stop"]
    assert problem_codes(phone) == [31930]


async def test_second_connect_in_a_document_opens_a_second_stream() -> None:
    async def conversation(ws: ServerConnection) -> None:
        await receive(ws, "media")

    document = CONNECT.replace("</Connect>", '</Connect><Connect><Stream url="{ws}/media/t2"/></Connect>')
    application = streaming(conversation, document=document)
    async with asyncio.timeout(10), calling(application) as phone:
        second = await phone.answered(streams=2)
        await phone.over()
    assert [request.path for request in application.upgrades] == ["/media/t1", "/media/t2"]
    assert second is phone.streams[1]
    assert phone.streams[0].stream_sid != second.stream_sid


async def test_nothing_is_kept_when_told_so() -> None:
    async def conversation(ws: ServerConnection) -> None:
        sid = (await receive(ws, "start"))["streamSid"]
        await ws.send(media(sid, tone(40)))
        await ws.send(mark(sid, "end"))
        await receive(ws, "mark")

    async with asyncio.timeout(10), calling(streaming(conversation), keep_audio=False) as phone:
        await phone.over()
    assert phone.heard_ms(0, 320) == 40
    assert not any(isinstance(event, AudioReceived) for event in phone.timeline)
    assert problem_codes(phone) == [31921]
