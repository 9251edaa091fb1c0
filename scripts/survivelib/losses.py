"""Runs one server with two simulated backends whose sessions are lost at every point of the protocol."""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from weakref import WeakKeyDictionary

from app.ledger.zones import Zone
from app.sim.phone.options import PhoneOptions
from app.sim.phone.twilio_rest import TwilioRest
from app.sim.realtime.faults import NO_FAULTS, End, Faults, Timing
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.session import LiveSession
from app.world.process import free_port
from app.world.world import store_tenants
from scripts.benchlib.phone import ACCOUNT_SID, AUTH_TOKEN
from scripts.benchlib.process import child
from scripts.benchlib.targets import BACKEND_KEY, HEALTH, settings, until_answered
from scripts.survivelib.agent import Agent
from scripts.survivelib.records import turns_in
from scripts.survivelib.report import Report
from scripts.survivelib.stamps import words_of
from scripts.survivelib.story import Fault, Story
from scripts.survivelib.traffic import Traffic, tenants
from scripts.survivelib.verdict import Promises, judge

ENTRIES = 24
"""Names under which the server knows the two backends: one that has failed thrice gets no calls for a while."""
LOST_SHARE = 0.45
"""Of the sessions, so many are lost."""
TOOL_EVERY = 3
FATAL = "insufficient_quota"
TIMING = Timing(first_delta_ms=100, speed=5, transcription_ms=100)
PATIENCE_S = 16.0
"""A backend that falls silent is noticed after 12 s at the latest."""
SETTLE_LIMIT_S = 10.0
CALLS_LIMIT_S = 90.0

LOSSES = Promises(answer_s=0.6, pause_s=0.3, longest_s=0.65, faults_max=3)
"""0.5 s, and the 0.15 s in which a backend opens a session here and says its first word."""

Say = Callable[[str], None]

_DELTA = "response.output_audio.delta"
POINTS = (
    ("before session.updated", "session.update", (1, 1)),
    ("after session.updated", "session.updated", (1, 1)),
    ("while the caller speaks", "input_audio_buffer.speech_started", (1, 3)),
    ("when the caller has spoken", "input_audio_buffer.committed", (1, 3)),
    ("after the transcript", "conversation.item.input_audio_transcription.completed", (1, 3)),
    ("at the start of a response", "response.created", (1, 4)),
    ("mid-delta", _DELTA, (2, 14)),
    ("at the end of a response", "response.done", (1, 4)),
    ("after a tool call", "response.function_call_arguments.done", (1, 1)),
    ("between tool call and output", "function_call_output", (1, 1)),
)
"""What it is called, at which event, and at which of them at least and at most."""
_CLIENT = {"session.update", "function_call_output"}
"""Events of the client: the session ends when one comes, and nobody acts on it."""


def random_fault(chance: random.Random) -> tuple[str, Faults]:
    """Returns a point of the protocol with a way to be lost there, in words and as a setting."""
    point, event, counts = chance.choice(POINTS)
    how = chance.choice(get_args(End) if event in _CLIENT else (*get_args(End), FATAL))
    count = chance.randint(*counts)
    if how == FATAL:
        return f"{how} {point}", Faults(error_code=FATAL, error_after=event)
    if event in _CLIENT:
        return f"{how} {point}", Faults(end=how, end_before=event, end_before_count=count)
    return f"{how} {point}", Faults(end=how, end_after=event, end_after_count=count)


class _Dealt:
    """Gives each connection a fault, or none. It comes before a simulator among a class's bases."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._dealt: WeakKeyDictionary[asyncio.Task[Any], Faults] = WeakKeyDictionary()
        """By the task of the connection, which begins with the upgrade."""
        self.fault_names: dict[int, str] = {}
        """Of the faults, by identity."""
        self.sound = False
        """From now on no session is lost."""

    @property
    def faults(self) -> Faults:
        """What the connection gets that asks."""
        task = asyncio.current_task()
        if task is None:
            return NO_FAULTS
        if task not in self._dealt:
            lost = not self.sound and self._chance.random() < LOST_SHARE
            name, faults = random_fault(self._chance) if lost else ("", NO_FAULTS)
            self._dealt[task] = faults
            if lost:
                self.fault_names[id(faults)] = name
                self._kept.append(faults)
        return self._dealt[task]

    @faults.setter
    def faults(self, faults: Faults) -> None:
        """Set by the simulator's constructor; here they are dealt."""
        self._kept: list[Faults] = [faults]


class LossyBackend(_Dealt, RealtimeSimulator):
    """A backend whose sessions are lost."""

    def __init__(self, chance: random.Random) -> None:
        _Dealt.__init__(self, chance)
        RealtimeSimulator.__init__(self, api_key=BACKEND_KEY, timing=TIMING, record=False, hears=words_of)


@dataclass(slots=True)
class _Seen:
    """A session, as it was observed."""

    session: LiveSession
    number: int
    story: Story | None
    began: float
    noted: bool = False


class Losses:
    """Watches the sessions of all backends, and notes in each call's story what it lost."""

    def __init__(self, agent: Agent, backends: Sequence[LossyBackend]) -> None:
        self.counts: Counter[str] = Counter()
        self._agent = agent
        self._backends = backends
        self._seen: dict[int, _Seen] = {}

    async def watch(self, backend: LossyBackend) -> None:
        """Watches one backend until it is cancelled."""

        def look(_backend: object) -> bool:
            self._look(backend)
            return False

        await backend.wait_for(look)

    def _look(self, backend: LossyBackend) -> None:
        now = asyncio.get_running_loop().time()
        for session in backend.sessions:
            number = self._agent.session_number(backend, session.number)
            if number not in self._seen:
                story = self._agent.story_of(session.model)
                self._seen[number] = _Seen(session, number, story, now)
        for seen in self._seen.values():
            at = seen.session.fault_at
            if at is not None and not seen.noted:
                seen.noted = True
                name = next(
                    (
                        b.fault_names[id(seen.session.faults)]
                        for b in self._backends
                        if id(seen.session.faults) in b.fault_names
                    ),
                    "",
                )
                if seen.story is not None:
                    self.counts[name.split()[0]] += 1
                    seen.story.faults.append(Fault(at, f"session {seen.number} is lost: {name}"))

    def finish(self) -> None:
        """Adds to each silent loss when the server asked for another session: so late it noticed."""
        for seen in self._seen.values():
            story = seen.story
            if story is None or seen.session.faults.end != "stall" or seen.session.fault_at is None:
                continue
            at = seen.session.fault_at
            later = [each.began for each in self._seen.values() if each.story is story and each.began > at]
            for number, fault in enumerate(story.faults):
                if fault.at == at and later:
                    story.faults[number] = Fault(fault.at, fault.what, min(later))


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is."""

    count: int
    slots: int
    directory: Path
    seed: int


async def losses(size: Size, say: Say) -> Report:
    """Loses so many sessions of calls."""
    chance = random.Random(size.seed)
    agent = Agent(tool_every=TOOL_EVERY)
    async with AsyncExitStack() as stack:
        rest = TwilioRest(ACCOUNT_SID, {ACCOUNT_SID: AUTH_TOKEN})
        rest_url = await stack.enter_async_context(rest.serve())
        backends = [await stack.enter_async_context(LossyBackend(chance)) for _ in range(2)]
        for backend in backends:
            backend.script = agent.script(backend)
        port = await stack.enter_async_context(_server(size, backends, rest_url))

        def options(_slot: int) -> PhoneOptions:
            return PhoneOptions(
                f"http://127.0.0.1:{port}/twiml/voice",
                AUTH_TOKEN,
                account_sid=ACCOUNT_SID,
                connected_after_ms=(0, 0),
                document_pace=0.0,
                keep_audio=False,
            )

        traffic = Traffic(agent, rest, chance, options, (3, 6), PATIENCE_S)
        observed = Losses(agent, backends)
        watching = [asyncio.create_task(observed.watch(each)) for each in backends]
        calls = asyncio.create_task(traffic.run(size.slots))
        try:
            told = 0
            while observed.counts.total() < size.count and not calls.done():
                await asyncio.sleep(0.2)
                lost = observed.counts.total()
                if lost // 25 > told:
                    told = lost // 25
                    say(f"{lost} of {size.count} sessions were lost, {len(traffic.finished)} calls over")
            for backend in backends:
                backend.sound = True
            traffic.stop()
            say("waiting for the last calls to end")
            async with asyncio.timeout(CALLS_LIMIT_S):
                await asyncio.shield(calls)
        finally:
            for task in (*watching, calls):
                task.cancel()
            await asyncio.wait([*watching, calls])
        observed.finish()
        await _read_ledger(size.directory / "data" / "ledger.db", traffic.finished)
    return Report("losses", size.seed, LOSSES, traffic.finished, observed.counts, needed=size.count)


@asynccontextmanager
async def _server(size: Size, backends: Sequence[LossyBackend], rest_url: str) -> AsyncIterator[int]:
    """The server; gives its port."""
    config = size.directory / "nearcall.toml"
    tables = [
        f'[backends.b{entry:02}]\nkind = "openai"\nurl = "{backends[entry % 2].url}"\nkey = "OPENAI_API_KEY"\n'
        for entry in range(ENTRIES)
    ]
    await asyncio.to_thread(config.write_text, "\n".join(tables), encoding="utf-8")
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    env = {**settings(base, size.directory, backends[0].url, BACKEND_KEY), "NEARCALL_CONFIG": str(config)}
    data = size.directory / "data"
    await asyncio.to_thread(data.mkdir)
    await store_tenants(tenants(size.slots), [Zone("global", data, None, str)])
    command = (sys.executable, "-m", "app.world.serve", rest_url)
    async with child("nearcall", command, size.directory, env=env) as server:
        await until_answered(server, port, HEALTH)
        yield port
        server.check()


async def _read_ledger(path: Path, stories: Sequence[Story]) -> None:
    """Reads the turns of every call; the last ones may still be on their way."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLE_LIMIT_S
    while True:
        turns = await turns_in(path, [story.call_sid for story in stories])
        for story in stories:
            story.turns = turns[story.call_sid]
        late = any(each.promise == "ledger" for story in stories for each in judge(story, LOSSES))
        if not late or loop.time() >= until:
            return
        await asyncio.sleep(0.5)
