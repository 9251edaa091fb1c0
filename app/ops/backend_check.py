"""How a backend does when it is tried, and in plain words what is wrong with it and who can mend it.

Refuses to know how it is tried (app/bridge/trial.py) and how the answer is printed.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from app.bridge.backend import DialError
from app.bridge.trial import FORMAT, attempt
from app.call.plan import Plan
from app.regions.backends import Backend
from app.wire.dialect import Dialect
from app.wire.formats import AudioFormat
from app.wire.tuning import AZURE_OPENAI, VOICELIVE


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
        return Checked(*known, problem=str(error), hint=_hint(error, backend, model))
    return Checked(*known, trial.opened_ms, trial.configured_ms, trial.first_audio_ms)


def _hint(error: DialError, backend: Backend, model: str) -> str | None:
    """What to do about it; None when the problem says all that is known."""
    entry = backend.entry
    host = urlsplit(entry.url).hostname
    match error.status, error.code:
        case (401 | 403, _) | (_, "invalid_api_key") if not backend.api_key:
            return f"The identity needs the role 'Cognitive Services User' or 'Foundry User' on {host}."
        case (401 | 403, _) | (_, "invalid_api_key"):
            return f"{entry.key} does not have a key that {host} accepts."
        case (429, _) | (_, "rate_limit_exceeded"):
            return "Its quota for this minute is used up: wait, raise it, or spread calls over more backends."
        case (_, "insufficient_quota" | "billing_hard_limit_reached"):
            return f"The account behind {entry.key or host} has no credit left."
        case (_, "invalid_model" | "model_not_found"):
            return _other_model(entry.kind, model)
        case (400 | 404, _):
            return f"Is the url right? {_other_model(entry.kind, model)}"
        case (_, code) if code == FORMAT:
            return _other_format(entry.tuning.audio)
        case (None, ""):
            return f"Is {entry.url} right, and can it be reached from here?"
        case (_, "unknown_parameter" | "invalid_value" | "missing_required_parameter"):
            return "It does not take a setting of this backend's table, or of the built-in tenant."
    return None


def _other_model(kind: str, model: str) -> str:
    match kind:
        case _ if kind == AZURE_OPENAI:
            return f"There has to be a deployment called {model}: `model` of the backend's table names another."
        case _ if kind == VOICELIVE:
            another = "`model` of the backend's table, or AZURE_VOICELIVE_MODEL, names another"
            return f"The resource's region does not have {model}: {another}."
    return f"There has to be a model {model} for this key: `model` of the backend's table names another."


def _other_format(asked: AudioFormat) -> str:
    others = ", ".join(f'"{each}"' for each in AudioFormat if each is not asked)
    return f'It does not speak "{asked}": set `audio` of the backend\'s table to what it echoes, one of {others}.'
