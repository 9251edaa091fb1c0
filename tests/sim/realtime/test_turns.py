"""The simulated Realtime backend: what the caller says becomes turns, and turns become the parrot's answers."""

from typing import Any

import pytest

from app.sim.realtime.audio import AudioFormat, Decoder, Encoder
from app.sim.realtime.faults import Faults, Timing
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import Message, Reply, parrot
from app.sim.speech import Sentence, spoken
from tests.sim.realtime_client import PCM, Backend, Client, answers, both, dial, loud, silence, telephone

pytestmark = pytest.mark.anyio

Json = dict[str, Any]


def audio_of(client: Client) -> bytes:
    """The agent's audio of all deltas received, in the session's output format."""
    return b"".join(client.deltas())


async def test_caller_speaks_and_every_event_of_the_turn_comes_in_order() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        await client.append(silence(1000) + loud(1000) + silence(600))
        await client.until("response.done")
        assert client.types() == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "response.created",
            "rate_limits.updated",
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
            *(
                ["response.output_audio_transcript.delta", "response.output_audio.delta"]
                * len(client.all("response.output_audio_transcript.delta"))
            ),
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ]


@both
async def test_turn_times_are_on_the_clock_of_written_audio(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim, backend.telephone()) as client:
        await client.append(silence(1000) + loud(1000) + silence(600))
        started = await client.until("input_audio_buffer.speech_started")
        stopped = await client.until("input_audio_buffer.speech_stopped")
        assert started["audio_start_ms"] == 1000 - 300
        assert stopped["audio_end_ms"] == 2000 + 500
        assert started["item_id"] == stopped["item_id"]


@both
async def test_items_of_a_conversation_are_chained_by_their_ids(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim, backend.telephone()) as client:
        await client.append(silence(400) + loud(400) + silence(600))
        await client.until("response.done")
        await client.append(loud(400) + silence(600))
        await client.until("response.done")
        added = client.all(backend.names.item_added)
        ids = [each["item"]["id"] for each in added]
        assert [each["item"]["role"] for each in added] == ["user", "assistant", "user", "assistant"]
        assert [each["previous_item_id"] for each in added] == [None, *ids[:3]]
        assert [each["previous_item_id"] for each in client.all("input_audio_buffer.committed")] == [None, ids[1]]


@both
async def test_parrot_repeats_the_callers_own_audio_between_two_sentences(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim, backend.telephone()) as client:
        await client.append(silence(1000) + loud(1000) + silence(600))
        done = (await client.until("response.done"))["response"]
        said = silence(300) + loud(1000)
        lead, closing = spoken(Sentence.YOU_SAID), spoken(Sentence.CLOSING)
        assert audio_of(client) == lead.mulaw + said + silence(200) + closing.mulaw
        words = f"{lead.words} (1.3 s of speech) {closing.words}"
        assert done["output"][0]["content"] == [{"type": backend.names.audio_content, "transcript": words}]


async def test_parrot_repeats_no_more_than_the_first_seconds_of_a_long_turn() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        await client.append(loud(20_000) + silence(600))
        await client.until("response.done")
        sentences = spoken(Sentence.YOU_SAID).mulaw + spoken(Sentence.CLOSING).mulaw
        assert len(audio_of(client)) == len(sentences) + (15_000 + 200) * 8


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        ({"metadata": {"purpose": "greeting"}, "instructions": 'Say exactly: "Hi."'}, Sentence.GREETING),
        ({"metadata": {"purpose": "idle"}}, Sentence.IDLE),
        ({"metadata": {"purpose": "warning"}}, Sentence.WARNING),
        ({"metadata": {"purpose": "goodbye"}}, Sentence.GOODBYE),
        ({"metadata": {"purpose": "tool"}}, Sentence.GENERAL),
        ({"metadata": {"purpose": "something new"}}, Sentence.GENERAL),
        ({"instructions": "Say something nice."}, Sentence.GENERAL),
        ({}, Sentence.GENERAL),
    ],
)
async def test_parrot_says_the_sentence_that_was_asked_for(response: Json, sentence: Sentence) -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        await client.send("response.create", response=response)
        done = (await client.until("response.done"))["response"]
        assert audio_of(client) == spoken(sentence).mulaw
        assert done["output"][0]["content"][0]["transcript"] == sentence.words
        assert done["metadata"] == response.get("metadata")


@both
async def test_retry_after_a_failed_answer_repeats_the_callers_turn(backend: Backend) -> None:
    script = answers(Reply(status="failed"))
    async with backend.simulator(script=script) as sim, dial(sim, backend.telephone()) as client:
        await client.append(loud(1000) + silence(600))
        assert (await client.until("response.done"))["response"]["status"] == "failed"
        sim.script = parrot
        await client.send("response.create", response={"metadata": {"purpose": "retry"}})
        done = (await client.until("response.done"))["response"]
        assert done["output"][0]["content"][0]["transcript"].startswith("You said: (1.0 s of speech)")


async def test_mulaw_sent_before_the_configuration_is_read_as_pcm() -> None:
    """Six bytes of PCM at 24 kHz are one of mu-law: six seconds of line noise pass for one."""
    async with RealtimeSimulator() as sim, dial(sim) as client:
        await client.append(silence(6000))
        await client.configure(telephone())
        await client.append(loud(400))
        started = await client.until("input_audio_buffer.speech_started")
        assert started["audio_start_ms"] == 1000 - 300


async def test_silence_in_mulaw_is_a_loud_noise_to_a_session_that_expects_alaw() -> None:
    session = telephone()
    session["audio"]["input"]["format"] = {"type": "audio/pcma"}
    async with RealtimeSimulator() as sim, dial(sim, session) as client:
        await client.append(bytes([0x2A, 0xAA]) * 4000)
        await client.until("input_audio_buffer.speech_started")


@pytest.mark.parametrize(
    ("audio_format", "wire"), [(AudioFormat.PCMA, {"type": "audio/pcma"}), (AudioFormat.PCM_24K, PCM)]
)
async def test_other_formats_are_heard_and_spoken_too(audio_format: AudioFormat, wire: Json) -> None:
    session = telephone()
    session["audio"]["input"]["format"] = wire
    session["audio"]["output"]["format"] = wire
    async with RealtimeSimulator() as sim, dial(sim, session) as client:
        speech = spoken(Sentence.IDLE).mulaw
        await client.append(Encoder(audio_format).encode(silence(1000) + speech + silence(600)))
        started = await client.until("input_audio_buffer.speech_started")
        done = (await client.until("response.done"))["response"]
        assert 650 <= started["audio_start_ms"] <= 1000
        assert done["audio"]["output"]["format"] == wire
        back = Decoder(audio_format).decode(audio_of(client))
        assert len(back) == (await sim.session(0)).conversation.last.audio_bytes  # type: ignore[union-attr]  # there is one


@both
async def test_several_turns_in_one_append_all_become_items(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim, backend.telephone(create_response=False)) as client:
        await client.append((loud(400) + silence(600)) * 3)
        await client.quiet()
        assert len(client.all("input_audio_buffer.committed")) == 3


@both
async def test_no_answer_without_create_response(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim, backend.telephone(create_response=False)) as client:
        await client.append(loud(400) + silence(600))
        await client.until(backend.names.item_added)
        assert "response.created" not in await client.quiet()


@both
async def test_client_asks_for_the_answer_that_was_not_created(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim, backend.telephone(create_response=False)) as client:
        await client.append(loud(400) + silence(600))
        await client.until(backend.names.item_added)
        await client.send("response.create")
        done = (await client.until("response.done"))["response"]
        assert "s of speech" in done["output"][0]["content"][0]["transcript"]


@both
async def test_speech_does_not_interrupt_when_it_should_not(backend: Backend) -> None:
    script = answers(Reply((Message.lasting("Long.", 2000),), hold_after_deltas=1))
    config = backend.telephone(interrupt_response=False)
    async with backend.simulator(script=script) as sim, dial(sim, config) as client:
        await client.send("response.create")
        await client.until(backend.names.audio_delta)
        await client.append(loud(400) + silence(600))
        error = (await client.until("error"))["error"]
        assert error["code"] == "conversation_already_has_active_response"
        assert error["event_id"] is None
        (await sim.session(0)).release()
        assert (await client.until("response.done"))["response"]["status"] == "completed"


async def test_without_turn_detection_the_client_commits_and_asks() -> None:
    session = telephone()
    session["audio"]["input"]["turn_detection"] = None
    async with RealtimeSimulator() as sim, dial(sim, session) as client:
        await client.append(loud(1000) + silence(1000))
        assert await client.quiet() == []
        await client.send("input_audio_buffer.commit")
        await client.until("conversation.item.done")
        assert client.all("input_audio_buffer.committed")
        await client.send("response.create")
        done = (await client.until("response.done"))["response"]
        assert "(2.0 s of speech)" in done["output"][0]["content"][0]["transcript"]


@both
@pytest.mark.parametrize(("ms", "found"), [(0, "0.00ms"), (99, "99.00ms")])
async def test_commit_under_100_ms_is_refused(backend: Backend, ms: int, found: str) -> None:
    async with backend.simulator() as sim, dial(sim, backend.telephone()) as client:
        await client.append(loud(ms))
        error = await client.refused("input_audio_buffer.commit")
        assert error["code"] == "input_audio_buffer_commit_empty"
        assert error["message"] == (
            "Error committing input audio buffer: buffer too small. "
            f"Expected at least 100ms of audio, but buffer only has {found} of audio."
        )


@both
async def test_clear_forgets_the_turn_in_progress(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim, backend.telephone()) as client:
        await client.append(loud(400))
        await client.until("input_audio_buffer.speech_started")
        await client.send("input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")
        assert (await client.refused("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
        await client.append(silence(600))
        assert await client.quiet() == []


async def test_semantic_vad_finds_turns_too() -> None:
    session = telephone()
    session["audio"]["input"]["turn_detection"] = {"type": "semantic_vad", "eagerness": "high"}
    async with RealtimeSimulator() as sim, dial(sim, session) as client:
        await client.append(loud(400) + silence(600))
        await client.until("response.done")


async def test_silent_caller_is_asked_whether_he_is_there() -> None:
    quick = Timing(clock_rate=1000)
    async with RealtimeSimulator(timing=quick) as sim, dial(sim, telephone(idle_timeout_ms=5000)) as client:
        await client.append(silence(8000))
        await client.send("response.create", response={"metadata": {"purpose": "greeting"}})
        triggered = await client.until("input_audio_buffer.timeout_triggered")
        assert (triggered["audio_start_ms"], triggered["audio_end_ms"]) == (3000, 8000)
        assert (await client.until("input_audio_buffer.committed"))["item_id"] == triggered["item_id"]
        done = (await client.until("response.done"))["response"]
        assert done["output"][0]["content"][0]["transcript"] == Sentence.IDLE.words


async def test_idle_time_starts_at_the_end_of_playback_and_stops_with_speech() -> None:
    script = answers(Reply((Message.lasting("A long story.", 60_000),)))
    async with RealtimeSimulator(script=script) as sim, dial(sim, telephone(idle_timeout_ms=15_000)) as client:
        await client.send("response.create")
        await client.until("response.done")
        session = await sim.session(0)
        assert session.idle_in_s == pytest.approx(60 + 15, abs=10)
        await client.append(loud(400))
        await client.until("input_audio_buffer.speech_started")
        assert session.idle_in_s is None


async def test_idle_time_does_not_run_while_the_caller_interrupts() -> None:
    script = answers(Reply((Message.lasting("Long.", 2000),), hold_after_deltas=1))
    async with RealtimeSimulator(script=script) as sim, dial(sim, telephone(idle_timeout_ms=5000)) as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        await client.append(loud(400))
        await client.until("response.done")
        assert (await sim.session(0)).idle_in_s is None


async def test_idle_time_does_not_run_before_the_first_response() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone(idle_timeout_ms=5000)) as client:
        await client.append(silence(1000))
        await client.quiet()
        assert (await sim.session(0)).idle_in_s is None


async def test_caller_transcript_is_honest_and_bills_the_audio() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        await client.append(loud(2300) + silence(600))
        kind = "conversation.item.input_audio_transcription"
        delta = await client.until(f"{kind}.delta")
        completed = await client.until(f"{kind}.completed")
        (committed,) = client.all("input_audio_buffer.committed")
        assert delta["delta"] == completed["transcript"] == "(2.3 s of speech)"
        assert completed["item_id"] == committed["item_id"]
        assert completed["usage"]["input_tokens"] == (2300 + 500) // 100


async def test_caller_transcript_can_be_what_a_test_wants_heard() -> None:
    async with RealtimeSimulator(hears=lambda _: "Tuesday.") as sim, dial(sim, telephone()) as client:
        await client.append(loud(400) + silence(600))
        completed = await client.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == "Tuesday."
        (answer,) = client.all("response.output_audio_transcript.done")
        assert answer["transcript"].startswith("You said: Tuesday.")


async def test_transcription_by_a_model_billed_by_time_reports_seconds() -> None:
    session = telephone()
    session["audio"]["input"]["transcription"] = {"model": "whisper-1"}
    async with RealtimeSimulator() as sim, dial(sim, session) as client:
        await client.append(loud(500) + silence(500))
        completed = await client.until("conversation.item.input_audio_transcription.completed")
        assert completed["usage"] == {"type": "duration", "seconds": 1.0}


@pytest.mark.parametrize(
    ("configured", "faults"),
    [(None, Faults()), ({"model": "gpt-transcribe"}, Faults(transcription="never"))],
)
async def test_no_transcript_comes_when_it_is_off(configured: Json | None, faults: Faults) -> None:
    session = telephone()
    session["audio"]["input"]["transcription"] = configured
    async with RealtimeSimulator(faults=faults) as sim, dial(sim, session) as client:
        await client.append(loud(400) + silence(600))
        await client.until("response.done")
        assert "conversation.item.input_audio_transcription.completed" not in await client.quiet()


@both
async def test_transcript_can_come_after_the_answer(backend: Backend) -> None:
    faults = Faults(transcription="after_response")
    async with backend.simulator(faults=faults) as sim, dial(sim, backend.telephone()) as client:
        await client.append(loud(400) + silence(600))
        await client.until("conversation.item.input_audio_transcription.completed")
        assert "response.done" in client.types()


@both
async def test_transcription_can_fail(backend: Backend) -> None:
    async with (
        backend.simulator(faults=Faults(transcription="failed")) as sim,
        dial(sim, backend.telephone()) as client,
    ):
        await client.append(loud(400) + silence(600))
        failed = await client.until("conversation.item.input_audio_transcription.failed")
        assert failed["error"]["code"] == "audio_unintelligible"
