"""The way into every webhook: sender, size, signature, content type, ids, in this order.

It does not know what a webhook answers to a request that got through.

- 429: this sender has been refused too often in the last seconds. Its body is not read.
- 413: more than 16 kB.
- 408, 503: the body did not come in time, or others were waiting for their turn.
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

from app.call.plan import Plan
from app.regions.addresses import FLY_CLIENT
from app.regions.addresses import sender as sender_of
from twiml.replay_policy import Header
from twiml.signature import Form, Signatures, is_form, plausible
from twiml.strangers import Strangers

log = logging.getLogger("nearcall.twiml")

BODY_MAX_BYTES = 16_384
"""Twilio's forms have 1 to 3 kB."""

BODY_WAIT_S = 3.0
"""Twilio sends headers and body at once."""

BODIES_MAX = 64
"""Bodies that are awaited at the same time. One more, and the server gives up the one it has awaited longest:
Twilio does not send slowly."""

_STRANGERS = frozenset({"signature", "body_late", "body_long", "too_many_bodies"})
"""Reasons that say that the sender is not Twilio. A signed request that is refused is an operator's mistake."""

_CALL_SID = re.compile(r"CA[0-9a-fA-F]{32}", re.ASCII)
_ACCOUNT_SID = re.compile(r"AC[0-9a-fA-F]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class CallTenant:
    """What is known about the tenant of the call that a webhook is about."""

    name: str
    zone: str | None
    """The zone of the tenant that has the dialled number; None: no tenant has it, or the tenants are not known."""
    may_be_logged: bool
    """The zone of the call is known, and this machine's region belongs to it."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A webhook that Twilio signed for a call of ours."""

    call_sid: str
    twilio_region: str
    base: str
    """The public base under which Twilio reached us: answers send it back to the same one."""
    form: Form
    tenant: CallTenant
    header: Header
    signature: str
    zone: str | None = None
    """The zone in the path, if the number's URL names one."""
    answered_in: str = ""
    """The region in the path: where the call was answered."""
    continuation: str = ""
    """The continuation in the path, as it came."""
    backend: str = ""
    """`?backend=NAME` of the number's URL: the backend to prefer for this call."""

    def ids(self, **more: object) -> dict[str, object]:
        """The ids of the call that a log line may name, `more` ids included.

        None of them before zone and region are known to agree: a log is kept where it is written. The zone in the
        path does not count: it may be mistyped, or that of another tenant.
        """
        named = (
            {"call_sid": self.call_sid, "tenant": self.tenant.name, **more} if self.tenant.may_be_logged else {}
        )
        return {**named, "twilio_region": self.twilio_region}


PlanFor = Callable[[str], Plan | None]
"""The plan of the tenant whose number was dialled; None when there are tenants and none has the number. The number
is Twilio's `To`: E.164 for phones, `sip:...` otherwise, empty when it is missing."""

Handler = Callable[[Incoming], Response | Awaitable[Response]]
"""Answers a webhook. It must not block; one that waits for something is a coroutine."""

Gate = Callable[[str, Header, str], Response | None]
"""Takes a zone, a request's headers and Twilio's signature of it; the answer, or None to go on."""


class Intake:
    """Lets webhooks through to their handlers, or refuses them."""

    def __init__(
        self,
        signatures: Signatures,
        account_sid: str | None,
        find_tenant: Callable[[str, str], CallTenant],
        *,
        clock: Callable[[], float],
        on_fly: bool,
        body_wait_s: float = BODY_WAIT_S,
    ) -> None:
        """`account_sid`: the only account to accept; None accepts every account that signs with our tokens.

        `find_tenant` finds it by the CallSid and the dialled number, which is not in every webhook. `clock`:
        seconds. `on_fly`: requests come through Fly's proxy, which says who sends them.
        """
        self._signatures = signatures
        self._account_sid = account_sid
        self._find_tenant = find_tenant
        self._clock = clock
        self._on_fly = on_fly
        self._body_wait_s = body_wait_s
        self._strangers = Strangers()
        self._bodies: dict[asyncio.Timeout, None] = {}
        """The time limits of the bodies that are awaited, the one awaited longest first."""

    def endpoint(self, name: str, handler: Handler, gate: Gate) -> Callable[[Request], Awaitable[Response]]:
        """A Starlette endpoint around `handler`. `name` is for the log.

        `gate` may answer first, by the zone in the path and the headers: before the body, which has numbers in
        it, is even received. Without a zone in the path it is asked with the tenant's, before anything is logged.
        """

        async def endpoint(request: Request) -> Response:
            sender = self._sender(request)
            if sender is not None and self._strangers.limited(sender, self._clock()):
                return _refusal(429)
            signature = request.headers.get("x-twilio-signature") or ""
            zone = request.path_params.get("zone")
            elsewhere = None if zone is None else gate(zone, request.headers.get, signature)
            if elsewhere is not None:
                return elsewhere
            body = await self._body(request, signature)
            if not isinstance(body, bytes):
                return self._refuse(name, sender, *body)
            match self._admit(request, body):
                case Incoming() as incoming:
                    if sender is not None:
                        self._strangers.signed(sender, self._clock())
                    if zone is None and incoming.tenant.zone is not None:
                        elsewhere = gate(incoming.tenant.zone, incoming.header, signature)
                    if elsewhere is not None:
                        return elsewhere
                    answer = handler(incoming)
                    return answer if isinstance(answer, Response) else await answer
                case (status, reason):
                    return self._refuse(name, sender, status, reason)

        return endpoint

    def _sender(self, request: Request) -> str | None:
        """The sender's address; None when the request does not show it."""
        if self._on_fly:
            return sender_of(request.headers.get(FLY_CLIENT))
        return sender_of(request.client.host if request.client is not None else None)

    async def _body(self, request: Request, signature: str) -> bytes | tuple[int, str]:
        """The whole body, or the status and the reason for not waiting for it."""
        if not plausible(_raw_target(request), signature):
            return 403, "signature"
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > BODY_MAX_BYTES:
            return 413, "body_long"
        body = bytearray()
        if len(self._bodies) >= BODIES_MAX:
            oldest = next(iter(self._bodies))
            del self._bodies[oldest]
            if not oldest.expired():
                oldest.reschedule(0.0)
        limit = asyncio.timeout(self._body_wait_s)
        try:
            async with limit:
                self._bodies[limit] = None
                async for piece in request.stream():
                    body += piece
                    if len(body) > BODY_MAX_BYTES:
                        return 413, "body_long"
        except TimeoutError:
            return (408, "body_late") if limit in self._bodies else (503, "too_many_bodies")
        except ClientDisconnect:
            return 400, "body_cut"
        finally:
            self._bodies.pop(limit, None)
        return bytes(body)

    def _refuse(self, name: str, sender: str | None, status: int, reason: str) -> Response:
        log.warning("webhook_refused", extra={"webhook": name, "status": status, "reason": reason})
        if sender is not None and reason in _STRANGERS and self._strangers.refused(sender, self._clock()):
            log.warning("sender_limited", extra={"sender": sender})
        return _refusal(status)

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
        return Incoming(
            call_sid,
            signed.twilio_region,
            signed.base,
            signed.form,
            self._find_tenant(call_sid, signed.form.one("To")),
            request.headers.get,
            request.headers.get("x-twilio-signature") or "",
            request.path_params.get("zone"),
            request.path_params.get("region", ""),
            request.path_params.get("continuation", ""),
            request.query_params.get("backend", ""),
        )


def _raw_target(request: Request) -> str:
    """Path and query byte for byte as received (twilio.md 3.6)."""
    # latin-1 cannot fail; the signature check refuses what is not ASCII.
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


def _refusal(status: int) -> Response:
    """An empty answer that closes the connection: the server does not wait for the rest of a body."""
    return Response(status_code=status, headers={"Connection": "close"})
