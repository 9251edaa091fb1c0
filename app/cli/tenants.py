"""`nearcall tenants`: who is answered, and how. Checks and imports a file, shows what is stored.

Asks the global zone's database, or its local file; a running server is not needed and finds changes by itself.
"""

import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from app.cli import tenant_store as view
from app.cli.ledger_view import json_text
from app.cli.shared import EnvFile, Json, fail, known_names, record_settings, run, working
from app.ledger.zone_files import zone_of
from app.ledger.zones import DEFAULT_ZONE, Zone
from app.storage.errors import StorageError
from app.suggestions import instead
from app.tenants.document import DocumentError, read_document
from app.tenants.store import Kind, changes
from app.tenants.tenant import Tenant, tenants_in, toml_of

_T = TypeVar("_T")

app = typer.Typer(
    help="Who is answered, and how: import, export, list, show, check.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

File = Annotated[Path, typer.Argument(help="A TOML file with a table [tenants.NAME] for each tenant.")]


@app.command()
def check(file: File, json: Json = False, env_file: EnvFile = Path(".env")) -> None:
    """Say what is wrong in a file, all of it, each with its line. Needs no database.

    With --json one object a line for each problem.
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
    """Make the stored tenants those of a file, and say what changes. All of it or nothing.

    Running servers follow within five seconds, calls that are under way stay as they are. Status 1 and nothing
    changed: a problem in the file, a tenant that would go away without --remove, another import at the same
    moment. Safe to run twice. With --json one object a line for each tenant that changes.
    """
    tenants = _read(file, env_file, json=json)
    wanted = view.rows_of(tenants)
    zone = _zone(env_file)
    seen = _ask(zone, view.read_tenants(zone))
    differ = changes(seen, wanted)
    for line in (json_text(view.change_object(each)) for each in differ) if json else view.change_lines(differ):
        print(line)
    gone = [each.tenant for each in differ if each.kind is Kind.REMOVED]
    if gone and not remove:
        fail(f"{', '.join(gone)} would be removed: nothing was changed. Give --remove if that is meant.")
    if differ:
        _ask(zone, view.write_tenants(zone, seen, wanted, time.time_ns() // 1_000_000))
    if not json:
        print(f"{view.summary(differ, len(wanted))} ({zone.url or zone.local})")


@app.command()
def export(
    output: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """The stored tenants as a file that `import` takes. Status 1 when one of them cannot be read."""
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
    """All stored tenants. Status 1 when a server could not use one of them. With --json one object a line."""
    zone = _zone(env_file)
    rows = _ask(zone, view.read_tenants(zone))
    tenants, broken = view.usable(rows, known_names(env_file))
    if json:
        for each in view.tenant_objects(rows, tenants, broken):
            print(json_text(each))
    else:
        print("\n".join(view.tenant_table(rows, tenants, broken)))
    if broken:
        fail(f"{', '.join(broken)} cannot be used: who calls them hears an apology.")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The tenant's name.", metavar="TENANT")],
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """One stored tenant with everything it leaves out, which is marked as default."""
    zone = _zone(env_file)
    rows = _ask(zone, view.read_tenants(zone))
    tenants, broken = view.usable(rows, known_names(env_file))
    if name in broken:
        fail(f"{name} cannot be used: {broken[name]}")
    if name not in tenants:
        fail(f"there is no tenant {name}{instead(name, tenants)}")
    tenant = tenants[name]
    print(json_text(view.tenant_object(tenant)) if json else toml_of(tenant, defaults=True).rstrip())


# --- Shared ------------------------------------------------------------------------------------


def _read(file: Path, env_file: Path, *, json: bool) -> dict[str, Tenant]:
    """The tenants of a file. Problems are printed as editors read them: FILE:LINE: what is wrong."""
    try:
        return tenants_in(read_document(file), known_names(env_file))
    except DocumentError as error:
        for problem in error.problems:
            if json:
                print(json_text(view.problem_object(problem)))
            else:
                print(problem, file=sys.stderr)
        count = len(error.problems)
        fail(f"{count} problem{'s' if count > 1 else ''} in {file}")


def _stored(env_file: Path) -> dict[str, Tenant]:
    zone = _zone(env_file)
    tenants, broken = view.usable(_ask(zone, view.read_tenants(zone)), known_names(env_file))
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
