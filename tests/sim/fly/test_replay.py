"""`fly-replay`: how it is read, and where it takes a request."""

import pytest

from app.sim.fly.edge import NEAREST, Machine, RoutingPreference, region_groups
from app.sim.fly.replay import (
    MAX_REPLAYED_BODY_BYTES,
    MAX_REPLAYS,
    Fallback,
    NoMachine,
    Replay,
    ReplayError,
    ReplayState,
    preference_of_client,
    read_replay,
)

IAD = Machine("178iad", "iad", 8080)
FRA = Machine("178fra", "fra", 8080)

WELL_FORMED = [
    ("region=fra", Replay(("fra",))),
    ('region="fra,ams,any"', Replay(("fra", "ams", "any"))),
    ('region="fra, ams" ; state=s', Replay(("fra", "ams"), state="s")),
    ("instance=178fra", Replay(instance="178fra")),
    ("prefer_instance=178fra;region=fra", Replay(("fra",), prefer_instance="178fra")),
    ("elsewhere=true", Replay(elsewhere=True)),
    ("region=eu;state=a=b=c==", Replay(("eu",), state="a=b=c==")),
    ('region=eu;state="a b"', Replay(("eu",), state="a b")),
    ("region=fra;timeout=2s;fallback=force_self;", Replay(("fra",), timeout_s=2, fallback=Fallback.FORCE_SELF)),
    (
        "elsewhere=true;timeout=800ms;fallback=prefer_self",
        Replay(elsewhere=True, timeout_s=0.8, fallback=Fallback.PREFER_SELF),
    ),
]


@pytest.mark.parametrize(("header", "expected"), WELL_FORMED)
def test_replay_is_read(header: str, expected: Replay) -> None:
    assert read_replay(header) == expected


MALFORMED = [
    ("", "with a value"),
    ("fra", "'fra' is not one of"),
    ("region=", "'region=' is not one of"),
    ("regoin=fra", "'regoin=fra' is not one of"),
    ("region=fra,ams", "double quotes"),
    ('region="fra,"', "'' is not a region code"),
    ("region=FRA", "'FRA' is not a region code"),
    ("region=fra,state=x", "double quotes"),
    ("region=fra;region=ams", "region is there twice"),
    ("instance=a b", "instance: 'a b'"),
    ("elsewhere=yes", "elsewhere: 'yes'"),
    ("region=fra;timeout=2", "timeout: '2'"),
    ("region=fra;timeout=fast", "timeout: 'fast'"),
    ("region=fra;fallback=self", "fallback: 'self'"),
    ("state=x", "no target"),
    ('region=fra;state="a;b"', "semicolon"),
]


@pytest.mark.parametrize(("header", "why"), MALFORMED)
def test_malformed_replay_says_what_is_wrong(header: str, why: str) -> None:
    with pytest.raises(ReplayError, match=r"^PA03: malformed fly-replay: ") as raised:
        read_replay(header)
    assert why in str(raised.value)


def test_other_apps_are_unknown() -> None:
    with pytest.raises(ReplayError, match=r"^PA04: app 'other'"):
        read_replay("app=other;region=fra")


CLIENT = [
    ({}, RoutingPreference()),
    ({"fly-prefer-region": "fra, ams"}, RoutingPreference(region_groups(["fra", "ams", "any"]))),
    ({"fly-force-region": "fra,ams"}, RoutingPreference(region_groups(["fra", "ams"]))),
    ({"fly-prefer-instance-id": "178fra"}, RoutingPreference(prefer_instance="178fra")),
    ({"fly-force-instance-id": "178fra"}, RoutingPreference(instance="178fra")),
]


@pytest.mark.parametrize(("headers", "expected"), CLIENT)
def test_client_says_where_it_wants_to_go(headers: dict[str, str], expected: RoutingPreference) -> None:
    assert preference_of_client(headers) == expected


def replay_state(*, body_bytes: int = 0, preference: RoutingPreference | None = None) -> ReplayState:
    return ReplayState(preference or RoutingPreference(), app_name="app", body_bytes=body_bytes)


def test_replay_takes_the_request_to_its_target_with_its_source() -> None:
    request = replay_state(preference=RoutingPreference(region_groups(["iad"])))
    request.replayed('region="fra,any";state=s1;timeout=3s', IAD, 1_700_000_000_000_000)
    assert request.preference == RoutingPreference(region_groups(["fra", "any"]))
    assert request.timeout_s == 3
    assert request.headers(FRA) == [
        ("fly-replay-src", "instance=178iad;region=iad;t=1700000000000000;state=s1"),
    ]


def test_source_without_a_state_has_none() -> None:
    request = replay_state()
    request.replayed("region=fra", IAD, 5)
    assert request.headers(FRA) == [("fly-replay-src", "instance=178iad;region=iad;t=5")]


def test_elsewhere_leaves_out_the_sender_once() -> None:
    request = replay_state()
    request.replayed("elsewhere=true", IAD, 1)
    assert request.preference == RoutingPreference(NEAREST, without=frozenset({"178iad"}))
    request.replayed("elsewhere=true", FRA, 2)
    assert request.preference == RoutingPreference(NEAREST, without=frozenset({"178fra"}))


def test_preferred_instance_is_named_to_whoever_is_there_instead() -> None:
    request = replay_state()
    request.replayed("prefer_instance=178fra", IAD, 1)
    assert ("fly-preferred-instance-unavailable", "178fra") in request.headers(IAD)
    assert [name for name, _ in request.headers(FRA)] == ["fly-replay-src"]


def test_more_than_ten_replays_are_a_loop() -> None:
    request = replay_state()
    for t in range(MAX_REPLAYS):
        request.replayed("elsewhere=true", IAD, t)
    with pytest.raises(ReplayError, match=r"^PA02: more than 10 replays"):
        request.replayed("elsewhere=true", IAD, 11)


def test_large_body_cannot_be_replayed() -> None:
    replay_state(body_bytes=MAX_REPLAYED_BODY_BYTES).replayed("region=fra", IAD, 1)
    with pytest.raises(ReplayError, match=r"^PA01: a body of 1000001 bytes"):
        replay_state(body_bytes=MAX_REPLAYED_BODY_BYTES + 1).replayed("region=fra", IAD, 1)


FALLBACKS = [
    ("force_self", RoutingPreference(instance="178iad")),
    ("prefer_self", RoutingPreference(prefer_instance="178iad")),
]


@pytest.mark.parametrize(("fallback", "expected"), FALLBACKS)
def test_replay_that_reaches_nobody_falls_back_with_the_reason(fallback: str, expected: RoutingPreference) -> None:
    request = replay_state()
    request.replayed(f'region="fra,ams";timeout=2s;fallback={fallback}', IAD, 1)
    assert request.no_machine_reached(NoMachine.TIMEOUT, 2.0014)
    assert (request.preference, request.timeout_s) == (expected, None)
    assert dict(request.headers(IAD))["fly-replay-failed"] == (
        "instance=;app=app;region=fra,ams;replay_source=178iad;reason=timeout;elapsed_ms=2001"
    )


def test_fallback_may_neither_replay_nor_fall_back_again() -> None:
    request = replay_state()
    request.replayed("instance=178fra;fallback=force_self", IAD, 1)
    assert request.no_machine_reached(NoMachine.NO_CANDIDATE, 1)
    with pytest.raises(ReplayError, match="fell back"):
        request.replayed("region=fra", IAD, 2)
    assert not request.no_machine_reached(NoMachine.NO_CANDIDATE, 1)


def test_nothing_falls_back_that_did_not_ask_for_it() -> None:
    request = replay_state()
    assert not request.no_machine_reached(NoMachine.NO_CANDIDATE, 1)
    request.replayed("region=fra", IAD, 1)
    assert not request.no_machine_reached(NoMachine.NO_CANDIDATE, 1)
