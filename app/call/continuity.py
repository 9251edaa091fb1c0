"""What is known of a call when another leg of it is to go on: what was said in it, and which leg it belongs to.

The legs of a call are numbered by epochs: the first stream has epoch 0, each resume the next number. Pure values:
the ledger finds them out (app/ledger/memory.py), and the webhooks and the sessions decide by them.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from app.call.ending import EndReason
from app.call.history import History, Owed


class Owner(Enum):
    """Which leg carries a call."""

    THIS_LEG = auto()
    ANOTHER_LEG = auto()
    UNKNOWN = auto()
    """The ledger did not answer."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """An answer to the question which leg carries a call."""

    owner: Owner
    detail: str = ""
    """Of another leg its epoch, machine and region; otherwise why the owner is unknown."""


@dataclass(frozen=True, slots=True)
class Past:
    """A call so far, as the ledger kept it."""

    history: History
    caller: str = field(repr=False)
    called: str = field(repr=False)
    started_ms: int
    """When its first leg began, in Unix ms."""
    unfinished: bool
    """True when its newest leg has no ending, or one after which a call goes on."""
    end_reason: EndReason | None
    """Of the newest leg; None without an ending, or with one that this program does not know."""
    epoch: int
    """The highest epoch that a leg has claimed; 0 when none has."""
    legs: int
    """Streams that the call has had."""
    had_stream: bool
    """True when a stream of it has begun."""
    legs_lately: int
    """Attempts to carry the call which began within the last minute."""


@dataclass(frozen=True, slots=True)
class Recollection:
    """What the ledger says about a call."""

    past: Past | None = None
    """None when nothing that answered knows the call."""
    source: str = "none"
    """The database that answered; "none" when none did."""
    complete: bool = False
    """True when the source has every record of the call that is stored anywhere. A copy may lack the newest."""
    one_machine: bool = False
    """True when the source has only the records of this machine: others may know more."""
    spooled: int = 0
    """Records that came from this machine's own spool."""
    troubles: tuple[str, ...] = ()
    """Why a better source did not answer."""
    contradiction: str = ""
    """Why the records must not be used; empty when they may."""

    def history(self, began_ms: int) -> History:
        """What the next leg is told. `began_ms` is when the call began, for a call of which no record is known."""
        if self.past is not None:
            return self.past.history
        if self.complete and not self.one_machine and not self.contradiction:
            # No leg came so far that it was recorded: nothing was said, and the caller is greeted.
            return History(began_ms=began_ms)
        return History(owed=Owed.REPETITION, began_ms=began_ms)
