"""Which wire module speaks to a configured backend, and what it shows to be let in."""

from collections.abc import Callable

from app.regions.backends import Backend
from app.wire.dialect import Dialect, NoKey, api_key, bearer
from app.wire.openai import OpenAIRealtime
from app.wire.tuning import AZURE_OPENAI, VOICELIVE
from app.wire.voicelive import VoiceLive


def dialect_of(backend: Backend, entra_token: Callable[[], str]) -> Dialect:
    """`entra_token`: the token for a backend without a key, as it is now. Raises NoKey."""
    entry = backend.entry
    if entry.kind == VOICELIVE:
        authorize = api_key(backend.api_key) if backend.api_key else bearer(entra_token)
        return VoiceLive(entry.url, authorize, entry.tuning)
    if entry.kind == AZURE_OPENAI:
        return OpenAIRealtime(entry.url, api_key(backend.api_key), entry.tuning, AZURE_OPENAI)
    return OpenAIRealtime(entry.url, bearer(lambda: backend.api_key), entry.tuning)


def no_entra() -> str:
    """Of a process that was not asked to get tokens."""
    raise NoKey("no Entra ID token is asked for here")
