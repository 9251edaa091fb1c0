"""The calls of this process: expected, live, and how the last ones ended.

Keeps sessions and answers questions about them, at once: a webhook has 15 s at Twilio, and the caller hears
nothing meanwhile. What happens in a call is decided by the core (app/call).
"""

import asyncio
import contextlib
import logging
import random
import secrets
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, TypeVar

from app.bridge.draining import Drain, timetable
from app.bridge.link import Link
from app.bridge.refusals import Refusals
from app.bridge.session import OnEnd, Session
from app.bridge.ticket import Ticket
from app.call import events as ev
from app.call.continuity import Recollection
from app.call.ending import EndReason
from app.call.evidence import Route
from app.call.history import NO_HISTORY, History
from app.call.phases import Phase
from app.call.plan import Plan
from app.regions.routing import Reason

log = logging.getLogger("nearcall.bridge")

ANNOUNCED_KEPT = 10_000
"""The plans of this many answered webhooks are kept for their streams."""

CALLBACK_WAIT_S = 3.0
"""How long a drain waits for Twilio's `/twiml/after` once the last stream is closed: Twilio asks at once. A stream
that was announced comes within a second of its webhook's answer, is refused, and then Twilio asks as well."""

ENDINGS_KEPT = 10_000
"""The endings of this many calls are kept for Twilio's question after the stream; 1 MB."""

_SETTING_UP = frozenset({Phase.EXPECTED, Phase.ARRIVED, Phase.OPENING})

HISTORY_WAIT_S = 1.5
"""How long a stream that resumes a call waits for its history, on a machine that did not answer the webhook. Its
backend is being dialled meanwhile. Without the history the agent asks the caller to repeat."""


class MakeSession(Protocol):
    """Builds sessions."""

    def __call__(
        self, ticket: Ticket, plan: Plan, on_end: OnEnd, leg: str, history: History | None
    ) -> Session | None:
        """Return a session that has not begun, for a ticket's call; None when no backend may have the call.

        `leg`: its name in the records. `history`: what was said before; None: it is given later.
        """


Recall = Callable[[str, str, str], Awaitable[Recollection]]
"""Finds out about a call, by its zone, its CallSid and its tenant. Does not raise."""


async def recall_nothing(_zone: str, _call_sid: str, _tenant: str) -> Recollection:
    """The answer of a server without ledgers."""
    return Recollection()


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a leg ended."""

    reason: EndReason
    tenant: str
    epoch: int


class CallRegistry:
    """Every call of this process."""

    def __init__(
        self,
        make_session: MakeSession,
        plan_of: Callable[[str], Plan | None],
        refusals: Refusals,
        calls_max: int,
        *,
        setups_max: int,
        calls_elsewhere: Callable[[Plan], int] = lambda _plan: 0,
        may_move: Callable[[str], bool] = lambda _zone: False,
        recall: Recall = recall_nothing,
        callback_wait_s: float = CALLBACK_WAIT_S,
        endings_kept: int = ENDINGS_KEPT,
    ) -> None:
        """`plan_of` finds a tenant by name, for a stream whose webhook another machine answered.

        `calls_max`: the most calls at once. `setups_max`: the most of them whose stream or backend is not ready.
        `calls_elsewhere`: how many calls the tenant of a plan has on other machines, as far as is known.
        `may_move`: true for a zone whose calls may go on elsewhere.
        `recall`: for streams that resume calls, whose webhook another machine answered.
        """
        self._recall = recall
        self._setups_max = setups_max
        self._calls_elsewhere = calls_elsewhere
        self._may_move = may_move
        self._callback_wait_s = callback_wait_s
        self._endings_kept = endings_kept
        self._calls_max = calls_max
        self._make_session = make_session
        self._refusals = refusals
        self._plan_of = plan_of
        self._expected: dict[str, Session] = {}
        """Calls whose stream has not come."""
        self._live: dict[str, Session] = {}
        self._opening: dict[str, Session] = {}
        """Live calls that may still be set up; `crowded` removes those that are not."""
        self._recalling: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._endings: OrderedDict[str, _Ending] = OrderedDict()
        self._announced: OrderedDict[str, Plan] = OrderedDict()
        """The plan that the webhook found, by the ticket's nonce."""
        self._drain: Drain | None = None
        self._emptied = asyncio.Event()
        """No call is live."""
        self._without_callback: set[str] = set()
        """Calls that the drain cut short, live or announced, about which Twilio has not asked yet."""
        self._all_called_back = asyncio.Event()

    # --- What the webhooks ask -----------------------------------------------------------------

    def expect(self, ticket: Ticket, plan: Plan, history: History = NO_HISTORY) -> None:
        """A stream with this ticket will come: open its backend session now.

        `history`: what was said in the call before, when the stream resumes it.
        """
        _keep(self._announced, ticket.nonce, plan, ANNOUNCED_KEPT)
        before = self._expected.pop(ticket.call_sid, None)
        if before is not None:
            before.shut_down()
        session = self._make_session(ticket, plan, self._session_ended, ticket.nonce, history)
        assert session is not None, "the gate takes no call that no backend may handle"
        self._expected[ticket.call_sid] = session
        session.begin()

    def is_expected(self, call_sid: str) -> bool:
        """True while the call is expected and its stream has not come."""
        return call_sid in self._expected

    def is_live(self, call_sid: str) -> bool:
        """True while a stream of the call is open as far as we know."""
        return call_sid in self._live

    def live_epoch(self, call_sid: str) -> int | None:
        """The number of the call's leg whose stream is open as far as we know; None without one."""
        session = self._live.get(call_sid)
        return None if session is None else session.place.epoch

    def lose_stream(self, call_sid: str) -> None:
        """Twilio says that the call's stream is over: end its leg. Its records are written when this returns."""
        session = self._live.get(call_sid)
        if session is not None:
            session.lose_stream()

    def ending(self, call_sid: str, epoch: int = 0) -> EndReason | None:
        """How the call's leg `epoch` or a later one ended; None when that is not known here or has not happened.

        The webhook asks when Twilio does, so a drain waits no longer for this call.
        """
        self._without_callback.discard(call_sid)
        if not self._without_callback:
            self._all_called_back.set()
        ended = self._endings.get(call_sid)
        return None if ended is None or ended.epoch < epoch else ended.reason

    def tenant_of(self, call_sid: str) -> str | None:
        """The name of the call's tenant; None when the call is not known here."""
        session = self._live.get(call_sid) or self._expected.get(call_sid)
        if session is not None:
            return session.call.plan.tenant
        ended = self._endings.get(call_sid)
        return None if ended is None else ended.tenant

    def record_refused_call(
        self, call_sid: str, zone: str, tenant: str, reason: EndReason, detail: str, caller: str, called: str
    ) -> None:
        """Record in its zone, if that has a ledger here, a call that was not taken. Returns at once."""
        self._refusals.note(call_sid, zone, tenant, reason, detail, caller, called)

    def tenant_shortage(self, plan: Plan) -> Reason | None:
        """Why this tenant may have no further call: on this machine, or on all together; None when it may."""
        if not (plan.max_calls or plan.max_calls_everywhere):
            return None
        here = self.calls_of_tenants(plan.zone)[plan.tenant]
        if 0 < plan.max_calls_everywhere <= here + self._calls_elsewhere(plan):
            return Reason.TENANT_FULL_EVERYWHERE
        return Reason.TENANT_FULL if 0 < plan.max_calls <= here else None

    def full(self) -> bool:
        """True when no new call may be announced."""
        return len(self._live) + len(self._expected) >= self._calls_max

    def crowded(self) -> bool:
        """True when too many calls are being set up: their streams or backends are not ready."""
        if len(self._expected) + len(self._opening) < self._setups_max:
            return False
        self._opening = {sid: each for sid, each in self._opening.items() if each.call.phase in _SETTING_UP}
        return len(self._expected) + len(self._opening) >= self._setups_max

    # --- What the media socket asks ------------------------------------------------------------

    def backend_failed(self, ticket: Ticket) -> bool:
        """True when the call was announced here and lost its backend before its stream came."""
        call_sid = ticket.call_sid
        ended = self._endings.get(call_sid)
        over = ticket.nonce in self._announced and call_sid not in self._expected and call_sid not in self._live
        return over and ended is not None and ended.reason.is_backend_fault

    def record_refused_stream(self, ticket: Ticket, why: str) -> None:
        """Record that the stream of this ticket was refused, unless its call has another stream."""
        if ticket.call_sid not in self._live:
            detail = f"stream {why}"
            self._refusals.note(
                ticket.call_sid,
                ticket.zone,
                ticket.tenant,
                EndReason.NOT_TAKEN,
                detail,
                ticket.caller,
                ticket.called,
            )

    def full_of_streams(self) -> bool:
        """True when no stream may open. Expected calls have a place already."""
        return len(self._live) >= self._calls_max

    def answer(self, ticket: Ticket, twilio_region: str, trail: Route) -> Link | None:
        """Return the listener for an admitted stream.

        None when the call has a live stream already, its tenant is gone or has moved to another zone meanwhile, or
        there is no backend for it. `trail`: the way of the request to this machine, for the call's records.
        """
        call_sid = ticket.call_sid
        live = self._live.get(call_sid)
        if live is not None:
            if live.place.epoch >= ticket.epoch:
                return None
            live.supersede()  # its stream was lost without our noticing it
        session = self._expected.pop(call_sid, None)
        plan = self._plan_of(ticket.tenant)
        if plan is not None and plan.zone != ticket.zone:
            # The tenant has moved since the webhook: its calls may not be handled here any more.
            if session is not None:
                session.shut_down()
            return None
        if session is None:
            # Another machine answered its webhook, or its backend failed before the stream came: try again.
            announced = self._announced.get(ticket.nonce) or plan
            if announced is None:
                return None
            session = self._make_unexpected(ticket, announced)
            if session is None:
                return None
        self._live[call_sid] = self._opening[call_sid] = session
        return session.phone_link(twilio_region, trail)

    # --- What operators ask, and the drain ------------------------------------------------------

    @property
    def counts(self) -> dict[str, int]:
        """How many calls are expected and live, and how many refused calls were too many to be recorded."""
        counts = {"expected": len(self._expected), "live": len(self._live)}
        return counts | ({"unrecorded": self._refusals.unrecorded} if self._refusals.unrecorded else {})

    def calls_of_tenants(self, zone: str) -> Counter[str]:
        """How many calls of this zone each tenant has here, expected ones included."""
        plans = (session.call.plan for session in chain(self._live.values(), self._expected.values()))
        return Counter(plan.tenant for plan in plans if plan.zone == zone)

    @property
    def draining(self) -> bool:
        """True once this machine takes no new call."""
        return self._drain is not None

    @property
    def drain_progress(self) -> dict[str, object] | None:
        """How far the drain has come; None before it."""
        drain = self._drain
        if drain is None:
            return None
        left_s = drain.began_at + drain.deadline_s - asyncio.get_running_loop().time()
        return {**drain.counts(len(self._live)), "deadline_s": max(0, round(left_s))}

    async def drain(self, deadline_s: float) -> dict[str, int]:
        """Take no new call, have other machines go on with the live ones, and return when none is left.

        Returns how many calls were moved, and what became of the others.

        A call that no other machine may take goes on here. CALLBACK_WAIT_S before the deadline the calls that are
        left are cut short: their callers hear an apology, for which Twilio asks by `/twiml/after` once the stream
        is closed. So HTTP must stay up until this returns, also for the calls whose webhook was answered and whose
        stream has not come: the stream is replayed to another machine, or refused.
        """
        loop = asyncio.get_running_loop()
        drain = self._drain = Drain(loop.time(), deadline_s)
        self._without_callback |= self._expected.keys()
        for session in [*self._expected.values()]:
            session.shut_down()
        ends_in_s = max(0.0, deadline_s - self._callback_wait_s)
        movable = [session for session in self._live.values() if self._may_move(session.call.plan.zone)]
        random.shuffle(movable)
        fields = {"calls": len(self._live), "movable": len(movable), "deadline_s": deadline_s}
        log.info("drain_started", extra=fields)
        asking = [
            loop.call_later(ask_in_s, session.move, by_s - ask_in_s)
            for session, (ask_in_s, by_s) in zip(movable, timetable(len(movable), ends_in_s), strict=True)
        ]
        await self._until_no_call_is_live(ends_in_s)
        for timer in asking:
            timer.cancel()
        for session in [*self._live.values()]:
            session.shut_down()
        sockets_s = max(0.0, drain.began_at + deadline_s - loop.time())
        await asyncio.gather(self._until_sockets_are_closed(sockets_s), self._until_twilio_has_asked())
        took_s = round(loop.time() - drain.began_at, 1)
        counts = drain.counts(len(self._live))
        log.info("drain_finished", extra={**counts, "took_s": took_s})
        return counts

    async def _until_no_call_is_live(self, limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._live:
                    self._emptied.clear()
                    await self._emptied.wait()

    async def _until_sockets_are_closed(self, limit_s: float) -> None:
        closing = [*self._closing]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*closing)

    async def _until_twilio_has_asked(self) -> None:
        """Until Twilio has asked about every call that was cut short or announced."""
        if not self._without_callback:
            return
        self._all_called_back.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._callback_wait_s):
                await self._all_called_back.wait()

    # --- Inside --------------------------------------------------------------------------------

    def _make_unexpected(self, ticket: Ticket, plan: Plan) -> Session | None:
        """Begin a session for a stream that was not expected here."""
        # A name of its own: with a ticket that was used elsewhere, its records are not the first one's.
        leg = f"{ticket.nonce}-{secrets.token_hex(3)}"
        history = None if ticket.resumes else NO_HISTORY
        session = self._make_session(ticket, plan, self._session_ended, leg, history)
        if session is None:
            return None
        session.begin()
        if ticket.resumes:
            task = asyncio.get_running_loop().create_task(self._give_history(session, ticket))
            self._recalling.add(task)
            task.add_done_callback(self._recalling.discard)
        return session

    async def _give_history(self, session: Session, ticket: Ticket) -> None:
        found = Recollection()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HISTORY_WAIT_S):
                found = await self._recall(ticket.zone, ticket.call_sid, ticket.tenant)
        session.recall(ev.HistoryFound(found.history(ticket.started_ms)))

    def _session_ended(self, session: Session, reason: EndReason) -> None:
        call_sid = session.call.facts.call_sid
        was_live = self._live.get(call_sid) is session
        if was_live:
            del self._live[call_sid]
            self._opening.pop(call_sid, None)
        if self._expected.get(call_sid) is session:
            del self._expected[call_sid]
        # Of a leg that was superseded another machine knows how its call goes on.
        forgotten = reason in {EndReason.STREAM_NEVER_CAME, EndReason.SUPERSEDED}
        if call_sid not in self._expected and not forgotten:
            ended = _Ending(reason, session.call.plan.tenant, session.place.epoch)
            _keep(self._endings, call_sid, ended, self._endings_kept)
        if self._drain is not None and was_live:
            self._count_drained(self._drain, session, reason)
        if not self._live:
            self._emptied.set()
        closing = asyncio.get_running_loop().create_task(session.closed())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _count_drained(self, drain: Drain, session: Session, reason: EndReason) -> None:
        """A live call has ended during the drain."""
        if reason is EndReason.MOVED and session.redirected:
            drain.moved += 1
            return
        drain.move_failed += reason is EndReason.MOVED
        drain.cut_short += reason is EndReason.SHUTDOWN
        if reason is EndReason.MOVED or reason.owes_apology:
            # Its stream was closed; `drain` has added the announced calls.
            self._without_callback.add(session.call.facts.call_sid)


_T = TypeVar("_T")


def _keep(kept: "OrderedDict[str, _T]", key: str, value: _T, most: int) -> None:
    """Remember the newest `most` values."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
