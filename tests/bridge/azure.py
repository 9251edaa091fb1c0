"""Stand-ins for what azure-identity asks.

App Service's endpoint for managed identities over plain HTTP, Entra ID's own for service principals over TLS.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp.connector
import pytest

TLS = Path(__file__).parent.parent / "vectors" / "tls"

HOUR_S = 3600.0
IN_TIME_S = 30
"""A test that hangs fails after this."""

HEADER_SECRET = "identity-header-not-to-be-seen"
CLIENT_SECRET = f"{'client~secret-not-to-be-seen-':0<40}"
"""As long as Entra ID makes them."""


class Clock:
    """Unix time, and as much later as a test wants."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


def jwt(name: str) -> str:
    """Looks as Entra ID's tokens do: a header, claims with a person's address, a signature."""
    return f"eyJ0eXAiOiJKV1QifQ.eyJ1cG4iOiJhbm5hQGV4YW1wbGUuY29tIn0.{name}-not-to-be-seen-{'x' * 64}"


Answer = tuple[int, str, bytes]
"""Status, content type, body."""


def said(content: object, status: int = 200) -> Answer:
    return status, "application/json; charset=utf-8", json.dumps(content).encode()


class Azure:
    """A stand-in that gives tokens, one after the other, until told to answer something else."""

    def __init__(self, clock: Clock, tls: ssl.SSLContext | None = None) -> None:
        self._clock = clock
        self._tls = tls
        self.life_s = HOUR_S
        self.answer: Callable[[], Answer | None] = self.token
        """None hangs up."""
        self.hang = False
        self.asked: list[str] = []
        """Each request: its head and body."""
        self.given = 0
        self.left: list[bool] = []
        """For each hanging request: whether the other side closed its connection."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    def token(self) -> Answer:
        """As App Service and Entra ID answer; the former's numbers are strings."""
        self.given += 1
        return said(
            {
                "access_token": jwt(str(self.given)),
                "expires_on": str(int(self._clock() + self.life_s)),
                "resource": "https://ai.azure.com",
                "token_type": "Bearer",
                "client_id": "5E29463D-71DA-4FE0-8E69-999B57DB23B0",
            }
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (line.split(":")[1] for line in head.splitlines() if "content-length" in line.lower()), "0"
            )
            self.asked.append(head + (await reader.readexactly(int(length))).decode())
            if self.hang:
                self.left.append(await reader.read() == b"")
            elif (answer := self.answer()) is not None:
                status, kind, body = answer
                lines = f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(lines.encode() + body)
                await writer.drain()
                await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def app_service(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> AsyncIterator[Azure]:
    """A machine that has a managed identity."""
    async with asyncio.timeout(IN_TIME_S), Azure(clock) as azure:
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{azure.port}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", HEADER_SECRET)
        yield azure


@asynccontextmanager
async def entra_id(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> AsyncIterator[Azure]:
    """A service principal with a secret, and an Entra ID that our CA vouches for."""
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(TLS / "localhost.pem", TLS / "localhost.key")
    trust = ssl.create_default_context(cafile=TLS / "ca.pem")
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trust)
    async with asyncio.timeout(IN_TIME_S), Azure(clock, served) as azure:
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", f"https://localhost:{azure.port}")
        monkeypatch.setenv("AZURE_TENANT_ID", "a-tenant")
        monkeypatch.setenv("AZURE_CLIENT_ID", "a-client")
        monkeypatch.setenv("AZURE_CLIENT_SECRET", CLIENT_SECRET)
        yield azure
