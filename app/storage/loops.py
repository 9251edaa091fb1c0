"""Background loops that outlive a bug of ours.

The program starts each of these loops once. If an exception that nobody expected ended one, deliveries or looks
at a file would stop for as long as the process runs, and nothing else would show it.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

_Result = TypeVar("_Result")

_log = logging.getLogger("nearcall.storage")


@dataclass(frozen=True, slots=True)
class Bug:
    """A step ended with an exception that its loop does not expect."""

    error: Exception

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"


async def step_of(loop: str, step: Callable[[], Awaitable[_Result]]) -> _Result | Bug:
    """Take one step of the loop with this name and return its result.

    An exception that the step raises is logged with its traceback and returned as a Bug: the loop takes its next
    step, after a pause that it chooses.
    """
    try:
        return await step()
    except Exception as error:  # noqa: BLE001 - a bug of ours, which must not end the loop for good
        _log.exception("loop_step_failed", extra={"loop": loop})
        return Bug(error)
