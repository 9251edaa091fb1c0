"""Counts what a simulated session uses: context tokens, transcriptions, rate limits (realtime.md 1.12, 1.13).

responses.py decides when something is billed and reported.
"""

from typing import Any, Final

from app.sim.realtime.items import USER_MS_PER_TOKEN, Conversation, tokens_of_text
from app.sim.realtime.service import InputTokens

Json = dict[str, Any]

_CACHE_BLOCK_TOKENS: Final = 64  # cached tokens come in whole blocks
_DURATION_BILLED: Final = ("whisper-1", "gpt-realtime-whisper")  # transcription usage in seconds, not tokens
_REQUESTS_PER_MINUTE: Final = 5_000  # tier 3, realtime.md 1.13
_TOKENS_PER_MINUTE: Final = 800_000
_TOKENS_RESERVED: Final = 4_096  # for the output of a response in progress


class Billing:
    """The usage of one session."""

    def __init__(self) -> None:
        self._cached = (0, 0)  # text and audio tokens of the latest context

    def input_tokens(self, config: Json, params: Json, conversation: Conversation) -> InputTokens:
        """Returns the context that a response bills (realtime.md 1.12), cached as far as the last one had it."""
        instructions = tokens_of_text(params.get("instructions") or config["instructions"])
        if "input" in params:
            return InputTokens(instructions + tokens_of_text(str(params["input"])), 0, 0, 0)
        text = instructions + conversation.text_tokens()
        audio = conversation.audio_tokens()
        cached_text, cached_audio = (
            min(now, before) // _CACHE_BLOCK_TOKENS * _CACHE_BLOCK_TOKENS
            for now, before in zip((text, audio), self._cached, strict=True)
        )
        self._cached = (text, audio)
        return InputTokens(text, audio, cached_text, cached_audio)

    def rate_limits(self, requests: int, *, is_active: bool) -> list[Json]:
        """Returns the limits. A response reserves tokens at its start and gives back the rest at its end."""
        tokens = sum(self._cached) + (_TOKENS_RESERVED if is_active else 0)
        return [
            _rate_limit("requests", _REQUESTS_PER_MINUTE, requests),
            _rate_limit("tokens", _TOKENS_PER_MINUTE, tokens),
        ]


def transcription_usage(model: str, audio_ms: int, words: str) -> Json:
    """The `usage` of a caller's transcript: seconds or tokens, as its model is billed (realtime.md 1.5)."""
    if model in _DURATION_BILLED:
        return {"type": "duration", "seconds": audio_ms / 1000}
    audio, text = audio_ms // USER_MS_PER_TOKEN, tokens_of_text(words)
    return {
        "type": "tokens",
        "total_tokens": audio + text,
        "input_tokens": audio,
        "input_token_details": {"text_tokens": 0, "audio_tokens": audio},
        "output_tokens": text,
    }


def _rate_limit(name: str, limit: int, used: int) -> Json:
    used = min(used, limit)
    return {"name": name, "limit": limit, "remaining": limit - used, "reset_seconds": 60 * used / limit}
