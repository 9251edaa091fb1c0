"""The speed and the faults of a simulated backend: settings only, no behaviour."""

import math
from dataclasses import dataclass
from typing import Literal

from app.sim.realtime.schema import Refusal


@dataclass(frozen=True, slots=True)
class Timing:
    """The delays of the backend. With the defaults, no test has to wait for anything."""

    first_delta_ms: float = 0  # from the start of a response to its first output
    speed: float = math.inf  # audio leaves this many times faster than it plays
    transcription_ms: float = 0  # from the commit of a turn to its transcript
    session_life_s: float = 3600  # realtime.md 1.2: 60 minutes, then an error and close 1001
    clock_rate: float = 1.0  # simulated seconds in a real one, for all of the above and the idle timeout


IMMEDIATELY = Timing()

LIKE_THE_SERVICE = Timing(first_delta_ms=250, speed=5, transcription_ms=400)
"""For demonstrations. A quarter of a second is fast: the median of the real service is about 700 ms
(realtime.md 5.4)."""


End = Literal["abort", "reset", "internal_error", "clean", "stall", "expire"]
"""How a connection ends.

`abort` drops TCP without a close frame (the client sees 1006) and `reset` does so with a TCP RST. `internal_error`
closes with 1011 and `clean` with 1000. `expire` sends session_expired and closes with 1001. `stall` closes
nothing, but no event is sent and nothing is read any more, pings included."""


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of connections that are opened while it is set. The default is none.

    `end` says how the connection ends, and `end_after` or `end_before` at which point of the protocol. With
    `end_after` it ends right after the server has sent the `end_after_count`-th event of that type. With
    `end_before`, which then replaces `end_after`, it ends when the client's `end_before_count`-th event of that
    type arrives: the event is recorded and not acted on. `end_before` is a type of event, as `session.update`, or
    the type of the item in a `conversation.item.create`, as `function_call_output`. An error event is sent right
    after the first event of type `error_after`.
    """

    refuse_upgrade: int | None = None  # HTTP status in place of 101
    never_greet: bool = False  # accept the upgrade, send no session.created
    echo_format: str | None = None  # use and echo this format (the service's name for it), whatever was asked for
    ignore_formats: bool = False  # keep the default format, whatever an update asks for, even an unknown one
    deltas_cut_samples: bool = False  # PCM deltas end in the middle of a sample
    end: End | None = None
    end_after: str = "session.created"
    end_after_count: int = 1
    end_before: str | None = None
    end_before_count: int = 1
    error_code: str | None = None
    error_after: str = "session.updated"
    vad_does_not_cancel: bool = False  # server_vad only: speech leaves a response running (realtime.md 2.2)
    warning_every: int | None = None  # after each n-th event, a `warning`, which only Voice Live has
    unknown_event_every: int | None = None  # after each n-th event, one of an unknown type
    extra_fields: bool = False  # unknown members in every event and the objects inside
    transcription: Literal["prompt", "after_response", "failed", "never"] = "prompt"


NO_FAULTS = Faults()


def error_by_code(code: str) -> Refusal:
    """The `error` event for a code, with the text in realtime.md 1.9 where that is known."""
    match code:
        case "session_expired":
            return Refusal(code, "Your session hit the maximum duration of 60 minutes.")
        case "insufficient_quota":
            message = "You exceeded your current quota, please check your plan and billing details."
            return Refusal(code, message, kind="insufficient_quota")
        case "invalid_api_key":
            return Refusal(code, "Incorrect API key provided.")
        case "rate_limit_exceeded":
            return Refusal(code, "Rate limit reached. Please try again in 1.2s.", kind="rate_limit_exceeded")
        case "beta_api_shape_disabled":
            message = "The Realtime Beta API is no longer supported. Please use /v1/realtime for the GA API."
            return Refusal(code, message)
        case "server_error":
            return Refusal(None, "The server had an error while processing your request.", kind="server_error")
        case _:
            return Refusal(code, f"Simulated error '{code}'.")
