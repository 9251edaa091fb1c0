"""Runs a world for `nearcall world` and prints what happens in it."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from app.cli.ledger_view import json_text, table
from app.sim.realtime.reply import Message, Reply, ReplyRequest
from app.sim.speech import Sentence
from app.sim.wav import read_wav
from app.storage.errors import StorageError
from app.world.calls import Outcome, place
from app.world.chaos import ChaosReport, chaos, strays
from app.world.database import DatabaseError
from app.world.machine import MachineError
from app.world.world import World, world

VOICE = Path(__file__).parent.parent / "sim" / "voices" / "caller_interrupts.wav"
SETTLED_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """The experiments to run."""

    cities: tuple[str, ...]
    regions: tuple[str, ...]
    faults: tuple[tuple[str, str], ...]
    """The faults and their regions."""
    chaos: int
    seed: int
    sqld: Path | None


@dataclass(frozen=True, slots=True)
class Paper:
    """Where things are written."""

    out: Callable[[str], None]
    """What was asked for."""
    aside: Callable[[str], None]
    """How far it is."""
    json_lines: bool


async def show(directory: Path, wishes: Wishes, paper: Paper) -> list[str]:
    """Runs the experiments, prints the results, and returns what went wrong."""
    try:
        async with world(
            directory, wishes.regions, wishes.cities, sqld_program=wishes.sqld, script=_brief, say=paper.aside
        ) as running:
            if wishes.chaos:
                return await _show_chaos(running, wishes, paper)
            return await _show_calls(running, wishes, paper)
    except (MachineError, DatabaseError, StorageError) as error:
        return [str(error)]
    except TimeoutError:
        return ["the servers did not become healthy in time"]


async def _show_calls(running: World, wishes: Wishes, paper: Paper) -> list[str]:
    line = read_wav(VOICE)
    outcomes = await _round(running, wishes, line)
    _write(outcomes, paper)
    for fault, region in wishes.faults:
        paper.aside(f"{fault} {region}")
        await {"kill": running.kill, "drain": running.drain, "sick": running.sicken}[fault](region)
    if wishes.faults:
        # At once: the edges still believe what was. That is how it is for the first callers.
        again = await _round(running, wishes, line)
        _write(again, paper)
        outcomes += again
    problems = [f"{each.city} to {each.zone}: {each.error or 'silence'}" for each in outcomes if not each.good]
    eu_calls = [each.call_sid for each in outcomes if each.zone == "eu"]
    return problems + await asyncio.to_thread(strays, running.directory, tuple(running.machines), eu_calls)


async def _round(running: World, wishes: Wishes, line: bytes) -> list[Outcome]:
    """Calls each zone's number from each city, all at once."""
    calls = [place(running, city, zone, line) for city in wishes.cities for zone in ("global", "eu")]
    return list(await asyncio.gather(*calls))


async def _show_chaos(running: World, wishes: Wishes, paper: Paper) -> list[str]:
    paper.aside(f"{wishes.chaos} calls, seed {wishes.seed}")
    done = Counter[str]()

    def over(outcome: Outcome) -> None:
        done["calls"] += 1
        if paper.json_lines:
            paper.out(json_text(asdict(outcome)))
        elif done["calls"] % 50 == 0:
            paper.aside(f"{done['calls']} of {wishes.chaos} calls are over")

    report = await chaos(running, wishes.chaos, random.Random(wishes.seed), over)  # noqa: S311 - no secret
    if not paper.json_lines:
        paper.out("\n".join(_verdict_lines(report)))
    problems = [f"{each.city} to {each.zone}: {each.error or 'silence'}" for each in report.unserved]
    if not report.judged:
        problems.append("no call was found in the records, so nothing was verified")
    problems += [f"zone {zone}: no agent answered any more after the faults" for zone in report.forsaken]
    return problems + report.breaches


def _verdict_lines(report: ChaosReport) -> list[str]:
    served = sum(each.served for each in report.outcomes)
    told = sum(not each.served and bool(each.sentence) for each in report.outcomes)
    of_eu = sum(each.zone == "eu" for each in report.outcomes)
    faults = ", ".join(f"{count} {name}" for name, count in sorted(report.faults.items()))
    return [
        f"{len(report.outcomes)} calls ({of_eu} of zone eu) among {faults or 'no faults'}:",
        f"{served} served, {told} heard only the sentence, {len(report.unserved)} neither",
        f"{report.judged} records checked against their zones, {len(report.breaches)} breaches",
    ]


_HEADER = ("from", "zone", "edge", "by way of", "handled in", "greeted after", "voice to voice", "heard")


def _write(outcomes: list[Outcome], paper: Paper) -> None:
    lines = [json_text(asdict(each)) for each in outcomes] if paper.json_lines else outcome_table(outcomes)
    paper.out("\n".join(lines))


def outcome_table(outcomes: list[Outcome]) -> list[str]:
    """The lines of a table with a row for each call. A cell has a dash where a call has nothing to show."""
    return table(_HEADER, (tuple(cell or "-" for cell in _row(each)) for each in outcomes))


def _row(each: Outcome) -> tuple[str, ...]:
    heard = "agent" if each.served else "sentence" if each.sentence else "busy" if each.busy else each.error
    return (
        each.city,
        each.zone,
        each.edge,
        " ".join(each.way[:-1]),
        each.way[-1] if each.way else each.answered_by,
        "" if each.greeted_ms is None else f"{each.greeted_ms:.0f} ms",
        "" if each.voice_to_voice_ms is None else f"{each.voice_to_voice_ms:.0f} ms",
        heard,
    )


def _brief(_request: ReplyRequest) -> Reply:
    return Reply((Message.lasting(Sentence.GREETING.words, 900),))
