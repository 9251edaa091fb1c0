"""The residency report: calls that stayed, and every way in which one may have left."""

from dataclasses import replace

import pytest

from app.call.evidence import BackendChoice, Evidence, Route
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
ROUTE = Route("fra", "fra", "ie1", ("iad",))
CHOICE = BackendChoice("openai-eu", "marin", ("eu",), "only")
ELSEWHERE = BackendChoice("openai", "marin", (), "nearest")


def evidence_of(kind: str, evidence: Evidence) -> CallEvent:
    return CallEvent("CA1", "l", 0, NOW_MS, kind, evidence=evidence)


def breaches(
    leg: CallStarted = LEG,
    *,
    route: Route | None = ROUTE,
    choice: BackendChoice | None = CHOICE,
    ledger: str = "eu",
    rule: ZoneRule | None = None,
) -> tuple[str, ...]:
    events = [
        evidence_of(kind, each) for kind, each in (("handled", route), ("backend", choice)) if each is not None
    ]
    events.append(CallEvent("CA1", "l", 0, NOW_MS, "key"))
    return judge(leg, events, ledger, ZONES if rule is None else {"eu": rule}).breaches


def test_call_that_stayed_keeps_its_promise_and_tells_how_it_came() -> None:
    found = judge(LEG, [evidence_of("handled", ROUTE), evidence_of("backend", CHOICE)], "eu", ZONES)
    assert found.breaches == ()
    assert (found.edge, found.twilio, found.by, found.residency) == ("fra", "ie1", "iad", "eu")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"leg": replace(LEG, region="iad")}, "handled by a machine in iad"),
        ({"ledger": "global"}, "recorded in the database of zone global"),
        ({"choice": ELSEWHERE}, "does not promise eu"),
        ({"choice": replace(CHOICE, residency=("us", "apac"))}, "does not promise eu"),
        ({"choice": replace(CHOICE, voice="residency=eu", residency=())}, "does not promise eu"),
        ({"choice": None}, "what its backend promises is not recorded"),
        ({"route": None}, "how it came is not recorded"),
        ({"route": replace(ROUTE, machine="cdg")}, "came to a machine in cdg"),
        ({"leg": replace(LEG, zone="mars")}, "zone mars is not configured"),
        ({"rule": STRICT, "route": replace(ROUTE, twilio="us1")}, "processed by Twilio in us1"),
        ({"rule": STRICT, "route": replace(ROUTE, edge="iad")}, "decrypted at Fly's edge iad"),
    ],
)
def test_breach_is_told(changes: dict[str, object], told: str) -> None:
    assert any(told in text for text in breaches(**changes))  # type: ignore[arg-type]  # parametrised


def test_call_without_a_stream_has_no_way_and_no_backend_to_show() -> None:
    refused = replace(LEG, stream_sid="", backend="")
    assert breaches(refused, route=None, choice=None) == ()


def test_call_without_a_stream_is_still_recorded_in_its_zone_alone() -> None:
    refused = replace(LEG, stream_sid="", backend="", region="iad")
    told = breaches(refused, route=None, choice=None, ledger="global")
    assert told == ("recorded in the database of zone global", "handled by a machine in iad")


def test_strict_zone_is_kept_too() -> None:
    assert breaches(rule=STRICT) == ()


def test_zone_that_promises_nothing_has_no_breaches_but_of_its_ledger() -> None:
    anywhere = replace(LEG, zone="global", region="nrt", backend="openai")
    assert breaches(anywhere, route=None, choice=None, ledger="global") == ()
    assert breaches(anywhere, route=None, choice=None, ledger="eu") == ("recorded in the database of zone eu",)
    assert [ZONES[name].promises for name in ("global", "eu")] == [False, True]


@pytest.mark.parametrize("second", [False, True])
def test_every_backend_that_had_a_part_in_the_call_must_keep_the_promise(second: bool) -> None:
    """One took the call over from another before the caller had heard it."""
    choices = [CHOICE, ELSEWHERE] if second else [ELSEWHERE, CHOICE]
    events = [evidence_of("handled", ROUTE), *(evidence_of("backend", each) for each in choices)]
    assert judge(LEG, events, "eu", ZONES).breaches == ("answered by openai, which does not promise eu",)
