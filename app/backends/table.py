"""Which backend a call gets: what its zone allows, then what its tenant prefers, then the nearest that works.

Of those that are equally near, the one that was measured to be ready sooner (speeds.py keeps that).

Refuses to know how a backend is spoken to, and how its health is found out (circuit.py keeps that).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from app.regions.table import LOCAL, REGIONS, region_code, rtt_ms
from app.regions.zones import ZoneRule
from app.urls import private_url
from app.validation import (
    OPTIONAL,
    Field,
    Mistake,
    SettingsError,
    WrongValueError,
    fields_by_name,
    list_of,
    matching,
    one_of,
    read_each,
    read_table,
    refuse,
    shown,
    switch,
)
from app.wire.formats import AudioFormat
from app.wire.tuning import KINDS, UNTUNED, VOICELIVE, Tuning, flaws

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


def read_backends(
    tables: Mapping[str, Any], known: Mapping[str, BackendEntry], mistakes: list[Mistake]
) -> Mapping[str, BackendEntry]:
    """The known backends, and the good ones of the tables.

    A table with the name of a known backend replaces it; one without `kind` and `url` changes only what it names.
    """
    read = read_each(tables, lambda name, table: read_backend(name, table, known.get(name)), mistakes)
    return MappingProxyType({**known, **read})


def read_backend(name: str, table: object, known: BackendEntry | None = None) -> BackendEntry:
    """Read one backend from its table; a table without `kind` and `url` changes the known backend.

    Raises SettingsError with everything that is wrong with the table.
    """
    path = ("backends", name)
    found: list[Mistake] = []
    if _NAME.fullmatch(name) is None:
        found.append(Mistake(path, "is not the name of a backend", "a lower-case word"))
    changes = known is not None and isinstance(table, dict) and not {"kind", "url"} & table.keys()
    values = read_table(path, table, _FIELDS, found, partial=changes)
    wrong = {each.path[2] for each in found if len(each.path) > 2}
    kind = known.kind if changes and known else values.get("kind")
    if kind is None:
        raise SettingsError(found)
    base = known if changes and known else BackendEntry(name, kind, "", "")
    tuned = {each: values.pop(each) for each in _TUNING if each in values}
    entry = replace(base, **values, tuning=replace(base.tuning, **tuned))
    # A field that is wrong by itself says nothing about the others.
    found += [each for each in _incomplete(entry) if each.path[2] not in wrong]
    if not wrong & {"model", "voice"}:
        found += [each for each in check(entry) if each.path[2] not in wrong]
    refuse(found)
    return entry


def _incomplete(entry: BackendEntry) -> Iterator[Mistake]:
    """The fields that only Voice Live may leave empty."""
    if entry.kind != VOICELIVE:
        for name in ("url", "key"):
            if not getattr(entry, name):
                yield Mistake(("backends", entry.name, name), "is missing", _FIELDS[name].expected)


def check(entry: BackendEntry) -> Iterator[Mistake]:
    """The fields that do not go together."""
    path = ("backends", entry.name)
    for name, expected in flaws(entry.kind, entry.tuning):
        value = getattr(entry.tuning, name)
        yield Mistake((*path, name), f"is {shown(value)}" if value != "" else "is missing", expected)
    if entry.kind == VOICELIVE and entry.residency and not entry.tuning.model.endswith(KEPT_IN):
        # Any other model of a resource in the EU thinks anywhere in the world (realtime.md 2.8).
        found = f"is {shown(entry.tuning.model)}" if entry.tuning.model else "is missing"
        expected = f"one that ends in {' or '.join(KEPT_IN)}, because no other keeps a residency"
        yield Mistake((*path, "model"), found, expected)


def _url(value: object) -> str:
    if value == "":
        return ""
    private_url(value)
    return str(value).rstrip("/")


def _audio(value: object) -> AudioFormat:
    return AudioFormat(one_of(tuple(AudioFormat))(value))


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > TEXT_MAX_CHARS:
        raise WrongValueError
    return value


TEXT_MAX_CHARS = 200
"""Of a name. A longer one is a slip of the hand."""


_MODEL = f"the name of a model, {TEXT_MAX_CHARS} characters at most"
_VOICE = f"the name of a voice, {TEXT_MAX_CHARS} characters at most"
_FIELDS = fields_by_name(
    Field("kind", one_of(KINDS), f"one of {', '.join(KINDS)}"),
    Field("url", _url, "a URL such as https://host/v1, with http only for a server on this machine", hidden=True),
    Field(
        "key",
        matching(_VARIABLE),
        'the name of the environment variable that has the key, such as "ACME_API_KEY"',
        OPTIONAL,
        hidden=True,
    ),
    Field(
        "residency",
        lambda value: frozenset(list_of(matching(_NAME))(value)),
        'a list of words such as ["eu"]',
        OPTIONAL,
    ),
    Field("near", list_of(region_code), f"a list of Fly's regions, of {', '.join(REGIONS)}", OPTIONAL),
    Field("audio", _audio, f"one of {', '.join(AudioFormat)}", OPTIONAL),
    Field("model", _text, _MODEL, OPTIONAL),
    Field("transcription_model", _text, _MODEL, OPTIONAL),
    Field("voice", _text, _VOICE, OPTIONAL),
    Field("vad", _text, "the name of a voice activity detector", OPTIONAL),
    Field("noise_reduction", _text, "the name of a noise reduction", OPTIONAL),
    Field("echo_cancellation", switch, "true or false", OPTIONAL),
    Field("auto_truncate", switch, "true or false", OPTIONAL),
    Field("echoes_formats", switch, "true or false", OPTIONAL),
)
