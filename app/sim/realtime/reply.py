"""The answers of the simulated model: the values that a script returns, and the default script, a parrot.

A script is a plain function from a ReplyRequest to a Reply. response.py turns a reply into events, whole or cut
short by an interruption.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from app.sim.realtime.audio import BYTES_PER_MS, SILENCE, duration_ms
from app.sim.speech import Sentence, sentence_for, spoken

Json = dict[str, Any]

ONE_HUGE_DELTA: Final = (1 << 30,)

UNEVEN_DELTAS: Final = (800, 2401, 3999, 1603)
"""Delta sizes in bytes of mu-law: 0.1 to 0.5 s in uneven bursts, and no multiple of a 160-byte frame after the
first, since clients must re-frame (realtime.md 1.5). Sizes of the real service are not known."""

_PURPOSES_WITH_WORDS: Final = ("greeting", "idle", "warning", "goodbye", "tool")
"""With any other purpose, or none, the parrot repeats the turn that is not answered yet."""

_PARROT_REPEATS_MS: Final = 15_000
"""Of a longer turn, the parrot repeats only the beginning, up to here."""


@dataclass(frozen=True, slots=True)
class Message:
    """A spoken item: mu-law audio at 8 kHz and its transcript (the text itself in text mode).

    `written`: as text although audio was asked for, as the real services do now and then.
    """

    transcript: str
    mulaw: bytes = field(default=b"", repr=False)
    written: bool = False

    @classmethod
    def lasting(cls, transcript: str, ms: int) -> "Message":
        """A message of `ms` milliseconds of a buzz whose every byte differs from its neighbours.

        A client that drops, repeats or swaps audio shows: the sample at n ms is not the one at n+1 ms.
        """
        pattern = bytes(range(1, 0x70)) + bytes(range(0x81, 0xF0))
        size = ms * BYTES_PER_MS
        return cls(transcript, (pattern * (size // len(pattern) + 1))[:size])


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A request to run a tool; `arguments` is JSON text. Without a `call_id` the session makes one."""

    name: str
    arguments: str = "{}"
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class ReplyError:
    """The `error` of a failed response's `status_details` (realtime.md 1.6)."""

    type: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One response: what is in it, how it ends, and how its audio leaves.

    `first_delta_ms` and `speed` (times real time; `math.inf` waits for nothing) left None take the simulator's
    Timing. `hold_after_deltas` stops production after that many deltas until `session.release()` or a
    cancellation, so that a test can act in the middle of an answer without looking at a clock. `late_deltas`
    still go out after an interruption.
    """

    output: tuple[Message | FunctionCall, ...] = ()
    status: Literal["completed", "failed", "incomplete"] = "completed"
    incomplete_reason: Literal["max_output_tokens", "content_filter"] = "max_output_tokens"
    error: ReplyError | None = None
    first_delta_ms: float | None = None
    speed: float | None = None
    delta_bytes: tuple[int, ...] = UNEVEN_DELTAS
    late_deltas: int = 0
    hold_after_deltas: int | None = None

    def __post_init__(self) -> None:
        if not self.delta_bytes or min(self.delta_bytes) < 1:
            raise ValueError(f"delta sizes must be positive: {self.delta_bytes}")


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """The input of a script: the cause of the request, its parameters, and the caller's last turn."""

    number: int  # responses of this session so far, from 1
    session: int  # the session's number, from 0: see LiveSession.number
    cause: Literal["client", "turn", "idle"]  # response.create, the VAD's end of a turn, the idle timeout
    instructions: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()  # names of the functions that may be called
    caller_mulaw: bytes = field(default=b"", repr=False)  # the unanswered turn of the caller, if any
    caller_words: str = ""  # and its transcript
    params: Mapping[str, Any] = field(default_factory=dict)  # the body of response.create
    history: tuple[Json, ...] = field(default=(), repr=False)  # wire form of the items before it
    history_mulaw: tuple[bytes, ...] = field(default=(), repr=False)  # the audio of each, as far as it is kept

    @property
    def purpose(self) -> str | None:
        return self.metadata.get("purpose")


Script = Callable[[ReplyRequest], Reply]


def parrot(request: ReplyRequest) -> Reply:
    """Repeats the caller's words, or says the sentence for a purpose (greeting, idle prompt, ...)."""
    if request.cause == "idle":
        return _say(Sentence.IDLE)
    asked = request.instructions is not None or request.purpose in _PURPOSES_WITH_WORDS
    if asked or not request.caller_mulaw:
        return _say(sentence_for(request.purpose))
    lead, closing = spoken(Sentence.YOU_SAID), spoken(Sentence.CLOSING)
    repeated = request.caller_mulaw[: _PARROT_REPEATS_MS * BYTES_PER_MS]
    pause = SILENCE * 200 * BYTES_PER_MS
    words = f"{lead.words} {request.caller_words} {closing.words}"
    return Reply((Message(words, lead.mulaw + repeated + pause + closing.mulaw),))


def word_for_word(words: str, purpose: str | None) -> Reply:
    """Returns these words as transcript. The audio is a recorded sentence that fits the purpose."""
    recorded = next((each for each in Sentence if each.words == words), sentence_for(purpose))
    return Reply((Message(words, spoken(recorded).mulaw),))


def honest_words(mulaw: bytes) -> str:
    """Returns the length of speech in place of a transcript: there is no speech recognition here."""
    return f"({duration_ms(mulaw) / 1000:.1f} s of speech)"


def _say(sentence: Sentence) -> Reply:
    speech = spoken(sentence)
    return Reply((Message(speech.words, speech.mulaw),))
