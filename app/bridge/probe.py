"""Looks whether a backend is there again: a connection without a call, up to the backend's first message."""

import asyncio

from app.bridge.backend import DialError, dial
from app.bridge.link import Link
from app.call.events import Side
from app.wire.dialect import Address

GREETING_LIMIT_S = 4.0
"""For the first message; a backend that accepts connections and says nothing is not back."""

MAX_MESSAGE_BYTES = 1024 * 1024


class _Listener:
    """Owns the link of a probe, and waits for the first thing that happens on it."""

    def __init__(self) -> None:
        self.heard: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        """None: a message came; else what went wrong."""

    def _settle(self, why: str | None) -> None:
        if not self.heard.done():
            self.heard.set_result(why)

    def link_up(self, side: Side) -> None:
        pass

    def link_message(self, side: Side, message: memoryview | bytes) -> None:  # noqa: ARG002  any message will do
        self._settle(None)

    def link_bad_message(self, side: Side, why: str) -> None:  # noqa: ARG002  there is one side
        self._settle(why)

    def link_pong(self, side: Side) -> None:
        pass

    def link_slow(self, side: Side) -> None:
        pass

    def link_lost(self, side: Side, code: int) -> None:  # noqa: ARG002  there is one side
        self._settle(f"it closed the connection ({code})")


async def probe(address: Address) -> None:
    """Return when the backend has said something. Raises DialError. Leaves nothing open."""
    listener = _Listener()
    link = Link(Side.BACKEND, listener, MAX_MESSAGE_BYTES)
    await dial(address, link, MAX_MESSAGE_BYTES)
    try:
        async with asyncio.timeout(GREETING_LIMIT_S):
            why = await listener.heard
    except TimeoutError:
        why = f"it said nothing within {GREETING_LIMIT_S:g} s"
    finally:
        link.close()
        await link.over.wait()
    if why is not None:
        raise DialError(why)
