"""A whole server that is stopped for longer than a peer may be silent, and continued, in the middle of a call."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.call import limits
from app.cli.demo import VOICES
from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.realtime.openai_simulator import RealtimeSimulator
from app.sim.realtime.reply import parrot
from app.sim.wav import read_wav
from app.world.process import free_port
from tests.bridge.world import ACCOUNT_SID, AUTH_TOKEN

pytestmark = pytest.mark.anyio

NEARCALL = Path(sys.executable).with_name("nearcall")
SPEECH = read_wav(VOICES / "caller_interrupts.wav")
STOPPED_S = limits.PEER_SILENT_S + 1.0
IN_TIME_S = 90.0


@contextlib.asynccontextmanager
async def serving(directory: Path, backend_url: str, port: int) -> AsyncIterator[Process]:
    """A `nearcall serve` in a process of its own, whose backend is here."""
    ours = re.compile("NEARCALL_|TWILIO_|OPENAI_|TURSO_|FLY_|AZURE_|PORT$")
    process = await asyncio.create_subprocess_exec(
        *(NEARCALL, "serve", "--env-file", os.devnull),
        stdout=DEVNULL,
        stderr=PIPE,
        cwd=directory,
        env={name: value for name, value in os.environ.items() if not ours.match(name)}
        | {
            "NEARCALL_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "NEARCALL_SECRET": "s" * 40,
            "NEARCALL_LAG_MAX_MS": "10000",
            "NEARCALL_DATA_DIR": str(directory / "data"),
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
            "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
            "OPENAI_API_KEY": "test-key",
            "OPENAI_BASE_URL": backend_url,
            "PORT": str(port),
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


async def logged(process: Process, what: bytes) -> bytes:
    """The next line of its log that has this."""
    assert process.stderr is not None
    async for line in process.stderr:
        if what in line:
            return line
    raise AssertionError(f"{what!r} was never logged")


@pytest.mark.long
async def test_call_outlives_a_process_stopped_longer_than_a_peer_may_be_silent(
    tmp_path: Path,
) -> None:
    port = free_port()
    loop = asyncio.get_running_loop()
    async with (
        asyncio.timeout(IN_TIME_S),
        RealtimeSimulator(api_key="test-key", script=parrot) as backend,
        serving(tmp_path, backend.url, port) as server,
    ):
        await logged(server, b"server_started")
        options = PhoneOptions(f"http://127.0.0.1:{port}/twiml/voice", AUTH_TOKEN, document_pace=0.0)
        async with Phone(options) as phone:
            await phone.dial()
            await phone.heard_speech(300)
            server.send_signal(signal.SIGSTOP)
            loop.call_later(STOPPED_S, server.send_signal, signal.SIGCONT)
            # Its frames, this speech among them, wait in the socket; the answer to it comes afterwards.
            phone.say(SPEECH)
            session = backend.sessions[-1]  # the first is the server's own look at its backend
            await session.wait_for(lambda s: any(sent.type == "input_audio_buffer.committed" for sent in s.sent))
            before_ms = phone.speech_ms
            await phone.heard_speech(500, since_ms=before_ms)
            assert phone.ended is None
            await phone.hang_up()
        ended = await logged(server, b"call_ended")
        assert b"caller_hung_up" in ended
