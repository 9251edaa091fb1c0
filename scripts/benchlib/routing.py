"""Measures what it costs to decide which region takes a call, and to replay it there. Part of scripts/bench."""

import asyncio
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twilio.request_validator import RequestValidator

from app.bridge.ticket import Nonces, Ticket, Tickets
from app.regions.routing import Here
from app.regions.table import HOMES
from app.regions.zones import shipped_zones
from app.sim.phone.events import StreamOpened
from app.world.calls import phone_in
from app.world.places import rtt_ms
from app.world.world import World, world
from twiml.gate import Admission, ReplayAnswer, UpgradeGate
from twiml.replay_policy import ReplayPolicy
from twiml.signature import Signatures

DECISIONS = 2_000
CALLS = 20
BASE = "https://calls.example.com"
TOKEN = "0123456789abcdef0123456789abcdef"
SECRET = "s" * 40


@dataclass(frozen=True, slots=True)
class Routing:
    """The results."""

    taken_ns: list[int]
    """A whole handshake that is taken: ticket, Twilio's signature, zone, room, backend."""
    sent_on_ns: list[int]
    """A handshake that is replayed to another region, with its sealed header."""
    direct_beyond_ms: list[float]
    """What opening a stream took beyond the round trips of its way."""
    replayed_beyond_ms: list[float]
    """The same of one that was sent on, whose way is longer."""


async def measure_routing() -> Routing:
    """Raises MachineError."""
    return Routing(_decided("global", Admission), _decided("eu", ReplayAnswer), *await _streams())


def _decided(zone: str, expected: type) -> list[int]:
    tickets = Tickets(SECRET)
    machine = Here("iad", HOMES, frozenset({"global", "eu"}))
    replay_policy = ReplayPolicy(shipped_zones(), lambda: machine, SECRET)
    tokens: Mapping[str, str] = {"us1": TOKEN, "ie1": TOKEN[::-1]}
    signatures = Signatures(tokens, [BASE])
    gate = UpgradeGate(
        tickets, Nonces(), signatures, replay_policy, lambda: False, lambda _sid: False, lambda _ticket: False
    )
    validator = RequestValidator(TOKEN)
    now_s = time.time()
    took_ns: list[int] = []
    for number in range(DECISIONS):
        target = "/media/" + tickets.issue(Ticket(f"CA{number:032x}", "acme", zone, int(now_s), f"nonce-{number}"))
        signature = validator.compute_signature(BASE.replace("https", "wss") + target, {})
        header = {"X-Twilio-Signature": signature, "Fly-Region": "iad"}.get
        began_ns = time.perf_counter_ns()
        decision = gate.admit(target, header, now_s)
        took_ns.append(time.perf_counter_ns() - began_ns)
        assert isinstance(decision, expected)
    return took_ns


async def _streams() -> tuple[list[float], list[float]]:
    """Streams from Osaka, taken in nrt, and sent on from there to fra: what each took beyond its way, in ms."""
    # To the edge and back for the connection, then for the request; from the edge to each machine and back.
    direct_ms = 2 * rtt_ms("osaka", "nrt") + rtt_ms("nrt", "nrt")
    ways_ms = {"global": direct_ms, "eu": direct_ms + rtt_ms("nrt", "fra")}
    beyond: dict[str, list[float]] = {zone: [] for zone in ways_ms}
    with tempfile.TemporaryDirectory(prefix="nearcall-bench-") as name:
        async with world(Path(name) / "w", ("nrt", "fra"), ("osaka",), sqld_program=None) as running:
            for number in range(CALLS + 1):
                for zone, way_ms in ways_ms.items():
                    took_ms = await _opened_ms(running, zone)
                    if number:  # the first one warms up
                        beyond[zone].append(took_ms - way_ms)
    return beyond["global"], beyond["eu"]


async def _opened_ms(running: World, zone: str) -> float:
    async with phone_in(running, "osaka", zone) as phone, asyncio.timeout(10):
        await phone.dial()
        await phone.answered()
        await phone.hang_up()
        return next(each.took_ms for each in phone.timeline if isinstance(each, StreamOpened))
