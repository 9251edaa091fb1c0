"""One request through the edge: its headers, its body, its replays, its fallbacks, its record."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import pytest

from app.sim.fly.log import Decision, Hop, Log, Trace
from tests.sim.fly_machine import Cluster, Starting, instead

pytestmark = pytest.mark.anyio

UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 x\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"


def breaking(cluster: Cluster, machine_id: str, answer: bytes) -> contextlib.AbstractAsyncContextManager[None]:
    """In place of the Machine's server: something that sends these bytes and ends the connection."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return instead(cluster, machine_id, serve)


FORGED = {
    "fly-replay-src": "instance=evil;region=fra;t=1;state=forged",
    "fly-replay-failed": "reason=timeout",
    "fly-preferred-instance-unavailable": "x",
}


def hops(cluster: Cluster) -> list[tuple[Decision, str | None, int | None]]:
    return [(hop.decision, hop.machine_id, hop.status) for hop in cluster.fly.traces[-1].hops]


# Headers


async def test_request_carries_what_fly_adds() -> None:
    async with Starting(["fra1"], edges=["nrt"], forwarded_proto="https") as cluster:
        response = await cluster.request(
            "tokyo", "/a?b=c", headers={"Via": "1.0 x", "X-Forwarded-For": "203.0.113.9", "Fly-Region": "lie"}
        )
    headers = response.json()["headers"]
    assert {name: headers[name] for name in headers if name.startswith(("fly-", "x-f", "via"))} == {
        "fly-client-ip": "127.0.0.1",
        "fly-region": "nrt",
        "fly-request-id": response.headers["fly-request-id"],
        "fly-forwarded-port": "443",
        "x-forwarded-for": "203.0.113.9, 127.0.0.1, 192.0.2.80",
        "x-forwarded-proto": "https",
        "x-forwarded-port": "443",
        "x-forwarded-ssl": "on",
        "via": "1.0 x, 1.1 fly.io",
    }
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}-nrt", response.headers["fly-request-id"])
    assert response.json()["target"] == "/a?b=c"


async def test_answer_carries_what_fly_adds_and_keeps_the_rest() -> None:
    async with Starting(["nrt1"]) as cluster:
        response = await cluster.request("tokyo")
    assert (response.headers["server"], response.headers["via"]) == ("Fly/simulated", "1.1 fly.io")
    assert (response.headers["x-app"], response.headers["connection"]) == ("kept", "close")


@pytest.mark.parametrize("allowed", [False, True])
async def test_forged_headers_are_dropped_unless_allowed(allowed: bool) -> None:
    async with Starting(["nrt1"], forging_allowed=allowed) as cluster:
        response = await cluster.request("tokyo", headers=FORGED)
    passed = {name: value for name, value in response.json()["headers"].items() if name in FORGED}
    assert passed == (FORGED if allowed else {})


# Bodies


async def test_body_in_chunks_arrives_whole() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    async with Starting(["nrt1"]) as cluster:
        response = await cluster.request("tokyo", method="POST", content=chunks())
    assert (response.json()["method"], response.json()["body"]) == ("POST", "one two")


async def test_answer_is_passed_on_as_it_comes() -> None:
    async with Starting(["nrt1"]) as cluster:
        reader, writer = await asyncio.open_connection("127.0.0.1", await cluster.fly.listen("tokyo"))
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"first")
        cluster["nrt1"].release.set()
        await reader.readuntil(b"second")
        assert (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()


async def raw(cluster: Cluster, request: bytes) -> bytes:
    """What comes back for these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", await cluster.fly.listen("tokyo"))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


BAD = [
    (b"nonsense\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\n\r\n", b"400"),
    (b"GET / HTTP/1.0\r\n\r\n", b"400"),
    (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", b"431"),
    (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000001\r\n\r\n" + b"x" * 10_000_001, b"413"),
]


@pytest.mark.parametrize(("request_", "status"), BAD, ids=lambda value: repr(value[:30]))
async def test_what_cannot_be_sent_on_is_refused(request_: bytes, status: bytes) -> None:
    async with Starting(["nrt1"]) as cluster:
        answer = await raw(cluster, request_)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert cluster["nrt1"].seen == []


async def test_client_is_told_to_go_on_with_its_body() -> None:
    async with Starting(["nrt1"]) as cluster:
        reader, writer = await asyncio.open_connection("127.0.0.1", await cluster.fly.listen("tokyo"))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"hi")
        assert b'"body":"hi"' in await reader.read()
        writer.close()


async def test_error_in_answer_to_head_has_no_body() -> None:
    async with Starting(["nrt1"], queue_timeout_s=0) as cluster:
        cluster.fly.cordon("nrt1")
        answer = await raw(cluster, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"\r\n\r\n")


# Replays

TARGETS = [
    ("region=fra", "fra1"),
    ('region="lhr,fra"', "fra1"),
    ('region="lhr,any"', "nrt1"),
    ("region=eu", "fra1"),
    ("region=us", "iad1"),
    ("instance=fra1", "fra1"),
    ("prefer_instance=fra1", "fra1"),
    ("elsewhere=true", "iad1"),
    ("region=fra;elsewhere=true;state=s", "fra1"),
]


@pytest.mark.parametrize(("header", "expected"), TARGETS)
async def test_replay_goes_to_its_target_with_the_original_request(header: str, expected: str) -> None:
    async with Starting(["nrt1", "iad1", "fra1"]) as cluster:
        cluster["nrt1"].replay_new = header
        response = await cluster.request("tokyo", "/first", method="POST", content=b"the body", headers=FORGED)
    found = response.json()
    assert (found["machine"], found["method"], found["body"]) == (expected, "POST", "the body")


async def test_replay_source_is_shown_to_the_target_and_hidden_from_the_client() -> None:
    async with Starting(["nrt1", "fra1"]) as cluster:
        cluster["nrt1"].replay = "region=fra;state=signed.abc=="
        response = await cluster.request("tokyo", headers=FORGED)
    assert re.fullmatch(
        r"instance=nrt1;region=nrt;t=\d{16};state=signed\.abc==", response.json()["headers"]["fly-replay-src"]
    )
    assert "fly-replay" not in response.headers
    assert hops(cluster) == [(Decision.REPLAYED, "nrt1", None), (Decision.SERVED, "fra1", 200)]


async def test_replays_in_a_row_are_followed() -> None:
    async with Starting(["nrt1", "iad1", "fra1"]) as cluster:
        cluster["nrt1"].replay = "region=iad;state=one"
        cluster["iad1"].replay = "region=fra;state=two"
        response = await cluster.request("tokyo")
    assert response.json()["machine"] == "fra1"
    assert response.json()["headers"]["fly-replay-src"].endswith(";state=two")
    assert response.json()["headers"]["fly-replay-src"].startswith("instance=iad1;region=iad;")


async def test_loop_is_stopped_after_ten_replays() -> None:
    async with Starting(["nrt1", "iad1"]) as cluster:
        cluster["nrt1"].replay = cluster["iad1"].replay = "elsewhere=true"
        response = await cluster.request("tokyo")
    assert (response.status_code, response.text) == (502, "PA02: more than 10 replays\n")
    assert len(cluster["nrt1"].seen) + len(cluster["iad1"].seen) == 11
    assert hops(cluster)[-1] == (Decision.FAILED, "nrt1", 502)


async def test_malformed_replay_is_a_502_that_says_why() -> None:
    async with Starting(["nrt1"]) as cluster:
        cluster["nrt1"].replay = "region=fra,ams"
        response = await cluster.request("tokyo")
    assert response.status_code == 502
    assert response.text.startswith("PA03: malformed fly-replay: region: the list fra,ams")


async def test_json_form_of_a_replay_is_an_error_and_not_passed_on() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.fly.replay+json\r\nContent-Length: 2\r\n\r\n{}"
    async with Starting(["nrt1"], check_interval_s=60) as cluster, breaking(cluster, "nrt1", answer):
        response = await cluster.request("tokyo")
    assert (response.status_code, "JSON" in response.text) == (502, True)


async def test_body_over_a_megabyte_is_served_and_not_replayed() -> None:
    async with Starting(["nrt1", "fra1"]) as cluster:
        body = b"x" * 1_000_001
        served = await cluster.request("tokyo", method="POST", content=body)
        cluster["nrt1"].replay = "region=fra"
        replayed = await cluster.request("tokyo", method="POST", content=body)
    assert len(served.json()["body"]) == 1_000_001
    assert (replayed.status_code, replayed.text[:5]) == (502, "PA01:")


async def test_body_over_a_megabyte_is_not_tried_again_after_a_refusal() -> None:
    async with Starting(["nrt1", "iad1"], check_interval_s=60) as cluster:
        await cluster["nrt1"].stop()
        response = await cluster.request("tokyo", method="POST", content=b"x" * 1_000_001)
    assert response.status_code == 502
    assert hops(cluster) == [(Decision.REFUSED, "nrt1", None), (Decision.FAILED, None, 502)]


# Nobody at the target


async def test_target_with_nobody_is_a_503() -> None:
    async with Starting(["nrt1"], queue_timeout_s=0.05) as cluster:
        cluster["nrt1"].replay = "region=fra"
        response = await cluster.request("tokyo")
    assert response.status_code == 503


FALLBACKS = [
    ("region=fra;timeout=30ms;fallback=force_self", "", "fra", "timeout"),
    ("instance=gone;fallback=prefer_self", "gone", "", "no_candidate"),
]


@pytest.mark.parametrize(("header", "instance", "region", "reason"), FALLBACKS)
async def test_sender_gets_its_request_back_with_the_reason(
    header: str, instance: str, region: str, reason: str
) -> None:
    async with Starting(["nrt1"], queue_timeout_s=0.05, app_name="voice") as cluster:
        cluster["nrt1"].replay_new = header
        response = await cluster.request("tokyo", method="POST", content=b"kept")
    assert response.json()["body"] == "kept"
    assert re.fullmatch(
        f"instance={instance};app=voice;region={region};replay_source=nrt1;reason={reason};elapsed_ms=\\d+",
        response.json()["headers"]["fly-replay-failed"],
    )
    assert [decision for decision, _, _ in hops(cluster)] == [
        *(Decision.REPLAYED, Decision.FELL_BACK, Decision.SERVED)
    ]


async def test_timeout_ends_the_tries_though_candidates_are_left() -> None:
    async with Starting(
        ["nrt1", "iad1", "fra1"], check_interval_s=60, rtt_ms=lambda a, b: 100 * (a != b)
    ) as cluster:
        cluster["nrt1"].replay_new = 'region="iad,fra";timeout=50ms;fallback=force_self'
        await cluster["iad1"].stop()
        response = await cluster.request("nrt")
    assert "reason=timeout" in response.json()["headers"]["fly-replay-failed"]
    assert cluster["fra1"].seen == []


async def test_preferring_self_takes_another_when_the_sender_is_gone() -> None:
    async with Starting(["nrt1", "iad1"], check_interval_s=60, queue_timeout_s=0.05) as cluster:
        cluster["nrt1"].replay = "region=fra;fallback=prefer_self"
        asking = asyncio.create_task(cluster.request("tokyo"))
        await cluster.seen(lambda: bool(cluster["nrt1"].seen))
        cluster.fly.cordon("nrt1")
        response = await asking
    assert response.json()["machine"] == "iad1"
    assert "replay_source=nrt1" in response.json()["headers"]["fly-replay-failed"]


async def test_replay_in_answer_to_a_fallback_is_an_error() -> None:
    async with Starting(["nrt1"], queue_timeout_s=0.05) as cluster:
        cluster["nrt1"].replay = "region=fra;fallback=force_self"
        response = await cluster.request("tokyo")
    assert (response.status_code, len(cluster["nrt1"].seen)) == (502, 2)
    assert "fell back" in response.text


# Machines that break


UNUSABLE = [
    b"",
    b"HTTP/1.1 200 OK\r\nContent-",
    b"SSH-2.0-x\r\n\r\n",
    b"HTTP/1.1 101 Unasked\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
]


@pytest.mark.parametrize("answer", UNUSABLE)
async def test_machine_that_breaks_before_its_answer_is_a_502(answer: bytes) -> None:
    async with Starting(["nrt1"], check_interval_s=60) as cluster, breaking(cluster, "nrt1", answer):
        response = await cluster.request("tokyo")
    assert (response.status_code, response.text[:5]) == (502, "PU02:")
    assert cluster.fly.active("nrt1") == 0


async def test_machine_that_breaks_in_its_answer_breaks_the_clients() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    async with Starting(["nrt1"], check_interval_s=60) as cluster, breaking(cluster, "nrt1", answer):
        with pytest.raises(ConnectionResetError):
            await raw(cluster, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert hops(cluster) == [(Decision.SERVED, "nrt1", 200), (Decision.FAILED, "nrt1", None)]


async def test_client_that_breaks_while_it_is_flooded_is_not_the_machines_fault() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 1_000_000)
                await writer.drain()

    async with Starting(["nrt1"], check_interval_s=60) as cluster, instead(cluster, "nrt1", serve):
        reader, writer = await asyncio.open_connection("127.0.0.1", await cluster.fly.listen("tokyo"))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(1_000_000)
        await cluster.seen(lambda: any(link.full for link in cluster.fly.links))
        writer.transport.abort()
        await cluster.fly.until(lambda: cluster.fly.active("nrt1") == 0)
        assert cluster.fly.traces[-1].hops[-1].reason == "the client went away"


async def test_client_connection_closes_though_the_machine_would_keep_its_own() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\nhi"
    async with Starting(["nrt1"], check_interval_s=60) as cluster, breaking(cluster, "nrt1", answer):
        response = await cluster.request("tokyo")
    assert (response.text, response.headers["connection"], "keep-alive" in response.headers) == (
        "hi",
        "close",
        False,
    )


async def test_answer_is_read_to_its_end_before_it_is_replayed() -> None:
    answering, go_on = asyncio.Event(), asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nfly-replay: region=fra\r\nContent-Length: 4\r\n\r\n")
        answering.set()
        await go_on.wait()
        writer.write(b"body")

    async with Starting(["nrt1", "fra1"], check_interval_s=60) as cluster, instead(cluster, "nrt1", serve):
        asking = asyncio.create_task(cluster.request("tokyo"))
        await answering.wait()
        await asyncio.wait({asking}, timeout=0.1)
        assert cluster.fly.traces[-1].hops == []
        go_on.set()
        assert (await asking).json()["machine"] == "fra1"


# Tunnels


async def test_first_bytes_of_a_tunnel_may_come_with_its_head_from_both_sides() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCHED + b"from the machine;")
        writer.write(await reader.readexactly(10))

    async with Starting(["nrt1"], check_interval_s=60) as cluster, instead(cluster, "nrt1", serve):
        reader, writer = await asyncio.open_connection("127.0.0.1", await cluster.fly.listen("tokyo"))
        writer.write(UPGRADE + b"the client")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"Fly-Request-Id: " in head
        assert await reader.read() == b"from the machine;the client"
        writer.close()


async def test_broken_tunnel_is_a_reset_for_the_machine_as_well() -> None:
    found: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SWITCHED)
        with pytest.raises(ConnectionResetError) as reset:
            await reader.read()
        found.set_result(reset.value)

    async with Starting(["nrt1"], check_interval_s=60) as cluster, instead(cluster, "nrt1", serve):
        reader, writer = await asyncio.open_connection("127.0.0.1", await cluster.fly.listen("tokyo"))
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        assert cluster.fly.restart_proxy("nrt") == 1
        assert isinstance(await found, ConnectionResetError)
        writer.close()


# The record


def test_log_forgets_the_oldest_requests() -> None:
    log = Log(None)
    for number in range(10_001):
        log.open(Trace(str(number), "tokyo", "nrt", "GET", "/"))
    assert [len(log.traces), log.traces[0].request_id, log.traces[-1].request_id] == [10_000, "1", "10000"]


async def test_callback_and_trace_tell_the_same() -> None:
    told: list[tuple[Trace, Hop]] = []
    async with Starting(["nrt1", "fra1"], on_hop=lambda *hop: told.append(hop)) as cluster:
        cluster["nrt1"].replay = "region=fra"
        response = await cluster.request("tokyo", "/twiml")
        trace = cluster.fly.trace(response.headers["fly-request-id"])
    assert (trace.client_location, trace.edge, trace.method, trace.target) == ("tokyo", "nrt", "GET", "/twiml")
    assert told == [(trace, hop) for hop in trace.hops]
    assert [(hop.region, hop.reason) for hop in trace.hops] == [("nrt", "region=fra"), ("fra", "answer")]
