"""Zones: named promises about where calls are handled, read from zones.toml and from the file of NEARCALL_CONFIG.

A rule says what a zone allows; routing.py decides with it, and the ledger keeps a database for each zone. Refuses
to know which tenant is in which zone.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from app.regions.table import LOCAL, REGIONS, region_code
from app.validation import (
    OPTIONAL,
    Field,
    Mistake,
    WrongValueError,
    fields_by_name,
    list_of,
    matching,
    one_of,
    read_each,
    read_table,
    refuse,
)

ANY = "any"
TWILIO_REGIONS = ("us1", "ie1", "au1")

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PREFIX = re.compile(r"[A-Z][A-Z0-9_]{0,30}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")


@dataclass(frozen=True, slots=True)
class ZoneRule:
    """What a zone allows."""

    name: str
    regions: frozenset[str] | None
    """Where its calls may be handled and its records kept; None: anywhere."""
    residency: str | None
    """What a backend must promise; None: nothing in particular."""
    database: str
    """What the names of its database's variables begin with."""
    twilio_region: str | None = None
    """The only Twilio region whose calls are taken; None: any."""
    edges: frozenset[str] | None = None
    """The only Fly edges through which calls are taken; None: any."""
    language: str = "en"
    sorry: str = "We are sorry, your call cannot be taken at the moment. Please call again later."
    """Twilio says this when a call cannot be handled where the zone allows it."""

    @property
    def promises(self) -> bool:
        """True if the zone limits where calls are handled in any way."""
        return any(each is not None for each in (self.regions, self.residency, self.twilio_region, self.edges))

    def allows(self, region: str) -> bool:
        """True when calls may be handled, and records kept, in this region."""
        return self.regions is None or region in self.regions or region == LOCAL


def shipped_zones() -> Mapping[str, ZoneRule]:
    """The zones of zones.toml."""
    text = resources.files("app.regions").joinpath("zones.toml").read_text(encoding="utf-8")
    mistakes: list[Mistake] = []
    zones = read_zones(tomllib.loads(text)["zones"], MappingProxyType({}), mistakes)
    refuse(mistakes)
    return zones


def read_zones(
    tables: Mapping[str, Any], known: Mapping[str, ZoneRule], mistakes: list[Mistake]
) -> Mapping[str, ZoneRule]:
    """The known zones, and the good ones of the tables, which replace known ones of the same name."""
    zones = {**known, **read_each(tables, read_zone, mistakes)}
    owners: dict[str, str] = {}
    for name, rule in zones.items():
        owner = owners.setdefault(rule.database, name)
        if owner != name:
            found = f'is "{rule.database}", which zone {owner} has already'
            mistakes.append(Mistake(("zones", name, "database"), found, "one of its own"))
    return MappingProxyType(zones)


def read_zone(name: str, table: object) -> ZoneRule:
    """Read one zone from its table. Raises SettingsError with everything that is wrong with it."""
    mistakes: list[Mistake] = []
    path = ("zones", name)
    if _NAME.fullmatch(name) is None:
        # A directory has the name.
        mistakes.append(Mistake(path, "is not the name of a zone", "a lower-case word"))
    values = read_table(path, table, _FIELDS, mistakes)
    refuse(mistakes)
    return ZoneRule(name, **values)


def _codes(value: object) -> frozenset[str]:
    return frozenset(list_of(region_code, empty=False)(value))


def _regions(value: object) -> frozenset[str] | None:
    return None if value == ANY else _codes(value)


def _residency(value: object) -> str | None:
    return None if value == ANY else matching(_NAME)(value)


def _sentence(value: object) -> str:
    if not (isinstance(value, str) and value.strip()):
        raise WrongValueError
    return value


_CODES = f"a list of Fly's regions, of {', '.join(REGIONS)}"
_FIELDS = fields_by_name(
    Field("regions", _regions, f'"any", or {_CODES}'),
    Field("residency", _residency, '"any", or a word that backends promise, such as "eu"'),
    Field("database", matching(_PREFIX), 'what the names of its variables begin with, such as "TURSO_APAC"'),
    Field("twilio_region", one_of(TWILIO_REGIONS), f"one of {', '.join(TWILIO_REGIONS)}", OPTIONAL),
    Field("edges", _codes, _CODES, OPTIONAL),
    Field("language", matching(_LANGUAGE), 'a language such as "de" or "pt-BR"', OPTIONAL),
    Field("sorry", _sentence, "a sentence", OPTIONAL),
)
