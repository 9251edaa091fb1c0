"""Decides which leg carries a call: each leg claims its epoch in the table `claims`, and one of them gets it.

The first stream of a call has epoch 0, and each resume has the next number. When two machines resume the same
call, or one ticket is used on two machines, the primary key (call_sid, epoch) lets one of them in. A machine whose
stream is half-open learns from `superseded` that a later leg has taken its call, and ends its own leg.

One claim is one statement: it writes the row if there is none, and returns the row that is there. So a claim costs
one round trip, and it may be repeated when its answer was lost. This module does not know whether the statement
runs on a primary or in the local file of a single machine. It never makes a call wait longer than its timeout.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from app.storage.errors import StorageError
from app.storage.statement import Row, Statement

TIMEOUT_S = 1.0
"""For one question. A round trip to a primary on another continent takes 0.3 s, and 0.9 s on a new connection."""

# The UPDATE changes nothing: without it RETURNING would return no row when the epoch is already claimed.
_CLAIM = """
INSERT INTO claims (call_sid, epoch, leg, machine, region, claimed_ms) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (call_sid, epoch) DO UPDATE SET leg = claims.leg
RETURNING epoch, leg, machine, region,
  (SELECT json_array(later.epoch, later.leg, later.machine, later.region) FROM claims AS later
   WHERE later.call_sid = claims.call_sid AND later.epoch > claims.epoch ORDER BY later.epoch DESC LIMIT 1)
"""
_LATER = """
SELECT epoch, leg, machine, region FROM claims WHERE call_sid = ? AND epoch > ? ORDER BY epoch DESC LIMIT 1
"""

Ask = Callable[[Statement], Awaitable[Sequence[Row]]]
"""Runs one statement and returns its rows. Raises StorageError."""


@dataclass(frozen=True, slots=True)
class Held:
    """The epoch belongs to the leg that asked."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Another leg carries the call: it has the epoch that was asked for, or a later one."""

    epoch: int
    """The latest epoch that is claimed; the other fields tell by whom."""
    leg: str
    machine: str
    region: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody can say who carries the call. The claim may have been written: ask again."""

    why: str


Claim = Held | Taken | Unknown

_UNREADABLE = Unknown("the ledger's answer about a claim has another shape than the question asks for")


class Claims:
    """The claims of one zone, as one machine sees them. `ask` is that of the zone's ledger.

    A zone without a primary has one machine, which keeps its claims in the ledger's own file: a register in memory
    would forget them at a restart, while the tickets of the earlier run are still valid.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        machine: str,
        region: str,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`clock_ms`: Unix ms."""
        self._ask = ask
        self._machine = machine
        self._region = region
        self._clock_ms = clock_ms

    async def claim(self, call_sid: str, epoch: int, leg: str, *, timeout_s: float = TIMEOUT_S) -> Claim:
        """Claim an epoch of a call for a leg on this machine.

        The same leg of the same machine gets the same answer again, unless a later epoch was claimed meanwhile.
        Raises ValueError for a negative epoch.
        """
        if epoch < 0:
            raise ValueError(f"an epoch is 0 or more, and is {epoch}")
        values = (call_sid, epoch, leg, self._machine, self._region, self._clock_ms())
        match await self._rows(Statement(_CLAIM, values), timeout_s):
            case Unknown() as unknown:
                return unknown
            case []:
                # A trigger of the migration keeps no row of a call that was erased on request.
                return Unknown("the call was erased, and the ledger keeps nothing of it")
            case [(*claimant, None)]:
                holder = _taken(claimant)
                if holder is not None and (holder.leg, holder.machine) == (leg, self._machine):
                    return Held()
                return holder or _UNREADABLE
            case [(*_, str(later))]:
                return _taken(_parsed(later)) or _UNREADABLE
            case _:
                return _UNREADABLE

    async def superseded(
        self, call_sid: str, epoch: int, *, timeout_s: float = TIMEOUT_S
    ) -> Taken | Unknown | None:
        """The latest claim of the call beyond `epoch`; None when there is none, so that the leg may go on."""
        match await self._rows(Statement(_LATER, (call_sid, epoch)), timeout_s):
            case Unknown() as unknown:
                return unknown
            case []:
                return None
            case [row]:
                return _taken(row) or _UNREADABLE
            case _:
                return _UNREADABLE

    async def _rows(self, statement: Statement, timeout_s: float) -> list[Row] | Unknown:
        try:
            async with asyncio.timeout(timeout_s):
                return list(await self._ask(statement))
        except TimeoutError:
            return Unknown(f"the ledger did not answer within {timeout_s:g} s")
        except StorageError as error:
            return Unknown(str(error))


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None  # which `_taken` does not take


def _taken(claimant: object) -> Taken | None:
    """A claim by its epoch, leg, machine and region; None when these are not of the right types."""
    match claimant:
        case [int(epoch), str(leg), str(machine), str(region)]:
            return Taken(epoch, leg, machine, region)
    return None
