"""Runs the real server as a process that reports what it holds; Twilio's REST API is on this machine.

    python -m scripts.benchlib.watched CONTROL_PORT REST_URL

Each connection to the control port gets one JSON object. Settings come from the environment, as the server's.
"""

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict
from urllib.parse import urlsplit

import orjson
import uvloop

from app.config import Settings, environment
from app.logs import setup_logs
from app.main import running
from app.process import bind, stop_signal
from scripts.benchlib.leftovers import holdings, memory_in_use
from scripts.benchlib.process import rss_kb


async def _serve(control_port: int, rest_url: str) -> None:
    settings = Settings.from_env(environment())
    async with AsyncExitStack() as stack:
        stack.enter_context(setup_logs("info", json_lines=True, region=settings.region, secrets=settings.secrets))
        stop = stop_signal(stack)
        listener = bind("127.0.0.1", settings.port)
        server = await stack.enter_async_context(running(settings, listener, api_hosts={"us1": rest_url}))

        def tell(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            held = asdict(holdings(urlsplit(rest_url).port))
            state = {
                "holdings": held,
                "calls": server.registry.counts,
                "rss_kb": rss_kb(os.getpid()),
                "in_use_bytes": memory_in_use(),
            }
            writer.write(orjson.dumps(state))
            writer.close()

        control = await asyncio.start_server(tell, "127.0.0.1", control_port)
        stack.callback(control.close)
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2]))
