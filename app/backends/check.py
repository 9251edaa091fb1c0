"""Checks a backend for an operator: says what is wrong with it, and what can be done about that.

app/backends/probe.py tries the backend; app/cli/backends.py prints the answer.
"""

from dataclasses import dataclass, replace
from typing import assert_never
from urllib.parse import urlsplit

from app.backends.dial import DialError
from app.backends.probe import attempt
from app.backends.table import Backend, BackendEntry
from app.call.failure import BackendFailure, Remedy
from app.call.plan import Plan
from app.wire.dialect import Dialect
from app.wire.formats import AudioFormat
from app.wire.tuning import AZURE_OPENAI, VOICELIVE, flaws


@dataclass(frozen=True, slots=True)
class Checked:
    """One backend."""

    backend: str
    kind: str
    url: str
    model: str
    audio: str
    opened_ms: float | None = None
    """From the beginning of the dialling to the backend's first message."""
    configured_ms: float | None = None
    """From there to the echo of the formats that were asked for."""
    first_audio_ms: float | None = None
    """From the wish for a greeting to its first sound; None as well when it was not asked for."""
    problem: str | None = None
    hint: str | None = None

    @property
    def good(self) -> bool:
        """True when a call would work."""
        return self.problem is None


async def check_backend(backend: Backend, dialect: Dialect, plan: Plan, *, speak: bool) -> Checked:
    """Try it as a call would. Never raises for anything that is wrong with it."""
    entry = backend.entry
    model = dialect.fitted(plan).model
    known = (entry.name, entry.kind, entry.url, model, entry.tuning.audio.value)
    try:
        trial = await attempt(dialect, plan, speak=speak)
    except DialError as error:
        return Checked(*known, problem=str(error), hint=advice(error.failure, backend, model))
    return Checked(*known, trial.opened_ms, trial.configured_ms, trial.first_audio_ms)


def advice(failure: BackendFailure, backend: Backend, model: str) -> str | None:
    """What an operator can do about a failure; None when its text says all that is known."""
    entry = backend.entry
    host = urlsplit(entry.url).hostname
    match failure.remedy:
        case Remedy.MISSING_KEY:
            key = "AZURE_VOICELIVE_API_KEY" if entry.name == VOICELIVE else _field("key", entry)
            return f"Set {key}, or an identity: README, Backends, has how."
        case Remedy.KEY if not backend.api_key:
            return f"The identity needs the role 'Cognitive Services User' or 'Foundry User' on {host}."
        case Remedy.KEY:
            return f"{entry.key} does not have a key that {host} accepts."
        case Remedy.RATE_LIMIT:
            return "Its quota for this minute is used up: wait, raise it, or spread calls over more backends."
        case Remedy.CREDIT:
            return f"The account behind {entry.key or host} has no credit left."
        case Remedy.MODEL:
            return _other_model(entry, model)
        case Remedy.ADDRESS_OR_MODEL:
            return f"Is {entry.url} right? If so: {_other_model(entry, model)}"
        case Remedy.FORMAT:
            return _other_format(entry)
        case Remedy.VOICE:
            return (
                f"Is {model} a model that speaks? If so: {_field('voice', entry)} should be one that it has, and "
                "its server has to allow audio as output."
            )
        case Remedy.SERVER:
            return f"Is {entry.url} right? If so, wait, or ask whoever runs {host}: the fault is there."
        case Remedy.ADDRESS:
            return f"Is {entry.url} right, and can it be reached from here?"
        case Remedy.SETTING:
            return f"It does not take a setting of [backends.{entry.name}] or [default] in {_FILE}."
        case Remedy.NOTHING:
            return None
        case _:
            assert_never(failure.remedy)


_FILE = "the file of NEARCALL_CONFIG"


def _field(name: str, entry: BackendEntry) -> str:
    """Where it is set."""
    return f"`{name}` of [backends.{entry.name}] in {_FILE}"


def _other_model(entry: BackendEntry, model: str) -> str:
    another = f"set {_field('model', entry)} to another."
    match entry.kind:
        case _ if entry.kind == AZURE_OPENAI:
            return f"There has to be a deployment called {model}; {another}"
        case _ if entry.kind == VOICELIVE:
            if entry.name == VOICELIVE:
                another = f"set AZURE_VOICELIVE_MODEL, or {_field('model', entry)}, to another."
            return f"The resource's region does not have {model}; {another}"
    return f"There has to be a model {model} for this key; {another}"


def _other_format(entry: BackendEntry) -> str:
    asked = entry.tuning.audio
    possible = (each for each in AudioFormat if not any(flaws(entry.kind, replace(entry.tuning, audio=each))))
    others = ", ".join(f'"{each}"' for each in possible if each is not asked)
    audio = _field("audio", entry)
    return f'It does not speak "{asked}": {audio} should be what it speaks, one of {others}.'
