"""What concerns the process: a listening socket, stop signals, file descriptors, the garbage collector."""

import asyncio
import errno
import gc
import logging
import os
import resource
import signal
import socket
from contextlib import AsyncExitStack

LISTEN_BACKLOG = 2048
"""Connections that the kernel keeps until the event loop accepts them."""

log = logging.getLogger("nearcall.process")


class StartError(Exception):
    """The server cannot start. The text says why, and what to do about it."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises StartError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=LISTEN_BACKLOG, dualstack_ipv6=host == "::"
        )
    except OSError as error:
        # create_server reports a failed name look-up as an OSError with the look-up's own, negative number.
        why = "no such address" if (error.errno or 0) < 0 else os.strerror(error.errno or 0)
        raise StartError(f"Cannot listen on {host}, port {port}: {why}.{_port_advice(error)}") from error


def _port_advice(error: OSError) -> str:
    """What an operator can do about a port that cannot be had."""
    match error.errno:
        case errno.EADDRINUSE:
            holder = "Another program listens there, perhaps a nearcall that still runs: `ss -ltnp` names it."
            return f" {holder} Stop it, or choose another port with --port or PORT."
        case errno.EACCES:
            return " Ports below 1024 are for root: choose another one with --port or PORT."
    return ""


def url_of(listener: socket.socket) -> str:
    """A URL that reaches this socket from this machine and that a terminal lets one click."""
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104  the address is compared, not bound
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def stop_signal(stack: AsyncExitStack) -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; a second one ends the process at once.

    `stack` removes the signal handlers.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def remove_handlers() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def signalled() -> None:
        stop.set()
        remove_handlers()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not Python's own handler: its KeyboardInterrupt is swallowed when it hits a callback of uvloop.
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    stack.callback(remove_handlers)
    return stop


def raise_descriptor_limit() -> None:
    """Let the process open as many files and sockets as it may: the usual 1,024 are too few for 400 calls."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:  # macOS says "unlimited" and means less
        log.warning("descriptor_limit_not_raised", extra={"error": str(error)})


def descriptor_limit() -> int:
    """How many files and sockets the process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def freeze_gc() -> None:
    """Keep everything that was loaded at the start out of later garbage collections: it lives until the end.

    Measured at 200 calls: full collections of it took 8 % of the CPU and made the longest pauses of a call.
    """
    gc.collect()
    gc.freeze()
