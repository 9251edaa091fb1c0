"""Opens the WebSocket of a media stream with Twilio's headers, or returns the error that Twilio would log.

Sources: twilio.md 1.1, 1.6. The messages are in wire.py.
"""

import errno
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
from websockets.protocol import State

from app.sim.phone.options import PhoneOptions
from app.sim.phone.webhook import system_tls

_MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
"""Ten minutes of audio in base64 and some; Twilio publishes no limit."""

_BODY_QUOTE_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class OpenFailure:
    """The stream did not come up: `code` and `text` for Twilio's error log."""

    code: int
    text: str


class Socket(ClientConnection):
    """A client connection that is written without waiting and can freeze while TCP stays up."""

    frozen = False

    def post(self, text: str) -> None:
        """Hands a text frame to the transport. Does nothing when the connection is closing or frozen."""
        if self.protocol.state is State.OPEN and not self.frozen:
            self.protocol.send_text(text.encode())
            self.send_data()

    def post_ping(self) -> None:
        """Sends a ping without waiting for its pong: what Twilio does about a missing pong is not documented."""
        if self.protocol.state is State.OPEN and not self.frozen:
            self.protocol.send_ping(b"")
            self.send_data()

    def data_received(self, data: bytes) -> None:
        if not self.frozen:
            super().data_received(data)


class _Dial(connect):
    """Answers other than 101 are errors, redirects too."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def open_socket(
    public_url: str, dialled_url: str, headers: Mapping[str, str], options: PhoneOptions
) -> Socket | OpenFailure:
    """Connect to `dialled_url` under the name of `public_url` (Host header, TLS name)."""
    try:
        return cast("Socket", await _dial(public_url, dialled_url, headers, options))
    except TimeoutError:
        return OpenFailure(31901, f"no answer from {dialled_url} within {options.open_limit_s:g} s")
    except ConnectionRefusedError as error:
        return OpenFailure(31902, f"{dialled_url} refused the connection: {error}")
    except ssl.SSLError as error:
        return OpenFailure(31910, f"TLS with {dialled_url} failed: {error}")
    except ConnectionError as error:
        return OpenFailure(31903, f"{dialled_url} broke the connection: {error}")
    except OSError as error:
        # asyncio joins the failures for several addresses of one name into one text
        code = 31902 if f"[Errno {errno.ECONNREFUSED}]" in str(error) else 31904
        return OpenFailure(code, f"{dialled_url} cannot be reached: {error}")
    except InvalidStatus as error:
        answer = error.response
        body = bytes(answer.body or b"").decode("utf-8", "replace")[:_BODY_QUOTE_CHARS]
        return OpenFailure(31920, f"the upgrade was answered with {answer.status_code} {body}".rstrip())
    except InvalidURI as error:
        return OpenFailure(31923, str(error))
    except InvalidHandshake as error:
        return OpenFailure(31920, f"the upgrade failed: {error}")


def _dial(public_url: str, dialled_url: str, headers: Mapping[str, str], options: PhoneOptions) -> connect:
    target = urlsplit(dialled_url)
    tls: dict[str, Any] = {}
    if target.scheme == "wss":
        tls = {"ssl": options.tls or system_tls(), "server_hostname": urlsplit(public_url).hostname}
    return _Dial(
        urlsplit(public_url)._replace(scheme=target.scheme).geturl(),
        host=target.hostname,
        port=target.port or (443 if target.scheme == "wss" else 80),
        compression=None,
        proxy=None,
        additional_headers=headers,
        user_agent_header="Twilio.TmeWs/1.0",
        open_timeout=options.open_limit_s,
        close_timeout=options.close_limit_s,
        ping_interval=None,
        max_size=_MAX_MESSAGE_BYTES,
        create_connection=Socket,
        **tls,
    )
