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
    SettingsError,
    drop_tokens_of_other_zones,
    environment,
    lend_identity,
)
from app.ledger.ledger import RecordsLostError
from app.ledger.zone_files import zones_here
from app.storage.errors import StorageError

RECORDS_LOST = 3
"""Exit status of a server that lost records."""

app = typer.Typer(
    help="Answers a phone number with a realtime speech model, close to the caller.",
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
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; else PORT, else 8080.", min=1, max=65535)
    ] = None,
    practice: Annotated[
        bool, typer.Option("--practice", help="Repeat callers' words to them, in place of a model. Needs no key.")
    ] = False,
    env_file: EnvFile = Path(".env"),
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Take calls. Settings come from the environment; README lists them.

    Status 0: told to stop, and every record is on the database or on this disk. 1: it could not start, or broke.
    3: records of calls were lost; the last line says how many, of which zone.
    """
    from app import main as server  # noqa: PLC0415  --help need not load a server

    settings = _settings(env_file, port, practice=practice)
    with logs(log_level, settings.region, settings.secrets):
        try:
            run(server.serve(settings, host))
        except RecordsLostError as error:
            fail(str(error), RECORDS_LOST)
        except (server.StartError, StorageError) as error:
            fail(str(error))


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8080,
    say: Annotated[Path | None, typer.Option(help="What the caller says first: a WAV file.")] = None,
    save: Annotated[Path, typer.Option(help="Where the call's sound is saved: caller left, agent right.")] = Path(
        "data/demo/call.wav"
    ),
    data_dir: Annotated[Path, typer.Option(help="Where the ledger is kept.")] = Path("data/demo"),
    once: Annotated[
        bool, typer.Option("--once", help="End after the automatic call; status 0 if it went well.")
    ] = False,
) -> None:
    """See it work: a server with a practice backend, and a call that is answered, interrupted and obeyed."""
    from app.cli.demo import demo as run_demo  # noqa: PLC0415
    from app.main import StartError  # noqa: PLC0415
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
            fail(f"{error.filename}: it is not a directory.")
        except OSError as error:
            fail(f"{error.filename or save}: {error.strerror}.")
    raise typer.Exit(status)


def _region_code(text: str | None) -> str | None:
    if text is not None and not re.fullmatch("[a-z]{3}", text, re.ASCII):
        raise typer.BadParameter("should be a region code such as fra")
    return text


@app.command()
def call(
    url: Annotated[str, typer.Argument(help="The server, or its voice webhook: https://calls.example.com")],
    say: Annotated[
        list[Path] | None,
        typer.Option(help="A WAV file with speech, to say when the agent has finished. Repeatable."),
    ] = None,
    interrupt_after: Annotated[
        float | None,
        typer.Option(
            help="Say the last file when this many seconds of the agent's speech have been heard.", min=0.1
        ),
    ] = None,
    answer_within: Annotated[
        float,
        typer.Option(help="Seconds in which the agent has to begin its greeting and each answer.", min=0.5),
    ] = 5.0,
    greeting_optional: Annotated[
        bool,
        typer.Option(
            "--greeting-optional", help="Speak first when the agent has not greeted within --answer-within."
        ),
    ] = False,
    from_: Annotated[str, typer.Option("--from", help="The caller's number.")] = "+4930123456",
    to: Annotated[
        str,
        typer.Option(help="The dialled number: a tenant's, or the test number of a zone, which needs no tenant."),
    ] = "test:global",
    public_url: Annotated[
        str | None, typer.Option(help="The base that the server is known by at Twilio, if it is not URL.")
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            callback=_region_code, help="Ask Fly.io for a machine of this region; the report says which answered."
        ),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(help="Go on after this many seconds without a word of the agent, to report the rest.", min=1),
    ] = 15.0,
    save: Annotated[Path | None, typer.Option(help="Save the call's sound: caller left, agent right.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line; the last is the report.")] = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Call a server as Twilio would, and say how it went.

    Needs TWILIO_AUTH_TOKEN and TWILIO_ACCOUNT_SID, the ones that the server has.

    Exit status 0 means that all of this is true; otherwise the last lines name what is not:

    - The agent greeted the caller: it began to speak within --answer-within seconds of being connected.

    - It answered every file: it began to speak within --answer-within seconds of the last word in the file.
    What it says later is no answer; it may be asking whether the caller is still there.

    - It stopped when it was interrupted: it threw away the rest of its speech within a second of the caller's
    first sound, and was silent while the caller spoke. If it had nothing left to say at that moment, the
    interruption proves nothing, and the status is 1. A single file interrupts the greeting, which a tenant may
    have set not to be interruptible; with two files the last interrupts the answer to the first.

    - The call did not break, and the server sent nothing that Twilio would refuse. The agent may hang up when
    everything has been said and answered.
    """
    if interrupt_after is not None and not say:
        raise typer.BadParameter("needs --say: something to interrupt with", param_hint="--interrupt-after")
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
            hint = "Has the server this TWILIO_AUTH_TOKEN, and is it known by this URL? Else give --public-url."
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
            help="The database of this zone takes the place of one that is lost, with everything in it: machines"
            " may give up the copies that they keep of the lost one.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Bring every zone's database to the schema of this program. Run it before a new version takes calls.

    Safe to run twice, and by several machines at once. A migration that fails leaves no trace. Servers of the
    version before go on working: migrations only add. Refuses a database that is not the one that this machine has
    a copy of.
    """
    problems: list[str] = []
    zones = zones_here(record_settings(env_file, every_zone=True))
    with_database = [zone.name for zone in zones if zone.url is not None]
    if replace_lost_database not in {None, *with_database}:
        raise typer.BadParameter(
            f"should be a zone with a database: {', '.join(with_database) or 'there is none'}",
            param_hint="--replace-lost-database",
        )
    for zone in zones:
        try:
            with working(f"{zone.name}: asking {zone.url or zone.local}"):
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
    """What the environment says, and the command line, which wins."""
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
