"""The agent's side of a simulated session: starts responses, and cancels or truncates them.

One response at a time writes to the conversation (realtime.md 1.6). response.py turns one into events; the script
decides what it says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from app.sim.realtime.billing import Billing
from app.sim.realtime.playback import Playback
from app.sim.realtime.reply import Reply, ReplyRequest, word_for_word
from app.sim.realtime.response import Response
from app.sim.realtime.schema import Refusal
from app.sim.realtime.service import InputTokens, ResponseSettings
from app.sim.realtime.state import SessionState

Json = dict[str, Any]
Cause = Literal["client", "turn", "idle"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of the caller that has no answer yet."""

    mulaw: bytes
    words: str


class Responses:
    """All responses of one session.

    `on_start` is called when one begins in the conversation, `on_done` when any is over: with the playing time of
    its audio, or None when it ran beside the conversation.
    """

    def __init__(self, state: SessionState) -> None:
        self.on_start: Callable[[], None] = lambda: None
        self.on_done: Callable[[int | None], None] = lambda _: None
        self.has_spoken = False
        self._state = state
        self._conversation_id = state.ids.new("conv")
        self._active: Response | None = None
        self._beside: dict[str, Response] = {}  # responses with conversation "none"
        self._unanswered: Turn | None = None
        self._count = 0
        self._billing = Billing()
        self._playback = Playback()

    @property
    def now(self) -> list[Response]:
        """The responses in progress."""
        return [*self._beside.values(), *([self._active] if self._active else [])]

    def heard(self, turn: Turn) -> None:
        """Stores a complete turn of the caller for the next response."""
        self._unanswered = turn

    def create_by_itself(self, cause: Literal["turn", "idle"]) -> None:
        """Starts a response without a client event. Sends an `error` event when it may not start."""
        try:
            self.create(cause, {})
        except Refusal as refusal:
            self._state.events_out.refuse(refusal)

    def create(self, cause: Cause, params: Json) -> None:
        """Starts a response. Raises Refusal when one is active, or when it cannot be as asked."""
        state = self._state
        in_band = params.get("conversation", "auto") == "auto"
        if in_band and self._active:
            raise Refusal(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {self._active.id}. "
                "Wait until the response is finished before creating a new one.",
            )
        settings = state.service.response(
            state.config,
            params,
            has_spoken=self.has_spoken,
            conversation_id=self._conversation_id if in_band else None,
        )
        reply, tokens = self._reply(settings, self._request(cause, params, in_band=in_band))
        response = Response(
            reply,
            settings=settings,
            tokens=tokens,
            state=state,
            playback=self._playback if in_band else None,
            on_done=self._done,
        )
        if in_band:
            self._active = response
            self.on_start()
        else:
            self._beside[response.id] = response
        self.has_spoken = self.has_spoken or settings.modality == "audio"
        response.begin()
        self._tell_rate_limits()

    def cancel(self, response_id: str | None) -> None:
        """The client's cancel. Raises Refusal when there is no such response."""
        found = self._beside.get(response_id or "") or self._active
        if found is None or response_id not in (None, found.id):
            raise Refusal("response_cancel_not_active", "Cancellation failed: no active response found")
        found.cancel("client_cancelled")

    def interrupt(self, *, truncate: bool) -> None:
        """Cancels the active response: the caller interrupts. `truncate` also cuts audio that is not played."""
        if self._active:
            self._active.cancel("turn_detected")
        if truncate:
            for item_id, played_ms in self._playback.cut(self._state.clock.now_ms):
                self._truncate(item_id, played_ms)

    def release(self) -> None:
        """Resumes responses that hold after some deltas."""
        for response in self.now:
            response.release()

    def _truncate(self, item_id: str, played_ms: int) -> None:
        item = self._state.conversation.find(item_id)
        if item is None or item.audio_ms <= played_ms:
            return  # the client deleted it, or cut it itself
        self._state.truncate(item_id, 0, played_ms)

    def _reply(self, settings: ResponseSettings, request: ReplyRequest) -> tuple[Reply, InputTokens]:
        state = self._state
        if settings.words is not None:
            return word_for_word(settings.words, request.purpose), InputTokens(0, 0, 0, 0)
        tokens = self._billing.input_tokens(state.config, dict(request.params), state.conversation)
        return state.behaviour.script(request), tokens

    def _request(self, cause: Cause, params: Json, *, in_band: bool) -> ReplyRequest:
        self._count += 1
        tools = {**self._state.config, **params}["tools"]
        turn = self._unanswered if in_band else None
        return ReplyRequest(
            number=self._count,
            session=self._state.ids.session,
            cause=cause,
            instructions=params.get("instructions"),
            metadata=params.get("metadata") or {},
            tools=tuple(tool["name"] for tool in tools if tool["type"] == "function"),
            caller_mulaw=turn.mulaw if turn else b"",
            caller_words=turn.words if turn else "",
            params=params,
            history=tuple(item.wire for item in self._state.conversation),
            history_mulaw=tuple(item.mulaw for item in self._state.conversation),
        )

    def _done(self, response: Response) -> None:
        in_band = response is self._active
        if in_band:
            self._active = None
            if response.status != "failed":
                self._unanswered = None
        else:
            self._beside.pop(response.id, None)
        self._tell_rate_limits()
        self.on_done(response.audio_ms if in_band else None)

    def _tell_rate_limits(self) -> None:
        if self._state.service.tells_rate_limits:
            limits = self._billing.rate_limits(len(self.now), is_active=self._active is not None)
            self._state.events_out.emit("rate_limits.updated", rate_limits=limits)
