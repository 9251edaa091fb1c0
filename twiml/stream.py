"""`POST /twiml/stream`: Twilio reports the status of a media stream. Logged, answered with 204, never acted on.

It is the only witness of a handshake that never reached us. Its order relative to the socket is not
guaranteed (twilio.md 1.8), so nothing is decided by it.
"""

import logging
import re
from types import MappingProxyType

from starlette.responses import Response

from twiml.intake import Incoming
from twiml.status import known

log = logging.getLogger("nearcall.twiml")

EVENTS = frozenset({"stream-started", "stream-stopped", "stream-error"})

CLOSED_BY_US = 31921
"""Twilio logs it whenever we close a stream, also when we want to (twilio.md 1.6): no reason for an alarm."""

ERRORS = MappingProxyType(
    {
        31900: "fault on Twilio's side",
        31901: "connecting timed out",
        31902: "connection refused",
        31903: "connection broke abruptly",
        31904: "host unreachable",
        31910: "TLS failure",
        31920: "upgrade not answered with 101",
        CLOSED_BY_US: "closed by this server",
        31922: "URL is not wss",
        31923: "URL malformed",
        31924: "WebSocket protocol violated",
        31930: "caller audio dropped, this server reads too slowly",
        31931: "agent audio dropped, ten minutes were queued",
        31941: "track not allowed",
        31950: "message could not be decoded",
        31951: "message not valid",
    }
)
"""twilio.md 1.6."""

_CODE = re.compile(r"\b319\d\d\b", re.ASCII)
_STREAM_SID = re.compile(r"MZ[0-9a-fA-F]{32}", re.ASCII)


def note_stream(incoming: Incoming) -> Response:
    """Log one stream status callback.

    Only the code of `StreamError` is logged: its wording is not documented and may quote the URL, which holds the
    ticket.
    """
    form = incoming.form
    event = known(form.one("StreamEvent"), EVENTS)
    code = error_code(form.one("StreamError"))
    stream_sid = form.one("StreamSid")
    failed = event == "stream-error" and code != CLOSED_BY_US
    log.log(
        logging.WARNING if failed else logging.INFO,
        "stream_status_received",
        extra={
            **incoming.ids(stream_sid=stream_sid if _STREAM_SID.fullmatch(stream_sid) else "unknown"),
            "stream_event": event,
            "error_code": code,
            "error": None if code is None else ERRORS.get(code, "not in our list"),
        },
    )
    return Response(status_code=204)


def error_code(text: str) -> int | None:
    """The Twilio error code in a `StreamError`, None when there is none."""
    found = _CODE.search(text)
    return None if found is None else int(found.group())
