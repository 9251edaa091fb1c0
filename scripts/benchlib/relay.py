"""The least C relay: picows on both legs and nothing else, the yardstick for what the server costs.

It cuts the audio out of a message by position and puts it into a fixed template, both ways. No webhooks, no
tickets, no marks, no turns, no ledger: a floor, not a product.

    python -m scripts.benchlib.relay PORT BACKEND_URL
"""

import asyncio
import sys

import uvloop
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server

_APPEND = b'{"type":"input_audio_buffer.append","audio":"'
_CONFIGURE = b'{"type":"session.update","session":{"type":"realtime"}}'
_PAYLOAD, _DELTA, _STREAM = b'"payload":"', b'"delta":"', b'"streamSid":"'
_AUDIO = b'{"type":"response.output_audio.delta"'
_END = b'"}'
_MEDIA_END = b'"}}'


class _Backend(WSListener):
    def __init__(self, phone: "_Phone") -> None:
        self._phone = phone

    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.send(WSMsgType.TEXT, _CONFIGURE)
        self._phone.backend = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
            return
        message = frame.get_payload_as_bytes()
        if message.startswith(_AUDIO):
            start = message.find(_DELTA) + len(_DELTA)
            media = self._phone.media + message[start : message.find(b'"', start)] + _MEDIA_END
            self._phone.transport.send(WSMsgType.TEXT, media)


class _Phone(WSListener):
    transport: WSTransport

    def __init__(self, backend_url: str) -> None:
        self.backend: WSTransport | None = None
        self.media = b""
        self._backend_url = backend_url
        self._dialling: asyncio.Task[object] | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self._dialling = asyncio.get_running_loop().create_task(
            ws_connect(lambda: _Backend(self), self._backend_url)
        )

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
            return
        message = frame.get_payload_as_bytes()
        start = message.find(_PAYLOAD)
        if start >= 0:
            if self.backend is not None:
                start += len(_PAYLOAD)
                self.backend.send(WSMsgType.TEXT, _APPEND + message[start : message.find(b'"', start)] + _END)
        elif message.startswith(b'{"event":"start"'):
            start = message.find(_STREAM) + len(_STREAM)
            sid = message[start : message.find(b'"', start)]
            self.media = b'{"event":"media","streamSid":"' + sid + b'","media":{"payload":"'

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        if self.backend is not None:
            self.backend.send_close(WSCloseCode.OK)
            self.backend.disconnect()


async def _serve(port: int, backend_url: str) -> None:
    server = await ws_create_server(lambda _request: _Phone(backend_url), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2]))
