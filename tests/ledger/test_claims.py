"""Claims: of all legs that want an epoch of a call one gets it, whatever happens to the answers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from app.ledger.claims import Ask, Claim, Claims, Held, Taken, Unknown
from app.ledger.local import LocalLedger
from app.ledger.purge import OneCall, purge
from app.ledger.queries import Queries
from app.storage.migrations import known_migrations
from app.storage.primary import Primary
from app.storage.primary_migrations import migrate_primary
from app.storage.statement import Row, Statement
from app.storage.store import PrimaryStore
from app.world.process import free_port
from tests.ledger.samples import NOW_MS
from tests.ledger.sqld import Sqld, expired_token, token
from tests.ledger.wire import Mode, Wire

pytestmark = pytest.mark.anyio

ROUNDS = 40


def claims_of(ask: Ask, machine: str = "m1") -> Claims:
    return Claims(ask, machine=machine, region="fra", clock_ms=lambda: NOW_MS)


def stored(sqld: Sqld) -> list[tuple[object, ...]]:
    return sqld.query("SELECT call_sid, epoch, leg, machine FROM claims ORDER BY call_sid, epoch")


@pytest.fixture
async def primary(sqld: Sqld) -> AsyncIterator[Primary]:
    """A migrated one."""
    async with Primary(sqld.url, token) as primary:
        await migrate_primary(PrimaryStore(primary), known_migrations())
        yield primary


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[LocalLedger]:
    ledger = await LocalLedger.open(tmp_path / "ledger.db")
    yield ledger
    await ledger.close()


async def test_first_claim_is_held_and_recorded(primary: Primary, sqld: Sqld) -> None:
    assert await claims_of(primary.query).claim("CA1", 0, "a") == Held()
    assert sqld.query("SELECT * FROM claims") == [("CA1", 0, "a", "m1", "fra", NOW_MS)]


async def test_same_leg_that_asks_again_holds_its_epoch(primary: Primary) -> None:
    claims = claims_of(primary.query)
    assert [await claims.claim("CA1", 1, "a") for _ in range(3)] == [Held()] * 3


async def test_claim_of_another_leg_is_taken(primary: Primary) -> None:
    await claims_of(primary.query).claim("CA1", 0, "a")
    assert await claims_of(primary.query, "m2").claim("CA1", 0, "b") == Taken(0, "a", "m1", "fra")


async def test_ticket_used_on_two_machines_lets_one_in(primary: Primary) -> None:
    """A leg is named after its ticket: both legs have the same name."""
    await claims_of(primary.query).claim("CA1", 0, "a")
    assert await claims_of(primary.query, "m2").claim("CA1", 0, "a") == Taken(0, "a", "m1", "fra")


async def test_claims_of_other_calls_do_not_matter(primary: Primary) -> None:
    claims = claims_of(primary.query)
    await claims.claim("CA1", 5, "a")
    assert await claims.claim("CA2", 0, "b") == Held()
    assert await claims.superseded("CA2", 0) is None


@pytest.mark.parametrize("claimed_before", [True, False])
async def test_epoch_is_taken_once_a_later_one_is(primary: Primary, *, claimed_before: bool) -> None:
    old = claims_of(primary.query)
    if claimed_before:
        assert await old.claim("CA1", 1, "a") == Held()
    assert await claims_of(primary.query, "m2").claim("CA1", 2, "b") == Held()
    assert await claims_of(primary.query, "m3").claim("CA1", 3, "c") == Held()
    assert await old.claim("CA1", 1, "a") == Taken(3, "c", "m3", "fra")


async def test_old_leg_learns_that_it_was_superseded(primary: Primary) -> None:
    old = claims_of(primary.query)
    await old.claim("CA1", 0, "a")
    assert await old.superseded("CA1", 0) is None
    await claims_of(primary.query, "m2").claim("CA1", 2, "b")
    assert await old.superseded("CA1", 0) == Taken(2, "b", "m2", "fra")
    assert await old.superseded("CA1", 2) is None


async def one_winner(first: Claims, second: Claims, call_sid: str) -> None:
    """Both claim at once: one holds the epoch, and the other one is told who."""
    outcomes: Sequence[Claim] = await asyncio.gather(first.claim(call_sid, 1, "a"), second.claim(call_sid, 1, "b"))
    assert list(outcomes) in (
        [Held(), Taken(1, "a", "m1", "fra")],
        [Taken(1, "b", "m2", "fra"), Held()],
    )


async def test_one_of_two_claims_at_once_is_held(primary: Primary, sqld: Sqld) -> None:
    async with Primary(sqld.url, token) as other:
        for n in range(ROUNDS):
            await one_winner(claims_of(primary.query), claims_of(other.query, "m2"), f"CA{n}")
    assert sqld.query("SELECT count(*) FROM claims") == [(ROUNDS,)]


async def test_one_of_many_claims_at_once_is_held(primary: Primary) -> None:
    machines = [claims_of(primary.query, f"m{n}") for n in range(20)]
    outcomes = await asyncio.gather(*(one.claim("CA1", 0, "a", timeout_s=10) for one in machines))
    assert outcomes.count(Held()) == 1
    assert len({outcome for outcome in outcomes if isinstance(outcome, Taken)}) == 1


async def test_claim_whose_answer_was_lost_is_held_later(primary: Primary, sqld: Sqld) -> None:
    with Wire(sqld.port) as wire:
        async with Primary(wire.url, token) as far:
            claims = claims_of(far.query)
            wire.drop_next_answer()
            assert isinstance(await claims.claim("CA1", 0, "a"), Unknown)
            assert stored(sqld) == [("CA1", 0, "a", "m1")]
            assert await claims.claim("CA1", 0, "a") == Held()
    assert await claims_of(primary.query, "m2").claim("CA1", 0, "b") == Taken(0, "a", "m1", "fra")


async def test_hung_primary_is_given_up_and_asked_again(primary: Primary, sqld: Sqld) -> None:
    claims = claims_of(primary.query)
    sqld.hang()
    no_answer = Unknown("the ledger did not answer within 0.1 s")
    assert await claims.claim("CA1", 0, "a", timeout_s=0.1) == no_answer
    assert await claims.superseded("CA1", 0, timeout_s=0.1) == no_answer
    sqld.wake()
    assert await claims.claim("CA1", 0, "a", timeout_s=10) == Held()
    assert await claims.superseded("CA1", 0, timeout_s=10) is None


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.RESET])
async def test_primary_that_cannot_be_reached_is_unknown(mode: Mode) -> None:
    with Wire(free_port()) as wire:
        wire.become(mode)
        async with Primary(wire.url, token) as away:
            assert isinstance(await claims_of(away.query).claim("CA1", 0, "a"), Unknown)
            assert isinstance(await claims_of(away.query).superseded("CA1", 0), Unknown)


async def test_refused_token_is_unknown(sqld: Sqld) -> None:
    async with Primary(sqld.url, expired_token) as primary:
        outcome = await claims_of(primary.query).claim("CA1", 0, "a")
    assert isinstance(outcome, Unknown)
    assert "refuses the token" in outcome.why


async def test_primary_without_the_table_is_unknown(sqld: Sqld) -> None:
    async with Primary(sqld.url, token) as primary:
        outcome = await claims_of(primary.query).claim("CA1", 0, "a")
    assert isinstance(outcome, Unknown)
    assert "no such table" in outcome.why


async def test_negative_epoch_is_refused(primary: Primary) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        await claims_of(primary.query).claim("CA1", -1, "a")


@pytest.mark.parametrize(
    "rows", [[()], [("x",)], [(1, "a", "m1", None, None)], [(1, "a", "m1", "fra", "{}")], [(1,), (2,)]]
)
async def test_answer_of_another_shape_is_unknown(rows: list[Row]) -> None:
    async def ask(_statement: Statement) -> list[Row]:
        return rows

    assert isinstance(await claims_of(ask).claim("CA1", 1, "a"), Unknown)
    assert isinstance(await claims_of(ask).superseded("CA1", 1), Unknown)


async def test_erased_call_keeps_no_claim(primary: Primary, sqld: Sqld) -> None:
    claims = claims_of(primary.query)
    await claims.claim("CA1", 0, "a")
    await claims.claim("CA2", 0, "a")
    await purge(PrimaryStore(primary), OneCall("CA1"), NOW_MS, dry_run=False)
    outcome = await claims.claim("CA1", 1, "b")
    assert isinstance(outcome, Unknown)
    assert "erased" in outcome.why
    assert stored(sqld) == [("CA2", 0, "a", "m1")]


# --- A zone without a primary -----------------------------------------------------------------


async def test_one_of_two_claims_in_a_file_is_held(ledger: LocalLedger) -> None:
    ask = ledger.ask
    for n in range(ROUNDS):
        await one_winner(claims_of(ask), claims_of(ask, "m2"), f"CA{n}")
    assert await claims_of(ask).superseded("CA1", 0) is not None


async def test_claim_in_a_file_survives_a_restart(tmp_path: Path) -> None:
    for leg, outcome in (("a", Held()), ("b", Taken(0, "a", "m1", "fra")), ("a", Held())):
        ledger = await LocalLedger.open(tmp_path / "ledger.db")
        assert await claims_of(ledger.ask).claim("CA1", 0, leg) == outcome
        await ledger.close()


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT max(i) FROM n"
"""Takes the thread of a file a good while."""


async def test_file_on_a_disk_that_hangs_is_unknown(ledger: LocalLedger) -> None:
    claims = claims_of(ledger.ask)
    held_up = asyncio.create_task(ledger.ask(Statement(ENDLESS, ())))
    await asyncio.sleep(0)  # it is in front of the claim now
    assert isinstance(await claims.claim("CA1", 0, "a", timeout_s=0.05), Unknown)
    assert await held_up
    assert await claims.claim("CA1", 0, "a", timeout_s=10) == Held()


async def test_file_that_is_closed_is_unknown(tmp_path: Path) -> None:
    ledger = await LocalLedger.open(tmp_path / "ledger.db")
    await ledger.close()
    assert isinstance(await claims_of(ledger.ask).claim("CA1", 0, "a"), Unknown)


async def test_claim_alone_is_no_call_to_operators(ledger: LocalLedger, tmp_path: Path) -> None:
    assert await claims_of(ledger.ask).claim("CA1", 0, "a") == Held()
    queries = Queries(tmp_path / "ledger.db")
    assert (await queries.recent_calls(10), await queries.call("CA1")) == ((), None)
    await queries.close()
