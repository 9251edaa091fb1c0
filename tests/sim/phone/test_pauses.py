"""The pauses that the caller heard, found in the audio that was played."""

import asyncio

import pytest
from websockets.asyncio.server import ServerConnection

from app.sim.phone.pauses import Pause, pauses
from tests.sim.caller import calling, streaming, tone
from tests.sim.echo_server import media, receive


def silence(ms: int) -> bytes:
    return b"\xff" * (ms * 8)


def test_silence_between_two_stretches_of_speech_is_a_pause() -> None:
    heard = tone(200) + silence(1500) + tone(100)
    assert pauses(heard, longer_than_ms=500) == (Pause(200, 1700, resumed=True),)
    assert pauses(heard, longer_than_ms=500)[0].ms == 1500


def test_every_pause_over_the_threshold_is_found_in_order() -> None:
    heard = tone(100) + silence(600) + tone(100) + silence(400) + tone(100) + silence(800) + tone(20)
    assert [(pause.start_ms, pause.ms) for pause in pauses(heard, longer_than_ms=500)] == [(100, 600), (1300, 800)]


@pytest.mark.parametrize(("longer_than_ms", "count"), [(480, 1), (500, 0), (520, 0)])
def test_pause_has_to_be_longer_than_the_threshold(longer_than_ms: int, count: int) -> None:
    heard = tone(100) + silence(500) + tone(100)
    assert len(pauses(heard, longer_than_ms=longer_than_ms)) == count


def test_silence_before_the_first_sound_is_no_pause() -> None:
    assert pauses(silence(3000) + tone(100), longer_than_ms=100) == ()


def test_silence_after_the_last_sound_is_a_pause_that_did_not_resume() -> None:
    assert pauses(tone(100) + silence(1200), longer_than_ms=1000) == (Pause(100, 1300, resumed=False),)


@pytest.mark.parametrize("heard", [b"", b"\xff", silence(5000)], ids=["nothing", "one sample", "silence"])
def test_audio_without_a_sound_has_no_pauses(heard: bytes) -> None:
    assert pauses(heard, longer_than_ms=0) == ()


def test_incomplete_last_block_counts_as_silence() -> None:
    assert pauses(tone(100) + tone(10), longer_than_ms=5) == (Pause(100, 110, resumed=False),)


@pytest.mark.anyio
async def test_phone_hears_the_pause_that_the_agent_makes() -> None:
    async def conversation(connection: ServerConnection) -> None:
        stream_sid = (await receive(connection, "start"))["streamSid"]
        await connection.send(media(stream_sid, tone(100) + silence(700) + tone(100)))
        await receive(connection, "stop")

    async with asyncio.timeout(10), calling(streaming(conversation)) as phone:
        await phone.heard_speech(150)
        await phone.wait_for(lambda p: p.waiting_ms == 0)
        await phone.hang_up()
    (pause,) = [each for each in pauses(phone.heard_audio(), longer_than_ms=300) if each.resumed]
    assert 660 <= pause.ms <= 740  # the blocks of the recording need not begin where those of the speech do
