"""`nearcall backends`: checks whether the configured backends can take a call."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from app.backends.table import Backend, BackendEntry
from app.cli.ledger_view import table
from app.cli.shared import EnvFile, Json, fail, logs, run, working
from app.config import BackendSettings, environment, lend_identity
from app.suggestions import instead
from app.validation import SettingsError

if TYPE_CHECKING:
    from app.backends.check import Checked

app = typer.Typer(help="Test the backends: check.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Make Typer treat the single command as a group: `nearcall backends check`."""


@app.command()
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Check only these backends.", show_default=False),
    ] = None,
    speak: Annotated[
        bool,
        typer.Option(help="Have each backend say the greeting, which costs a few tokens, or only configure it."),
    ] = True,
    json: Json = False,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Dial each backend, configure it as a call does, and measure how long it takes to speak.

    Exit status 1 if a backend cannot take a call; stderr then says why, and what to do about it.
    """
    from app.backends.entra import EntraNotInstalled  # noqa: PLC0415  no other command dials

    try:
        environ = environment(env_file)
        lend_identity(environ)
        settings = BackendSettings.from_env(environ)
    except SettingsError as error:
        fail(str(error))
    chosen = _chosen(settings, names or ())
    with logs("critical", "check", settings.secrets):
        try:
            found = run(_check(chosen, settings, speak=speak))
        except EntraNotInstalled as error:
            fail(f"{error}. Or set AZURE_VOICELIVE_API_KEY.")
    if json:
        for each in found:
            print(orjson.dumps({"ok": each.good, **asdict(each)}).decode())
    else:
        tried = {each.backend for each in found}
        without = [entry for entry in settings.entries.values() if not names and entry.name not in tried]
        print("\n".join(table(_HEADER, [*map(_row, found), *map(_unset_row, without)])))
    bad = [
        f"{each.backend}: {each.problem}{f'. {each.hint}' if each.hint else ''}" for each in found if not each.good
    ]
    if bad:
        fail("\n".join(bad))


def _chosen(settings: BackendSettings, names: Collection[str]) -> list[Backend]:
    for name in names:
        if name not in settings.entries:
            known = instead(name, settings.entries)
            raise typer.BadParameter(f"there is no backend {name!r}{known}", param_hint="NAME")
    chosen = [backend for backend in settings.backends if not names or backend.name in names]
    for name in names:
        if all(backend.name != name for backend in chosen):
            fail(f"{name} is not configured: {_missing(settings.entries[name])}.")
    if not chosen:
        missing = ", ".join(f"{_missing(entry)} ({entry.name})" for entry in settings.entries.values())
        fail(f"No backend is configured: {missing}.")
    return chosen


def _missing(entry: BackendEntry) -> str:
    return f"{entry.key or 'AZURE_VOICELIVE_ENDPOINT'} is not set"


async def _check(chosen: Collection[Backend], settings: BackendSettings, *, speak: bool) -> "list[Checked]":
    from app.backends.check import check_backend  # noqa: PLC0415
    from app.backends.dialects import dialect_of, wants_entra  # noqa: PLC0415  as above
    from app.backends.entra import EntraTokens  # noqa: PLC0415

    found = []
    tokens = EntraTokens()
    if wants_entra(chosen):
        tokens.start()
        with working("Entra ID: a token"):
            await tokens.answered.wait()
    try:
        for backend in chosen:
            with working(f"{backend.name}: {backend.entry.url}"):
                dialect = dialect_of(backend, tokens)
                found.append(await check_backend(backend, dialect, settings.plan, speak=speak))
    finally:
        await tokens.stop()
    return found


_HEADER = ("backend", "kind", "model", "audio", "open ms", "configured ms", "first audio ms", "")


def _row(each: "Checked") -> tuple[str, ...]:
    times = (each.opened_ms, each.configured_ms, each.first_audio_ms)
    shown = ("-" if time is None else f"{time:.0f}" for time in times)
    return (each.backend, each.kind, each.model, each.audio, *shown, "ok" if each.good else "not usable")


def _unset_row(entry: BackendEntry) -> tuple[str, ...]:
    return (entry.name, entry.kind, entry.tuning.model or "-", entry.tuning.audio, "-", "-", "-", _missing(entry))
