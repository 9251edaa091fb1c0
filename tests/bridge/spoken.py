"""The backends that calls are tried with: both services, each in every audio format."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from app.backends.table import Backend, BackendEntry
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.server import RealtimeServer
from app.sim.realtime.voicelive_simulator import VoiceLiveSimulator
from app.wire.formats import AudioFormat
from app.wire.tuning import OPENAI, VOICELIVE, Tuning

KEY = "test-key"
EU = frozenset({"eu"})


@dataclass(frozen=True, slots=True)
class Spoken:
    """A service and the format it is spoken to in."""

    service: str
    audio: AudioFormat

    @property
    def server(self) -> Callable[..., RealtimeServer]:
        """What stands in for the service."""
        return RealtimeSimulator if self.service == OPENAI else VoiceLiveSimulator

    @property
    def manners(self) -> dict[str, Any]:
        """How the stand-in is made: OpenAI itself has one rate of PCM, compatible servers may have others."""
        return {"rates": (8_000, 16_000, 24_000)} if self.service == OPENAI else {}

    @property
    def pcm(self) -> bool:
        return self.audio is not AudioFormat.G711

    def backend(
        self, url: str, key: str = KEY, *, name: str = "", residency: frozenset[str] = EU, **tuning: Any
    ) -> Backend:
        """The backend as it is configured; any zone allows it."""
        model = {} if self.service == OPENAI else {"model": "gpt-realtime-2.1-datazone"}
        tuned = Tuning(self.audio, **{**model, **tuning})
        return Backend(
            BackendEntry(name or self.service, self.service, url, "A_KEY", residency, tuning=tuned), key
        )


USUAL = Spoken(OPENAI, AudioFormat.G711)
EVERY = [Spoken(service, audio) for service in (OPENAI, VOICELIVE) for audio in AudioFormat]


def each() -> pytest.MarkDecorator:
    """Runs a test with every backend as `spoken`."""
    return pytest.mark.parametrize("spoken", EVERY, ids=lambda spoken: f"{spoken.service}-{spoken.audio}")
