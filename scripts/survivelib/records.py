"""Reads what a zone's ledger has of a call: from its primary, or from a machine's local file."""

from collections.abc import Sequence
from pathlib import Path

from app.ledger.queries import Queries
from app.storage.primary import Primary
from app.storage.statement import Statement
from scripts.survivelib.stamps import wording_of
from scripts.survivelib.story import Turn

_TURNS = "SELECT leg, speaker, heard FROM turns WHERE call_sid = ? ORDER BY started_ms, leg, seq"


async def turns_on(url: str, call_sids: Sequence[str]) -> dict[str, list[Turn]]:
    """Returns the turns of each call in a database. Raises StorageError."""
    async with Primary(url, str) as primary:
        return {
            sid: [
                Turn(str(leg), speaker == "caller", wording_of(str(heard or "")))
                for leg, speaker, heard in await primary.query(Statement(_TURNS, (sid,)))
            ]
            for sid in call_sids
        }


async def turns_in(path: Path, call_sids: Sequence[str]) -> dict[str, list[Turn]]:
    """Returns the turns of each call in a local file. Raises StorageError."""
    queries = Queries(path)
    try:
        found = {sid: await queries.call(sid) for sid in call_sids}
    finally:
        await queries.close()
    return {
        sid: [
            Turn(turn.leg, turn.speaker == "caller", wording_of(turn.heard or ""))
            for turn in (() if history is None else history.turns)
        ]
        for sid, history in found.items()
    }
