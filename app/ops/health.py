"""`GET /healthz` and `GET /livez`: may this machine get calls, and does its event loop turn.

Everybody may ask, and is told what a load balancer needs. The rest is for whoever shows the admin token.

No I/O in the request: everything is known already. Degraded is not down: a ledger that cannot write does not stop
calls.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass(frozen=True, slots=True)
class Health:
    """How this machine is doing."""

    down: str | None
    """Why it must get no new calls; None when it may."""
    degraded: str | None
    """What does not work though calls do; None when everything works."""
    details: Mapping[str, object]
    """For operators: how many calls there are, what waits, what is broken."""
    region: str
    """Where this machine is, which every answer of ours says."""


def routes(look: Callable[[], Health], admin_token: str = "") -> list[Route]:
    """The two routes; `look` is asked for each request. Without an admin token nobody is told details."""

    async def healthz(request: Request) -> Response:
        health = look()
        status = "down" if health.down else "degraded" if health.degraded else "ok"
        why = health.down or health.degraded
        body: dict[str, object] = {"status": status, **({"why": why} if why else {}), "region": health.region}
        if admin_token and _shows(request, admin_token):
            body |= health.details
        return _json(503 if health.down else 200, body)

    async def livez(_request: Request) -> Response:
        return _json(200, {"status": "ok"})

    return [Route("/healthz", healthz), Route("/livez", livez)]


def _shows(request: Request, admin_token: str) -> bool:
    """Asked of loopback too: a proxy of the operator's sends everybody's requests from there."""
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(shown.strip().encode("latin-1"), admin_token.encode())
    return scheme.lower() == "bearer" and same


def _json(status: int, body: Mapping[str, object]) -> Response:
    return Response(
        orjson.dumps(body), status, media_type="application/json", headers={"Cache-Control": "no-store"}
    )
