"""Simulates Azure Voice Live over WebSocket: its address, its authentication and its models.

The tests check its events against the vendor's own types. server.py has the server, voicelive_service.py what is
special to Voice Live, and session.py what a session does.

    async with VoiceLiveSimulator(script=my_script) as sim:
        ...                                   # a client connects to sim.ws_url, as an operator configures sim.url
        session = await sim.session(0)
        await session.event("conversation.item.truncate")
"""

import hmac
from collections.abc import Callable, Collection
from typing import Final

from app.sim.realtime.faults import IMMEDIATELY, NO_FAULTS, Faults, Timing
from app.sim.realtime.reply import Script, honest_words, parrot
from app.sim.realtime.schema import Refusal
from app.sim.realtime.server import Denial, Opening, RealtimeServer, Rejection
from app.sim.realtime.voicelive_service import VoiceLive

PATH: Final = "/voice-live/realtime"
API_VERSION: Final = "2026-07-15"


class VoiceLiveSimulator(RealtimeServer):
    """One resource of Voice Live.

    `api_key` None accepts any key, but not a missing one. `tokens` are the bearer tokens of Entra that are good
    now, by default none; None accepts any. `models` are those that the resource's region has; None is all. Both
    may be changed while it runs, and count at the next upgrade: that is how a token expires.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        tokens: Collection[str] | None = (),
        models: Collection[str] | None = None,
        script: Script = parrot,
        hears: Callable[[bytes], str] = honest_words,
        timing: Timing = IMMEDIATELY,
        faults: Faults = NO_FAULTS,
        record: bool = True,
    ) -> None:
        super().__init__(
            VoiceLive(),
            host=host,
            port=port,
            script=script,
            hears=hears,
            timing=timing,
            faults=faults,
            record=record,
        )
        self.tokens = tokens
        self.models = models
        self._api_key = api_key

    @property
    def path(self) -> str:
        return PATH

    @property
    def url(self) -> str:
        """The resource's endpoint, as the official SDK takes it."""
        return self.origin

    def deny(self, opening: Opening) -> Denial | None:
        if not self._knows(opening):
            message = (
                "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a "
                "valid key for an active subscription and use a correct regional API endpoint for your resource."
            )
            return self.denial(401, Refusal("401", message))
        version = opening.query.get("api-version")
        if version != API_VERSION:
            wrong = f"API version '{version}' is not simulated, only '{API_VERSION}'."
            return self.denial(400, Refusal("BadRequest", wrong if version else "Missing query 'api-version'."))
        if not opening.query.get("model"):
            return self.denial(400, Refusal("BadRequest", "Missing query 'model'. Agents are not simulated."))
        return None

    def reject(self, opening: Opening) -> Rejection | None:
        """Rejects a model of another region after the upgrade (realtime.md 2.9); the close code is not known."""
        model = opening.query["model"]
        if self.models is None or model in self.models:
            return None
        refusal = Refusal("invalid_model", f"Model {model} is not supported in this region", "model")
        return Rejection(refusal, 1000, "")

    def denial(self, status: int, refusal: Refusal) -> Denial:
        return Denial(status, {"error": {"code": refusal.code or str(status), "message": refusal.message}})

    def _knows(self, opening: Opening) -> bool:
        """True for a valid key or token. A key takes precedence over a token, a header over the query."""
        key = opening.headers.get("api-key") or opening.query.get("api-key")
        if key:
            return self._api_key is None or hmac.compare_digest(key.encode(), self._api_key.encode())
        scheme, _, token = opening.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and bool(token) and (self.tokens is None or token in self.tokens)
