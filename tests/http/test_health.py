"""What a load balancer and an operator read from /healthz and /livez."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.http.health import Health, routes

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
def test_healthz_shows_everybody_the_worst_and_operators_the_rest(
    health: Health, status: int, body: dict[str, Any]
) -> None:
    public = body | {"region": "fra", "test_numbers": []}
    assert asked(health) == (status, public)
    assert asked(health, headers=OPERATOR) == (status, public | DETAILS)


@pytest.mark.parametrize(
    "shown",
    [
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
def test_wrong_token_is_refused_with_what_to_do(shown: str) -> None:
    app = Starlette(routes=routes(lambda: Health(None, None, DETAILS, "fra"), TOKEN))
    with TestClient(app) as client:
        response = client.get("/healthz", headers={b"Authorization": shown.encode("latin-1")})
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    problem = response.json()
    assert problem.keys() == {"title", "status", "detail"}
    assert "NEARCALL_ADMIN_TOKEN" in problem["detail"]
    assert TOKEN not in response.text


def test_empty_authorization_gets_the_public_answer() -> None:
    answer = asked(Health(None, None, DETAILS, "fra"), headers={"Authorization": ""})
    assert answer == (200, {"status": "ok", "region": "fra", "test_numbers": []})


@pytest.mark.parametrize("shown", ["Bearer ", "Bearer", f"Bearer {TOKEN}"])
def test_without_a_configured_token_there_are_no_details(shown: str) -> None:
    answer = asked(Health(None, None, DETAILS, "fra"), token="", headers={"Authorization": shown})
    assert answer == (200, {"status": "ok", "region": "fra", "test_numbers": []})


def test_livez_is_ok_also_when_no_call_may_come() -> None:
    assert asked(Health("draining", "ledger", DETAILS, "fra"), "/livez") == (200, {"status": "ok"})


def test_health_is_looked_at_for_each_request() -> None:
    answers = iter([Health(None, None, {}, "fra"), Health("draining", None, {}, "fra")])
    with TestClient(Starlette(routes=routes(lambda: next(answers)))) as client:
        assert [client.get("/healthz").status_code, client.get("/healthz").status_code] == [200, 503]


def test_head_of_healthz_has_the_status_alone() -> None:
    assert asked(Health("draining", None, DETAILS, "fra"), method="HEAD") == (503, b"")
