"""The history of a call that is to be resumed: from whatever answers in time, and never another caller's."""

import json
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.call.ending import EndReason
from app.call.limits import TRANSCRIPT_MAX_CHARS
from app.call.records import CallEnded, CallEvent, CallStarted, Record, Speaker, Turn
from app.ledger import history as module
from app.ledger.history import (
    CALL_MAX_MS,
    CLOCK_SKEW_MS,
    EVENTS_MAX,
    LATELY_MS,
    LEGS_MAX,
    TURNS_MAX,
    Answer,
    Contradiction,
    HeardTurn,
    History,
    HistoryReader,
    ImplausibleHistoryError,
    PastEvent,
    Source,
)
from app.ledger.local import open_migrated, write
from app.ledger.records import insertion
from app.ledger.spool import Spool, open_spool
from app.ledger.turso import TursoLedger
from app.ledger.zones import Zone
from app.storage.database import Database
from app.storage.migrations import known_migrations
from app.storage.primary import Primary, Stored
from app.storage.primary_migrations import migrate_primary
from app.storage.statement import Row, Statement
from app.storage.store import PrimaryStore
from app.world.process import free_port
from tests.ledger.nobody import nobody
from tests.ledger.replicas import Beats, WatchedReplica, migrated
from tests.ledger.samples import NOW_MS, call_event, ended, started, turn
from tests.ledger.sqld import Sqld, expired_token, token
from tests.ledger.wire import Mode, Wire

pytestmark = pytest.mark.anyio

ASKED_MS = NOW_MS + 30_000
FLUSH_S = 10.0


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    """Without a primary, for those that bring one of their own."""
    (tmp_path / "data" / "eu").mkdir(parents=True)
    return Zone("eu", tmp_path / "data", None, lambda: "")


@pytest.fixture
async def primary(sqld: Sqld) -> AsyncIterator[Primary]:
    """A migrated one."""
    async with Primary(sqld.url, token) as primary:
        await migrate_primary(PrimaryStore(primary), known_migrations())
        yield primary


async def put(primary: Primary, *records: Record) -> None:
    assert await primary.batch([insertion(record) for record in records]) == Stored()


def store(path: Path, *records: Record) -> None:
    """Into a file, which may stand for a replica: it has the same format."""
    with closing(open_migrated(path)) as database:
        assert write(database, list(records)) == []


async def spool_up(zone: Zone, *records: Record) -> None:
    spool = await Spool.open(zone.spool)
    for record in records:
        spool.put(record)
    assert await spool.flush(FLUSH_S)
    await spool.close()


async def read(reader: HistoryReader, *, now_ms: int = ASKED_MS, **more: Any) -> Answer:
    try:
        return await reader.read("CA1", "acme", now_ms, **more)
    finally:
        await reader.close()


async def history_of(zone: Zone, *records: Record, **more: Any) -> History:
    """What a local file with these records says."""
    store(zone.local, *records)
    answer = await read(HistoryReader(zone, None), **more)
    assert (answer.source, answer.troubles) == (Source.LOCAL_FILE, ())
    assert answer.history is not None
    return answer.history


def said(
    seq: int, text: str, *, leg: str = "0", at_ms: int | None = None, speaker: Speaker = Speaker.CALLER
) -> Turn:
    at_ms = NOW_MS + 1_000 * seq if at_ms is None else at_ms
    return replace(turn(seq, leg=leg, said=text), speaker=speaker, started_ms=at_ms, ended_ms=at_ms + 900)


def ending(reason: str, leg: str = "0") -> CallEnded:
    return CallEnded("CA1", leg, NOW_MS + 20_000, reason, 2)


def words(history: History) -> list[str]:
    return [turn.text for turn in history.turns]


ANSWERED: list[Record] = [
    started(),
    said(0, "Guten Tag", speaker=Speaker.AGENT),
    said(1, "Wo bleibt mein Paket?"),
    replace(
        said(2, "Ich sehe nach, einen Moment", speaker=Speaker.AGENT),
        heard="Ich sehe nach,",
        interrupted=True,
    ),
    replace(said(3, "x"), said=None, heard=None),
    CallEvent("CA1", "0", 0, NOW_MS, "handled", "machine=fra"),
    CallEvent("CA1", "0", 1, NOW_MS, "backend", "first"),
    CallEvent("CA1", "0", 2, NOW_MS + 2_500, "tool", "find_parcel"),
]
"""A call that has no ending, and a turn without a transcript."""

HISTORY = History(
    call_sid="CA1",
    tenant="acme",
    zone="eu",
    caller="+491701234567",
    called="+4930555",
    started_ms=NOW_MS,
    unfinished=True,
    end_reason=None,
    epoch=None,
    legs=1,
    had_stream=True,
    legs_lately=1,
    turns=(
        HeardTurn("0", 0, Speaker.AGENT, "Guten Tag", NOW_MS, NOW_MS + 900, interrupted=False),
        HeardTurn(
            "0", 1, Speaker.CALLER, "Wo bleibt mein Paket?", NOW_MS + 1_000, NOW_MS + 1_900, interrupted=False
        ),
        HeardTurn("0", 2, Speaker.AGENT, "Ich sehe nach,", NOW_MS + 2_000, NOW_MS + 2_900, interrupted=True),
    ),
    turns_left_out=False,
    events=(PastEvent("0", 2, NOW_MS + 2_500, "tool", "find_parcel"),),
)


# --- Where it comes from ----------------------------------------------------------------------


async def test_call_is_read_from_the_primary(zone: Zone, primary: Primary) -> None:
    await put(primary, *ANSWERED, started("CA2"), turn(0, "CA2"))
    assert await read(HistoryReader(zone, primary.query)) == Answer(HISTORY, Source.PRIMARY, 0, ())


async def test_primary_is_asked_once(zone: Zone, primary: Primary) -> None:
    asked = []

    async def ask(statement: Statement) -> list[Row]:
        asked.append(statement)
        return await primary.query(statement)

    await put(primary, *ANSWERED)
    await read(HistoryReader(zone, ask))
    assert len(asked) == 1


async def test_call_is_read_from_the_local_file(zone: Zone) -> None:
    assert await history_of(zone, *ANSWERED) == HISTORY


async def test_unknown_call_has_no_history(zone: Zone, primary: Primary) -> None:
    await put(primary, started("CA2"))
    assert await read(HistoryReader(zone, primary.query)) == Answer(None, Source.PRIMARY, 0, ())


async def test_hung_primary_is_given_up_for_the_replica(zone: Zone, primary: Primary, sqld: Sqld) -> None:
    store(zone.replica, *ANSWERED)
    sqld.hang()
    answer = await read(HistoryReader(zone, primary.query), timeout_s=0.1)
    why = "the primary did not answer within 0.1 s"
    assert answer == Answer(HISTORY, Source.REPLICA, 0, (why,))


async def test_refused_token_leads_to_the_replica(zone: Zone, sqld: Sqld) -> None:
    store(zone.replica, *ANSWERED)
    async with Primary(sqld.url, expired_token) as primary:
        answer = await read(HistoryReader(zone, primary.query))
    assert (answer.history, answer.source) == (HISTORY, Source.REPLICA)
    assert "refuses the token" in answer.troubles[0]


async def test_replica_that_a_child_keeps_answers_for_its_primary(zone: Zone, sqld: Sqld, tmp_path: Path) -> None:
    migrated(sqld, tmp_path)
    async with Primary(sqld.url, token) as primary:
        await put(primary, *ANSWERED)
        replica = WatchedReplica(zone.replica, sqld.url, token, Beats(sqld))
        replica.start()
        await replica.in_step()
        sqld.hang()
        answer = await read(HistoryReader(zone, primary.query), timeout_s=0.1)
        sqld.wake()
        await replica.stop()
    assert (answer.history, answer.source) == (HISTORY, Source.REPLICA)


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.RESET, Mode.HANG])
async def test_without_any_database_nothing_is_known(zone: Zone, mode: Mode) -> None:
    with Wire(free_port()) as wire:
        wire.become(mode)
        async with Primary(wire.url, token) as away:
            answer = await read(HistoryReader(zone, away.query), timeout_s=0.2)
    assert (answer.history, answer.source, len(answer.troubles)) == (None, Source.NONE, 2)


async def test_local_file_that_is_missing_is_named(zone: Zone) -> None:
    answer = await read(HistoryReader(zone, None))
    assert (answer.history, answer.source) == (None, Source.NONE)
    assert str(zone.local) in answer.troubles[0]


async def no_primary(_statement: Statement) -> list[Row]:
    raise TimeoutError


async def test_damaged_replica_is_reported_and_not_believed(zone: Zone) -> None:
    zone.replica.write_bytes(b"no database at all" * 1_000)
    damaged: list[str] = []
    answer = await read(HistoryReader(zone, no_primary, damaged=damaged.append))
    assert (answer.history, answer.source) == (None, Source.NONE)
    assert damaged == [answer.troubles[1]]


async def test_replica_with_broken_pages_is_reported(zone: Zone) -> None:
    store(zone.replica, *ANSWERED)
    whole = zone.replica.read_bytes()
    zone.replica.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    damaged: list[str] = []
    answer = await read(HistoryReader(zone, no_primary, damaged=damaged.append))
    assert (answer.history, len(damaged)) == (None, 1)


async def test_locked_replica_is_not_waited_for(zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_S", 0.05)
    store(zone.replica, *ANSWERED)
    with closing(Database(zone.replica)) as other:
        other.query("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        answer = await read(HistoryReader(zone, no_primary))
    assert (answer.source, answer.troubles[1]) == (Source.NONE, "the disk has not answered for 0.05 s")


# --- This machine's own records ---------------------------------------------------------------


async def test_spooled_records_are_merged_with_the_primarys(zone: Zone, primary: Primary) -> None:
    await put(primary, *ANSWERED[:3])
    await spool_up(zone, *ANSWERED[2:], started("CA2"), turn(0, "CA2"))
    answer = await read(HistoryReader(zone, primary.query))
    assert answer == Answer(HISTORY, Source.PRIMARY, 6, ())


async def test_spool_alone_knows_its_call(zone: Zone) -> None:
    await spool_up(zone, *ANSWERED)
    answer = await read(HistoryReader(zone, no_primary))
    assert (answer.history, answer.source, answer.spooled) == (HISTORY, Source.NONE, 8)


async def test_records_in_memory_are_flushed_first(zone: Zone) -> None:
    spool = await Spool.open(zone.spool)
    for record in ANSWERED:
        spool.put(record)
    answer = await read(HistoryReader(zone, no_primary, flush=spool.flush))
    await spool.close()
    assert answer.history == HISTORY


async def test_flush_that_takes_too_long_is_told(zone: Zone) -> None:
    async def flush(_timeout_s: float) -> bool:
        return False

    store(zone.local, *ANSWERED)
    answer = await read(HistoryReader(zone, None, flush=flush))
    assert answer == Answer(
        HISTORY, Source.LOCAL_FILE, 0, ("this machine's newest records are not on its disk yet",)
    )


async def test_record_shipped_while_the_primary_answers_is_seen(zone: Zone, primary: Primary) -> None:
    await put(primary, *ANSWERED[:2])
    await spool_up(zone, *ANSWERED[2:])

    async def ask(statement: Statement) -> list[Row]:
        rows = await primary.query(statement)
        await put(primary, *ANSWERED[2:])
        with closing(open_spool(zone.spool)) as spool:
            spool.execute("DELETE FROM spool")
        return rows

    assert (await read(HistoryReader(zone, ask))).history == HISTORY


async def test_ledger_of_a_running_server_is_read(zone: Zone, sqld: Sqld, primary: Primary) -> None:
    ledger = await TursoLedger.open(replace(zone, url=sqld.url, token=token), machine="m1", region="fra")
    for record in ANSWERED:
        ledger.remember(record)
    answer = await read(HistoryReader(zone, primary.query, flush=ledger.flush))
    await ledger.close()
    assert answer.history == HISTORY


async def test_damaged_spool_does_not_hide_the_primary(zone: Zone, primary: Primary) -> None:
    zone.spool.write_bytes(b"no database at all" * 1_000)
    await put(primary, *ANSWERED)
    damaged: list[str] = []
    answer = await read(HistoryReader(zone, primary.query, damaged=damaged.append))
    assert (answer.history, answer.source, len(answer.troubles), damaged) == (HISTORY, Source.PRIMARY, 1, [])


async def test_directory_that_may_not_be_read_is_named(zone: Zone) -> None:
    zone.directory.chmod(0)
    with nobody():
        answer = await read(HistoryReader(zone, no_primary))
    zone.directory.chmod(0o700)
    assert (answer.history, answer.source) == (None, Source.NONE)
    assert answer.troubles[0] == f"{zone.spool}: Permission denied"


async def test_spooled_turns_without_a_leg_are_not_used(zone: Zone) -> None:
    await spool_up(zone, turn(0))
    answer = await read(HistoryReader(zone, no_primary))
    assert answer.history is None
    assert answer.troubles[-1] == "there are records of the call, and none says whose it is"


async def test_spooled_record_of_a_newer_program_is_passed_over(zone: Zone) -> None:
    await spool_up(zone, *ANSWERED)
    with closing(open_spool(zone.spool)) as spool:
        spool.execute("UPDATE spool SET kind = 'Consent' WHERE kind = 'Happening'")
    assert (await read(HistoryReader(zone, no_primary))).history == replace(HISTORY, events=())


# --- Whether the call goes on -----------------------------------------------------------------


FINISHED = {
    EndReason.CALLER_HUNG_UP,
    EndReason.AGENT_HUNG_UP,
    EndReason.IDLE,
    EndReason.MAX_LENGTH,
    EndReason.WRONG_CALL,
    EndReason.UNKNOWN_NUMBER,
    EndReason.TENANT_FULL,
    EndReason.NOT_TAKEN,
}


@pytest.mark.parametrize("reason", [*EndReason, "of_a_newer_program"])
async def test_ending_says_whether_the_call_goes_on(zone: Zone, reason: str) -> None:
    history = await history_of(zone, started(), ending(reason))
    assert (history.unfinished, history.end_reason) == (reason not in FINISHED, str(reason))


async def test_newest_leg_says_whether_the_call_goes_on(zone: Zone) -> None:
    resumed = started(leg="b", started_ms=NOW_MS + 21_000)
    assert (await history_of(zone, started(leg="a"), ending("caller_hung_up", "a"), resumed)).unfinished
    store(zone.local, ending("agent_hung_up", "b"))
    assert not (await history_of(zone)).unfinished


async def test_old_leg_without_an_ending_does_not_keep_a_call_alive(zone: Zone) -> None:
    resumed = started(leg="b", started_ms=NOW_MS + 21_000)
    assert not (await history_of(zone, started(leg="a"), resumed, ending("idle", "b"))).unfinished


async def test_refused_stream_of_a_resume_does_not_end_its_call(zone: Zone) -> None:
    refused = replace(started(leg="b.0", started_ms=NOW_MS + 21_000), stream_sid="")
    history = await history_of(zone, started(leg="a"), refused, ending("not_taken", "b.0"))
    assert (history.unfinished, history.end_reason, history.legs) == (True, None, 1)


@pytest.mark.parametrize(
    ("stored", "spooled"), [("machine_died", "caller_hung_up"), ("caller_hung_up", "machine_died")]
)
async def test_what_a_call_said_of_its_end_stands_above_a_restart(zone: Zone, stored: str, spooled: str) -> None:
    store(zone.local, started(), ending(stored))
    await spool_up(zone, ending(spooled))
    answer = await read(HistoryReader(zone, None))
    assert answer.history is not None
    assert (answer.history.unfinished, answer.history.end_reason) == (False, "caller_hung_up")


# --- Several legs -----------------------------------------------------------------------------


async def test_call_begins_with_its_first_leg(zone: Zone) -> None:
    legs = [started(leg=f"{n}", started_ms=NOW_MS + n) for n in (2, 0, 1)]
    history = await history_of(zone, *legs)
    assert (history.started_ms, history.legs) == (NOW_MS, 3)


async def test_attempts_of_the_last_minute_are_counted(zone: Zone) -> None:
    def leg(name: str, ago_ms: int, stream_sid: str = "MZ1") -> CallStarted:
        return replace(started(leg=name, started_ms=ASKED_MS - ago_ms), stream_sid=stream_sid)

    history = await history_of(
        zone,
        leg("a", LATELY_MS),
        leg("b", LATELY_MS - 1),
        leg("c.0", 1_000, stream_sid=""),
        leg("c", 900),
        leg("d.0", 500, stream_sid=""),
    )
    assert (history.legs, history.legs_lately) == (3, 3)


async def test_turns_of_several_legs_are_in_the_order_of_time(zone: Zone) -> None:
    resumed = started(leg="a", started_ms=NOW_MS + 5_000)
    turns = [
        said(0, "one", leg="z", at_ms=NOW_MS),
        said(1, "three", leg="z", at_ms=NOW_MS + 6_000),
        said(0, "two", leg="a", at_ms=NOW_MS + 5_500),
        said(1, "four", leg="a", at_ms=NOW_MS + 7_000),
    ]
    history = await history_of(zone, resumed, started(leg="z"), *reversed(turns))
    assert words(history) == ["one", "two", "three", "four"]


async def test_turns_of_one_millisecond_keep_their_numbers_order(zone: Zone) -> None:
    turns = [said(seq, f"{seq}", at_ms=NOW_MS) for seq in range(12)]
    assert words(await history_of(zone, started(), *reversed(turns))) == [f"{seq}" for seq in range(12)]


async def test_highest_claimed_epoch_is_told(zone: Zone) -> None:
    store(zone.local, started())
    with closing(Database(zone.local)) as database:
        for epoch in (0, 2, 1):
            database.execute("INSERT INTO claims VALUES ('CA1', ?, 'a', 'm1', 'fra', 0)", (epoch,))
    assert (await history_of(zone)).epoch == 2


# --- Bounds -----------------------------------------------------------------------------------


async def test_thousands_of_turns_are_cut_to_the_newest(zone: Zone, primary: Primary) -> None:
    legs = [started(leg=f"{n}", started_ms=NOW_MS + n) for n in range(3)]
    turns = [said(seq, f"{seq:05}{'x' * 95}", leg=f"{seq % 3}", at_ms=NOW_MS + seq) for seq in range(6_000)]
    await put(primary, *legs, *turns)
    answer = await read(HistoryReader(zone, primary.query), chars_max=20_050)
    assert answer.history is not None
    assert [turn.seq for turn in answer.history.turns] == list(range(5_800, 6_000))
    assert answer.history.turns_left_out


@pytest.mark.parametrize(
    ("chars_max", "expected"),
    [(9, ["aaa", "bbb", "ccc"]), (8, ["bbb", "ccc"]), (6, ["bbb", "ccc"]), (3, ["ccc"]), (2, ["cc"])],
)
async def test_newest_turns_that_fit_are_kept(zone: Zone, chars_max: int, expected: list[str]) -> None:
    turns = [said(seq, text) for seq, text in enumerate(["aaa", "bbb", "ccc"])]
    history = await history_of(zone, started(), *turns, chars_max=chars_max)
    assert (words(history), history.turns_left_out) == (expected, chars_max < 9)


async def test_end_of_a_long_newest_turn_is_kept(zone: Zone) -> None:
    history = await history_of(zone, started(), said(0, "one two"), said(1, "three four"), chars_max=4)
    assert (words(history), history.turns_left_out) == (["four"], True)


async def test_spooled_turns_push_out_the_oldest(zone: Zone) -> None:
    await spool_up(zone, said(2, "ccc"))
    store(zone.local, started(), said(0, "aaa"), said(1, "bbb"))
    answer = await read(HistoryReader(zone, None), chars_max=6)
    assert answer.history is not None
    assert (words(answer.history), answer.history.turns_left_out) == (["bbb", "ccc"], True)


async def test_many_short_turns_are_cut_to_a_number(zone: Zone) -> None:
    turns = [said(seq, "x", at_ms=NOW_MS + seq) for seq in range(TURNS_MAX + 1)]
    history = await history_of(zone, started(), *turns)
    assert (len(history.turns), history.turns[0].seq, history.turns_left_out) == (TURNS_MAX, 1, True)


async def test_newest_events_are_kept(zone: Zone) -> None:
    await spool_up(zone, *(call_event(seq) for seq in range(EVENTS_MAX, EVENTS_MAX + 5)))
    store(zone.local, started(), *(call_event(seq) for seq in range(EVENTS_MAX + 2)))
    answer = await read(HistoryReader(zone, None))
    assert answer.history is not None
    assert [event.seq for event in answer.history.events] == list(range(5, EVENTS_MAX + 5))


async def test_events_of_routing_push_out_no_other(zone: Zone) -> None:
    routing = [CallEvent("CA1", "0", seq, NOW_MS + seq, "backend", "") for seq in range(1, EVENTS_MAX + 2)]
    assert len((await history_of(zone, started(), call_event(0), *routing)).events) == 1


async def test_turn_of_the_longest_length_is_no_nonsense(zone: Zone) -> None:
    text = "x" * TRANSCRIPT_MAX_CHARS
    assert words(await history_of(zone, started(), said(0, text))) == [text]


async def test_odd_characters_in_a_spooled_turn_are_replaced(zone: Zone) -> None:
    await spool_up(zone, started(), said(0, "a\0b"))
    answer = await read(HistoryReader(zone, no_primary))
    assert answer.history is not None
    assert words(answer.history) == ["a\N{REPLACEMENT CHARACTER}b"]


# --- Nonsense ---------------------------------------------------------------------------------


CONTRADICTIONS: list[tuple[Contradiction, list[Record]]] = [
    (Contradiction.OTHER_TENANT, [replace(started(), tenant="globex")]),
    (Contradiction.OTHER_TENANT, [replace(started(), tenant="")]),
    (Contradiction.OTHER_TENANT, [started(), replace(started(leg="b"), tenant="globex")]),
    (Contradiction.OTHER_ZONE, [replace(started(), zone="global")]),
    (Contradiction.TWO_CALLERS, [started(), started(leg="b", caller="+15550100")]),
    (Contradiction.TWO_CALLERS, [started(), replace(started(leg="b"), called="+15550100")]),
    (Contradiction.IMPOSSIBLE_TIME, [started(started_ms=ASKED_MS + CLOCK_SKEW_MS + 1)]),
    (Contradiction.IMPOSSIBLE_TIME, [started(started_ms=ASKED_MS - CALL_MAX_MS - 1)]),
    (Contradiction.IMPOSSIBLE_TIME, [started(), said(0, "x", at_ms=ASKED_MS + CLOCK_SKEW_MS + 1)]),
    (Contradiction.IMPOSSIBLE_TIME, [started(), said(0, "x", at_ms=NOW_MS - CLOCK_SKEW_MS - 1)]),
    (Contradiction.IMPOSSIBLE_TIME, [started(), replace(call_event(0), at_ms=2**62)]),
    (Contradiction.IMPOSSIBLE_TIME, [started(), ended(ended_ms=-1)]),
    (Contradiction.ABSURD_SIZE, [started(), said(0, "x" * (TRANSCRIPT_MAX_CHARS + 1))]),
    (Contradiction.ABSURD_SIZE, [started(), started(leg="b" * 1_000)]),
    (Contradiction.ABSURD_SIZE, [started(leg=f"{n}") for n in range(LEGS_MAX + 1)]),
]


@pytest.mark.parametrize(("contradiction", "records"), CONTRADICTIONS)
async def test_contradiction_is_refused(zone: Zone, contradiction: Contradiction, records: list[Record]) -> None:
    with pytest.raises(ImplausibleHistoryError) as refused:
        await history_of(zone, *records)
    assert refused.value.contradiction is contradiction
    assert "+" not in str(refused.value)


async def test_spool_that_contradicts_the_primary_is_refused(zone: Zone, primary: Primary) -> None:
    await put(primary, started())
    await spool_up(zone, replace(started(), tenant="globex"))
    with pytest.raises(ImplausibleHistoryError, match="other tenant"):
        await read(HistoryReader(zone, primary.query))


async def test_missing_number_is_no_contradiction(zone: Zone) -> None:
    history = await history_of(zone, started(leg="a", caller=""), started(leg="b"))
    assert history.caller == "+491701234567"


async def test_refusal_before_the_tenant_was_known_is_no_contradiction(zone: Zone) -> None:
    unknown = replace(started(leg="b.0"), tenant="", stream_sid="", caller="")
    assert (await history_of(zone, started(leg="a"), unknown)).tenant == "acme"


def leg_object(**more: object) -> str:
    fields = {name: getattr(started(), name) for name in ("call_sid", "leg", "tenant", "zone", "stream_sid")}
    fields |= {"caller": "+1", "called": "+2", "started_ms": NOW_MS}
    return json.dumps([fields | more])


async def test_object_of_a_leg_is_taken(zone: Zone) -> None:
    """What the following break."""
    assert (await asked(zone, (leg_object(), "[]", "[]", "[]", None))).history is not None


async def asked(zone: Zone, *rows: Row) -> Answer:
    async def ask(_statement: Statement) -> list[Row]:
        return list(rows)

    return await read(HistoryReader(zone, ask))


@pytest.mark.parametrize(
    "row",
    [
        (),
        ("[]",),
        ("[]", "[]", "[]", None, None),
        ("[]", "[]", "[]", "[]", "1"),
        ("{", "[]", "[]", "[]", None),
        ("{}", "[]", "[]", "[]", None),
        ("[1]", "[]", "[]", "[]", None),
        ("[{}]", "[]", "[]", "[]", None),
        (leg_object(started_ms="yesterday"), "[]", "[]", "[]", None),
        (leg_object(tenant=None), "[]", "[]", "[]", None),
        (leg_object(), '[{"call_sid":"CA1","heard":"x","speaker":"nobody","leg":"0"}]', "[]", "[]", None),
    ],
)
async def test_answer_of_another_shape_is_refused(zone: Zone, row: Row) -> None:
    with pytest.raises(ImplausibleHistoryError) as refused:
        await asked(zone, row)
    assert refused.value.contradiction is Contradiction.MALFORMED


async def test_record_of_another_call_is_refused(zone: Zone) -> None:
    with pytest.raises(ImplausibleHistoryError) as refused:
        await asked(zone, (leg_object(call_sid="CA2"), "[]", "[]", "[]", None))
    assert refused.value.contradiction is Contradiction.OTHER_CALL


@pytest.mark.parametrize(
    ("break_it", "contradiction"),
    [
        ("UPDATE spool SET content = '{'", Contradiction.MALFORMED),
        ("UPDATE spool SET content = '[]'", Contradiction.MALFORMED),
        ("UPDATE spool SET content = replace(content, 'CA1', 'CA2')", Contradiction.OTHER_CALL),
    ],
)
async def test_broken_row_of_the_spool_is_refused(zone: Zone, break_it: str, contradiction: Contradiction) -> None:
    await spool_up(zone, *ANSWERED)
    with closing(open_spool(zone.spool)) as spool:
        spool.execute(break_it)
    with pytest.raises(ImplausibleHistoryError) as refused:
        await read(HistoryReader(zone, no_primary))
    assert refused.value.contradiction is contradiction


async def test_closed_reader_answers_with_nothing(zone: Zone) -> None:
    store(zone.local, started())
    reader = HistoryReader(zone, None)
    await reader.close()
    answer = await read(reader)
    assert (answer.history, answer.source) == (None, Source.NONE)
