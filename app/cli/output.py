"""Standard output that ends a command quietly when its reader goes away, as in `nearcall calls list | head`."""

import asyncio
import io
import os
import signal
from typing import Self

READER_GONE = 141
"""The exit status: 128 and the number of SIGPIPE, which shells report for other tools in the same case."""


class Output(io.TextIOWrapper):
    """A text stream that ends the command when nobody reads it any more.

    While an event loop runs, it sends SIGINT, so that tasks end in order: a call is hung up. Otherwise it raises
    BrokenPipeError, which typer turns into a silent exit.
    """

    reader_gone = False
    """Whether the reader has closed the pipe."""

    @classmethod
    def instead_of(cls, stream: io.TextIOWrapper) -> Self:
        """Take over the stream's file and settings. The stream cannot be used afterwards."""
        encoding, errors, at_terminal = stream.encoding, stream.errors, stream.isatty()
        return cls(stream.detach(), encoding, errors, line_buffering=at_terminal)

    def write(self, text: str, /) -> int:
        """Write text. Raises BrokenPipeError when the reader is gone and no event loop runs."""
        try:
            return super().write(text)
        except BrokenPipeError:
            self._end()
            return len(text)

    def flush(self) -> None:
        """Write what is buffered. Raises BrokenPipeError as `write` does."""
        try:
            super().flush()
        except BrokenPipeError:
            self._end()

    def _end(self) -> None:
        self.reader_gone = True
        # Python flushes what is left in the buffer when it exits, and that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise BrokenPipeError from None
        os.kill(os.getpid(), signal.SIGINT)
