"""The simulated Realtime backend: what a scripted reply looks like on the wire, whole, cut short and failed."""

from dataclasses import replace
from typing import Any

import pytest

from app.sim.realtime.faults import LIKE_THE_SERVICE, Timing
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import ONE_HUGE_DELTA, FunctionCall, Message, Reply, ReplyError, ReplyRequest
from app.sim.realtime.response import Response
from tests.sim.realtime_client import Backend, Client, answers, both, dial, loud, silence, telephone

pytestmark = pytest.mark.anyio

Json = dict[str, Any]

SENTENCE = Message.lasting("On Tuesday we have three appointments left.", 2000)
HELD = Reply((SENTENCE,), delta_bytes=(1600,), hold_after_deltas=3)  # 600 ms out, the rest held back


async def ask(client: Client, **response: Any) -> Json:
    """Asks for a response and returns it as it was when done."""
    await client.send("response.create", response=response)
    done: Json = (await client.until("response.done"))["response"]
    return done


async def test_deltas_are_uneven_and_lose_nothing() -> None:
    async with RealtimeSimulator(script=answers(Reply((SENTENCE,)))) as sim, dial(sim, telephone()) as client:
        await ask(client)
        pieces = client.deltas()
        assert b"".join(pieces) == SENTENCE.mulaw
        assert any(len(piece) % 160 for piece in pieces)
        assert len({len(piece) for piece in pieces}) > 2


async def test_reply_can_come_in_one_huge_delta() -> None:
    reply = Reply((SENTENCE,), delta_bytes=ONE_HUGE_DELTA)
    async with RealtimeSimulator(script=answers(reply)) as sim, dial(sim, telephone()) as client:
        await ask(client)
        assert client.deltas() == [SENTENCE.mulaw]


async def test_transcript_runs_ahead_of_the_audio() -> None:
    reply = Reply((SENTENCE,), delta_bytes=(1600,))
    async with RealtimeSimulator(script=answers(reply)) as sim, dial(sim, telephone()) as client:
        await ask(client)
        kinds = [each["type"] for each in client.events]
        last_word = len(kinds) - kinds[::-1].index("response.output_audio_transcript.delta")
        assert kinds[last_word:].count("response.output_audio.delta") > 3
        words = "".join(each["delta"] for each in client.all("response.output_audio_transcript.delta"))
        assert words == SENTENCE.transcript


@both
async def test_second_response_is_refused_while_one_is_active(backend: Backend) -> None:
    async with backend.simulator(script=answers(HELD)) as sim, dial(sim, backend.telephone()) as client:
        await client.send("response.create")
        active = (await client.until("response.created"))["response"]["id"]
        error = await client.refused("response.create")
        assert error["code"] == "conversation_already_has_active_response"
        assert error["message"] == (
            f"Conversation already has an active response in progress: {active}. "
            "Wait until the response is finished before creating a new one."
        )


@both
@pytest.mark.parametrize("members", [{}, {"response_id": "resp_gone"}])
async def test_cancel_of_nothing_is_refused(backend: Backend, members: Json) -> None:
    async with backend.simulator() as sim, dial(sim, backend.telephone()) as client:
        error = await client.refused("response.cancel", **members)
        assert error["code"] == "response_cancel_not_active"
        assert error["message"] == "Cancellation failed: no active response found"


async def test_client_cancels_and_every_done_event_still_comes() -> None:
    async with RealtimeSimulator(script=answers(HELD)) as sim, dial(sim, telephone()) as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        await client.send("response.cancel")
        done = (await client.until("response.done"))["response"]
        assert client.types()[-6:] == [
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ]
        assert done["status"] == "cancelled"
        assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        (item,) = done["output"]
        assert item["status"] == "incomplete"
        said = item["content"][0]["transcript"]
        assert said
        assert said != SENTENCE.transcript
        assert SENTENCE.transcript.startswith(said)


@both
async def test_speech_cancels_the_response_and_is_answered_itself(backend: Backend) -> None:
    script = answers(HELD, Reply((Message.lasting("Yes?", 400),)))
    async with backend.simulator(script=script) as sim, dial(sim, backend.telephone()) as client:
        await client.send("response.create")
        await client.until(backend.names.audio_delta)
        await client.append(loud(400))
        await client.until("input_audio_buffer.speech_started")
        done = (await client.until("response.done"))["response"]
        assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        await client.append(silence(600))
        assert (await client.until("response.done"))["response"]["status"] == "completed"


@both
@pytest.mark.parametrize("late", [0, 1, 2])
async def test_late_deltas_follow_the_interruption(backend: Backend, late: int) -> None:
    reply = Reply((SENTENCE,), delta_bytes=(1600,), hold_after_deltas=3, late_deltas=late)
    async with backend.simulator(script=answers(reply)) as sim, dial(sim, backend.telephone()) as client:
        await client.send("response.create")
        await client.append(loud(400))
        await client.until("input_audio_buffer.speech_started")
        before = len(client.all(backend.names.audio_delta))
        await client.until("response.done")
        assert len(client.all(backend.names.audio_delta)) - before == late


@both
async def test_truncation_knows_what_was_produced_late_deltas_included(backend: Backend) -> None:
    reply = Reply((SENTENCE,), delta_bytes=(1600,), hold_after_deltas=3, late_deltas=1)
    async with backend.simulator(script=answers(reply)) as sim, dial(sim, backend.telephone()) as client:
        await client.send("response.create")
        item_id = (await client.until(backend.names.audio_delta))["item_id"]
        await client.append(loud(400))
        await client.until("response.done")
        where = {"item_id": item_id, "content_index": 0}
        error = await client.refused("conversation.item.truncate", **where, audio_end_ms=801)
        assert error["code"] == "invalid_value"
        assert error["message"] == "Audio content of 800ms is already shorter than 801ms"
        await client.send("conversation.item.truncate", **where, audio_end_ms=800)
        assert (await client.until("conversation.item.truncated"))["audio_end_ms"] == 800
        assert (await sim.session(0)).produced_ms(item_id) == 800


@both
async def test_response_cancelled_before_its_first_delta_has_no_output(backend: Backend) -> None:
    reply = Reply((SENTENCE,), first_delta_ms=60_000)
    async with backend.simulator(script=answers(reply)) as sim, dial(sim, backend.telephone()) as client:
        await client.send("response.create")
        await client.until("response.created")
        await client.send("response.cancel")
        done = (await client.until("response.done"))["response"]
        assert (done["status"], done["output"]) == ("cancelled", [])


async def test_paced_reply_waits_for_its_start_and_between_its_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delays that are asked for, without waiting for them; on this clock no time passes in between."""
    waits: list[float] = []

    async def note(response: Response, delay_ms: float) -> None:
        waits.append(delay_ms)

    monkeypatch.setattr(Response, "wait_ms", note)
    reply = Reply((Message.lasting("Soon.", 800),), delta_bytes=(1600,), first_delta_ms=1000, speed=10)
    frozen = Timing(clock_rate=1e-9)
    async with RealtimeSimulator(script=answers(reply), timing=frozen) as sim, dial(sim, telephone()) as client:
        await ask(client)
        assert waits == pytest.approx([1000, 20, 40, 60, 80], abs=1e-3)


async def test_lifelike_timing_is_used_when_a_reply_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def note(response: Response, delay_ms: float) -> None:
        waits.append(delay_ms)

    monkeypatch.setattr(Response, "wait_ms", note)
    frozen = replace(LIKE_THE_SERVICE, clock_rate=1e-9)
    reply = Reply((Message.lasting("Soon.", 400),), delta_bytes=(1600,))
    async with RealtimeSimulator(script=answers(reply), timing=frozen) as sim, dial(sim, telephone()) as client:
        await ask(client)
        assert waits == pytest.approx([250, 40, 80], abs=1e-3)


@both
async def test_two_messages_in_one_response_are_two_conversation_items(backend: Backend) -> None:
    preamble, answer = Message.lasting("One moment.", 300), Message.lasting("It is at ten.", 500)
    reply = Reply((preamble, answer))
    async with backend.simulator(script=answers(reply)) as sim, dial(sim, backend.telephone()) as client:
        done = await ask(client)
        first, second = done["output"]
        assert [each["output_index"] for each in client.all("response.output_item.added")] == [0, 1]
        assert [each["previous_item_id"] for each in client.all(backend.names.item_added)] == [None, first["id"]]
        assert second["content"][0]["transcript"] == "It is at ten."
        assert b"".join(client.deltas()) == preamble.mulaw + answer.mulaw


async def test_cancel_in_the_first_item_leaves_the_second_unborn() -> None:
    reply = Reply((SENTENCE, SENTENCE), hold_after_deltas=1)
    async with RealtimeSimulator(script=answers(reply)) as sim, dial(sim, telephone()) as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        await client.send("response.cancel")
        done = (await client.until("response.done"))["response"]
        assert [item["status"] for item in done["output"]] == ["incomplete"]


@both
async def test_function_calls_come_with_speech_and_take_their_outputs(backend: Backend) -> None:
    calls = (FunctionCall("find_slot", '{"day":"tuesday"}'), FunctionCall("hang_up", "{}", call_id="call_9"))
    script = answers(Reply((Message.lasting("Let me look.", 300), *calls)), Reply())
    async with backend.simulator(script=script) as sim, dial(sim, backend.telephone()) as client:
        done = await ask(client)
        assert [item["type"] for item in done["output"]] == ["message", "function_call", "function_call"]
        first, second = client.all("response.function_call_arguments.done")
        assert (first["name"], first["arguments"]) == ("find_slot", '{"day":"tuesday"}')
        assert second["call_id"] == "call_9"
        pieces = [
            each["delta"]
            for each in client.all("response.function_call_arguments.delta")
            if each["call_id"] == first["call_id"]
        ]
        assert "".join(pieces) == first["arguments"]
        assert len(pieces) > 1
        output = {"type": "function_call_output", "call_id": first["call_id"], "output": '{"slot":"10:30"}'}
        await client.send("conversation.item.create", item=output)
        added = await client.until(backend.names.item_added)
        assert added["previous_item_id"] == done["output"][2]["id"]


@both
async def test_cancelled_function_call_has_partial_arguments(backend: Backend) -> None:
    reply = Reply((FunctionCall("find_slot", '{"day":"tuesday"}'),), hold_after_deltas=1)
    async with backend.simulator(script=answers(reply)) as sim, dial(sim, backend.telephone()) as client:
        await client.send("response.create")
        await client.until("response.function_call_arguments.delta")
        await client.send("response.cancel")
        (item,) = (await client.until("response.done"))["response"]["output"]
        assert (item["status"], item["arguments"]) == ("incomplete", '{"day":"')


@both
async def test_failed_response_brings_no_error_event(backend: Backend) -> None:
    error = ReplyError("rate_limit_exceeded", "rate_limit_exceeded", "Rate limit reached.")
    reply = Reply(status="failed", error=error)
    async with backend.simulator(script=answers(reply)) as sim, dial(sim, backend.telephone()) as client:
        done = await ask(client)
        assert (done["status"], done["usage"], done["output"]) == ("failed", None, [])
        assert done["status_details"]["error"]["code"] == "rate_limit_exceeded"
        assert client.all("error") == []


@both
async def test_failed_response_may_say_no_reason(backend: Backend) -> None:
    async with (
        backend.simulator(script=answers(Reply(status="failed"))) as sim,
        dial(sim, backend.telephone()) as client,
    ):
        assert (await ask(client))["status_details"] == {"type": "failed"}


@both
async def test_incomplete_response_leaves_its_last_item_incomplete(backend: Backend) -> None:
    reply = Reply((SENTENCE,), status="incomplete", incomplete_reason="content_filter")
    async with backend.simulator(script=answers(reply)) as sim, dial(sim, backend.telephone()) as client:
        done = await ask(client)
        assert done["status_details"] == {"type": "incomplete", "reason": "content_filter"}
        assert done["output"][0]["status"] == "incomplete"


async def test_response_over_its_token_limit_is_cut_off() -> None:
    reply = Reply((Message.lasting("Hm.", 10_000),), delta_bytes=(1600,))
    async with RealtimeSimulator(script=answers(reply)) as sim, dial(sim, telephone()) as client:
        done = await ask(client, max_output_tokens=20)
        assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
        assert sum(len(piece) for piece in client.deltas()) == 1000 * 8


async def test_response_outside_the_conversation_adds_nothing_to_it() -> None:
    script = answers(HELD, Reply((Message("A summary."),)))
    async with RealtimeSimulator(script=script) as sim, dial(sim, telephone()) as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        client.events.clear()
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Transcript: ..."}]}
        done = await ask(
            client, conversation="none", output_modalities=["text"], metadata={"purpose": "summary"}, input=[item]
        )
        assert done["conversation_id"] is None
        assert done["output"][0]["content"] == [{"type": "output_text", "text": "A summary."}]
        assert client.all("conversation.item.added") == []
        assert "".join(each["delta"] for each in client.all("response.output_text.delta")) == "A summary."
        await client.send("response.cancel")
        assert (await client.until("response.done"))["response"]["metadata"] is None


@both
async def test_response_beside_the_conversation_can_be_cancelled_by_its_id(backend: Backend) -> None:
    async with backend.simulator(script=answers(HELD)) as sim, dial(sim, backend.telephone()) as client:
        await client.send("response.create", response={"conversation": "none"})
        response_id = (await client.until("response.created"))["response"]["id"]
        await client.send("response.cancel", response_id=response_id)
        assert (await client.until("response.done"))["response"]["id"] == response_id


async def test_speech_leaves_a_response_beside_the_conversation_alone() -> None:
    async with (
        RealtimeSimulator(script=answers(HELD)) as sim,
        dial(sim, telephone(create_response=False)) as client,
    ):
        await client.send("response.create", response={"conversation": "none"})
        await client.append(loud(400) + silence(600))
        await client.until("input_audio_buffer.committed")
        (await sim.session(0)).release()
        assert (await client.until("response.done"))["response"]["status"] == "completed"


async def test_input_of_a_response_may_refer_to_an_item() -> None:
    """The SDK's type rejects the reference, the service is documented to take it (realtime.md 1.6)."""
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        reference = {"type": "item_reference", "id": "item_x"}
        await client.send_raw({"type": "response.create", "response": {"input": [reference]}})
        assert (await client.until("response.done"))["response"]["status"] == "completed"


async def test_usage_counts_caller_and_agent_audio() -> None:
    session = {**telephone(), "instructions": "x" * 400}
    script = answers(Reply((Message.lasting("y" * 40, 2000),)))
    async with RealtimeSimulator(script=script) as sim, dial(sim, session) as client:
        await client.append(loud(2500) + silence(500))
        usage = (await client.until("response.done"))["response"]["usage"]
        assert usage == {
            "total_tokens": 100 + 30 + 10 + 40,
            "input_tokens": 100 + 30,
            "output_tokens": 10 + 40,
            "input_token_details": {
                "text_tokens": 100,
                "audio_tokens": 30,  # one for 100 ms
                "image_tokens": 0,
                "cached_tokens": 0,
                "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": 10, "audio_tokens": 40},  # one for 50 ms
        }


async def test_next_response_bills_the_whole_conversation_again_partly_cached() -> None:
    session = {**telephone(), "instructions": "x" * 400}
    message = Message.lasting("y" * 40, 2000)
    async with (
        RealtimeSimulator(script=answers(Reply((message,)), Reply((message,)))) as sim,
        dial(sim, session) as client,
    ):
        await ask(client)
        usage = (await ask(client))["usage"]
        assert usage["input_token_details"]["text_tokens"] == 100 + 10
        assert usage["input_token_details"]["audio_tokens"] == 40
        assert usage["input_token_details"]["cached_tokens_details"]["text_tokens"] == 64


async def test_rate_limits_are_told_at_the_start_and_at_the_end() -> None:
    async with RealtimeSimulator(script=answers(Reply((SENTENCE,)))) as sim, dial(sim, telephone()) as client:
        await ask(client)
        await client.until("rate_limits.updated")
        start, end = (each["rate_limits"] for each in client.all("rate_limits.updated"))
        assert (start[0]["remaining"], end[0]["remaining"]) == (4999, 5000)
        assert start[1]["remaining"] < end[1]["remaining"]


async def test_script_sees_what_was_asked_and_said() -> None:
    seen: list[ReplyRequest] = []

    def script(request: ReplyRequest) -> Reply:
        seen.append(request)
        return Reply((Message.lasting("Yes.", 100),))

    tool = {"type": "function", "name": "find_slot", "parameters": {"type": "object"}}
    async with RealtimeSimulator(script=script) as sim, dial(sim, {**telephone(), "tools": [tool]}) as client:
        await ask(client, instructions="Greet.", metadata={"purpose": "greeting"})
        await client.append(loud(400) + silence(600))
        await client.until("response.done")
        first, second = seen
        assert (first.number, first.cause, first.purpose, first.instructions) == (
            1,
            "client",
            "greeting",
            "Greet.",
        )
        assert first.tools == ("find_slot",)
        assert (second.number, second.cause, second.caller_words) == (2, "turn", "(0.4 s of speech)")
        assert [item["role"] for item in second.history] == ["assistant", "user"]


async def test_voice_of_one_response_cannot_change_after_the_first_audio() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        await ask(client)
        other = {"audio": {"output": {"voice": "cedar"}}}
        assert (await client.refused("response.create", response=other))["code"] == "cannot_update_voice"


async def test_one_response_can_have_its_own_format() -> None:
    async with RealtimeSimulator(script=answers(Reply((SENTENCE,)))) as sim, dial(sim, telephone()) as client:
        await ask(client, audio={"output": {"format": {"type": "audio/pcm", "rate": 24000}}})
        assert sum(len(piece) for piece in client.deltas()) == len(SENTENCE.mulaw) * 6


async def test_empty_delta_size_is_a_mistake_of_the_test() -> None:
    with pytest.raises(ValueError, match="delta sizes"):
        Reply((SENTENCE,), delta_bytes=(0,))
