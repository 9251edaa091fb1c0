"""What the commands share: common options, how to fail, how to run a coroutine."""

import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
import uvloop
from rich.console import Console

from app.cli.interrupts import INTERRUPTED, raise_on_ctrl_c
from app.cli.when import instant_ms
from app.config import RecordSettings, config_file, environment
from app.ledger.zone_files import zone_of
from app.logs import Logs, setup_logs
from app.tenants.fields import Known
from app.validation import Mistake, SettingsError

_T = TypeVar("_T")


EnvFile = Annotated[Path, typer.Option(help="File with settings that the environment does not set.")]
ZoneName = Annotated[str, typer.Option("--zone", help="The calls' zone: global, eu, or one that you defined.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")]


def fail(text: str, status: int = 1) -> NoReturn:
    """Print the reason to stderr, and exit with this status."""
    for line in text.splitlines():
        print(f"nearcall: {line}", file=sys.stderr)
    raise typer.Exit(status)


def logs(level: str, region: str, secrets: tuple[str, ...]) -> Logs:
    """Log to stderr while this is open."""
    try:
        return setup_logs(level, None, region, secrets)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--log-level") from error


def record_settings(env_file: Path, *, every_zone: bool = False) -> RecordSettings:
    """Read the settings of the zones and the ledger from the environment.

    Exits with 1 if they are malformed or the ledger's files cannot be reached.
    """
    try:
        settings = RecordSettings.from_env(environment(env_file), every_zone=every_zone)
    except SettingsError as error:
        fail(str(error))
    for name in settings.zones:
        zone = zone_of(settings.ledger, name)
        for file in (zone.local, zone.spool):
            _expect_reachable(file)
    return settings


def record_mistakes(env_file: Path) -> tuple[Mistake, ...]:
    """Everything that is wrong with the settings of the ledger; exits with 1 when they cannot be read."""
    try:
        environ = environment(env_file)
    except SettingsError as error:
        fail(str(error))
    try:
        RecordSettings.from_env(environ)
    except SettingsError as error:
        return error.mistakes
    return ()


def _expect_reachable(file: Path) -> None:
    """Exit with 1 if the file's directory cannot be searched, such as another user's private directory."""
    try:
        file.exists()
    except PermissionError as error:
        fail(
            f"Cannot look into {file.parent} (NEARCALL_DATA_DIR): {error.strerror}. Run this as the user who"
            " runs the server."
        )
    except OSError as error:
        fail(f"Cannot look into {file.parent} (NEARCALL_DATA_DIR): {error.strerror}.")


def known_names(env_file: Path) -> tuple[Known, tuple[Mistake, ...]]:
    """The zones and backends that a tenant may name, and every mistake in the file of NEARCALL_CONFIG.

    Exits with 1 when the environment cannot be read.
    """
    try:
        file = config_file(environment(env_file))
    except SettingsError as error:
        fail(str(error))
    return file.known, file.mistakes


def instant(option: str, text: str | None, default_ms: int) -> int:
    """Return the instant that an option names, in Unix ms."""
    if text is None:
        return default_ms
    try:
        return instant_ms(text, time.time_ns() // 1_000_000)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def readable(settings: RecordSettings, name: str) -> Path:
    """Return the file to read a zone's records from: the copy of its database, or the local ledger."""
    rule = settings.zones.get(name)
    if rule is None:
        raise typer.BadParameter(f"should be one of {', '.join(settings.zones)}", param_hint="--zone")
    if not rule.allows(settings.ledger.region):
        fail(f"Calls of zone {name} are not kept in {settings.ledger.region}: ask on a machine of that zone.")
    zone = zone_of(settings.ledger, name)
    if zone.url is None:
        return zone.local
    if not zone.replica.is_file():
        fail(f"There is no copy of the {name} database at {zone.replica}: a running server keeps one there.")
    return zone.replica


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal what the command waits for."""
    with Console(stderr=True).status(text):
        yield


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine; Ctrl-C exits with 130."""
    raise_on_ctrl_c()
    try:
        return uvloop.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
