"""Simulates the OpenAI Realtime backend (GA) over WebSocket: its address and its authentication.

Tests use it, and it is the backend of a nearcall without an API key. The tests check its events against the
vendor's own types. server.py has the server, openai_service.py what is special to OpenAI, and session.py what a
session does. The load test has a cheaper backend for thousands of sessions, scripts/benchlib/backend.py, which
sends the same events on a fixed script.

    async with RealtimeSimulator(script=my_script) as sim:
        ...                                   # a client connects to sim.ws_url
        session = await sim.session(0)
        await session.event("conversation.item.truncate")
"""

import hmac
from collections.abc import Callable, Sequence
from typing import Final

from app.sim.realtime.faults import IMMEDIATELY, NO_FAULTS, Faults, Timing, error_by_code
from app.sim.realtime.openai_service import OpenAI
from app.sim.realtime.reply import Script, honest_words, parrot
from app.sim.realtime.schema import Refusal
from app.sim.realtime.server import Denial, Opening, RealtimeServer, Rejection

PATH: Final = "/v1/realtime"


class RealtimeSimulator(RealtimeServer):
    """OpenAI or, with other `rates` and `g711`, a third-party server with its protocol.

    `api_key` None accepts any bearer, but not a missing one. PCM is taken at `rates`, and G.711 only with `g711`.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        script: Script = parrot,
        hears: Callable[[bytes], str] = honest_words,
        timing: Timing = IMMEDIATELY,
        faults: Faults = NO_FAULTS,
        record: bool = True,
        rates: Sequence[int] = (24_000,),
        g711: bool = True,
    ) -> None:
        super().__init__(
            OpenAI(rates, g711=g711),
            host=host,
            port=port,
            script=script,
            hears=hears,
            timing=timing,
            faults=faults,
            record=record,
        )
        self._api_key = api_key

    @property
    def path(self) -> str:
        return PATH

    @property
    def url(self) -> str:
        """The base URL as the official SDK takes it."""
        return f"{self.origin}/v1"

    def deny(self, opening: Opening) -> Denial | None:
        scheme, _, key = opening.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            return self.denial(401, Refusal(None, "Missing bearer authentication in header."))
        if self._api_key is not None and not hmac.compare_digest(key.encode(), self._api_key.encode()):
            return self.denial(401, error_by_code("invalid_api_key"))
        return None

    def reject(self, opening: Opening) -> Rejection | None:
        """Some refusals come after the upgrade: an error event, then close 4000 (realtime.md 1.1)."""
        if "openai-beta" in opening.headers:
            return _rejection(error_by_code("beta_api_shape_disabled"))
        if not opening.query.get("model"):
            missing = "Missing required parameter: 'model'."
            return _rejection(Refusal("missing_required_parameter", missing, "model"))
        return None

    def denial(self, status: int, refusal: Refusal) -> Denial:
        error = {
            "message": refusal.message,
            "type": refusal.kind,
            "param": refusal.param,
            "code": refusal.code,
        }
        return Denial(status, {"error": error})


def _rejection(refusal: Refusal) -> Rejection:
    return Rejection(refusal, 4000, f"{refusal.kind}.{refusal.code}")
