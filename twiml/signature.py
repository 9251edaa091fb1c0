"""Is this request from Twilio, and from which Twilio region: `X-Twilio-Signature` (twilio.md 3).

The signatures are those of the official library, which the tests compare with; they are computed here, because
strangers decide how often that happens. The library sorts and joins the fields anew for each token and each
spelling of the URL, which took 6.5 ms for one forged form; its `validate` raises TypeErrors on missing headers and
odd bodies, and takes 80 for the port of wss.

The URL is put together from a configured public base and the raw target of the request. `Host`, `X-Forwarded-*`
and the framework's own idea of the URL are never used (twilio.md 3.6). Does not know what the fields mean.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

FORM_TYPE = "application/x-www-form-urlencoded"

FIELDS_MAX = 256
"""Fields of one form. Twilio sends about 40, more with SIP headers; strangers could send 8,000 in 16 kB, and
every one costs time before the signature shows that the sender is a stranger."""

ESCAPES_MAX = 2_048
"""Percent-escapes of one form: decoding them is most of its cost. 680 characters of Japanese fit."""

_SIGNATURE_CHARS = 28
"""Base64 of the 20 bytes of HMAC-SHA1 (twilio.md 3.1)."""

_DEFAULT_PORTS = (("https", 443), ("http", 80))


class Form:
    """The decoded fields of a form, blanks and repeated names kept: all that the signature covers."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def signed_text(self) -> bytes:
        """The fields as Twilio signs them behind the URL: sorted, joined, equal values of a name once."""
        return "".join(
            name + value for name in sorted(self._values) for value in sorted(set(self._values[name]))
        ).encode()

    def one(self, name: str) -> str:
        """The value of a field that Twilio sends once; empty when it is missing or repeated.

        Of two CallSids, which one is meant cannot be known.
        """
        match self._values.get(name):
            case [value]:
                return value
            case _:
                return ""


@dataclass(frozen=True, slots=True)
class Signed:
    """A request that Twilio signed."""

    twilio_region: str
    """The region whose token fits: it processes the call (twilio.md 3.5)."""
    base: str
    """The public base under which Twilio reached us, without a slash at its end."""
    form: Form
    """The fields that the signature covers; there are no others."""


@dataclass(frozen=True, slots=True)
class _Spelling:
    """One way in which Twilio may have begun the text that it signed."""

    twilio_region: str
    base: str
    begun: hmac.HMAC
    """With the token as its key, over the scheme and the host: to be copied."""


class Signatures:
    """Checks signatures with every token of every Twilio region, over every public base we answer under."""

    def __init__(self, tokens: Mapping[str, str | Sequence[str]], public_urls: Sequence[str]) -> None:
        """`tokens`: Twilio region ("us1", "ie1", "au1") to auth token, or to several during rotation.

        `public_urls`: scheme and host, with a port if it is not the usual one: "https://voice.example.com".
        Raises ValueError for an empty token and for a base that is not such a URL.
        """
        keys = tuple(_keys(tokens))
        bases = tuple(_read_base(url) for url in public_urls)
        self._webhook = tuple(_spellings(keys, ((base.url, base.webhook) for base in bases)))
        self._upgrade = tuple(_spellings(keys, ((base.url, base.upgrade) for base in bases)))

    def webhook(
        self, raw_target: str, body: bytes, content_type: str | None, signature: str | None
    ) -> Signed | None:
        """Who signed this webhook; None when it is not signed with one of our tokens. Never raises.

        `raw_target` is the path and query exactly as received, percent-escapes and all.
        """
        if signature is None or not plausible(raw_target, signature):
            return None
        form = _covered(raw_target, body, content_type)
        if form is None:
            return None
        return _signed(self._webhook, (raw_target.encode() + form.signed_text(),), form, signature)

    def upgrade(self, raw_target: str, signature: str | None) -> Signed | None:
        """Who signed this upgrade: the wss URL, perhaps with a slash added (twilio.md 3.3). Never raises."""
        if signature is None or not plausible(raw_target, signature):
            return None
        target = raw_target.encode()
        return _signed(self._upgrade, (target, target + b"/"), Form(), signature)


def _signed(
    spellings: Iterable[_Spelling], endings: tuple[bytes, ...], form: Form, signature: str
) -> Signed | None:
    try:
        given = base64.b64decode(signature, validate=True)
    except binascii.Error:
        return None
    if base64.b64encode(given) != signature.encode():  # another spelling of the same bytes is not Twilio's
        return None
    for spelling in spellings:
        for ending in endings:
            mac = spelling.begun.copy()
            mac.update(ending)
            if hmac.compare_digest(mac.digest(), given):
                return Signed(spelling.twilio_region, spelling.base, form)
    return None


def _keys(tokens: Mapping[str, str | Sequence[str]]) -> Iterator[tuple[str, bytes]]:
    for region, given in tokens.items():
        for token in (given,) if isinstance(given, str) else given:
            if not token.strip():
                raise ValueError(f"the Twilio auth token of {region} is empty: anybody could sign with it")
            yield region, token.encode()


def _spellings(
    keys: Sequence[tuple[str, bytes]], bases: Iterable[tuple[str, tuple[str, ...]]]
) -> Iterator[_Spelling]:
    for url, starts in bases:
        for start in starts:
            for region, key in keys:
                yield _Spelling(region, url, hmac.new(key, start.encode(), hashlib.sha1))


@dataclass(frozen=True, slots=True)
class _Base:
    url: str
    webhook: tuple[str, ...]
    """The spellings of this base that Twilio may have signed, with and without the port."""
    upgrade: tuple[str, ...]


def _read_base(url: str) -> _Base:
    parts = urlsplit(url)
    bare = not (parts.username or parts.password or parts.query or parts.fragment) and parts.path in ("", "/")
    if parts.scheme not in dict(_DEFAULT_PORTS) or not parts.hostname or not bare:
        raise ValueError(f"a public URL is https://host or http://host:port and no more, not {url!r}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = parts.port or dict(_DEFAULT_PORTS)[parts.scheme]
    web = "wss" if parts.scheme == "https" else "ws"
    # Twilio signs https without the port, http with it, and not always so (twilio.md 3.1, 3.4): both count.
    hosts = (host, f"{host}:{port}")
    return _Base(
        url=f"{parts.scheme}://{hosts[1] if parts.port else host}",
        webhook=tuple(f"{parts.scheme}://{spelling}" for spelling in hosts),
        upgrade=tuple(f"{web}://{spelling}" for spelling in hosts),
    )


def plausible(raw_target: str, signature: str) -> bool:
    """True when it is worth looking further. A URL of Twilio's is ASCII: everything else is percent-escaped."""
    if len(signature) != _SIGNATURE_CHARS or not signature.isascii():
        return False
    return raw_target.startswith("/") and raw_target.isascii()


def _covered(raw_target: str, body: bytes, content_type: str | None) -> Form | None:
    """The fields that a signature of this request covers, None when part of the body would be uncovered."""
    if is_form(content_type):
        return _read_form(body)
    hashes = [value for name, value in _pairs(raw_target.partition("?")[2]) or () if name == "bodySHA256"]
    if not body and not hashes:
        return Form()
    if len(hashes) != 1 or not hmac.compare_digest(hashes[0].encode(), _sha256(body)):
        return None
    return Form()


def is_form(content_type: str | None) -> bool:
    """True for the content type of every voice webhook, whatever its charset parameter."""
    return (content_type or "").partition(";")[0].strip().lower() == FORM_TYPE


def _sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _read_form(body: bytes) -> Form | None:
    """None when it is not a form in UTF-8: Twilio did not make it, so no signature of Twilio's covers it."""
    if body.count(b"%") > ESCAPES_MAX:
        return None
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return None
    pairs = _pairs(text)
    return None if pairs is None else Form(pairs)


def _pairs(text: str) -> list[tuple[str, str]] | None:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError:  # too many fields, or escapes that are not UTF-8 (UnicodeDecodeError is one)
        return None
