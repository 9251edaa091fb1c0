"""How a request came to this machine, and how it goes on to another: Fly's replay headers (fly.md 5).

What the headers say about a request's way is a hint, except for the `state` of a replay, which we sign: it is
bound to this one request by Twilio's signature of it, and names the regions that replayed it. A forged header
changes nothing about where a zone's calls may be handled; at worst a stranger's own request is refused.
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from itsdangerous import Signer

from app.call.evidence import Route
from app.regions.routing import Arrival, Decision, Here, Reason, Refuse, Replay, Take, decide, elsewhere
from app.regions.zones import ZoneRule

EDGE = "Fly-Region"
SOURCE = "Fly-Replay-Src"
FAILED = "Fly-Replay-Failed"
REPLAY = "fly-replay"

PATIENCE = "2s"
"""How long Fly tries to reach a region before the request comes back to us. A caller hears nothing yet."""

_SALT = "nearcall.replay.1"
_BETWEEN = "."

Header = Callable[[str], str | None]
"""A request's header by name, whatever its case."""


class ReplayPolicy:
    """Decides about requests of this machine, and counts why."""

    def __init__(
        self,
        zones: Mapping[str, ZoneRule],
        here: Callable[[], Here],
        secret: str,
        counts: Counter[str] | None = None,
    ) -> None:
        """`secret` is the same on every machine. `counts`: those of this machine, if others count there too."""
        self.zones = zones
        self._here = here
        self._signer = Signer(secret, salt=_SALT, key_derivation="hmac", digest_method=hashlib.sha256)
        self.counts: Counter[str] = Counter() if counts is None else counts
        """How many requests had which outcome: `taken call`, `taken stream`, `sent_on zone`, `refused full`."""

    @property
    def region(self) -> str:
        """Where this machine is."""
        return self._here().region

    def allows(self, zone: str) -> bool:
        """True when calls of this zone may be handled and logged here. False for an unknown zone."""
        rule = self.zones.get(zone)
        return rule is not None and rule.allows(self.region)

    @property
    def allows_every_zone(self) -> bool:
        """True when calls of every zone may be handled and logged here."""
        return all(rule.allows(self.region) for rule in self.zones.values())

    @property
    def starting(self) -> bool:
        """True while this machine has not read the tenants yet."""
        return self._here().starting

    def arrival(self, zone: str, header: Header, signature: str, twilio_region: str | None = None) -> Arrival:
        """What is known for certain about a request's way. `signature`: Twilio's signature of this request."""
        return Arrival(
            zone=zone,
            edge=_ascii(header(EDGE)),
            twilio_region=twilio_region,
            tried=self._tried(_ascii(header(SOURCE)), signature),
            came_back=header(FAILED) is not None,
        )

    def decide(self, arrival: Arrival) -> Decision:
        """Decide about a webhook that would begin a call.

        The caller may still refuse what could be taken, so the caller reports `taken` or `refused`.
        """
        decision = decide(arrival, self._here(), self.zones)
        self._count(decision)
        return decision

    def decide_stream(self, arrival: Arrival, *, full: bool, expected: bool, backend_failed: bool) -> Decision:
        """Decide about a stream, as `decide` does about a webhook.

        `full`: no stream may open here. `expected`: the call was announced here, so its work is already done, and
        only `full` keeps it out. `backend_failed`: the call's backend failed here a moment ago, so another region
        is better if there is one.
        """
        here = replace(self._here(), full=full)
        if expected:
            here = replace(here, crowded=False, lagging=False)
        decision = decide(arrival, here, self.zones)
        if backend_failed and isinstance(decision, Take):
            other = elsewhere(arrival, here, self.zones[arrival.zone], Reason.BACKEND)
            decision = other if isinstance(other, Replay) else decision
        self._count(decision)
        return decision

    def send_on(self, arrival: Arrival, why: Reason) -> Replay | Refuse:
        """Decide where a call goes that this machine does not take, for a reason that the caller found."""
        decision = elsewhere(arrival, self._here(), self.zones[arrival.zone], why)
        self._count(decision)
        return decision

    def before_new_call(self, arrival: Arrival) -> Replay | Refuse | None:
        """Decide before the body of a request that may begin a call is read; None: read it.

        Where the zone's calls may be handled it is read, whether there is room or not: the call may have been
        answered already.
        """
        here, rule = self._here(), self.zones.get(arrival.zone)
        if rule is None or rule.allows(here.region):
            return None
        decision = decide(arrival, here, self.zones)
        if isinstance(decision, Take):
            return None
        self._count(decision)
        return decision

    def before_callback(self, arrival: Arrival) -> Replay | Refuse | None:
        """Decide before the body of a request about an existing call is read; None: read it.

        Such a request needs no room, but a region that its zone allows.
        """
        rule, here = self.zones.get(arrival.zone), self._here()
        if rule is None or rule.allows(here.region):
            return None
        decision = elsewhere(arrival, here, rule, Reason.ZONE)
        self._count(decision)
        return decision

    def regions_to_ask(self, arrival: Arrival, first: str) -> Replay | Refuse:
        """Where to ask about a call that is unknown here: in the region `first`, then in the nearest ones."""
        rule, here = self.zones.get(arrival.zone), self._here()
        if rule is None:
            return Refuse(Reason.UNKNOWN_ZONE)
        found = elsewhere(arrival, here, rule, Reason.NOT_HERE)
        if isinstance(found, Replay) and first in found.regions:
            others = tuple(region for region in found.regions if region != first)
            found = Replay((first, *others), found.why)
        return found

    def replay_headers(self, arrival: Arrival, to: Replay, signature: str) -> dict[str, str]:
        """The header that makes Fly replay the request in another region.

        When Fly cannot, the request comes back to us, or to any other machine if we fail our own health check, as
        a draining machine does. That machine sees that the request came back, and answers with the apology. With
        `force_self` the request was lost in that case, and the caller heard Twilio's error voice.
        """
        tried = _BETWEEN.join((*arrival.tried, self.region))
        state = f"{tried}{_BETWEEN}{self._seal(tried, signature)}"
        regions = to.regions[0] if len(to.regions) == 1 else f'"{",".join(to.regions)}"'
        return {REPLAY: f"region={regions};state={state};timeout={PATIENCE};fallback=prefer_self"}

    def trail(self, arrival: Arrival) -> Route:
        """The way of a request to this machine, for the call's records."""
        return Route(arrival.edge, self.region, arrival.twilio_region, arrival.tried)

    def taken(self, what: str) -> None:
        """Count a call or a stream that was taken."""
        self.counts[f"taken {what}"] += 1

    def refused(self, why: str) -> None:
        """Count a request from Twilio that was refused for a reason that this policy does not know."""
        self.counts[f"refused {why}"] += 1

    def note(self, event: str) -> None:
        """Count an event by its name."""
        self.counts[event] += 1

    def _count(self, decision: Decision) -> None:
        match decision:
            case Take():
                pass
            case Replay(_, why):
                self.counts[f"sent_on {why.value}"] += 1
            case Refuse(why):
                self.refused(why.value)

    def _seal(self, tried: str, signature: str) -> str:
        return self._signer.get_signature(f"{tried} {signature}").decode("ascii")

    def _tried(self, source: str | None, signature: str) -> tuple[str, ...]:
        """The regions that replayed this request; none without a `state` that we signed for this request."""
        fields = dict(part.partition("=")[::2] for part in (source or "").split(";"))
        tried, _, seal = fields.get("state", "").rpartition(_BETWEEN)
        if not tried or not hmac.compare_digest(self._seal(tried, signature).encode(), seal.encode()):
            return ()
        return tuple(tried.split(_BETWEEN))


def _ascii(value: str | None) -> str | None:
    """A header as Fly may have written it; None for bytes that Fly never writes and no record can hold."""
    return value if value is not None and value.isascii() else None
