"""The operator's file, which NEARCALL_CONFIG names: the built-in tenant, more zones, more backends.

    [default]         greeting = "..."           fields of a plan
    [zones.NAME]      regions = [...]            see app/regions/zones.toml
    [backends.NAME]   url = "..."                see app/backends/backends.toml

Refuses to know the environment: which file it is, and which keys there are, is config.py's to find out.
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
from app.suggestions import instead
from app.tenants.document import Document, DocumentError, Problem, read_document
from app.tenants.fields import KINDS, Known, checked
from app.toml_tables import TableError

_T = TypeVar("_T")

_TABLES = ("default", "zones", "backends")
_SETTABLE = tuple(name for name in KINDS if name != "zone")
"""The built-in tenant is in zone global."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What is configured, with what ships where the file says nothing."""

    default: Plan
    zones: Mapping[str, ZoneRule]
    backends: Mapping[str, BackendEntry]

    @classmethod
    def shipped(cls) -> "ConfigFile":
        """Without a file."""
        text = resources.files("app.backends").joinpath("backends.toml").read_text(encoding="utf-8")
        backends = read_backends(tomllib.loads(text)["backends"], MappingProxyType({}))
        return cls(Plan(), shipped_zones(), backends)

    @property
    def known(self) -> Known:
        """What a tenant may refer to."""
        return Known(self.zones.keys(), self.backends.keys())


def read_config_file(path: Path) -> ConfigFile:
    """The file, checked. Raises DocumentError with every problem it found, each with file, line and field."""
    document = read_document(path)
    shipped = ConfigFile.shipped()
    problems = [
        document.problem((name,), f"there is no such table{instead(name, _TABLES)}")
        for name in document.values
        if name not in _TABLES
    ]
    zones = _tables(document, "zones", read_zones, shipped.zones, problems)
    backends = _tables(document, "backends", read_backends, shipped.backends, problems)
    # A backend whose table has a mistake is no unknown one.
    named = document.values.get("backends")
    plan, more = _default(document, Known(zones, {*backends, *(named if isinstance(named, dict) else ())}))
    if problems or more:
        raise DocumentError([*problems, *more])
    return ConfigFile(plan, zones, backends)


def _tables(
    document: Document,
    kind: str,
    read: Callable[[Mapping[str, Any], Mapping[str, _T]], Mapping[str, _T]],
    shipped: Mapping[str, _T],
    problems: list[Problem],
) -> Mapping[str, _T]:
    """What the file has of a kind, and what ships; the latter alone, and more problems, when anything is wrong."""
    tables = document.values.get(kind, {})
    if not isinstance(tables, dict):
        problems.append(document.problem((kind,), f"should be tables, each with its name: [{kind}.NAME]"))
        return shipped
    try:
        return read(tables, shipped)
    except TableError as error:
        problems += [document.problem(each.path, each.why) for each in error.every]
    return shipped


def _default(document: Document, known: Known) -> tuple[Plan, list[Problem]]:
    """The built-in tenant's plan, and what is wrong with it."""
    table = document.values.get("default", {})
    if not isinstance(table, dict):
        return Plan(), [document.problem(("default",), "should be a table, [default]")]
    values, faults = checked(table, known, _SETTABLE)
    problems = [document.problem(("default", fault.field), fault.why) for fault in faults]
    return replace(Plan(), **values), problems  # type: ignore[arg-type]  # checked
