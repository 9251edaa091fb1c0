"""Hands a live call to another machine: its records go where that machine reads them, then Twilio is redirected.

Nothing here decides: the core says when (app/call), and closes the stream when this fails, so that Twilio asks
`/twiml/after`, which resumes the call as well.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from app.call.events import RedirectAnswered, RedirectOutcome
from app.call.limits import MOVE_FLUSH_S

NO_URL = "the call has no resume URL"


class Redirect(Protocol):
    """Redirects a phone call by REST."""

    async def __call__(self, call_sid: str, twilio_region: str, url: str) -> RedirectAnswered:
        """Return what Twilio answered. Never raises."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Hands over the calls of one zone."""

    redirect: Redirect
    drain_ledger: Callable[[float], Awaitable[bool]]
    """Waits until the zone's records are where they are kept, for so many seconds at most; False: they are not."""

    async def __call__(self, call_sid: str, twilio_region: str, resume_url: str) -> tuple[bool, RedirectAnswered]:
        """Return whether the records are where they are kept, and what came of the redirect.

        The call moves without its records too: the next machine then has the start of the call and what is there.
        """
        stored = await self.drain_ledger(MOVE_FLUSH_S)
        if not resume_url:
            return stored, RedirectAnswered(RedirectOutcome.FAILED, NO_URL)
        return stored, await self.redirect(call_sid, twilio_region, resume_url)
