"""What a resumed leg is told of the ledger's history, and what its agent still has to say."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.call.continuity import Owner
from app.call.ending import EndReason
from app.call.history import Owed, Said
from app.call.records import CallEnded, CallStarted, Record, Speaker, Turn
from app.ledger.claims import Claims
from app.ledger.history import HistoryReader
from app.ledger.local import LocalLedger
from app.ledger.memory import ZoneMemory
from app.ledger.zones import Zone

pytestmark = pytest.mark.anyio

CALL = "CA" + "1" * 32


NOW_MS = time.time_ns() // 1_000_000
"""One instant for all records: those of parametrized tests are made long before the tests run."""


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[LocalLedger]:
    ledger = await LocalLedger.open(tmp_path / "ledger.db")
    yield ledger
    await ledger.close()


@pytest.fixture
async def memory(ledger: LocalLedger, tmp_path: Path) -> AsyncIterator[ZoneMemory]:
    reader = HistoryReader(Zone("global", tmp_path, None, str), None, flush=ledger.flush)
    yield ZoneMemory(reader, Claims(ledger.ask, machine="m/1", region="fra"), ledger)
    await reader.close()


def begun(tenant: str = "acme") -> CallStarted:
    return CallStarted(CALL, "n1", tenant, "global", "fra", "b", "m", "MZ1", "+49301", "+49302", NOW_MS - 9_000)


def turn(seq: int, speaker: Speaker, words: str, *, interrupted: bool = False) -> Turn:
    at_ms = NOW_MS - 8_000 + 100 * seq
    return Turn(CALL, "n1", seq, speaker, words, words, at_ms, at_ms + 50, "b", interrupted=interrupted)


def ended(reason: EndReason) -> CallEnded:
    return CallEnded(CALL, "n1", NOW_MS - 1_000, reason.value, 1)


AGENT, CALLER = Speaker.AGENT, Speaker.CALLER


@pytest.mark.parametrize(
    ("records", "owed", "unfinished"),
    [
        ([], Owed.REPETITION, True),
        ([turn(0, AGENT, "Hello."), turn(1, CALLER, "Hi.")], Owed.ANSWER, True),
        ([turn(0, AGENT, "Hello.")], Owed.NOTHING, True),
        ([turn(0, AGENT, "Hel", interrupted=True), ended(EndReason.PHONE_LOST)], Owed.CONTINUATION, True),
        ([turn(0, AGENT, "Hel", interrupted=True), ended(EndReason.MACHINE_DIED)], Owed.REPETITION, True),
        ([turn(0, AGENT, "Hel", interrupted=True)], Owed.REPETITION, True),
        ([turn(0, AGENT, "Bye."), ended(EndReason.AGENT_HUNG_UP)], Owed.NOTHING, False),
    ],
)
async def test_agent_owes_what_the_history_lacks(
    ledger: LocalLedger, memory: ZoneMemory, records: list[Record], owed: Owed, unfinished: bool
) -> None:
    for record in (begun(), *records):
        ledger.remember(record)
    found = await memory.recall(CALL, "acme")
    assert found.past is not None
    assert (found.past.history.owed, found.past.unfinished) == (owed, unfinished)
    assert found.past.history.entries == tuple(
        Said(each.speaker, each.heard) for each in records if isinstance(each, Turn) and each.heard
    )
    assert (found.source, found.complete, found.one_machine) == ("local_file", True, True)


async def test_call_of_another_tenant_is_contradicted_and_nothing_of_it_told(
    ledger: LocalLedger, memory: ZoneMemory
) -> None:
    ledger.remember(begun("another"))
    found = await memory.recall(CALL, "acme")
    assert (found.past, found.contradiction) == (None, "other_tenant")


async def test_leg_owns_its_epoch_until_a_later_one_is_claimed(memory: ZoneMemory) -> None:
    assert (await memory.claim(CALL, 0, "n1")).owner is Owner.THIS_LEG
    assert (await memory.owner(CALL, 0, 1.0)).owner is Owner.THIS_LEG
    assert (await memory.claim(CALL, 0, "n2")).owner is Owner.ANOTHER_LEG
    assert (await memory.claim(CALL, 1, "n2")).owner is Owner.THIS_LEG
    superseded = await memory.owner(CALL, 0, 1.0)
    assert (superseded.owner, superseded.detail) == (Owner.ANOTHER_LEG, "epoch 1 on m/1 in fra")
