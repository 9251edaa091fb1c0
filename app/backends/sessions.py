"""Makes the session of a call: finds the call's backend, and gives the session what it needs."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from app.backends.dial import dial_for_call
from app.backends.pool import Backends
from app.bridge.call_memory import CallMemory
from app.bridge.epoch_watch import Place
from app.bridge.session import HandCallOver, HangUp, OnEnd, Session
from app.bridge.ticket import Ticket
from app.call.call import Call
from app.call.history import History
from app.call.journal import Facts
from app.call.plan import Plan
from app.call.records import Record
from app.call.wall import Wall
from app.logs import CallLog
from app.regions.zones import ZoneRule


@dataclass(frozen=True, slots=True)
class SessionMaker:
    """Makes the sessions of this machine's calls."""

    region: str
    zones: Mapping[str, ZoneRule]
    backends: Backends
    remember: Mapping[str, Callable[[Record], None]]
    """What keeps a record, for each zone with a ledger on this machine. There are no calls of other zones."""
    hang_up: HangUp
    hand_over: Mapping[str, HandCallOver]
    """What moves a call to another machine, for the same zones."""
    memories: Mapping[str, CallMemory]
    """By zone, what the ledger knows about calls."""
    resume_url: Callable[[Ticket, Plan], str]
    """Where Twilio is sent when another machine is to go on with a ticket's call."""
    count: Callable[[str], None]
    """Counts an event by its name."""

    def make(self, ticket: Ticket, plan: Plan, on_end: OnEnd, leg: str, history: History | None) -> Session | None:
        """Return a session that has not begun; None when there is no backend that the call may have.

        `leg`: its name in the records. `history`: what was said in the call before; None: it is given later.
        """
        wish = replace(plan, backends=(ticket.backend, *plan.backends)) if ticket.backend else plan
        facts = Facts(ticket.call_sid, leg, self.region, "", ticket.caller, ticket.called)
        find = partial(self.backends.service, wish, self.zones[plan.zone], facts)
        service = find((), working=False)
        if service is None:
            return None
        wall = Wall(time.monotonic(), int(time.time() * 1000))
        return Session(
            Call(
                service.plan,
                service.facts,
                wall,
                service.dialect.abilities,
                History(began_ms=ticket.started_ms) if history is None else history,
                awaits_history=history is None,
            ),
            service,
            find=find,
            dial=dial_for_call,
            remember=self.remember[wish.zone],
            hang_up=self.hang_up,
            hand_over=self.hand_over[wish.zone],
            log=CallLog("nearcall.call", ticket.call_sid, wish.tenant, self.region),
            on_end=on_end,
            place=Place(ticket.epoch, self.memories.get(wish.zone), self.count),
            resume_url=self.resume_url(ticket, plan),
        )
