"""Ctrl-C while Python still loads a command.

A KeyboardInterrupt inside the import of a C extension can crash the process: in orjson 3.13 it is a segmentation
fault. Nothing needs an orderly end before a command has begun its work, so until then Ctrl-C ends the process at
once.
"""

import os
import signal
from types import FrameType

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""


def end_at_once_on_ctrl_c() -> None:
    """From now on Ctrl-C is status 130, silently. Where SIGINT is ignored, as under nohup, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_on_ctrl_c() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again, so that work ends in order."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
