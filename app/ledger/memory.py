"""What a zone's ledger knows about a call that is to go on: its history and its owner, in the words of app/call.

It brings history.py and claims.py together. Decides what the agent still has to say when a call was cut off; that
the call is resumed at all is decided elsewhere.
"""

import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from app.call.continuity import Owner, Ownership, Past, Recollection
from app.call.ending import EndReason
from app.call.history import History as Conversation
from app.call.history import Owed, Said
from app.call.records import Speaker
from app.ledger.claims import Claim, Claims, Held, Taken, Unknown
from app.ledger.history import HeardTurn, History, HistoryReader, ImplausibleHistoryError, Source
from app.ledger.ledger import Ledger
from app.ledger.opening import LedgerPlaces
from app.ledger.zone_files import zone_of

_log = logging.getLogger("nearcall.ledger")


class ZoneMemory:
    """The answers of one zone's ledger. No method raises."""

    def __init__(self, reader: HistoryReader, claims: Claims, ledger: Ledger) -> None:
        self._reader = reader
        self._claims = claims
        self._ledger = ledger

    async def claim(self, call_sid: str, epoch: int, leg: str) -> Ownership:
        """Claim an epoch of a call for a leg of this process. May be repeated."""
        return _ownership(await self._claims.claim(call_sid, epoch, leg))

    async def owner(self, call_sid: str, epoch: int, timeout_s: float) -> Ownership:
        """Say whether the leg with this epoch still carries the call, or a later one does."""
        found = await self._claims.superseded(call_sid, epoch, timeout_s=timeout_s)
        return Ownership(Owner.THIS_LEG) if found is None else _ownership(found)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all records are on a disk; False when that took longer."""
        return await self._ledger.flush(timeout_s)

    async def recall(self, call_sid: str, tenant: str) -> Recollection:
        """Find out what happened in a call that should be this tenant's."""
        try:
            answer = await self._reader.read(call_sid, tenant, time.time_ns() // 1_000_000)
        except ImplausibleHistoryError as error:
            return Recollection(contradiction=error.contradiction.value)
        if answer.troubles:
            _log.warning(
                "history_degraded",
                extra={
                    "call_sid": call_sid,
                    "source": answer.source.value,
                    "why": "; ".join(answer.troubles),
                },
            )
        return Recollection(
            None if answer.history is None else _past(answer.history),
            answer.source.value,
            complete=answer.source in {Source.PRIMARY, Source.LOCAL_FILE},
            one_machine=answer.source is Source.LOCAL_FILE,
            spooled=answer.spooled,
            troubles=answer.troubles,
        )


@asynccontextmanager
async def open_memories(
    places: LedgerPlaces, ledgers: Mapping[str, Ledger]
) -> AsyncIterator[Mapping[str, ZoneMemory]]:
    """A memory for each of these ledgers, by zone."""
    # A process that has started again is another claimant: it knows nothing of the legs of the one before.
    process = f"{places.machine}/{secrets.token_hex(4)}"
    readers: list[HistoryReader] = []
    memories: dict[str, ZoneMemory] = {}
    for name, ledger in ledgers.items():
        zone = zone_of(places, name)
        ask = None if zone.url is None else ledger.ask
        reader = HistoryReader(zone, ask, flush=ledger.flush, damaged=ledger.distrust)
        readers.append(reader)
        memories[name] = ZoneMemory(reader, Claims(ledger.ask, machine=process, region=places.region), ledger)
    try:
        yield memories
    finally:
        for reader in readers:
            await reader.close()


def _ownership(claim: Claim) -> Ownership:
    match claim:
        case Held():
            return Ownership(Owner.THIS_LEG)
        case Taken(epoch, _, machine, region):
            return Ownership(Owner.ANOTHER_LEG, f"epoch {epoch} on {machine} in {region}")
        case Unknown(why):
            return Ownership(Owner.UNKNOWN, why)


def _past(history: History) -> Past:
    reason = _reason(history.end_reason)
    entries = tuple(Said(turn.speaker, turn.text) for turn in history.turns)
    return Past(
        Conversation(entries, _owed(history.turns, reason), history.started_ms),
        history.caller,
        history.called,
        history.started_ms,
        history.unfinished,
        reason,
        history.epoch or 0,
        history.legs,
        history.had_stream,
        history.legs_lately,
    )


def _reason(name: str | None) -> EndReason | None:
    return EndReason(name) if name in set(EndReason) else None


def _owed(turns: Sequence[HeardTurn], reason: EndReason | None) -> Owed:
    """What the agent still had to say when the call was cut off."""
    if not turns:
        return Owed.REPETITION  # it had begun, and nothing of it was recorded
    last = turns[-1]
    if last.speaker is Speaker.CALLER:
        return Owed.ANSWER
    if not last.interrupted:
        return Owed.NOTHING
    # A leg that wrote its own ending was cut off in the middle of this turn. A machine that died has recorded only
    # finished turns: this one was interrupted by the caller, whose words are lost.
    ended_itself = reason is not None and reason is not EndReason.MACHINE_DIED
    return Owed.CONTINUATION if ended_itself else Owed.REPETITION
