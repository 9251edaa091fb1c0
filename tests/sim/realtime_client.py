"""The client that talks with the simulated Realtime backends in the tests, and what it calls things at each."""

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.sim.realtime import openai_service as realtime_openai
from app.sim.realtime import voicelive_service
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import Message, Reply, ReplyRequest
from app.sim.realtime.server import RealtimeServer
from app.sim.realtime.service import Names
from app.sim.realtime.voicelive_simulator import VoiceLiveSimulator
from tests import openai_types, voicelive_types

Json = dict[str, Any]

SILENCE = b"\xff"
PCMU = {"type": "audio/pcmu"}
PCM = {"type": "audio/pcm", "rate": 24000}
SERVER_VAD = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500}


def telephone(**turn_detection: Any) -> Json:
    """A configuration for a call: mu-law both ways, transcription, the given changes to turn detection."""
    return {
        "type": "realtime",
        "audio": {
            "input": {
                "format": PCMU,
                "transcription": {"model": "gpt-transcribe", "language": "en"},
                "turn_detection": {**SERVER_VAD, **turn_detection},
            },
            "output": {"format": PCMU, "voice": "marin"},
        },
    }


def voicelive_telephone(**turn_detection: Any) -> Json:
    """The same for Voice Live."""
    return {
        "voice": {"type": "openai", "name": "marin"},
        "input_audio_format": "g711_ulaw",
        "input_audio_sampling_rate": 8000,
        "output_audio_format": "g711_ulaw",
        "input_audio_transcription": {"model": "gpt-4o-transcribe", "language": "en"},
        "turn_detection": {**SERVER_VAD, **turn_detection},
    }


@dataclass(frozen=True, slots=True)
class Backend:
    """One of the simulators, as a test that holds for both looks at it."""

    simulator: Callable[..., RealtimeServer]
    names: Names
    telephone: Callable[..., Json]
    query: str
    headers: Mapping[str, str]
    check_client_event: Callable[[Json], None]
    check_server_event: Callable[[Json], None]


OPENAI = Backend(
    RealtimeSimulator,
    realtime_openai.NAMES,
    telephone,
    "?model=gpt-realtime-2.1",
    {"Authorization": "Bearer sk-test"},
    openai_types.check_client_event,
    openai_types.check_server_event,
)
VOICELIVE = Backend(
    VoiceLiveSimulator,
    voicelive_service.NAMES,
    voicelive_telephone,
    "?api-version=2026-07-15&model=gpt-realtime-2.1",
    {"api-key": "sk-test"},
    voicelive_types.check_client_event,
    voicelive_types.check_server_event,
)
both = pytest.mark.parametrize("backend", [OPENAI, VOICELIVE], ids=["openai", "voicelive"])
"""Marks a test that holds for both simulators."""


def silence(ms: int) -> bytes:
    return SILENCE * (ms * 8)


def loud(ms: int) -> bytes:
    """Something the detector takes for speech."""
    return Message.lasting("", ms).mulaw


class Client:
    """The other end: with `check`, looks at every message it receives, and at every one it sends with `send`."""

    def __init__(self, websocket: ClientConnection, *, check: bool, backend: Backend) -> None:
        self.websocket = websocket
        self.events: list[Json] = []
        self._check = check
        self._backend = backend
        self.names = backend.names

    async def send(self, kind: str, **members: Any) -> None:
        event = {"type": kind, **members}
        if self._check:
            self._backend.check_client_event(event)
        await self.send_raw(event)

    async def send_raw(self, event: object) -> None:
        await self.websocket.send(json.dumps(event))

    async def append(self, audio: bytes) -> None:
        await self.send("input_audio_buffer.append", audio=b64encode(audio).decode())

    async def configure(self, session: Json) -> Json:
        await self.send("session.update", session=session)
        return await self.until("session.updated")

    async def next(self) -> Json:
        event: Json = json.loads(await self.websocket.recv())
        if self._check:
            self._backend.check_server_event(event)
        self.events.append(event)
        return event

    async def until(self, kind: str) -> Json:
        """The next event of a type; all those before it are kept in `events`."""
        while (event := await self.next())["type"] != kind:
            pass
        return event

    async def quiet(self) -> list[str]:
        """The types of all events up to now: asks for something harmless and waits for its refusal."""
        await self.send("response.cancel", response_id="resp_none", event_id="evt_quiet")
        before = len(self.events)
        while (event := await self.next())["type"] != "error" or event["error"]["event_id"] != "evt_quiet":
            pass
        return [each["type"] for each in self.events[before:-1]]

    async def refused(self, kind: str, **members: Any) -> Json:
        """Sends an event that must be refused; returns the error."""
        await self.send_raw({"type": kind, "event_id": "evt_bad", **members})
        error: Json = (await self.until("error"))["error"]
        assert error["event_id"] == "evt_bad"
        return error

    async def closed(self) -> tuple[int | None, str | None]:
        """Reads on to the close; its code and reason."""
        with pytest.raises(ConnectionClosed):
            await self.until("no such event")
        return self.websocket.close_code, self.websocket.close_reason

    def types(self) -> list[str]:
        """The types of all events received, runs of one type collapsed."""
        found = [event["type"] for event in self.events]
        return [kind for kind, before in zip(found, ["", *found], strict=False) if kind != before]

    def all(self, kind: str) -> list[Json]:
        return [event for event in self.events if event["type"] == kind]

    def deltas(self) -> list[bytes]:
        """The agent's audio as it came, in the session's output format."""
        return [b64decode(each["delta"]) for each in self.all(self.names.audio_delta)]


@asynccontextmanager
async def dial(
    sim: RealtimeServer,
    session: Json | None = None,
    *,
    greeted: bool = True,
    check: bool = True,
    query: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Client]:
    """Opens a session, configures it when told to, and forgets the events of doing so."""
    async with asyncio.timeout(10), open_socket(sim, query, headers) as websocket:
        client = Client(websocket, check=check, backend=backend_of(sim))
        if greeted:
            await client.until("session.created")
        if session is not None:
            await client.configure(session)
            client.events.clear()
        yield client


def backend_of(sim: RealtimeServer) -> Backend:
    return VOICELIVE if isinstance(sim, VoiceLiveSimulator) else OPENAI


def open_socket(
    sim: RealtimeServer, query: str | None = None, headers: Mapping[str, str] | None = None
) -> connect:
    """Dials; with a query or headers other than the usual ones if they are given."""
    usual = backend_of(sim)
    # With a bounded queue, a client that has stopped reading would not see the answer to its own close.
    return connect(
        f"{sim.ws_url}{usual.query if query is None else query}",
        additional_headers=usual.headers if headers is None else headers,
        compression=None,
        max_size=None,
        max_queue=None,
    )


def answers(*replies: Reply) -> Any:
    """A script that gives these replies one after the other."""
    waiting = iter(replies)

    def script(request: ReplyRequest) -> Reply:
        return next(waiting)

    return script
