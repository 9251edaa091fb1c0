"""Opens the backends of a server from its settings: credentials, the practice backend, circuits, probes."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from app.backends.check import advice
from app.backends.dial import system_trust
from app.backends.dialects import dialect_of, wants_entra
from app.backends.entra import EntraNotInstalled, EntraTokens
from app.backends.pool import Backends, PoolMember
from app.backends.table import Backend, BackendEntry
from app.config import Settings
from app.process import StartError
from app.wire.audio import spoken_in


@asynccontextmanager
async def open_backends(settings: Settings, *, try_backends: bool) -> AsyncIterator[Backends]:
    """Open every backend that has a key, or the practice backend, and watch them until the block ends.

    `try_backends`: dial and configure each backend without a caller, at once and in the background, and now and
    then to measure it. Raises StartError.
    """
    # Read from disk now: the first call's dial would read it in the event loop, which takes 20 ms.
    system_trust()
    async with AsyncExitStack() as stack:
        found = (await _practice_backend(settings, stack),) if settings.practice else settings.backends
        tokens = EntraTokens()
        if wants_entra(found):
            try:
                tokens.start()
            except EntraNotInstalled as error:
                raise StartError(f"{error}. Or set AZURE_VOICELIVE_API_KEY.") from error
            stack.push_async_callback(tokens.stop)
        members = [PoolMember(each, dialect_of(each, tokens), no_key=_no_key(each, tokens)) for each in found]
        for member in members:
            # Loads what converts audio. That takes a tenth of a second, which no call should wait for.
            spoken_in(member.dialect, member.backend.entry.tuning.audio)
        backends = Backends(members, settings.region, advise=advice)
        watching = asyncio.create_task(backends.watch(settings.plan, try_all=try_backends), name="backends")
        stack.push_async_callback(_cancelled, watching)
        yield backends


def _no_key(backend: Backend, tokens: EntraTokens) -> Callable[[], str | None]:
    """Return what explains why this backend has no key now; None while it has one."""
    return (lambda: None) if backend.api_key else (lambda: tokens.why)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})


async def _practice_backend(settings: Settings, stack: AsyncExitStack) -> Backend:
    """Start the embedded backend, which greets and repeats what the caller says."""
    from app.sim.realtime.faults import LIKE_THE_SERVICE  # noqa: PLC0415
    from app.sim.realtime.openai_simulator import RealtimeSimulator  # noqa: PLC0415  production loads no simulator

    key = secrets.token_urlsafe()
    simulator = RealtimeSimulator(api_key=key, timing=LIKE_THE_SERVICE, record=False)
    await stack.enter_async_context(simulator)
    # It runs in this process, so speech goes nowhere else: it keeps every zone's promise.
    residency = frozenset(rule.residency for rule in settings.zones.values() if rule.residency)
    return Backend(BackendEntry("practice", "openai", simulator.url, "", residency), key)
