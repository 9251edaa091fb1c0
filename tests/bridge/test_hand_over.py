"""Handing a call over: its records first, for a bounded time, then the redirect."""

import pytest

from app.bridge.hand_over import NO_URL, HandOver
from app.call.events import RedirectAnswered, RedirectOutcome
from app.call.limits import MOVE_FLUSH_S

pytestmark = pytest.mark.anyio

URL = "https://calls.example.com/twiml/resume/global/fra/sealed"
ACCEPTED = RedirectAnswered(RedirectOutcome.ACCEPTED)


class Outside:
    """A ledger and Twilio, and what they were asked, in order."""

    def __init__(self, *, stores: bool = True) -> None:
        self.stores = stores
        self.asked: list[tuple[object, ...]] = []
        self.hand_over = HandOver(self._redirect, self._drain)

    async def _drain(self, timeout_s: float) -> bool:
        self.asked.append(("drain", timeout_s))
        return self.stores

    async def _redirect(self, call_sid: str, twilio_region: str, url: str) -> RedirectAnswered:
        self.asked.append((call_sid, twilio_region, url))
        return ACCEPTED


async def test_records_are_stored_before_the_redirect() -> None:
    outside = Outside()
    assert await outside.hand_over("CA1", "ie1", URL) == (True, ACCEPTED)
    assert outside.asked == [("drain", MOVE_FLUSH_S), ("CA1", "ie1", URL)]


async def test_call_moves_though_its_records_cannot_be_stored_in_time() -> None:
    outside = Outside(stores=False)
    assert await outside.hand_over("CA1", "ie1", URL) == (False, ACCEPTED)
    assert len(outside.asked) == 2


async def test_call_without_a_url_is_not_redirected_and_its_records_are_stored() -> None:
    outside = Outside()
    stored, answer = await outside.hand_over("CA1", "ie1", "")
    assert (stored, answer) == (True, RedirectAnswered(RedirectOutcome.FAILED, NO_URL))
    assert outside.asked == [("drain", MOVE_FLUSH_S)]
