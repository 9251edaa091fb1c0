"""Wiring and nothing else: settings in, a running server out. The only file that builds real things."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import uvicorn
from picows import WSListener, WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener
from starlette.applications import Starlette

from app.backends.check import advice
from app.backends.dial import system_trust
from app.backends.dialects import dialect_of, wants_entra
from app.backends.entra import EntraNotInstalled, EntraTokens
from app.backends.pool import Backends, Line, State
from app.backends.table import Backend, BackendEntry, allowed
from app.bridge.call_registry import CallRegistry, MakeSession
from app.bridge.front import Front, Limits, http_protocol
from app.bridge.handover import refusal, ws_protocol
from app.bridge.refusals import Refusals
from app.bridge.session import OnEnd, Session
from app.bridge.ticket import Nonces, Ticket, Tickets
from app.bridge.twilio_rest import API_HOSTS, TwilioRest
from app.call.call import Call
from app.call.journal import Facts
from app.call.plan import Plan
from app.call.records import Record
from app.call.wall import Wall
from app.config import LedgerSettings, Settings
from app.http import health
from app.ledger.ledger import Ledger, RecordsLostError
from app.ledger.local import LocalLedger
from app.ledger.prices import Prices
from app.ledger.spool import Spool
from app.ledger.turso import TursoLedger
from app.ledger.waiting import WaitingLedger
from app.ledger.zone_files import zone_of
from app.ledger.zones import DEFAULT_ZONE, Zone
from app.logs import CallLog
from app.regions.routing import Here
from app.storage.errors import StorageError
from app.tenants.directory import TenantDirectory
from app.tenants.fields import Known
from app.tenants.tenancy import TEST_NUMBER_PREFIX, Tenancy
from app.wire.audio import spoken_in
from twiml import routes as webhooks
from twiml.answers import REPLAY_STATUS
from twiml.gate import Refusal, ReplayAnswer, UpgradeGate
from twiml.replay_policy import ReplayPolicy
from twiml.signature import Signatures

DRAIN_LIMIT_S = 10.0
"""From the stop signal to the last closed socket; below any kill_timeout."""

REGION_HEADER = "Nearcall-Region"
"""On every answer, the 101 of a stream too: the region of the machine that gave it, for `nearcall call`."""

log = logging.getLogger("nearcall")


class StartError(Exception):
    """The server cannot start; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that takes calls."""

    url: str
    registry: CallRegistry
    backends: tuple[str, ...]
    zones: tuple[str, ...]
    """Whose calls can be taken here: they have a ledger, and a backend that they allow."""
    serving: "asyncio.Task[None]"
    """The HTTP server; it ends only when it breaks."""


def bind(host: str, port: int) -> socket.socket:
    """The listening socket. Raises StartError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=host == "::")
    except OSError as error:
        # create_server turns a failed look-up into an OSError with the look-up's number, which is negative.
        why = "no such address" if (error.errno or 0) < 0 else os.strerror(error.errno or 0)
        raise StartError(f"Cannot listen on {host}, port {port}: {why}.{_other_port(error)}") from error


def _other_port(error: OSError) -> str:
    """What to do about a port that cannot be had."""
    match error.errno:
        case errno.EADDRINUSE:
            holder = "Another program listens there, perhaps a nearcall that still runs: `ss -ltnp` names it."
            return f" {holder} Stop it, or choose another port with --port or PORT."
        case errno.EACCES:
            return " Ports below 1024 are for root: choose another one with --port or PORT."
    return ""


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    listener: socket.socket,
    *,
    api_hosts: Mapping[str, str] = API_HOSTS,
    watch: Callable[[Record], None] = lambda _record: None,
    try_backends: bool = False,
) -> AsyncIterator[Running]:
    """Everything built, wired and listening; on the way out calls are ended and records stored.

    `watch` sees every record as it is made. `try_backends`: dial and configure each backend without a caller, at
    once and in the background, and now and then to measure it. Raises StartError and StorageError, and at the end
    RecordsLostError.
    """
    # Read from disk now: 20 ms in the event loop that the first call's dial would take else.
    system_trust()
    async with _open_ledgers(settings, listener) as ledgers, AsyncExitStack() as stack:
        tenancy = await _tenancy(settings, ledgers, stack)
        backends = await _backends(settings, stack, try_all=try_backends)
        rest = TwilioRest(settings.account_sid, settings.twilio_tokens, api_hosts)
        stack.push_async_callback(rest.aclose)
        prices = Prices.packed()
        remember = {zone: _remember(ledger, prices, watch) for zone, ledger in ledgers.items()}
        refusals = Refusals(remember, settings.region, lambda: time.time_ns() // 1_000_000)
        make_session = _session_maker(settings, backends, remember, rest)
        registry = CallRegistry(make_session, tenancy.plan_of, refusals, settings.calls_max)
        server = _http_server(settings, tenancy, registry, backends, ledgers, listener)
        serving = asyncio.create_task(server.serve([listener]), name="http")
        stack.push_async_callback(_stop_http, server, serving)
        stack.push_async_callback(registry.drain, DRAIN_LIMIT_S)
        await _started(server, serving)
        zones = tuple(sorted(zone for zone in ledgers if backends.serves(settings.zones[zone])))
        yield Running(_url_of(listener), registry, backends.names, zones, serving)


async def serve(settings: Settings, host: str) -> None:
    """Run until SIGTERM or SIGINT; calls are ended politely then. A second signal does not wait for that.

    Raises StartError and StorageError, and at the end RecordsLostError.
    """
    raise_descriptor_limit()
    listener = bind(host, settings.port)
    async with AsyncExitStack() as stack:
        stop = stop_signal(stack)
        server = await stack.enter_async_context(running(settings, listener, try_backends=True))
        _freeze_gc()
        _say_up(settings, server)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({stopped, server.serving}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            stopped.cancel()
            raise StartError("The HTTP server has stopped by itself; the log says why.")
        log.info("stopping", extra=server.registry.counts)


def raise_descriptor_limit() -> None:
    """Let the process open as many files and sockets as it may: the usual 1,024 are too few for 400 calls."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError) as error:  # macOS says "unlimited" and means less
        log.warning("the limit of open files could not be raised", extra={"error": str(error)})


def _descriptors() -> int:
    """How many files and sockets the process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def _freeze_gc() -> None:
    """Keep what was loaded at start out of every later collection: nothing of it will ever be garbage.

    Measured at 200 calls: 8 % of the CPU, and the longest pauses of a call, were full collections over it.
    """
    gc.collect()
    gc.freeze()


def _say_up(settings: Settings, server: Running) -> None:
    webhook = f"{settings.public_urls[0]}/twiml/voice"
    can = {"backends": ", ".join(server.backends), "zones": ", ".join(server.zones)}
    log.info("nearcall is up", extra={"url": server.url, "webhook": webhook, **can})
    if settings.practice:
        log.warning("the practice backend answers: callers hear their own words repeated")
    if any(url.startswith("http:") for url in settings.public_urls):
        log.warning("NEARCALL_PUBLIC_URL is not https: it works on this machine, and Twilio needs https")


def stop_signal(stack: AsyncExitStack) -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets. A second one ends the process as if nobody listened."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def let_go() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def signalled() -> None:
        stop.set()
        let_go()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not Python's own handler: its KeyboardInterrupt is swallowed when it hits a callback of uvloop.
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    stack.callback(let_go)
    return stop


# --- Parts -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _open_ledgers(settings: Settings, listener: socket.socket) -> AsyncIterator[Mapping[str, Ledger]]:
    """A ledger for each zone that calls may be in here. Waits for this machine's disk, never for a network.

    Raises RecordsLostError at the end, if nothing else was raised before.
    """
    ledgers: dict[str, Ledger] = {}
    with listener:
        try:
            await _make_directory(settings.ledger.data_dir)
            for name in _zones_here(settings):
                ledgers[name] = await _open_ledger(zone_of(settings.ledger, name), settings.ledger)
            yield ledgers
        finally:
            lost = await _close(ledgers)
    if lost:
        raise RecordsLostError(lost)


def _zones_here(settings: Settings) -> list[str]:
    """Zones whose records may be kept on this machine and have a place: a database, or files when no zone has one.

    A zone without a database beside others that have one takes no calls: their records had nowhere to go.
    """
    configured = {*settings.ledger.primaries, *settings.ledger.faults}
    here = {name for name, rule in settings.zones.items() if rule.allows(settings.region)}
    return sorted(here & configured if configured else here)


async def _open_ledger(zone: Zone, settings: LedgerSettings) -> Ledger:
    if zone.name in settings.faults:
        return await _waiting(zone, settings.faults[zone.name])
    if zone.url is not None:
        return await TursoLedger.open(zone, region=settings.region, machine=settings.machine)
    await _make_directory(zone.local.parent)
    try:
        ledger = await LocalLedger.open(zone.local, spool=zone.spool)
    except StorageError as error:
        return await _waiting(zone, str(error))
    if zone.spool.is_file():
        await _take_over(zone, ledger)
    try:
        await ledger.end_unfinished(time.time_ns() // 1_000_000)
    except StorageError as error:
        log.warning("endings of an earlier run not written", extra={"zone": zone.name, "error": str(error)})
    return ledger


async def _waiting(zone: Zone, why: str) -> Ledger:
    log.error("ledger unusable: records wait on this disk for a restart", extra={"zone": zone.name, "error": why})
    return await WaitingLedger.open(zone, why)


async def _take_over(zone: Zone, ledger: LocalLedger) -> None:
    spool = await Spool.open(zone.spool)
    try:
        await ledger.take_over(spool)
    except StorageError as error:
        log.warning("ledger spool stays", extra={"zone": zone.name, "error": str(error)})
    finally:
        await spool.close()


async def _close(ledgers: Mapping[str, Ledger]) -> Mapping[str, int]:
    """All at once: each may wait a while for its primary. Returns how many records each zone has lost."""
    await asyncio.gather(*(ledger.close() for ledger in ledgers.values()))
    lost = {zone: ledger.lost for zone, ledger in ledgers.items() if ledger.lost}
    for zone, count in lost.items():
        log.error("ledger records lost", extra={"zone": zone, "lost": count, "error": ledgers[zone].last_error})
    return lost


async def _make_directory(path: Path) -> None:
    try:
        await asyncio.to_thread(path.mkdir, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StartError(f"Cannot use {path} (NEARCALL_DATA_DIR): it is not a directory.") from error
    except OSError as error:
        raise StartError(f"Cannot use {path} (NEARCALL_DATA_DIR): {error.strerror}.") from error


def _remember(ledger: Ledger, prices: Prices, watch: Callable[[Record], None]) -> Callable[[Record], None]:
    """What sessions of one zone's calls hand their records to. They are given no other."""

    def remember(record: Record) -> None:
        priced = prices.priced(record)
        ledger.remember(priced)
        watch(priced)

    return remember


async def _tenancy(settings: Settings, ledgers: Mapping[str, Ledger], stack: AsyncExitStack) -> Tenancy:
    """Tenants are in the global zone's database: read from its copy here, or from the local file."""
    zone = zone_of(settings.ledger, DEFAULT_ZONE)
    ledger = ledgers.get(DEFAULT_ZONE)
    known = Known(settings.zones.keys(), settings.backend_names)
    tests = _test_zones(settings)
    promised = any(rule.promises and allowed(settings.backends, rule) for rule in settings.zones.values())
    if isinstance(ledger, TursoLedger):
        directory = TenantDirectory(zone.replica, known, damaged=ledger.distrust)
        tenancy = Tenancy(
            directory,
            settings.plan,
            copy_comes=True,
            promised=promised,
            current=lambda: ledger.current,
            test_zones=tests,
        )
    else:
        # A database whose settings are bad may have left a copy: its tenants are still tenants.
        has_database = zone.url is not None or DEFAULT_ZONE in settings.ledger.faults
        directory = TenantDirectory(zone.replica if has_database else zone.local, known)
        tenancy = Tenancy(directory, settings.plan, copy_comes=False, promised=promised, test_zones=tests)
    await directory.look()
    directory.start()
    stack.push_async_callback(directory.stop)
    return tenancy


def _test_zones(settings: Settings) -> list[str]:
    """The zones that take test calls: one that is strict about Twilio's region or Fly's edge refuses them."""
    zones = settings.zones.values()
    return [rule.name for rule in zones if rule.twilio_region is None and rule.edges is None]


async def _backends(settings: Settings, stack: AsyncExitStack, *, try_all: bool) -> Backends:
    found = (await _practice_backend(settings, stack),) if settings.practice else settings.backends
    tokens = EntraTokens()
    if wants_entra(found):
        try:
            tokens.start()
        except EntraNotInstalled as error:
            raise StartError(f"{error}. Or set AZURE_VOICELIVE_API_KEY.") from error
        stack.push_async_callback(tokens.stop)
    lines = [Line(each, dialect_of(each, tokens), no_key=_no_key(each, tokens)) for each in found]
    for line in lines:
        # What converts audio takes a tenth of a second to load: not in a call.
        spoken_in(line.dialect, line.backend.entry.tuning.audio)
    backends = Backends(lines, settings.region, advise=advice)
    watching = asyncio.create_task(backends.watch(settings.plan, try_all=try_all), name="backends")
    stack.push_async_callback(_cancelled, watching)
    return backends


def _no_key(backend: Backend, tokens: EntraTokens) -> Callable[[], str | None]:
    return (lambda: None) if backend.api_key else (lambda: tokens.why)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})


async def _practice_backend(settings: Settings, stack: AsyncExitStack) -> Backend:
    """The embedded backend greets, and repeats what the caller says."""
    from app.sim.realtime.faults import LIKE_THE_SERVICE  # noqa: PLC0415
    from app.sim.realtime.openai_simulator import RealtimeSimulator  # noqa: PLC0415  a simulator has no place in production's memory

    key = secrets.token_urlsafe()
    simulator = RealtimeSimulator(api_key=key, timing=LIKE_THE_SERVICE, record=False)
    await stack.enter_async_context(simulator)
    # It is in this process: whatever a zone asks for, speech goes nowhere else.
    residency = frozenset(rule.residency for rule in settings.zones.values() if rule.residency)
    return Backend(BackendEntry("practice", "openai", simulator.url, "", residency), key)


def _session_maker(
    settings: Settings,
    backends: Backends,
    remember: Mapping[str, Callable[[Record], None]],
    rest: TwilioRest,
) -> MakeSession:
    """`remember` has the ledger of each zone: a call in a zone that is not here cannot be made."""

    def make(ticket: Ticket, plan: Plan, on_end: OnEnd) -> Session | None:
        rule = settings.zones[plan.zone]
        wish = replace(plan, backends=(ticket.backend, *plan.backends)) if ticket.backend else plan

        facts = Facts(ticket.call_sid, ticket.nonce, settings.region, "", ticket.caller, ticket.called)
        find = partial(backends.service, wish, rule, facts)
        service = find((), working=False)
        if service is None:
            return None
        wall = Wall(time.monotonic(), int(time.time() * 1000))
        return Session(
            Call(service.plan, service.facts, wall, service.dialect.abilities),
            service,
            find=find,
            remember=remember[wish.zone],
            hang_up=rest.hang_up,
            log=CallLog("nearcall.call", ticket.call_sid, wish.tenant, settings.region),
            on_end=on_end,
        )

    return make


def _http_server(
    settings: Settings,
    tenancy: Tenancy,
    registry: CallRegistry,
    backends: Backends,
    ledgers: Mapping[str, Ledger],
    listener: socket.socket,
) -> uvicorn.Server:
    signatures = Signatures(settings.twilio_tokens, settings.public_urls)
    tickets = Tickets(settings.secret)
    front = Front(Limits.of(_descriptors(), on_fly=settings.on_fly))
    zones = settings.zones

    def here() -> Here:
        usable = frozenset(zone for zone in ledgers if backends.usable(zones[zone]))
        return Here(
            settings.region,
            settings.deployed,
            usable,
            registry.draining,
            registry.full(),
            starting=not tenancy.settled,
        )

    began_at = time.monotonic()
    replay_policy = ReplayPolicy(zones, here, settings.secret)
    gate = UpgradeGate(
        tickets, Nonces(), signatures, replay_policy, registry.full_of_streams, registry.backend_failed
    )
    parts = webhooks.Parts(
        signatures=signatures,
        tickets=tickets,
        desk=registry,
        plan_for=tenancy.plan_for,
        fallback_plan=settings.plan,
        replay_policy=replay_policy,
        account_sid=settings.account_sid,
        backends=backends.names,
        clock=time.time,
        unusable=tenancy.is_broken,
        on_fly=settings.on_fly,
    )

    test_numbers = tuple(
        TEST_NUMBER_PREFIX + zone
        for zone in sorted(_test_zones(settings))
        if zone in ledgers and backends.serves(zones[zone])
    )

    def look() -> health.Health:
        # Why it is broken, which names paths and hosts, is in the log and in `ledger status`.
        broken = sorted(zone for zone, ledger in ledgers.items() if not ledger.healthy)
        depth = sum(ledger.depth for ledger in ledgers.values())
        details: dict[str, object] = {"calls": registry.counts, "ledger_depth": depth}
        details |= {"decisions": replay_policy.counts, "connections": {"open": front.open, "closed": front.closed}}
        if broken:
            details["ledger"] = broken
        if set_aside := sum(ledger.set_aside for ledger in ledgers.values()):
            details["ledger_set_aside"] = set_aside
        states = backends.states
        details["backends"] = states
        troubles = (
            ("ledger", broken or set_aside),
            ("tenants", tenancy.trouble),
            ("backends", State.FAILING in states.values()),
        )
        up_s = time.monotonic() - began_at
        down, degraded = health.verdict(here(), up_s, [what for what, holds in troubles if holds])
        return health.Health(down, degraded, details, settings.region, test_numbers)

    app = Starlette(routes=[*webhooks.routes(parts), *health.routes(look, settings.admin_token)])
    app.router.redirect_slashes = False  # a redirect changes the URL that Twilio signed (twilio.md 3.6)
    config = uvicorn.Config(
        app,
        ws=ws_protocol(_upgrade(gate, registry, replay_policy, settings.region)),  # type: ignore[arg-type]  # any protocol factory works
        http=http_protocol(front),  # type: ignore[arg-type]  # any protocol factory works
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=[(REGION_HEADER, settings.region)],
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        fd=None,
        host=listener.getsockname()[0],
    )
    return _Server(config)


def _upgrade(
    gate: UpgradeGate, registry: CallRegistry, replay_policy: ReplayPolicy, region: str
) -> Callable[[WSUpgradeRequest], WSListener | WSUpgradeResponseWithListener]:
    headers = {REGION_HEADER: region}

    def upgrade(request: WSUpgradeRequest) -> WSListener | WSUpgradeResponseWithListener:
        target = request.path.decode("latin-1")
        answer = gate.admit(target, request.headers.get, time.time())
        if isinstance(answer, ReplayAnswer):
            log.info("stream sent on", extra={"why": answer.reason})
            return refusal(REPLAY_STATUS, answer.headers)
        if isinstance(answer, Refusal):
            log.warning("stream refused", extra={"status": answer.status, "why": answer.reason})
            if answer.ticket is not None:
                registry.stream_refused(answer.ticket, answer.reason)
            return refusal(answer.status, headers)
        link = registry.answer(answer.ticket, answer.twilio_region, answer.trail)
        if link is None:
            replay_policy.refused("no_call")
            # Without ids: its tenant may have moved to a zone that does not allow them in this region's log.
            log.warning("stream refused", extra={"status": 403, "why": "live, or nobody's"})
            registry.stream_refused(answer.ticket, "nobody's")
            return refusal(403, headers)
        replay_policy.taken("stream")
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(headers), link)

    return upgrade


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: those would close things before calls have ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _started(server: uvicorn.Server, serving: "asyncio.Task[None]") -> None:
    while not server.started:
        if serving.done():
            serving.result()
            raise StartError("The HTTP server stopped before it had started.")
        await asyncio.sleep(0)


async def _stop_http(server: uvicorn.Server, serving: "asyncio.Task[None]") -> None:
    server.should_exit = True
    await asyncio.wait({serving})
    error = None if serving.cancelled() else serving.exception()
    if error is not None:
        log.error("HTTP server broke", exc_info=error)


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104  the address is compared, not bound
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
