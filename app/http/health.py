"""`GET /healthz` and `GET /livez`: may this machine get calls, and does its event loop turn.

Everybody may ask and gets what a load balancer needs. Details are for operators, who send the admin token. A
request does no I/O: everything is known already.
"""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

UNAUTHORIZED = (
    "The Authorization header does not carry the admin token of this server. Send 'Authorization: Bearer' and the"
    " value of NEARCALL_ADMIN_TOKEN, or no Authorization header for the public answer."
)


@dataclass(frozen=True, slots=True)
class Health:
    """How this machine is doing."""

    down: str | None
    """Why it must get no new calls; None when it may."""
    degraded: str | None
    """What does not work although calls do; None when everything works."""
    details: Mapping[str, object]
    """For operators: how many calls there are, what waits, what is broken."""
    region: str
    """Where this machine is. Every answer says so."""
    test_numbers: tuple[str, ...] = ()
    """The numbers that test calls may dial here. They are public: only somebody with the Twilio auth token can
    dial them."""


def routes(look: Callable[[], Health], admin_token: str = "") -> list[Route]:
    """Return the two routes. Each request calls `look`. Without an admin token nobody gets details."""

    async def healthz(request: Request) -> Response:
        authorization = request.headers.get("authorization", "")
        if admin_token and authorization and not _carries(authorization, admin_token):
            return _unauthorized()
        health = look()
        status = "down" if health.down else "degraded" if health.degraded else "ok"
        why = health.down or health.degraded
        body: dict[str, object] = {"status": status, **({"why": why} if why else {}), "region": health.region}
        body["test_numbers"] = health.test_numbers
        # Requests from loopback need the token too: an operator's own proxy passes everybody's on from there.
        if admin_token and authorization:
            body |= health.details
        return _json(503 if health.down else 200, body)

    async def livez(_request: Request) -> Response:
        return _json(200, {"status": "ok"})

    return [Route("/healthz", healthz), Route("/livez", livez)]


def _carries(authorization: str, admin_token: str) -> bool:
    scheme, _, token = authorization.partition(" ")
    same = hmac.compare_digest(token.strip().encode("latin-1"), admin_token.encode())
    return scheme.lower() == "bearer" and same


def _unauthorized() -> Response:
    """A problem document (RFC 9457). The public answer instead would look as if the token had been accepted."""
    problem = {"title": "Unauthorized", "status": 401, "detail": UNAUTHORIZED}
    return _json(401, problem, "application/problem+json", {"WWW-Authenticate": "Bearer"})


def _json(
    status: int,
    body: Mapping[str, object],
    media_type: str = "application/json",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Response:
    return Response(
        orjson.dumps(body), status, media_type=media_type, headers={"Cache-Control": "no-store", **headers}
    )
