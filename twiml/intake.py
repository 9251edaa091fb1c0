"""The way into every webhook: size, signature, content type, ids, in this order.

What a webhook answers to a request that got through is none of its business.

- 413: more than 64 kB. The one thing told to a stranger, because the signature covers the body.
- 403, empty: not signed by a token of ours over a base of ours, or another account's.
- 415: signed, but not a form. Voice webhooks are forms (twilio.md 3.1).
- 400: signed, but CallSid or AccountSid is missing, repeated or malformed.

Twilio does not retry a 4xx unless the number's URL asks for it; it logs 11200 and takes the number's fallback
URL (twilio.md 2.6).
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from twiml.passage import Header
from twiml.signature import Form, Signatures, is_form

log = logging.getLogger("nearcall.twiml")

BODY_MAX_BYTES = 65_536
"""Twilio's forms have 1 to 3 kB."""

BODY_WAIT_S = 15.0
"""Twilio has given up the whole request by then (twilio.md 2.6); who still sends is not Twilio."""

_CALL_SID = re.compile(r"CA[0-9a-fA-F]{32}", re.ASCII)
_ACCOUNT_SID = re.compile(r"AC[0-9a-fA-F]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A webhook that Twilio signed for a call of ours."""

    call_sid: str
    twilio_region: str
    base: str
    """The public base under which Twilio reached us: answers send it back to the same one."""
    form: Form
    tenant: str
    tenants_zone: str | None
    """None: nobody has the dialled number, or it is not said."""
    header: Header
    signature: str
    zone: str | None = None
    """The zone in the path, if the number's URL names one."""
    answered_in: str = ""
    """The region in the path: where the call was answered."""
    backend: str = ""
    """`?backend=NAME` of the number's URL: to prefer for this call."""

    @property
    def ids(self) -> dict[str, object]:
        """What every log line about it carries."""
        return {"call_sid": self.call_sid, "tenant": self.tenant, "twilio_region": self.twilio_region}


Gate = Callable[[str, Header, str], Response | None]
"""Takes a zone, a request's headers and Twilio's signature of it; the answer, or None to go on."""


class Intake:
    """Lets webhooks through to their handlers, or refuses them."""

    def __init__(
        self, signatures: Signatures, account_sid: str | None, whose: Callable[[str, str], tuple[str, str | None]]
    ) -> None:
        """`account_sid`: the one account whose calls are ours; None takes all that sign with our tokens.

        `whose`: the tenant of a call, and the zone of who has the dialled number, if that is known. By the
        CallSid and that number, which is not in every webhook.
        """
        self._signatures = signatures
        self._account_sid = account_sid
        self._whose = whose

    def endpoint(
        self, name: str, handler: Callable[[Incoming], Response], gate: Gate
    ) -> Callable[[Request], Awaitable[Response]]:
        """A Starlette endpoint around `handler`, which must not block. `name` is for the log.

        `gate` may answer first, by the zone in the path and the headers: before the body, which has numbers in
        it, is even received. Without a zone in the path it is asked with the tenant's, before anything is logged.
        """

        async def endpoint(request: Request) -> Response:
            signature = request.headers.get("x-twilio-signature") or ""
            zone = request.path_params.get("zone")
            elsewhere = None if zone is None else gate(zone, request.headers.get, signature)
            if elsewhere is not None:
                return elsewhere
            try:
                async with asyncio.timeout(BODY_WAIT_S):
                    body = await request.body()
            except TimeoutError:
                return _refuse(name, 408, "body_late")
            except ClientDisconnect:
                return _refuse(name, 400, "body_cut")
            match self._admit(request, body):
                case Incoming() as incoming:
                    if zone is None and incoming.tenants_zone is not None:
                        elsewhere = gate(incoming.tenants_zone, incoming.header, signature)
                    return handler(incoming) if elsewhere is None else elsewhere
                case (status, reason):
                    return _refuse(name, status, reason)

        return endpoint

    def _admit(self, request: Request, body: bytes) -> Incoming | tuple[int, str]:
        content_type = request.headers.get("content-type")
        signed = self._signatures.webhook(
            _raw_target(request), body, content_type, request.headers.get("x-twilio-signature")
        )
        if signed is None:
            return 403, "signature"
        if body and not is_form(content_type):
            return 415, "not_a_form"
        call_sid, account_sid = signed.form.one("CallSid"), signed.form.one("AccountSid")
        if not _CALL_SID.fullmatch(call_sid):
            return 400, "call_sid"
        if not _ACCOUNT_SID.fullmatch(account_sid):
            return 400, "account_sid"
        if self._account_sid is not None and account_sid != self._account_sid:
            return 403, "other_account"
        tenant, tenants_zone = self._whose(call_sid, signed.form.one("To"))
        return Incoming(
            call_sid,
            signed.twilio_region,
            signed.base,
            signed.form,
            tenant,
            tenants_zone,
            request.headers.get,
            request.headers.get("x-twilio-signature") or "",
            request.path_params.get("zone"),
            request.path_params.get("region", ""),
            request.query_params.get("backend", ""),
        )


def _raw_target(request: Request) -> str:
    """Path and query byte for byte as received (twilio.md 3.6)."""
    # latin-1 cannot fail; the signature check refuses what is not ASCII.
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


def _refuse(name: str, status: int, reason: str) -> Response:
    log.warning("webhook refused", extra={"webhook": name, "status": status, "reason": reason})
    return Response(status_code=status)
