"""What the webhooks ask of the rest of the service: one small protocol, kept by the bridge.

Everything here answers at once. A webhook has 15 s at Twilio, and the caller hears nothing meanwhile.
"""

from collections.abc import Callable
from typing import Protocol

from app.bridge.ticket import Ticket
from app.call.ending import EndReason
from app.call.plan import Plan

PlanFor = Callable[[str], Plan | None]
"""The plan of the tenant whose number was dialled; None when there are tenants, and the number is nobody's. The
number is Twilio's `To`: E.164 for phones, `sip:...` else, empty when it is missing."""


class Desk(Protocol):
    """Where calls are announced and asked after."""

    def expect(self, ticket: Ticket, plan: Plan) -> None:
        """A stream with this ticket will come: start opening its backend session now, return at once."""

    def waiting(self, call_sid: str) -> bool:
        """True while the call is expected and its stream has not come."""

    def live(self, call_sid: str) -> bool:
        """True while a stream of the call is open as far as we know."""

    def ending(self, call_sid: str) -> EndReason | None:
        """How the call's last stream ended, None when that is not known here or has not happened."""

    def tenant(self, call_sid: str) -> str | None:
        """Whose call it is; None when it is not known here."""

    def refused(
        self, call_sid: str, zone: str, tenant: str, reason: EndReason, detail: str, caller: str, called: str
    ) -> None:
        """A call was not taken: record that in its zone, if the zone's ledger is here. Returns at once."""

    def crowded(self, plan: Plan) -> bool:
        """True when this tenant has as many calls here as it may have."""
