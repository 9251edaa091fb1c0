"""Did any call of a zone leave it? The records of calls, held against the zone's rule. Only judges; asks nothing.

A call's records say where each part of it was handled: the machine's region and the backend in its leg, the way
it came in its event `handled`, the backend's promise in its event `backend`. What is not there counts as a breach,
for a promise that nobody can show is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.call.journal import BACKEND, HANDLED
from app.call.records import CallEvent, CallStarted
from app.regions.zones import ZoneRule


@dataclass(frozen=True, slots=True)
class Handled:
    """Where one leg of a call was handled."""

    call_sid: str
    leg: str
    tenant: str
    zone: str
    started_ms: int
    ledger: str
    """The zone whose database has the records."""
    machine: str
    edge: str
    twilio: str
    by: str
    """Regions that sent it on, `a>b`; none."""
    backend: str
    residency: str
    """What the backend promises, by commas; none. Several backends are parted by semicolons."""
    breaches: tuple[str, ...]
    """What breaks the zone's promise."""


def judge(leg: CallStarted, events: Iterable[CallEvent], ledger: str, zones: Mapping[str, ZoneRule]) -> Handled:
    """One leg, with its events, from the database of the zone `ledger`."""
    told = list(events)
    way = _fields(next((event.detail for event in told if event.kind == HANDLED), ""))
    # Several, when one backend took the call over from another before the caller had heard it.
    promises = [_fields(event.detail).get("residency", "") for event in told if event.kind == BACKEND]
    residency = ";".join(promises)
    found = Handled(
        leg.call_sid,
        leg.leg,
        leg.tenant,
        leg.zone,
        leg.started_ms,
        ledger,
        leg.region,
        way.get("edge", "unknown"),
        way.get("twilio", "unknown"),
        way.get("by", "unknown"),
        leg.backend,
        residency or "unknown",
        (),
    )
    breaches = tuple(_breaches(found, way, promises, zones.get(leg.zone), streamed=bool(leg.stream_sid)))
    return replace(found, breaches=breaches)


def _breaches(
    found: Handled, way: Mapping[str, str], promises: Sequence[str], rule: ZoneRule | None, *, streamed: bool
) -> Iterable[str]:
    if rule is None:
        yield f"zone {found.zone} is not configured"
        return
    if found.ledger != found.zone:
        yield f"recorded in the database of zone {found.ledger}"
    if not rule.allows(found.machine):
        yield f"handled by a machine in {found.machine}"
    if not streamed:
        # No audio came here that could have left the zone.
        return
    if rule.regions is not None and not way:
        yield "how it came is not recorded"
    if way and way.get("machine") != found.machine:
        yield f"came to a machine in {way.get('machine')}, and was recorded as handled in {found.machine}"
    if rule.residency is not None:
        if not promises:
            yield "what its backend promises is not recorded"
        elif any(rule.residency not in promise.split(",") for promise in promises):
            yield f"answered by {found.backend}, which does not promise {rule.residency}"
    if rule.twilio_region is not None and found.twilio != rule.twilio_region:
        yield f"processed by Twilio in {found.twilio}"
    if rule.edges is not None and found.edge not in rule.edges:
        yield f"decrypted at Fly's edge {found.edge}"


def _fields(text: str) -> dict[str, str]:
    """`name=value` words; others are left out."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)
