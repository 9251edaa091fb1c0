"""Reads what a machine needs to resume a call that was cut off: whose it is, when it began, and what was heard.

    spool (this machine's own records) -> primary, else replica -> one history
    spool -> local file, in a zone without a primary

The spool comes first because a record moves from the spool to the primary: in the other order, a record that moves
between the two looks would be seen by neither. The primary answers in one round trip, or it is given up after a
short timeout. Everything that reads a disk runs in a thread.

The records are checked before they are used. A history that belongs to another tenant, or that cannot be true,
raises ImplausibleHistoryError: the caller of one call must never hear of another. This module does not decide
whether a call is resumed.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from app.call.ending import WELL_ENDED, EndReason
from app.call.journal import BACKEND, BEFORE_TALK, HANDLED
from app.call.limits import TRANSCRIPT_MAX_CHARS
from app.call.records import Speaker
from app.ledger.claims import Ask
from app.ledger.zones import Zone
from app.storage.database import damage, open_for_reading
from app.storage.errors import StorageError
from app.storage.statement import Row, Statement
from app.storage.thread import OwnThread

PRIMARY_S = 1.0
"""Longest wait for the primary. A round trip across an ocean takes 0.3 s, and 0.9 s on a new connection; the
caller hears nothing meanwhile."""
SPOOL_S = 0.3
"""Longest wait for this machine's own records: until those in memory are on the disk, and again to read them."""
FILE_S = 1.0
"""Longest wait for the replica or the local file, behind the other calls that a dead machine has left: 100 at once
take 0.3 s."""
CHARS_MAX = 20_000
"""Characters of turns in a history: about 25 minutes of conversation, and 5,000 tokens for the next backend."""
TURNS_MAX = 1_000
"""Turns in a history, each of which becomes an item of the next backend's session."""
EVENTS_MAX = 50
"""Events in a history, the newest."""
LEGS_MAX = 200
"""Legs of one call. A call cannot have more: each resume takes a fault or a deploy."""
LATELY_MS = 60_000
"""The span in which resumes are counted."""
CLOCK_SKEW_MS = 60_000
"""How far the clocks of two machines may be apart. Fly keeps them within milliseconds."""
CALL_MAX_MS = 25 * 3_600_000
"""A call that began earlier is over: Twilio ends every call after 24 h (`timeLimit`)."""
NAME_MAX_CHARS = 512
"""Of any name, number or id in a record."""

FINISHED = WELL_ENDED | {
    EndReason.WRONG_CALL,
    EndReason.UNKNOWN_NUMBER,
    EndReason.TENANT_FULL,
    EndReason.NOT_TAKEN,
}
"""The endings after which a call does not go on. It goes on after every other one, also after one that only a
newer program knows: when Twilio asks what comes next, the caller is still on the line."""

_T = TypeVar("_T")


class Contradiction(StrEnum):
    """What makes a history unusable. For logs and counters."""

    OTHER_CALL = "other_call"
    """A record of another call came with it."""
    OTHER_TENANT = "other_tenant"
    """The call belongs to a tenant other than the expected one, or to two."""
    OTHER_ZONE = "other_zone"
    """A leg was of another zone."""
    TWO_CALLERS = "two_callers"
    """The legs have different callers, or different called numbers."""
    IMPOSSIBLE_TIME = "impossible_time"
    """Something happened in the future, before its call, or longer ago than a call can last."""
    ABSURD_SIZE = "absurd_size"
    """A text is longer than any that is written, or there are more legs than a call can have."""
    MALFORMED = "malformed"
    """A record lacks a field, or has one of another type."""


class ImplausibleHistoryError(Exception):
    """The ledger contradicts itself or the ticket about a call: nothing of it may be used."""

    def __init__(self, contradiction: Contradiction, call_sid: str, detail: str = "") -> None:
        """`detail` is for operators and holds nothing personal."""
        told = contradiction.value.replace("_", " ")
        super().__init__(f"the ledger's history of call {call_sid} is refused: {told} {detail}".rstrip())
        self.contradiction = contradiction


class Source(StrEnum):
    """Which database a history came from."""

    PRIMARY = "primary"
    REPLICA = "replica"
    """It may lack the newest records."""
    LOCAL_FILE = "local_file"
    NONE = "none"
    """No database answered. This machine's spool may still have known the call."""


@dataclass(frozen=True, slots=True)
class HeardTurn:
    """One turn, in the words that were heard."""

    leg: str
    seq: int
    speaker: Speaker
    text: str = field(repr=False)
    """Never empty. Of an interrupted turn of the agent, the words that reached the caller."""
    started_ms: int
    ended_ms: int
    interrupted: bool


@dataclass(frozen=True, slots=True)
class PastEvent:
    """Something that happened in the call and may matter to its next leg: a tool, a fault, a failover."""

    leg: str
    seq: int
    at_ms: int
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class History:
    """A call so far."""

    call_sid: str
    tenant: str
    zone: str
    caller: str = field(repr=False)
    called: str = field(repr=False)
    started_ms: int
    """When its first leg began, Unix ms: its longest allowed time counts from here."""
    unfinished: bool
    """True when its newest leg has no ending, or one after which a call goes on."""
    end_reason: str | None
    """Of the newest leg; None while that is live, or when its machine died and has not started again."""
    epoch: int | None
    """The highest epoch that a leg has claimed (claims.py); None when the source knows of no claim."""
    legs: int
    """Streams that the call has had; when it had none, the attempts to take it."""
    had_stream: bool
    """True when a stream of it has begun."""
    legs_lately: int
    """Attempts to carry the call, streams that never came included, which began within the last LATELY_MS."""
    turns: tuple[HeardTurn, ...]
    """Oldest first; only those with words."""
    turns_left_out: bool
    """True when older turns did not fit."""
    events: tuple[PastEvent, ...]
    """Oldest first; the newest EVENTS_MAX."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found out about a call."""

    history: History | None
    """None when nothing that answered knows the call."""
    source: Source
    spooled: int
    """Records of the call that came from this machine's spool."""
    troubles: tuple[str, ...]
    """Why a better source did not answer, for the log."""


# --- The question -----------------------------------------------------------------------------------

_LEG = ("call_sid", "leg", "tenant", "zone", "stream_sid", "caller", "called", "started_ms")
_TURN = ("call_sid", "leg", "seq", "speaker", "heard", "started_ms", "ended_ms", "interrupted")
_EVENT = ("call_sid", "leg", "seq", "at_ms", "kind", "detail")
_ENDING = ("call_sid", "leg", "ended_ms", "reason")

_ROUTING = (HANDLED, BACKEND)
"""Events of every leg that say how it came to its machine and backend: of no use to the next leg."""


def _objects(columns: Iterable[str]) -> str:
    # A text is cut here, one character above its limit, so that an absurd one is noticed and not transferred.
    limits = {"heard": TRANSCRIPT_MAX_CHARS, "detail": TRANSCRIPT_MAX_CHARS}
    pairs = (
        f"'{name}', {name}"
        if name.endswith("_ms") or name in _INTEGERS
        else f"'{name}', substr({name}, 1, {limits.get(name, NAME_MAX_CHARS) + 1})"
        for name in columns
    )
    return f"json_group_array(json_object({', '.join(pairs)}))"


_INTEGERS = frozenset({"seq", "interrupted"})

# One statement, so that one round trip is enough and all of it is seen at one moment.
_QUESTION = f"""
SELECT
 (SELECT {_objects(_LEG)} FROM (SELECT * FROM legs WHERE call_sid = ? LIMIT {LEGS_MAX + 1})),
 (SELECT {_objects(_TURN)} FROM (
    SELECT *, sum(length(heard)) OVER (ORDER BY started_ms DESC, leg DESC, seq DESC) - length(heard) AS newer
    FROM turns WHERE call_sid = ? AND heard <> ''
    ORDER BY started_ms DESC, leg DESC, seq DESC LIMIT {TURNS_MAX + 1}
  ) WHERE newer <= ?),
 (SELECT {_objects(_EVENT)} FROM (
    SELECT * FROM events WHERE call_sid = ? AND kind NOT IN {_ROUTING!r} ORDER BY at_ms DESC, leg DESC, seq DESC
    LIMIT {EVENTS_MAX})),
 (SELECT {_objects(_ENDING)} FROM (SELECT * FROM endings WHERE call_sid = ? LIMIT {LEGS_MAX + 1})),
 (SELECT max(epoch) FROM claims WHERE call_sid = ?)
"""  # noqa: S608 - names of our own, no data

_SPOOLED = "SELECT kind, content FROM spool WHERE call_sid = ? ORDER BY id"


def _question(call_sid: str, chars_max: int) -> Statement:
    return Statement(_QUESTION, (call_sid, call_sid, chars_max, call_sid, call_sid, call_sid))


class HistoryReader:
    """Answers for one zone. Make one per zone, and close it at the end."""

    def __init__(
        self,
        zone: Zone,
        ask_primary: Ask | None,
        *,
        flush: Callable[[float], Awaitable[bool]] | None = None,
        damaged: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`ask_primary` is `Primary.query`, or None for a zone without a primary: its local file is read instead.

        `flush` brings the records that this machine has in memory onto its disk: `Ledger.flush`. `damaged` is
        called in the event loop's thread when SQLite finds the replica broken, or the local file:
        `TursoLedger.distrust`.
        """
        self._zone = zone
        self._ask_primary = ask_primary
        self._flush = flush
        self._damaged = damaged
        self._thread = OwnThread("ledger-history")

    async def read(
        self,
        call_sid: str,
        tenant: str,
        now_ms: int,
        *,
        timeout_s: float = PRIMARY_S,
        chars_max: int = CHARS_MAX,
    ) -> Answer:
        """The history of a call that should be this tenant's. `timeout_s` is for the primary alone.

        Raises ImplausibleHistoryError when the records cannot be this call's. A database that does not answer is
        no error: the answer names the next best one, and says why.
        """
        troubles: list[str] = []
        spooled = await self._own_records(call_sid, troubles)
        source, rows = await self._rows(call_sid, chars_max, timeout_s, troubles)
        records = _Records(call_sid)
        for kind, content in spooled:
            records.add_spooled(kind, content)
        for row in rows or ():
            records.add_stored(row)
        history = None
        if records.legs:
            history = records.history(tenant, self._zone.name, now_ms, chars_max)
        elif records.turns or records.endings:
            troubles.append("there are records of the call, and none says whose it is")
        return Answer(history, source, len(spooled), tuple(troubles))

    async def close(self) -> None:
        """End the thread, after the look in hand. Does not wait for that: the disk may hang."""
        self._thread.close()

    async def _own_records(self, call_sid: str, troubles: list[str]) -> list[Row]:
        """What this machine's spool has of the call."""
        if self._flush is not None and not await self._flush(SPOOL_S):
            troubles.append("this machine's newest records are not on its disk yet")
        path = self._zone.spool
        return await self._in_thread(lambda: _spooled(path, call_sid), SPOOL_S, troubles) or []

    async def _rows(
        self, call_sid: str, chars_max: int, timeout_s: float, troubles: list[str]
    ) -> tuple[Source, list[Row] | None]:
        question = _question(call_sid, chars_max)
        if self._ask_primary is None:
            return await self._file_rows(Source.LOCAL_FILE, self._zone.local, question, troubles)
        try:
            async with asyncio.timeout(timeout_s):
                return Source.PRIMARY, list(await self._ask_primary(question))
        except TimeoutError:
            troubles.append(f"the primary did not answer within {timeout_s:g} s")
        except StorageError as error:
            troubles.append(str(error))
        return await self._file_rows(Source.REPLICA, self._zone.replica, question, troubles)

    async def _file_rows(
        self, source: Source, path: Path, question: Statement, troubles: list[str]
    ) -> tuple[Source, list[Row] | None]:
        rows = await self._in_thread(lambda: _read(path, question), FILE_S, troubles, self._damaged)
        return (Source.NONE, None) if rows is None else (source, rows)

    async def _in_thread(
        self,
        look: Callable[[], _T],
        limit_s: float,
        troubles: list[str],
        damaged: Callable[[str], object] = lambda _: None,
    ) -> _T | None:
        """What `look` returns; None when that takes too long or fails."""
        try:
            async with asyncio.timeout(limit_s):
                return await self._thread.run(look)
        except TimeoutError:
            troubles.append(f"the disk has not answered for {limit_s:g} s")
        except OSError as error:  # a directory that may not be read, a disk that fails
            troubles.append(f"{error.filename}: {error.strerror}")
        except StorageError as error:
            troubles.append(str(error))
            if (words := damage(error)) is not None:
                damaged(words)
        return None


def _spooled(path: Path, call_sid: str) -> list[Row]:
    return _read(path, Statement(_SPOOLED, (call_sid,))) if path.is_file() else []


def _read(path: Path, statement: Statement) -> list[Row]:
    with closing(open_for_reading(path)) as database:
        return database.query(statement.sql, statement.values)


# --- What the records say ---------------------------------------------------------------------------

_Fields = Mapping[str, object]
_Key = tuple[str, int]
"""A turn or an event: its leg, and its number there."""


@dataclass(frozen=True, slots=True)
class _Leg:
    leg: str
    tenant: str
    zone: str
    stream_sid: str
    caller: str
    called: str
    started_ms: int


class _Records:
    """The records of one call from several sources. Every method raises ImplausibleHistoryError."""

    def __init__(self, call_sid: str) -> None:
        self.legs: list[_Leg] = []
        """One that is in two sources is here twice, so that a contradiction between the two is seen."""
        self.turns: dict[_Key, HeardTurn] = {}
        self.endings: dict[str, tuple[int, str]] = {}
        """By leg: Unix ms and reason."""
        self._call_sid = call_sid
        self._events: dict[_Key, PastEvent] = {}
        self._epoch: int | None = None

    def add_stored(self, row: Row) -> None:
        """The answer of a database."""
        match row:
            case [str(legs), str(turns), str(events), str(endings), int() | None as epoch]:
                self._epoch = epoch
            case _:
                raise self._refused(
                    Contradiction.MALFORMED, "the answer has another shape than the question asks for"
                )
        for text, add in (
            (legs, self._add_leg),
            (turns, self._add_turn),
            (events, self._add_event),
            (endings, self._add_ending),
        ):
            for fields in self._parsed(text, list):
                self._add(fields, add)

    def add_spooled(self, kind: object, content: object) -> None:
        """A row of the spool."""
        match kind:
            case "CallStarted":
                add = self._add_leg
            case "Turn":
                add = self._add_turn
            case "Happening":
                add = self._add_event
            case "CallEnded":
                add = self._add_ending
            case _:
                return  # of a newer program, which this machine ran before
        self._add(self._parsed(str(content), dict), add)

    def _parsed(self, text: str, shape: type[_T]) -> _T:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise self._refused(Contradiction.MALFORMED, "a record is no JSON") from error
        if not isinstance(found, shape):
            raise self._refused(Contradiction.MALFORMED, "a record is no JSON object")
        return found

    def _add(self, fields: object, add: Callable[[_Fields], None]) -> None:
        if not isinstance(fields, dict):
            raise self._refused(Contradiction.MALFORMED, "a record is no JSON object")
        if self._text(fields, "call_sid") != self._call_sid:
            raise self._refused(Contradiction.OTHER_CALL)
        add(fields)

    def _add_leg(self, fields: _Fields) -> None:
        names = ("leg", "tenant", "zone", "stream_sid", "caller", "called")
        texts = {name: self._text(fields, name) for name in names}
        self.legs.append(_Leg(**texts, started_ms=self._integer(fields, "started_ms")))

    def _add_turn(self, fields: _Fields) -> None:
        if fields.get("heard") is None:
            return
        text = self._text(fields, "heard", TRANSCRIPT_MAX_CHARS).strip()
        speaker = self._text(fields, "speaker")
        if speaker not in set(Speaker):
            raise self._refused(Contradiction.MALFORMED, "a turn has no known speaker")
        turn = HeardTurn(
            self._text(fields, "leg"),
            self._integer(fields, "seq"),
            Speaker(speaker),
            text,
            self._integer(fields, "started_ms"),
            self._integer(fields, "ended_ms"),
            bool(self._integer(fields, "interrupted")),
        )
        if text:
            self.turns[turn.leg, turn.seq] = turn

    def _add_event(self, fields: _Fields) -> None:
        event = PastEvent(
            self._text(fields, "leg"),
            self._integer(fields, "seq"),
            self._integer(fields, "at_ms"),
            self._text(fields, "kind"),
            self._text(fields, "detail", TRANSCRIPT_MAX_CHARS),
        )
        if event.kind not in _ROUTING:
            self._events[event.leg, event.seq] = event

    def _add_ending(self, fields: _Fields) -> None:
        leg = self._text(fields, "leg")
        ending = self._integer(fields, "ended_ms"), self._text(fields, "reason")
        # What a call itself says of its end stands above what a machine's next start supposes.
        if leg not in self.endings or self.endings[leg][1] == EndReason.MACHINE_DIED:
            self.endings[leg] = ending

    def _text(self, fields: _Fields, name: str, chars_max: int = NAME_MAX_CHARS) -> str:
        text = fields.get(name)
        if not isinstance(text, str):
            raise self._refused(Contradiction.MALFORMED, f"{name} is no text")
        if len(text) > chars_max:
            raise self._refused(Contradiction.ABSURD_SIZE, f"{name} is longer than {chars_max} characters")
        # A spool keeps a model's odd characters as they came.
        return (
            text.replace("\0", "\N{REPLACEMENT CHARACTER}")
            .encode("utf-8", "surrogatepass")
            .decode("utf-8", "replace")
        )

    def _integer(self, fields: _Fields, name: str) -> int:
        number = fields.get(name)
        if not isinstance(number, int):
            raise self._refused(Contradiction.MALFORMED, f"{name} is no integer")
        return number

    def _refused(self, contradiction: Contradiction, detail: str = "") -> ImplausibleHistoryError:
        return ImplausibleHistoryError(contradiction, self._call_sid, detail)

    # --- Together ---------------------------------------------------------------------------------

    def history(self, tenant: str, zone: str, now_ms: int, chars_max: int) -> History:
        """All of it as one call, which has a leg and should be of this tenant and zone."""
        self._check_whose(tenant, zone)
        by_name = {leg.leg: leg for leg in self.legs}
        if max(len(by_name), len(self.endings), self._epoch or 0) > LEGS_MAX:
            raise self._refused(Contradiction.ABSURD_SIZE, f"it has more than {LEGS_MAX} legs")
        began_ms = min(leg.started_ms for leg in self.legs)
        self._check_times(began_ms, now_ms)
        # A leg without a stream counts only in a call that has no other, as in queries.py.
        counting = [leg for leg in by_name.values() if leg.stream_sid] or list(by_name.values())
        newest = max(counting, key=lambda leg: (leg.started_ms, leg.leg))
        _, reason = self.endings.get(newest.leg, (0, None))
        attempts = {leg.leg.removesuffix(BEFORE_TALK) for leg in self.legs if leg.started_ms > now_ms - LATELY_MS}
        turns = sorted(self.turns.values(), key=lambda turn: (turn.started_ms, turn.leg, turn.seq))
        kept, left_out = _newest(turns, chars_max)
        events = sorted(self._events.values(), key=lambda event: (event.at_ms, event.leg, event.seq))
        return History(
            call_sid=self._call_sid,
            tenant=tenant,
            zone=zone,
            caller=_one_of(leg.caller for leg in self.legs),
            called=_one_of(leg.called for leg in self.legs),
            started_ms=min(leg.started_ms for leg in counting),
            unfinished=reason not in FINISHED,
            end_reason=reason,
            epoch=self._epoch,
            legs=len(counting),
            had_stream=bool(newest.stream_sid),
            legs_lately=len(attempts),
            turns=kept,
            turns_left_out=left_out,
            events=tuple(events[-EVENTS_MAX:]),
        )

    def _check_whose(self, tenant: str, zone: str) -> None:
        # A leg without a tenant was refused before anybody knew whose it is.
        if {leg.tenant for leg in self.legs if leg.tenant} != {tenant}:
            raise self._refused(Contradiction.OTHER_TENANT)
        if {leg.zone for leg in self.legs} != {zone}:
            raise self._refused(Contradiction.OTHER_ZONE)
        for numbers in ({leg.caller for leg in self.legs}, {leg.called for leg in self.legs}):
            # A number may be missing: a machine of the version before put none into its tickets.
            if len(numbers - {""}) > 1:
                raise self._refused(Contradiction.TWO_CALLERS)

    def _check_times(self, began_ms: int, now_ms: int) -> None:
        if began_ms < now_ms - CALL_MAX_MS:
            raise self._refused(Contradiction.IMPOSSIBLE_TIME, "it began longer ago than a call can last")
        instants = [
            *(leg.started_ms for leg in self.legs),
            *(at_ms for turn in self.turns.values() for at_ms in (turn.started_ms, turn.ended_ms)),
            *(event.at_ms for event in self._events.values()),
            *(ended_ms for ended_ms, _ in self.endings.values()),
        ]
        if max(instants) > now_ms + CLOCK_SKEW_MS:
            raise self._refused(Contradiction.IMPOSSIBLE_TIME, "something in it lies in the future")
        if min(instants) < began_ms - CLOCK_SKEW_MS:
            raise self._refused(Contradiction.IMPOSSIBLE_TIME, "something in it lies before the call")


def _one_of(numbers: Iterable[str]) -> str:
    """The number that is not missing."""
    return max(numbers)


def _newest(turns: Sequence[HeardTurn], chars_max: int) -> tuple[tuple[HeardTurn, ...], bool]:
    """The newest turns that fit, oldest first, and whether any were left out. Of a single long one, its end."""
    kept: list[HeardTurn] = []
    room = chars_max
    for turn in reversed(turns):
        if len(turn.text) > room or len(kept) == TURNS_MAX:
            if not kept:
                kept.append(replace(turn, text=turn.text[len(turn.text) - room :]))
            return tuple(reversed(kept)), True
        kept.append(turn)
        room -= len(turn.text)
    return tuple(reversed(kept)), False
