"""Reads TwiML as Twilio does: turns an HTTP answer into verbs, or raises the error that Twilio would log.

It shares no code with the writer of our TwiML, so that a mistake there shows. Pure: it fetches nothing.
Rules and codes are from twilio.md 1.6, 1.7, 2.1 to 2.3. What Twilio only warns about (unknown verb or attribute,
wrong case) is listed in `Document.warnings` and skipped; what it refuses raises TwimlError.
"""

import ipaddress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

from app.sim.phone.errors import TwimlError, UnsupportedTwimlError

MAX_DOCUMENT_BYTES: Final = 64 * 1024
MAX_PARAMETER_CHARS: Final = 500
"""Name and value of a <Parameter> together stay below this (twilio.md 1.7)."""

_TWIML_TYPES: Final = frozenset({"text/xml", "application/xml", "text/html"})
_DEFAULT_SAY_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class Warned:
    """Something Twilio would put into its log while the call goes on."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Say:
    text: str
    language: str = "en-US"
    voice: str = "man"
    loop: int = 1


@dataclass(frozen=True, slots=True)
class Pause:
    length_s: int = 1


@dataclass(frozen=True, slots=True)
class Redirect:
    url: str
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Dial:
    numbers: tuple[str, ...]
    action: str | None = None
    method: str = "POST"
    caller_id: str | None = None
    timeout_s: int = 30
    time_limit_s: int = 14_400


@dataclass(frozen=True, slots=True)
class Hangup:
    pass


@dataclass(frozen=True, slots=True)
class Reject:
    reason: str = "rejected"


@dataclass(frozen=True, slots=True)
class Stream:
    """The noun of <Connect>. `fault` is set when Twilio would not even dial (bad url, track)."""

    url: str
    name: str | None = None
    status_callback: str | None = None
    status_callback_method: str = "POST"
    parameters: dict[str, str] = field(default_factory=dict)
    fault: Warned | None = None


@dataclass(frozen=True, slots=True)
class Connect:
    stream: Stream
    action: str | None = None
    method: str = "POST"


Verb = Say | Pause | Redirect | Dial | Hangup | Reject | Connect


@dataclass(frozen=True, slots=True)
class Document:
    verbs: tuple[Verb, ...]
    warnings: tuple[Warned, ...] = ()


_ATTRIBUTES: Final = {
    "Response": frozenset[str](),
    "Say": frozenset({"language", "voice", "loop"}),
    "Pause": frozenset({"length"}),
    "Redirect": frozenset({"method"}),
    "Hangup": frozenset[str](),
    "Reject": frozenset({"reason"}),
    "Connect": frozenset({"action", "method"}),
    "Stream": frozenset({"url", "name", "track", "statusCallback", "statusCallbackMethod"}),
    "Parameter": frozenset({"name", "value"}),
    "Dial": frozenset(
        {
            *("action", "method", "answerOnBridge", "callerId", "callReason", "hangupOnStar", "record"),
            *("recordingStatusCallback", "recordingStatusCallbackMethod", "recordingStatusCallbackEvent"),
            *("recordingTrack", "referUrl", "referMethod", "ringTone", "timeLimit", "timeout", "trim"),
            "sequential",
        }
    ),
    "Number": frozenset(
        {"url", "method", "statusCallback", "statusCallbackMethod", "statusCallbackEvent"},
    ),
}
"""Attributes by element (twilio.md 2.1, 2.2), without audioFormat and sampleRate (twilio.md 1.10)."""

_NOT_PLAYED: Final = frozenset(
    {"Gather", "Record", "Play", "Start", "Stop", "Enqueue", "Leave", "Queue", "Refer", "Pay", "Prompt", "Sms"}
)
"""Verbs Twilio has and this phone does not."""


def read_answer(content_type: str | None, body: bytes, *, allow_ws: bool = False) -> Document:
    """Reads the document in an HTTP answer.

    `allow_ws` permits ws:// stream URLs, which Twilio refuses (31922); loopback hosts are always permitted.
    Raises TwimlError (11750, 11770, 12100, 12300) and UnsupportedTwimlError.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind == "text/plain":
        return Document((Say(body.decode("utf-8", "replace").strip()),))
    if kind.startswith("audio/"):
        raise UnsupportedTwimlError(f"the answer is audio ({kind}), which this phone does not play")
    if kind not in _TWIML_TYPES:
        raise TwimlError(12300, f"the answer's content type {content_type!r} is not one Twilio reads as TwiML")
    return read_document(body, allow_ws=allow_ws)


def read_document(body: bytes, *, allow_ws: bool = False) -> Document:
    """Reads the document in an XML text; see `read_answer`."""
    if len(body) > MAX_DOCUMENT_BYTES:
        raise TwimlError(11750, f"the TwiML has more than {MAX_DOCUMENT_BYTES} bytes")
    if not body.strip():
        raise TwimlError(11770, "the answer is empty where TwiML is required")
    try:
        root = ET.fromstring(body)  # noqa: S314  (the application under test wrote it, 64 kB at most)
    except ET.ParseError as error:
        raise TwimlError(12100, f"the TwiML is not well-formed XML: {error}") from error
    if root.tag != "Response":
        raise TwimlError(12100, f"the TwiML's root is <{root.tag}> instead of <Response>")
    reader = _Reader(allow_ws)
    return Document(tuple(reader.verbs(root)), tuple(reader.warnings))


def relative_urls(document: Document) -> list[str]:
    """Returns the relative URLs of a document, which TwiML given by REST must not have (15004)."""
    urls: list[str | None] = []
    for verb in document.verbs:
        match verb:
            case Redirect(url=url):
                urls.append(url)
            case Dial(action=action):
                urls.append(action)
            case Connect(stream=stream, action=action):
                urls += [action, stream.status_callback]
    return [url for url in urls if url is not None and not urlsplit(url).netloc]


class _Reader:
    """One pass over a document; collects warnings on the way."""

    def __init__(self, allow_ws: bool) -> None:
        self.warnings: list[Warned] = []
        self._allow_ws = allow_ws

    def verbs(self, root: ET.Element) -> list[Verb]:
        self._check_attributes(root)
        verbs = (self._verb(element) for element in root)
        return [verb for verb in verbs if verb is not None]

    def _verb(self, element: ET.Element) -> Verb | None:
        self._check_attributes(element)
        match element.tag:
            case "Say":
                return self._say(element)
            case "Pause":
                return Pause(self._integer(element, "length", 1, minimum=1))
            case "Redirect":
                return Redirect(self._url_text(element), self._method(element, "method"))
            case "Hangup":
                return Hangup()
            case "Reject":
                return Reject(self._choice(element, "reason", ("rejected", "busy")))
            case "Dial":
                return self._dial(element)
            case "Connect":
                return self._connect(element)
            case tag if tag in _NOT_PLAYED:
                raise UnsupportedTwimlError(f"this phone does not play <{tag}>")
            case tag:
                self._warn(12200, f"unknown verb <{tag}> (names are case-sensitive)")
                return None

    def _say(self, element: ET.Element) -> Say:
        text = " ".join("".join(element.itertext()).split())
        voice = element.get("voice", "man")
        if not text:
            self._warn(13520, "<Say> has no text")
        limit = 3000 if voice.startswith("Polly.") else 5000 if voice.startswith("Google.") else _DEFAULT_SAY_LIMIT
        if len(text) > limit:
            self._warn(13521, f"<Say> has {len(text)} characters, voice {voice} takes {limit}")
        return Say(text, element.get("language", "en-US"), voice, self._integer(element, "loop", 1, minimum=0))

    def _dial(self, element: ET.Element) -> Dial:
        numbers = []
        if element.text and element.text.strip():
            numbers.append(element.text.strip())
        for noun in element:
            self._check_attributes(noun)
            if noun.tag == "Number":
                numbers.append((noun.text or "").strip())
            elif noun.tag in ("Client", "Conference", "Queue", "Sim", "Sip", "Application", "WhatsApp"):
                raise UnsupportedTwimlError(f"this phone does not dial <{noun.tag}>")
            else:
                self._warn(12200, f"unknown noun <{noun.tag}> in <Dial>")
        for number in numbers:
            if not number.removeprefix("+").isdigit():
                self._warn(13224, f"<Dial> of an invalid number {number!r}")
        return Dial(
            tuple(numbers),
            element.get("action"),
            self._method(element, "method"),
            element.get("callerId"),
            self._integer(element, "timeout", 30, minimum=1),
            self._integer(element, "timeLimit", 14_400, minimum=1),
        )

    def _connect(self, element: ET.Element) -> Connect:
        nouns = list(element)
        if len(nouns) != 1:
            raise TwimlError(12100, f"<Connect> has {len(nouns)} nouns instead of one")
        if nouns[0].tag != "Stream":
            raise UnsupportedTwimlError(f"this phone does not connect to <{nouns[0].tag}>")
        return Connect(self._stream(nouns[0]), element.get("action"), self._method(element, "method"))

    def _stream(self, element: ET.Element) -> Stream:
        self._check_attributes(element)
        url = element.get("url", "").strip()
        callback = element.get("statusCallback")
        if callback is not None and not urlsplit(callback).netloc:
            self._warn(12200, f"<Stream> statusCallback {callback!r} is not an absolute URL: it is not requested")
            callback = None
        return Stream(
            url,
            element.get("name"),
            callback,
            self._method(element, "statusCallbackMethod"),
            self._parameters(element),
            _url_fault(url, self._allow_ws) or _track_fault(element.get("track", "inbound_track")),
        )

    def _parameters(self, element: ET.Element) -> dict[str, str]:
        """Reads the parameters. Drops those that are too long: what Twilio does with them is not documented."""
        parameters: dict[str, str] = {}
        for child in element:
            self._check_attributes(child)
            name, value = child.get("name"), child.get("value")
            if child.tag != "Parameter":
                self._warn(12200, f"unknown element <{child.tag}> in <Stream>")
            elif not name or value is None:
                self._warn(12200, "<Parameter> needs a name and a value")
            elif len(name) + len(value) >= MAX_PARAMETER_CHARS:
                self._warn(12200, f"<Parameter> {name} has {MAX_PARAMETER_CHARS} characters or more")
            else:
                parameters[name] = value
        return parameters

    def _check_attributes(self, element: ET.Element) -> None:
        known = _ATTRIBUTES.get(element.tag)
        if known is None:
            return
        for name in sorted(set(element.keys()) - known):
            self._warn(12200, f"<{element.tag}> has no attribute {name!r} (names are case-sensitive)")

    def _choice(self, element: ET.Element, name: str, values: tuple[str, ...]) -> str:
        value = element.get(name, values[0])
        if value in values:
            return value
        self._warn(12200, f"<{element.tag}> {name} is {value!r} instead of {' or '.join(values)}")
        return values[0]

    def _method(self, element: ET.Element, name: str) -> str:
        return self._choice(element, name, ("POST", "GET"))

    def _integer(self, element: ET.Element, name: str, default: int, *, minimum: int) -> int:
        value = element.get(name)
        if value is None:
            return default
        if value.isascii() and value.isdigit() and int(value) >= minimum:
            return int(value)
        self._warn(12200, f"<{element.tag}> {name} is {value!r} instead of a whole number from {minimum}")
        return default

    def _url_text(self, element: ET.Element) -> str:
        url = (element.text or "").strip()
        if not url:
            self._warn(12200, f"<{element.tag}> has no URL: it requests this document again")
        return url

    def _warn(self, code: int, text: str) -> None:
        self.warnings.append(Warned(code, text))


def _url_fault(url: str, allow_ws: bool) -> Warned | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return Warned(31923, f"stream url {url!r} is malformed: {error}")
    if not parts.scheme or not host:
        return Warned(31923, f"stream url {url!r} is malformed: it needs wss:// and a host")
    if parts.scheme != "wss" and not (parts.scheme == "ws" and (allow_ws or is_loopback(host))):
        return Warned(31922, f"stream url {url!r} is not wss")
    if parts.query:
        return Warned(31920, f"stream url {url!r} has a query string, which is not supported")
    return None


def _track_fault(track: str) -> Warned | None:
    if track == "inbound_track":
        return None
    return Warned(31941, f"track {track!r} is not allowed with <Connect>: only inbound_track")


def is_loopback(host: str) -> bool:
    """True when this host name or address is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
