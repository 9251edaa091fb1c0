"""`nearcall tenants`: which numbers are answered, and how. Checks and imports a file, shows what is stored.

The commands use the global zone's database, or its local file. They need no running server; one that runs finds
changes by itself.
"""

import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from app.cli import tenant_store as view
from app.cli.ledger_view import json_text
from app.cli.shared import EnvFile, Json, fail, known_names, record_mistakes, record_settings, run, working
from app.ledger.zone_files import zone_of
from app.ledger.zones import DEFAULT_ZONE, Zone
from app.storage.errors import StorageError
from app.suggestions import instead
from app.tenants.document import read_document
from app.tenants.fields import Known
from app.tenants.store import Kind, changes
from app.tenants.tenant import Tenant, tenants_in, toml_of
from app.validation import Mistake, SettingsError

_T = TypeVar("_T")

app = typer.Typer(
    help="Which numbers are answered, and how: import, export, list, show, check.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

File = Annotated[Path, typer.Argument(help="A TOML file with a table [tenants.NAME] for each tenant.")]


@app.command()
def check(file: File, json: Json = False, env_file: EnvFile = Path(".env")) -> None:
    """Check a file and report every mistake in it with its line. Needs no database.

    Also reports the mistakes in the file of NEARCALL_CONFIG, whose zones and backends tenants refer to. Exit
    status 1 if there are any. With --json, prints one object a line for each mistake.
    """
    tenants = _read(file, env_file, json=json)
    if not json:
        print(f"{file}: {_counted(tenants)}, nothing wrong")


@app.command("import")
def import_(
    file: File,
    remove: Annotated[bool, typer.Option("--remove", help="Remove tenants that are not in the file.")] = False,
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Replace the stored tenants by those of a file, and print what changes. All of it or nothing.

    Running servers use the new tenants within five seconds, for new calls. Exit status 1 and no change: a mistake
    in the file or in the settings, a tenant that would be removed without --remove, or another import at the same
    moment. Safe to run twice. With --json, prints one object a line for each tenant that changes.
    """
    tenants = _read(file, env_file, json=json, settings=record_mistakes(env_file))
    wanted = view.rows_of(tenants)
    zone = _zone(env_file)
    seen = _ask(zone, view.read_tenants(zone))
    differ = changes(seen, wanted)
    for line in (json_text(view.change_object(each)) for each in differ) if json else view.change_lines(differ):
        print(line)
    gone = [each.tenant for each in differ if each.kind is Kind.REMOVED]
    if gone and not remove:
        fail(f"{', '.join(gone)} would be removed. Nothing was changed. To remove tenants, use --remove.")
    if differ:
        _ask(zone, view.write_tenants(zone, seen, wanted, time.time_ns() // 1_000_000))
    if not json:
        print(f"{view.summary(differ, len(wanted))} ({zone.url or zone.local})")


@app.command()
def export(
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Write the stored tenants as a file for `import`. Exit status 1 if one of them cannot be read."""
    tenants = _stored(env_file)
    text = "\n".join(map(toml_of, tenants.values()))
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        fail(f"{output}: {error.strerror}.")
    print(f"{_counted(tenants)} written to {output}", file=sys.stderr)


@app.command("list")
def list_tenants(json: Json = False, env_file: EnvFile = Path(".env")) -> None:
    """List all stored tenants. Exit status 1 if a server cannot use one of them.

    With --json, prints one object a line.
    """
    zone = _zone(env_file)
    rows = _ask(zone, view.read_tenants(zone))
    tenants, broken = view.usable(rows, _known(env_file))
    if json:
        for each in view.tenant_objects(rows, tenants, broken):
            print(json_text(each))
    else:
        print("\n".join(view.tenant_table(rows, tenants, broken)))
    if broken:
        fail(f"{', '.join(broken)} cannot be used: their callers hear an apology.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The tenant's name.", metavar="TENANT")],
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Show one stored tenant, with the fields that it leaves out marked as defaults."""
    zone = _zone(env_file)
    rows = _ask(zone, view.read_tenants(zone))
    tenants, broken = view.usable(rows, _known(env_file))
    if name in broken:
        fail(f"{name} cannot be used: {broken[name]}")
    if name not in tenants:
        fail(f"There is no tenant {name}{instead(name, tenants)}")
    tenant = tenants[name]
    print(json_text(view.tenant_object(tenant)) if json else toml_of(tenant, defaults=True).rstrip())


# --- Shared ------------------------------------------------------------------------------------


def _read(file: Path, env_file: Path, *, json: bool, settings: Iterable[Mistake] = ()) -> dict[str, Tenant]:
    """The tenants of a file. Mistakes are printed as editors read them: FILE:LINE: what is wrong.

    `settings`: mistakes elsewhere that are to be reported at the same time.
    """
    known, in_config = known_names(env_file)
    tenants: dict[str, Tenant] = {}
    in_file: tuple[Mistake, ...] = ()
    try:
        tenants = tenants_in(read_document(file), known)
    except SettingsError as error:
        in_file = error.mistakes
    mistakes = list(dict.fromkeys([*in_file, *in_config, *settings]))
    for mistake in mistakes:
        if json:
            print(json_text(view.mistake_object(mistake)))
        else:
            print(mistake, file=sys.stderr)
    if mistakes:
        places = Counter(mistake.file or "the environment" for mistake in mistakes)
        fail(", ".join(f"{count} mistake{'s' if count > 1 else ''} in {place}" for place, count in places.items()))
    return tenants


def _known(env_file: Path) -> Known:
    known, mistakes = known_names(env_file)
    if mistakes:
        fail("\n".join(map(str, mistakes)))
    return known


def _stored(env_file: Path) -> dict[str, Tenant]:
    zone = _zone(env_file)
    tenants, broken = view.usable(_ask(zone, view.read_tenants(zone)), _known(env_file))
    if broken:
        fail("\n".join(f"{name} cannot be read: {why}" for name, why in broken.items()))
    return tenants


def _zone(env_file: Path) -> Zone:
    return zone_of(record_settings(env_file).ledger, DEFAULT_ZONE)


def _ask(zone: Zone, work: Coroutine[Any, Any, _T]) -> _T:
    try:
        with working(f"{zone.name}: asking {zone.url or zone.local}"):
            return run(work)
    except StorageError as error:
        fail(str(error))


def _counted(tenants: dict[str, Tenant]) -> str:
    numbers = sum(len(tenant.numbers) for tenant in tenants.values())
    return ", ".join(
        f"{count} {word}{'' if count == 1 else 's'}"
        for count, word in ((len(tenants), "tenant"), (numbers, "number"))
    )
