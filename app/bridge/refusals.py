"""Records calls that were not taken: their tenants, and why they were refused.

A call of a zone is recorded in that zone's ledger and nowhere else; without a ledger for the zone on this machine
the call is not recorded. Every refusal costs rows, and thousands of calls to wrong numbers must not fill a ledger:
PER_MINUTE of them are recorded in a minute, and the others are counted.
"""

from collections.abc import Callable, Mapping

from app.call.ending import EndReason
from app.call.journal import END
from app.call.records import CallEnded, CallEvent, CallStarted, Record

PER_MINUTE = 120
"""Refused calls recorded in a minute. A machine that is full for an hour writes 7,200 of them."""

_MINUTE_MS = 60_000
LEG = ".refused"
"""Ends the name of the leg of a refused call."""


class Refusals:
    """Writes the records of refused calls. Use it from one event loop."""

    def __init__(
        self, remember: Mapping[str, Callable[[Record], None]], region: str, clock_ms: Callable[[], int]
    ) -> None:
        """`remember`: what keeps a record, for each zone with a ledger on this machine. `clock_ms`: Unix ms."""
        self._remember = remember
        self._region = region
        self._clock_ms = clock_ms
        self._minute = 0
        self._this_minute = 0
        self.unrecorded = 0
        """How many refused calls were not recorded because there were too many."""

    def note(
        self, call_sid: str, zone: str, tenant: str, reason: EndReason, detail: str, caller: str, called: str
    ) -> None:
        """Record a call that was not taken. Returns at once."""
        remember = self._remember.get(zone)
        if remember is None:
            return
        now_ms = self._clock_ms()
        if now_ms // _MINUTE_MS != self._minute:
            self._minute, self._this_minute = now_ms // _MINUTE_MS, 0
        if self._this_minute >= PER_MINUTE:
            self.unrecorded += 1
            return
        self._this_minute += 1
        leg = f"{now_ms}{LEG}"
        remember(
            CallStarted(call_sid, leg, tenant, zone, self._region, "", "", "", caller, called, started_ms=now_ms)
        )
        remember(CallEvent(call_sid, leg, 0, now_ms, END, detail))
        remember(CallEnded(call_sid, leg, now_ms, reason.value, 0))
