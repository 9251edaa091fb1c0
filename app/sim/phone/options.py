"""The options of one simulated call, for tests and the CLI, with their defaults."""

import ssl
from dataclasses import dataclass
from typing import Literal

Signing = Literal["right", "wrong", "none"]
StatusEvent = Literal["initiated", "ringing", "answered", "completed"]
DialStatus = Literal["completed", "busy", "no-answer", "failed", "canceled"]


@dataclass(frozen=True, slots=True)
class PhoneOptions:
    """Only `webhook_url` and `auth_token` are needed for an ordinary call."""

    webhook_url: str
    """The voice webhook as it is dialled. A fragment (connection overrides) is not sent and not signed."""

    auth_token: str
    """Signs every request; another region's token makes a call of that region (twilio.md 3.5)."""

    public_url: str | None = None
    """The base Twilio would know, e.g. https://voice.example.com, when `webhook_url` is an address behind its TLS
    proxy. It is what is signed, and URLs on its host are dialled at `webhook_url`'s address and scheme."""

    from_: str = "+4930123456"
    to: str = "+4930654321"
    call_sid: str | None = None
    """None: a new one."""

    account_sid: str = "AC00000000000000000000000000000001"
    home_region: str = "us1"

    prefer_region: str | None = None
    """Asks Fly's edge for a Machine of this region, with a header that Twilio cannot send (fly.md 6)."""

    signing: Signing = "right"
    """Of webhooks; "wrong" signs with another token."""

    stream_signing: Signing | Literal["slash"] | None = None
    """Of the WebSocket upgrade. "slash": over the URL with a / appended (twilio.md 3.3). None: as `signing`."""

    webhook_limit_s: float = 15.0
    """For a whole webhook including connecting (twilio.md 2.6)."""

    open_limit_s: float = 10.0
    """For opening the stream; Twilio publishes no figure (31901, twilio.md 1.1)."""

    close_limit_s: float = 2.0
    """How long a close of the stream may take before the TCP connection is dropped."""

    connected_after_ms: tuple[int, int] = (90, 150)
    """From the accepted upgrade to `connected`: a random time between these two (twilio.md 1.1)."""

    allow_ws: bool = False
    """Take ws:// stream URLs of other hosts than this one, which Twilio never does (31922)."""

    gaps_in_silence: bool = False
    """Send no frames while the caller is silent, as some calls do (twilio.md 1.2)."""

    send_stop: bool = True
    """False: the stream closes without `stop`, which Twilio does not guarantee."""

    network_delay_ms: float = 0.0
    """One way, both ways, for every message of the stream."""

    ping_interval_s: float = 10.0
    """Between our WebSocket pings; Twilio's interval is not published."""

    document_pace: float = 1.0
    """Factor on the time <Say> and <Pause> take; 0 runs through them at once."""

    dial_status: DialStatus = "completed"
    """How a <Dial> ends, at once."""

    status_callback_url: str | None = None
    """The number's StatusCallback (public URL)."""

    status_events: tuple[StatusEvent, ...] = ("completed",)
    """An incoming number's callback gets only `completed` (twilio.md 2.5); others are for tests."""

    status_reversed: bool = False
    """Hold the call's status callbacks back and send the last first."""

    status_twice: bool = False
    """Send each of the call's status callbacks twice."""

    keep_audio: bool = True
    """False for soak tests: no audio and no AudioReceived events are kept."""

    seed: int = 1
    """For the random times (`connected_after_ms`, first timestamp, jitter)."""

    tls: ssl.SSLContext | None = None
    """For https and wss; None: verified with the system's certificates."""
