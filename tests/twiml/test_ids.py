"""No log line says whose call a webhook is about before its zone and this region are known to agree."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from app.call.plan import Plan
from app.regions.routing import Here
from tests.twiml.world import ACCOUNT, CALL, CALL_FIELDS, CALLED, CALLER, World, post

ABROAD = Here("iad", ("iad",), frozenset({"global"}))
"""A machine that zone `eu` does not allow, without another one to send anything to."""

STREAM = "MZ" + "0" * 31 + "4"
FIELDS = {**CALL_FIELDS, "StreamSid": STREAM, "StreamEvent": "stream-error", "StreamError": "31921 x"}
EU = Plan(tenant="praxis-beispiel", zone="eu")
SECRETS = (CALL, ACCOUNT, CALLER, CALLED, STREAM, EU.tenant, CALL[2:], CALLER[1:], CALLED[1:])

ROUTES = ["/twiml/voice", "/twiml/status", "/twiml/stream", "/twiml/after"]
ZONES = {"none": "", "wrong": "/global", "mistyped": "/ue", "another case": "/EU"}
KNOWN: dict[str, dict[str, Any]] = {
    "a tenant of the zone": {"plan": EU},
    "a tenant that cannot be used": {"plan": None},
    "starting": {"plan": Plan(), "starting": True},
    "starting, and no tenant known": {"plan": None, "starting": True},
}


def logged(world: World, path: str, caplog: pytest.LogCaptureFixture, fields: dict[str, str]) -> str:
    """All that the log has after one webhook, every field of every line."""
    with caplog.at_level(logging.DEBUG):
        answer = post(world.client(), path, fields)
    assert answer.status_code < 500
    lines = [vars(record) for record in caplog.records if record.name.startswith("nearcall")]
    assert lines, "nothing was logged: the test looks at nothing"
    return str(lines)


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("route", ROUTES)
def test_call_of_a_zone_that_may_not_be_here_is_not_named(
    route: str, zone: str, known: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.plan = KNOWN[known]["plan"]
    world.here = replace(ABROAD, starting=KNOWN[known].get("starting", False))
    path = route + ZONES[zone] + ("/iad" if route == "/twiml/after" and zone != "none" else "")
    said = logged(world, path, caplog, FIELDS)
    assert [secret for secret in SECRETS if secret in said] == []


@pytest.mark.parametrize("route", ROUTES)
def test_call_without_a_known_number_is_not_named(route: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.plan = None
    world.here = ABROAD
    fields = {name: value for name, value in FIELDS.items() if name not in {"To", "Called"}}
    said = logged(world, route, caplog, fields)
    assert [secret for secret in SECRETS if secret in said] == []


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("region", ["fra", "local"])
def test_call_is_named_where_every_zone_is_at_home(
    route: str, region: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.plan = None
    world.here = replace(ABROAD, region=region)
    assert CALL in logged(world, route, caplog, FIELDS)


@pytest.mark.parametrize("route", ROUTES)
def test_call_of_a_zone_that_may_be_here_is_named(route: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.plan = Plan(tenant="acme")
    world.here = ABROAD
    said = logged(world, route, caplog, FIELDS)
    assert CALL in said
    assert "acme" in said


def test_call_that_was_taken_here_is_named_when_its_number_is_not_said(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.here = ABROAD
    post(world.client(), "/twiml/voice")
    caplog.clear()
    world.plan = None
    said = logged(world, "/twiml/stream/global", caplog, {name: FIELDS[name] for name in FIELDS if name != "To"})
    assert CALL in said
    assert STREAM in said
