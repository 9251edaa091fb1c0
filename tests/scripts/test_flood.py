"""scripts/flood itself, and what it is for: each attack is refused for its reason, and memory stays bounded.

Nothing is timed here: that is for a quiet machine.
"""

import asyncio

import pytest

from scripts.benchlib import flood as flood_module
from scripts.benchlib.attacks import ATTACKS
from scripts.benchlib.flood import GROWTH_MB, QUIET, Phase, flood
from scripts.benchlib.meter import Meter

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.long
async def test_each_attack_is_refused_for_its_reason_and_memory_stays_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flood_module, "SETTLE_S", 0.5)
    async with asyncio.timeout(120):
        phases = {phase.name: phase for phase in await flood(tuple(ATTACKS), seconds=1.5, calls=2)}
    assert phases[QUIET].closed == {}
    assert set(phases["endless header"].closed) == {"head"}
    assert set(phases["pipelining"].closed) == {"pipelining"}
    assert set(phases["unsigned webhooks"].attacker) == {"connected", "403"}
    assert phases["slow bodies"].attacker["503"] > 0
    for name in ("64 kB frames", "tiny fragments"):
        assert phases[name].attacker["101"] > 0
    for phase in phases.values():
        assert phase.livez_ns
        assert phase.rss_mb - phases[QUIET].rss_mb < GROWTH_MB


def phase(
    livez_ms: float = 1, delay_ms: float = 1, *, failed: int = 0, lost: int = 0, rss_mb: float = 70
) -> Phase:
    meter = Meter(frames_sent=1 + lost)
    meter.caller_ns.append(int(delay_ms * 1e6))
    return Phase("x", [int(livez_ms * 1e6)], failed, meter, rss_mb)


@pytest.mark.parametrize(
    ("seen", "missed"),
    [
        (phase(), []),
        (phase(livez_ms=20, delay_ms=80, rss_mb=134), []),
        (phase(livez_ms=20.1), ["/livez"]),
        (phase(failed=1), ["/livez"]),
        (phase(delay_ms=80.1), ["media"]),
        (phase(lost=1), ["media"]),
        (phase(rss_mb=135), ["memory"]),
    ],
)
def test_flood_judges_each_target(seen: Phase, missed: list[str]) -> None:
    assert seen.missed(phase()) == missed
