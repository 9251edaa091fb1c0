"""Sends records again that were set aside, after an operator has removed the cause.

Those in the spool's file go back into the spool, where a running server finds them. Those in the table `refused`
go where they belong, one at a time, because one that is refused again must not hold up the others.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from app.ledger import aside
from app.ledger.records import Packed, packed_insertion
from app.ledger.spool import open_spool
from app.storage.database import RefusedError
from app.storage.primary import Poison, PrimaryError
from app.storage.statement import Statement
from app.storage.store import Store

PAGE = 200

_PAGE = "SELECT id, kind, call_sid, content FROM refused WHERE id > ? ORDER BY id LIMIT ?"


@dataclass(frozen=True, slots=True)
class Resent:
    """What became of the records."""

    stored: int = 0
    """In their tables now."""
    spooled: int = 0
    """On their way again, from this machine's spool."""
    refused: tuple[str, ...] = ()
    """Refused again, and why; they stay set aside."""


async def resend_refused(store: Store) -> Resent:
    """Move records from the table `refused` into their own tables. Raises StorageError."""
    stored, refused, after = 0, [], ""
    while page := await store.ask(Statement(_PAGE, (after, PAGE))):
        for key, kind, call_sid, content in page:
            after = str(key)
            record = Packed(str(kind), str(call_sid), None, 0, str(content))
            try:
                there = packed_insertion(record)
                await store.change([there, Statement("DELETE FROM refused WHERE id = ?", (after,))])
            except (RefusedError, ValueError) as error:
                refused.append(f"{kind} of {call_sid}: {error}")
            except PrimaryError as error:
                if not isinstance(error.failure, Poison):
                    raise
                refused.append(f"{kind} of {call_sid}: {error}")
            else:
                stored += 1
    return Resent(stored, 0, tuple(refused))


def resend_aside(spool: Path) -> Resent:
    """Put what was set aside in a spool's file back into the spool. Raises StorageError."""
    with closing(open_spool(spool)) as database:
        return Resent(spooled=aside.put_back(database))
