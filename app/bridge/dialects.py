"""Which wire module speaks to a configured backend, and what it shows to be let in."""

from collections.abc import Callable

from app.regions.backends import Backend
from app.wire.dialect import Authorize, Dialect, NoKey
from app.wire.openai import OpenAIRealtime
from app.wire.tuning import AZURE_OPENAI, VOICELIVE
from app.wire.voicelive import VoiceLive


def dialect_of(backend: Backend, entra_token: Callable[[], str]) -> Dialect:
    """`entra_token`: the token for a backend without a key, as it is now. Raises NoKey."""
    entry = backend.entry
    if entry.kind == VOICELIVE:
        authorize = api_key(backend.api_key) if backend.api_key else _renewed(entra_token)
        return VoiceLive(entry.url, authorize, entry.tuning)
    if entry.kind == AZURE_OPENAI:
        return OpenAIRealtime(entry.url, api_key(backend.api_key), entry.tuning, AZURE_OPENAI)
    return OpenAIRealtime(entry.url, bearer(backend.api_key), entry.tuning)


def bearer(key: str) -> Authorize:
    """OpenAI's way (realtime.md 1.1)."""
    return lambda: {"Authorization": f"Bearer {key}"}


def _renewed(token: Callable[[], str]) -> Authorize:
    """Entra ID's way: looked up for each dial (realtime.md 2.1)."""
    return lambda: {"Authorization": f"Bearer {token()}"}


def api_key(key: str) -> Authorize:
    """Azure's way (realtime.md 2.1, 3)."""
    return lambda: {"api-key": key}


def no_entra() -> str:
    """Of a process that was not asked to get tokens."""
    raise NoKey("no Entra ID token is asked for here")
