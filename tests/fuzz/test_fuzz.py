"""A slice of what scripts/fuzz does, and inputs that have broken something."""

import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from app.call.events import Side
from tests.fuzz.calls import Begin, Calls, Frame, Happens
from tests.fuzz.database import Answer, Database
from tests.fuzz.engine import Fuzzer, Target, drawn, memory_bytes, timed
from tests.fuzz.webhooks import Upgrades, Webhooks

pytestmark = pytest.mark.anyio

INPUTS = 10_000

TARGETS: list[type[Any]] = [Calls, Webhooks, Upgrades, Database]


@pytest.mark.long
async def test_ten_thousand_wrong_inputs_break_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # or a failure would come with ten thousand lines
    targets: list[Target] = [make() for make in TARGETS]
    outcome = await Fuzzer(targets, seed=20_261_121).inputs(INPUTS)
    assert [failure.told(20_261_121) for failure in outcome.failures] == []
    assert outcome.inputs.total() >= INPUTS
    assert set(outcome.cases) == {target.name for target in targets}


@pytest.mark.parametrize("make", TARGETS)
def test_seed_gives_the_same_case_again(make: type[Any]) -> None:
    cases = [drawn(make(), 7, number) for number in range(20)]
    assert cases == [drawn(make(), 7, number) for number in range(20)]
    assert cases != [drawn(make(), 8, number) for number in range(20)]


# --- What has broken ---------------------------------------------------------------------------------


@pytest.mark.parametrize("charset", ["hex", "rot13", "undefined", "no-such"])
async def test_primary_that_names_a_strange_charset_in_a_refusal_is_an_outcome(charset: str) -> None:
    header = (b"content-type", f"text/plain; charset={charset}".encode())
    database = Database()
    async with database.opened():
        await database.run([Answer(b"no", 502, (header,))])


@pytest.mark.parametrize(
    ("body", "batch"),
    [
        (b'{"results":[{"type":"error","error":null}]}', True),
        (b'{"results":[{"type":"error","error":"no"}]}', False),
        (b'{"results":[{"type":"ok","response":{"result":{"rows":[["x"]]}}}]}', False),
    ],
)
async def test_primary_that_answers_in_a_strange_shape_is_an_outcome(body: bytes, batch: bool) -> None:
    database = Database()
    async with database.opened():
        await database.run([Answer(body, batch=batch)])


# --- The fuzzer itself -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number:
    value: int


class Faulty:
    """Fails when it is given a 3 and later a 5; and keeps the processor busy for a 7."""

    name = "faulty"
    share = 1

    def draw(self, rng: random.Random) -> Sequence[Number]:
        return [Number(rng.randrange(7)) for _ in range(40)]

    async def run(self, case: Sequence[Number]) -> None:
        met = False
        for number in case:
            met = met or number.value == 3
            if met and number.value == 5:
                raise ValueError("five after three")
            if number.value == 7:
                with timed("a seven"):
                    sum(range(20_000_000))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        yield


async def test_failing_case_is_found_and_made_as_small_as_it_can_be() -> None:
    outcome = await Fuzzer([Faulty()], seed=1).inputs(1_000)
    (failure,) = outcome.failures
    assert failure.case == (Number(3), Number(5))
    assert "--seed 1 --only faulty --case" in failure.told(1)
    assert "            Number(value=3),\n" in failure.told(1)


async def test_input_that_keeps_the_processor_busy_is_a_failure() -> None:
    class Slow(Faulty):
        def draw(self, rng: random.Random) -> Sequence[Number]:
            return [Number(1), Number(7)]

    outcome = await Fuzzer([Slow()], seed=1).case(Slow(), 0)
    assert outcome.failures[0].case == (Number(7),)


def test_memory_counts_what_is_kept() -> None:
    assert 1_000_000 < memory_bytes({"kept": [b"x" * 1_000_000]}) < 1_010_000


async def test_call_that_breaks_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's own guard ends the call in order; that it had to is what counts."""
    calls = Calls()
    monkeypatch.setattr("app.wire.twilio.parse", lambda _message: 1 // 0)
    async with calls.opened():
        with pytest.raises(Exception, match="call broke"):
            await calls.run([Begin(), Happens("up"), Frame(Side.PHONE, b"{}")])
