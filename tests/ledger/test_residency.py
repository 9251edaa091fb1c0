"""The residency report: calls that stayed, and every way in which one may have left."""

from dataclasses import replace

import pytest

from app.call.records import CallEvent, CallStarted
from app.ledger.residency import judge
from app.regions.zones import ZoneRule, read_zone, shipped_zones
from tests.ledger.samples import NOW_MS

STRICT = read_zone(
    "eu",
    {
        "regions": ["fra"],
        "residency": "eu",
        "database": "TURSO_EU",
        "twilio_region": "ie1",
        "edges": ["fra", "ams"],
    },
)
ZONES = shipped_zones()
LEG = CallStarted("CA1", "l", "acme", "eu", "fra", "openai-eu", "m", "MZ1", "+49", "+49", NOW_MS)
WAY = "edge=fra machine=fra twilio=ie1 by=iad"
CHOICE = "openai-eu residency=eu because=only"


def breaches(
    leg: CallStarted = LEG,
    *,
    way: str | None = WAY,
    choice: str | None = CHOICE,
    ledger: str = "eu",
    rule: ZoneRule | None = None,
) -> tuple[str, ...]:
    told = (("handled", way), ("backend", choice), ("key", ""))
    events = [CallEvent("CA1", "l", 0, NOW_MS, kind, text) for kind, text in told if text is not None]
    return judge(leg, events, ledger, ZONES if rule is None else {"eu": rule}).breaches


def test_call_that_stayed_keeps_its_promise_and_tells_how_it_came() -> None:
    events = [
        CallEvent("CA1", "l", 0, NOW_MS, "handled", WAY),
        CallEvent("CA1", "l", 1, NOW_MS, "backend", CHOICE),
    ]
    found = judge(LEG, events, "eu", ZONES)
    assert found.breaches == ()
    assert (found.edge, found.twilio, found.by, found.residency) == ("fra", "ie1", "iad", "eu")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"leg": replace(LEG, region="iad")}, "handled by a machine in iad"),
        ({"ledger": "global"}, "recorded in the database of zone global"),
        ({"choice": "openai residency=none because=nearest"}, "does not promise eu"),
        ({"choice": "acme residency=us,apac because=only"}, "does not promise eu"),
        ({"choice": None}, "what its backend promises is not recorded"),
        ({"way": None}, "how it came is not recorded"),
        ({"way": WAY.replace("machine=fra", "machine=cdg")}, "came to a machine in cdg"),
        ({"leg": replace(LEG, zone="mars")}, "zone mars is not configured"),
        ({"rule": STRICT, "way": WAY.replace("ie1", "us1")}, "processed by Twilio in us1"),
        ({"rule": STRICT, "way": WAY.replace("edge=fra", "edge=iad")}, "decrypted at Fly's edge iad"),
    ],
)
def test_breach_is_told(changes: dict[str, object], told: str) -> None:
    assert any(told in text for text in breaches(**changes))  # type: ignore[arg-type]  # parametrised


def test_call_without_a_stream_has_no_way_and_no_backend_to_show() -> None:
    refused = replace(LEG, stream_sid="", backend="")
    assert breaches(refused, way=None, choice=None) == ()


def test_call_without_a_stream_is_still_recorded_in_its_zone_alone() -> None:
    refused = replace(LEG, stream_sid="", backend="", region="iad")
    told = breaches(refused, way=None, choice=None, ledger="global")
    assert told == ("recorded in the database of zone global", "handled by a machine in iad")


def test_strict_zone_is_kept_too() -> None:
    assert breaches(rule=STRICT) == ()


def test_zone_that_promises_nothing_has_no_breaches_but_of_its_ledger() -> None:
    anywhere = replace(LEG, zone="global", region="nrt", backend="openai")
    assert breaches(anywhere, way=None, choice=None, ledger="global") == ()
    assert breaches(anywhere, way=None, choice=None, ledger="eu") == ("recorded in the database of zone eu",)
    assert [ZONES[name].promises for name in ("global", "eu")] == [False, True]


@pytest.mark.parametrize("second", [False, True])
def test_every_backend_that_had_a_part_in_the_call_must_keep_the_promise(second: bool) -> None:
    """One took the call over from another before the caller had heard it."""
    texts = [CHOICE, "openai residency=none because=next"]
    told = texts if second else texts[::-1]
    events = [CallEvent("CA1", "l", 0, NOW_MS, "handled", WAY)]
    events += [CallEvent("CA1", "l", number, NOW_MS, "backend", text) for number, text in enumerate(told, 1)]
    assert any("does not promise eu" in text for text in judge(LEG, events, "eu", ZONES).breaches)
