"""`POST /twiml/status`: Twilio reports the status of calls. Logged, answered with 204, never acted on.

Callbacks may come late, twice and out of order (twilio.md 2.5): each is one line with its sequence number,
and readers order the lines by it.
"""

import logging

from starlette.responses import Response

from twiml.after import OVER
from twiml.intake import Incoming

log = logging.getLogger("nearcall.twiml")

STATUSES = OVER | {"queued", "ringing", "in-progress"}
"""Every CallStatus (twilio.md 2.4)."""


def note_status(incoming: Incoming) -> Response:
    """Log one call status callback."""
    form = incoming.form
    log.info(
        "call_status_received",
        extra={
            **incoming.ids(),
            "call_status": known(form.one("CallStatus"), STATUSES),
            "sequence": number(form.one("SequenceNumber")),
            "duration_s": number(form.one("CallDuration")),
            "sip_code": number(form.one("SipResponseCode")),
            "error_code": number(form.one("ErrorCode")),
        },
    )
    return Response(status_code=204)


def known(word: str, words: frozenset[str]) -> str:
    """The word if it is one of `words`: anything else might be a phone number, and is not logged."""
    return word if word in words else "unknown"


def number(text: str) -> int | None:
    """A count as Twilio writes it; None when it is missing, not digits, or too long to be a count."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None
