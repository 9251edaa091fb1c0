"""Standard output whose reader may go away, as `head -1` does, without a word from us."""

import asyncio
import io
import os
import signal
from typing import Self


class Output(io.TextIOWrapper):
    """Ends the command when nobody reads any more: as Ctrl-C where tasks run, so that they end in order."""

    @classmethod
    def instead_of(cls, stream: io.TextIOWrapper) -> Self:
        """The same file with the same settings. The other one cannot be used afterwards."""
        encoding, errors, at_terminal = stream.encoding, stream.errors, stream.isatty()
        return cls(stream.detach(), encoding, errors, line_buffering=at_terminal)

    def write(self, text: str, /) -> int:
        """As any output's. Raises BrokenPipeError, which ends a command quietly, where no task runs."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self._end()
            return len(text)

    def flush(self) -> None:
        """As `write`."""
        try:
            super().flush()
        except BrokenPipeError:
            self._end()

    def _end(self) -> None:
        # What is left in the buffer is flushed once more, and must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise BrokenPipeError from None
        os.kill(os.getpid(), signal.SIGINT)
