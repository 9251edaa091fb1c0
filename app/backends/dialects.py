"""Which wire module speaks to a configured backend, and what it shows to be let in."""

from collections.abc import Iterable

from app.backends.entra import EntraTokens
from app.backends.table import Backend
from app.wire.dialect import Dialect, api_key, bearer
from app.wire.openai import OpenAIRealtime
from app.wire.tuning import AZURE_OPENAI, VOICELIVE
from app.wire.voicelive import VoiceLive


def wants_entra(backends: Iterable[Backend]) -> bool:
    """True when Entra ID opens any of them."""
    return not all(backend.api_key for backend in backends)


def dialect_of(backend: Backend, tokens: EntraTokens) -> Dialect:
    """`tokens`: what opens a backend without a key; they need not be started for others."""
    entry = backend.entry
    if entry.kind == VOICELIVE:
        authorize = api_key(backend.api_key) if backend.api_key else bearer(tokens.current)
        return VoiceLive(entry.url, authorize, entry.tuning)
    if entry.kind == AZURE_OPENAI:
        return OpenAIRealtime(entry.url, api_key(backend.api_key), entry.tuning, AZURE_OPENAI)
    return OpenAIRealtime(entry.url, bearer(lambda: backend.api_key), entry.tuning)
