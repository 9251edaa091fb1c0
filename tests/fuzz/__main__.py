"""Feeds the server malformed inputs, and reports what they break.

Most inputs are nearly right: Twilio's messages, a backend's, webhooks, WebSocket upgrades and the database's
answers, with values missing, doubled, of another type, huge, or in another order. Everything runs in this
process, without sockets. No input may break its call, fail a webhook or an upgrade, break a call's rules, keep a
call from ending, grow what a call keeps without bound, disturb another call, or occupy the process for more than
100 ms.

The same seed gives the same inputs. A failing case is reduced and printed with the command that repeats it. The
exit status is 0 if nothing broke.
"""

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Sequence

from app.logs import setup_logs
from tests.fuzz.calls import Calls
from tests.fuzz.database import Database
from tests.fuzz.engine import Fuzzer, Outcome, Target
from tests.fuzz.webhooks import Upgrades, Webhooks

EVERY_S = 10.0
"""Between two lines of progress."""


class _LogFile:
    """Where log lines go: they are formatted as ever, and one that could not be is remembered."""

    def __init__(self) -> None:
        self.broken = 0

    def write(self, text: str) -> int:
        self.broken += text.count("log_line_broken")
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    targets: dict[str, Target] = {each.name: each for each in (Calls(), Webhooks(), Upgrades(), Database())}
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--inputs", type=int, default=100_000, metavar="N", help="number of inputs (default: 100,000)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="random seed, to reproduce a run (default: 1)"
    )
    parser.add_argument("--only", choices=sorted(targets), help="test only this part of the server")
    parser.add_argument("--case", type=int, metavar="N", help="repeat one case of the seed; needs --only")
    options = parser.parse_args(arguments)
    if options.case is not None and options.only is None:
        parser.error("--case needs --only: each part of the server has its own cases")
    chosen = [targets[options.only]] if options.only else list(targets.values())
    fuzzer = Fuzzer(chosen, options.seed)
    log = _LogFile()
    gc.freeze()
    began = time.monotonic()
    with setup_logs("info", True, "fra", (), log):  # type: ignore[arg-type]  # as much of a file as it needs
        if options.case is not None:
            outcome = asyncio.run(fuzzer.case(chosen[0], options.case))
        else:
            outcome = asyncio.run(fuzzer.inputs(options.inputs, _Progress(options.inputs)))
    for failure in outcome.failures:
        sys.stdout.write(f"{failure.told(options.seed)}\n{'-' * 80}\n")
    sys.stdout.write(_summary(outcome, options.seed, time.monotonic() - began, log.broken))
    return 1 if outcome.failures or log.broken else 0


class _Progress:
    """A line now and then, on stderr."""

    def __init__(self, inputs: int) -> None:
        self._inputs = inputs
        self._next = time.monotonic() + EVERY_S

    def __call__(self, done: int) -> None:
        if time.monotonic() >= self._next:
            self._next += EVERY_S
            sys.stderr.write(f"{done:,} of {self._inputs:,} inputs\n")


def _summary(outcome: Outcome, seed: int, took_s: float, broken_lines: int) -> str:
    parts = ", ".join(f"{count:,} for {name}" for name, count in outcome.inputs.items())
    broke = f"{len(outcome.failures)} different faults" if outcome.failures else "nothing broke"
    lines = [f"{outcome.inputs.total():,} inputs ({parts}) in {took_s:.0f} s, seed {seed}: {broke}"]
    if outcome.slow:
        lines.append(f"{outcome.slow} cases were slow once, and not when repeated")
    if broken_lines:
        lines.append(f"{broken_lines} log lines could not be written")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
