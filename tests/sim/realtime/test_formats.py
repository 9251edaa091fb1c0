"""The simulated Realtime backends: every format there is, heard and spoken, to the millisecond."""

from collections.abc import Callable
from typing import Any

import pytest

from app.sim.realtime.audio import AudioFormat, Encoder
from app.sim.realtime.faults import Faults
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import Message, Reply
from app.sim.realtime.server import RealtimeServer
from app.sim.realtime.voicelive_simulator import VoiceLiveSimulator
from app.sim.speech import Sentence, spoken
from tests.sim.realtime_client import (
    OPENAI,
    PCM,
    PCMU,
    VOICELIVE,
    Backend,
    answers,
    both,
    dial,
    loud,
    silence,
    telephone,
    voicelive_telephone,
)

pytestmark = pytest.mark.anyio

Json = dict[str, Any]

RATES = (8_000, 16_000, 24_000)
SENTENCE = Message.lasting("On Tuesday we have three appointments left.", 2000)


def openai(wire: Json) -> Callable[..., Json]:
    """A configuration for OpenAI with this format both ways."""

    def session(**turn_detection: Any) -> Json:
        made = telephone(**turn_detection)
        made["audio"]["input"]["format"] = made["audio"]["output"]["format"] = wire
        return made

    return session


def voicelive(spoken_in: str, heard_in: str, rate: int) -> Callable[..., Json]:
    """A configuration for Voice Live, which has two names for one format."""

    def session(**turn_detection: Any) -> Json:
        return {
            **voicelive_telephone(**turn_detection),
            "input_audio_format": heard_in,
            "input_audio_sampling_rate": rate,
            "output_audio_format": spoken_in,
        }

    return session


def anywhere(backend: Backend, **options: Any) -> RealtimeServer:
    """A simulator that takes all formats its protocol has."""
    return backend.simulator(**options, **({"rates": RATES} if backend is OPENAI else {}))


PCM_FORMATS = [
    (OPENAI, openai({"type": "audio/pcm", "rate": 8000}), AudioFormat.PCM_8K),
    (OPENAI, openai({"type": "audio/pcm", "rate": 16000}), AudioFormat.PCM_16K),
    (OPENAI, openai(PCM), AudioFormat.PCM_24K),
    (VOICELIVE, voicelive("pcm16_8000hz", "pcm16", 8000), AudioFormat.PCM_8K),
    (VOICELIVE, voicelive("pcm16_16000hz", "pcm16", 16000), AudioFormat.PCM_16K),
    (VOICELIVE, voicelive("pcm16", "pcm16", 24000), AudioFormat.PCM_24K),
]
ALL_FORMATS = [
    *PCM_FORMATS,
    (OPENAI, openai(PCMU), AudioFormat.PCMU),
    (OPENAI, openai({"type": "audio/pcma"}), AudioFormat.PCMA),
    (VOICELIVE, voicelive("g711_ulaw", "g711_ulaw", 8000), AudioFormat.PCMU),
    (VOICELIVE, voicelive("g711_alaw", "g711_alaw", 8000), AudioFormat.PCMA),
]


def name(value: object) -> str | None:
    return value.name if isinstance(value, AudioFormat) else ""


def checks(audio_format: AudioFormat, backend: Backend) -> bool:
    """OpenAI's own types know one rate of PCM; servers of others are not held to them."""
    return backend is VOICELIVE or audio_format not in (AudioFormat.PCM_8K, AudioFormat.PCM_16K)


@pytest.mark.parametrize(("backend", "session", "audio_format"), ALL_FORMATS, ids=name)
async def test_speech_in_a_format_is_heard_and_answered_in_it(
    backend: Backend, session: Callable[..., Json], audio_format: AudioFormat
) -> None:
    speech = spoken(Sentence.IDLE).mulaw
    async with (
        anywhere(backend, script=answers(Reply((SENTENCE,)))) as sim,
        dial(sim, check=checks(audio_format, backend)) as client,
    ):
        await client.configure(session())
        live = await sim.session(0)
        assert (live.settings.input_format, live.settings.output_format) == (audio_format, audio_format)
        await client.append(Encoder(audio_format).encode(silence(1000) + speech + silence(600)))
        started = await client.until("input_audio_buffer.speech_started")
        assert 650 <= started["audio_start_ms"] <= 1000
        await client.until("response.done")
        assert b"".join(client.deltas()) == Encoder(audio_format).encode(SENTENCE.mulaw)
        item = live.conversation.last
        assert item is not None
        assert item.audio_ms == 2000


@pytest.mark.parametrize(("backend", "session", "audio_format"), PCM_FORMATS, ids=name)
async def test_deltas_may_end_inside_a_sample_and_lose_nothing(
    backend: Backend, session: Callable[..., Json], audio_format: AudioFormat
) -> None:
    faults = Faults(deltas_cut_samples=True)
    async with (
        anywhere(backend, script=answers(Reply((SENTENCE,), delta_bytes=(1600,))), faults=faults) as sim,
        dial(sim, check=checks(audio_format, backend)) as client,
    ):
        await client.configure(session())
        await client.send("response.create")
        await client.until("response.done")
        pieces = client.deltas()
        ends = [sum(len(piece) for piece in pieces[: count + 1]) for count in range(len(pieces))]
        assert [end % 2 for end in ends] == [1] * 9 + [0]
        assert b"".join(pieces) == Encoder(audio_format).encode(SENTENCE.mulaw)


@pytest.mark.parametrize(("backend", "session", "audio_format"), PCM_FORMATS, ids=name)
async def test_truncation_knows_what_was_produced_of_a_cut_sample(
    backend: Backend, session: Callable[..., Json], audio_format: AudioFormat
) -> None:
    """600 ms less one byte left: the last whole millisecond is the 599th."""
    reply = Reply((SENTENCE,), delta_bytes=(1600,), hold_after_deltas=3)
    faults = Faults(deltas_cut_samples=True)
    async with (
        anywhere(backend, script=answers(reply), faults=faults) as sim,
        dial(sim, check=checks(audio_format, backend)) as client,
    ):
        await client.configure(session())
        await client.send("response.create")
        item_id = (await client.until(sim.names.audio_delta))["item_id"]
        await client.append(Encoder(audio_format).encode(loud(400)))
        await client.until("response.done")
        assert len(b"".join(client.deltas())) == 600 * audio_format.bytes_per_ms - 1
        where = {"item_id": item_id, "content_index": 0}
        error = await client.refused("conversation.item.truncate", **where, audio_end_ms=600)
        assert error["message"] == "Audio content of 599ms is already shorter than 600ms"
        await client.send("conversation.item.truncate", **where, audio_end_ms=599)
        await client.until("conversation.item.truncated")


@both
async def test_format_that_was_asked_for_can_be_ignored_without_a_word(backend: Backend) -> None:
    async with backend.simulator(faults=Faults(ignore_formats=True)) as sim, dial(sim) as client:
        await client.configure(backend.telephone())
        live = await sim.session(0)
        assert (live.settings.input_format, live.settings.output_format) == (AudioFormat.PCM_24K,) * 2
        assert live.settings.turns is not None
        assert live.settings.turns.vad.prefix_padding_ms == 300, "the rest of the update counts"
        await client.append(silence(6000))
        await client.append(Encoder(AudioFormat.PCM_24K).encode(loud(400)))
        started = await client.until("input_audio_buffer.speech_started")
        assert started["audio_start_ms"] == 1000 - 300


@pytest.mark.parametrize(
    ("backend", "session", "shown"),
    [
        (OPENAI, openai({"type": "g711_ulaw"}), PCM),
        (VOICELIVE, voicelive("audio/pcmu", "audio/pcmu", 8000), "pcm16"),
    ],
    ids=["openai", "voicelive"],
)
async def test_wrong_name_of_a_format_can_fall_back_to_pcm(
    backend: Backend, session: Callable[..., Json], shown: object
) -> None:
    async with backend.simulator(faults=Faults(ignore_formats=True)) as sim, dial(sim) as client:
        await client.send_raw({"type": "session.update", "session": session()})
        echoed = (await client.until("session.updated"))["session"]
        found = echoed["audio"]["output"]["format"] if backend is OPENAI else echoed["output_audio_format"]
        assert found == shown


@both
@pytest.mark.parametrize("session", [None, {"audio": None}, {"audio": {"input": None}}])
async def test_broken_update_is_refused_with_ignored_formats_too(backend: Backend, session: object) -> None:
    async with backend.simulator(faults=Faults(ignore_formats=True)) as sim, dial(sim) as client:
        assert (await client.refused("session.update", session=session))["code"]


async def test_wrong_format_is_echoed_and_used() -> None:
    async with VoiceLiveSimulator(faults=Faults(echo_format="pcm16")) as sim, dial(sim) as client:
        session = (await client.configure(voicelive_telephone()))["session"]
        assert session["input_audio_format"] == session["output_audio_format"] == "pcm16"
        assert session["input_audio_sampling_rate"] == 24000


async def test_server_without_g711_refuses_it_and_stays_with_pcm() -> None:
    async with RealtimeSimulator(rates=(16_000,), g711=False) as sim, dial(sim, check=False) as client:
        wire = {"type": "audio/pcm", "rate": 16000}
        assert client.events[0]["session"]["audio"]["output"]["format"] == wire
        error = await client.refused("session.update", session=telephone())
        assert (error["code"], error["param"]) == ("invalid_value", "session.audio.input.format.type")
        assert error["message"] == "Invalid value: 'audio/pcmu'. Supported values are: 'audio/pcm'."
        assert (await sim.session(0)).settings.input_format is AudioFormat.PCM_16K


async def test_server_without_g711_can_keep_pcm_without_a_word() -> None:
    faults = Faults(ignore_formats=True)
    async with RealtimeSimulator(g711=False, faults=faults) as sim, dial(sim) as client:
        session = (await client.configure(telephone()))["session"]
        assert session["audio"]["input"]["format"] == session["audio"]["output"]["format"] == PCM


@pytest.mark.parametrize("rates", [(), (44_100,)])
def test_rate_that_is_not_simulated_is_a_mistake_of_the_test(rates: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rates of PCM"):
        RealtimeSimulator(rates=rates)


async def test_rate_between_those_that_a_server_has_is_refused() -> None:
    async with RealtimeSimulator(rates=(8_000, 24_000)) as sim, dial(sim) as client:
        session = openai({"type": "audio/pcm", "rate": 16000})()
        error = await client.refused("session.update", session=session)
        assert error["message"] == "Invalid value: 16000. Supported values are: 8000, 24000."
