"""The HTTP server: uvicorn with limits on connections, and WebSocket upgrades handed over to picows."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Generator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from app.bridge.front import Front, http_protocol
from app.bridge.handover import AnswerUpgrade, ws_protocol
from app.process import StartError

REGION_HEADER = "Nearcall-Region"
"""The region of the machine that answers: in every answer, also in the 101 of a stream, for `nearcall call`."""

GRACEFUL_SHUTDOWN_S = 2
"""How long uvicorn waits for the last answers. Calls have ended by then: streams are not among its connections."""

log = logging.getLogger("nearcall.http")


@contextlib.asynccontextmanager
async def http_server(
    listener: socket.socket, routes: Sequence[Route], answer_upgrade: AnswerUpgrade, front: Front, region: str
) -> AsyncIterator["asyncio.Task[None]"]:
    """Serve HTTP on `listener` until the block ends. Raises StartError when the server does not come up.

    The block gets the server's task, which ends early only when the server fails.
    """
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # a redirect changes the URL that Twilio signed (twilio.md 3.6)
    headers = {REGION_HEADER: region}
    server = _Server(
        uvicorn.Config(
            app,
            ws=ws_protocol(answer_upgrade, headers),  # type: ignore[arg-type]  # any protocol factory works
            http=http_protocol(front),  # type: ignore[arg-type]  # any protocol factory works
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            headers=[*headers.items()],
            proxy_headers=False,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
            fd=None,
            host=listener.getsockname()[0],
        )
    )
    serving = asyncio.create_task(server.serve([listener]), name="http")
    try:
        await _started(server, serving)
        yield serving
    finally:
        await _stop(server, serving)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: those would close connections before calls have ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _started(server: uvicorn.Server, serving: "asyncio.Task[None]") -> None:
    while not server.started:
        if serving.done():
            serving.result()
            raise StartError("The HTTP server stopped before it had started.")
        await asyncio.sleep(0)


async def _stop(server: uvicorn.Server, serving: "asyncio.Task[None]") -> None:
    server.should_exit = True
    await asyncio.wait({serving})
    error = None if serving.cancelled() else serving.exception()
    if error is not None:
        log.error("http_server_failed", exc_info=error)
