"""Writes a call's records: its beginning, its events, its end. Turns are written by turns.py.

Where records go is decided elsewhere.
"""

from dataclasses import dataclass, field, replace

from app.call.ending import EndReason
from app.call.evidence import BackendChoice, Evidence, Route
from app.call.limits import CALL_EVENTS_MAX, DETAIL_MAX_CHARS, EARLY_CALL_EVENTS_MAX
from app.call.plan import Plan
from app.call.records import CallEnded, CallEvent, CallStarted, Record
from app.call.texts import cut
from app.call.wall import Wall

HANDLED, BACKEND, FAILOVER = "handled", "backend", "failover"
"""Events at a leg's start: how its request came here (a `Route`), which backend it got (a `BackendChoice`), and
which backend failed before that."""

TAKE_OVER = "take_over"
"""A session was lost after the caller had heard the agent, and another one goes on: what was lost by what, what
took its place, and how long the caller heard nothing meanwhile."""

ROLLOVER = "rollover"
"""Another session has taken the place of one that was about to end."""

END = "end"
"""A call_event at a leg's end: what a peer said about it, or why the call was not taken."""

BEFORE_TALK = ".0"
"""Ends the name of a leg without a conversation. The stream of the same ticket may still come, here or on another
machine, and its leg has the name without."""


RESPONSE_FAILED = "response_failed"
"""A response was not made, or could not be heard."""

TOOL_LOOP = "tool_loop"
"""The model calls tools again and again and says nothing."""


LEFT_OUT = "left_out"
"""At a leg's end: how many turns, events and keys there were beyond their limits."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a call before it talks."""

    call_sid: str
    leg: str
    """Tells the streams of one call apart."""
    region: str
    backend: str
    caller: str = ""
    called: str = ""
    choice: BackendChoice | None = None
    """Why this backend, and what it promises; None while there is none."""


@dataclass(slots=True)
class Journal:
    """The records of one leg of a call."""

    facts: Facts
    """Others once another backend has taken the call."""
    wall: Wall
    _begun: bool = False
    _events_written: int = 0
    _left_out: dict[str, int] = field(default_factory=dict)
    """By kind, how many there were beyond a limit."""
    _early: list[tuple[str, str, float]] = field(default_factory=list)
    """What happened before the first record was written."""

    @property
    def begun(self) -> bool:
        """True once the leg's first record was written."""
        return self._begun

    def never_talked(
        self, plan: Plan, trail: Route | None, reason: EndReason, detail: str, now: float
    ) -> list[Record]:
        """Everything about a leg that is over before it began: it has no stream, or its backend was not ready."""
        self.facts = replace(self.facts, leg=f"{self.facts.leg}{BEFORE_TALK}")
        began = self.started(plan, "", trail, self.wall.now)
        return [*began, *self.ended(reason, detail, 0, now)]

    def started(self, plan: Plan, stream_sid: str, trail: Route | None, now: float) -> list[Record]:
        """The stream began at `now`. Nothing is written before: there may be no call to write about."""
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
        handled = [*self._evidence(HANDLED, trail, now), *self._evidence(BACKEND, self.facts.choice, now)]
        early = [each for kind, text, at in self._early if text for each in self.happened(kind, text, at)]
        return [begun, *handled, *early]

    def leave_out(self, what: str, number: int = 1) -> None:
        """Something was beyond a limit: it has no record of its own, and is counted in the call's last one."""
        if number:
            self._left_out[what] = self._left_out.get(what, 0) + number

    def happened(self, kind: str, detail: str, now: float) -> list[CallEvent]:
        """Something worth knowing that is not a turn. `detail`: codes and counts, nothing that was spoken."""
        detail = cut(detail, DETAIL_MAX_CHARS)
        if not self._begun:
            if len(self._early) < EARLY_CALL_EVENTS_MAX:
                self._early.append((kind, detail, now))
            else:
                self.leave_out("events")
            return []
        if self._events_written >= CALL_EVENTS_MAX:
            self.leave_out("events")
            return []
        return [self._call_event(kind, detail, now)]

    def _evidence(self, kind: str, evidence: Evidence | None, now: float) -> list[CallEvent]:
        if evidence is None:
            return []
        return [replace(each, evidence=_bounded(evidence)) for each in self.happened(kind, "", now)]

    def _call_event(self, kind: str, detail: str, now: float) -> CallEvent:
        self._events_written += 1
        facts = self.facts
        return CallEvent(facts.call_sid, facts.leg, self._events_written - 1, self.wall.ms(now), kind, detail)

    def switched(self, facts: Facts, why: str, now: float) -> list[CallEvent]:
        """Another backend has the call. `why`: what the one before failed by; empty: that is recorded later."""
        records = self.happened(FAILOVER, f"{self.facts.backend} {why}", now) if why else []
        self.facts = facts
        # Before the first record `started` tells which one has the call.
        return [*records, *self._evidence(BACKEND, facts.choice, now)] if self._begun else records

    def ended(self, reason: EndReason, detail: str, turns: int, now: float) -> list[Record]:
        """The leg is over. The limit of events does not hold for its reason and for what was left out."""
        if not self._begun:
            return []
        records: list[Record] = []
        if self._left_out:
            counts = ", ".join(f"{what} {number}" for what, number in self._left_out.items())
            records.append(self._call_event(LEFT_OUT, counts, now))
        if detail:
            records.append(self._call_event(END, cut(detail, DETAIL_MAX_CHARS), now))
        return [*records, CallEnded(self.facts.call_sid, self.facts.leg, self.wall.ms(now), reason.value, turns)]


def _bounded(evidence: Evidence) -> Evidence:
    """The same, with texts of a length that can be kept: a request names its edge, and a tenant the voice."""
    match evidence:
        case Route(edge=str(edge)):
            return replace(evidence, edge=cut(edge, DETAIL_MAX_CHARS))
        case Route():
            return evidence
        case BackendChoice():
            return replace(
                evidence,
                voice=cut(evidence.voice, DETAIL_MAX_CHARS),
                because=cut(evidence.because, DETAIL_MAX_CHARS),
            )
