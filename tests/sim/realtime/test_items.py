"""The simulated Realtime backend: what a client may put into the conversation, cut, take out and look at."""

from base64 import b64decode, b64encode
from typing import Any

import pytest

from app.sim.realtime.items import AUDIO_KEPT_MS
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import FunctionCall, Message, Reply, ReplyRequest
from app.sim.realtime.server import RealtimeServer
from tests.sim.realtime_client import OPENAI, Backend, Client, answers, both, dial, loud, silence, telephone

pytestmark = pytest.mark.anyio

Json = dict[str, Any]


def user(text: str, **members: Any) -> Json:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **members}


async def create(client: Client, item: Json, **members: Any) -> Json:
    """Creates an item; returns the last event that tells of it."""
    await client.send("conversation.item.create", item=item, **members)
    added = await client.until(client.names.item_added)
    return await client.until(client.names.item_done) if client.names.item_done else added


async def spoken_item(client: Client) -> str:
    """Lets the agent speak; the id of what it said."""
    await client.send("response.create")
    item_id: str = (await client.until("response.done"))["response"]["output"][0]["id"]
    return item_id


def saying(ms: int, backend: Backend = OPENAI) -> RealtimeServer:
    return backend.simulator(script=lambda _: Reply((Message.lasting("We are open until six.", ms),)))


@pytest.mark.parametrize(
    "item",
    [
        user("(caller pressed key 4)"),
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "A known customer."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Until six."}]},
        {"type": "function_call", "name": "find_slot", "call_id": "call_1", "arguments": "{}"},
        {"type": "mcp_approval_response", "id": "mcpr_9", "approval_request_id": "mcpr_1", "approve": True},
    ],
)
async def test_item_is_added_and_done_with_an_id(item: Json) -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        done = await create(client, item)
        assert done["item"]["id"]
        assert done["previous_item_id"] is None
        assert done["item"].items() >= item.items()


async def test_audio_of_the_caller_can_be_created_and_is_not_echoed() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        part = {"type": "input_audio", "audio": b64encode(loud(500)).decode()}
        done = await create(client, {"type": "message", "role": "user", "content": [part]})
        assert done["item"]["content"] == [{"type": "input_audio", "transcript": None}]
        await client.send("conversation.item.retrieve", item_id=done["item"]["id"])
        retrieved = await client.until("conversation.item.retrieved")
        assert b64decode(retrieved["item"]["content"][0]["audio"]) == loud(500)


@both
async def test_seeded_history_comes_before_the_first_response(backend: Backend) -> None:
    asked: list[ReplyRequest] = []

    def script(request: ReplyRequest) -> Reply:
        asked.append(request)
        return Reply((Message.lasting("Yes.", 100),))

    agent_text = "output_text" if backend is OPENAI else "text"
    history = [
        ("user", "input_text", "Are you open?"),
        ("assistant", agent_text, "Until six."),
        ("user", "input_text", "And on"),
    ]
    async with backend.simulator(script=script) as sim, dial(sim, backend.telephone()) as client:
        for role, part, words in history:
            content = [{"type": part, "text": words}]
            await create(client, {"type": "message", "role": role, "content": content})
        await client.send("response.create")
        await client.until("response.done")
        session = await sim.session(0)
        assert session.record.texts() == [(role, words) for role, _, words in history]
        assert [item["content"][0]["text"] for item in asked[0].history] == [words for *_, words in history]
        assert [item.role for item in session.conversation] == ["user", "assistant", "user", "assistant"]
        assert session.record.errors() == []


@both
async def test_output_of_a_known_call_is_accepted(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim) as client:
        await create(client, {"type": "function_call", "name": "f", "call_id": "call_1", "arguments": "{}"})
        await create(client, {"type": "function_call_output", "call_id": "call_1", "output": ""})


@both
@pytest.mark.parametrize(
    ("members", "order"),
    [
        ({}, ["a", "b", "new"]),
        ({"previous_item_id": "root"}, ["new", "a", "b"]),
        ({"previous_item_id": "a"}, ["a", "new", "b"]),
    ],
)
async def test_item_goes_where_it_is_told(backend: Backend, members: Json, order: list[str]) -> None:
    async with backend.simulator() as sim, dial(sim) as client:
        await create(client, user("first", id="a"))
        await create(client, user("second", id="b"))
        done = await create(client, user("third", id="new"), **members)
        session = await sim.session(0)
        assert [item.id for item in session.conversation] == order
        assert done["previous_item_id"] == [None, *order][order.index("new")]


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        (
            {"type": "message", "role": "user", "content": [{"type": "text", "text": "beta"}]},
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {"type": "message", "role": "assistant", "content": [{"type": "input_text", "text": "no"}]},
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "audio": ""}]},
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {"type": "message", "role": "system", "content": [{"type": "input_audio", "audio": ""}]},
            "invalid_value",
            "item.content[0].type",
        ),
        ({"type": "message", "role": "tool", "content": []}, "invalid_value", "item.role"),
        ({"type": "message", "role": "user"}, "missing_required_parameter", "item.content"),
        ({"type": "item_reference", "id": "x"}, "invalid_value", "item.type"),
        ({"type": "function_call_output", "call_id": "c"}, "missing_required_parameter", "item.output"),
        (
            {"type": "function_call_output", "call_id": "c", "output": {"a": 1}},
            "invalid_type",
            "item.output",
        ),
        (
            {"type": "function_call_output", "call_id": "c", "output": ""},
            "invalid_tool_call_id",
            "item.call_id",
        ),
        (
            {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "%"}]},
            "invalid_value",
            "item.content",
        ),
    ],
)
async def test_wrong_item_is_refused(item: Json, code: str, param: str) -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        error = await client.refused("conversation.item.create", item=item)
        assert (error["code"], error["param"]) == (code, param)


async def test_item_after_an_unknown_one_is_refused() -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        error = await client.refused("conversation.item.create", item=user("x"), previous_item_id="item_gone")
        assert error["param"] == "previous_item_id"


@both
async def test_item_with_the_id_of_another_is_refused(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim) as client:
        await create(client, user("first", id="a"))
        error = await client.refused("conversation.item.create", item=user("again", id="a"))
        assert error["param"] == "item.id"


async def test_truncation_cuts_the_audio_and_deletes_the_transcript() -> None:
    async with saying(2000) as sim, dial(sim, telephone()) as client:
        item_id = await spoken_item(client)
        await client.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=1340)
        truncated = await client.until("conversation.item.truncated")
        assert (truncated["item_id"], truncated["audio_end_ms"]) == (item_id, 1340)
        await client.send("conversation.item.retrieve", item_id=item_id)
        (part,) = (await client.until("conversation.item.retrieved"))["item"]["content"]
        assert "transcript" not in part
        assert len(b64decode(part["audio"])) == 1340 * 8


@both
@pytest.mark.parametrize("audio_end_ms", [0, 2000])
async def test_truncation_takes_both_ends_of_the_audio(backend: Backend, audio_end_ms: int) -> None:
    async with saying(2000, backend) as sim, dial(sim, backend.telephone()) as client:
        item_id = await spoken_item(client)
        await client.send(
            "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=audio_end_ms
        )
        assert (await client.until("conversation.item.truncated"))["audio_end_ms"] == audio_end_ms


async def test_truncation_behind_the_end_is_refused_in_the_words_of_the_service() -> None:
    async with saying(9250) as sim, dial(sim, telephone()) as client:
        item_id = await spoken_item(client)
        error = await client.refused(
            "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=57340
        )
        assert error["code"] == "invalid_value"
        assert error["message"] == "Audio content of 9250ms is already shorter than 57340ms"


@both
async def test_second_truncation_cannot_take_back_the_first(backend: Backend) -> None:
    async with saying(2000, backend) as sim, dial(sim, backend.telephone()) as client:
        where = {"item_id": await spoken_item(client), "content_index": 0}
        await client.send("conversation.item.truncate", **where, audio_end_ms=500)
        await client.until("conversation.item.truncated")
        error = await client.refused("conversation.item.truncate", **where, audio_end_ms=501)
        assert error["message"] == "Audio content of 500ms is already shorter than 501ms"


@both
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"audio_end_ms": 12.5}, "invalid_type"),
        ({"audio_end_ms": -1}, "integer_below_min_value"),
        ({"content_index": 1}, "invalid_value"),
        ({"item_id": "item_gone"}, "item_truncate_invalid_item_id"),
    ],
)
async def test_malformed_truncation_is_refused(backend: Backend, change: Json, code: str) -> None:
    async with saying(2000, backend) as sim, dial(sim, backend.telephone()) as client:
        event = {"item_id": await spoken_item(client), "content_index": 0, "audio_end_ms": 100, **change}
        assert (await client.refused("conversation.item.truncate", **event))["code"] == code


@both
async def test_words_of_the_caller_cannot_be_truncated(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim, backend.telephone(create_response=False)) as client:
        await client.append(loud(400) + silence(600))
        item_id = (await client.until("input_audio_buffer.committed"))["item_id"]
        error = await client.refused(
            "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=0
        )
        assert error["message"] == "Only model output audio messages can be truncated"


@both
async def test_item_without_audio_yet_cannot_be_truncated_even_at_zero(backend: Backend) -> None:
    """Seen on the service: livekit/agents#6249."""
    script = answers(Reply((FunctionCall("find_slot"), Message.lasting("One moment.", 300)), hold_after_deltas=1))
    async with backend.simulator(script=script) as sim, dial(sim, backend.telephone()) as client:
        await client.send("response.create")
        item_id = (await client.until("response.function_call_arguments.delta"))["item_id"]
        error = await client.refused(
            "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=0
        )
        assert error["message"] == "Only model output audio messages can be truncated"


@both
async def test_deleted_item_is_gone(backend: Backend) -> None:
    async with backend.simulator() as sim, dial(sim) as client:
        await create(client, user("first", id="a"))
        await client.send("conversation.item.delete", item_id="a")
        assert (await client.until("conversation.item.deleted"))["item_id"] == "a"
        assert (await client.refused("conversation.item.delete", item_id="a"))["param"] == "item_id"
        assert (await client.refused("conversation.item.retrieve", item_id="a"))["param"] == "item_id"


async def test_old_audio_is_forgotten_and_the_newest_kept() -> None:
    async with saying(AUDIO_KEPT_MS) as sim, dial(sim, telephone()) as client:
        old, new = await spoken_item(client), await spoken_item(client)
        await create(client, user("so that both are past", id="a"))
        session = await sim.session(0)
        kept = {item.id: len(item.mulaw) for item in session.conversation}
        assert (kept[old], kept[new]) == (0, AUDIO_KEPT_MS * 8)
        assert session.conversation.find(old).audio_ms == AUDIO_KEPT_MS  # type: ignore[union-attr]  # it is there
