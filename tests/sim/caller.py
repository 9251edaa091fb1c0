"""A caller for the tests of the test phone: without the delays that only a human would notice."""

import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

from app.sim.phone.options import PhoneOptions
from app.sim.phone.phone import Phone
from app.sim.wav import pcm_to_mulaw
from tests.sim.echo_server import Application, Conversation, Refusal, Reply, Webhook, running

TOKEN = "12345"
STREAM = '<Stream url="{ws}/media/t1"/>'
CONNECT = f"<Response><Connect>{STREAM}</Connect></Response>"
CONNECT_THEN_ACTION = f'<Response><Connect action="/after">{STREAM}</Connect></Response>'
HANGUP = "<Response><Hangup/></Response>"


def options(application: Application, **changes: Any) -> PhoneOptions:
    settings: dict[str, Any] = {
        "webhook_url": f"{application.http_url}/voice",
        "auth_token": TOKEN,
        "connected_after_ms": (0, 0),
        "document_pace": 0,
    }
    return PhoneOptions(**settings | changes)


def tone(ms: int) -> bytes:
    """A sound loud enough to be speech."""
    return pcm_to_mulaw([round(8000 * math.sin(2 * math.pi * 440 * n / 8000)) for n in range(ms * 8)])


@contextlib.asynccontextmanager
async def calling(application: Application, **changes: Any) -> AsyncIterator[Phone]:
    """A phone that has dialled the running application."""
    async with running(application), Phone(options(application, **changes)) as phone:
        await phone.dial()
        yield phone


def streaming(
    conversation: Conversation, *, document: str = CONNECT, refuse_upgrade: Refusal | None = None
) -> Application:
    """An application that connects every call to one stream, and hangs up when asked what comes after it."""
    webhooks: dict[str, Webhook] = {"/voice": Reply(document), "/after": Reply(HANGUP)}
    return Application(webhooks, conversation, refuse_upgrade)
