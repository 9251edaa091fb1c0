"""The simulated Voice Live: turns and responses, where they differ from OpenAI's."""

from typing import Any

import pytest

from app.sim.realtime.audio import AudioFormat
from app.sim.realtime.faults import Faults, Timing
from app.sim.realtime.reply import FunctionCall, Message, Reply, ReplyRequest
from app.sim.realtime.voicelive_simulator import VoiceLiveSimulator
from app.sim.speech import Sentence, spoken
from tests.sim.realtime_client import Client, answers, dial, loud, silence, voicelive_telephone

pytestmark = pytest.mark.anyio

Json = dict[str, Any]

SENTENCE = Message.lasting("On Tuesday we have three appointments left.", 2000)
HELD = Reply((SENTENCE,), delta_bytes=(1600,), hold_after_deltas=3)
GREETING = "Hello, Example Dental. This call is answered by an assistant."


def exactly(words: str) -> Json:
    return {"type": "message", "role": "assistant", "content": [{"type": "text", "text": words}]}


async def ask(client: Client, **response: Any) -> Json:
    await client.send("response.create", response=response)
    done: Json = (await client.until("response.done"))["response"]
    return done


async def test_caller_speaks_and_every_event_of_the_turn_comes_in_order() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, voicelive_telephone()) as client:
        await client.append(silence(1000) + loud(1000) + silence(600))
        await client.until("response.done")
        assert client.types() == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.created",
            "response.created",
            "response.output_item.added",
            "conversation.item.created",
            "response.content_part.added",
            *(
                ["response.audio_transcript.delta", "response.audio.delta"]
                * len(client.all("response.audio_transcript.delta"))
            ),
            "response.audio.done",
            "response.audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.done",
        ]


async def test_response_shows_its_settings_and_bills_without_cached_details() -> None:
    async with (
        VoiceLiveSimulator(script=answers(Reply((SENTENCE,)))) as sim,
        dial(sim, voicelive_telephone()) as client,
    ):
        done = await ask(client, temperature=0.9, max_response_output_tokens=500, metadata={"purpose": "x"})
        assert done["modalities"] == ["text", "audio"]
        assert done["voice"] == {"type": "openai", "name": "marin"}
        assert done["output_audio_format"] == "g711_ulaw"
        assert (done["temperature"], done["max_output_tokens"]) == (0.9, 500)
        assert done["metadata"] == {"purpose": "x"}
        assert done["output"][0]["content"] == [{"type": "audio", "transcript": SENTENCE.transcript}]
        assert done["usage"]["output_token_details"]["audio_tokens"] == 40
        assert done["usage"]["input_token_details"].keys() == {"cached_tokens", "text_tokens", "audio_tokens"}


async def test_both_names_of_the_token_limit_cut_a_response() -> None:
    long = Reply((Message.lasting("Hm.", 10_000),), delta_bytes=(1600,))
    async with VoiceLiveSimulator(script=lambda _: long) as sim, dial(sim, voicelive_telephone()) as client:
        for name in ("max_output_tokens", "max_response_output_tokens"):
            client.events.clear()
            done = await ask(client, **{name: 20})
            assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
            assert len(b"".join(client.deltas())) == 1000 * 8


async def test_text_answer_has_the_betas_names() -> None:
    async with VoiceLiveSimulator(script=answers(Reply((Message("A summary."),)))) as sim, dial(sim) as client:
        done = await ask(client, modalities=["text"])
        assert done["output"][0]["content"] == [{"type": "text", "text": "A summary."}]
        assert "".join(each["delta"] for each in client.all("response.text.delta")) == "A summary."
        assert client.all("response.text.done")[0]["text"] == "A summary."


async def test_one_response_can_have_its_own_format() -> None:
    async with (
        VoiceLiveSimulator(script=answers(Reply((SENTENCE,)))) as sim,
        dial(sim, voicelive_telephone()) as client,
    ):
        await ask(client, output_audio_format="pcm16_16000hz")
        assert len(b"".join(client.deltas())) == 2000 * AudioFormat.PCM_16K.bytes_per_ms


async def test_transcript_of_the_caller_brings_no_usage() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, voicelive_telephone()) as client:
        await client.append(loud(2300) + silence(600))
        completed = await client.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == "(2.3 s of speech)"
        assert "usage" not in completed


async def test_caller_is_not_asked_whether_he_is_there() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, voicelive_telephone()) as client:
        await ask(client)
        assert (await sim.session(0)).idle_in_s is None
        assert "rate_limits.updated" not in client.types()


async def test_pre_generated_message_is_spoken_word_for_word_and_asks_no_model() -> None:
    asked: list[ReplyRequest] = []

    def script(request: ReplyRequest) -> Reply:
        asked.append(request)
        return Reply((SENTENCE,))

    async with VoiceLiveSimulator(script=script) as sim, dial(sim, voicelive_telephone()) as client:
        done = await ask(client, pre_generated_assistant_message=exactly(GREETING))
        assert asked == []
        assert done["output"][0]["content"] == [{"type": "audio", "transcript": GREETING}]
        assert "".join(each["delta"] for each in client.all("response.audio_transcript.delta")) == GREETING
        assert done["usage"]["input_tokens"] == 0
        await ask(client)
        assert [item["content"][0]["transcript"] for item in asked[0].history] == [GREETING]


async def test_pre_generated_message_that_was_recorded_sounds_as_it_reads() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, voicelive_telephone()) as client:
        await ask(client, pre_generated_assistant_message=exactly(Sentence.IDLE.words))
        assert b"".join(client.deltas()) == spoken(Sentence.IDLE).mulaw


async def test_retrieved_item_of_the_agent_has_no_audio() -> None:
    async with VoiceLiveSimulator() as sim, dial(sim, voicelive_telephone()) as client:
        item_id = (await ask(client))["output"][0]["id"]
        await client.send("conversation.item.retrieve", item_id=item_id)
        (part,) = (await client.until("conversation.item.retrieved"))["item"]["content"]
        assert part.keys() == {"type", "transcript"}


async def test_output_of_a_call_is_created_once() -> None:
    script = answers(Reply((FunctionCall("find_slot", call_id="call_9"),)))
    async with VoiceLiveSimulator(script=script) as sim, dial(sim, voicelive_telephone()) as client:
        await ask(client)
        output = {"type": "function_call_output", "call_id": "call_9", "output": "{}"}
        await client.send("conversation.item.create", item=output)
        created = await client.until("conversation.item.created")
        assert created["item"].items() >= output.items()
        assert await client.quiet() == []


@pytest.mark.parametrize("kind", ["azure_semantic_vad", "azure_semantic_vad_en", "semantic_vad"])
async def test_other_kinds_of_turn_detection_find_turns_too(kind: str) -> None:
    session = {**voicelive_telephone(), "turn_detection": {"type": kind}}
    async with VoiceLiveSimulator() as sim, dial(sim, session) as client:
        await client.append(loud(400) + silence(600))
        await client.until("response.done")


async def test_speech_shorter_than_its_least_duration_is_none() -> None:
    async with (
        VoiceLiveSimulator() as sim,
        dial(sim, voicelive_telephone(speech_duration_ms=400)) as client,
    ):
        await client.append(loud(380) + silence(600))
        assert await client.quiet() == []
        await client.append(loud(400))
        await client.until("input_audio_buffer.speech_started")


# Interruptions.


async def test_server_vad_that_does_not_cancel_leaves_it_to_the_client() -> None:
    script = answers(HELD, Reply((Message.lasting("Yes?", 400),)))
    faults = Faults(vad_does_not_cancel=True)
    async with (
        VoiceLiveSimulator(script=script, faults=faults) as sim,
        dial(sim, voicelive_telephone()) as client,
    ):
        await client.send("response.create")
        await client.until("response.audio.delta")
        await client.append(loud(400))
        await client.until("input_audio_buffer.speech_started")
        assert "response.done" not in await client.quiet()
        await client.send("response.cancel")
        done = (await client.until("response.done"))["response"]
        assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        await client.append(silence(600))
        assert (await client.until("response.done"))["response"]["status"] == "completed"


async def test_item_cut_before_its_response_is_cancelled_stays_cut() -> None:
    reply = Reply((SENTENCE,), delta_bytes=(1600,), hold_after_deltas=3, late_deltas=1)
    faults = Faults(vad_does_not_cancel=True)
    async with (
        VoiceLiveSimulator(script=answers(reply), faults=faults) as sim,
        dial(sim, voicelive_telephone(create_response=False)) as client,
    ):
        await client.send("response.create")
        item_id = (await client.until("response.audio.delta"))["item_id"]
        await client.append(loud(400))
        await client.until("input_audio_buffer.speech_started")
        await client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=150)
        await client.send("response.cancel")
        (item,) = (await client.until("response.done"))["response"]["output"]
        session = await sim.session(0)
        assert item["content"] == [{"type": "audio"}]
        assert session.produced_ms(item_id) == 800
        assert session.conversation.last.audio_ms == 150  # type: ignore[union-attr]  # there is one


async def test_azure_semantic_vad_cancels_all_the_same() -> None:
    session = {**voicelive_telephone(), "turn_detection": {"type": "azure_semantic_vad"}}
    faults = Faults(vad_does_not_cancel=True)
    async with VoiceLiveSimulator(script=answers(HELD), faults=faults) as sim, dial(sim, session) as client:
        await client.send("response.create")
        await client.until("response.audio.delta")
        await client.append(loud(400))
        assert (await client.until("response.done"))["response"]["status"] == "cancelled"


async def test_auto_truncate_cuts_what_real_time_playing_has_not_reached() -> None:
    async with (
        VoiceLiveSimulator(script=answers(HELD)) as sim,
        dial(sim, voicelive_telephone(auto_truncate=True)) as client,
    ):
        await client.send("response.create")
        item_id = (await client.until("response.audio.delta"))["item_id"]
        await client.append(loud(400))
        truncated = await client.until("conversation.item.truncated")
        assert [each["type"] for each in client.events][-2:] == ["response.done", "conversation.item.truncated"]
        assert truncated["item_id"] == item_id
        item = (await sim.session(0)).conversation.find(item_id)
        assert item is not None
        assert item.audio_ms == truncated["audio_end_ms"] < 600
        assert "transcript" not in item.wire["content"][0]


async def test_auto_truncate_cuts_an_answer_that_is_done_and_still_playing() -> None:
    script = answers(Reply((SENTENCE, SENTENCE)))
    async with (
        VoiceLiveSimulator(script=script) as sim,
        dial(sim, voicelive_telephone(auto_truncate=True)) as client,
    ):
        first, second = (await ask(client))["output"]
        await client.append(loud(400))
        await client.until("conversation.item.truncated")
        await client.until("conversation.item.truncated")
        cut = {each["item_id"]: each["audio_end_ms"] for each in client.all("conversation.item.truncated")}
        assert cut.keys() == {first["id"], second["id"]}
        assert cut[first["id"]] < 2000
        assert cut[second["id"]] == 0


async def test_auto_truncate_leaves_alone_what_was_played() -> None:
    """A million times as fast: the answer has been played before the caller speaks."""
    script = answers(Reply((SENTENCE,)))
    timing = Timing(clock_rate=1_000_000, session_life_s=1e12)
    async with (
        VoiceLiveSimulator(script=script, timing=timing) as sim,
        dial(sim, voicelive_telephone(auto_truncate=True, create_response=False)) as client,
    ):
        await ask(client)
        await client.append(loud(400))
        await client.until("input_audio_buffer.speech_started")
        assert "conversation.item.truncated" not in await client.quiet()


async def test_without_auto_truncate_the_client_cuts() -> None:
    async with VoiceLiveSimulator(script=answers(HELD)) as sim, dial(sim, voicelive_telephone()) as client:
        await client.send("response.create")
        item_id = (await client.until("response.audio.delta"))["item_id"]
        await client.append(loud(400))
        await client.until("response.done")
        assert "conversation.item.truncated" not in await client.quiet()
        where = {"item_id": item_id, "content_index": 0}
        error = await client.refused("conversation.item.truncate", **where, audio_end_ms=601)
        assert error["message"] == "Audio content of 600ms is already shorter than 601ms"
        await client.send("conversation.item.truncate", **where, audio_end_ms=340)
        assert (await client.until("conversation.item.truncated"))["audio_end_ms"] == 340


async def test_item_that_the_client_cut_or_deleted_is_not_cut_again() -> None:
    script = answers(Reply((SENTENCE, SENTENCE)))
    async with (
        VoiceLiveSimulator(script=script) as sim,
        dial(sim, voicelive_telephone(auto_truncate=True)) as client,
    ):
        first, second = (await ask(client))["output"]
        await client.send("conversation.item.truncate", item_id=first["id"], content_index=0, audio_end_ms=0)
        await client.send("conversation.item.delete", item_id=second["id"])
        await client.until("conversation.item.deleted")
        client.events.clear()
        await client.append(loud(400))
        await client.until("input_audio_buffer.speech_started")
        assert await client.quiet() == []
