"""How fast the simulated backend is, and how it misbehaves: settings only, no behaviour."""

import math
from dataclasses import dataclass
from typing import Literal

from app.sim.realtime.schema import Refusal


@dataclass(frozen=True, slots=True)
class Timing:
    """Delays of the backend. The default waits for nothing that a test would have to wait for."""

    first_delta_ms: float = 0  # from the start of a response to its first output
    speed: float = math.inf  # audio leaves this many times faster than it plays
    transcription_ms: float = 0  # from the commit of a turn to its transcript
    session_life_s: float = 3600  # realtime.md 1.2: 60 minutes, then an error and close 1001
    clock_rate: float = 1.0  # simulated seconds in a real one, for all of the above and the idle timeout


IMMEDIATELY = Timing()

LIKE_THE_SERVICE = Timing(first_delta_ms=250, speed=5, transcription_ms=400)
"""For demonstrations. A quarter second is quick for the real one (median about 700 ms, realtime.md 5.4)."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on connections opened while it is set. The default is nothing.

    `end` strikes right after the `end_after_count`-th event of type `end_after` was sent, and an error event
    right after the first event of type `error_after`.
    """

    refuse_upgrade: int | None = None  # HTTP status in place of 101
    never_greet: bool = False  # accept the upgrade, send no session.created
    echo_format: str | None = None  # use, and echo, the format that the service calls so instead
    ignore_formats: bool = (
        False  # whatever format an update asks for, even one that is not there: keep the default
    )
    deltas_cut_samples: bool = False  # PCM deltas end in the middle of a sample
    end: Literal["abort", "internal_error", "clean", "stall", "expire"] | None = None  # 1006, 1011, 1000, -, 1001
    end_after: str = "session.created"
    end_after_count: int = 1
    error_code: str | None = None
    error_after: str = "session.updated"
    vad_does_not_cancel: bool = False  # server_vad only: speech leaves a response running (realtime.md 2.2)
    warning_every: int | None = None  # after each n-th event, a `warning`; Voice Live has them, OpenAI does not
    unknown_event_every: int | None = None  # after each n-th event, one of a type that nobody knows
    extra_fields: bool = False  # unknown members in every event and the objects inside
    transcription: Literal["prompt", "after_response", "failed", "never"] = "prompt"


NO_FAULTS = Faults()


def error_by_code(code: str) -> Refusal:
    """The `error` event that goes with a code: the texts of realtime.md 1.9 as far as they are known."""
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
