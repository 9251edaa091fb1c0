"""Checks whether a fly.toml suits nearcall, and reports each problem in a line of its own.

Knows the file alone: whether the app, its secrets and its Machines are there is asked by rollout.py.
"""

import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from app.variables import (
    CALLS_LIMIT,
    CALLS_MAX,
    DRAIN_LIMIT_S,
    DRAIN_MARGIN_S,
    DRAIN_ON_FLY_S,
    calls_max,
    drain_s,
)
from scripts.rolloutlib.fly_schema import SCHEMA, misfits, seconds

REGIONS: Final = ("nrt", "fra", "gru", "syd", "iad", "lax")

SECRETS: Final = (
    "NEARCALL_SECRET",
    "NEARCALL_PUBLIC_URL",
    "TWILIO_ACCOUNT_SID",
    "TWILIO_AUTH_TOKEN",
)
"""A server needs all of these to start."""

BACKEND_SECRETS: Final = ("OPENAI_API_KEY", "AZURE_VOICELIVE_ENDPOINT")
"""A server needs one of these, or another name that ends in _KEY, to start."""

LEDGER_SECRETS: Final = ("TURSO_URL", "TURSO_TOKEN")
"""Without them each Machine keeps its own records on its volume only."""

KILL_MAX_S: Final = 300
BOOT_S: Final = 60
"""Image pull and start; fly.md 13 says seconds to low tens of seconds."""
CHECK_MAX_S: Final = 60
CHECK_TIMEOUT_MIN_S: Final = 5
SOFT_SHARE_MIN: Final = 0.5
HARD_SHARE_MIN: Final = 1.25
"""As a share of a Machine's calls. The rest is for webhooks of its own calls and for calls that it sends on."""

_SECRET_WORDS: Final = ("SECRET", "TOKEN", "PASSWORD", "API_KEY")

_NOT: Final = {
    "immediate": "immediate stops all regions at once",
    "canary": "canary does not go with a volume",
    "bluegreen": "bluegreen does not go with a volume",
}
_MOUNT_BOUNDS: Final = {"snapshot_retention": (1, 60), "auto_extend_size_threshold": (50, 99)}

Rule = Callable[[dict[str, Any]], Iterator[str]]


def problems(text: str, regions: Sequence[str] = REGIONS) -> list[str]:
    """Return the problems of a fly.toml for Machines in these regions, a line each."""
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return [f"not TOML: {error}"]
    unfit = [each.line for each in misfits(config, SCHEMA, "") if not each.unknown_key]
    # The rules rely on correct types, so type errors are reported first.
    return unfit or [*_place(config, regions), *(line for rule in RULES for line in rule(config))]


def unknown_keys(text: str) -> list[str]:
    """Return a line for each key of a fly.toml that this script does not know. flyctl may know it."""
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return []  # `problems` reports that
    return [each.line for each in misfits(config, SCHEMA, "") if each.unknown_key]


def _place(config: dict[str, Any], regions: Sequence[str]) -> Iterator[str]:
    if not config.get("app"):
        yield "app: is missing; it should be the name that you passed to `fly apps create`"
    if config.get("primary_region") not in regions:
        yield f"primary_region: should be one of {', '.join(regions)}: the first Machine is created there"
    sent_to = config.get("env", {}).get("NEARCALL_REGIONS")
    if sent_to is not None and {code.strip() for code in sent_to.split(",")} != set(regions):
        others = ",".join(regions)
        yield f"env.NEARCALL_REGIONS: is {sent_to}, but --regions is {others}: leave one of them out"


def _stop(config: dict[str, Any]) -> Iterator[str]:
    if config.get("kill_signal") != "SIGTERM":
        yield 'kill_signal: should be "SIGTERM": Fly\'s documentation names two defaults'
    kill_s = seconds(config.get("kill_timeout")) or 0
    if kill_s > KILL_MAX_S:
        yield f"kill_timeout: Fly allows at most {KILL_MAX_S}s"
    try:
        least_s = drain_s(config.get("env", {}).get("NEARCALL_DRAIN_S", str(DRAIN_ON_FLY_S))) + DRAIN_MARGIN_S
    except ValueError:
        yield f"env.NEARCALL_DRAIN_S: should be a number of seconds from 1 to {DRAIN_LIMIT_S}"
        return
    if kill_s < least_s:
        needs = (
            f"{least_s}s or more: moving its calls may take the server NEARCALL_DRAIN_S, then {DRAIN_MARGIN_S}s"
        )
        yield f"kill_timeout: should be {needs}"


def _deploy(config: dict[str, Any]) -> Iterator[str]:
    deploy = config.get("deploy", {})
    strategy = deploy.get("strategy", "rolling")
    if strategy != "rolling":
        why = _NOT.get(strategy, f"flyctl knows no {strategy}")
        yield f'deploy.strategy: {why}; it should be "rolling"'
    if deploy.get("max_unavailable") != 1:
        yield "deploy.max_unavailable: should be 1: Fly's default stops two of six regions together"
    least_s = (seconds(config.get("kill_timeout")) or 0) + BOOT_S
    if (seconds(deploy.get("wait_timeout", "5m")) or 0) <= least_s:
        yield f"deploy.wait_timeout: should be above {least_s:g}s: kill_timeout, then {BOOT_S}s to start"
    if deploy.get("release_command") != "nearcall migrate":
        yield 'deploy.release_command: should be "nearcall migrate": servers do not migrate the database'


def _env(config: dict[str, Any]) -> Iterator[str]:
    for name, value in config.get("env", {}).items():
        if "$" in value:
            yield f"env.{name}: Fly expands nothing here, so the server would get the dollar sign"
        if name.startswith("FLY_") or name == "PRIMARY_REGION":
            yield f"env.{name}: Fly sets it itself; the server reads it at run time"
        if name in (*SECRETS, *LEDGER_SECRETS) or any(word in name for word in _SECRET_WORDS):
            yield f"env.{name}: is readable by everybody here; set it with `fly secrets import`"


def _service(config: dict[str, Any]) -> Iterator[str]:
    service = config.get("http_service", {})
    port = config.get("env", {}).get("PORT", "8080")
    if str(service.get("internal_port")) != port:
        yield f"http_service.internal_port: should be {port}, where the server listens (PORT)"
    if service.get("force_https") is not True:
        yield "http_service.force_https: should be true: callers' words go through it"
    if service.get("auto_stop_machines") != "off":
        yield 'http_service.auto_stop_machines: should be "off": a region\'s only Machine has to be awake'
    if "min_machines_running" in service:
        yield "http_service.min_machines_running: does nothing with auto_stop_machines off"
    ports = [port.get("port") for each in config.get("services", []) for port in each.get("ports", [])]
    if {80, 443} & set(ports):
        yield "services.ports: http_service has 80 and 443 already"
    for place, each in [("http_service", service), *(("services", each) for each in config.get("services", []))]:
        if "processes" in config and "processes" not in each:
            yield f"{place}.processes: is required as soon as there is [processes]"


def _limits(config: dict[str, Any]) -> Iterator[str]:
    limits = config.get("http_service", {}).get("concurrency", {})
    soft, hard = limits.get("soft_limit", 0), limits.get("hard_limit", 0)
    where = "http_service.concurrency"
    if limits.get("type") != "connections":
        yield f'{where}.type: should be "connections": a call is one for its whole life, and flyctl takes any word'
    try:
        calls = calls_max(config.get("env", {}).get("NEARCALL_CALLS_MAX", str(CALLS_MAX)))
    except ValueError:
        yield f"env.NEARCALL_CALLS_MAX: should be a number from 1 to {CALLS_LIMIT}"
        return
    least = math.ceil(calls * HARD_SHARE_MIN)
    if hard < least:
        yield (
            f"{where}.hard_limit: should be {least} or more, for {calls} calls (NEARCALL_CALLS_MAX) and their "
            "webhooks: a full Machine still has to answer for its own calls, and to send new ones on"
        )
    low = math.ceil(calls * SOFT_SHARE_MIN)
    if not low <= soft <= max(least, hard):
        yield f"{where}.soft_limit: should be from {low} to the hard limit; Fly's default is 20"


def _checks(config: dict[str, Any]) -> Iterator[str]:
    where = "http_service.checks"
    checks = config.get("http_service", {}).get("checks", [])
    if not any(check.get("path") == "/healthz" for check in checks):
        yield f"{where}: no check requests /healthz, so nothing would remove a failed Machine from routing"
    for check in checks:
        yield from _probe(check, where)
        if (seconds(check.get("timeout", "2s")) or 0) < CHECK_TIMEOUT_MIN_S:
            yield f"{where}.timeout: below {CHECK_TIMEOUT_MIN_S}s one slow moment sends a region's calls elsewhere"
    for name, check in config.get("checks", {}).items():
        yield from _probe(check, f"checks.{name}")


def _probe(check: Mapping[str, Any], where: str) -> Iterator[str]:
    for key in ("interval", "timeout", "grace_period"):
        lapse_s = seconds(check.get(key))
        if lapse_s is None:
            yield f"{where}.{key}: is missing"
        elif not 1 <= lapse_s <= CHECK_MAX_S:
            yield f"{where}.{key}: Fly takes 1s to {CHECK_MAX_S}s and silently makes that of {check[key]}"


def _machine(config: dict[str, Any]) -> Iterator[str]:
    if [each.get("policy") for each in config.get("restart", [])] != ["always"]:
        yield 'restart.policy: should be "always": a server that exits with 0 would stay stopped'
    sizes = [each.get("size", "") for each in config.get("vm", [])]
    if not sizes or not all(size.startswith("performance-") for size in sizes):
        yield "vm.size: should be a performance size: Fly throttles shared CPUs for up to three frames of audio"


def _volume(config: dict[str, Any]) -> Iterator[str]:
    mounts = config.get("mounts", [])
    mounts = [mounts] if isinstance(mounts, dict) else mounts
    data_dir = PurePosixPath(config.get("env", {}).get("NEARCALL_DATA_DIR", ""))
    if not any(data_dir.is_relative_to(mount.get("destination", "?")) for mount in mounts):
        yield "env.NEARCALL_DATA_DIR: should be on the volume of [mounts]: every restart empties the root disk"
    for mount in mounts:
        if not mount.get("source") or not mount.get("initial_size"):
            yield "mounts: source and initial_size should both be set: the first deploy creates the volume"
        for key, (least, most) in _MOUNT_BOUNDS.items():
            if not least <= mount.get(key, least) <= most:
                yield f"mounts.{key}: Fly takes {least} to {most}"


RULES: Final[tuple[Rule, ...]] = (_stop, _deploy, _env, _service, _limits, _checks, _machine, _volume)
