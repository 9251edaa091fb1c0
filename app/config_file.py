"""The operator's file, which NEARCALL_CONFIG names: the built-in tenant, more zones, more backends.

    [default]         greeting = "..."           fields of a plan
    [zones.NAME]      regions = [...]            see app/regions/zones.toml
    [backends.NAME]   url = "..."                see app/regions/backends.toml

Refuses to know the environment: which file it is, and which keys there are, is config.py's to find out.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from app.call.plan import Plan
from app.regions.backends import BackendEntry, BackendError, read_backends
from app.regions.zones import ZoneError, ZoneRule, read_zones, shipped_zones

MAX_CALL_LIMIT_S = 3_500
"""A backend session ends at 60 minutes (realtime.md 1.2)."""

_TABLES = ("default", "zones", "backends")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What is configured, with what ships where the file says nothing."""

    default: Plan
    zones: Mapping[str, ZoneRule]
    backends: Mapping[str, BackendEntry]

    @classmethod
    def shipped(cls) -> "ConfigFile":
        """Without a file."""
        text = resources.files("app.regions").joinpath("backends.toml").read_text(encoding="utf-8")
        backends = read_backends(tomllib.loads(text)["backends"], MappingProxyType({}))
        return cls(Plan(), shipped_zones(), backends)


def read_config_file(text: str) -> ConfigFile:
    """The file of this path. Raises ValueError naming the file, and what is wrong in it."""
    path = Path(text)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    unknown = sorted(set(values) - set(_TABLES))
    if unknown:
        raise ValueError(f"{path}: unknown table [{unknown[0]}]; known are {', '.join(_TABLES)}")
    for name, table in values.items():
        if not isinstance(table, dict):
            raise ValueError(f"{path}: {name} is not a table")  # noqa: TRY004  the reader collects ValueErrors
    shipped = ConfigFile.shipped()
    try:
        zones = read_zones(values.get("zones", {}), shipped.zones)
        backends = read_backends(values.get("backends", {}), shipped.backends)
    except (ZoneError, BackendError) as error:
        raise ValueError(f"{path}: {error}") from None
    return ConfigFile(read_plan(values.get("default", {}), str(path)), zones, backends)


_SETTABLE: Mapping[str, type] = MappingProxyType(
    {f.name: type(f.default) for f in fields(Plan) if f.name not in {"tenant", "zone", "tools", "backends"}}
)


def read_plan(table: dict[str, Any], where: str) -> Plan:
    """The built-in tenant's plan with the file's values in place of ours. Raises ValueError."""
    for name, value in table.items():
        wanted = _SETTABLE.get(name)
        if wanted is None:
            raise ValueError(f"{where}: [default] has no field {name}; known are {', '.join(_SETTABLE)}")
        if wanted is float and type(value) is int:
            continue
        if type(value) is not wanted:
            raise ValueError(f"{where}: {name} should be {_TYPE_WORDS[wanted]}")
    plan = replace(Plan(), **table)
    _check_plan(plan, where)
    return plan


_TYPE_WORDS: Mapping[type, str] = MappingProxyType(
    {str: "a text", bool: "true or false", int: "a whole number", float: "a number of seconds"}
)


def _check_plan(plan: Plan, where: str) -> None:
    bounds = (
        ("vad_silence_ms", plan.vad_silence_ms, 100, 5_000),
        ("idle_prompt_s", plan.idle_prompt_s, 3, 600),
        ("idle_prompts_max", plan.idle_prompts_max, 0, 100),
        ("max_call_s", plan.max_call_s, 30, MAX_CALL_LIMIT_S),
        ("max_call_warning_s", plan.max_call_warning_s, 0, plan.max_call_s),
    )
    for name, value, least, most in bounds:
        if not least <= value <= most:
            raise ValueError(f"{where}: {name} should be from {least} to {most:g}")
    for name in ("instructions", "language", "voice", "model", "transcription_model", "sorry"):
        if not getattr(plan, name).strip():
            raise ValueError(f"{where}: {name} should not be empty")
