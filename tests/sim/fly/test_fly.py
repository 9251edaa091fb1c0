"""The edge in front of real servers: where requests go, what they carry, and what becomes of them."""

import asyncio
import contextlib

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from app.sim.fly.log import Decision
from tests.sim.fly_machine import Cluster, Starting

pytestmark = pytest.mark.anyio


def decisions(cluster: Cluster) -> list[tuple[Decision, str | None]]:
    return [(hop.decision, hop.machine_id) for hop in cluster.fly.traces[-1].hops]


# Where a request goes


async def test_anycast_enters_at_the_nearest_edge_and_the_nearest_machine_serves() -> None:
    async with Starting(["nrt1", "iad1", "fra1"], edges=["nrt", "iad", "lhr", "fra"]) as cluster:
        assert [await cluster.served_by(each) for each in ("tokyo", "syd", "iad", "berlin")] == [
            *("nrt1", "nrt1", "iad1", "fra1")
        ]
        lhr = await cluster.request("lhr")
    assert (lhr.json()["machine"], lhr.json()["headers"]["fly-region"]) == ("fra1", "lhr")


@pytest.mark.parametrize("health", [503, 302])
async def test_unhealthy_machine_is_left_out_until_it_is_well_again(health: int) -> None:
    async with Starting(["nrt1", "iad1"]) as cluster:
        cluster["nrt1"].health = health
        await cluster.fly.until(lambda: not cluster.fly.machine("nrt1").checks_ok)
        diverted = await cluster.served_by("tokyo")
        cluster["nrt1"].health = 200
        await cluster.fly.ready()
        back = await cluster.served_by("tokyo")
    assert (diverted, back) == ("iad1", "nrt1")


async def test_health_can_be_set_against_what_the_machine_says() -> None:
    async with Starting(["nrt1", "iad1"]) as cluster:
        cluster.fly.set_health("nrt1", ok=False)
        await cluster.fly.until(lambda: not cluster.fly.machine("nrt1").checks_ok)
        diverted = await cluster.served_by("tokyo")
        cluster.fly.set_health("nrt1", ok=None)
        await cluster.fly.ready()
        back = await cluster.served_by("tokyo")
    assert (diverted, back) == ("iad1", "nrt1")


async def test_cordoned_machine_gets_nothing_new_and_keeps_its_tunnels() -> None:
    async with Starting(["nrt1", "iad1"]) as cluster, cluster.socket("tokyo") as ws:
        assert await ws.recv() == "nrt1"
        cluster.fly.cordon("nrt1")
        diverted = await cluster.served_by("tokyo")
        await ws.send("still here")
        assert await ws.recv() == "nrt1 heard still here"
        cluster.fly.uncordon("nrt1")
        back = await cluster.served_by("tokyo")
    assert (diverted, back) == ("iad1", "nrt1")


async def test_tunnel_fills_the_hard_limit_and_the_next_goes_to_the_next_region() -> None:
    async with Starting(["nrt1", "iad1"], limits={"nrt1": 1}) as cluster:
        async with cluster.socket("tokyo") as first:
            assert await first.recv() == "nrt1"
            assert cluster.fly.active("nrt1") == 1
            async with cluster.socket("tokyo") as second:
                assert await second.recv() == "iad1"
        await cluster.fly.until(lambda: cluster.fly.active("nrt1") == 0)
        assert await cluster.served_by("tokyo") == "nrt1"


async def test_request_queues_at_the_hard_limit_until_there_is_room() -> None:
    async with Starting(["nrt1"], limits={"nrt1": 1}) as cluster, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(cluster.request("tokyo", "/wait"))
        await cluster["nrt1"].waiting.wait()
        second = tasks.create_task(cluster.request("tokyo", "/wait"))
        await cluster.seen(lambda: len(cluster.fly.traces) == 2)
        assert cluster.fly.active("nrt1") == 1
        cluster["nrt1"].release.set()
        assert [(await each).status_code for each in (first, second)] == [200, 200]


async def test_nobody_at_all_is_a_503_after_the_queue_timeout() -> None:
    async with Starting(["nrt1"], queue_timeout_s=0.05) as cluster:
        cluster.fly.cordon("nrt1")
        response = await cluster.request("tokyo")
    assert (response.status_code, response.text) == (503, "PR01: no Machine could take it (no_candidate)\n")
    assert decisions(cluster) == [(Decision.FAILED, None)]


async def test_refused_connection_is_tried_at_the_next_candidate() -> None:
    async with Starting(["nrt1", "iad1"], check_interval_s=60) as cluster:
        await cluster["nrt1"].stop()  # nobody says so: the edge finds out
        response = await cluster.request("tokyo")
    assert response.json()["machine"] == "iad1"
    assert decisions(cluster) == [(Decision.REFUSED, "nrt1"), (Decision.SERVED, "iad1")]
    assert cluster.fly.traces[-1].hops[0].reason.startswith("PC01: ")


def edges_hear_nothing(cluster: Cluster) -> None:
    """From now on news does not arrive before the test is over."""
    cluster.fly.propagation_s = (3600, 3600)


async def test_stop_is_not_known_yet_and_refused_then_tried_elsewhere() -> None:
    async with Starting(["nrt1", "iad1"]) as cluster:
        edges_hear_nothing(cluster)
        cluster.fly.machine_stopped("nrt1")
        assert await cluster.served_by("tokyo") == "iad1"
    first = cluster.fly.traces[-1].hops[0]
    assert (first.decision, first.machine_id, first.reason) == (
        Decision.REFUSED,
        "nrt1",
        "PM11: recently stopped",
    )


async def test_cordon_is_not_known_yet_and_requests_still_go_there() -> None:
    async with Starting(["nrt1", "iad1"]) as cluster:
        edges_hear_nothing(cluster)
        cluster.fly.cordon("nrt1")
        assert await cluster.served_by("tokyo") == "nrt1"


async def test_stopped_machine_comes_back_at_another_port() -> None:
    async with Starting(["nrt1", "iad1"]) as cluster:
        cluster.fly.machine_stopped("nrt1")
        assert cluster.fly.checked == ("iad1",)
        await cluster["nrt1"].stop()
        away = await cluster.served_by("tokyo")
        await cluster["nrt1"].start()
        cluster.fly.machine_started("nrt1", cluster["nrt1"].port)
        await cluster.fly.ready()
        back = await cluster.served_by("tokyo")
    assert (away, back) == ("iad1", "nrt1")


async def test_candidates_that_all_refuse_are_tried_until_one_is_there() -> None:
    async with Starting(["nrt1"], check_interval_s=60) as cluster:
        await cluster["nrt1"].stop()
        asking = asyncio.create_task(cluster.request("tokyo"))
        await cluster.seen(lambda: bool(cluster.fly.traces) and len(cluster.fly.traces[-1].hops) == 3)
        await cluster["nrt1"].start()
        cluster.fly.machine_started("nrt1", cluster["nrt1"].port)
        response = await asking
    assert response.json()["machine"] == "nrt1"


CLIENT_HEADERS = [
    ({"fly-prefer-region": "iad"}, "iad1"),
    ({"fly-prefer-region": "syd,lhr"}, "nrt1"),
    ({"fly-force-region": "syd,fra"}, "fra1"),
    ({"fly-prefer-instance-id": "fra1"}, "fra1"),
    ({"fly-force-instance-id": "iad1"}, "iad1"),
]


async def test_client_asks_for_a_region_or_a_machine() -> None:
    async with Starting(["nrt1", "iad1", "fra1"]) as cluster:
        found = [await cluster.served_by("tokyo", headers=headers) for headers, _ in CLIENT_HEADERS]
    assert found == [expected for _, expected in CLIENT_HEADERS]


async def test_client_asks_for_what_is_not_there() -> None:
    async with Starting(["nrt1"], queue_timeout_s=0.05) as cluster:
        forced = await cluster.request("tokyo", headers={"fly-force-region": "syd"})
        preferred = await cluster.request("tokyo", headers={"fly-prefer-instance-id": "gone"})
    assert forced.status_code == 503
    assert preferred.json()["headers"]["fly-preferred-instance-unavailable"] == "gone"


# Faults


async def closed_by_a_reset(ws: ClientConnection) -> None:
    with pytest.raises(ConnectionClosedError) as closed:
        await ws.recv()
    assert closed.value.rcvd is None
    assert isinstance(closed.value.__cause__, ConnectionResetError)


async def test_reset_breaks_the_tunnels_of_one_machine_on_both_sides() -> None:
    async with (
        Starting(["nrt1", "iad1"]) as cluster,
        cluster.socket("tokyo") as ws,
        cluster.socket("iad") as other,
    ):
        assert (await ws.recv(), await other.recv()) == ("nrt1", "iad1")
        assert cluster.fly.reset_tunnels("nrt1") == 1
        await closed_by_a_reset(ws)
        await cluster["nrt1"].left.wait()
        await cluster.fly.until(lambda: cluster.fly.active("nrt1") == 0)
        await other.send("x")
        assert await other.recv() == "iad1 heard x"
    assert cluster.fly.traces[0].hops[-1].reason == "Machine nrt1 was killed"


async def test_proxy_restart_breaks_every_tunnel_of_its_edge() -> None:
    async with (
        Starting(["nrt1"], edges=["nrt", "iad"]) as cluster,
        cluster.socket("tokyo") as ws,
        cluster.socket("iad") as other,
    ):
        assert (await ws.recv(), await other.recv()) == ("nrt1", "nrt1")
        assert cluster.fly.restart_proxy("nrt") == 1
        await closed_by_a_reset(ws)
        await cluster["nrt1"].left.wait()
        await other.send("x")
        assert await other.recv() == "nrt1 heard x"


async def test_hanging_machine_fails_its_checks_and_goes_on_where_it_was() -> None:
    async with Starting(["nrt1", "iad1"], check_timeout_s=1) as cluster, cluster.socket("tokyo") as ws:
        await ws.recv()
        cluster.fly.hang("nrt1")
        asking = asyncio.create_task(cluster.request("tokyo"))
        await cluster.fly.until(lambda: cluster.fly.active("nrt1") == 2)  # not sent to iad1 once the checks fail
        await ws.send("x")
        await cluster.fly.until(lambda: not cluster.fly.machine("nrt1").checks_ok)
        assert await cluster.served_by("tokyo") == "iad1"
        assert not asking.done()
        cluster.fly.unhang("nrt1")
        assert await ws.recv() == "nrt1 heard x"
        assert (await asking).json()["machine"] == "nrt1"


async def test_client_that_leaves_before_its_answer_is_gone_for_the_machine() -> None:
    async with Starting(["nrt1"]) as cluster:
        asking = asyncio.create_task(cluster.request("tokyo", "/wait"))
        await cluster["nrt1"].waiting.wait()
        asking.cancel()
        await cluster["nrt1"].left.wait()
        await cluster.fly.until(lambda: cluster.fly.active("nrt1") == 0)
    assert cluster.fly.traces[-1].hops[-1].reason == "the client went away"


async def test_hanging_machine_that_is_killed_and_started_does_not_hang() -> None:
    async with Starting(["nrt1"], check_timeout_s=0.2) as cluster, cluster.socket("tokyo") as ws:
        await ws.recv()
        cluster.fly.hang("nrt1")
        assert cluster.fly.reset_tunnels("nrt1") == 1
        await closed_by_a_reset(ws)
        cluster.fly.machine_started("nrt1", cluster["nrt1"].port)
        await cluster.fly.ready()
        assert await cluster.served_by("tokyo") == "nrt1"


async def test_unknown_machine_is_named() -> None:
    async with Starting(["nrt1"]) as cluster:
        with pytest.raises(KeyError, match="nrt2"):
            cluster.fly.cordon("nrt2")
        with pytest.raises(ValueError, match="'nrt1' is there already"):
            cluster.fly.add_machine(cluster["nrt1"].machine())


# Tunnels


async def test_socket_is_replayed_before_101_and_then_tunnelled() -> None:
    async with Starting(["nrt1", "fra1"]) as cluster:
        cluster["nrt1"].replay = 'region="fra,any";state=s1'
        async with cluster.socket("tokyo", "/media/ticket") as ws:
            assert await ws.recv() == "fra1"
            await ws.send("hello")
            assert await ws.recv() == "fra1 heard hello"
            assert (cluster.fly.active("nrt1"), cluster.fly.active("fra1")) == (0, 1)
        await cluster.fly.until(lambda: cluster.fly.active("fra1") == 0)
        seen = cluster["nrt1"].seen
    assert [each.url.path for each in seen] == ["/media/ticket"]
    assert decisions(cluster) == [
        (Decision.REPLAYED, "nrt1"),
        (Decision.SERVED, "fra1"),
        (Decision.CLOSED, "fra1"),
    ]


async def test_refused_upgrade_is_an_ordinary_answer() -> None:
    async with Starting(["nrt1"]) as cluster:
        cluster["nrt1"].replay = "region=nowhere"
        with pytest.raises(InvalidStatus) as refused:
            async with cluster.socket("tokyo"):
                pass
    assert refused.value.response.status_code == 502
    assert b"PA03" in (refused.value.response.body or b"")


async def test_tunnel_carries_much_in_both_directions() -> None:
    async with Starting(["nrt1"], rtt_ms=lambda a, b: 20 * (a != b)) as cluster, cluster.socket("tokyo") as ws:
        await ws.recv()
        sent = [f"{number} " + "x" * 100_000 for number in range(30)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send_all(ws, sent))
            received = [await ws.recv() for _ in sent]
    assert received == [f"nrt1 heard {each}" for each in sent]


async def send_all(ws: ClientConnection, texts: list[str]) -> None:
    for text in texts:
        await ws.send(text)


# Distance


def far(a: str, b: str) -> float:
    """tokyo to nrt 40 ms, nrt to iad 60 ms, iad to fra and nrt to fra 80 ms."""
    return {("nrt", "tokyo"): 40, ("iad", "nrt"): 60}.get((min(a, b), max(a, b)), 0 if a == b else 80)


DISTANCES = [(None, 40 + 60), ("region=fra", 40 + 60 + 80)]


@pytest.mark.parametrize(("replay", "expected_ms"), DISTANCES)
async def test_every_trip_takes_its_time(replay: str | None, expected_ms: float) -> None:
    async with Starting(["iad1", "fra1"], edges=["nrt"], rtt_ms=far) as cluster:
        cluster["iad1"].replay = replay
        port = await cluster.fly.listen("tokyo")
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun = loop.time()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        took_ms = (loop.time() - begun) * 1000
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert took_ms >= expected_ms


def very_far(a: str, b: str) -> float:
    """Everything is, fra a little more."""
    return 0 if a == b else 300 + ("fra" in (a, b))


async def test_refusal_costs_the_way_there_and_back() -> None:
    async with Starting(["iad1", "fra1"], edges=["nrt"], rtt_ms=very_far, check_interval_s=60) as cluster:
        await cluster["iad1"].stop()
        begun = asyncio.get_running_loop().time()
        assert await cluster.served_by("nrt") == "fra1"
        took_ms = (asyncio.get_running_loop().time() - begun) * 1000
    assert took_ms >= 300 + 301


async def test_tunnelled_message_takes_one_round_trip() -> None:
    async with Starting(["iad1"], edges=["nrt"], rtt_ms=far) as cluster, cluster.socket("tokyo") as ws:
        await ws.recv()
        begun = asyncio.get_running_loop().time()
        await ws.send("x")
        await ws.recv()
        took_ms = (asyncio.get_running_loop().time() - begun) * 1000
    assert took_ms >= 40 + 60


# The end


@pytest.mark.parametrize("fault", ["none", "hung", "far", "queued"])
async def test_end_leaves_no_task_and_no_socket(fault: str) -> None:
    before = asyncio.all_tasks()
    async with Starting(["nrt1"], rtt_ms=far if fault == "far" else lambda a, b: 0) as cluster:
        port = await cluster.fly.listen("tokyo")
        if fault == "hung":
            cluster.fly.hang("nrt1")
        if fault == "queued":
            cluster.fly.cordon("nrt1")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        _, idle = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await cluster.seen(lambda: bool(cluster.fly.traces))
        if fault == "hung":
            await cluster.seen(lambda: cluster.fly.connections > 0)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    assert [each for each in asyncio.all_tasks() - before if each is not asyncio.current_task()] == []
    assert cluster.fly.links == frozenset()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    idle.close()


async def test_fault_in_the_callback_is_raised_at_the_end() -> None:
    def on_hop(*_: object) -> None:
        raise RuntimeError("on_hop failed")

    async def one_request() -> None:
        async with Starting(["nrt1"], on_hop=on_hop) as cluster:
            with pytest.raises(httpx.RemoteProtocolError):
                await cluster.request("tokyo")

    with pytest.raises(RuntimeError, match="on_hop failed"):
        await one_request()
