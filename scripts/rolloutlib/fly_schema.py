"""What flyctl knows in a fly.toml, and of which type it is (fly.md 2). No opinion on what is good for nearcall.

flyctl ignores a key that it does not know, and takes a bare number for seconds, milliseconds or nanoseconds,
as the place may be. So every duration has to have a unit. A key that is not here may be one that Fly has added
since: it is told, and not refused.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from app.suggestions import instead

_UNIT_S: Final = MappingProxyType({"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0})
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Value:
    """A value; `words` say which."""

    kinds: tuple[type, ...]
    words: str


@dataclass(frozen=True, slots=True)
class Duration:
    """A text of numbers with units."""


@dataclass(frozen=True, slots=True)
class Texts:
    """A table whose names are the user's own, with a text for each."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table, `[name]`."""

    fields: Mapping[str, "Kind"]


@dataclass(frozen=True, slots=True)
class Tables:
    """A list of tables, `[[name]]`; `[name]` cannot be decoded into one, unless flyctl mends it (`single`)."""

    fields: Mapping[str, "Kind"]
    single: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """Tables under names of the user's own, `[name.a]`, `[name.b]`."""

    fields: Mapping[str, "Kind"]


Kind = Value | Duration | Texts | Table | Tables | Named

TEXT: Final = Value((str,), "a text")
NUMBER: Final = Value((int,), "a whole number")
REAL: Final = Value((int, float), "a number")
YES_NO: Final = Value((bool,), "true or false")
LIST: Final = Value((list,), "a list")
ANY: Final = Value((str, int, float, bool, list, dict), "a value")
SIZE: Final = Value((str, int), 'a size such as "1gb"')
STOP: Final = Value((str, bool), '"off", "stop" or "suspend"')
LAPSE: Final = Duration()

_PROBE: Final[Mapping[str, Kind]] = {
    "interval": LAPSE,
    "timeout": LAPSE,
    "grace_period": LAPSE,
}
_HTTP_PROBE: Final[Mapping[str, Kind]] = {
    **_PROBE,
    "method": TEXT,
    "path": TEXT,
    "protocol": TEXT,
    "tls_skip_verify": YES_NO,
    "tls_server_name": TEXT,
    "headers": Texts(),
}
_MACHINE_CHECK: Final[Mapping[str, Kind]] = {
    "command": LIST,
    "image": TEXT,
    "entrypoint": LIST,
    "kill_signal": TEXT,
    "kill_timeout": LAPSE,
}
_VM: Final[Mapping[str, Kind]] = {
    "size": TEXT,
    "memory": SIZE,
    "cpu_kind": TEXT,
    "cpus": NUMBER,
    "memory_mb": NUMBER,
    "max_memory_mb": NUMBER,
    "gpus": NUMBER,
    "gpu_kind": TEXT,
    "kernel_args": LIST,
    "host_dedication_id": TEXT,
    "persist_rootfs": TEXT,
    "processes": LIST,
}
_TLS: Final[Mapping[str, Kind]] = {"alpn": LIST, "versions": LIST, "default_self_signed": YES_NO}
_HTTP_OPTIONS: Final[Mapping[str, Kind]] = {
    "idle_timeout": NUMBER,
    "headers_read_timeout": NUMBER,
    "compress": YES_NO,
    "h2_backend": YES_NO,
    "response": Table({"headers": ANY, "pristine": YES_NO}),
    "replay_cache": Tables(
        {"path_prefix": TEXT, "ttl_seconds": NUMBER, "type": TEXT, "name": TEXT, "allow_bypass": YES_NO}
    ),
}
_ANY_SERVICE: Final[Mapping[str, Kind]] = {
    "internal_port": NUMBER,
    "auto_stop_machines": STOP,
    "auto_start_machines": YES_NO,
    "min_machines_running": NUMBER,
    "processes": LIST,
    "concurrency": Table({"type": TEXT, "soft_limit": NUMBER, "hard_limit": NUMBER}),
    "machine_checks": Tables(_MACHINE_CHECK),
}

SCHEMA: Final = Table(
    {
        "app": TEXT,
        "primary_region": TEXT,
        "kill_signal": TEXT,
        "kill_timeout": LAPSE,
        "swap_size_mb": NUMBER,
        "console_command": TEXT,
        "host_dedication_id": TEXT,
        "machine_config": TEXT,
        "container": TEXT,
        "build": Table(
            {
                "dockerfile": TEXT,
                "image": TEXT,
                "build-target": TEXT,
                "args": Texts(),
                "ignorefile": TEXT,
                "builder": TEXT,
                "buildpacks": LIST,
                "builtin": TEXT,
                "settings": ANY,
                "compose": ANY,
                "compression": TEXT,
                "compression_level": NUMBER,
            }
        ),
        "deploy": Table(
            {
                "strategy": TEXT,
                "max_unavailable": REAL,
                "wait_timeout": LAPSE,
                "release_command": TEXT,
                "release_command_timeout": LAPSE,
                "release_command_vm": Table(_VM),
                "seed_command": TEXT,
            }
        ),
        "env": Texts(),
        "processes": Texts(),
        "mounts": Tables(
            {
                "source": TEXT,
                "destination": TEXT,
                "initial_size": SIZE,
                "snapshot_retention": NUMBER,
                "scheduled_snapshots": YES_NO,
                "auto_extend_size_threshold": NUMBER,
                "auto_extend_size_increment": SIZE,
                "auto_extend_size_limit": SIZE,
                "processes": LIST,
            },
            single=True,
        ),
        "http_service": Table(
            {
                **_ANY_SERVICE,
                "force_https": YES_NO,
                "tls_options": Table(_TLS),
                "http_options": Table(_HTTP_OPTIONS),
                "checks": Tables(_HTTP_PROBE),
                "tcp_checks": Tables(_PROBE),
            }
        ),
        "services": Tables(
            {
                **_ANY_SERVICE,
                "protocol": TEXT,
                "ports": Tables(
                    {
                        "port": NUMBER,
                        "start_port": NUMBER,
                        "end_port": NUMBER,
                        "handlers": LIST,
                        "force_https": YES_NO,
                        "tls_options": Table(_TLS),
                        "http_options": Table(_HTTP_OPTIONS),
                        "proxy_proto_options": Table({"version": TEXT}),
                    }
                ),
                "tcp_checks": Tables(_PROBE),
                "http_checks": Tables(_HTTP_PROBE),
            }
        ),
        "checks": Named({**_HTTP_PROBE, "type": TEXT, "port": NUMBER, "processes": LIST}),
        "machine_checks": Tables(_MACHINE_CHECK),
        "files": Tables(
            {"guest_path": TEXT, "raw_value": TEXT, "local_path": TEXT, "secret_name": TEXT, "processes": LIST}
        ),
        "restart": Tables({"policy": TEXT, "retries": NUMBER, "processes": LIST}),
        "vm": Tables(_VM),
        "statics": Tables({"guest_path": TEXT, "url_prefix": TEXT, "tigris_bucket": TEXT, "index_document": TEXT}),
        "metrics": Tables({"port": NUMBER, "path": TEXT, "https": YES_NO, "processes": LIST}, single=True),
        "experimental": Table(
            {
                "cmd": LIST,
                "entrypoint": LIST,
                "exec": LIST,
                "auto_rollback": YES_NO,
                "enable_consul": YES_NO,
                "enable_etcd": YES_NO,
                "lazy_load_images": YES_NO,
                "machine_config": TEXT,
                "use_zstd": YES_NO,
                "attached": ANY,
            }
        ),
    }
)


def seconds(text: object) -> float | None:
    """A duration with units, in seconds: "1m30s" is 90. None when it is none."""
    if not isinstance(text, str) or not re.fullmatch(f"(?:{_PART.pattern})+", text):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))


@dataclass(frozen=True, slots=True)
class Misfit:
    """One part of a file, and what is wrong with it, in a line."""

    line: str
    unknown_key: bool = False
    """It may be right: Fly adds keys."""


def misfits(value: Any, kind: Kind, path: str) -> Iterator[Misfit]:
    """Every part of a value that flyctl would ignore, refuse or misread."""
    match kind:
        case Table(fields):
            yield from _table(value, fields, path)
        case Tables(_, single) if isinstance(value, dict) and not single:
            yield Misfit(f"{path}: is a list; write [[{path}]] with two brackets")
        case Tables(fields):
            for each in [value] if isinstance(value, dict) else value if isinstance(value, list) else [value]:
                yield from _table(each, fields, path)
        case Named(fields):
            for name, each in value.items() if isinstance(value, dict) else [("?", value)]:
                yield from _table(each, fields, f"{path}.{name}")
        case Texts():
            for name, each in value.items() if isinstance(value, dict) else [("?", value)]:
                if not isinstance(each, str):
                    yield Misfit(f"{path}.{name}: should be a text in quotes")
        case Duration():
            if seconds(value) is None:
                yield Misfit(f'{path}: should be a duration with its unit, such as "15s", not {value!r}')
        case Value(kinds, words):
            if type(value) not in kinds:
                yield Misfit(f"{path}: should be {words}, not {value!r}")


def _table(value: Any, fields: Mapping[str, Kind], path: str) -> Iterator[Misfit]:
    if not isinstance(value, dict):
        one = next(
            (name for name, kind in SCHEMA.fields.items() if name == path and isinstance(kind, Tables)), None
        )
        yield Misfit(f"{path}: should be a table, written {f'[[{path}]]' if one else f'[{path}]'}")
        return
    for name, each in value.items():
        inner = f"{path}.{name}" if path else name
        if name not in fields:
            line = f"{inner}: is not a key that is known of flyctl, which ignores such keys"
            yield Misfit(line + instead(name, fields), unknown_key=True)
        else:
            yield from misfits(each, fields[name], inner)
