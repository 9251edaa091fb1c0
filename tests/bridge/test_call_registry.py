"""The calls of a process: expected, live, ended, and drained. Sessions are real up to their sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from typing import Any

import pytest

from app.bridge.call_registry import CallRegistry
from app.bridge.epoch_watch import Place
from app.bridge.link import Link
from app.bridge.refusals import PER_MINUTE, Refusals
from app.bridge.session import OnEnd, Service, Session
from app.bridge.ticket import Ticket
from app.call.call import Call
from app.call.ending import EndReason
from app.call.events import RedirectAnswered, RedirectOutcome, Side
from app.call.evidence import Route
from app.call.failure import BackendFailure
from app.call.history import NO_HISTORY, History
from app.call.journal import Facts
from app.call.limits import CATCH_UP_S
from app.call.plan import Plan
from app.call.records import CallEnded, CallStarted, Record
from app.call.wall import Wall
from app.regions.routing import Reason
from app.wire.dialect import bearer
from app.wire.openai import OpenAIRealtime
from tests.bridge.peers import FakeTransport
from tests.bridge.test_session import Log, turns
from tests.waiting import a_moment

pytestmark = pytest.mark.anyio

ROUTE = Route(None, "fra", "us1")
PLAN = Plan(tenant="acme", greeting="")
BUILTIN = Plan(tenant="default")
STOP = b'{"event":"stop","sequenceNumber":"2","streamSid":"MZ1","stop":{}}'
"""What Twilio sends when the caller hangs up."""
PCMU = {"format": {"type": "audio/pcmu"}}
CONFIGURED = json.dumps(
    {"type": "session.updated", "session": {"audio": {"input": PCMU, "output": PCMU}}}
).encode()
"""What a backend sends that is ready."""
REFUSED = b'{"type":"error","error":{"type":"invalid_request_error","code":"invalid_model","message":"No."}}'
"""What a backend sends that will not have this call."""
PATIENT = pytest.mark.parametrize("floor", [{"callback_wait_s": 1_000.0}], indirect=True)
"""A registry that waits for Twilio's question longer than a test may take."""


def start(number: int) -> bytes:
    """Twilio's `start` of a call's stream."""
    media = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    call_sid = ticket(number).call_sid
    sids = {"streamSid": "MZ1", "callSid": call_sid, "accountSid": "AC1"}
    begin = {**sids, "tracks": ["inbound"], "mediaFormat": media, "customParameters": {}}
    return json.dumps({"event": "start", "sequenceNumber": "1", "streamSid": "MZ1", "start": begin}).encode()


def ticket(number: int = 1, nonce: str = "n1") -> Ticket:
    return Ticket(f"CA{number:032d}", "acme", "global", 0, nonce, caller="+4930111", called="+4930222")


class WatchedSession(Session):
    """A session that shows whether it was asked to move."""

    asked_to_move = False

    def move(self, within_s: float) -> None:
        super().move(within_s)
        self.asked_to_move = True


class Floor:
    """A registry, and every session that it asked for. Its backends are never reached."""

    def __init__(self, *, calls_max: int = 200, setups_max: int = 200, **limits: Any) -> None:
        self.made: list[WatchedSession] = []
        self.asked: list[tuple[str, Plan, str, str]] = []
        self.plan_now = BUILTIN
        self.backends = ["openai"]
        self.recorded: list[Record] = []
        refusals = Refusals({"global": self.recorded.append}, "fra", lambda: 60_000)
        self.calls_elsewhere = 0
        self.registry = CallRegistry(
            self._make,
            lambda _tenant: self.plan_now,
            refusals,
            calls_max,
            setups_max=setups_max,
            calls_elsewhere=lambda _plan: self.calls_elsewhere,
            **limits,
        )
        self.transports: list[FakeTransport] = []
        self.links: list[Link] = []
        self.now = 0.0
        self.handed_over: list[str] = []
        self.redirect = RedirectOutcome.ACCEPTED
        self._dialled: list[asyncio.Future[BackendFailure | None]] = []
        self._backend_links: list[Link] = []

    async def dial(self, _dialect: object, _model: str, link: Link) -> BackendFailure | None:
        """What sessions dial their backends with."""
        self._backend_links.append(link)
        self._dialled.append(asyncio.get_running_loop().create_future())
        return await self._dialled[-1]

    async def dialling_fails(self, cause: BackendFailure | Exception) -> None:
        """The last dialled backend cannot be reached, or our own code fails at dialling it."""
        await turns()
        if isinstance(cause, Exception):
            self._dialled[-1].set_exception(cause)
        else:
            self._dialled[-1].set_result(cause)
        await turns()

    def _make(
        self, ticket: Ticket, plan: Plan, on_end: OnEnd, leg: str, history: History | None
    ) -> Session | None:
        self.asked.append((ticket.call_sid, plan, ticket.caller, ticket.called))

        def find(tried: Collection[str], *, working: bool) -> Service | None:
            backend = next((name for name in self.backends if name not in tried), None)
            if backend is None:
                return None
            facts = Facts(ticket.call_sid, leg, "fra", backend, ticket.caller, ticket.called)
            dialect = OpenAIRealtime("http://backend/v1", bearer(lambda: "key"))
            return Service(plan, facts, dialect, lambda _failure: None, lambda _ms: None, lambda _ms: None)

        first = find((), working=False)
        if first is None:
            return None
        session = WatchedSession(
            Call(
                first.plan,
                first.facts,
                Wall(0.0, 0),
                history=history or NO_HISTORY,
                awaits_history=history is None,
            ),
            first,
            find=find,
            dial=self.dial,
            remember=lambda _record: None,
            hang_up=self._hang_up,
            hand_over=self._hand_over,
            log=Log(),
            on_end=on_end,
            place=Place(ticket.epoch),
            clock=lambda: self.now,
        )
        self.made.append(session)
        return session

    async def _hang_up(self, call_sid: str, twilio_region: str) -> str | None:
        return None

    async def _hand_over(
        self, call_sid: str, twilio_region: str, resume_url: str
    ) -> tuple[bool, RedirectAnswered]:
        self.handed_over.append(call_sid)
        return True, RedirectAnswered(self.redirect)

    async def expect(self, of: Ticket) -> None:
        """The webhook of this ticket was answered."""
        self.registry.expect(of, PLAN)
        await turns()

    async def stream(self, of: Ticket) -> None:
        """The stream of this ticket opens."""
        link = self.registry.answer(of, "us1", ROUTE)
        assert link is not None
        transport = FakeTransport()
        link.on_ws_connected(transport)  # type: ignore[arg-type]
        self.links.append(link)
        self.transports.append(transport)
        await turns()

    def talks(self, number: int) -> None:
        """The backend of this session is ready, and its stream starts."""
        self._backend_links[number].on_ws_connected(FakeTransport())  # type: ignore[arg-type]
        for message in (b'{"type":"session.created"}', CONFIGURED):
            self.made[number].link_message(Side.BACKEND, message)
        call_sid = self.made[number].call.facts.call_sid
        media_format = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {"streamSid": "MZ1", "callSid": call_sid, "mediaFormat": media_format}
        self.made[number].link_message(Side.PHONE, json.dumps({"event": "start", "start": start}).encode())

    def caller_hangs_up(self, number: int) -> None:
        """The stream of this session says that it stops."""
        self.made[number].link_message(Side.PHONE, STOP)

    async def latest_moment(self) -> None:
        """The calls have to move now, whoever speaks."""
        for self.now in (10_000.0, 10_000.1 + CATCH_UP_S):  # nobody is judged right after a standstill
            for session in self.made:
                session.link_pong(Side.PHONE)  # any event has the session look at its deadline
            await turns()

    def backend_refuses(self, number: int = 0) -> None:
        """The backend of this session refuses the call."""
        self.made[number].link_message(Side.BACKEND, REFUSED)

    def goes(self, number: int) -> None:
        """A stream's socket is closed."""
        self.links[number].on_ws_disconnected(self.transports[number])  # type: ignore[arg-type]


@pytest.fixture
async def floor(request: pytest.FixtureRequest) -> AsyncIterator[Floor]:
    """A registry; a test may give limits of its own as the parameter."""
    floor = Floor(**{"callback_wait_s": 0.01, **getattr(request, "param", {})})
    yield floor
    for session in floor.made:
        session.shut_down()
    for number, link in enumerate(floor.links):
        if not link.over.is_set():
            floor.goes(number)
    await turns()


@pytest.fixture
async def one_live(floor: Floor) -> Floor:
    await floor.expect(ticket())
    await floor.stream(ticket())
    return floor


# --- Expected, live, ended ---------------------------------------------------------------------------


async def test_call_is_expected_then_live_then_ended(floor: Floor) -> None:
    registry, sid = floor.registry, ticket().call_sid
    seen = [(registry.is_expected(sid), registry.is_live(sid), registry.ending(sid), registry.counts)]
    await floor.expect(ticket())
    seen.append((registry.is_expected(sid), registry.is_live(sid), registry.ending(sid), registry.counts))
    await floor.stream(ticket())
    seen.append((registry.is_expected(sid), registry.is_live(sid), registry.ending(sid), registry.counts))
    floor.caller_hangs_up(0)
    seen.append((registry.is_expected(sid), registry.is_live(sid), registry.ending(sid), registry.counts))
    assert seen == [
        (False, False, None, {"expected": 0, "live": 0}),
        (True, False, None, {"expected": 1, "live": 0}),
        (False, True, None, {"expected": 0, "live": 1}),
        (False, False, EndReason.CALLER_HUNG_UP, {"expected": 0, "live": 0}),
    ]


async def test_expected_session_is_the_one_that_answers_the_stream(one_live: Floor) -> None:
    assert one_live.asked == [(ticket().call_sid, PLAN, "+4930111", "+4930222")]


async def test_second_stream_of_a_live_call_is_refused(one_live: Floor) -> None:
    assert one_live.registry.answer(ticket(nonce="n2"), "us1", ROUTE) is None
    assert len(one_live.made) == 1


async def test_stream_that_resumes_a_call_replaces_a_half_open_one(one_live: Floor) -> None:
    registry, sid = one_live.registry, ticket().call_sid
    later = replace(ticket(nonce="n2"), resumes=True, epoch=1)
    await one_live.stream(later)
    assert registry.live_epoch(sid) == 1
    assert ("close", 1000) in one_live.transports[0].done
    assert registry.ending(sid) is None
    assert registry.answer(replace(later, nonce="n3"), "us1", ROUTE) is None


async def test_ending_of_an_older_leg_is_not_that_of_a_later_one(one_live: Floor) -> None:
    one_live.caller_hangs_up(0)
    endings = [one_live.registry.ending(ticket().call_sid, epoch) for epoch in (0, 1)]
    assert endings == [EndReason.CALLER_HUNG_UP, None]


async def test_stream_that_twilio_reports_as_lost_ends_its_leg(one_live: Floor) -> None:
    one_live.registry.lose_stream(ticket().call_sid)
    assert one_live.registry.ending(ticket().call_sid) is EndReason.PHONE_LOST
    assert not one_live.registry.is_live(ticket().call_sid)


async def test_second_webhook_of_a_call_ends_the_session_of_the_first(floor: Floor) -> None:
    await floor.expect(ticket())
    await floor.expect(ticket(nonce="n2"))
    assert floor.registry.counts == {"expected": 1, "live": 0}
    async with asyncio.timeout(10):
        await floor.made[0].closed()
    await floor.stream(ticket(nonce="n2"))
    assert floor.registry.counts == {"expected": 0, "live": 1}


async def test_stream_of_another_machines_webhook_knows_its_caller(
    floor: Floor,
) -> None:
    await floor.stream(ticket())
    assert floor.asked == [(ticket().call_sid, BUILTIN, "+4930111", "+4930222")]
    assert floor.registry.is_live(ticket().call_sid)


async def test_stream_after_its_backend_failed_has_a_new_session(floor: Floor) -> None:
    await floor.expect(ticket())
    await floor.dialling_fails(BackendFailure(EndReason.BACKEND_UNREACHABLE, text="refused"))
    assert floor.registry.counts == {"expected": 0, "live": 0}
    assert floor.registry.backend_failed(ticket())
    await floor.stream(ticket())
    assert floor.asked[1] == (ticket().call_sid, PLAN, "+4930111", "+4930222")


async def test_backend_that_fails_before_the_stream_is_replaced_by_the_next(
    floor: Floor,
) -> None:
    floor.backends = ["openai", "voicelive"]
    await floor.expect(ticket())
    floor.backend_refuses()
    assert floor.registry.is_expected(ticket().call_sid)
    assert not floor.registry.backend_failed(ticket())
    await floor.stream(ticket())
    [session] = floor.made
    assert session.call.facts.backend == "voicelive"


async def test_each_backend_is_tried_once_for_a_call(floor: Floor) -> None:
    floor.backends = ["openai", "voicelive", "third"]
    await floor.expect(ticket())
    [session] = floor.made
    for backend in floor.backends:
        assert session.call.facts.backend == backend
        floor.backend_refuses()
    assert floor.registry.backend_failed(ticket())
    assert floor.registry.ending(ticket().call_sid) is EndReason.BACKEND_REFUSED


async def test_call_that_ends_for_another_reason_tries_no_other_backend(floor: Floor) -> None:
    floor.backends = ["openai", "voicelive"]
    await floor.expect(ticket())
    await floor.dialling_fails(RuntimeError("a bug"))
    assert floor.registry.counts == {"expected": 0, "live": 0}


async def test_drain_tries_no_other_backend(floor: Floor) -> None:
    floor.backends = ["openai", "voicelive"]
    await floor.expect(ticket())
    async with asyncio.timeout(10):
        await floor.registry.drain(5.0)
    assert len(floor.made) == 1


async def test_stream_whose_tenant_moved_to_another_zone_is_refused(
    floor: Floor,
) -> None:
    await floor.expect(ticket())
    floor.plan_now = replace(BUILTIN, zone="eu")
    assert floor.registry.answer(ticket(), "us1", ROUTE) is None
    assert floor.registry.counts == {"expected": 0, "live": 0}
    ending = floor.registry.ending(ticket().call_sid)
    assert ending is not None
    assert ending.owes_apology


async def test_call_whose_stream_never_came_leaves_no_ending(floor: Floor) -> None:
    await floor.expect(ticket())
    session = floor.made[0]
    while (due_at := session.call.deadline()) is not None:
        floor.now = due_at
        session.link_pong(Side.BACKEND)  # any event has the session look at its timer
        await turns()
    assert floor.registry.counts == {"expected": 0, "live": 0}
    assert floor.registry.ending(ticket().call_sid) is None


async def test_later_leg_of_a_call_overwrites_how_the_earlier_ended(one_live: Floor) -> None:
    one_live.made[0].shut_down()
    await one_live.stream(ticket(nonce="n2"))
    one_live.caller_hangs_up(1)
    assert one_live.registry.ending(ticket().call_sid) is EndReason.CALLER_HUNG_UP


async def test_end_of_an_old_session_does_not_touch_the_new_one_of_its_call(one_live: Floor) -> None:
    """The first leg's core has ended, its sockets close later."""
    one_live.made[0].shut_down()
    await one_live.stream(ticket(nonce="n2"))
    one_live.goes(0)
    await turns()
    assert one_live.registry.is_live(ticket().call_sid)


async def test_end_of_a_live_leg_leaves_the_expected_one_of_its_call_waiting(one_live: Floor) -> None:
    await one_live.expect(ticket(nonce="n2"))
    one_live.made[0].shut_down()
    assert one_live.registry.is_expected(ticket().call_sid)
    assert not one_live.registry.is_live(ticket().call_sid)


@pytest.mark.parametrize("floor", [{"endings_kept": 2}], indirect=True)
async def test_endings_are_kept_for_the_newest_calls(floor: Floor) -> None:
    for number in (1, 2, 3):
        await floor.stream(ticket(number, f"n{number}"))
        floor.caller_hangs_up(-1)
    endings = [floor.registry.ending(ticket(number).call_sid) for number in (1, 2, 3)]
    assert endings == [None, EndReason.CALLER_HUNG_UP, EndReason.CALLER_HUNG_UP]


# --- Room --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [{"calls_max": 2}], indirect=True)
async def test_room_ends_with_the_last_place_and_comes_back(floor: Floor) -> None:
    await floor.expect(ticket(1, "n1"))
    assert not floor.registry.full()
    await floor.stream(ticket(2, "n2"))
    assert floor.registry.full()
    assert not floor.registry.full_of_streams()
    await floor.stream(ticket(1, "n1"))
    assert floor.registry.full_of_streams()
    floor.caller_hangs_up(0)
    assert not floor.registry.full()
    assert not floor.registry.full_of_streams()


@pytest.mark.parametrize("floor", [{"setups_max": 2}], indirect=True)
async def test_calls_that_are_set_up_are_limited_until_they_talk(floor: Floor) -> None:
    await floor.expect(ticket(1, "n1"))
    assert not floor.registry.crowded()
    await floor.expect(ticket(2, "n2"))
    assert floor.registry.crowded()
    await floor.stream(ticket(1, "n1"))
    assert floor.registry.crowded()  # its stream is there, its backend is not
    floor.talks(0)
    assert not floor.registry.crowded()
    await floor.expect(ticket(3, "n3"))
    assert floor.registry.crowded()
    floor.caller_hangs_up(0)
    assert floor.registry.crowded()  # the call that ended did not count


@pytest.mark.parametrize("floor", [{"setups_max": 1}], indirect=True)
async def test_call_that_ends_while_it_is_set_up_gives_its_place_back(floor: Floor) -> None:
    await floor.stream(ticket())
    assert floor.registry.crowded()
    floor.caller_hangs_up(0)
    assert not floor.registry.crowded()


async def test_tenants_limits_count_this_machine_or_all_machines(one_live: Floor) -> None:
    registry = one_live.registry
    await one_live.expect(ticket(2, "n2"))
    assert registry.calls_of_tenants("global") == {"acme": 2}
    assert registry.calls_of_tenants("eu") == {}
    assert registry.tenant_shortage(replace(PLAN, max_calls=2)) is Reason.TENANT_FULL
    assert registry.tenant_shortage(replace(PLAN, max_calls=3, max_calls_everywhere=3)) is None
    one_live.calls_elsewhere = 1
    assert registry.tenant_shortage(replace(PLAN, max_calls=3)) is None
    assert registry.tenant_shortage(replace(PLAN, max_calls_everywhere=3)) is Reason.TENANT_FULL_EVERYWHERE
    # When both limits are reached no other machine need be asked.
    both = replace(PLAN, max_calls=2, max_calls_everywhere=3)
    assert registry.tenant_shortage(both) is Reason.TENANT_FULL_EVERYWHERE
    assert registry.tenant_shortage(replace(both, tenant="other")) is None


# --- Draining ----------------------------------------------------------------------------------------


async def test_drain_takes_no_new_call(floor: Floor) -> None:
    async with asyncio.timeout(10):
        await floor.registry.drain(5.0)
    assert floor.registry.draining


@PATIENT
async def test_drain_ends_expected_and_live_calls_and_waits_for_their_sockets(one_live: Floor) -> None:
    await one_live.expect(ticket(2, "n2"))
    draining = asyncio.create_task(one_live.registry.drain(1_000.0))
    await turns()
    for number in (1, 2):
        one_live.registry.ending(ticket(number).call_sid)
    await turns()
    assert one_live.registry.counts == {"expected": 0, "live": 0}
    assert one_live.transports[0].done == [("ping",), ("close", 1000)]
    assert not draining.done()
    one_live.goes(0)
    async with asyncio.timeout(10):
        await draining


@PATIENT
async def test_drain_waits_until_twilio_has_asked_about_the_call(one_live: Floor) -> None:
    draining = asyncio.create_task(one_live.registry.drain(5.0))
    await turns()
    one_live.goes(0)
    await turns(20)
    assert not draining.done()
    assert one_live.registry.ending(ticket().call_sid) is EndReason.SHUTDOWN
    async with asyncio.timeout(10):
        await draining


@PATIENT
async def test_drain_does_not_wait_when_twilio_asked_before_the_socket_closed(one_live: Floor) -> None:
    draining = asyncio.create_task(one_live.registry.drain(5.0))
    await turns()
    one_live.registry.ending(ticket().call_sid)
    one_live.goes(0)
    async with asyncio.timeout(10):
        await draining


async def test_drain_waits_for_an_open_socket_only_until_its_limit(one_live: Floor) -> None:
    async with asyncio.timeout(10):
        await one_live.registry.drain(0.01)
    assert not one_live.links[0].over.is_set()


@PATIENT
async def test_drain_without_calls_returns_at_once(floor: Floor) -> None:
    async with asyncio.timeout(10):
        await floor.registry.drain(1_000.0)


@PATIENT
async def test_drain_waits_until_twilio_has_asked_about_announced_calls(floor: Floor) -> None:
    await floor.expect(ticket(1, "n1"))
    await floor.expect(ticket(2, "n2"))
    draining = asyncio.create_task(floor.registry.drain(5.0))
    await turns(20)
    assert floor.registry.ending(ticket(1).call_sid) is EndReason.SHUTDOWN
    await turns(20)
    assert not draining.done()
    assert floor.registry.ending(ticket(2).call_sid) is EndReason.SHUTDOWN
    async with asyncio.timeout(10):
        await draining


async def test_drain_waits_only_a_while_for_a_stream_that_went_elsewhere(floor: Floor) -> None:
    await floor.expect(ticket())
    async with asyncio.timeout(10):
        await floor.registry.drain(1_000.0)


# --- Draining: calls that move -----------------------------------------------------------------------

MOVABLE = pytest.mark.parametrize("floor", [{"may_move": lambda zone: zone == "global"}], indirect=True)
"""Another machine may go on with the calls of a registry."""


def progress_of(floor: Floor) -> dict[str, Any]:
    """How far the drain has come; nothing before it."""
    return dict(floor.registry.drain_progress or {})


async def begun_to_drain(floor: Floor, *numbers: int) -> "asyncio.Task[dict[str, int]]":
    """A drain of these calls, which have just begun and are asked to move; no quiet moment has come."""
    for number in numbers:
        await floor.expect(ticket(number, f"n{number}"))
        await floor.stream(ticket(number, f"n{number}"))
        floor.made[-1].link_message(Side.PHONE, start(number))
    draining = asyncio.create_task(floor.registry.drain(1_000.0))
    while not all(session.asked_to_move for session in floor.made):
        await a_moment()
    return draining


@MOVABLE
async def test_drain_moves_every_call_and_is_over_when_twilio_has_taken_them(floor: Floor) -> None:
    draining = await begun_to_drain(floor, 1, 2)
    await floor.latest_moment()
    assert sorted(floor.handed_over) == [ticket(1).call_sid, ticket(2).call_sid]
    assert not draining.done()
    for number in (0, 1):
        floor.caller_hangs_up(number)  # the `stop` that follows a redirect is the same
        floor.goes(number)
    async with asyncio.timeout(10):
        await draining
    assert floor.registry.ending(ticket(1).call_sid) is EndReason.MOVED
    progress = progress_of(floor)
    assert (progress["moved"], progress["move_failed"], progress["cut_short"]) == (2, 0, 0)


@MOVABLE
async def test_drain_tells_how_far_it_is(floor: Floor) -> None:
    assert progress_of(floor) == {}
    draining = await begun_to_drain(floor, 1, 2)
    floor.caller_hangs_up(0)
    progress = progress_of(floor)
    assert 990 <= progress.pop("deadline_s") <= 1_000
    assert progress == {"calls_left": 1, "moved": 0, "move_failed": 0, "cut_short": 0}
    draining.cancel()


@MOVABLE
async def test_call_whose_redirect_fails_has_its_stream_closed(floor: Floor) -> None:
    floor.redirect = RedirectOutcome.FAILED
    draining = await begun_to_drain(floor, 1)
    await floor.latest_moment()
    assert ("close", 1000) in floor.transports[0].done
    floor.goes(0)
    async with asyncio.timeout(10):
        await draining
    assert floor.registry.ending(ticket().call_sid) is EndReason.MOVED
    progress = progress_of(floor)
    assert (progress["moved"], progress["move_failed"]) == (0, 1)


@MOVABLE
async def test_call_that_ends_by_itself_during_the_drain_is_not_counted(floor: Floor) -> None:
    draining = await begun_to_drain(floor, 1)
    floor.caller_hangs_up(0)
    floor.goes(0)
    async with asyncio.timeout(10):
        await draining
    progress = progress_of(floor)
    assert (progress["calls_left"], progress["moved"], progress["cut_short"]) == (0, 0, 0)


async def test_call_that_nobody_else_may_take_goes_on_and_drain_waits(one_live: Floor) -> None:
    draining = asyncio.create_task(one_live.registry.drain(1_000.0))
    await turns(20)
    assert one_live.registry.counts["live"] == 1
    assert one_live.registry.draining
    assert one_live.handed_over == []
    one_live.caller_hangs_up(0)
    one_live.goes(0)
    async with asyncio.timeout(10):
        await draining
    assert one_live.registry.ending(ticket().call_sid) is EndReason.CALLER_HUNG_UP


async def test_call_that_nobody_else_may_take_is_cut_short_at_the_deadline(one_live: Floor) -> None:
    async with asyncio.timeout(10):
        await one_live.registry.drain(0.05)
    assert one_live.registry.ending(ticket().call_sid) is EndReason.SHUTDOWN
    progress = progress_of(one_live)
    assert progress["cut_short"] == 1


@pytest.mark.parametrize("floor", [{"may_move": lambda _zone: True, "callback_wait_s": 1_000.0}], indirect=True)
async def test_call_that_has_not_moved_by_the_deadline_is_cut_short(one_live: Floor) -> None:
    draining = asyncio.create_task(one_live.registry.drain(1.0))
    await turns(20)
    assert one_live.registry.ending(ticket().call_sid) is EndReason.SHUTDOWN
    one_live.goes(0)
    async with asyncio.timeout(10):
        await draining


# --- Calls that were not taken ------------------------------------------------------------------------


async def test_refused_stream_is_recorded_with_its_caller_and_the_reason(floor: Floor) -> None:
    floor.registry.record_refused_stream(ticket(), "full")
    began, _, ending = floor.recorded
    assert isinstance(began, CallStarted)
    assert isinstance(ending, CallEnded)
    assert (began.caller, began.called, began.stream_sid, ending.reason) == (
        "+4930111",
        "+4930222",
        "",
        "not_taken",
    )


async def test_refused_second_stream_of_a_live_call_is_not_recorded(one_live: Floor) -> None:
    one_live.registry.record_refused_stream(ticket(nonce="n2"), "no_call")
    assert one_live.recorded == []


async def test_refused_call_of_a_zone_whose_ledger_is_elsewhere_is_not_recorded(floor: Floor) -> None:
    floor.registry.record_refused_stream(replace(ticket(), zone="eu"), "zone")
    assert floor.recorded == []


async def test_flood_of_refused_calls_is_recorded_up_to_a_limit_and_counted(floor: Floor) -> None:
    for number in range(PER_MINUTE + 5):
        floor.registry.record_refused_stream(ticket(number), "full")
    assert len(floor.recorded) == 3 * PER_MINUTE
    assert floor.registry.counts["unrecorded"] == 5
