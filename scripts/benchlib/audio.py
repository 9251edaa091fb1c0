"""Measures the conversion to PCM for a backend: its time, delay and memory. Part of scripts/bench."""

import base64
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import orjson

from app.wire.dialect import Dialect, bearer
from app.wire.formats import AudioFormat
from app.wire.openai import OpenAIRealtime
from app.wire.pcm import FromMulaw, ToMulaw
from app.wire.transcoded import ITEMS_MAX, Transcoded

FRAME_MS = 20
DELTA_MS = 200
"""A piece of agent speech. Services send more at once: the longer, the less a frame of it costs."""
ROUNDS = 200
REPEATS = 50
SAMPLE_BYTES = 2
MULAW_HZ = 8_000

DIALECT = OpenAIRealtime("https://api.openai.com/v1", bearer(lambda: "sk-none"))


@dataclass(frozen=True, slots=True)
class Spoken:
    """One format. Costs are of a frame with all that is done to it: base64, JSON, mu-law, filter."""

    caller_us: float
    agent_us: float
    caller_late_ms: float
    agent_late_ms: float
    """How much audio has to have come before the first of it can go on."""
    state_bytes: int
    """Of one call, with as many items as are kept."""


def measure_audio() -> Mapping[AudioFormat, Spoken]:
    """Every format; G.711 is passed through."""
    return {each: _spoken(each) for each in AudioFormat}


def _spoken(audio_format: AudioFormat) -> Spoken:
    if audio_format is AudioFormat.G711:
        return Spoken(_caller_us(DIALECT), _agent_us(DIALECT, DELTA_MS * MULAW_HZ // 1000), 0, 0, 0)
    dialect, rate_hz = Transcoded(DIALECT, audio_format), audio_format.rate_hz
    delta_bytes = DELTA_MS * rate_hz // 1000 * SAMPLE_BYTES
    caller_us, agent_us = _caller_us(dialect), _agent_us(dialect, delta_bytes)
    for number in range(ITEMS_MAX):
        dialect.parse(_delta(delta_bytes + 1, f"item_{number}"))
    return Spoken(caller_us, agent_us, _caller_late_ms(rate_hz), _agent_late_ms(rate_hz), state_bytes(dialect))


# --- Time ------------------------------------------------------------------------------------


def _caller_us(dialect: Dialect) -> float:
    """One frame at a time, as Twilio sends them."""
    frame = base64.b64encode(_noise(FRAME_MS * MULAW_HZ // 1000)).decode()
    return _least_us(lambda: dialect.append(frame))


def _agent_us(dialect: Dialect, delta_bytes: int) -> float:
    message = _delta(delta_bytes, "item_1")
    return _least_us(lambda: dialect.parse(message)) / (DELTA_MS / FRAME_MS)


def _least_us(act: Callable[[], object]) -> float:
    """The best round: what the others took longer is what the machine's other cores and tenants cost."""
    took_ns: list[int] = []
    for _ in range(ROUNDS):
        began_ns = time.thread_time_ns()
        for _ in range(REPEATS):
            act()
        took_ns.append(time.thread_time_ns() - began_ns)
    return min(took_ns) / REPEATS / 1000


def _delta(pcm_bytes: int, item_id: str) -> bytes:
    delta = base64.b64encode(_noise(pcm_bytes)).decode()
    kind = "response.output_audio.delta"
    return orjson.dumps({"type": kind, "response_id": "resp_1", "item_id": item_id, "delta": delta})


def _noise(length: int) -> bytes:
    return np.random.default_rng(1).bytes(length)


# --- Delay -----------------------------------------------------------------------------------


def _caller_late_ms(rate_hz: int) -> float:
    """Where a click comes out."""
    made = FromMulaw(rate_hz).convert(b"\x90" + b"\xff" * 100)
    return int(np.frombuffer(made, "<i2").argmax()) / rate_hz * 1000


def _agent_late_ms(rate_hz: int) -> float:
    """Beyond the first sample itself: how many more are asked for."""
    item, taken = ToMulaw(rate_hz), 1
    while not item.convert(bytes(SAMPLE_BYTES)):
        taken += 1
    return (taken - 1) / rate_hz * 1000


# --- Memory ----------------------------------------------------------------------------------

_SHARED = ("_dialect", "_filter")
"""What all calls have together."""


def state_bytes(thing: object) -> int:
    """An object with everything that only it holds."""
    held: list[object] = []
    if isinstance(thing, dict):
        held = [*thing, *thing.values()]
    elif not isinstance(thing, bytes | str | int):
        names = [name for name in getattr(type(thing), "__slots__", ()) if name not in _SHARED]
        held = [getattr(thing, name) for name in names]
    return sys.getsizeof(thing) + sum(state_bytes(each) for each in held)
