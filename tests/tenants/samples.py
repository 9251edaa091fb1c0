"""Tenants for the tests."""

from typing import Any

from hypothesis import strategies as st

from app.call.plan import PAUSES, Plan
from app.tenants.document import parse_document
from app.tenants.fields import MAX_CALL_LIMIT_S, Known
from app.tenants.store import TenantRow
from app.tenants.tenant import Tenant, tenants_in

KNOWN = Known({"global", "eu"}, {"openai", "openai-eu", "voicelive"})


def tenants(text: str) -> dict[str, Tenant]:
    """The tenants of a file's text."""
    return tenants_in(parse_document(text, "t.toml"), KNOWN)


def rows(text: str) -> dict[str, TenantRow]:
    """As they are stored."""
    return {name: TenantRow(one.content, one.numbers) for name, one in sorted(tenants(text).items())}


def acme(greeting: str = "Hello.", number: str = "+4930123456") -> str:
    """A small file."""
    return f'[tenants.acme]\nnumbers = ["{number}"]\ngreeting = "{greeting}"\n'


BETA = '[tenants.beta]\nnumbers = ["+4930123457", "+4930123458"]\nzone = "eu"\n'

NUMBERS = st.from_regex(r"\+[1-9][0-9]{4,14}", fullmatch=True)
_TEXTS = st.text(st.one_of(st.sampled_from("\"\\\n\r\t\0'#é☎"), st.characters(codec="utf-8")))
_FULL = _TEXTS.filter(lambda text: bool(text.strip()))
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "zone": st.sampled_from(sorted(KNOWN.zones)),
    "language": _FULL,
    "instructions": _FULL,
    "greeting": _TEXTS,
    "greeting_interruptible": st.booleans(),
    "voice": _FULL,
    "model": _FULL,
    "transcription_model": _FULL,
    "vad_silence_ms": st.integers(100, 5_000),
    "idle_prompt_s": st.floats(3, 600),
    "idle_prompts_max": st.integers(0, 100),
    "max_call_s": st.floats(Plan().max_call_warning_s, MAX_CALL_LIMIT_S),
    "max_call_warning_s": st.floats(0, Plan().max_call_warning_s),
    "sorry": _FULL,
    "fallback_number": st.one_of(st.just(""), NUMBERS),
    "pause": st.sampled_from(PAUSES),
    "backends": st.permutations(sorted(KNOWN.backends)).map(lambda names: tuple(names[:2])),
    "max_calls": st.integers(0, 100_000),
    "max_calls_everywhere": st.integers(0, 100_000),
    "when_full": st.sampled_from(("busy", "sorry")),
}
"""Good values for every field that a tenant may set."""

TENANTS = st.builds(
    Tenant,
    st.from_regex(r"[a-z0-9]{1,8}(-[a-z0-9]{1,4}){0,2}", fullmatch=True).filter(lambda name: name != "default"),
    st.sets(NUMBERS, min_size=1, max_size=3).map(lambda numbers: tuple(sorted(numbers))),
    st.fixed_dictionaries({}, optional=FIELDS),
)
