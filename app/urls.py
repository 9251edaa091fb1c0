"""URLs in settings: one rule for everything that nearcall connects to.

Refuses to know which setting a URL belongs to.
"""

import ipaddress
from urllib.parse import SplitResult, urlsplit

from app.validation import PlaceholderError, WrongValueError

_EXAMPLE_DOMAINS = ("example", "example.com", "example.net", "example.org")
"""Reserved for documentation by RFC 2606 and RFC 6761: no server is there."""
_EXAMPLE_LABELS = frozenset({"NAME", "HOST"})
"""What the README writes where a name has to go. Only as it is written there: a server may be called `name`."""


class UrlError(WrongValueError):
    """A URL cannot be used. `str()` says why and does not repeat the URL: it may have a secret in it."""


class ExampleUrl(UrlError, PlaceholderError):  # noqa: N818  says what is wrong
    """A URL of the documentation, in which the host has not been replaced."""


def http_url(text: object) -> SplitResult:
    """Read scheme, host, perhaps a port and a path, and nothing else. Raises UrlError."""
    if not isinstance(text, str):
        raise UrlError
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise UrlError("no such port" if "port" in str(error).lower() else "not a URL") from None
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        raise UrlError("not a URL")
    if parts.query or parts.fragment or "@" in parts.netloc or not text.isprintable() or " " in text:
        raise UrlError("more than scheme, host and path")
    host = parts.hostname.rstrip(".")
    if any(host == domain or host.endswith(f".{domain}") for domain in _EXAMPLE_DOMAINS):
        raise ExampleUrl("a host of the documentation")
    if not _EXAMPLE_LABELS.isdisjoint(parts.netloc.partition(":")[0].split(".")):
        raise ExampleUrl("a host of the documentation")
    return parts


def private_url(text: object) -> SplitResult:
    """As `http_url`, for a server that gets secrets and callers' words: they cross no network unencrypted."""
    parts = http_url(text)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise UrlError("http is only for a server on this machine: use https")
    return parts


def is_loopback(host: str) -> bool:
    """True when the host is this machine. Names are not looked up: only `localhost` is known."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
