"""Construction and nothing else: settings in, a running server out. The only file that builds real things."""

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from app.backends.opening import open_backends
from app.backends.sessions import SessionMaker
from app.bridge.call_registry import CallRegistry
from app.bridge.front import Front, Limits
from app.bridge.hand_over import HandOver
from app.bridge.lag import LagMeter
from app.bridge.refusals import Refusals
from app.bridge.ticket import Continuation, Continuations, Nonces, Ticket, Tickets, new_nonce
from app.bridge.twilio_rest import API_HOSTS, TwilioRest
from app.call.continuity import Recollection
from app.call.plan import Plan
from app.call.records import Record
from app.config import Settings
from app.http import health
from app.http.health_policy import HealthPolicy
from app.http.last_drain import read_last_drain, write_last_drain
from app.http.machine import Machine
from app.http.server import http_server
from app.ledger.memory import open_memories
from app.ledger.opening import open_ledgers, recorders
from app.process import (
    StartError,
    bind,
    descriptor_limit,
    freeze_gc,
    raise_descriptor_limit,
    stop_signal,
    url_of,
)
from app.tenants.opening import open_tenancy
from twiml import documents
from twiml import routes as webhooks
from twiml.gate import UpgradeGate
from twiml.replay_policy import ReplayPolicy
from twiml.signature import Signatures
from twiml.upgrade import UpgradeAnswers

log = logging.getLogger("nearcall.main")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that takes calls."""

    url: str
    registry: CallRegistry
    backends: tuple[str, ...]
    zones: tuple[str, ...]
    """The zones whose calls can be taken here, see Machine.served_zones."""
    serving: "asyncio.Task[None]"
    """The HTTP server. It ends early only when it fails."""


async def serve(settings: Settings, host: str, *, api_hosts: Mapping[str, str] = API_HOSTS) -> None:
    """Run until SIGTERM or SIGINT, then hand the calls to other machines.

    A second signal ends the process at once. `api_hosts`: where Twilio's REST API is, by Twilio region.

    Raises StartError and StorageError, and at the end RecordsLostError.
    """
    raise_descriptor_limit()
    listener = bind(host, settings.port)
    async with AsyncExitStack() as stack:
        stop = stop_signal(stack)
        server = await stack.enter_async_context(
            running(settings, listener, api_hosts=api_hosts, try_backends=True)
        )
        freeze_gc()
        _log_started(settings, server)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({stopped, server.serving}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            stopped.cancel()
            raise StartError("The HTTP server has stopped by itself; the log says why.")
        log.info("server_stopping", extra=server.registry.counts)


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    listener: socket.socket,
    *,
    api_hosts: Mapping[str, str] = API_HOSTS,
    watch: Callable[[Record], None] = lambda _record: None,
    try_backends: bool = False,
) -> AsyncIterator[Running]:
    """Build and start a server on `listener`; at the end of the block drain it and store its records.

    `watch` sees every record as it is made. `try_backends`: see open_backends. Raises StartError and StorageError,
    and at the end RecordsLostError.
    """
    here = [zone for zone, rule in settings.zones.items() if rule.allows(settings.region)]
    async with AsyncExitStack() as stack:
        stack.enter_context(listener)
        ledgers = await stack.enter_async_context(open_ledgers(settings.ledger, here))
        tenancy = await stack.enter_async_context(open_tenancy(settings, ledgers))
        backends = await stack.enter_async_context(open_backends(settings, try_backends=try_backends))
        rest = TwilioRest(settings.account_sid, settings.twilio_tokens, api_hosts)
        stack.push_async_callback(rest.aclose)
        remember = recorders(ledgers, watch)
        hand_over = {zone: HandOver(rest.redirect, ledger.drain) for zone, ledger in ledgers.items()}
        memories = await stack.enter_async_context(open_memories(settings.ledger, ledgers))
        continuations = Continuations(settings.secret)
        decisions: Counter[str] = Counter()

        def resume_url(ticket: Ticket, plan: Plan) -> str:
            continuation = Continuation(
                *(ticket.call_sid, plan.tenant, plan.zone, ticket.epoch, ticket.started_ms, plan.language)
            )
            base = settings.public_urls[0]
            return documents.resume_url(base, plan.zone, settings.region, continuations.issue(continuation))

        async def recall(zone: str, call_sid: str, tenant: str) -> Recollection:
            memory = memories.get(zone)
            return Recollection() if memory is None else await memory.recall(call_sid, tenant)

        sessions = SessionMaker(
            settings.region,
            settings.zones,
            backends,
            remember,
            rest.hang_up,
            hand_over,
            memories,
            resume_url,
            lambda event: decisions.update((event,)),
        )
        refusals = Refusals(remember, settings.region, lambda: time.time_ns() // 1_000_000)
        registry = CallRegistry(
            sessions.make,
            tenancy.plan_of,
            refusals,
            settings.calls_max,
            setups_max=settings.setups_max,
            recall=recall,
            calls_elsewhere=lambda plan: ledgers[plan.zone].calls_elsewhere(plan.tenant),
            may_move=partial(_may_move, settings),
        )
        for zone, ledger in ledgers.items():
            ledger.report_calls(partial(registry.calls_of_tenants, zone))
        lag = LagMeter(settings.lag_max_s)
        lag.start()
        stack.callback(lag.stop)
        machine = Machine(
            settings.region, settings.deployed, settings.zones, ledgers, tenancy, backends, registry, lag
        )
        replay_policy = ReplayPolicy(settings.zones, machine.here, settings.secret, decisions)
        signatures = Signatures(settings.twilio_tokens, settings.public_urls)
        tickets = Tickets(settings.secret)
        front = Front(Limits.of(descriptor_limit(), on_fly=settings.on_fly))
        last_drain = await read_last_drain(settings.ledger.data_dir)
        health_policy = HealthPolicy(machine, replay_policy, front, time.monotonic, time.monotonic(), last_drain)
        parts = webhooks.Parts(
            signatures=signatures,
            tickets=tickets,
            registry=registry,
            continuations=continuations,
            recall=recall,
            plan_of=tenancy.plan_of,
            plan_for=tenancy.plan_for,
            is_broken=tenancy.is_broken,
            fallback_plan=settings.plan,
            replay_policy=replay_policy,
            account_sid=settings.account_sid,
            backends=backends.names,
            clock=time.time,
            nonce=new_nonce,
            on_fly=settings.on_fly,
        )
        gate = UpgradeGate(
            tickets,
            Nonces(),
            signatures,
            replay_policy,
            registry.full_of_streams,
            registry.is_expected,
            registry.backend_failed,
        )
        upgrades = UpgradeAnswers(gate, registry, replay_policy, time.time)
        routes = [*webhooks.routes(parts), *health.routes(health_policy.look, settings.admin_token)]
        serving = await stack.enter_async_context(
            http_server(listener, routes, upgrades.answer, front, settings.region)
        )
        stack.push_async_callback(_drain, registry, settings)
        yield Running(url_of(listener), registry, backends.names, machine.served_zones, serving)


async def _drain(registry: CallRegistry, settings: Settings) -> None:
    """Hand the calls over, and leave word for the next process of how that went."""
    counts = await registry.drain(settings.drain_s)
    finished_ms = time.time_ns() // 1_000_000
    await write_last_drain(settings.ledger.data_dir, {**counts, "finished_ms": finished_ms})


def _may_move(settings: Settings, zone: str) -> bool:
    """True when a machine in another region may go on with a call of this zone: only Fly brings the call there."""
    others = {region for region in settings.deployed if region != settings.region}
    return settings.on_fly and any(settings.zones[zone].allows(region) for region in others)


def _log_started(settings: Settings, server: Running) -> None:
    log.info(
        "server_started",
        extra={
            "url": server.url,
            "webhook": f"{settings.public_urls[0]}/twiml/voice",
            "backends": ", ".join(server.backends),
            "zones": ", ".join(server.zones),
        },
    )
    if settings.practice:
        log.warning("practice_backend_used", extra={"effect": "callers hear their own words repeated"})
    if any(url.startswith("http:") for url in settings.public_urls):
        effect = "calls work on this machine only: Twilio needs https"
        log.warning("public_url_not_https", extra={"setting": "NEARCALL_PUBLIC_URL", "effect": effect})
