"""The ticket: the path segment of a stream URL that lets one media socket in, once.

Twilio drops query strings and delivers `<Parameter>` only after the socket was accepted (twilio.md 1.7), so
what the upgrade must prove travels in the path. So do the caller's and the called number, because the machine
that gets the stream need not be the one that answered the webhook. A path ends up in other people's logs: the
numbers are encrypted, with a key that only machines with NEARCALL_SECRET have.

A continuation is the same for the time after the stream: the path segment of the URLs at which Twilio asks how a
call goes on. Twilio sends no ticket then, and the machine that is asked may never have heard of the call.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field, replace
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

CONTINUATION_VALID_S = 24 * 3_600
"""From the beginning of the call. Twilio ends every call after 24 h (`timeLimit`)."""

CONTINUATION_MAX_CHARS = 600
"""A usual one has 230 characters."""

RESUMES_KEPT = 3
"""The instants of so many resumes are in a continuation, the newest."""

_SALT = "nearcall.media-ticket.1"
_CONTINUATION_SALT = "nearcall.continuation.1"
_NUMBERS_SALT = "nearcall.media-ticket.numbers.1"
"""Each separates one use of the secret from the others. Another shape of ticket gets another number."""

_LEG = ";"
"""Before the epoch, and before the instant at which the call began. No backend's name has one."""

_NONCE_BYTES = 12
"""The size that AES-GCM wants (NIST SP 800-38D, 8.2.2). Random ones are good for 2**32 tickets with one secret."""


class Flaw(StrEnum):
    """What is wrong with a ticket or a continuation. For logs and counters, never for the peer."""

    MALFORMED = "malformed"
    FORGED = "forged"
    EXPIRED = "expired"
    EARLY = "early"


class BadTicket(Exception):  # noqa: N818  it is the ticket that is bad, nothing of ours failed
    """This text is not a valid ticket."""

    def __init__(self, reason: Flaw) -> None:
        super().__init__(reason.value)
        self.reason = reason


class BadContinuation(Exception):  # noqa: N818  as for a ticket
    """This text is not a valid continuation."""

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
    epoch: int = 0
    """The number of the leg that this stream will be: 0 for the first stream of a call."""
    began_ms: int | None = None
    """When the call began, in Unix ms; None: it begins with this ticket."""

    @property
    def started_ms(self) -> int:
        """When the call began, in Unix ms."""
        return self.issued_s * 1_000 if self.began_ms is None else self.began_ms


@dataclass(frozen=True, slots=True)
class Continuation:
    """Whose call it is that goes on, and how far it has come."""

    call_sid: str
    tenant: str
    zone: str
    epoch: int
    """The number of the leg that was answered with this continuation."""
    started_ms: int
    """When the call began, in Unix ms."""
    language: str
    """In which its agent speaks."""
    resumed_ms: tuple[int, ...] = ()
    """When its last RESUMES_KEPT legs began that resumed it, in Unix ms, oldest first."""

    def resumed(self, epoch: int, now_ms: int) -> "Continuation":
        """The continuation of the next leg."""
        return replace(self, epoch=epoch, resumed_ms=(*self.resumed_ms, now_ms)[-RESUMES_KEPT:])


def signer_of(secret: str, salt: str = _SALT) -> Signer:
    """What signs a path segment: that of a ticket, or of another use with another `salt`."""
    return Signer(secret, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)


class _SignedFields:
    """Lists of plain values as signed texts."""

    def __init__(self, secret: str, salt: str) -> None:
        if not secret:
            raise ValueError("the ticket secret is empty: anybody could sign tickets")
        self._signer = signer_of(secret, salt)

    def sign(self, fields: list[object]) -> str:
        """The text of these fields: one URL path segment."""
        return self._signer.sign(base64_encode(orjson.dumps(fields))).decode("ascii")

    def read(self, text: str, chars_max: int) -> object | Flaw:
        """The fields that were signed as exactly this text."""
        if len(text) > chars_max or not text.isascii():
            return Flaw.MALFORMED
        # Not Signer.unsign: base64 ignores foreign characters and the last bits of the last one, so it takes
        # several spellings of one signature. We sign again and compare.
        signed = text.encode("ascii")
        payload, _, _ = signed.rpartition(b".")
        if not hmac.compare_digest(self._signer.sign(payload), signed):
            return Flaw.FORGED
        try:
            fields: object = orjson.loads(base64_decode(payload))
        except (BadData, orjson.JSONDecodeError):
            return Flaw.MALFORMED  # another version of this program may have made it
        return fields


class Tickets:
    """Writes and reads tickets. Every machine has the same secret and reads the others' tickets."""

    def __init__(self, secret: str) -> None:
        self._signed = _SignedFields(secret, _SALT)
        numbers = signer_of(secret, _NUMBERS_SALT)
        self._cipher = AESGCM(numbers.derive_key())

    def issue(self, ticket: Ticket) -> str:
        """The ticket as one URL path segment. Raises ValueError when tenant and zone are too long for it."""
        fields: list[object] = [
            ticket.call_sid,
            ticket.tenant,
            ticket.zone,
            ticket.issued_s,
            ticket.nonce,
            ticket.resumes,
        ]
        sealed = self._seal(ticket.caller, ticket.called)
        leg = f"{_LEG}{ticket.epoch}{_LEG}{ticket.started_ms}" if ticket.epoch else ""
        if ticket.backend or sealed or leg:
            # They share a field. A machine that runs the version before takes what precedes the blank for the name
            # of a backend that it does not have, which it ignores; it would refuse a ticket with another field.
            fields.append(f"{ticket.backend}{leg} {sealed}".rstrip())
        text = self._signed.sign(fields)
        if len(text) > TICKET_MAX_CHARS:
            raise ValueError(f"a ticket of {len(text)} characters for tenant {ticket.tenant!r}")
        return text

    def read(self, text: str, now_s: float) -> Ticket:
        """The ticket that was issued as exactly this text. Raises BadTicket, and nothing else."""
        ticket = self._parse(self._signed.read(text, TICKET_MAX_CHARS))
        if now_s - ticket.issued_s > TICKET_VALID_S:
            raise BadTicket(Flaw.EXPIRED)
        if ticket.issued_s - now_s > CLOCK_SKEW_S:
            raise BadTicket(Flaw.EARLY)
        return ticket

    def _parse(self, fields: object | Flaw) -> Ticket:
        """Our own signature is on the fields, but another version of this program may have made them."""
        match fields:
            case Flaw():
                raise BadTicket(fields)
            case [str(call_sid), str(tenant), str(zone), int(issued_s), str(nonce), bool(resumes)]:
                return Ticket(call_sid, tenant, zone, issued_s, nonce, resumes)
            case [str(call_sid), str(tenant), str(zone), int(issued_s), str(nonce), bool(resumes), str(more)]:
                named, _, sealed = more.partition(" ")
                backend, epoch, began_ms = _leg_in(named)
                caller, called = self._unseal(sealed)
                return Ticket(
                    *(call_sid, tenant, zone, issued_s, nonce, resumes, backend, caller, called, epoch, began_ms)
                )
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


def _leg_in(named: str) -> tuple[str, int, int | None]:
    """A backend's name, the epoch and the call's beginning, as `issue` joins them. Raises BadTicket."""
    match named.split(_LEG):
        case [backend]:
            return backend, 0, None
        case [backend, epoch, began_ms] if epoch.isdecimal() and began_ms.isdecimal():
            return backend, int(epoch), int(began_ms)
        case _:
            raise BadTicket(Flaw.MALFORMED)


class Continuations:
    """Writes and reads continuations. Every machine has the same secret and reads the others'."""

    def __init__(self, secret: str) -> None:
        self._signed = _SignedFields(secret, _CONTINUATION_SALT)

    def issue(self, of: Continuation) -> str:
        """The continuation as one URL path segment. Raises ValueError when its names are too long for it."""
        text = self._signed.sign(
            [of.call_sid, of.tenant, of.zone, of.epoch, of.started_ms, of.language, list(of.resumed_ms)]
        )
        if len(text) > CONTINUATION_MAX_CHARS:
            raise ValueError(f"a continuation of {len(text)} characters for tenant {of.tenant!r}")
        return text

    def read(self, text: str, now_s: float) -> Continuation:
        """The continuation that was issued as exactly this text. Raises BadContinuation, and nothing else."""
        match self._signed.read(text, CONTINUATION_MAX_CHARS):
            case Flaw() as flaw:
                raise BadContinuation(flaw)
            case [
                str(call_sid),
                str(tenant),
                str(zone),
                int(epoch),
                int(started_ms),
                str(language),
                list(resumed),
            ]:
                pass
            case _:
                raise BadContinuation(Flaw.MALFORMED)
        resumed_ms = tuple(instant for instant in resumed if isinstance(instant, int))
        if epoch < 0 or len(resumed_ms) != len(resumed):
            raise BadContinuation(Flaw.MALFORMED)
        if now_s - started_ms / 1_000 > CONTINUATION_VALID_S:
            raise BadContinuation(Flaw.EXPIRED)
        if started_ms / 1_000 - now_s > CLOCK_SKEW_S:
            raise BadContinuation(Flaw.EARLY)
        return Continuation(call_sid, tenant, zone, epoch, started_ms, language, resumed_ms)


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
