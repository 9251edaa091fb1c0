"""Parses `fly-replay` and the related request headers, and follows one request through its replays and fallbacks.

Pure: headers go in; the next routing preference and the headers of the next attempt come out. No socket, no clock.
It is stricter than Fly is known to be: a field that Fly might ignore is malformed here, so that tests find a
misspelt one. Sources: fly.md 5.1, 5.3, 5.4 (fields, what the target sees, limits), 6 (request headers), 18
(codes), 19 rules 9, 10.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from app.sim.fly.edge import NEAREST, Machine, RoutingPreference, region_groups

MAX_REPLAYS: Final = 10
MAX_REPLAYED_BODY_BYTES: Final = 1_000_000
"""The replay page's "1 MB"; the error-code page speaks of 10 MB (fly.md 5.4), and the stricter one is safe."""

SRC: Final = "fly-replay-src"
FAILED: Final = "fly-replay-failed"
UNAVAILABLE: Final = "fly-preferred-instance-unavailable"
FORGEABLE: Final = frozenset({SRC, FAILED, UNAVAILABLE})
"""Headers that only the edge has reason to write."""

_FIELDS: Final = {"region", "instance", "prefer_instance", "app", "state", "elsewhere", "timeout", "fallback"}
_TARGETS: Final = {"region", "instance", "prefer_instance", "elsewhere"}
_SEPARATOR: Final = re.compile(r';(?=(?:[^"]*"[^"]*")*[^"]*$)')  # not inside double quotes
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)")
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}


class Fallback(enum.StrEnum):
    FORCE_SELF = "force_self"
    PREFER_SELF = "prefer_self"


class NoMachine(enum.StrEnum):
    """The reason why no Machine was reached, as `fly-replay-failed` writes it."""

    TIMEOUT = "timeout"
    RETRIES_EXHAUSTED = "retries_exhausted"
    NO_CANDIDATE = "no_candidate"


class ReplayError(Exception):
    """A `fly-replay` that the edge does not follow. `code` is Fly's; the client gets a 502."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(f"{code}: {why}")


@dataclass(frozen=True, slots=True)
class Replay:
    """One `fly-replay` header."""

    regions: tuple[str, ...] = ()
    instance: str | None = None
    prefer_instance: str | None = None
    state: str | None = None
    elsewhere: bool = False
    timeout_s: float | None = None
    fallback: Fallback | None = None


def read_replay(header: str) -> Replay:
    """Parses a `fly-replay` header. Raises ReplayError that names the wrong field."""
    fields: dict[str, str] = {}
    for part in _SEPARATOR.split(header.strip().removesuffix(";")):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not equals or not value or name not in _FIELDS:
            raise _malformed(f"{part.strip()!r} is not one of {', '.join(sorted(_FIELDS))} with a value")
        if name in fields:
            raise _malformed(f"{name} is there twice")
        fields[name] = value
    if "app" in fields:
        raise ReplayError("PA04", f"app {fields['app']!r} is not known: this simulator has one app")
    if not _TARGETS & fields.keys():
        raise _malformed(f"no target: one of {', '.join(sorted(_TARGETS))} is needed")
    state = fields.get("state")
    return Replay(
        _regions(fields["region"]) if "region" in fields else (),
        _word(fields, "instance"),
        _word(fields, "prefer_instance"),
        None if state is None else _state(state),
        _flag(fields.get("elsewhere", "false")),
        _duration_s(fields["timeout"]) if "timeout" in fields else None,
        _fallback(fields["fallback"]) if "fallback" in fields else None,
    )


def _malformed(why: str) -> ReplayError:
    return ReplayError("PA03", f"malformed fly-replay: {why}")


def _unquoted(value: str) -> tuple[str, bool]:
    quoted = len(value) > 1 and value[0] == value[-1] == '"'
    return (value[1:-1] if quoted else value), quoted


def _regions(value: str) -> tuple[str, ...]:
    text, quoted = _unquoted(value)
    codes = tuple(code.strip() for code in text.split(","))
    if len(codes) > 1 and not quoted:
        raise _malformed(f"region: the list {value} has to be in double quotes")
    for code in codes:
        if not re.fullmatch("[a-z]{2,4}", code):
            raise _malformed(f"region: {code!r} is not a region code")
    return codes


def _word(fields: Mapping[str, str], name: str) -> str | None:
    if name not in fields:
        return None
    text, _ = _unquoted(fields[name])
    if not re.fullmatch("[A-Za-z0-9_-]+", text):
        raise _malformed(f"{name}: {text!r} is not a Machine ID")
    return text


def _state(value: str) -> str:
    text, _ = _unquoted(value)
    if ";" in text:
        raise _malformed("state: a semicolon would end it in fly-replay-src")
    return text


def _flag(value: str) -> bool:
    if value not in ("true", "false"):
        raise _malformed(f"elsewhere: {value!r} is neither true nor false")
    return value == "true"


def _duration_s(value: str) -> float:
    text, _ = _unquoted(value)
    found = _DURATION.fullmatch(text)
    if found is None:
        raise _malformed(f"timeout: {text!r} is not a duration like 10s or 800ms")
    return float(found[1]) * _UNIT_S[found[2]]


def _fallback(value: str) -> Fallback:
    try:
        return Fallback(value)
    except ValueError:
        raise _malformed(f"fallback: {value!r} is neither force_self nor prefer_self") from None


def preference_of_client(headers: Mapping[str, str]) -> RoutingPreference:
    """Returns what the request's own headers ask for: `fly-prefer-region` and its three relatives (fly.md 6)."""

    def codes(name: str) -> list[str]:
        return [code for each in headers.get(name, "").split(",") if (code := each.strip())]

    forced, preferred = codes("fly-force-region"), codes("fly-prefer-region")
    return RoutingPreference(
        region_groups(forced or [*preferred, "any"]),
        instance=headers.get("fly-force-instance-id"),
        prefer_instance=headers.get("fly-prefer-instance-id"),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """The replay that is followed, and the Machine that asked for it."""

    replay: Replay
    sender: Machine
    at_us: int


class ReplayState:
    """The replays of one request: `preference` and `timeout_s` for its next attempt, `headers(machine)` to send.

    The client's preference comes first. Every `fly-replay` that is followed replaces it. A replay that reaches no
    Machine goes back to its sender when it named a fallback. The answer to a fallback may not replay again.
    """

    def __init__(self, preference: RoutingPreference, *, app_name: str, body_bytes: int) -> None:
        self.preference = preference
        self.replays = 0
        self._app_name = app_name
        self._body_bytes = body_bytes
        self._asked: _Asked | None = None
        self._failed: str | None = None

    @property
    def timeout_s(self) -> float | None:
        """How long the next attempt may look for a Machine; None when no replay has set it."""
        return None if self._asked is None or self._failed is not None else self._asked.replay.timeout_s

    def headers(self, machine: Machine) -> list[tuple[str, str]]:
        """Returns the headers that this Machine gets besides the original request."""
        found: list[tuple[str, str]] = []
        if self._asked is not None:
            found.append((SRC, _source(self._asked)))
        if self._failed is not None:
            found.append((FAILED, self._failed))
        if self.preference.prefer_instance not in (None, machine.id):
            found.append((UNAVAILABLE, str(self.preference.prefer_instance)))
        return found

    def replayed(self, header: str, sender: Machine, at_us: int) -> None:
        """Follows a `fly-replay` that a Machine answered. Raises ReplayError when the edge would not."""
        if self._failed is not None:
            raise ReplayError("PA03", "fly-replay in answer to a request that fell back")
        if self.replays == MAX_REPLAYS:
            raise ReplayError("PA02", f"more than {MAX_REPLAYS} replays")
        replay = read_replay(header)
        if self._body_bytes > MAX_REPLAYED_BODY_BYTES:
            raise ReplayError("PA01", f"a body of {self._body_bytes} bytes cannot be replayed")
        self.replays += 1
        self._asked = _Asked(replay, sender, at_us)
        self.preference = RoutingPreference(
            region_groups(replay.regions) or NEAREST,
            replay.instance,
            replay.prefer_instance,
            frozenset({sender.id}) if replay.elsewhere else frozenset(),
        )

    def no_machine_reached(self, reason: NoMachine, elapsed_s: float) -> bool:
        """No Machine was reached. Returns True when `preference` now is a fallback to try."""
        if self._asked is None or self._asked.replay.fallback is None or self._failed is not None:
            return False
        replay, sender = self._asked.replay, self._asked.sender
        self._failed = ";".join(
            (
                f"instance={replay.instance or replay.prefer_instance or ''}",
                f"app={self._app_name}",
                f"region={','.join(replay.regions)}",
                f"replay_source={sender.id}",
                f"reason={reason}",
                f"elapsed_ms={round(elapsed_s * 1000)}",
            )
        )
        forced = replay.fallback is Fallback.FORCE_SELF
        self.preference = (
            RoutingPreference(instance=sender.id) if forced else RoutingPreference(prefer_instance=sender.id)
        )
        return True


def _source(asked: _Asked) -> str:
    source = f"instance={asked.sender.id};region={asked.sender.region};t={asked.at_us}"
    return source if asked.replay.state is None else f"{source};state={asked.replay.state}"
