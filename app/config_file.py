"""The operator's file, which NEARCALL_CONFIG names: the built-in tenant, more zones, more backends.

    [default]         greeting = "..."           fields of a plan
    [zones.NAME]      regions = [...]            see app/regions/zones.toml
    [backends.NAME]   url = "..."                see app/backends/backends.toml

Refuses to know the environment: config.py finds out which file it is, and which keys there are.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from app.backends.table import BackendEntry, read_backends
from app.call.plan import Plan
from app.regions.zones import ZoneRule, read_zones, shipped_zones
from app.tenants.document import Document, read_document
from app.tenants.fields import KINDS, Known, checked
from app.validation import Mistake, SettingsError, in_order, refuse, shown, unknown

_T = TypeVar("_T")

_TABLES = ("default", "zones", "backends")
_SETTABLE = tuple(name for name in KINDS if name != "zone")
"""The built-in tenant is always in zone global."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What is configured, with what ships where the file says nothing."""

    default: Plan
    zones: Mapping[str, ZoneRule]
    backends: Mapping[str, BackendEntry]
    known: Known
    """The names that a tenant may refer to, also those of tables with mistakes in them."""
    mistakes: tuple[Mistake, ...] = ()
    """Everything that is wrong with the file. The rest of it is used, so that mistakes elsewhere are found too."""

    @classmethod
    def shipped(cls) -> "ConfigFile":
        """What there is without a file."""
        text = resources.files("app.backends").joinpath("backends.toml").read_text(encoding="utf-8")
        mistakes: list[Mistake] = []
        backends = read_backends(tomllib.loads(text)["backends"], MappingProxyType({}), mistakes)
        refuse(mistakes)
        zones = shipped_zones()
        return cls(Plan(), zones, backends, Known(zones.keys(), backends.keys()))


def read_config_file(path: Path) -> ConfigFile:
    """Read the file and check all of it."""
    shipped = ConfigFile.shipped()
    try:
        document = read_document(path)
    except SettingsError as error:
        return replace(shipped, mistakes=error.mistakes)
    mistakes = [unknown((name,), _TABLES, "table") for name in document.values if name not in _TABLES]
    zones = _tables(document, "zones", read_zones, shipped.zones, mistakes)
    backends = _tables(document, "backends", read_backends, shipped.backends, mistakes)
    known = Known({*zones, *_names(document, "zones")}, {*backends, *_names(document, "backends")})
    plan = _default(document, known, mistakes)
    return ConfigFile(plan, zones, backends, known, in_order(document.located(mistakes)))


def _tables(
    document: Document,
    kind: str,
    read: Callable[[Mapping[str, Any], Mapping[str, _T], list[Mistake]], Mapping[str, _T]],
    shipped: Mapping[str, _T],
    mistakes: list[Mistake],
) -> Mapping[str, _T]:
    """What the file has of one kind, and what ships."""
    tables = document.values.get(kind, {})
    if not isinstance(tables, dict):
        mistakes.append(Mistake((kind,), f"is {shown(tables)}", f"tables, each with its name: [{kind}.NAME]"))
        return shipped
    return read(tables, shipped, mistakes)


def _names(document: Document, kind: str) -> list[str]:
    """The names of all tables of one kind, good or not: one with a mistake in it is not an unknown one."""
    tables = document.values.get(kind, {})
    return list(tables) if isinstance(tables, dict) else []


def _default(document: Document, known: Known, mistakes: list[Mistake]) -> Plan:
    """The plan of the built-in tenant."""
    table = document.values.get("default", {})
    if not isinstance(table, dict):
        mistakes.append(Mistake(("default",), f"is {shown(table)}", "a table, [default]"))
        return Plan()
    values, found = checked(table, known, _SETTABLE)
    mistakes += [replace(mistake, path=("default", *mistake.path)) for mistake in found]
    return replace(Plan(), **values)  # type: ignore[arg-type]  # checked
