"""The edge's HTTP/1.1: reads a client's request, forwards it with Fly's headers, and passes the answer back.

Each connection carries one request on both sides, as with the concurrency type "connections". h11 does the
framing. Machines and routing are unknown here. Source: fly.md 7 (headers).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import h11

from app.sim.fly.link import Link
from app.sim.fly.replay import FORGEABLE

MAX_BODY_BYTES: Final = 10_000_000
"""The simulator's own bound, the size of Fly's edge buffer; Fly lets larger bodies pass without a second try."""

_READ_BYTES: Final = 64 * 1024
_APP_ADDRESS: Final = "192.0.2.80"
"""The app's public address, rightmost in X-Forwarded-For (fly.md 7); from the range kept for examples."""

_OF_ONE_CONNECTION: Final = {b"connection", b"keep-alive", b"proxy-connection"}
_OF_FLY: Final = {
    *(b"fly-client-ip", b"fly-region", b"fly-request-id", b"fly-forwarded-port"),
    *(b"x-forwarded-proto", b"x-forwarded-ssl", b"expect"),
}
"""Headers of a request that the edge writes itself, or answers."""

Headers = list[tuple[bytes, bytes]]


class BadRequestError(Exception):
    """A bad request, which the edge answers itself with this status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Entry:
    """Where and how a request arrived."""

    edge: str
    request_id: str
    client_address: str
    port: int
    proto: str
    forging_allowed: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request, whole. `headers` have lower-case names, `raw_headers` are as they came."""

    method: str
    target: str
    raw_headers: Headers
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def upgrade(self) -> bool:
        """True when it asks to switch protocols."""
        return "upgrade" in self.headers


class HttpEnd:
    """One end of a link that speaks HTTP/1.1 through h11."""

    def __init__(self, link: Link, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self.link = link
        self._h11 = h11.Connection(role)

    async def next_event(self) -> h11.Event:
        """Raises h11.RemoteProtocolError for bytes that are not HTTP, ConnectionError for a broken connection."""
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            if self._h11.they_are_waiting_for_100_continue:
                self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self._h11.receive_data(await self.link.read())
        assert not isinstance(event, type), f"{event} where the other end has to speak"
        return event

    def encode(self, event: h11.Event) -> bytes:
        return self._h11.send(event) or b""

    def send(self, event: h11.Event) -> None:
        self.link.write(self.encode(event))

    def trailing(self) -> bytes:
        """Returns the bytes after the end of HTTP, which belong to the other protocol."""
        return self._h11.trailing_data[0]


async def read_request(client: HttpEnd) -> Request:
    """Reads the whole request. Raises BadRequestError, ConnectionError."""
    try:
        head = await client.next_event()
        if not isinstance(head, h11.Request):
            raise ConnectionResetError("closed without a request")
        if head.method == b"CONNECT" or not any(name == b"host" for name, _ in head.headers):
            raise BadRequestError(400, "neither CONNECT nor a request without Host can be sent on")
        body = bytearray()
        while isinstance(event := await client.next_event(), h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise BadRequestError(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    except h11.RemoteProtocolError as error:
        raise BadRequestError(error.error_status_hint, f"not HTTP/1.1: {error}") from None
    return Request(
        head.method.decode(),
        head.target.decode(),
        head.headers.raw_items(),
        bytes(body),
        {name.decode(): value.decode("latin-1") for name, value in head.headers},
    )


def request_bytes(machine: HttpEnd, request: Request, entry: Entry, added: Iterable[tuple[str, str]]) -> bytes:
    """Returns the original request as a Machine gets it, with the headers of this attempt."""
    headers = [
        *_request_headers(request, entry),
        *((name.encode(), value.encode("latin-1")) for name, value in added),
    ]
    events: list[h11.Event] = [h11.Request(method=request.method, target=request.target, headers=headers)]
    if request.body:
        events.append(h11.Data(data=request.body))
    return b"".join(machine.encode(event) for event in [*events, h11.EndOfMessage()])


def _request_headers(request: Request, entry: Entry) -> Iterator[tuple[bytes, bytes]]:
    dropped = {*_OF_FLY, b"via", b"x-forwarded-for"}
    if not entry.forging_allowed:
        dropped |= {name.encode() for name in FORGEABLE}
    if not request.upgrade:
        dropped |= _OF_ONE_CONNECTION
        yield b"Connection", b"close"
    yield from ((name, value) for name, value in request.raw_headers if name.lower() not in dropped)
    secure = entry.proto == "https"
    port = "443" if secure else str(entry.port)
    added = {
        "Fly-Client-IP": entry.client_address,
        "Fly-Region": entry.edge,
        "Fly-Request-Id": entry.request_id,
        "Fly-Forwarded-Port": port,
        "X-Forwarded-For": _list(request, "x-forwarded-for", f"{entry.client_address}, {_APP_ADDRESS}"),
        "X-Forwarded-Proto": entry.proto,
        "X-Forwarded-SSL": "on" if secure else "off",
        "Via": _list(request, "via", "1.1 fly.io"),
    }
    if "x-forwarded-port" not in request.headers:  # Fly leaves a client's
        added["X-Forwarded-Port"] = port
    yield from ((name.encode(), value.encode("latin-1")) for name, value in added.items())


def _list(request: Request, name: str, more: str) -> str:
    before = request.headers.get(name)
    return more if before is None else f"{before}, {more}"


def response_headers(head: h11.Response | h11.InformationalResponse, request_id: str) -> Headers:
    """A Machine's headers as the client gets them. A switch of protocols keeps its Connection."""
    dropped = {b"server", b"fly-request-id"}
    added = [(b"Server", b"Fly/simulated"), (b"Via", b"1.1 fly.io"), (b"Fly-Request-Id", request_id.encode())]
    if isinstance(head, h11.Response):
        dropped |= _OF_ONE_CONNECTION
        added.append((b"Connection", b"close"))
    return [*((name, value) for name, value in head.headers.raw_items() if name.lower() not in dropped), *added]


async def pass_body(machine: HttpEnd, client: HttpEnd) -> None:
    """Passes on everything after the head of an answer as it arrives. Raises as `next_event` does."""
    while not isinstance(event := await machine.next_event(), h11.EndOfMessage):
        client.send(event)
        await client.link.drain()
    client.send(h11.EndOfMessage())


def refuse(client: HttpEnd, request: Request | None, status: int, why: str, request_id: str) -> None:
    """Sends the edge's own answer. The reason is the simulator's addition: Fly says less."""
    body = f"{why}\n".encode()
    head = h11.Response(
        status_code=status,
        headers=[("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
    )
    client.send(h11.Response(status_code=status, headers=response_headers(head, request_id)))
    if request is None or request.method != "HEAD":
        client.send(h11.Data(data=body))
    client.send(h11.EndOfMessage())
