"""Runs one Call: feeds it messages, carries out its commands and keeps its timer. The core makes the decisions.

A session has these duties, each with its test: every message is fed once and in order; the core is never entered
twice; commands run in order; the timer is armed again after every event and never ticks early; losing either side
is an event; both sockets are closed on every way out; and an exception ends this call and no other.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Protocol, TypeVar, assert_never

from app.bridge.epoch_watch import ONLY_LEG, EpochWatch, Place
from app.bridge.link import Link
from app.call import events as ev
from app.call.call import Call
from app.call.ending import EndReason
from app.call.events import Command, Event, Side
from app.call.evidence import Route
from app.call.failure import BackendFailure
from app.call.journal import RESPONSE_FAILED, TOOL_LOOP, Facts
from app.call.plan import Plan
from app.call.records import CallEvent, CallStarted, Record
from app.wire import twilio
from app.wire.audio import silence
from app.wire.dialect import Dialect
from app.wire.errors import WireError
from app.wire.realtime import MAX_MESSAGE_BYTES

TRAIL_EVENTS = 64
"""The last events of a call, kept for the log of a bug: names and sizes, never words or audio."""


_PHONE = Side.PHONE
"""A member of an Enum is found in Python at every look, so this one is looked up once."""

BAD_MESSAGES_LOGGED = 3

TIMER_GRAIN_S = 0.001
"""uvloop counts whole milliseconds and rounds to the nearest: without this a timer came up to half a millisecond
early, and was armed for nothing 47 times until it was due."""

STREAM_GONE = 1006
"""The close code of a connection that was lost without a close (RFC 6455, 7.4.1)."""

DURABLE_S = 1.0
"""How long the leg's first record may take to reach a disk before that is logged. The call does not wait."""

Dial = Callable[[Dialect, str, Link], Awaitable[BackendFailure | None]]
"""Connects a link to the backend of a dialect, for a model. Returns None, or why that did not work."""


_T = TypeVar("_T")


class CallLog(Protocol):
    """A call's log lines: each carries its ids (app/logs.py)."""

    @property
    def stream_sid(self) -> str | None:
        """The stream's id; known from Twilio's `start` on."""

    @stream_sid.setter
    def stream_sid(self, stream_sid: str) -> None: ...

    def info(self, event: str, /, **fields: object) -> None:
        """Log something worth knowing."""

    def warning(self, event: str, /, **fields: object) -> None:
        """Log a peer's fault, or a limit that was reached."""

    def exception(self, event: str, /, **fields: object) -> None:
        """Log a fault of ours with its traceback."""


class HangUp(Protocol):
    """Ends a phone call by REST."""

    async def __call__(self, call_sid: str, twilio_region: str) -> str | None:
        """Return None when Twilio has ended the call, or will; else why closing the stream must do it."""


class HandCallOver(Protocol):
    """Hands a live call to another machine."""

    async def __call__(
        self, call_sid: str, twilio_region: str, resume_url: str
    ) -> tuple[bool, ev.RedirectAnswered]:
        """Return whether the call's records are where they are kept, and what came of the redirect by REST."""


@dataclass(frozen=True, slots=True)
class Service:
    """A backend that is to have a call."""

    plan: Plan
    """The tenant's, as this backend can carry it out."""
    facts: Facts
    dialect: Dialect
    """This call's own."""
    report_outcome: Callable[[BackendFailure | None], None]
    """Takes what the backend failed by, or None when it served the call well."""
    report_ready: Callable[[float], None]
    """Takes how many ms passed from the beginning of the dialling to the configured session."""
    report_first_audio: Callable[[float], None]
    """Takes how many ms passed from the request for the greeting to its first audio."""


class FindService(Protocol):
    """Finds a backend for a call."""

    def __call__(self, tried: Collection[str], *, working: bool) -> Service | None:
        """Return the best backend but for those of these names; None when there is no other one.

        `working`: only one that works, as far as is known.
        """


class _Spare:
    """A second backend session beside the one that the call talks with: it is configured, and then waits.

    Owns its link until the call goes over to it. What the backend says before is heard here alone.
    """

    def __init__(self, service: Service, report: Callable[[Event], None]) -> None:
        """`report` takes SpareReady, and SpareLost."""
        self.service = service
        self.link = Link(Side.BACKEND, self, MAX_MESSAGE_BYTES)
        self.dialling: asyncio.Task[None] | None = None
        self._report = report
        self._ends_unix_ms: int | None = None

    def close(self) -> None:
        """The spare is not needed any more."""
        if self.dialling is not None:
            self.dialling.cancel()
        self.link.leave()

    def lose(self, why: str) -> None:
        """The spare does not work: the call goes on without it."""
        self.close()
        self._report(ev.SpareLost(why))

    def link_up(self, side: Side) -> None:
        """See Owner. Its first message says more."""

    def link_message(self, side: Side, message: memoryview | bytes) -> None:  # noqa: ARG002
        """See Owner."""
        try:
            events = self.service.dialect.parse(message)
        except WireError as error:
            self.lose(str(error))
            return
        for event in events:
            match event:
                case ev.BackendOpened():
                    self._ends_unix_ms = event.ends_unix_ms
                    self.link.send(self.service.dialect.render(ev.Configure(self.service.plan)))
                case ev.BackendConfigured(formats_match=True):
                    service = self.service
                    found = ev.BackendFound(service.plan, service.facts, service.dialect.abilities)
                    self._report(ev.SpareReady(found, self._ends_unix_ms))
                case ev.BackendConfigured() | ev.BackendFault(kind=ev.ErrorKind.FATAL):
                    self.lose(type(event).__name__)
                case _:
                    pass

    def link_bad_message(self, side: Side, why: str) -> None:  # noqa: ARG002
        """See Owner."""
        self.lose(why)

    def link_pong(self, side: Side) -> None:
        """See Owner. It is not pinged."""

    def link_slow(self, side: Side) -> None:  # noqa: ARG002
        """See Owner."""
        self.lose("does not read")

    def link_lost(self, side: Side, code: int, why: str) -> None:  # noqa: ARG002
        """See Owner."""
        self.lose(why or str(code))


class Session:
    """A Call, its two links and its timer."""

    def __init__(
        self,
        call: Call,
        service: Service,
        *,
        find: FindService,
        dial: Dial,
        remember: Callable[[Record], None],
        hang_up: HangUp,
        hand_over: HandCallOver,
        log: CallLog,
        on_end: "OnEnd",
        resume_url: str = "",
        place: Place = ONLY_LEG,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the session of a call, which begins with `begin`.

        `service` is what the call was made for, `find` knows what may take its place, `dial` connects to either.
        `remember` hands a record to the ledger and never waits. `on_end` is called once, when the core is done;
        the sockets may take CLOSE_WAIT_S longer to close. `resume_url`: where Twilio finds the document with which
        another machine goes on with the call; empty: the call can only be moved by closing its stream.
        """
        self.call = call
        self.twilio_region = "us1"
        self.redirected = False
        """True once Twilio has taken a redirect: it does not ask `/twiml/after` about this stream."""
        self.place = place
        self._watch: EpochWatch | None = None
        """From the stream's start on."""
        self._arrival: Route | None = None
        self._service = service
        self._found: Service | None = None
        """The backend that was found last, and is not dialled yet."""
        self._find = find
        self._dial = dial
        self._remember = remember
        self._hang_up = hang_up
        self._hand_over = hand_over
        self._resume_url = resume_url
        self._log = log
        self._on_end = on_end
        self._clock = clock
        self._phone: Link | None = None
        self._backend = Link(Side.BACKEND, self, MAX_MESSAGE_BYTES)
        self._left: list[Link] = []
        """Links to backends that have failed this call. What still comes from them is dropped."""
        self._spare: _Spare | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._sender: twilio.Sender | None = None
        self._inbox: deque[Event] = deque()
        self._busy = False
        self._over = False
        self._bad_messages = 0
        self._frames = 0
        """Caller frames that passed straight through since the last event."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._trail: deque[tuple[float, str, int]] = deque(maxlen=TRAIL_EVENTS)

    # --- From outside ------------------------------------------------------------------------

    def begin(self) -> None:
        """Start to dial the backend and to wait for the phone. Returns at once."""
        self._begin_dialling()
        self._feed(ev.Tick())

    def phone_link(self, twilio_region: str, trail: Route) -> Link:
        """The listener for the phone's socket, which is about to be accepted. `trail`: how it came here."""
        self.twilio_region = twilio_region
        self._arrival = trail
        self._phone = Link(Side.PHONE, self, twilio.MAX_MESSAGE_BYTES)
        return self._phone

    def shut_down(self) -> None:
        """End the call: this process stops."""
        self._feed(ev.ShutdownRequested())

    def move(self, within_s: float) -> None:
        """Have another machine go on with the call: at a quiet moment, and within so many seconds."""
        self._feed(ev.MoveRequested(self._clock() + within_s))

    def lose_stream(self) -> None:
        """End the call's leg: Twilio says that its stream is over, and the socket has not told us yet."""
        self._feed(ev.PeerLost(Side.PHONE, STREAM_GONE))

    def supersede(self) -> None:
        """End the call's leg without a word: a later one carries the call."""
        self._feed(ev.Superseded())

    def recall(self, found: ev.HistoryFound) -> None:
        """Tell the call what was said in its earlier legs."""
        self._feed(found)

    @property
    def at_rest(self) -> bool:
        """True when nothing of this call is left to run: neither its timer nor a task."""
        return self._timer is None and not self._tasks

    @property
    def wakes_at(self) -> float | None:
        """When the timer will look at the call's deadline, by the session's clock; None without a timer."""
        return None if self._timer is None else self._timer_at

    async def closed(self) -> None:
        """Wait until both sockets are closed and no task of this call is left. For calls that have ended."""
        for link in (self._phone, self._backend, *self._left):
            if link is not None:
                await link.over.wait()
        while self._tasks:
            await asyncio.wait(self._tasks)

    # --- From the links ----------------------------------------------------------------------

    def link_up(self, side: Side) -> None:
        """A socket is open. The backend's own first message says more than its open socket."""
        if side is Side.PHONE:
            self._feed(ev.PhoneConnected(self._arrival))

    def link_message(self, side: Side, message: memoryview | bytes) -> None:
        """One text message of either side."""
        if not self._over:
            self._guard(self._phone_message if side is _PHONE else self._backend_message, message)

    def _backend_message(self, message: memoryview | bytes) -> None:
        try:
            for event in self._service.dialect.parse(message):
                self._feed(event)
        except WireError as error:
            self.link_bad_message(Side.BACKEND, str(error))

    def _phone_message(self, message: memoryview | bytes) -> None:
        try:
            parsed = twilio.parse(message)
        except WireError as error:
            self.link_bad_message(Side.PHONE, str(error))
            return
        if isinstance(parsed, ev.CallerAudio):
            if self.call.passes(parsed, self._clock()):
                self._backend.send(self._service.dialect.append(parsed.payload))
                self._frames += 1
            else:
                self._feed(parsed)
            return
        if isinstance(parsed, ev.PhoneStarted) and self._sender is None:
            self._sender = twilio.Sender(parsed.stream_sid)
            self._log.stream_sid = parsed.stream_sid
            self._watch_epoch(parsed)
        if parsed is not None:
            self._feed(parsed)

    def link_bad_message(self, side: Side, why: str) -> None:
        """A message that makes no sense. The core counts them; the first few of each call are logged."""
        if self._over:
            return
        self._bad_messages += 1
        if self._bad_messages <= BAD_MESSAGES_LOGGED:
            self._log.warning("bad_message_received", side=side.value, why=why)
        self._feed(ev.BadMessage(side, why))

    def link_pong(self, side: Side) -> None:
        """A ping was answered."""
        self._feed(ev.Pong(side))

    def link_slow(self, side: Side) -> None:
        """A peer does not read."""
        self._feed(ev.PeerSlow(side))

    def link_lost(self, side: Side, code: int, why: str) -> None:
        """A socket is closed."""
        self._feed(ev.PeerLost(side, code, f"message {why}" if why else ""))

    # --- The core ----------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        """Give an event to the core. What comes while the core is at work waits its turn."""
        if self._over:
            return
        self._inbox.append(event)
        if not self._busy:
            self._guard(self._drain, self._inbox)

    def _drain(self, inbox: deque[Event]) -> None:
        self._busy = True
        try:
            while inbox:
                self._step(inbox.popleft())
            self._arm()
        finally:
            self._busy = False

    def _step(self, event: Event) -> None:
        now = self._clock()
        self._note_frames(now)
        self._trail.append((now, type(event).__name__, getattr(event, "audio_bytes", 0)))
        for command in self.call.handle(event, now):
            self._run(command)

    def _note_frames(self, now: float) -> None:
        """Frames that passed straight through are one line in the trail, with their number."""
        if self._frames:
            self._trail.append((now, "frames", self._frames))
            self._frames = 0

    def _guard(self, work: Callable[[_T], object], argument: _T) -> None:
        """Run a part of this call. An exception that comes out of it is a bug of ours, and ends this call alone.

        Everything of a call runs in here: what its sockets, its timer and its tasks set going.
        """
        try:
            work(argument)
        except Exception:  # noqa: BLE001  the top of a call: its neighbours must not notice a bug in it
            self._break_off()

    def _break_off(self) -> None:
        """End the call after a bug, politely if that still works.

        Closing the stream makes Twilio ask `/twiml/after`, which has a sentence for the caller.
        """
        self._note_frames(self._clock())
        self._log.exception("call_broke", trail=self._trail_text())
        self._busy = True
        try:
            self._step(ev.Broken())
        except Exception:  # noqa: BLE001  the last resort: close everything by hand
            self._log.exception("call_broke_while_ending")
        finally:
            self._busy = False
        if not self._over:
            for link in (self._phone, self._backend):
                if link is not None:
                    link.close()
            self._ended(EndReason.BUG, None)

    def _trail_text(self) -> str:
        since = self._trail[0][0] if self._trail else 0.0
        return ", ".join(f"{at - since:.3f} {name}{f' {size}' if size else ''}" for at, name, size in self._trail)

    def _arm(self) -> None:
        """One timer. A later deadline leaves the armed timer be: it looks again when it comes, and re-arms."""
        deadline = None if self._over else self.call.deadline()
        if deadline is None:
            self._disarm()
            return
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        delay = max(0.0, deadline - self._clock()) + TIMER_GRAIN_S
        self._timer = asyncio.get_running_loop().call_later(delay, self.wake)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wake(self) -> None:
        """The armed timer's time has come, or whoever moves the clock says so."""
        self._disarm()
        self._guard(self._tick_if_due, self._clock())

    def _tick_if_due(self, now: float) -> None:
        """The deadline may have moved away since the timer was armed: then it is armed again, without a Tick."""
        deadline = self.call.deadline()
        if deadline is not None and deadline <= now:
            self._feed(ev.Tick())
        else:
            self._arm()

    # --- Commands ----------------------------------------------------------------------------

    def _run(self, command: Command) -> None:
        match command:
            case ev.PassOn():
                self._backend.send(self._service.dialect.append(command.payload))
            case ev.SendAudio() | ev.SendMark() | ev.SendClear():
                self._to_phone(command)
            case ev.PassSilence():
                self._backend.send(self._service.dialect.append(silence(command.ms)))
            case (
                ev.Configure()
                | ev.CreateResponse()
                | ev.CancelResponse()
                | ev.Truncate()
                | ev.AddTurn()
                | ev.DeleteItem()
                | ev.AddToolCall()
                | ev.AddToolOutput()
            ):
                self._backend.send(self._service.dialect.render(command))
            case ev.RunTool():
                self._inbox.append(ev.ToolFinished(command.tool_call_id, '{"error":"not available"}'))
            case ev.Ping():
                link = self._phone if command.side is Side.PHONE else self._backend
                if link is not None:
                    link.ping()
            case ev.Remember():
                self._record(command.record)
            case ev.HangUp():
                self._spawn(self._end_by_rest())
            case ev.Redirect():
                self._spawn(self._redirect())
            case ev.ClosePhone():
                if self._phone is not None:
                    self._phone.close()
            case ev.CloseBackend():
                self._backend.close()
                self._close_spare()
            case ev.OpenSpare():
                self._open_spare()
            case ev.SwitchToSpare():
                self._switch_to_spare()
            case ev.FindBackend():
                self._find_backend(command)
            case ev.SwitchBackend():
                self._switch_backend()
            case ev.ReportReady():
                self._service.report_ready(command.after_ms)
            case ev.ReportFirstAudio():
                self._service.report_first_audio(command.after_ms)
            case ev.ReportOutcome():
                self._service.report_outcome(command.failure)
            case ev.Ended():
                self._ended(command.reason, command.failure)
            case _:
                assert_never(command)

    def _record(self, record: Record) -> None:
        if isinstance(record, CallStarted) and record.stream_sid:
            self._log.info("call_started", backend=record.backend, model=record.model)
            self._remember(record)
            self._spawn(self._make_durable())
            return
        if isinstance(record, CallEvent):
            # An operator should see these in the log when they happen, not only in the call's records.
            if record.kind == RESPONSE_FAILED:
                self._log.warning("response_failed", **self._event_fields(record))
            elif record.kind == TOOL_LOOP:
                self._log.warning("tool_loop", **self._event_fields(record))
        self._remember(record)

    def _event_fields(self, event: CallEvent) -> dict[str, str]:
        return {"backend": self._service.facts.backend, "detail": event.detail}

    def _find_backend(self, wanted: ev.FindBackend) -> None:
        found = self._find(wanted.excluded, working=wanted.only_working)
        if found is None:
            self._inbox.append(ev.NoBackendLeft())
            return
        self._found = found
        self._log.warning("backend_replaced", **self._fields(wanted.failure), next=found.facts.backend)
        self._inbox.append(ev.BackendFound(found.plan, found.facts, found.dialect.abilities))

    def _open_spare(self) -> None:
        found = self._find((), working=True)
        if found is None:
            self._inbox.append(ev.SpareLost("no backend works"))
            return
        self._close_spare()
        spare = self._spare = _Spare(found, self._feed)
        spare.dialling = self._spawn(self._reach_spare(spare))

    async def _reach_spare(self, spare: _Spare) -> None:
        failure = await self._dial(spare.service.dialect, spare.service.plan.model, spare.link)
        if failure is not None:
            spare.lose(failure.text)

    def _switch_to_spare(self) -> None:
        spare, self._spare = self._spare, None
        assert spare is not None, "the core goes over to a session that is ready"
        self._backend.leave()
        self._left.append(self._backend)
        self._backend, self._service, self._dialling = spare.link, spare.service, spare.dialling
        self._backend.hand_to(self)

    def _close_spare(self) -> None:
        if self._spare is not None:
            self._left.append(self._spare.link)
            self._spare.close()
            self._spare = None

    def _switch_backend(self) -> None:
        assert self._found is not None, "the core goes over to a backend that was found"
        if self._dialling is not None:
            self._dialling.cancel()
        self._backend.leave()
        self._left.append(self._backend)
        self._backend = Link(Side.BACKEND, self, MAX_MESSAGE_BYTES)
        self._service, self._found = self._found, None
        self._begin_dialling()

    def _to_phone(self, command: ev.SendAudio | ev.SendMark | ev.SendClear) -> None:
        if self._phone is None or self._sender is None:
            return
        match command:
            case ev.SendAudio():
                self._phone.send(self._sender.media(command.payload))
            case ev.SendMark():
                self._phone.send(self._sender.mark(command.name))
            case ev.SendClear():
                self._phone.send(self._sender.clear())

    def _ended(self, reason: EndReason, failure: BackendFailure | None) -> None:
        self._over = True
        self._disarm()
        self._close_spare()
        for task in self._tasks:
            task.cancel()
        if failure is not None:
            # Without a stream there was no call: when it comes a new session is made, which may fare better.
            fields = self._fields(failure)
            if self._phone is None:
                self._log.warning("backend_failed_before_stream", **fields)
            else:
                self._log.warning("call_ended", **fields)
        elif reason.owes_apology:
            self._log.warning("call_ended", reason=reason.value)
        else:
            self._log.info("call_ended", reason=reason.value)
        self._on_end(self, reason)

    def _fields(self, failure: BackendFailure) -> dict[str, str | None]:
        """A failure of the present backend, for the log."""
        return {
            "reason": failure.reason.value,
            "backend": self._service.facts.backend,
            "error": failure.text or None,
        }

    # --- Tasks -------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_over)
        return task

    def _task_over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Raises what the task raised, where it ends this call.
            self._guard(asyncio.Task.result, task)

    def _begin_dialling(self) -> None:
        self._dialling = self._spawn(self._reach(self._service, self._backend))

    async def _reach(self, service: Service, link: Link) -> None:
        failure = await self._dial(service.dialect, service.plan.model, link)
        if failure is not None:
            self._log.warning("backend_unreachable", backend=service.facts.backend, error=failure.text)
            self._feed(ev.BackendUnreachable(failure))

    # --- The epoch ---------------------------------------------------------------------------

    def _watch_epoch(self, started: ev.PhoneStarted) -> None:
        """Claim the leg's epoch, beside the audio."""
        facts = self.call.facts
        if started.call_sid == facts.call_sid:
            self._watch = self.place.watch(facts.call_sid, facts.leg, self._log)
        if self._watch is not None:
            self._spawn(self._until_superseded(self._watch))

    async def _until_superseded(self, watch: EpochWatch) -> None:
        await watch.lost(lambda: self.call.phone_heard_at, self._clock)
        self.supersede()

    async def _make_durable(self) -> None:
        """Have the leg's first record on a disk, so that another machine can resume the call."""
        if not await self.place.flushed(DURABLE_S):
            self._log.warning("leg_not_durable", waited_s=DURABLE_S)

    async def _end_by_rest(self) -> None:
        if self._watch is not None and await self._watch.superseded():
            # The stream was lost without our noticing it: a hang-up would end the call that goes on elsewhere.
            self.supersede()
            return
        why = await self._hang_up(self.call.facts.call_sid, self.twilio_region)
        if why is not None:
            self._log.info("hang_up_by_rest_failed", error=why)
            self._feed(ev.HangUpFailed())

    async def _redirect(self) -> None:
        if self._watch is not None and await self._watch.superseded():
            # A redirect would tear the call away from the machine that carries it by now.
            self.supersede()
            return
        stored, answer = await self._hand_over(self.call.facts.call_sid, self.twilio_region, self._resume_url)
        self.redirected = answer.outcome is ev.RedirectOutcome.ACCEPTED
        match answer.outcome:
            case ev.RedirectOutcome.ACCEPTED:
                self._log.info("call_moved", records_stored=stored)
            case ev.RedirectOutcome.FAILED:
                self._log.warning("move_failed", error=answer.why, effect="stream_closed", records_stored=stored)
            case ev.RedirectOutcome.CALL_OVER:
                pass
        self._feed(answer)


OnEnd = Callable[[Session, EndReason], None]
"""Called once, when a session's call has ended, with the reason."""
