"""Finds the zones that a rollout has to keep a promise for, and whether each has a second Machine to turn to.

A zone such as `eu` allows some regions only. If one of them has a Machine and the others have none, a deploy or a
crash of that Machine leaves the zone's calls nowhere to go: their callers hear a sentence. A zone is promised when
its database or a backend for it is among the app's secrets, or a tenant is in it.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.backends.table import BackendEntry
from app.config_file import ConfigFile, read_config_file
from app.regions.table import REGIONS
from app.regions.zones import ZoneRule

MACHINES_MIN = 2
"""Of a zone that is promised: one takes the calls while the other is replaced, or has crashed."""


def config_file_of(config: Mapping[str, Any], directory: Path) -> ConfigFile:
    """The file that NEARCALL_CONFIG of a fly.toml names, as `[[files]]` deploys it; without one, what ships.

    `directory` has the fly.toml.
    """
    guest_path = config.get("env", {}).get("NEARCALL_CONFIG")
    for file in config.get("files", []):
        if guest_path and file.get("guest_path") == guest_path and file.get("local_path"):
            return read_config_file(directory / file["local_path"])
    return ConfigFile.shipped()


def promises(
    file: ConfigFile, secrets: Collection[str], tenants: Iterable[Mapping[str, Any]]
) -> dict[ZoneRule, list[str]]:
    """Return each promised zone that is limited to some regions, with what promises it."""
    zones_of_tenants = {str(tenant.get("tenant")): tenant.get("zone") for tenant in tenants}
    found: dict[ZoneRule, list[str]] = {}
    for rule in file.zones.values():
        if rule.regions is None:
            continue
        databases = (f"{rule.database}{end}" for end in ("_URL", "_TOKEN"))
        keys = (entry.key for entry in file.backends.values() if _is_for(entry, rule))
        named = [f"the secret {name}" for name in (*databases, *keys) if name in secrets]
        named += [f"the tenant {name}" for name, zone in zones_of_tenants.items() if zone == rule.name]
        if named:
            found[rule] = named
    return found


def _is_for(entry: BackendEntry, rule: ZoneRule) -> bool:
    return rule.residency is not None and rule.residency in entry.residency


def lonely(promised: Mapping[ZoneRule, Sequence[str]], regions: Sequence[str]) -> list[str]:
    """Return a line for each promised zone that would have fewer than MACHINES_MIN Machines in these regions."""
    lines = []
    for rule, why in promised.items():
        inside = [region for region in regions if rule.allows(region)]
        if len(inside) < MACHINES_MIN:
            others = [region for region in REGIONS if rule.allows(region) and region not in inside]
            where = f"its only Machine in {inside[0]}" if inside else "no Machine"
            advice = f"Add {'one' if inside else 'two'} of {', '.join(others)} to the regions."
            if len(inside) + len(others) < MACHINES_MIN:
                advice = "The zone should allow a second region."
            lines.append(
                f"Zone {rule.name} would have {where}, so its calls have nowhere to go while that is replaced or"
                f" down. It is promised by {_first_of(why)}. {advice}"
            )
    return lines


def _first_of(names: Sequence[str]) -> str:
    more = len(names) - 1
    return names[0] if not more else f"{names[0]} and {more} more"


def tenants_in(text: str) -> list[dict[str, Any]] | None:
    """Read what `nearcall tenants list --json` printed: an object a line. None if it printed something else."""
    try:
        tenants = [json.loads(line) for line in text.splitlines()]
    except json.JSONDecodeError:
        return None
    return tenants if all(isinstance(each, dict) for each in tenants) else None
