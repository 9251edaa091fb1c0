"""`nearcall`: the command line. Reads arguments, prints results and chooses exit codes; other modules do the work.

Exit codes: 0: the command worked. 1: it did not, and the last line says why. 2: the command line was wrong. 3:
the server lost records of calls. 130: Ctrl-C. 141: the reader of the output has closed the pipe.
"""

import io
import re
import sys
from contextlib import suppress
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from app.cli import backends as cli_backends
from app.cli import calls as cli_calls
from app.cli import ledger as cli_ledger
from app.cli import residency as cli_residency
from app.cli import tenants as cli_tenants
from app.cli import world as cli_world
from app.cli.migrate import migrate_zone
from app.cli.output import READER_GONE, Output
from app.cli.shared import EnvFile, Json, fail, logs, record_settings, run, working
from app.config import (
    CallerSettings,
    Settings,
    drop_tokens_of_other_zones,
    environment,
    lend_identity,
)
from app.ledger.ledger import RecordsLostError
from app.ledger.zone_files import zones_here
from app.storage.errors import StorageError
from app.validation import SettingsError

RECORDS_LOST = 3
"""Exit status of a server that lost records."""

app = typer.Typer(
    help="Answers phone calls with a realtime speech model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.add_typer(cli_backends.app, name="backends")
app.add_typer(cli_calls.app, name="calls")
app.add_typer(cli_ledger.app, name="ledger")
app.add_typer(cli_residency.app, name="residency")
app.add_typer(cli_tenants.app, name="tenants")


def main() -> None:
    """Run the command line. Called by app/__main__.py."""
    if not isinstance(sys.stdout, io.TextIOWrapper):
        app()
        return
    sys.stdout = output = Output.instead_of(sys.stdout)
    try:
        app()
    except SystemExit:
        with suppress(BrokenPipeError):
            output.flush()
        if output.reader_gone:
            raise SystemExit(READER_GONE) from None
        raise


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"nearcall {version('nearcall')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port to listen on. Default: PORT, or 8080.", min=1, max=65535)
    ] = None,
    practice: Annotated[
        bool,
        typer.Option("--practice", help="Repeat callers' words to them instead of using a backend. Needs no key."),
    ] = False,
    env_file: EnvFile = Path(".env"),
    log_level: Annotated[str, typer.Option(help="Lowest level to log: debug, info, warning or error.")] = "info",
) -> None:
    """Take calls. The README lists the settings, which come from the environment.

    Exit status 0: the server was told to stop, and every record is in the database or on this disk. 1: it could
    not start, or failed. 3: it lost records of calls; the last line says how many records of which zone.
    """
    from app import main as server  # noqa: PLC0415  so that --help does not load a server
    from app.process import StartError  # noqa: PLC0415

    settings = _settings(env_file, port, practice=practice)
    with logs(log_level, settings.region, settings.secrets):
        try:
            run(server.serve(settings, host))
        except RecordsLostError as error:
            fail(str(error), RECORDS_LOST)
        except (StartError, StorageError) as error:
            fail(str(error))


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8080,
    say: Annotated[Path | None, typer.Option(help="A WAV file with what the caller says first.")] = None,
    save: Annotated[
        Path, typer.Option(help="File for a recording of the call: caller on the left, agent on the right.")
    ] = Path("data/demo/call.wav"),
    data_dir: Annotated[Path, typer.Option(help="Directory for the ledger.")] = Path("data/demo"),
    once: Annotated[
        bool, typer.Option("--once", help="Exit after the automatic call, with status 0 if every check passed.")
    ] = False,
) -> None:
    """Start a server with a practice backend, and place a call to it that interrupts the agent."""
    from app.cli.demo import demo as run_demo  # noqa: PLC0415
    from app.process import StartError  # noqa: PLC0415
    from app.sim.phone.errors import PhoneError  # noqa: PLC0415
    from app.sim.wav import WavError  # noqa: PLC0415

    console = Console(highlight=False)
    status = 1
    with logs("warning", "local", ()):
        try:
            status = run(run_demo(console, port=port, data_dir=data_dir, say=say, save=save, once=once))
        except (StartError, StorageError, WavError, PhoneError) as error:
            fail(str(error))
        except FileExistsError as error:
            fail(f"{error.filename} is not a directory.")
        except OSError as error:
            fail(f"{error.filename or save}: {error.strerror}.")
    raise typer.Exit(status)


def _region_code(text: str | None) -> str | None:
    if text is not None and not re.fullmatch("[a-z]{3}", text, re.ASCII):
        raise typer.BadParameter("should be a region code such as fra")
    return text


@app.command()
def call(
    url: Annotated[str, typer.Argument(help="The server or its voice webhook, such as https://calls.example.com")],
    say: Annotated[
        list[Path] | None,
        typer.Option(help="A WAV file with speech, to play when the agent has finished. Repeatable."),
    ] = None,
    interrupt_after: Annotated[
        float | None,
        typer.Option(
            help="Play the last file after this many seconds of the agent's speech, to interrupt it.", min=0.1
        ),
    ] = None,
    answer_within: Annotated[
        float,
        typer.Option(help="Seconds within which the agent has to begin its greeting and each answer.", min=0.5),
    ] = 5.0,
    greeting_optional: Annotated[
        bool,
        typer.Option(
            "--greeting-optional", help="Speak first if the agent does not greet within --answer-within."
        ),
    ] = False,
    from_: Annotated[str, typer.Option("--from", help="The caller's number.")] = "+4930123456",
    to: Annotated[
        str,
        typer.Option(help="The number to dial: a tenant's, or a zone's test number, which needs no tenant."),
    ] = "test:global",
    public_url: Annotated[
        str | None, typer.Option(help="The server's base URL at Twilio, if it differs from URL.")
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            callback=_region_code,
            help="Ask Fly.io for a machine in this region; the report says which region answered.",
        ),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            help="Stop waiting for the agent after this many silent seconds, and continue the call.", min=1
        ),
    ] = 15.0,
    save: Annotated[
        Path | None, typer.Option(help="Record the call to this WAV file: caller on the left, agent on the right.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line; the last one is the report.")
    ] = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Call a server as Twilio would, and report how the call went.

    Needs the server's TWILIO_AUTH_TOKEN and TWILIO_ACCOUNT_SID in the environment or in --env-file.

    The exit status is 0 if all of the following is true. Otherwise the last lines say what is not:

    - The agent greeted the caller: it began to speak within --answer-within seconds of being connected.

    - It answered every file: it began to speak within --answer-within seconds of the last word in the file.
    Later speech does not count as an answer, since the agent may be asking whether the caller is still there.

    - It stopped when it was interrupted: it discarded the rest of its speech within a second of the caller's
    first sound, and was silent while the caller spoke. If it had nothing left to say at that moment, the
    interruption proves nothing, and the status is 1. A single file interrupts the greeting, which a tenant may
    have set not to be interruptible; with several files, the last one interrupts the answer to the one before.

    - The call did not fail, and the server sent nothing that Twilio would refuse. The agent may hang up once
    everything has been said and answered.
    """
    if interrupt_after is not None and not say:
        raise typer.BadParameter("needs a --say file to interrupt with", param_hint="--interrupt-after")
    from app.cli.test_call import CallPlan, place_call  # noqa: PLC0415
    from app.sim.phone.errors import PhoneError, WebhookStatusError  # noqa: PLC0415
    from app.sim.wav import WavError  # noqa: PLC0415

    try:
        keys = CallerSettings.from_env(environment(env_file))
    except SettingsError as error:
        fail(str(error))
    plan = CallPlan(
        url,
        tuple(say or ()),
        interrupt_after,
        from_,
        to,
        public_url,
        patience,
        save,
        region,
        answer_within,
        greeting_required=not greeting_optional,
    )
    with logs("warning", "caller", (keys.auth_token,)):
        try:
            good = run(place_call(Console(highlight=False), plan, keys, json_lines=json))
        except WebhookStatusError as error:
            hint = "Check that the server has this TWILIO_AUTH_TOKEN, and this URL; if not, use --public-url."
            fail(f"{error}\n{hint}" if error.status == HTTPStatus.FORBIDDEN else str(error))
        except (PhoneError, WavError) as error:
            fail(str(error))
    raise typer.Exit(0 if good else 1)


app.command()(cli_world.world)


@app.command()
def migrate(
    replace_lost_database: Annotated[
        str | None,
        typer.Option(
            metavar="ZONE",
            help="Accept the database of this zone in place of one that is lost. Machines may then discard their"
            " copies of the lost one.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Migrate every zone's database to the schema of this version. Run it before a new version takes calls.

    You can run it repeatedly, and on several machines at once. A migration that fails leaves no trace. Servers of
    the previous version keep working, since migrations only add to the schema. It refuses a database other than
    the one that this machine has a copy of.
    """
    problems: list[str] = []
    zones = zones_here(record_settings(env_file, every_zone=True))
    with_database = [zone.name for zone in zones if zone.url is not None]
    if replace_lost_database not in {None, *with_database}:
        raise typer.BadParameter(
            f"should be a zone with a database ({', '.join(with_database) or 'no zone has one'})",
            param_hint="--replace-lost-database",
        )
    for zone in zones:
        try:
            with working(f"{zone.name}: migrating {zone.url or zone.local}"):
                work = migrate_zone(zone, replace_lost=zone.name == replace_lost_database)
                names = [migration.name for migration in run(work)]
        except StorageError as error:
            problems.append(f"{zone.name}: {error}")
            continue
        if json:
            print(orjson.dumps({"zone": zone.name, "applied": names}).decode())
        else:
            print(f"{zone.name}: {', '.join(names) or 'nothing to do'} ({zone.url or zone.local})")
    if problems:
        fail("\n".join(problems))


# --- Shared ------------------------------------------------------------------------------------


def _settings(env_file: Path, port: int | None, *, practice: bool) -> Settings:
    """Read the settings from the environment; the command line overrides them."""
    try:
        environ = environment(env_file)
        lend_identity(environ)
        if port is not None:
            environ["PORT"] = str(port)
        settings = Settings.from_env(environ, practice=practice)
    except SettingsError as error:
        fail(str(error))
    drop_tokens_of_other_zones(settings.zones, settings.region)
    return settings
