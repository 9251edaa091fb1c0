"""`GET /healthz` and `GET /livez`: may this machine get calls, and does its event loop turn.

Everybody may ask, and is told what a load balancer needs. The rest is for whoever shows the admin token.

No I/O in the request: everything is known already.

"Down" (503) takes a machine out of Fly's routing. When every machine is down the edge has no candidate, and the
caller hears Twilio's own error (fly.md 11 and 18, PR01). No machine can know how the others are, so a machine is
down only for reasons that end by themselves: it is about to stop, or it has just started. A machine that reaches
no backend, or has no room, stays up: it sends each call on to the next region itself (app/regions/routing.py),
and where no region is left it says the sentence.
"""

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.regions.routing import Here

STARTING_LIMIT_S = 60.0
"""How long a machine that does not know yet whose numbers there are stays out of the routing. It usually takes two
seconds. When it takes longer the database is away, perhaps for all machines."""


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
    test_numbers: tuple[str, ...] = ()
    """What test calls may dial here. Told to everybody: who has no Twilio auth token cannot dial them."""


def verdict(here: Here, up_s: float, troubles: Sequence[str]) -> tuple[str | None, str | None]:
    """Why this machine must get no new calls, and what does not work though it may; None: nothing.

    `up_s`: since its start. `troubles`: what else does not work while calls go on, the worst first.
    """
    if here.draining:
        return "draining", None
    if here.starting and up_s < STARTING_LIMIT_S:
        return "starting", None
    states = (("starting", here.starting), ("no_backend", not here.usable), ("full", here.full))
    return None, next(chain((why for why, holds in states if holds), troubles), None)


def routes(look: Callable[[], Health], admin_token: str = "") -> list[Route]:
    """The two routes; `look` is asked for each request. Without an admin token nobody is told details."""

    async def healthz(request: Request) -> Response:
        health = look()
        status = "down" if health.down else "degraded" if health.degraded else "ok"
        why = health.down or health.degraded
        body: dict[str, object] = {"status": status, **({"why": why} if why else {}), "region": health.region}
        body["test_numbers"] = health.test_numbers
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
