"""Records each request hop by hop. Only tests and reports read it; no decision depends on it."""

import enum
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

_KEPT_REQUESTS: Final = 10_000


class Decision(enum.StrEnum):
    SERVED = "served"
    """The Machine's answer went to the client; for a tunnel, its 101."""
    CLOSED = "closed"
    """A served tunnel ended."""
    REPLAYED = "replayed"
    """The Machine answered with `fly-replay`, and the edge follows it."""
    FELL_BACK = "fell back"
    """A replay reached no Machine; its sender's fallback is tried."""
    REFUSED = "refused"
    """The Machine could not be connected to; the next candidate is tried."""
    FAILED = "failed"
    """The client got the edge's own error, or nothing."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a request. `machine_id` and `region` are None when no Machine took part in it."""

    request_id: str
    edge: str
    decision: Decision
    reason: str
    machine_id: str | None = None
    region: str | None = None
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """One request and its hops so far."""

    request_id: str
    client_location: str
    edge: str
    method: str
    target: str
    hops: list[Hop] = field(default_factory=list)


class Log:
    """The latest requests by `Fly-Request-Id`, oldest first."""

    def __init__(self, on_hop: Callable[[Trace, Hop], None] | None) -> None:
        self._on_hop = on_hop
        self._traces: OrderedDict[str, Trace] = OrderedDict()

    @property
    def traces(self) -> list[Trace]:
        return list(self._traces.values())

    def __getitem__(self, request_id: str) -> Trace:
        return self._traces[request_id]

    def open(self, trace: Trace) -> None:
        self._traces[trace.request_id] = trace
        if len(self._traces) > _KEPT_REQUESTS:
            self._traces.popitem(last=False)

    def add(self, trace: Trace, hop: Hop) -> None:
        trace.hops.append(hop)
        if self._on_hop is not None:
            self._on_hop(trace, hop)
