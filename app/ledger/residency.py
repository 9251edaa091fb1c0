"""Did any call of a zone leave it? The records of calls, held against the zone's rule. Only judges; asks nothing.

A call's records say where each part of it was handled: the machine's region and the backend in its leg, how its
request came in its event `handled`, the backend's promise in its event `backend`. What is not there counts as a
breach, for a promise that nobody can show is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.call.evidence import BackendChoice, Route
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
    """Regions that sent it on, as `a>b`; `none` when it came here at once."""
    backend: str
    residency: str
    """What the backend promises, as `eu,us` or `none`. Semicolons separate backends when there were several."""
    breaches: tuple[str, ...]
    """What breaks the zone's promise."""


def judge(leg: CallStarted, events: Iterable[CallEvent], ledger: str, zones: Mapping[str, ZoneRule]) -> Handled:
    """One leg, with its events, from the database of the zone `ledger`."""
    evidence = [event.evidence for event in events]
    route = next((each for each in evidence if isinstance(each, Route)), None)
    # Several, when one backend took the call over from another before the caller had heard it.
    choices = [each for each in evidence if isinstance(each, BackendChoice)]
    found = Handled(
        leg.call_sid,
        leg.leg,
        leg.tenant,
        leg.zone,
        leg.started_ms,
        ledger,
        leg.region,
        "unknown" if route is None else route.edge or "none",
        "unknown" if route is None else route.twilio or "unknown",
        "unknown" if route is None else ">".join(route.sent_on_by) or "none",
        leg.backend,
        ";".join(",".join(each.residency) or "none" for each in choices) or "unknown",
        (),
    )
    breaches = tuple(_breaches(found, route, choices, zones.get(leg.zone), streamed=bool(leg.stream_sid)))
    return replace(found, breaches=breaches)


def _breaches(
    found: Handled,
    route: Route | None,
    choices: Sequence[BackendChoice],
    rule: ZoneRule | None,
    *,
    streamed: bool,
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
    if rule.regions is not None and route is None:
        yield "how it came is not recorded"
    if route is not None and route.machine != found.machine:
        yield f"came to a machine in {route.machine}, and was recorded as handled in {found.machine}"
    if rule.residency is not None:
        if not choices:
            yield "what its backend promises is not recorded"
        for name in dict.fromkeys(each.name for each in choices if rule.residency not in each.residency):
            yield f"answered by {name}, which does not promise {rule.residency}"
    if rule.twilio_region is not None and found.twilio != rule.twilio_region:
        yield f"processed by Twilio in {found.twilio}"
    if rule.edges is not None and found.edge not in rule.edges:
        yield f"decrypted at Fly's edge {found.edge}"
