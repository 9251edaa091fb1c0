"""A small application for the test phone to call: webhooks and media sockets on one port.

Written from twilio.md with `websockets` alone, so that the phone is checked by something that shares no code with
it. One listener reads the request head; HTTP is answered from `webhooks`, an upgrade is passed on to the
`websockets` server behind it.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

Conversation = Callable[[ServerConnection], Awaitable[None]]
Refusal = Callable[[ServerConnection, Request], Response | None]


@dataclass(frozen=True)
class Seen:
    """One HTTP request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    form: dict[str, str]

    @property
    def path(self) -> str:
        return urlsplit(self.target).path


@dataclass
class Reply:
    body: str = ""
    status: int = 200
    content_type: str | None = "text/xml"
    headers: dict[str, str] = field(default_factory=dict)


Webhook = Reply | Callable[[Seen], Awaitable[Reply]]


async def hang_for_ever(seen: Seen) -> Reply:
    """A webhook that never answers."""
    await asyncio.Event().wait()
    raise AssertionError(seen)


@dataclass
class Application:
    """What the application answers, and what it was asked. `{ws}` in a document becomes its ws:// base."""

    webhooks: dict[str, Webhook]
    conversation: Conversation | None = None
    refuse_upgrade: Refusal | None = None
    http_url: str = ""
    ws_url: str = ""
    seen: list[Seen] = field(default_factory=list)
    upgrades: list[Request] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)

    def requests(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == path]


@contextlib.asynccontextmanager
async def running(application: Application) -> AsyncIterator[Application]:
    """Serve it on 127.0.0.1. What went wrong in a conversation is raised at the end."""
    server = _Server(application)
    async with (
        serve(server.converse, "127.0.0.1", 0, process_request=server.upgrade, ping_interval=None) as media,
        contextlib.AsyncExitStack() as stack,
    ):
        server.media_port = media.sockets[0].getsockname()[1]
        front = await asyncio.start_server(server.accept, "127.0.0.1", 0)
        stack.push_async_callback(server.stop, front)
        port = front.sockets[0].getsockname()[1]
        application.http_url, application.ws_url = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"
        yield application
    for fault in application.faults:
        raise fault


class _Server:
    def __init__(self, application: Application) -> None:
        self.media_port = 0
        self._application = application
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def stop(self, front: asyncio.Server) -> None:
        front.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        lowered = {name.lower(): value for name, value in headers.items()}
        if lowered.get("upgrade") == "websocket":
            await self._pass_on(head, reader, writer)
            return
        body = await reader.readexactly(int(lowered.get("content-length", "0")))
        query = urlsplit(target).query
        form = dict(parse_qsl(body.decode() or query, keep_blank_values=True))
        writer.write(await self._answer(Seen(method, target, headers, form)))
        await writer.drain()

    async def _answer(self, seen: Seen) -> bytes:
        self._application.seen.append(seen)
        webhook = self._application.webhooks.get(seen.path, Reply("not found", 404, "text/plain"))
        reply = webhook if isinstance(webhook, Reply) else await webhook(seen)
        body = reply.body.replace("{ws}", self._application.ws_url).encode()
        headers = {"Content-Length": str(len(body)), "Connection": "close", **reply.headers}
        if reply.content_type is not None:
            headers["Content-Type"] = reply.content_type
        lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + body

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self.media_port)
        behind_writer.write(head)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, behind_writer))
                tasks.create_task(_pump(behind_reader, writer))
        finally:
            behind_writer.close()

    def upgrade(self, connection: ServerConnection, request: Request) -> Response | None:
        self._application.upgrades.append(request)
        refuse = self._application.refuse_upgrade
        return None if refuse is None else refuse(connection, request)

    async def converse(self, connection: ServerConnection) -> None:
        assert self._application.conversation is not None
        try:
            await self._application.conversation(connection)
        except ConnectionClosed:
            return
        except (AssertionError, KeyError) as fault:
            self._application.faults.append(fault)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(ConnectionError, OSError):
        writer.write_eof()


# What the application says on a stream (twilio.md 1.3)


def media(stream_sid: str, audio: bytes) -> str:
    payload = base64.b64encode(audio).decode()
    return json.dumps({"event": "media", "streamSid": stream_sid, "media": {"payload": payload}})


def mark(stream_sid: str, name: str) -> str:
    return json.dumps({"event": "mark", "streamSid": stream_sid, "mark": {"name": name}})


def clear(stream_sid: str) -> str:
    return json.dumps({"event": "clear", "streamSid": stream_sid})


async def receive(connection: ServerConnection, event: str) -> dict[str, Any]:
    """The next message of this event; others before it are skipped."""
    async for raw in connection:
        message: dict[str, Any] = json.loads(raw)
        if message["event"] == event:
            return message
    raise AssertionError(f"the stream ended before {event!r}")


async def echo(connection: ServerConnection) -> None:
    """Send the caller's audio back as it comes, until `stop`."""
    async for raw in connection:
        message = json.loads(raw)
        if message["event"] == "media":
            await connection.send(media(message["streamSid"], base64.b64decode(message["media"]["payload"])))
        if message["event"] == "stop":
            return
