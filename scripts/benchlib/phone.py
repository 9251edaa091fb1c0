"""The phones of the load test: thousands of media streams as Twilio runs them (twilio.md 1).

They send the same messages as the simulated phone in app/sim/phone and share no code with it: they run on picows
and keep no audio, so that one core carries thousands of calls. They make signed webhooks, open the stream's
ticketed URL, send 50 frames a second on one clock for all, and echo marks once the audio before them was played.
The audio is silence that begins with a stamp.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit

import orjson
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect
from twilio.request_validator import RequestValidator

from scripts.benchlib.backend import LoadBackend
from scripts.benchlib.meter import STAMP_CHARS, filler, read_stamp, stamp

ACCOUNT_SID = "AC" + "0" * 31 + "1"
AUTH_TOKEN = "0123456789abcdef0123456789abcdef"
FRAME_MS = 20
START_AFTER_S = 0.1
"""From the accepted socket to `connected` and `start`: 90 to 150 ms (twilio.md 1.1)."""
WEBHOOK_LIMIT_S = 15.0

_FRAME_END = filler(FRAME_MS * 8, 0xFF).decode()
_STREAM_URL = re.compile(rb'<Stream [^>]*?url="(ws[^"]+)"')
_PAYLOAD = b'"payload":"'
_BYTES_PER_S = 8_000


class CallRefusedError(Exception):
    """The server did not take a call of the load, which it should have."""


class CallEndpoint:
    """Where phones call: the real server, or the relay, which has no webhooks."""

    def __init__(self, base: str, *, webhooks: bool) -> None:
        """`base`: http://host:port."""
        self.base = base
        self._webhooks = webhooks
        self._validator = RequestValidator(AUTH_TOKEN)

    async def stream_url(self, call_sid: str) -> str:
        """Ask the voice webhook where the media stream goes. Raises CallRefusedError."""
        if not self._webhooks:
            return f"{self.base.replace('http', 'ws', 1)}/media/{call_sid}"
        document = await self._post("/twiml/voice", call_sid, "in-progress")
        found = _STREAM_URL.search(document)
        if found is None:
            raise CallRefusedError(f"the voice webhook answered {document[:300]!r}")
        return found.group(1).decode()

    async def after(self, call_sid: str) -> None:
        """Requests the `<Connect action>`, as Twilio does after a stream."""
        if self._webhooks:
            await self._post("/twiml/after", call_sid, "completed")

    def signature(self, url: str) -> Mapping[str, str]:
        """Returns the signature header of an upgrade."""
        return {"X-Twilio-Signature": self._validator.compute_signature(url, {})}

    async def _post(self, path: str, call_sid: str, status: str) -> bytes:
        form = {
            "AccountSid": ACCOUNT_SID,
            "ApiVersion": "2010-04-01",
            "CallSid": call_sid,
            "CallStatus": status,
            "Direction": "inbound",
            "From": "+4930123456",
            "To": "+4930654321",
        }
        body = urlencode(form).encode()
        parts = urlsplit(self.base)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            "Content-Type: application/x-www-form-urlencoded; charset=UTF-8\r\n"
            f"X-Twilio-Signature: {self._validator.compute_signature(self.base + path, form)}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        async with asyncio.timeout(WEBHOOK_LIMIT_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                writer.write(head.encode() + body)
                answer = await reader.read()
            finally:
                writer.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise CallRefusedError(f"{path} answered {answer[:200]!r}")
        return answer


class Phone(WSListener):
    """One call's media stream."""

    def __init__(self, load_backend: LoadBackend, number: int) -> None:
        """`number` goes into the stamps of its audio."""
        self.number = number
        self.call_sid = f"CA{number:032x}"
        self.started_ns = 0
        self.first_audio_ns = 0
        self.spoken_to = asyncio.Event()
        self.lost = asyncio.Event()
        self._load_backend = load_backend
        self._loop = asyncio.get_running_loop()
        self._transport: WSTransport | None = None
        self._stream_sid = f"MZ{number:032x}"
        self._sequence = 0
        self._chunk = 0
        self._played_at = 0.0
        """When everything received so far will have been played."""
        self._marks: dict[str, asyncio.TimerHandle] = {}

    # --- The socket ----------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        self._transport = None
        for timer in self._marks.values():
            timer.cancel()
        self.lost.set()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
            return
        if frame.msg_type != WSMsgType.TEXT:
            return
        message = frame.get_payload_as_bytes()
        if message.startswith(b'{"event":"media"'):
            self._media(message)
        else:
            self._other(orjson.loads(message))

    # --- What the server sends -----------------------------------------------------------------

    def _media(self, message: bytes) -> None:
        now_ns = time.monotonic_ns()
        start = message.find(_PAYLOAD) + len(_PAYLOAD)
        at_once, sent_ns = read_stamp(message[start : start + STAMP_CHARS])
        meter = self._load_backend.meter
        if at_once and meter.covers(sent_ns):
            meter.agent_ns.append(now_ns - sent_ns)
        if not self.first_audio_ns:
            self.first_audio_ns = now_ns
            self.spoken_to.set()
        audio_bytes = (len(message) - start - 3) // 4 * 3
        self._played_at = max(self._played_at, self._loop.time()) + audio_bytes / _BYTES_PER_S

    def _other(self, message: dict[str, object]) -> None:
        match message:
            case {"event": "mark", "mark": {"name": str(name)}}:
                self._marks[name] = self._loop.call_at(self._played_at, self._echo, name)
            case {"event": "clear"}:
                self._cleared()
            case _:
                pass

    def _echo(self, name: str) -> None:
        self._marks.pop(name).cancel()
        self._say({"event": "mark", "mark": {"name": name}})

    def _cleared(self) -> None:
        now_ns = time.monotonic_ns()
        sent_ns = self._load_backend.interrupted_ns.pop(self.number, 0)
        if self._load_backend.meter.covers(sent_ns):
            self._load_backend.meter.clear_ns.append(now_ns - sent_ns)
        self._played_at = 0.0
        for name in list(self._marks):
            self._echo(name)

    # --- What Twilio sends ---------------------------------------------------------------------

    def start(self) -> None:
        """Sends `connected` and `start`."""
        if self._transport is None:
            return
        self._transport.send(WSMsgType.TEXT, b'{"event":"connected","protocol":"Call","version":"1.0.0"}')
        self.started_ns = time.monotonic_ns()
        self._say(
            {
                "event": "start",
                "start": {
                    "accountSid": ACCOUNT_SID,
                    "streamSid": self._stream_sid,
                    "callSid": self.call_sid,
                    "tracks": ["inbound"],
                    "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                    "customParameters": {},
                },
            }
        )

    def frame(self) -> None:
        """Sends 20 ms of the caller's audio."""
        if self._transport is None:
            return
        self._sequence += 1
        self._chunk += 1
        timestamp_ms = 160 + FRAME_MS * self._chunk
        meter = self._load_backend.meter
        if meter.covers(time.monotonic_ns()):
            meter.frames_sent += 1
        audio = stamp(self.number).decode() + _FRAME_END
        self._transport.send(
            WSMsgType.TEXT,
            (
                f'{{"event":"media","sequenceNumber":"{self._sequence}","media":{{"track":"inbound",'
                f'"chunk":"{self._chunk}","timestamp":"{timestamp_ms}","payload":"{audio}"}},'
                f'"streamSid":"{self._stream_sid}"}}'
            ).encode(),
        )

    def hang_up(self) -> None:
        """Sends `stop` and closes."""
        if self._transport is not None:
            self._say({"event": "stop", "stop": {"accountSid": ACCOUNT_SID, "callSid": self.call_sid}})
            self._transport.send_close(WSCloseCode.OK)

    def drop(self) -> None:
        """Break the connection."""
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    def _say(self, message: dict[str, object]) -> None:
        if self._transport is not None:
            self._sequence += 1
            message |= {"sequenceNumber": str(self._sequence), "streamSid": self._stream_sid}
            self._transport.send(WSMsgType.TEXT, orjson.dumps(message))


class Exchange:
    """All phones of the load test on one clock: each millisecond, a twentieth of them send their frame."""

    def __init__(self, load_backend: LoadBackend, endpoint: CallEndpoint) -> None:
        self.phones: set[Phone] = set()
        self._load_backend = load_backend
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._slots: list[set[Phone]] = [set() for _ in range(FRAME_MS)]
        self._count = 0
        self._ticks = 0
        self._next_ns = time.monotonic_ns()
        self._timer: asyncio.TimerHandle | None = None
        self._tick()

    async def call(self, *, webhook_to_start_s: float = 0) -> Phone:
        """Make one call; returns when its audio flows. Raises CallRefusedError.

        `start` is sent START_AFTER_S after the socket is up, at the earliest so long after the webhook's answer.
        """
        self._count += 1
        phone = Phone(self._load_backend, self._load_backend.number())
        url = await self._endpoint.stream_url(phone.call_sid)
        answered = time.monotonic()
        await ws_connect(lambda: phone, url, extra_headers=self._endpoint.signature(url))
        self.phones.add(phone)
        await asyncio.sleep(max(START_AFTER_S, answered + webhook_to_start_s - time.monotonic()))
        phone.start()
        self._slots[self._count % FRAME_MS].add(phone)
        return phone

    async def end(self, phone: Phone) -> None:
        """The caller hangs up, and Twilio asks what comes next."""
        for slot in self._slots:
            slot.discard(phone)
        phone.hang_up()
        try:
            async with asyncio.timeout(5):
                await phone.lost.wait()
        finally:
            phone.drop()
            self.phones.discard(phone)
        await self._endpoint.after(phone.call_sid)

    async def close(self) -> None:
        """End every call."""
        phones = list(self.phones)
        for group in range(0, len(phones), 20):
            await asyncio.gather(*map(self.end, phones[group : group + 20]))
        if self._timer is not None:
            self._timer.cancel()

    def drop(self) -> None:
        """Leave at once."""
        if self._timer is not None:
            self._timer.cancel()
        for phone in self.phones:
            phone.drop()

    def _tick(self) -> None:
        # Not the loop's own clock, which uvloop reads once a turn; its timers know whole milliseconds only.
        now_ns = time.monotonic_ns()
        meter = self._load_backend.meter
        while self._next_ns <= now_ns:
            if meter.covers(now_ns):
                meter.late_ns.append(now_ns - self._next_ns)
            for phone in self._slots[self._ticks % FRAME_MS]:
                phone.frame()
            self._ticks += 1
            self._next_ns += 1_000_000
        self._timer = self._loop.call_later(0.001, self._tick)
