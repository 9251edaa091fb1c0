"""The ticket: the path segment of a stream URL that lets one media socket in, once.

Twilio drops query strings and delivers `<Parameter>` only after the socket was accepted (twilio.md 1.7), so
what the upgrade must prove travels in the path. So do the caller's and the called number, because the machine
that gets the stream need not be the one that answered the webhook. A path ends up in other people's logs: the
numbers are encrypted, with a key that only machines with NEARCALL_SECRET have.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from enum import StrEnum

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from itsdangerous import BadData, Signer
from itsdangerous.encoding import base64_decode, base64_encode

from app.bridge.expiring import Expiring

MEDIA_PREFIX = "/media/"
"""Path of the media socket; the ticket follows and is the last segment."""

TICKET_VALID_S = 60
"""Twilio opens the stream within a second of the answer. A minute covers sentences spoken before `<Connect>`
and a slow retry of the webhook, and is short for somebody who finds the URL in a log."""

CLOCK_SKEW_S = 5
"""A ticket may come from another machine whose clock is ahead. A clock that is behind costs only a few seconds of
the minute, so nothing is added at that end."""

TICKET_MAX_CHARS = 800
"""With two phone numbers a ticket has about 300 characters; proxies and access logs cope with 2,000 and more."""

NUMBER_MAX_CHARS = 100
"""The longest start of a number that a ticket carries. E.164 has 16 characters at most; a longer SIP address is
cut."""

NONCES_MAX = 50_000
"""Accepted tickets remembered at a time, a few MB. That is 770 new calls a second on one machine."""

_SALT = "nearcall.media-ticket.1"
_NUMBERS_SALT = "nearcall.media-ticket.numbers.1"
"""Each separates one use of the secret from the others. Another shape of ticket gets another number."""

_NONCE_BYTES = 12
"""The size that AES-GCM wants (NIST SP 800-38D, 8.2.2). Random ones are good for 2**32 tickets with one secret."""


class Flaw(StrEnum):
    """What is wrong with a ticket. For logs and counters, never for the peer."""

    MALFORMED = "malformed"
    FORGED = "forged"
    EXPIRED = "expired"
    EARLY = "early"


class BadTicket(Exception):  # noqa: N818  it is the ticket that is bad, nothing of ours failed
    """This text is not a valid ticket."""

    def __init__(self, reason: Flaw) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to open the media socket of one call."""

    call_sid: str
    tenant: str
    zone: str
    issued_s: int
    """Unix seconds, by the clock of the machine that answered the webhook."""
    nonce: str
    resumes: bool = False
    """True when the stream continues a call that lost its first one."""
    backend: str = ""
    """The backend to prefer for this call; empty: its tenant's wishes decide."""
    caller: str = field(default="", repr=False)
    """Empty when the version before issued the ticket."""
    called: str = field(default="", repr=False)


def signer_of(secret: str) -> Signer:
    """What signs the path segment of a ticket."""
    return Signer(secret, salt=_SALT, key_derivation="hmac", digest_method=hashlib.sha256)


class Tickets:
    """Writes and reads tickets. Every machine has the same secret and reads the others' tickets."""

    def __init__(self, secret: str) -> None:
        if not secret:
            raise ValueError("the ticket secret is empty: anybody could sign tickets")
        self._signer = signer_of(secret)
        numbers = Signer(secret, salt=_NUMBERS_SALT, key_derivation="hmac", digest_method=hashlib.sha256)
        self._cipher = AESGCM(numbers.derive_key())

    def issue(self, ticket: Ticket) -> str:
        """The ticket as one URL path segment. Raises ValueError when tenant and zone are too long for it."""
        fields = [ticket.call_sid, ticket.tenant, ticket.zone, ticket.issued_s, ticket.nonce, ticket.resumes]
        sealed = self._seal(ticket.caller, ticket.called)
        if ticket.backend or sealed:
            # The two share a field. A machine that runs the version before takes it for the name of a backend
            # that it does not have, which it ignores; it would refuse a ticket with another field.
            fields.append(f"{ticket.backend} {sealed}".rstrip())
        text = self._signer.sign(base64_encode(orjson.dumps(fields))).decode("ascii")
        if len(text) > TICKET_MAX_CHARS:
            raise ValueError(f"a ticket of {len(text)} characters for tenant {ticket.tenant!r}")
        return text

    def read(self, text: str, now_s: float) -> Ticket:
        """The ticket that was issued as exactly this text. Raises BadTicket, and nothing else."""
        if len(text) > TICKET_MAX_CHARS or not text.isascii():
            raise BadTicket(Flaw.MALFORMED)
        ticket = self._parse(self._payload(text.encode("ascii")))
        if now_s - ticket.issued_s > TICKET_VALID_S:
            raise BadTicket(Flaw.EXPIRED)
        if ticket.issued_s - now_s > CLOCK_SKEW_S:
            raise BadTicket(Flaw.EARLY)
        return ticket

    def _payload(self, text: bytes) -> bytes:
        """The signed part, if the signature fits."""
        # Not Signer.unsign: base64 ignores foreign characters and the last bits of the last one, so it takes
        # several spellings of one signature. We sign again and compare.
        payload, _, _ = text.rpartition(b".")
        if not hmac.compare_digest(self._signer.sign(payload), text):
            raise BadTicket(Flaw.FORGED)
        return payload

    def _parse(self, payload: bytes) -> Ticket:
        """Our own signature is on the payload, but another version of this program may have made it."""
        try:
            fields = orjson.loads(base64_decode(payload))
        except (BadData, orjson.JSONDecodeError):
            raise BadTicket(Flaw.MALFORMED) from None
        match fields:
            case [str(call_sid), str(tenant), str(zone), int(issued_s), str(nonce), bool(resumes)]:
                return Ticket(call_sid, tenant, zone, issued_s, nonce, resumes)
            case [str(call_sid), str(tenant), str(zone), int(issued_s), str(nonce), bool(resumes), str(more)]:
                backend, _, sealed = more.partition(" ")
                return Ticket(call_sid, tenant, zone, issued_s, nonce, resumes, backend, *self._unseal(sealed))
            case _:
                raise BadTicket(Flaw.MALFORMED)

    def _seal(self, caller: str, called: str) -> str:
        """Both numbers, encrypted; empty when there are none."""
        if not (caller or called):
            return ""
        numbers = [number.encode("utf-8", "replace")[:NUMBER_MAX_CHARS] for number in (caller, called)]
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return base64_encode(nonce + self._cipher.encrypt(nonce, b"\0".join(numbers), None)).decode("ascii")

    def _unseal(self, sealed: str) -> tuple[str, str]:
        """The numbers. Raises BadTicket for what was not made by `_seal`."""
        if not sealed:
            return "", ""
        try:
            raw = base64_decode(sealed)
            numbers = self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], None)
        except (BadData, InvalidTag, ValueError):
            raise BadTicket(Flaw.MALFORMED) from None
        caller, _, called = numbers.decode("utf-8", "ignore").partition("\0")
        return caller, called


class Nonces:
    """The tickets used on this machine, remembered as long as they could be read again."""

    def __init__(self, limit: int = NONCES_MAX) -> None:
        # One from the future lives CLOCK_SKEW_S longer here, and the last second counts as valid.
        self._spent: Expiring[bool] = Expiring(TICKET_VALID_S + CLOCK_SKEW_S + 1, limit)

    def spent(self, ticket: Ticket, now_s: float) -> bool:
        """True when this ticket has opened a stream already."""
        return self._spent.get(ticket.nonce, now_s) is not None

    def spend(self, ticket: Ticket, now_s: float) -> bool:
        """Use the ticket up. False when there is no place to remember it: then it must not open a stream."""
        return self._spent.put(ticket.nonce, True, now_s)


def new_nonce() -> str:
    """128 random bits, in 22 characters."""
    return secrets.token_urlsafe(16)
