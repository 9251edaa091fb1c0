"""Handles Ctrl-C while Python still loads a command.

A KeyboardInterrupt inside the import of a C extension can crash the process: in orjson 3.13 it causes a
segmentation fault. Before a command has begun its work there is nothing to clean up, so until then Ctrl-C ends the
process at once.
"""

import os
import signal
from types import FrameType

INTERRUPTED = 130
"""The exit status: 128 and the number of SIGINT, as shells report it."""


def end_at_once_on_ctrl_c() -> None:
    """Make Ctrl-C end the process at once with status 130. An ignored SIGINT, as under nohup, stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_on_ctrl_c() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again, so that running work can clean up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
