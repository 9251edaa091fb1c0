"""What Twilio accepts of TwiML, as far as we use it: twilio.md 2.1 to 2.3, and 1.7 for the stream's URL."""

from urllib.parse import quote_plus, urlsplit
from xml.etree import ElementTree as ET

VERBS: dict[str, set[str]] = {
    "Response": set(),
    "Connect": {"action", "method"},
    "Stream": {"url", "name", "track", "statusCallback", "statusCallbackMethod"},
    "Say": {"language", "voice", "loop"},
    "Reject": {"reason"},
    "Hangup": set(),
    "Dial": set(),
}
NESTS = {"Response": {"Connect", "Say", "Reject", "Dial", "Hangup"}, "Connect": {"Stream"}}


def parsed(document: bytes) -> ET.Element:
    """The document, when Twilio would take it without an error or a warning."""
    assert document.startswith(b'<?xml version="1.0" encoding="UTF-8"?>')
    assert len(document) <= 65_536, "11750"
    root = ET.fromstring(document)
    assert root.tag == "Response", "12100"
    for element in root.iter():
        assert set(element.attrib) <= VERBS[element.tag], "12200"
        assert {child.tag for child in element} <= NESTS.get(element.tag, set()), "12200"
    for reject in root.iter("Reject"):
        assert [reject] == list(root), "only as the first verb it leaves the call unbilled"
        assert reject.get("reason") in {"busy", "rejected"}
    for connect in root.iter("Connect"):
        assert [connect] == list(root), "verbs after an action are unreachable"
        assert is_webhook(connect.get("action"))
        assert connect.get("method") == "POST"
    for stream in root.iter("Stream"):
        _check_stream(stream)
    for say in root.iter("Say"):
        _check_say(say)
    return root


def _check_stream(stream: ET.Element) -> None:
    url = urlsplit(stream.attrib["url"])
    assert url.scheme in {"wss", "ws"}, "31922"
    assert url.netloc, "relative"
    assert not url.query, "31920: Twilio drops query strings"
    assert not url.fragment, "31923"
    assert stream.get("track", "inbound_track") == "inbound_track", "31941"
    assert is_webhook(stream.get("statusCallback"))
    assert stream.get("statusCallbackMethod") == "POST"


def _check_say(say: ET.Element) -> None:
    text = say.text or ""
    assert text.strip(), "13520"
    assert len(text) <= 3_000, "13521"
    assert len(quote_plus(text)) <= 4_500, "13521"
    assert say.get("language"), "a voice without its language may fail"
    assert (say.get("voice") or "").startswith("Polly.")


def is_webhook(url: str | None) -> bool:
    parts = urlsplit(url or "")
    return parts.scheme in {"https", "http"} and bool(parts.netloc)
