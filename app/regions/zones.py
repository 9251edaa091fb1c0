"""Zones: named promises about where calls are handled, read from zones.toml and an operator's own file.

A rule says what is allowed; routing.py decides with it, and the ledger keeps a database for each. Refuses to know
which tenant is in which zone.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from app.regions.table import LOCAL, REGIONS
from app.toml_tables import Fields, TableError, read_each, read_fields

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
    """What a backend must promise; None: nothing."""
    database: str
    """What the names of its ledger's settings begin with."""
    twilio_region: str | None = None
    """The only Twilio region whose calls are taken; None: any."""
    edges: frozenset[str] | None = None
    """The only Fly edges through which calls are taken; None: any."""
    language: str = "en"
    sorry: str = "We are sorry, your call cannot be taken at the moment. Please call again later."
    """Said by Twilio when a call cannot be handled where it may be."""

    @property
    def promises(self) -> bool:
        """True when it promises anything at all."""
        return any(each is not None for each in (self.regions, self.residency, self.twilio_region, self.edges))

    def allows(self, region: str) -> bool:
        """True when calls may be handled, and records kept, in this region."""
        return self.regions is None or region in self.regions or region == LOCAL


def shipped_zones() -> Mapping[str, ZoneRule]:
    """The zones of zones.toml."""
    text = resources.files("app.regions").joinpath("zones.toml").read_text(encoding="utf-8")
    return read_zones(tomllib.loads(text)["zones"], MappingProxyType({}))


def read_zones(tables: Mapping[str, Any], known: Mapping[str, ZoneRule]) -> Mapping[str, ZoneRule]:
    """The known zones, and those of the tables, which take the place of known ones of their name.

    Raises TableError.
    """
    zones = {**known, **read_each(tables, read_zone)}
    owners: dict[str, str] = {}
    for name, rule in zones.items():
        if owners.setdefault(rule.database, name) != name:
            raise TableError(
                ("zones", name, "database"),
                f"zone {owners[rule.database]} has it already; each zone has one of its own",
            )
    return MappingProxyType(zones)


def read_zone(name: str, table: Any) -> ZoneRule:
    """One zone from its table. Raises TableError."""
    if _NAME.fullmatch(name) is None:
        raise TableError(("zones", name), "the name of a zone is a lower-case word: it names a directory")
    return ZoneRule(name, **read_fields(("zones", name), table, _FIELDS, ("regions", "residency", "database")))


def _codes(value: Any) -> frozenset[str]:
    if not (isinstance(value, list) and value) or not set(value) <= set(REGIONS):
        raise ValueError
    return frozenset(value)


def _regions(value: Any) -> frozenset[str] | None:
    return None if value == ANY else _codes(value)


def _residency(value: Any) -> str | None:
    return None if value == ANY else _matching(_NAME)(value)


def _matching(pattern: re.Pattern[str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if pattern.fullmatch(value) is None:
            raise ValueError
        return str(value)

    return read


def _twilio_region(value: Any) -> str:
    if value not in TWILIO_REGIONS:
        raise ValueError
    return str(value)


def _sentence(value: Any) -> str:
    if not (isinstance(value, str) and value.strip()):
        raise ValueError
    return value


_CODES = f"a list of Fly's regions, of {', '.join(REGIONS)}"
_FIELDS: Fields = MappingProxyType(
    {
        "regions": (_regions, f'"any", or {_CODES}'),
        "residency": (_residency, '"any", or a word that backends promise, such as "eu"'),
        "database": (_matching(_PREFIX), 'what its settings begin with, such as "TURSO_APAC"'),
        "twilio_region": (_twilio_region, f"one of {', '.join(TWILIO_REGIONS)}"),
        "edges": (_codes, _CODES),
        "language": (_matching(_LANGUAGE), 'a language such as "de" or "pt-BR"'),
        "sorry": (_sentence, "a sentence"),
    }
)
