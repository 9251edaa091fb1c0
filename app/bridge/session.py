"""Runs one Call: messages in, commands out, one timer. Policy lives in the core; this file only does.

The duties of a shell, each with its test: every message is fed once and in order; one call at a time is in the
core; commands run in order; the timer is re-armed after every event and never ticks early; losing either side
is an event; both sockets are closed on every way out; and an exception ends this call and no other.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Protocol, assert_never

from app.backends.dial import DialError, address_of, dial
from app.bridge.link import Link
from app.call import events as ev
from app.call.call import Call
from app.call.ending import EndReason
from app.call.events import Command, Event, Side
from app.call.evidence import Route
from app.call.journal import RESPONSE_FAILED, TOOL_LOOP, Facts
from app.call.limits import BACKEND_LATE_S
from app.call.phases import BackendPhase
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
"""Looked up once: see link.py."""

BAD_MESSAGES_LOGGED = 3

WARNED_OF = frozenset({RESPONSE_FAILED, TOOL_LOOP})
"""Events of a call that an operator should see in the log when they happen, not only in its records."""

TIMER_GRAIN_S = 0.001
"""uvloop counts whole milliseconds and rounds to the nearest: without this a timer came up to half a millisecond
early, and was armed for nothing 47 times until it was due."""


BACKEND_FAULTS = frozenset(
    {
        EndReason.BACKEND_UNREACHABLE,
        EndReason.BACKEND_NOT_READY,
        EndReason.BACKEND_FORMAT,
        EndReason.BACKEND_REFUSED,
        EndReason.BACKEND_LOST,
        EndReason.BACKEND_SILENT,
        EndReason.BACKEND_SLOW,
        EndReason.BACKEND_MISBEHAVED,
        EndReason.BACKEND_FAILING,
    }
)


class Verdict(Protocol):
    """Told how a call's backend did."""

    def __call__(self, why: str | None, *, status: int | None = None, code: str = "") -> None:
        """`why` it failed, None when it did not. `status` of HTTP, or `code` of an error, when there was one."""


class CallLog(Protocol):
    """A call's log lines: each carries its ids (app/logs.py)."""

    @property
    def stream_sid(self) -> str | None:
        """Known from Twilio's `start` on."""

    @stream_sid.setter
    def stream_sid(self, stream_sid: str) -> None: ...

    def info(self, event: str, /, **fields: object) -> None:
        """Worth knowing."""

    def warning(self, event: str, /, **fields: object) -> None:
        """A peer's fault, or a limit."""

    def exception(self, event: str, /, **fields: object) -> None:
        """Our fault, with its traceback."""


class HangUp(Protocol):
    """Ends a phone call by REST."""

    async def __call__(self, call_sid: str, twilio_region: str) -> str | None:
        """None when Twilio has ended the call, or will; else why closing the stream must do it."""


@dataclass(frozen=True, slots=True)
class Service:
    """A backend that is to have a call."""

    plan: Plan
    """The tenant's, as this backend can carry it out."""
    facts: Facts
    dialect: Dialect
    """This call's own."""
    was: Verdict
    ready_after: Callable[[float], None] = lambda _ms: None
    """Told how many ms it took from the beginning of the dialling to the configured session."""


class FindService(Protocol):
    """Knows the backends that a call may have."""

    def __call__(self, tried: Collection[str], *, working: bool) -> Service | None:
        """The best one but for those of these names; None when there is no other one.

        `working`: only one that works, as far as is known.
        """


class Session:
    """A Call, its two links and its timer."""

    def __init__(
        self,
        call: Call,
        service: Service,
        *,
        find: FindService,
        remember: Callable[[Record], None],
        hang_up: HangUp,
        log: CallLog,
        on_end: "OnEnd",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`service` is what the call was made for, `find` knows what may take its place.

        `remember` hands a record to the ledger and never waits. `on_end` is told once, when the core is done; the
        sockets may take CLOSE_WAIT_S longer to close.
        """
        self.call = call
        self.twilio_region = "us1"
        self._arrival: Route | None = None
        self._service = service
        self._find = find
        self._refused: list[str] = []
        """Backends that have failed this call by more than being late."""
        self._late: list[str] = []
        """Those that have been late: they are tried again when there is no other one."""
        self._dialled_at = 0.0
        self._remember = remember
        self._hang_up = hang_up
        self._log = log
        self._on_end = on_end
        self._clock = clock
        self._phone: Link | None = None
        self._backend = Link(Side.BACKEND, self, MAX_MESSAGE_BYTES)
        self._left: list[Link] = []
        """Of backends that have failed this call: nobody listens to them any more."""
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

    async def closed(self) -> None:
        """Return when both sockets are closed and no task of this call is left. Ask once the call has ended."""
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
        if self._over:
            return
        try:
            if side is _PHONE:
                self._phone_message(message)
            else:
                for event in self._service.dialect.parse(message):
                    self._feed(event)
        except WireError as error:
            self.link_bad_message(side, str(error))
        except Exception:  # noqa: BLE001  the top of this call: see _guard
            self._guard()

    def _phone_message(self, message: memoryview | bytes) -> None:
        parsed = twilio.parse(message)
        if isinstance(parsed, twilio.Media):
            now = self._clock()
            if self.call.passes(parsed.timestamp_ms, parsed.audio_bytes, now):
                self._backend.send(self._service.dialect.append(parsed.payload))
                self._frames += 1
            else:
                self._feed(ev.CallerAudio(parsed.payload, parsed.audio_bytes, parsed.timestamp_ms))
            return
        if isinstance(parsed, ev.PhoneStarted) and self._sender is None:
            self._sender = twilio.Sender(parsed.stream_sid)
            self._log.stream_sid = parsed.stream_sid
        if parsed is not None:
            self._feed(parsed)

    def link_bad_message(self, side: Side, why: str) -> None:
        """Counted by the core; the first of each call are worth a line."""
        if self._over:
            return
        self._bad_messages += 1
        if self._bad_messages <= BAD_MESSAGES_LOGGED:
            self._log.warning("bad message", side=side.value, why=why)
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
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                self._step(self._inbox.popleft())
            self._arm()
        except Exception:  # noqa: BLE001  the top of this call: see _guard
            self._guard()
        finally:
            self._busy = False

    def _step(self, event: Event) -> None:
        now = self._clock()
        self._note_frames(now)
        self._trail.append((now, type(event).__name__, getattr(event, "audio_bytes", 0)))
        if type(event) is ev.BackendConfigured:
            self._note_ready(event, now)
        for command in self.call.handle(event, now):
            self._run(command)

    def _note_ready(self, configured: ev.BackendConfigured, now: float) -> None:
        """The first echo of each backend's session. Later ones do not answer the dialling."""
        if configured.formats_match and self.call.backend is BackendPhase.CONFIGURING:
            self._service.ready_after((now - self._dialled_at) * 1000)

    def _note_frames(self, now: float) -> None:
        """Frames that passed straight through are one line in the trail, with their number."""
        if self._frames:
            self._trail.append((now, "frames", self._frames))
            self._frames = 0

    def _guard(self) -> None:
        """A bug of ours: this call ends, politely if it still can, and its neighbours do not notice.

        Closing the stream makes Twilio ask `/twiml/after`, which has a sentence for the caller.
        """
        self._note_frames(self._clock())
        self._log.exception("call broke", trail=self._told_trail())
        self._busy = True
        try:
            self._step(ev.Broken())
        except Exception:  # noqa: BLE001  the last resort: let go of everything by hand
            self._log.exception("call broke while ending")
        finally:
            self._busy = False
        if not self._over:
            for link in (self._phone, self._backend):
                if link is not None:
                    link.close()
            self._ended(EndReason.BUG)

    def _told_trail(self) -> str:
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
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        """The deadline may have moved away since the timer was armed: then it is armed anew, without a Tick."""
        self._timer = None
        try:
            deadline = self.call.deadline()
            due = deadline is not None and deadline <= self._clock()
            if not due:
                self._arm()
        except Exception:  # noqa: BLE001  the top of this call: see _guard
            self._guard()
            return
        if due:
            self._feed(ev.Tick())

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
                | ev.AddText()
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
                self._spawn(self._end_by_rest)
            case ev.ClosePhone():
                if self._phone is not None:
                    self._phone.close()
            case ev.CloseBackend():
                self._backend.close()
            case ev.FindBackend():
                self._find_backend(command)
            case ev.Ended():
                self._judge_backend(command.reason, command.detail)
                self._ended(command.reason, command.detail)
            case _:
                assert_never(command)

    def _record(self, record: Record) -> None:
        if isinstance(record, CallStarted) and record.stream_sid:
            self._log.info("call started", backend=record.backend, model=record.model)
        elif isinstance(record, CallEvent) and record.kind in WARNED_OF:
            self._log.warning(record.kind, backend=self._service.facts.backend, detail=record.detail)
        self._remember(record)

    def _find_backend(self, failed: ev.FindBackend) -> None:
        """Dial the next one, and have no more to do with the one that failed.

        One that is late is left only for one that works, and has another turn when all the others have failed.
        """
        name = self._service.facts.backend
        if failed.reason is EndReason.BACKEND_NOT_READY:
            self._late.append(name)
            found = self._find([*self._refused, *self._late], working=True)
        else:
            self._refused.append(name)
            found = self._find([*self._refused, *self._late], working=False)
            found = found or self._find(self._refused, working=False)
        if found is None:
            self._inbox.append(ev.NoBackendLeft())
            return
        self._judge_backend(failed.reason, failed.detail)
        fault = self._fault(failed.reason, failed.detail)
        self._log.warning("backend replaced", **fault, next=found.facts.backend)
        if self._dialling is not None:
            self._dialling.cancel()
        self._backend.leave()
        self._left.append(self._backend)
        self._backend = Link(Side.BACKEND, self, MAX_MESSAGE_BYTES)
        self._service = found
        self._inbox.append(ev.BackendFound(found.plan, found.facts, found.dialect.abilities))
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

    def _ended(self, reason: EndReason, detail: str = "") -> None:
        self._over = True
        self._disarm()
        for task in self._tasks:
            task.cancel()
        if reason in BACKEND_FAULTS:
            # Without a stream there was no call: when it comes a session is made anew, and may fare better.
            event = "backend failed before the stream" if self._phone is None else "call ended"
            self._log.warning(event, **self._fault(reason, detail))
        elif reason.owes_apology:
            self._log.warning("call ended", reason=reason.value)
        else:
            self._log.info("call ended", reason=reason.value)
        self._on_end(self, reason)

    def _fault(self, reason: EndReason, detail: str) -> dict[str, str | None]:
        """Of the present backend, for the log."""
        return {"reason": reason.value, "backend": self._service.facts.backend, "error": detail or None}

    def _judge_backend(self, reason: EndReason, detail: str) -> None:
        """What the end of a call, or of its time there, says about a backend."""
        if reason not in BACKEND_FAULTS:
            # A caller who hangs up on a silent backend has not been served well.
            if self.call.backend_was_heard:
                self._service.was(None)
            return
        if reason is EndReason.BACKEND_UNREACHABLE:
            return  # _dial has told
        hurried = self._clock() - self._dialled_at < BACKEND_LATE_S / 2
        if reason is EndReason.BACKEND_NOT_READY and hurried:
            return  # it was dialled late in the call, and is not to blame
        code = reason.value if reason is EndReason.BACKEND_FORMAT else detail.partition(" ")[0]
        self._service.was(f"{reason.value} {detail}".strip(), code=code)

    # --- Tasks -------------------------------------------------------------------------------

    def _spawn(self, work: Callable[[], Coroutine[None, None, None]]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001  the top of this call: see _guard
            self._guard()

    def _begin_dialling(self) -> None:
        self._dialled_at = self._clock()
        self._dialling = self._spawn(partial(self._dial, self._service, self._backend))

    async def _dial(self, service: Service, link: Link) -> None:
        try:
            await dial(address_of(service.dialect, service.plan.model), link, MAX_MESSAGE_BYTES)
        except DialError as error:
            self._log.warning("backend not reached", backend=service.facts.backend, why=str(error))
            service.was(str(error), status=error.status, code=error.code)
            self._feed(ev.BackendUnreachable(str(error)))

    async def _end_by_rest(self) -> None:
        why = await self._hang_up(self.call.facts.call_sid, self.twilio_region)
        if why is not None:
            self._log.info("hang-up by closing the stream", why=why)
            self._feed(ev.HangUpFailed())


OnEnd = Callable[[Session, EndReason], None]
"""Told once that a session's call has ended, and why."""
