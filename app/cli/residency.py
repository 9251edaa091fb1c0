"""`nearcall residency`: where calls were handled, and whether any of them left its zone."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.cli import ledger_view as view
from app.cli.shared import EnvFile, Json, fail, instant, record_settings, run
from app.cli.when import LOOKS_LIKE, shown
from app.config import RecordSettings
from app.ledger.queries import BEFORE_ALL_LEGS, Queries
from app.ledger.residency import Handled, judge
from app.ledger.zone_files import zones_here
from app.storage.errors import StorageError

PAGE = 1_000

app = typer.Typer(help="Show where calls were handled: report.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Make typer treat the single command as a group: `nearcall residency report`."""


@app.command()
def report(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's calls.", show_default=False)] = None,
    since: Annotated[
        str | None, typer.Option(help=f"Only calls since then: {LOOKS_LIKE}.", show_default=False)
    ] = None,
    zone: Annotated[str | None, typer.Option(help="Only this zone's calls.", show_default=False)] = None,
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Show which edge, machine, backend and database handled each call of a zone with a promise.

    Reads each zone's records on this machine. Exits with 1 if a call broke its zone's promise, or if it is unknown
    what handled it.
    """
    settings = record_settings(env_file)
    if zone not in {None, *settings.zones}:
        raise typer.BadParameter(f"should be one of {', '.join(settings.zones)}", param_hint="--zone")
    since_ms = instant("--since", since, 0)

    try:
        handled = run(_handled(settings, since_ms))
    except StorageError as error:
        fail(str(error))
    # Every database is read, whatever the zone: a call of it may be recorded in one where it should not be.
    found = [each for each in handled if tenant in {None, each.tenant} and zone in {None, each.zone}]
    if json:
        for each in found:
            print(view.json_text(asdict(each)))
    else:
        print("\n".join(view.table(_HEADER, map(_row, found))))
    for line in _not_kept_here(settings, zone):
        typer.echo(f"nearcall: {line}", err=True)
    broken = [f"{each.call_sid} of {each.tenant}: {what}" for each in found for what in each.breaches]
    if broken:
        fail("\n".join(broken))
    if not json:
        print(f"{len(found)} {'call' if len(found) == 1 else 'calls'}, every promise kept")


async def _handled(settings: RecordSettings, since_ms: int) -> list[Handled]:
    found: list[Handled] = []
    for zone in zones_here(settings):
        # A file that should not be on this machine is read as well: the report exists to find it.
        queries = Queries(zone.readable)
        try:
            after = BEFORE_ALL_LEGS
            while page := await queries.legs_between(since_ms, PAGE, after):
                found += [judge(leg.began, leg.events, zone.name, settings.zones) for leg in page]
                after = page[-1].key
        finally:
            await queries.close()
    return [each for each in found if each.breaches or settings.zones[each.zone].promises]


def _not_kept_here(settings: RecordSettings, zone: str | None) -> Iterator[str]:
    region = settings.ledger.region
    for name, rule in settings.zones.items():
        if zone in {None, name} and rule.promises and not rule.allows(region):
            yield f"calls of zone {name} are not kept in {region}: ask on a machine of that zone as well"


_HEADER = (
    "started (UTC)",
    "call",
    "tenant",
    "zone",
    "edge",
    "twilio",
    "machine",
    "sent on by",
    "backend",
    "promises",
    "ledger",
    "kept",
)


def _row(each: Handled) -> tuple[str, ...]:
    return (
        shown(each.started_ms),
        each.call_sid,
        each.tenant,
        each.zone,
        each.edge,
        each.twilio,
        each.machine,
        each.by,
        each.backend,
        each.residency,
        each.ledger,
        "no" if each.breaches else "yes",
    )
