"""`GET /healthz` and `GET /livez`: may this machine get calls, and does its event loop turn.

No I/O in the request: everything is known already. Degraded is not down: a ledger that cannot write does not
stop calls.
"""

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


def routes(look: Callable[[], Health]) -> list[Route]:
    """The two routes; `look` is asked for each request."""

    async def healthz(_request: Request) -> Response:
        health = look()
        status = "down" if health.down else "degraded" if health.degraded else "ok"
        why = health.down or health.degraded
        body = {"status": status, **({"why": why} if why else {}), **health.details}
        return _json(503 if health.down else 200, body)

    async def livez(_request: Request) -> Response:
        return _json(200, {"status": "ok"})

    return [Route("/healthz", healthz), Route("/livez", livez)]


def _json(status: int, body: Mapping[str, object]) -> Response:
    return Response(
        orjson.dumps(body), status, media_type="application/json", headers={"Cache-Control": "no-store"}
    )
