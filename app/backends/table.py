"""Which backend a call gets: what its zone allows, then what its tenant prefers, then the nearest that works.

Of those that are equally near, the one that was measured to be ready sooner (speeds.py keeps that).

Refuses to know how a backend is spoken to, and how its health is found out (circuit.py keeps that).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from app.regions.table import LOCAL, REGIONS, rtt_ms
from app.regions.zones import ZoneRule
from app.toml_tables import Fields, TableError, read_each, read_fields
from app.urls import private_url
from app.wire.formats import AudioFormat
from app.wire.tuning import KINDS, UNTUNED, VOICELIVE, Tuning, flaw

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_TUNING = tuple(field.name for field in fields(Tuning))
KEPT_IN = ("-datazone", "-regional")
"""How Voice Live's models end that think in the part of the world, or the region, of their resource."""
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """A backend as it is configured, with or without a key."""

    name: str
    kind: str
    url: str
    """Its base. Empty for a Voice Live resource that the environment names."""
    key: str
    """The environment variable that has the key. Empty: Entra ID opens it, which Voice Live alone takes."""
    residency: frozenset[str] = frozenset()
    near: tuple[str, ...] = ()
    tuning: Tuning = UNTUNED


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend that can be used: its entry, and its key; without one Entra ID opens it."""

    entry: BackendEntry
    api_key: str = field(repr=False)

    @property
    def name(self) -> str:
        return self.entry.name

    def satisfies(self, rule: ZoneRule) -> bool:
        """True when the zone allows it."""
        return rule.residency is None or rule.residency in self.entry.residency

    def distance_ms(self, region: str) -> float:
        """Estimated round trip to where it is; the same for all regions when that is not known."""
        if region == LOCAL or not self.entry.near:
            return UNKNOWN_DISTANCE_MS
        return min(rtt_ms(region, near) for near in self.entry.near)


UNKNOWN_DISTANCE_MS = 100.0
"""Of a backend that says nowhere where it is: closer ones go first, those across an ocean last."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend for a call, and why this one."""

    backend: Backend
    why: str
    """For the call's events: `preferred`, `nearest`, `fastest` or `only`, and which others were passed over."""


def allowed(backends: Iterable[Backend], rule: ZoneRule) -> list[Backend]:
    """Those that the zone allows."""
    return [backend for backend in backends if backend.satisfies(rule)]


def choose(
    backends: Iterable[Backend],
    rule: ZoneRule,
    region: str,
    preferred: tuple[str, ...],
    usable: Callable[[str], bool],
    rank: Callable[[str], int] = lambda _name: 0,
) -> Choice | None:
    """The backend for a call of this zone, from this region; None when no allowed one is usable.

    `preferred`: names, the best first; what the zone does not allow is passed over, preference or not. `rank`: by
    name, for those that are equally near; the least goes first.
    """
    candidates = allowed(backends, rule)
    # The URL of a number may ask for one that its tenant has in its list as well.
    wishes = {name: number for number, name in enumerate(dict.fromkeys(preferred))}

    def place(one: Backend) -> tuple[int, float]:
        return wishes.get(one.name, len(wishes)), one.distance_ms(region)

    candidates.sort(key=lambda one: (*place(one), rank(one.name), one.name))
    passed: list[str] = []
    for backend in candidates:
        if not usable(backend.name):
            passed.append(backend.name)
            continue
        by_name = min(one.name for one in candidates if place(one) == place(backend) and usable(one.name))
        measured = "nearest" if by_name == backend.name else "fastest"
        why = "only" if len(candidates) == 1 else "preferred" if backend.name in wishes else measured
        return Choice(backend, f"{why}, not usable: {' '.join(passed)}" if passed else why)
    return None


def read_backends(tables: Mapping[str, Any], known: Mapping[str, BackendEntry]) -> Mapping[str, BackendEntry]:
    """The known backends, and those of the tables.

    A table with the name of a known one takes its place; one without `kind` and `url` changes only what it names.
    Raises TableError.
    """
    read = read_each(tables, lambda name, table: read_backend(name, table, known.get(name)))
    return MappingProxyType({**known, **read})


def read_backend(name: str, table: Any, known: BackendEntry | None = None) -> BackendEntry:
    """One backend from its table; a table without `kind` and `url` changes the known one. Raises TableError."""
    path = ("backends", name)
    if _NAME.fullmatch(name) is None:
        raise TableError(path, "the name of a backend is a lower-case word")
    changes = known is not None and isinstance(table, dict) and not {"kind", "url"} & table.keys()
    values = read_fields(path, table, _FIELDS, () if changes else ("kind", "url"))
    tuned = {name: values.pop(name) for name in _TUNING if name in values}
    if changes:
        assert known is not None
        entry = replace(known, **values, tuning=replace(known.tuning, **tuned))
    else:
        entry = BackendEntry(name, **{"key": "", **values}, tuning=Tuning(**tuned))
    if entry.kind != VOICELIVE:
        for field_name in ("url", "key"):
            if not getattr(entry, field_name):
                raise TableError(path, f"{field_name} is missing; it should be {_FIELDS[field_name][1]}")
    check(entry)
    return entry


def check(entry: BackendEntry) -> None:
    """Raises TableError for fields that do not go together."""
    path = ("backends", entry.name)
    found = flaw(entry.kind, entry.tuning)
    if found is not None:
        raise TableError((*path, found[0]), found[1])
    if entry.kind == VOICELIVE and entry.residency and not entry.tuning.model.endswith(KEPT_IN):
        # Any other model of a resource in the EU thinks anywhere in the world (realtime.md 2.8).
        raise TableError((*path, "model"), f"should end in {' or '.join(KEPT_IN)}: no other keeps a residency")


def _kind(value: Any) -> str:
    if value not in KINDS:
        raise ValueError
    return str(value)


def _url(value: Any) -> str:
    if value == "":
        return ""
    private_url(value)
    return str(value).rstrip("/")


def _key(value: Any) -> str:
    if _VARIABLE.fullmatch(value) is None:
        raise ValueError
    return str(value)


def _audio(value: Any) -> AudioFormat:
    return AudioFormat(value)


def _text(value: Any) -> str:
    if not value or not value.isprintable() or len(value) > 200:
        raise ValueError
    return str(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _words(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(_NAME.fullmatch(each) for each in value):
        raise ValueError
    return frozenset(value)


def _near(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not set(value) <= set(REGIONS):
        raise ValueError
    return tuple(value)


_FIELDS: Fields = MappingProxyType(
    {
        "kind": (_kind, f"one of {', '.join(KINDS)}"),
        "url": (_url, "a URL such as https://host/v1, with http only for a server on this machine"),
        "key": (_key, 'the name of an environment variable, such as "ACME_API_KEY"'),
        "residency": (_words, 'a list of words such as ["eu"]'),
        "near": (_near, f"a list of Fly's regions, of {', '.join(REGIONS)}"),
        "audio": (_audio, f"one of {', '.join(AudioFormat)}"),
        "model": (_text, "the name of a model"),
        "transcription_model": (_text, "the name of a model"),
        "voice": (_text, "the name of a voice"),
        "vad": (_text, "a text"),
        "noise_reduction": (_text, "a text"),
        "echo_cancellation": (_switch, "true or false"),
        "auto_truncate": (_switch, "true or false"),
        "echoes_formats": (_switch, "true or false"),
    }
)
