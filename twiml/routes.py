"""The webhooks' routes: paths and methods, nothing else.

The application that mounts them must not redirect slashes: a 307 changes the URL that Twilio signed
(twilio.md 3.6).
"""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.routing import Route

from twiml.after import After
from twiml.desk import Desk, PlanFor
from twiml.documents import AFTER_PATH, STREAM_PATH
from twiml.intake import BODY_MAX_BYTES, Intake
from twiml.signature import Signatures
from twiml.status import note_status
from twiml.stream import note_stream
from twiml.ticket import Tickets, new_nonce
from twiml.voice import Voice


@dataclass(frozen=True, slots=True)
class Parts:
    """What the webhooks need from outside."""

    signatures: Signatures
    tickets: Tickets
    desk: Desk
    plan_for: PlanFor
    zones: frozenset[str]
    """Names of the zones that calls may be handled in here."""
    account_sid: str | None
    """The one Twilio account that is ours; None: every one that signs with our tokens."""
    clock: Callable[[], float]
    """Unix seconds."""
    nonce: Callable[[], str] = new_nonce


def routes(parts: Parts) -> list[Route]:
    """`POST` only: Starlette answers 405 to everything else, so nothing of ours is cached by Twilio."""

    def tenant_of(call_sid: str, called: str) -> str:
        return parts.desk.tenant(call_sid) or parts.plan_for(called).tenant

    intake = Intake(parts.signatures, parts.account_sid, tenant_of)
    voice = Voice(
        parts.desk,
        tickets=parts.tickets,
        plan_for=parts.plan_for,
        zones=parts.zones,
        clock=parts.clock,
        nonce=parts.nonce,
    )
    after = After(parts.desk, parts.plan_for)
    table = (
        ("/twiml/voice", "voice", voice.answer),
        ("/twiml/voice/{zone}", "voice", voice.answer),
        (AFTER_PATH, "after", after.answer),
        ("/twiml/status", "status", note_status),
        (STREAM_PATH, "stream", note_stream),
    )
    return [
        Route(path, intake.endpoint(name, handler), methods=["POST"], max_body_size=BODY_MAX_BYTES)
        for path, name, handler in table
    ]
