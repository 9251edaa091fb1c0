"""Writes a call's records: its beginning, its happenings, its end. Turns are written by turns.py.

Knows nothing of where records go.
"""

from dataclasses import dataclass

from app.call.ending import EndReason
from app.call.limits import HAPPENINGS_MAX
from app.call.plan import Plan
from app.call.records import CallEnded, CallStarted, Happening, Record
from app.call.wall import Wall

HANDLED, BACKEND = "handled", "backend"
"""Happenings at a leg's start: the way it came, and why it got its backend (app/ops/residency.py reads them)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a call when it begins."""

    call_sid: str
    leg: str
    """Tells the streams of one call apart."""
    region: str
    backend: str
    caller: str = ""
    called: str = ""
    choice: str = ""
    """Why this backend."""


@dataclass(slots=True)
class Journal:
    """The records of one leg of a call."""

    facts: Facts
    wall: Wall
    _begun: bool = False
    _happenings: int = 0

    def started(self, plan: Plan, stream_sid: str, trail: str, now: float) -> list[Record]:
        """The stream began. Before that nothing is written: there is no call to write about."""
        self._begun = True
        begun = CallStarted(
            call_sid=self.facts.call_sid,
            leg=self.facts.leg,
            tenant=plan.tenant,
            zone=plan.zone,
            region=self.facts.region,
            backend=self.facts.backend,
            model=plan.model,
            stream_sid=stream_sid,
            caller=self.facts.caller,
            called=self.facts.called,
            started_ms=self.wall.ms(now),
        )
        told = ((HANDLED, trail), (BACKEND, self.facts.choice))
        return [begun, *(each for kind, text in told if text for each in self.happened(kind, text, now))]

    def happened(self, kind: str, detail: str, now: float) -> list[Happening]:
        """Something worth knowing that is not a turn. `detail`: codes and counts, nothing that was spoken."""
        if not self._begun or self._happenings >= HAPPENINGS_MAX:
            return []
        self._happenings += 1
        facts = self.facts
        return [Happening(facts.call_sid, facts.leg, self._happenings - 1, self.wall.ms(now), kind, detail)]

    def ended(self, reason: EndReason, turns: int, now: float) -> list[CallEnded]:
        """The leg is over."""
        if not self._begun:
            return []
        return [CallEnded(self.facts.call_sid, self.facts.leg, self.wall.ms(now), reason.value, turns)]
