"""What a call leaves behind: immutable facts, each with a key of its own.

A record is made once by the core and may be written any number of times: its key makes the second write a
no-op. Instants are Unix milliseconds.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from app.call.evidence import Evidence


class Speaker(StrEnum):
    """Who spoke a turn."""

    CALLER = "caller"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A stream has begun. `leg` tells the streams of one call apart (a resumed call has several).

    Without `stream_sid` there was no conversation: the call was not taken, or ended before the agent was ready.
    """

    call_sid: str
    leg: str
    tenant: str
    zone: str
    region: str
    backend: str
    model: str
    stream_sid: str
    caller: str = field(repr=False)
    called: str = field(repr=False)
    started_ms: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the conversation, finished."""

    call_sid: str
    leg: str
    seq: int
    """From 0 in the order in which the turns began."""
    speaker: Speaker
    said: str | None = field(repr=False)
    """None: the backend gave no transcript."""
    heard: str | None = field(repr=False)
    """Of an agent's turn the words that reached the caller; for the caller's own turns the same as `said`."""
    started_ms: int
    ended_ms: int
    backend: str
    interrupted: bool = False
    said_ms: int = 0
    """Length of the turn's audio."""
    heard_ms: int = 0
    """How much of it was played to the caller."""
    answer_sent_ms: int | None = None
    """From the end of the caller's speech to the first agent audio sent; None: no speech came before."""
    answer_heard_ms: int | None = None
    """The same to the first agent audio played at the phone."""
    input_text_tokens: int = 0
    input_audio_tokens: int = 0
    cached_text_tokens: int = 0
    cached_audio_tokens: int = 0
    output_text_tokens: int = 0
    output_audio_tokens: int = 0
    model: str = ""
    """What spoke the agent's turn, or wrote down the caller's."""
    cost_microusd: int | None = None
    """Millionths of a US dollar; None until a price table was asked, or when it does not know."""


@dataclass(frozen=True, slots=True)
class CallEvent:
    """Something worth knowing about a call that is not a turn: a fault, a tool, a limit."""

    call_sid: str
    leg: str
    seq: int
    at_ms: int
    kind: str
    detail: str = ""
    """Codes and counts only; nothing that was spoken."""
    evidence: Evidence | None = None
    """Where the call was handled, in the two kinds of event that say so; None in all others."""


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The last record of a leg."""

    call_sid: str
    leg: str
    ended_ms: int
    reason: str
    turns: int


Record = CallStarted | Turn | CallEvent | CallEnded
