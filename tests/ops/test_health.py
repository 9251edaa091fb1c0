"""What a load balancer and an operator read from /healthz and /livez."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.ops.health import Health, routes

DETAILS = {"region": "fra", "calls": {"expected": 0, "live": 2}}


def asked(health: Health, path: str = "/healthz", method: str = "GET") -> tuple[int, Any]:
    with TestClient(Starlette(routes=routes(lambda: health))) as client:
        response = client.request(method, path)
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json() if method == "GET" else response.content


@pytest.mark.parametrize(
    ("health", "status", "body"),
    [
        (Health(None, None, DETAILS), 200, {"status": "ok", **DETAILS}),
        (Health(None, "ledger", DETAILS), 200, {"status": "degraded", "why": "ledger", **DETAILS}),
        (Health("draining", None, DETAILS), 503, {"status": "down", "why": "draining", **DETAILS}),
        (Health("full", "ledger", DETAILS), 503, {"status": "down", "why": "full", **DETAILS}),
    ],
)
def test_healthz_tells_the_worst_and_why(health: Health, status: int, body: dict[str, Any]) -> None:
    assert asked(health) == (status, body)


def test_livez_is_ok_also_when_no_call_may_come() -> None:
    assert asked(Health("draining", "ledger", DETAILS), "/livez") == (200, {"status": "ok"})


def test_health_is_looked_at_for_each_request() -> None:
    answers = iter([Health(None, None, {}), Health("draining", None, {})])
    with TestClient(Starlette(routes=routes(lambda: next(answers)))) as client:
        assert [client.get("/healthz").status_code, client.get("/healthz").status_code] == [200, 503]


def test_head_of_healthz_has_the_status_alone() -> None:
    assert asked(Health("full", None, DETAILS), method="HEAD") == (503, b"")
