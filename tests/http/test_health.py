"""What a load balancer and an operator read from /healthz and /livez."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.http.health import STARTING_LIMIT_S, Health, routes, verdict
from app.regions.routing import Here

DETAILS = {"calls": {"expected": 0, "live": 2}, "ledger_depth": 7}
TOKEN = "t" * 32
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}


def asked(
    health: Health,
    path: str = "/healthz",
    method: str = "GET",
    *,
    token: str = TOKEN,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, Any]:
    with TestClient(Starlette(routes=routes(lambda: health, token))) as client:
        response = client.request(method, path, headers=dict(headers))
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json() if method == "GET" else response.content


@pytest.mark.parametrize(
    ("health", "status", "body"),
    [
        (Health(None, None, DETAILS, "fra"), 200, {"status": "ok"}),
        (Health(None, "ledger", DETAILS, "fra"), 200, {"status": "degraded", "why": "ledger"}),
        (Health("draining", None, DETAILS, "fra"), 503, {"status": "down", "why": "draining"}),
        (Health("starting", "ledger", DETAILS, "fra"), 503, {"status": "down", "why": "starting"}),
    ],
)
def test_healthz_tells_everybody_the_worst_and_why_and_the_operator_the_rest(
    health: Health, status: int, body: dict[str, Any]
) -> None:
    public = body | {"region": "fra", "test_numbers": []}
    assert asked(health) == (status, public)
    assert asked(health, headers=OPERATOR) == (status, public | DETAILS)


@pytest.mark.parametrize(
    "shown",
    [
        "",
        TOKEN,
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}t",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer \xe9",
    ],
)
def test_another_token_opens_nothing(shown: str) -> None:
    headers = {"Authorization": shown.encode("latin-1")}
    told = asked(Health(None, None, DETAILS, "fra"), headers=headers)  # type: ignore[arg-type]  # as bytes
    assert told == (200, {"status": "ok", "region": "fra", "test_numbers": []})


@pytest.mark.parametrize("shown", ["Bearer ", "Bearer", f"Bearer {TOKEN}"])
def test_without_a_configured_token_nobody_is_told_details(shown: str) -> None:
    told = asked(Health(None, None, DETAILS, "fra"), token="", headers={"Authorization": shown})
    assert told == (200, {"status": "ok", "region": "fra", "test_numbers": []})


def test_livez_is_ok_also_when_no_call_may_come() -> None:
    assert asked(Health("draining", "ledger", DETAILS, "fra"), "/livez") == (200, {"status": "ok"})


def test_health_is_looked_at_for_each_request() -> None:
    answers = iter([Health(None, None, {}, "fra"), Health("draining", None, {}, "fra")])
    with TestClient(Starlette(routes=routes(lambda: next(answers)))) as client:
        assert [client.get("/healthz").status_code, client.get("/healthz").status_code] == [200, 503]


def test_head_of_healthz_has_the_status_alone() -> None:
    assert asked(Health("draining", None, DETAILS, "fra"), method="HEAD") == (503, b"")


# --- What takes a machine out of the routing ---------------------------------------------------------

WELL = Here("fra", ("fra", "iad"), frozenset({"global"}))
STARTING = replace(WELL, starting=True)
SICK = replace(WELL, usable=frozenset())
LATER_S = STARTING_LIMIT_S + 1


@pytest.mark.parametrize(
    ("here", "up_s", "troubles", "down", "degraded"),
    [
        (WELL, 0.0, [], None, None),
        (WELL, 0.0, ["ledger", "backends"], None, "ledger"),
        (replace(SICK, draining=True, full=True), LATER_S, ["ledger"], "draining", None),
        (STARTING, 0.0, ["ledger"], "starting", None),
        # The database may be away for all machines: when all stayed away, callers would hear Twilio's error.
        (STARTING, LATER_S, ["ledger"], None, "starting"),
        # The machine itself sends these calls on, and says the sentence when there is nowhere left.
        (SICK, 0.0, ["backends"], None, "no_backend"),
        (replace(WELL, full=True), LATER_S, [], None, "full"),
    ],
)
def test_only_what_ends_by_itself_takes_a_machine_out_of_the_routing(
    here: Here, up_s: float, troubles: list[str], down: str | None, degraded: str | None
) -> None:
    assert verdict(here, up_s, troubles) == (down, degraded)
