"""The simulated Realtime backend misbehaving: each fault as its client sees it."""

import time
from typing import Any, Literal

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.sim.realtime.faults import NO_FAULTS, Faults, Timing
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import FunctionCall, Message, Reply
from tests.openai_types import check_server_event
from tests.sim.realtime_client import (
    PCM,
    PCMU,
    Backend,
    answers,
    both,
    dial,
    loud,
    open_socket,
    silence,
    telephone,
)

pytestmark = pytest.mark.anyio

LONG = Reply((Message.lasting("A long answer that goes on for a while.", 4000),), delta_bytes=(1600,))


async def test_upgrade_is_refused_until_the_fault_is_lifted() -> None:
    async with RealtimeSimulator(faults=Faults(refuse_upgrade=503)) as sim:
        with pytest.raises(InvalidStatus) as refused:
            await open_socket(sim)
        assert refused.value.response.status_code == 503
        sim.faults = NO_FAULTS
        async with dial(sim):
            assert [upgrade.status for upgrade in sim.upgrades] == [503, 101]


async def test_session_that_never_greets_still_answers() -> None:
    async with RealtimeSimulator(faults=Faults(never_greet=True)) as sim, dial(sim, greeted=False) as client:
        await client.send("session.update", session=telephone())
        assert (await client.next())["type"] == "session.updated"


async def test_wrong_format_is_echoed_and_used() -> None:
    async with RealtimeSimulator(faults=Faults(echo_format="audio/pcm")) as sim, dial(sim) as client:
        audio = (await client.configure(telephone()))["session"]["audio"]
        assert audio["input"]["format"] == audio["output"]["format"] == PCM
        await client.append(silence(6000))
        await client.quiet()
        assert (await sim.session(0)).input_bytes == 48_000
        await client.send("response.create")
        assert (await client.until("response.done"))["response"]["audio"]["output"]["format"] == PCM


@both
@pytest.mark.parametrize(
    ("end", "code"), [("abort", 1006), ("internal_error", 1011), ("clean", 1000), ("expire", 1001)]
)
async def test_connection_ends_at_the_chosen_delta(
    backend: Backend, end: Literal["abort", "internal_error", "clean", "expire"], code: int
) -> None:
    faults = Faults(end=end, end_after=backend.names.audio_delta, end_after_count=3)
    async with (
        backend.simulator(script=answers(LONG), faults=faults) as sim,
        dial(sim, backend.telephone()) as client,
    ):
        await client.send("response.create")
        assert (await client.closed())[0] == code
        assert len(client.all(backend.names.audio_delta)) == 3
        assert client.all("response.done") == []


@both
@pytest.mark.parametrize("end", ["abort", "reset"])
@pytest.mark.parametrize(
    ("end_before", "kind", "members"),
    [
        ("session.update", "session.update", {}),
        ("response.create", "response.create", {}),
        (
            "function_call_output",
            "conversation.item.create",
            {"item": {"type": "function_call_output", "call_id": "call_1", "output": "{}"}},
        ),
    ],
)
async def test_connection_ends_before_the_chosen_event_is_acted_on(
    backend: Backend, end: Literal["abort", "reset"], end_before: str, kind: str, members: dict[str, Any]
) -> None:
    faults = Faults(end=end, end_before=end_before)
    if kind == "session.update":
        members = {"session": backend.telephone()}
    script = answers(Reply((FunctionCall("find_slot", call_id="call_1"),)))
    async with backend.simulator(script=script, faults=faults) as sim, dial(sim) as client:
        if end_before == "function_call_output":
            await client.send("response.create")
            await client.until("response.done")
            await client.quiet()
        answered = len(client.events)
        await client.send(kind, **members)
        assert (await client.closed())[0] == 1006
        assert len(client.events) == answered
        assert (await sim.session(0)).events(kind)[-1]["type"] == kind


@both
async def test_end_before_counts_the_events_of_its_type(backend: Backend) -> None:
    faults = Faults(end="abort", end_before="input_audio_buffer.append", end_before_count=3)
    async with backend.simulator(faults=faults) as sim, dial(sim, backend.telephone()) as client:
        for _ in range(3):
            await client.append(silence(20))
        assert (await client.closed())[0] == 1006
        assert (await sim.session(0)).input_bytes == 2 * 160


async def test_reset_is_a_tcp_reset() -> None:
    async with RealtimeSimulator(faults=Faults(end="reset")) as sim, dial(sim) as client:
        with pytest.raises(ConnectionClosed) as lost:
            await client.next()
        assert isinstance(lost.value.__cause__, ConnectionResetError)


@both
async def test_connection_ends_while_the_caller_speaks(backend: Backend) -> None:
    faults = Faults(end="reset", end_after="input_audio_buffer.speech_started")
    async with backend.simulator(faults=faults) as sim, dial(sim, backend.telephone()) as client:
        await client.append(loud(400))
        assert (await client.closed())[0] == 1006
        assert client.types() == ["input_audio_buffer.speech_started"]


@both
async def test_session_created_says_when_the_session_expires(backend: Backend) -> None:
    async with backend.simulator(timing=Timing(session_life_s=120)) as sim, dial(sim) as client:
        expires_in_s = client.events[0]["session"]["expires_at"] - time.time()
        assert 100 < expires_in_s <= 121


@both
async def test_stalled_connection_answers_neither_events_nor_pings(backend: Backend) -> None:
    faults = Faults(end="stall", end_after="session.updated")
    async with backend.simulator(faults=faults) as sim, dial(sim, backend.telephone()) as client:
        pong = await client.websocket.ping()
        await client.send("response.create")
        async with dial(sim) as other:
            # One loop serves both: when this came back, the stalled one has had its chance to answer.
            await other.quiet()
        session = await sim.session(0)
        assert not pong.done()  # type: ignore[attr-defined]  # it is a future
        assert session.events("response.create") == []
        assert session.close_code is None
        session.abort()
        with pytest.raises(ConnectionClosed):
            await pong


@both
async def test_error_event_comes_after_the_chosen_event(backend: Backend) -> None:
    faults = Faults(error_code="insufficient_quota", error_after="response.created")
    async with backend.simulator(faults=faults) as sim, dial(sim, backend.telephone()) as client:
        await client.send("response.create")
        await client.until("response.done")
        assert client.types()[:2] == ["response.created", "error"]
        (error,) = client.all("error")
        assert (error["error"]["type"], error["error"]["code"]) == ("insufficient_quota", "insufficient_quota")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("server_error", "server_error"),
        ("rate_limit_exceeded", "rate_limit_exceeded"),
        ("invalid_api_key", "invalid_request_error"),
        ("model_not_found", "invalid_request_error"),
    ],
)
async def test_error_codes_come_with_their_kind(code: str, kind: str) -> None:
    faults = Faults(error_code=code, error_after="session.created")
    async with RealtimeSimulator(faults=faults) as sim, dial(sim) as client:
        assert (await client.until("error"))["error"]["type"] == kind


@both
async def test_unknown_event_types_come_now_and_then(backend: Backend) -> None:
    faults = Faults(unknown_event_every=3)
    async with backend.simulator(faults=faults) as sim, dial(sim, backend.telephone(), check=False) as client:
        await client.send("response.create")
        await client.until("response.done")
        strange = [each for each in client.events if each["type"] == "response.output_hologram.delta"]
        assert len(strange) == (len(client.events) + 1) // 4
        with pytest.raises(AssertionError, match="no such event"):
            backend.check_server_event(strange[0])


async def test_unknown_members_are_in_every_event_and_inside() -> None:
    async with RealtimeSimulator(faults=Faults(extra_fields=True)) as sim, dial(sim, check=False) as client:
        session = (await client.configure(telephone()))["session"]
        assert session["audio"]["input"]["format"] == {**PCMU, "x_new_field": 1}
        assert all("x_new_field" in event for event in client.events)
        with pytest.raises(AssertionError, match="unknown member"):
            check_server_event(client.events[-1])


async def test_session_expires_with_an_error_and_close_1001() -> None:
    timing = Timing(session_life_s=3600, clock_rate=100_000)
    async with RealtimeSimulator(timing=timing) as sim, dial(sim) as client:
        closed = await client.closed()
        (error,) = client.all("error")
        assert error["error"]["code"] == "session_expired"
        assert error["error"]["message"] == "Your session hit the maximum duration of 60 minutes."
        assert closed == (1001, "Your session hit the maximum duration of 60 minutes.")
        await (await sim.session(0)).wait_for(lambda session: session.close_code == 1001)


async def test_test_ends_a_session_by_hand() -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        (await sim.session(0)).expire()
        assert (await client.closed())[0] == 1001


async def test_test_aborts_a_session_by_hand_in_the_middle_of_an_answer() -> None:
    held = Reply(LONG.output, hold_after_deltas=1)
    async with RealtimeSimulator(script=answers(held)) as sim, dial(sim, telephone()) as client:
        await client.send("response.create")
        await client.until("response.output_audio.delta")
        (await sim.session(0)).abort()
        assert (await client.closed())[0] == 1006


async def test_test_closes_a_session_with_a_code_of_its_own() -> None:
    async with RealtimeSimulator() as sim, dial(sim) as client:
        (await sim.session(0)).close(1012, "service restart")
        assert await client.closed() == (1012, "service restart")


async def test_test_sends_an_event_of_its_own() -> None:
    async with RealtimeSimulator() as sim, dial(sim, check=False) as client:
        (await sim.session(0)).send({"type": "anything", "at": "all"})
        assert await client.next() == {"type": "anything", "at": "all"}


async def test_session_that_was_ended_says_nothing_more() -> None:
    async with RealtimeSimulator() as sim, dial(sim, telephone()) as client:
        session = await sim.session(0)
        session.close(1000)
        session.send({"type": "too late"})
        session.abort()
        with pytest.raises(ConnectionClosed):
            await client.next()


async def test_next_session_of_a_lost_one_has_ids_of_its_own() -> None:
    async with RealtimeSimulator() as sim:
        async with dial(sim) as first:
            first_id = first.events[0]["session"]["id"]
        async with dial(sim) as second:
            assert second.events[0]["session"]["id"] != first_id
