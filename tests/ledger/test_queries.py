"""What operators ask the ledger."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.call.records import Record
from app.ledger.local import LocalLedger, open_migrated, write
from app.ledger.queries import (
    BEFORE_ALL,
    END_OF_TIME_MS,
    RECENT_CALLS,
    TURNS_BETWEEN,
    CallHistory,
    CallSummary,
    CallTurn,
    Queries,
)
from app.storage.database import open_for_writing
from app.storage.errors import StorageError
from app.storage.migrations import SchemaTooOldError
from tests.ledger.samples import NOW_MS, call_event, ended, one_call, rows, started, turn

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def queries(path: Path) -> AsyncIterator[Queries]:
    queries = Queries(path)
    yield queries
    await queries.close()


def store(path: Path, *records: Record) -> None:
    database = open_migrated(path)
    assert write(database, list(records)) == []
    database.close()


async def sids(queries: Queries, limit: int = 10) -> list[str]:
    return [call.call_sid for call in await queries.recent_calls(limit)]


async def test_finished_call_is_summed_up(path: Path, queries: Queries) -> None:
    store(path, *one_call())
    assert await queries.recent_calls(10) == (
        CallSummary(
            call_sid="CA1",
            tenant="acme",
            zone="eu",
            region="fra",
            backend="openai-eu",
            caller="+491701234567",
            called="+4930555",
            started_ms=NOW_MS,
            ended_ms=NOW_MS + 60_000,
            end_reason="caller_hung_up",
            legs=1,
            turns=2,
            cost_microusd=None,
        ),
    )


async def test_recent_calls_are_newest_first_up_to_the_limit(path: Path, queries: Queries) -> None:
    store(path, *(started(f"CA{n}", started_ms=NOW_MS + n) for n in (2, 0, 3, 1)))
    assert await sids(queries, limit=3) == ["CA3", "CA2", "CA1"]


async def test_resumed_call_is_one_call_that_began_with_its_first_leg(path: Path, queries: Queries) -> None:
    store(path, started(leg="b", started_ms=NOW_MS + 9), started(leg="a"), ended(leg="a", ended_ms=NOW_MS + 8))
    [call] = await queries.recent_calls(10)
    assert (call.started_ms, call.ended_ms, call.legs) == (NOW_MS, None, 2)


async def test_legs_that_began_in_the_same_millisecond_are_one_call(path: Path, queries: Queries) -> None:
    store(path, started(leg="a"), started(leg="b"), ended(leg="b"))
    [call] = await queries.recent_calls(10)
    assert (call.legs, call.ended_ms) == (2, NOW_MS + 60_000)


async def test_recent_calls_are_found_by_index_without_sorting(path: Path, queries: Queries) -> None:
    store(path)
    plan = "\n".join(str(row[-1]) for row in rows(path, "EXPLAIN QUERY PLAN " + RECENT_CALLS, (0, 0, 10)))
    assert "SEARCH first USING INDEX legs_by_start" in plan
    assert "SCAN earlier" not in plan
    assert "TEMP B-TREE FOR ORDER BY" not in plan.partition("CORRELATED")[0]


async def test_calls_before_a_given_instant_are_left_out(path: Path, queries: Queries) -> None:
    store(path, started("CA1", started_ms=NOW_MS), started("CA2", started_ms=NOW_MS - 1))
    assert [call.call_sid for call in await queries.recent_calls(10, NOW_MS)] == ["CA1"]


@pytest.mark.parametrize(
    ("costs", "sum_"),
    [((), 0), ((150, 18_120), 18_270), ((150, None), None)],
    ids=["none", "known", "one unknown"],
)
async def test_call_costs_what_its_turns_do_if_that_is_known(
    path: Path, queries: Queries, costs: tuple[int | None, ...], sum_: int | None
) -> None:
    store(path, started(), *(replace(turn(seq), cost_microusd=cost) for seq, cost in enumerate(costs)))
    [call] = await queries.recent_calls(10)
    assert call.cost_microusd == sum_


async def test_turns_come_oldest_first_with_whose_they_are_and_page_by_page(path: Path, queries: Queries) -> None:
    store(path, started(), started("CA2"), *(turn(seq, sid) for sid in ("CA2", "CA1") for seq in (1, 0)))
    first = await queries.turns_between(NOW_MS, NOW_MS + 2, 3)
    rest = await queries.turns_between(NOW_MS, NOW_MS + 2, 3, first[-1].key)
    assert [(each.turn.call_sid, each.turn.seq) for each in (*first, *rest)] == [
        ("CA1", 0),
        ("CA2", 0),
        ("CA1", 1),
        ("CA2", 1),
    ]
    assert first[0] == CallTurn("acme", "eu", "fra", "+491701234567", "+4930555", turn(0))


async def test_turns_of_a_span_begin_in_it(path: Path, queries: Queries) -> None:
    store(path, *(turn(seq) for seq in range(4)))
    found = await queries.turns_between(NOW_MS + 1, NOW_MS + 3, 10)
    assert [each.turn.seq for each in found] == [1, 2]


async def test_turn_whose_leg_has_not_come_is_nobodys(path: Path, queries: Queries) -> None:
    store(path, turn(0))
    assert await queries.turns_between(0, END_OF_TIME_MS, 10) == (CallTurn(None, None, None, None, None, turn(0)),)


async def test_page_of_turns_is_found_by_index_without_sorting(path: Path, queries: Queries) -> None:
    store(path)
    values = (0, END_OF_TIME_MS, *BEFORE_ALL, 10)
    plan = "\n".join(str(row[-1]) for row in rows(path, "EXPLAIN QUERY PLAN " + TURNS_BETWEEN, values))
    assert "SEARCH turns USING INDEX turns_by_start" in plan
    assert "TEMP B-TREE" not in plan


async def test_call_comes_with_everything_in_order(path: Path, queries: Queries) -> None:
    store(path, ended(), call_event(1), turn(1), turn(0), call_event(0), started(), started("CA2"))
    assert await queries.call("CA1") == CallHistory(
        "CA1", (started(),), (turn(0), turn(1)), (call_event(0), call_event(1)), (ended(),)
    )


async def test_unknown_call_is_none(path: Path, queries: Queries) -> None:
    store(path)
    assert await queries.call("CA404") is None


async def test_turn_whose_leg_was_not_stored_is_shown(path: Path, queries: Queries) -> None:
    store(path, turn(0))
    assert await queries.call("CA1") == CallHistory("CA1", (), (turn(0),), (), ())


@pytest.mark.parametrize("limit", [-1, 0, 1_001])
async def test_limit_out_of_range_is_refused(queries: Queries, limit: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 1000, and is {limit}"):
        await queries.recent_calls(limit)


async def test_question_before_there_is_a_ledger_fails_and_the_next_is_answered(
    path: Path, queries: Queries
) -> None:
    with pytest.raises(StorageError, match="there is no ledger at"):
        await queries.recent_calls(1)
    store(path, started())
    assert await sids(queries) == ["CA1"]


async def test_file_without_the_schema_is_told(path: Path, queries: Queries) -> None:
    open_for_writing(path).close()
    with pytest.raises(SchemaTooOldError, match=r"lacks 0001_calls_turns_events\.sql"):
        await queries.recent_calls(1)


async def test_question_sees_what_the_server_has_written_by_then(path: Path, queries: Queries) -> None:
    ledger = await LocalLedger.open(path)
    ledger.remember(started("CA1"))
    assert await ledger.flush(10)
    assert await sids(queries) == ["CA1"]
    ledger.remember(started("CA2", started_ms=NOW_MS + 1))
    assert await ledger.flush(10)
    assert await sids(queries) == ["CA2", "CA1"]
    await ledger.close()
