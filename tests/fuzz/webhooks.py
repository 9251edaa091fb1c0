"""Webhooks and upgrades: requests that are nearly Twilio's, before the application and before picows.

Requests are signed before they are damaged, or after, or not at all. No socket: the application is called as
uvicorn calls it, and picows reads from a transport that is none.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from random import Random
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import unquote, urlencode
from xml.etree import ElementTree as ET

from starlette.applications import Starlette

from app.bridge.handover import HandOver
from app.bridge.link import Link
from app.bridge.ticket import Nonces, Ticket, Tickets
from app.call.ending import EndReason
from app.call.events import Side
from app.call.evidence import Route
from app.regions.routing import Here
from app.regions.zones import shipped_zones
from app.wire.twilio import MAX_MESSAGE_BYTES
from tests.fuzz.engine import FaultError, timed
from tests.fuzz.mutate import Mutator
from tests.twiml.world import (
    BASE,
    CALL,
    CALL_FIELDS,
    IE1,
    NOW_S,
    OTHER_BASE,
    STRANGER,
    TOKENS,
    US1,
    World,
    signature,
)
from twiml.gate import UpgradeGate
from twiml.replay_policy import Header, ReplayPolicy
from twiml.signature import Signatures
from twiml.upgrade import UpgradeAnswers

SECRET: Final = "a secret of the tests"
ANSWERS: Final = frozenset({200, 204, 400, 403, 404, 405, 408, 409, 413, 415, 429, 503})
"""What a webhook may answer, whatever it is asked."""
REGIONS: Final = ("nrt", "fra", "gru", "syd", "iad", "lax")
PATHS: Final = (
    *("/twiml/voice", "/twiml/voice", "/twiml/voice/eu", "/twiml/voice/global", "/twiml/voice?backend=openai"),
    *("/twiml/after", "/twiml/after/global/iad", "/twiml/after/eu/fra", "/twiml/status", "/twiml/status/eu"),
    *("/twiml/stream", "/twiml/stream/global", "/healthz", "/"),
)
MORE_FIELDS: Final = (
    ("CallStatus", ("completed", "in-progress", "busy")),
    ("StreamEvent", ("stream-started", "stream-error", "stream-stopped")),
    ("StreamSid", ("MZ" + "0" * 32, "MZ")),
    ("StreamError", ("31920 - no 101", "31921", "0031999")),
    ("SequenceNumber", ("0", "12", "\u0663")),
    ("CallDuration", ("7", "-1", "9" * 400)),
    ("SipResponseCode", ("487",)),
    ("ErrorCode", ("11200",)),
)


@dataclass(frozen=True, slots=True)
class Webhook:
    """One request, as uvicorn hands it on."""

    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    method: str = "POST"
    cut: bool = False
    """The client goes away before the body is complete."""
    full: bool = False
    """The machine has no room."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One request for a WebSocket, and what follows on the connection."""

    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    frames: bytes = b""


def _headers(mutator: Mutator, rng: Random, headers: dict[str, str]) -> tuple[tuple[bytes, bytes], ...]:
    """As HTTP has them: no line ends, names in lower case; some damaged, left out or twice."""
    found: list[tuple[bytes, bytes]] = []
    for name, value in headers.items():
        text = mutator.text(value) if rng.random() < 0.1 else value
        raw = text.encode("utf-8", "surrogatepass")[:2_000].translate(None, b"\r\n\0")
        found += [(name.lower().encode(), raw)] * rng.choices((0, 1, 2), (3, 94, 3))[0]
    return tuple(found)


def _way(rng: Random) -> dict[str, str]:
    """What Fly adds."""
    way: dict[str, str] = {}
    if rng.random() < 0.5:
        way["Fly-Region"] = rng.choice(REGIONS)
    if rng.random() < 0.3:
        state = rng.choice(("iad.fra.xxxxxxxxxxxxxxxxxxxxxxxxxxx", "", ".", "=;=", "fra;state=fra"))
        way["Fly-Replay-Src"] = f"instance=i1;region={rng.choice(REGIONS)};t=1700000000000000;state={state}"
    if rng.random() < 0.1:
        way["Fly-Replay-Failed"] = "reason=no_capacity"
    return way


def _target(mutator: Mutator, rng: Random, target: str) -> bytes:
    """A request target, perhaps damaged, of what llhttp lets through: no spaces and nothing below."""
    if rng.random() < 0.2:
        target = mutator.text(target)[:3_000]
    raw = target.encode("utf-8", "surrogatepass")
    return bytes(byte for byte in raw if 0x20 < byte < 0x7F) or b"/"


# --- Webhooks ----------------------------------------------------------------------------------------


class Webhooks:
    """The target."""

    name = "webhooks"
    share = 10

    def draw(self, rng: Random) -> Sequence[Webhook]:
        """See Target."""
        return [self._one(Mutator(rng), rng) for _ in range(rng.choice((1, 3, 10, 30)))]

    def _one(self, mutator: Mutator, rng: Random) -> Webhook:
        pairs = [(name, value) for name, value in CALL_FIELDS.items() if rng.random() > 0.03]
        pairs += [(name, rng.choice(values)) for name, values in MORE_FIELDS if rng.random() < 0.2]
        pairs = [
            (name, value.replace(CALL, f"CA{rng.randrange(4):032x}") if name == "CallSid" else value)
            for name, value in pairs
        ]
        for at, (name, value) in enumerate(pairs):
            if rng.random() < 0.03:
                pairs[at] = (name, mutator.text(value)[:80_000])
            elif rng.random() < 0.01:
                pairs[at] = (mutator.text(name)[:1_000], value)
        if rng.random() < 0.05:
            pairs.append(rng.choice(pairs or [("a", "b")]))
        if rng.random() < 0.01:
            pairs += [(f"p{number}", "") for number in range(1_500)]
        target = _target(mutator, rng, rng.choice(PATHS))
        body = urlencode([(name, value.encode("utf-8", "surrogatepass")) for name, value in pairs]).encode()
        fields: dict[str, list[str]] = {}
        for name, value in pairs:
            fields.setdefault(name, []).append(value)
        headers = {
            "Content-Type": rng.choices(
                ("application/x-www-form-urlencoded; charset=UTF-8", "application/json", ""), (90, 5, 5)
            )[0],
            **_way(rng),
        }
        if rng.random() < 0.9:
            token = rng.choices((US1, IE1, STRANGER), (85, 10, 5))[0]
            base = rng.choice((BASE, BASE, OTHER_BASE))
            headers["X-Twilio-Signature"] = _signed(f"{base}{target.decode()}", fields, token)
        if rng.random() < 0.07:
            body = mutator.data(body)
        method = rng.choices(("POST", "GET", "HEAD", "OPTIONS"), (96, 2, 1, 1))[0]
        raw = _headers(mutator, rng, headers)
        return Webhook(target, raw, body, method, rng.random() < 0.02, rng.random() < 0.1)

    async def run(self, case: Sequence[Webhook]) -> None:
        """See Target."""
        world = World()
        numbers = itertools.count()
        world.parts = replace(world.parts, nonce=lambda: f"nonce-{next(numbers)}")
        app = world.app()
        for webhook in case:
            world.here = Here("fra", REGIONS, frozenset({"global", "eu"}), full=webhook.full)
            with timed("a webhook"):
                status, body = await _asked(app, webhook)
            if status not in ANSWERS:
                raise FaultError(f"{webhook.target!r} was answered with {status}")
            if status == HTTPStatus.OK and body:
                ET.fromstring(body)
            if webhook.target.startswith(b"/twiml/after") and status == HTTPStatus.OK:
                world.registry.endings[CALL] = EndReason.AGENT_HUNG_UP

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """See Target."""
        yield


def _signed(url: str, fields: dict[str, list[str]], token: str) -> str:
    try:
        return signature(url, fields, token)
    except (UnicodeEncodeError, ValueError):  # the official library refuses what Twilio would never send
        return "A" * 27 + "="


async def _asked(app: Starlette, webhook: Webhook) -> tuple[int, bytes]:
    path, _, query = webhook.target.partition(b"?")
    pieces: list[dict[str, Any]] = [{"type": "http.request", "body": webhook.body, "more_body": webhook.cut}]
    pieces += [{"type": "http.disconnect"}]
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return pieces.pop(0) if pieces else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        told.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": webhook.method,
        "scheme": "http",
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(webhook.headers),
        "client": ("10.0.0.1", 1),
        "server": ("10.0.0.7", 8080),
    }
    await app(scope, receive, send)
    status = next((each["status"] for each in told if each["type"] == "http.response.start"), 0)
    return status, b"".join(each.get("body", b"") for each in told if each["type"] == "http.response.body")


# --- Upgrades ----------------------------------------------------------------------------------------

TICKETS: Final = Tickets(SECRET)
_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="


class _Owner:
    """Counts what its link reports."""

    def __init__(self) -> None:
        self.lost = 0

    def link_up(self, side: Side) -> None:
        pass

    def link_message(self, side: Side, message: memoryview | bytes) -> None:
        assert len(message) <= MAX_MESSAGE_BYTES

    def link_bad_message(self, side: Side, why: str) -> None:
        pass

    def link_pong(self, side: Side) -> None:
        pass

    def link_slow(self, side: Side) -> None:
        pass

    def link_lost(self, side: Side, code: int, why: str = "") -> None:
        self.lost += 1


class _Board:
    """Who has the calls."""

    def __init__(self) -> None:
        self.owners: list[_Owner] = []

    def answer(self, ticket: Ticket, twilio_region: str, trail: Route) -> Link | None:
        if ticket.tenant == "nobody":
            return None
        self.owners.append(_Owner())
        return Link(Side.PHONE, self.owners[-1], MAX_MESSAGE_BYTES)

    def record_refused_stream(self, ticket: Ticket, why: str) -> None:
        """A stream that was not accepted is recorded; here nobody looks."""


class _Transport(asyncio.Transport):
    """Leads nowhere; keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, parts: Any) -> None:
        for part in parts:
            self.written += part

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name != "socket":
            return default
        return SimpleNamespace(setsockopt=_nothing, getsockopt=_nothing, family=2, type=1, fileno=_no_file)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def set_protocol(self, protocol: Any) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


def _nothing(*_: object) -> int:
    return 0


def _no_file() -> int:
    return -1


class Upgrades:
    """The target."""

    name = "upgrades"
    share = 8

    def draw(self, rng: Random) -> Sequence[Upgrade]:
        """See Target."""
        return [self._one(Mutator(rng), rng) for _ in range(rng.choice((1, 3, 8)))]

    def _one(self, mutator: Mutator, rng: Random) -> Upgrade:
        ticket = Ticket(
            call_sid=CALL,
            tenant=rng.choice(("default", "nobody", "x" * 40)),
            zone=rng.choices(("global", "eu", "nowhere"), (90, 5, 5))[0],
            issued_s=int(NOW_S) + rng.choices((0, -30, -61, 60, 10**12), (80, 10, 5, 3, 2))[0],
            nonce=f"nonce-{rng.randrange(5)}",
            resumes=rng.random() < 0.1,
            backend=rng.choice(("", "openai")),
        )
        secret = SECRET if rng.random() < 0.95 else "another secret"
        target = _target(mutator, rng, f"/media/{Tickets(secret).issue(ticket)}")
        headers = {
            "Host": "10.0.0.7:8080",
            "Upgrade": "websocket",
            "Connection": rng.choice(("Upgrade", "keep-alive, Upgrade")),
            "Sec-WebSocket-Key": _KEY,
            "Sec-WebSocket-Version": "13",
            **_way(rng),
        }
        if rng.random() < 0.9:
            token = rng.choices((US1, IE1, STRANGER), (85, 10, 5))[0]
            host = rng.choice(("voice.example.com", "nearcall.fly.dev"))
            headers["X-Twilio-Signature"] = _signed(f"wss://{host}{target.decode()}", {}, token)
        frames = b"".join(_frame(mutator, rng) for _ in range(rng.choice((0, 1, 5))))
        if rng.random() < 0.2:
            frames = mutator.data(frames)
        return Upgrade(target, _headers(mutator, rng, headers), frames)

    async def run(self, case: Sequence[Upgrade]) -> None:
        """See Target."""
        board: Any = _Board()
        here = Here("fra", REGIONS, frozenset({"global", "eu"}))
        replay_policy = ReplayPolicy(shipped_zones(), lambda: here, SECRET)
        signatures = Signatures(TOKENS, [BASE, OTHER_BASE])
        gate = UpgradeGate(
            TICKETS,
            Nonces(20),
            signatures,
            replay_policy,
            lambda: False,
            lambda _sid: False,
            lambda _ticket: False,
        )
        upgrades = UpgradeAnswers(gate, board, replay_policy, lambda: NOW_S)
        for upgrade in case:
            broke: list[BaseException] = []

            def answered(target: str, header: Header, broke: list[BaseException] = broke) -> Any:
                try:
                    return upgrades.answer(target, header)
                except Exception as error:  # the hand-over would log it and answer 500
                    broke.append(error)
                    raise

            transport = _Transport()
            hand_over = HandOver(answered, {"Nearcall-Region": "fra"})
            hand_over.connection_made(transport)
            head = [b"GET " + upgrade.target + b" HTTP/1.1"]
            head += [name + b": " + value for name, value in upgrade.headers]
            with timed("an upgrade"):
                hand_over.data_received(b"\r\n".join(head) + b"\r\n\r\n")
            if broke:
                raise broke[0]
            status = bytes(transport.written[9:12])
            if status not in {b"101", b"400", b"403", b"404", b"409", b"503", b""}:
                raise FaultError(f"an upgrade was answered with {bytes(transport.written[:80])!r}")
            if status == b"101" and upgrade.frames:
                with timed("frames"):
                    hand_over.data_received(upgrade.frames)
            hand_over.connection_lost(None)
            await asyncio.sleep(0)
        assert all(owner.lost == 1 for owner in board.owners), "a link tells its end once"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """See Target. What picows has to say about wrong frames is not looked at."""
        picows = logging.getLogger("picows.server")
        before = picows.level
        picows.setLevel(logging.CRITICAL + 1)
        yield
        picows.setLevel(before)


def _frame(mutator: Mutator, rng: Random) -> bytes:
    """A WebSocket frame as a client sends it, masked with zeros; or nearly one."""
    payload = rng.choice((b"", b'{"event":"stop"}', b"x" * 200, b"x" * 70_000))
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    else:
        length = b"\xfe" + size.to_bytes(2, "big") if size < 65_536 else b"\xff" + size.to_bytes(8, "big")
    if rng.random() < 0.1:
        length = rng.choice((b"\xff" + b"\xff" * 8, b"\xff" + b"\x00" * 4 + b"\xff" * 4, b"\x05", b"\xfe\x00\x01"))
    first = rng.choices(
        (0x81, 0x82, 0x01, 0x80, 0x00, 0x89, 0x8A, 0x88, rng.randrange(256)), (6, 1, 1, 1, 1, 1, 1, 1, 1)
    )
    return bytes(first) + length + b"\0\0\0\0" + payload
