"""Draws cases, runs them, and says of one that fails how to see it again.

A case is a list of inputs, drawn by a target from `Random("SEED/TARGET/NUMBER")`: seed, target and number give the
same case on every machine. A case that fails is made smaller, as long as it fails in the same place, and printed
as Python.
"""

import asyncio
import gc
import logging
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, Final, Protocol

STEP_MAX_MS: Final = 100.0
"""CPU time of one input. As long as it is handled every other call of the machine stands still."""

CASE_MAX_S: Final = 20.0
"""CPU time of a whole case, after which it counts as hanging."""

SMALLER_TRIES: Final = 400
"""Runs that are spent on making a failing case smaller."""

_ROOT: Final = str(Path(__file__).parents[2])


class FaultError(Exception):
    """What was run did something that it must never do."""


class HangsError(BaseException):
    """The CPU time of a case is used up. No guard of the application may take it for an exception of its own."""


class Target(Protocol):
    """Something that takes inputs from outside."""

    name: str
    share: int
    """Of a hundred inputs, so many are for it."""

    def draw(self, rng: Random) -> Sequence[Any]:
        """A case: inputs, each a frozen dataclass whose repr is the Python that makes it."""

    async def run(self, case: Sequence[Any]) -> None:
        """Give it these inputs, in order. Raises whatever shows a fault."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Around all runs."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that failed, made small."""

    target: str
    number: int
    why: str
    case: tuple[Any, ...]
    trace: str

    def told(self, seed: int) -> str:
        """How to see it again, and as a test."""
        steps = "\n".join(f"            {as_python(step)}," for step in self.case)
        return (
            f"{self.target}, case {self.number}: {self.why}\n\n{self.trace}\n"
            f"Again: scripts/fuzz --seed {seed} --only {self.target} --case {self.number}\n"
            f"As a test, in tests/fuzz/test_fuzz.py:\n\n"
            f"        await {self.target}.run([\n{steps}\n        ])\n"
        )


_ENUM: Final = re.compile(r"<(\w+\.\w+): [^<>]*>")
_RUN: Final = re.compile(r"([A-Za-z0-9 \[])\1{199,}")


def as_python(step: object) -> str:
    """The Python that makes an input; a byte that comes very often is written once."""
    text = _ENUM.sub(r"\1", repr(step))
    return _RUN.sub(lambda run: f"' + b'{run[1]}' * {len(run[0])} + b'", text)


@dataclass(slots=True)
class Outcome:
    """What a run of the fuzzer found."""

    inputs: Counter[str] = field(default_factory=Counter)
    cases: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    slow: int = 0
    """Cases that were slow once and not again: the machine was."""


def drawn(target: Target, seed: int, number: int) -> Sequence[Any]:
    """The case of this number."""
    return target.draw(Random(f"{seed}/{target.name}/{number}"))


class Fuzzer:
    """Runs cases of several targets in one event loop."""

    def __init__(self, targets: Sequence[Target], seed: int, *, failures_max: int = 5) -> None:
        self._targets = targets
        self._seed = seed
        self._failures_max = failures_max
        self.outcome = Outcome()
        self._seen: set[tuple[str, str]] = set()

    async def inputs(self, count: int, progress: Callable[[int], None] = lambda _done: None) -> Outcome:
        """So many inputs, shared among the targets. Ends early after several different failures."""
        outcome = self.outcome
        async with _set_up(self._targets):
            while outcome.inputs.total() < count and len(outcome.failures) < self._failures_max:
                # Whoever is furthest behind its share.
                target = min(self._targets, key=lambda each: outcome.inputs[each.name] / each.share)
                await self._one(target, outcome.cases[target.name])
                progress(outcome.inputs.total())
        return outcome

    async def case(self, target: Target, number: int) -> Outcome:
        """One case alone."""
        async with _set_up(self._targets):
            await self._one(target, number)
        return self.outcome

    async def _one(self, target: Target, number: int) -> None:
        case = drawn(target, self._seed, number)
        self.outcome.cases[target.name] += 1
        self.outcome.inputs[target.name] += len(case)
        error = await _tried(target, case)
        if error is None:
            return
        if _is_slow(error) and (error := await _tried(target, case)) is None:
            self.outcome.slow += 1
            return
        place = _place(error)
        if (target.name, place) in self._seen:
            return
        self._seen.add((target.name, place))
        small = await _smaller(target, case, place)
        error = await _tried(target, small) or error
        trace = "".join(traceback.format_exception(error, limit=-12))
        self.outcome.failures.append(Failure(target.name, number, _why(error), tuple(small), trace))


async def _tried(target: Target, case: Sequence[Any]) -> BaseException | None:
    """What a case raised."""
    signal.setitimer(signal.ITIMER_VIRTUAL, CASE_MAX_S)
    try:
        await target.run(case)
    except asyncio.CancelledError:
        raise
    except (Exception, HangsError) as error:  # noqa: BLE001  whatever it is, it is what is looked for
        return error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return None


async def _smaller(target: Target, case: Sequence[Any], place: str) -> list[Any]:
    """The case without the inputs that it fails in the same place without."""
    kept, size, tries = list(case), max(1, len(case) // 2), 0
    while True:
        at = 0
        while at < len(kept) and tries < SMALLER_TRIES:
            without = kept[:at] + kept[at + size :]
            tries += 1
            error = await _tried(target, without)
            if error is not None and _place(error) == place:
                kept = without
            else:
                at += size
        if size == 1 or tries >= SMALLER_TRIES:
            return kept
        size //= 2


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _is_slow(error: BaseException) -> bool:
    return isinstance(error, SlowError)


class SlowError(FaultError):
    """One input took longer than a neighbour may wait."""


def _place(error: BaseException) -> str:
    """Where it was raised, and what: two failures of the same place are one."""
    while (cause := error.__cause__) is not None:
        error = cause
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_ROOT) and ".venv" not in frame.filename]
    last = ours[-1] if ours else None
    return f"{type(error).__name__} {last.filename}:{last.lineno}" if last else type(error).__name__


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Around the handling of one input. Raises SlowError: by CPU time, so that a busy machine is none."""
    began = time.thread_time()
    yield
    took_ms = 1_000 * (time.thread_time() - began)
    if took_ms > STEP_MAX_MS:
        raise SlowError(f"{what} took {took_ms:.0f} ms of CPU; a neighbour may wait {STEP_MAX_MS:g}")


def memory_bytes(*roots: object) -> int:
    """What these objects keep alive of their own: not classes, functions and modules."""
    seen: set[int] = set()
    waiting: list[object] = [*roots]
    total = 0
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _SHARED):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        waiting.extend(gc.get_referents(each))
    return total


_SHARED: Final = (
    type,
    type(sys),
    type(_why),
    type(len),
    type(Fuzzer.case),
    logging.Logger,
    asyncio.AbstractEventLoop,
)


@asynccontextmanager
async def _set_up(targets: Sequence[Target]) -> AsyncGenerator[None, None]:
    """The targets are open, and a case that hangs is ended."""

    def hangs(_signal: int, _frame: FrameType | None) -> None:
        raise HangsError(f"more than {CASE_MAX_S:g} s of CPU in one case")

    before = signal.signal(signal.SIGVTALRM, hangs)
    try:
        async with _all_open(list(targets)):
            yield
    finally:
        signal.signal(signal.SIGVTALRM, before)


@asynccontextmanager
async def _all_open(targets: list[Target]) -> AsyncIterator[None]:
    if not targets:
        yield
        return
    async with targets[0].opened(), _all_open(targets[1:]):
        yield
